"""Pages: tiles of pictures with titles, laid out in rows, with a heading and colour bars.

Lengths are pixels of a page of scale 1. What the pictures show, and files, are not in here."""

from __future__ import annotations

import contextlib
import functools
import itertools
import textwrap
import threading
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cnnvis.runtime import log_once
from utils import colorize, resize

PAGE_WIDTH = 1200  # the width that tiles are made for; a page is as wide as its tiles
GAP = 10  # between tiles
MARGIN = 14  # around a page
LARGEST_TILE = 580
LINES = 12  # of a text, at most
SETTINGS_LOCK = threading.RLock()  # matplotlib's settings are those of all threads
# Fonts with other characters than matplotlib's own, if the machine has them
FALLBACK_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans Mono CJK SC",
    "Hiragino Sans",
    "PingFang SC",
    "Microsoft YaHei",
    "Yu Gothic",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "IPAGothic",
    "Arial Unicode MS",
    "Noto Sans Devanagari",
    "Lohit Devanagari",
    "Nirmala UI",
    "Noto Emoji",
    "Segoe UI Emoji",
    "Symbola",
)


class Tile(NamedTuple):
    """A picture, uint8 (h, w, 3), and its title."""

    picture: np.ndarray
    title: str = ""


class Bar(NamedTuple):
    """A colour bar, from 0 to what its end means."""

    colormap: str
    end: str


# --- laying out tiles ---


def fit_tile(image: np.ndarray, columns: int, scale: int = 1) -> np.ndarray:
    """An image at its own proportions, as large as a tile on a page of so many columns."""
    height, width = image.shape[:2]
    room = min(LARGEST_TILE, (PAGE_WIDTH - 2 * MARGIN + GAP) // columns - GAP)
    factor = scale * room / max(width, height / 1.2)
    return resize(image, max(1, round(width * factor)), max(1, round(height * factor)))


def columns_for(count: int) -> int:
    """Columns of a grid of so many tiles: four to seven, with the fewest gaps."""
    return min(range(min(4, count), 8), key=lambda columns: (-count % columns, columns))


def in_rows(items: Sequence, columns: int) -> list:
    """Items in rows of so many columns."""
    return [items[start : start + columns] for start in range(0, len(items), columns)]


def in_grid(tiles: Sequence[Tile]) -> list:
    """Tiles in the rows of a grid."""
    return in_rows(tiles, columns_for(len(tiles)))


def mosaic(pictures: Sequence[np.ndarray], columns: int = 3) -> np.ndarray:
    """Pictures of one size, uint8 (h, w, 3), as one picture with white lines between them."""
    framed = [np.pad(each, ((1, 1), (1, 1), (0, 0)), constant_values=255) for each in pictures]
    framed += [np.full_like(framed[0], 255)] * (-len(framed) % columns)
    return np.vstack([np.hstack(row) for row in in_rows(framed, columns)])


def outlined(picture: np.ndarray, regions: Sequence, geometry: Any) -> np.ndarray:
    """A copy of a picture with regions, bool (h, w), outlined in white on black."""
    height, width = picture.shape[:2]
    outlines = []
    for region in regions:
        inside = geometry.resample(np.float32(region), height, width) > 0.5
        found, _ = cv2.findContours(np.uint8(inside), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        outlines += [] if region.all() else found
    picture = picture.copy()
    line = max(1, round(max(height, width) / 400))
    cv2.drawContours(picture, outlines, -1, (0, 0, 0), 3 * line)
    cv2.drawContours(picture, outlines, -1, (255, 255, 255), line)
    return picture


# --- drawing a page ---


@contextlib.contextmanager
def matplotlib_defaults() -> Iterator[None]:
    """matplotlib's own settings, whatever a person's matplotlibrc says; one thread at a time."""
    with SETTINGS_LOCK, matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams["text.hinting"] = "none"  # hinted letters take twice the time
        yield


@functools.cache
def font_families() -> list[str]:
    """matplotlib's monospaced font, and fonts of this machine for characters that it lacks."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans Mono", *(name for name in FALLBACK_FONTS if name in installed)]


@functools.cache
def known_characters() -> set[int]:
    """The code points that those fonts have."""
    known = set()
    for family in font_families():
        path = font_manager.findfont(family)
        known.update(font_manager.get_font(path).get_charmap())
    return known


def report_unknown_characters(text: str) -> None:
    """Log once that a title has characters that no font of this machine has."""
    if all(ord(character) < 0x250 or character in "\n" for character in text):
        return
    for character in text:
        if ord(character) > 0x24F and ord(character) not in known_characters():
            name = unicodedata.name(character, "")
            log_once(f"no font of this machine has U+{ord(character):X} {name}: titles show boxes")
            return


class Page:
    """Texts and pictures, put from top to bottom."""

    def __init__(self, width: int, scale: int):
        self.width = width
        self.height = 0  # known when all is put
        self.scale = scale
        self.texts = []  # (x, y, text, size, weight)
        self.images = []  # (x, y, picture)

    def write(
        self, x: float, y: float, text: str, room: float, size: float = 8.5, weight: str = "normal"
    ) -> float:
        """Put text into a room of some width; returns the y where it ends."""
        text = text.encode("utf-8", "replace").decode()  # a file name may be no valid text
        report_unknown_characters(text)
        lines = []
        for part in text.split("\n"):
            lines += textwrap.wrap(part, max(int(room / size / 0.84), 4))
        if len(lines) > LINES:
            lines = [*lines[: LINES - 1], "…", lines[-1]]
        self.texts.append((x, y, "\n".join(lines), size, weight))
        return y + round(1.77 * size * len(lines)) + 3

    def paste(self, x: float, y: float, picture: np.ndarray) -> float:
        """Put a picture; returns the y where it ends."""
        self.images.append((x, y, picture))
        return y + picture.shape[0] / self.scale

    def corner(self, x: float, y: float) -> tuple[int, int]:
        """The row, from the bottom of the page, and the column of a point in pixels."""
        return round((self.height - y) * self.scale), round(x * self.scale)

    def figure(self, with_pictures: bool = True) -> Figure:
        """The page as a matplotlib figure, to be drawn with `matplotlib_defaults`."""
        size = (self.width / 100, self.height / 100)
        figure = Figure(figsize=size, dpi=100 * self.scale)
        for x, y, picture in self.images if with_pictures else ():
            row, column = self.corner(x, y)
            figure.figimage(picture, column, row - picture.shape[0])
        style = {"va": "top", "linespacing": 1.27, "parse_math": False, "family": font_families()}
        for x, y, text, size, weight in self.texts:
            place = (x / self.width, 1 - y / self.height)
            figure.text(*place, text, size=size, weight=weight, **style)
        return figure

    @matplotlib_defaults()
    def pixels(self) -> np.ndarray:
        """The page as a picture, uint8 (h, w, 3).

        Pictures are copied as they are, which is faster than figimage."""
        pixels = render(self.figure(with_pictures=False))
        for x, y, picture in self.images:
            row, column = self.corner(x, y)
            top, (height, width) = len(pixels) - row, picture.shape[:2]
            pixels[top : top + height, column : column + width] = picture
        return pixels


def make_page(
    rows: Sequence[Sequence[Tile]],
    heading: str,
    note: str,
    bars: Sequence[Bar] = (),
    scale: int = 1,
) -> Page:
    """A page: heading, note, colour bars, rows of tiles."""
    widths = column_widths(rows, scale)
    page = Page(max(2 * MARGIN - GAP + sum(widths) + GAP * len(widths), 700), scale)
    for number, bar in enumerate(bars, 1):
        put_bar(page, bar, page.width - MARGIN - 180 * number + 20)
    room = page.width - 2 * MARGIN - 180 * len(bars)
    y = page.write(MARGIN, MARGIN, heading, room, 11, "bold")
    y = page.write(MARGIN, y, note, room) + GAP
    lefts = [MARGIN + sum(widths[:column]) + GAP * column for column in range(len(widths))]
    for row in rows:
        cells = list(zip(lefts, widths, row, strict=False))  # a row may be shorter than others
        top = max(page.write(x, y, tile.title, width) for x, width, tile in cells)
        y = GAP + max(page.paste(x, top, tile.picture) for x, _, tile in cells)
    page.height = round(y) + MARGIN - GAP
    return page


def put_bar(page: Page, bar: Bar, x: float) -> None:
    """Put a colour bar with its ends at the top of a page."""
    colours = colorize(np.linspace(0, 1, 160 * page.scale)[None], bar.colormap)
    y = page.paste(x, MARGIN, np.repeat(colours, 12 * page.scale, axis=0))
    page.write(x, y, "0", 20)
    page.write(x + 160 - 7 * len(bar.end), y, bar.end, 160)


def column_widths(rows: Sequence[Sequence[Tile]], scale: int) -> list[int]:
    """The width of each column of a page."""
    widths = []
    for column in itertools.zip_longest(*rows):
        pictures = [tile.picture.shape[1] / scale for tile in column if tile]
        widths.append(max(100, *map(round, pictures)))
    return widths


def render(figure: Figure) -> np.ndarray:
    """The pixels of a matplotlib figure, uint8 (h, w, 3), within `matplotlib_defaults`."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return cv2.cvtColor(np.asarray(canvas.buffer_rgba()), cv2.COLOR_RGBA2RGB)
