"""Boxes: weakly supervised localisation (Selvaraju et al. 2016, arXiv 1610.02391, section 4.1).

The box of a heat map's largest segment, true boxes from a file, and scores of one against the
other. Heat maps are computed elsewhere."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from cnnvis.pages import Tile, matplotlib_defaults, render
from cnnvis.runtime import abbreviate, log, log_once
from utils import PHOTO_FORMATS, ClassNames, UserError, decode_text

BOX_COLUMNS = ("photo", "class", "x0", "y0", "x1", "y1")
SCORES = ("IoU ≥ 0.5", "mean IoU", "pointing, 15 pixels", "pointing", "heat inside")
BOX_COLOUR = (255, 30, 30)  # RGB: of a map's box, red
TRUE_BOX_COLOUR = (0, 200, 70)  # green
LARGEST_COORDINATE = 1e6  # pixels; a larger one is a mistake
LONGEST_CELL = 4000  # characters
TOLERANCE = 15  # pixels of the pointing game
SEVERAL = 3  # photographs, at least, whose boxes may look like percent
MUCH_LARGER = 200  # pixels: sides of photographs on which they do


class Box(NamedTuple):
    """The pixels x0 <= x < x1, y0 <= y < y1 of a photograph."""

    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def size(self) -> np.ndarray:
        """Height and width."""
        return np.array([self.y1 - self.y0, self.x1 - self.x0])

    @property
    def is_ordered(self) -> bool:
        """Whether the numbers are corners: 0 <= x0 < x1, 0 <= y0 < y1."""
        return 0 <= self.x0 < self.x1 and 0 <= self.y0 < self.y1

    def iou(self, other: Box) -> float:
        """Intersection over union, 0 to 1."""
        common = np.minimum(self[2:], other[2:]) - np.maximum(self[:2], other[:2])
        common = np.maximum(common, 0).prod()
        return common / (self.size.prod() + other.size.prod() - common)


# --- true boxes ---


def read_boxes(path: str | Path) -> dict[Path, dict[str, list[Box]]]:
    """{resolved path of a photograph: {class as written: boxes}} of a CSV file.

    The file has at least the columns BOX_COLUMNS; its paths are relative to it. UserError names
    lines without a box, and a file whose boxes are not in pixels."""
    path = Path(path)
    if not path.exists() or path.is_dir():
        raise UserError(f"--boxes {path}: there is no such file")
    text = decode_text(path.read_bytes()).replace("\0", "\N{REPLACEMENT CHARACTER}")
    rows = csv.DictReader(io.StringIO(text, newline=""))
    folder, boxes, read = folder_of(path), {}, {}
    try:
        if set(BOX_COLUMNS) - set(rows.fieldnames or ()):
            raise UserError(f"{path}: its first line must name {','.join(BOX_COLUMNS)}")
        for row in rows:
            box = read[rows.line_num] = parse_box(row)
            if box and box.is_ordered:
                of_photo = boxes.setdefault(normalize_path(folder / row["photo"]), {})
                of_photo.setdefault(row["class"].strip(), []).append(box)
    except csv.Error as error:  # a cell of more than 131,072 characters
        raise UserError(f"{path}, line {rows.line_num + 1}: {error}") from error
    check_pixels(path, read)
    return boxes


def folder_of(path: Path) -> Path:
    """What the paths in a file are relative to: its folder; of a pipe, <(…), the current one."""
    return Path() if os.path.abspath(path).startswith(("/dev/", "/proc/")) else path.parent


def check_pixels(path: Path, read: dict[int, Box | None]) -> None:
    """UserError where a line of a file has no box, or all coordinates are at most 1.

    read: {line: four numbers as a Box, in whatever order, or None}."""
    numbers = [box for box in read.values() if box]
    if numbers and np.max(numbers) <= 1:
        raise UserError(f"{path}: its boxes are shares of the photograph, 0 to 1: pixels expected")
    wrong = [line for line, box in read.items() if not (box and box.is_ordered)]
    if not wrong:
        return
    have_size = [read[line] and min(read[line]) >= 0 < min(read[line][2:]) for line in wrong]
    hint = " (two corners, not a corner with width and height)" if all(have_size) else ""
    expected = f"expected are a photo, a class, and pixels 0 <= x0 < x1, 0 <= y0 < y1{hint}"
    raise UserError(f"{path}: no box in line {abbreviate(list(map(str, wrong)))}: {expected}")


def parse_box(row: dict) -> Box | None:
    """The numbers of a row {column: text} as a Box, or None where there are none."""
    cells = [row[column] or "" for column in BOX_COLUMNS]  # None: the row is too short
    photo, name = cells[0], cells[1].strip()
    if None in row or max(map(len, cells)) > LONGEST_CELL:  # the key None: a comma too many
        return None
    try:
        box = Box(*map(float, cells[2:]))
    except ValueError:
        return None
    is_named = photo and name and "\N{REPLACEMENT CHARACTER}" not in photo
    return box if is_named and max(map(abs, box)) <= LARGEST_COORDINATE else None


def normalize_path(path: Path) -> Path:
    """A resolved path with composed accents (NFC), as paths of photographs are compared."""
    return Path(unicodedata.normalize("NFC", os.path.realpath(path)))


def find_true_boxes(
    options: Any, classes: ClassNames, paths: Iterable[Path]
) -> dict[Path, dict[int, list[Box]]]:
    """{photograph: {class index: boxes}} of --boxes, for these photographs.

    Classes that the network does not know are left out and reported. UserError: no photograph has
    a box of a known class."""
    read, found = options.true_boxes, {}
    unknown, drawn = {}, set()
    for path in dict.fromkeys(paths):
        key = normalize_path(path)
        drawn.add(key)
        by_index = index_classes(read.get(key, {}), classes, unknown)
        if by_index:
            found[path] = by_index
    name, reasons = f"--boxes {options.boxes}", abbreviate(list(unknown.values()))
    if not found:
        listed = abbreviate(list(map(str, read))) or "no line"
        nothing = f"none of the photographs has a box there ({listed}; paths are from its folder)"
        raise UserError(f"{name}: {reasons or nothing}")
    if unknown:
        log(f"{name}: boxes are left out: {reasons}")
    others = [path.name for path in read if path not in drawn]
    if others:
        log(f"{name}: photographs that are not drawn here: {abbreviate(others)}")
    warn_percent(name, found)
    return found


def warn_percent(name: str, found: dict[Path, dict[int, list[Box]]]) -> None:
    """Report boxes of several photographs that look like percent: pixels in one corner do, too."""
    by_class = itertools.chain.from_iterable(by_index.values() for by_index in found.values())
    _, ends = np.split(np.array(list(itertools.chain.from_iterable(by_class))), 2, axis=1)
    looks_so = ends.max() <= 100 and (ends.max(axis=0) > 50).all()
    if len(found) < SEVERAL or not looks_so:
        return
    sizes = []
    for path in found:
        with (
            contextlib.suppress(OSError, ValueError, SyntaxError),
            Image.open(path, formats=PHOTO_FORMATS) as image,
        ):
            sizes.append(image.size)
    if len(sizes) >= SEVERAL and np.min(sizes) >= MUCH_LARGER:
        width, height = np.min(sizes, axis=0)
        seen = f"no box ends beyond 100, on photographs of at least {width} x {height} pixels"
        log_once(f"{name}: {seen}: if they are in percent, convert them to pixels")


def index_classes(named: dict, classes: ClassNames, unknown: dict) -> dict[int, list[Box]]:
    """{class index: boxes} of {class as written: boxes}.

    Why a class cannot be found is added to unknown, {class as written: reason}."""
    by_index = {}
    for word, boxes in named.items():
        try:
            index = classes.named(word)
        except UserError as error:
            unknown[word] = str(error)
            continue
        by_index.setdefault(index, []).extend(boxes)
    return by_index


def warn_outside(photo: Any, boxes: Iterable[Box]) -> None:
    """Report a true box that reaches beyond its photograph."""
    height, width = photo.image.shape[:2]
    if any(box.x1 > width or box.y1 > height for box in boxes):
        log(f"{photo.path}, {width} x {height} pixels: a true box reaches beyond it")


# --- the box of a map ---


def over_threshold(heat: np.ndarray, threshold: int) -> np.ndarray:
    """Where heat is above threshold percent of its maximum: uint8, 0 or 1; 0 without any heat."""
    return np.uint8(heat > max(heat.max(), 0) * threshold / 100)


def segment_box(heat: np.ndarray, threshold: int = 15) -> Box | None:
    """The Box of the largest connected segment of heat (H, W) above threshold percent (below 100)
    of its maximum; None without positive heat.

    Pixels that touch at a corner are connected, as in OpenCV and scikit-image."""
    hot = over_threshold(heat, threshold)
    if not hot.any():
        return None
    _, _, segments, _ = cv2.connectedComponentsWithStats(hot, connectivity=8)
    largest = 1 + segments[1:, cv2.CC_STAT_AREA].argmax()  # segment 0 is what is not hot
    x, y, width, height, _ = segments[largest].tolist()
    return Box(x, y, x + width, y + height)


def draw_box(picture: np.ndarray, box: Box, shape: tuple, colour: tuple, width: int) -> None:
    """Draw the Box of a photograph of shape (H, W) on a picture of it, of any size."""
    factors = np.tile(np.divide(picture.shape[1::-1], shape[::-1]), 2)
    x0, y0, x1, y1 = np.rint(box * factors).astype(int).tolist()
    cv2.rectangle(picture, (x0, y0), (x1 - 1, y1 - 1), colour, width)


# --- scores ---


def score_box(box: Box, point: tuple, heat: np.ndarray, truths: Sequence[Box]) -> np.ndarray:
    """The SCORES, (5,), of a map (H, W) with its box and its maximum at point, (y, x).

    Of several true boxes the best counts. Pointing game: Zhang et al. 2016, arXiv 1608.00507,
    section 4.1; its tolerance counts along y and x."""
    true = pixels_inside(truths, heat.shape)
    y, x = point
    rows = slice(max(y - TOLERANCE, 0), y + TOLERANCE + 1)
    columns = slice(max(x - TOLERANCE, 0), x + TOLERANCE + 1)
    near = true[rows, columns].any()
    iou = max(map(box.iou, truths))
    positive = np.maximum(heat, 0)
    inside = positive[true].sum() / positive.sum()
    return np.array([iou >= 0.5, iou, near, true[y, x], inside], float)


def pixels_inside(boxes: Sequence[Box], shape: tuple) -> np.ndarray:
    """Where a photograph (H, W) is inside one of the boxes: bool, same shape."""
    inside = np.zeros(shape, bool)
    for x0, y0, x1, y1 in np.round(boxes).astype(int):
        inside[y0:y1, x0:x1] = True
    return inside


def score_centered_box(shape: tuple, size: np.ndarray, truths: Sequence[Box]) -> np.ndarray:
    """The SCORES of an equally warm centred box of a size (height, width) in shares of shape's."""
    height, width = shape
    margins = np.round((1 - size) * shape / 2)
    y0, x0 = np.clip(margins, 0, [(height - 1) // 2, (width - 1) // 2]).astype(int).tolist()
    box = Box(x0, y0, width - x0, height - y0)
    heat = np.zeros(shape, np.float32)
    heat[box.y0 : box.y1, box.x0 : box.x1] = 1
    return score_box(box, (height // 2, width // 2), heat, truths)


class Localisation:
    """How well maps find true boxes, beside a centred box of the true ones' mean size."""

    def __init__(self):
        self.scores = []  # of each map
        self.cases = []  # of each map: its shape and its true boxes

    def add(self, heat: np.ndarray, box: Box | None, truths: Sequence[Box]) -> None:
        """Score a map (H, W), its box (None: no positive heat), against one or more true boxes."""
        point = np.unravel_index(heat.argmax(), heat.shape)
        nothing = np.zeros(len(SCORES))
        self.scores.append(score_box(box, point, heat, truths) if box else nothing)
        self.cases.append((heat.shape, truths))

    def summary(self) -> dict[str, tuple[float, float]]:
        """{name of SCORES: (mean over the maps, over centred boxes)}, 0 to 1."""
        sizes = [box.size / shape for shape, truths in self.cases for box in truths]
        size = np.mean(sizes, axis=0)  # in shares of the photographs'
        centred = [score_centered_box(shape, size, truths) for shape, truths in self.cases]
        means = np.mean([self.scores, centred], axis=1)
        return dict(zip(SCORES, map(tuple, means.T.tolist()), strict=True))

    def line(self) -> str:
        """The summary as a line of text."""
        pairs = self.summary().items()
        text = ", ".join(f"{name} {own:.3f} ({centred:.3f})" for name, (own, centred) in pairs)
        return f"{len(self.scores)} maps with true boxes (and a centred box of mean size): {text}"

    def tile(self) -> Tile:
        """The summary as a bar chart."""
        summary = self.summary()
        with matplotlib_defaults():
            figure = Figure(figsize=(7, 3), dpi=100)
            axes = figure.add_axes((0.22, 0.16, 0.73, 0.7))
            positions = -np.arange(len(summary))
            columns = zip(*summary.values(), strict=True)
            styles = (("Grad-CAM", "C3", 0.2), ("centred box", "0.7", -0.2))
            for means, (label, colour, shift) in zip(columns, styles, strict=True):
                bars = axes.barh(positions + shift, means, 0.38, color=colour, label=label)
                axes.bar_label(bars, fmt="%.3f", padding=3)
            axes.set_yticks(positions, summary)
            axes.set(xlim=(0, 1.12), xlabel="mean over the maps")
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
            return Tile(render(figure))
