"""A folder with known answers: true classes and boxes, how well boxes fit, and the table.

A collector gathers what it needs of each photograph, and makes Drawings at the end. Failures are
in failures.py, boxes and their scores in boxes.py; nothing is written in here."""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import itertools
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cnnvis.boxes import Localisation, find_true_boxes, warn_outside
from cnnvis.explanation import Explanation, GradCamExplanation
from cnnvis.networks import Network
from cnnvis.photos import Photo, PhotoSet
from cnnvis.results import Drawing, Result
from cnnvis.runtime import abbreviate, log, log_once
from utils import ClassNames, Selection, UserError

TABLE_COLUMNS = ["photograph", "true_class", "true_p"]
TABLE_COLUMNS += [f"{column}_{rank}" for rank in range(1, 6) for column in ("class", "p")]
TABLE_COLUMNS += ["layer", "map_maximum", "x0", "y0", "x1", "y1", "settings", "error"]
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet runs such cells as formulas


class FolderEvaluation:
    """All photographs of a run and one network: true classes, true boxes, the maps needed."""

    def __init__(
        self,
        options: argparse.Namespace,
        network: Network,
        photos: PhotoSet,
        make_explanation: Callable,
    ):
        """make_explanation: see drawing.draw_figures."""
        self.options, self.network, self.photos = options, network, photos
        self.make_explanation = make_explanation
        self.uses_truths = any(figure.uses_truths for figure in options.chosen)
        self.truths = {}  # {path: class index}
        self.lack = ""  # why there are no truths
        self.boxes = {}  # {path: {class index: [Box, …]}}
        if self.uses_truths:
            try:
                self.truths = known_answers(network, photos)
            except UserError as error:
                self.lack = str(error)
        if any(figure.uses_boxes for figure in options.chosen) and options.boxes:
            self.boxes = find_true_boxes(options, network.classes, photos.paths)

    def boxes_of(self, path: Path) -> dict:
        """The true boxes of a photograph, {class index: [Box, …]}."""
        return self.boxes.get(path, {})

    def selection_for(self, path: Path) -> Selection:
        """The classes to compute maps for: those asked for, and the true ones of a photograph."""
        asked = self.network.selection
        needed = [self.truths[path]] if path in self.truths else []
        needed += self.boxes_of(path)
        top = max(asked.top, 1) if self.uses_truths else asked.top
        return replace(asked, indices=(*asked.indices, *needed), top=top)

    def explain(self, photo: Photo) -> Explanation:
        """The Explanation of a photograph, with its true boxes."""
        selection = self.selection_for(photo.path)
        explanation = self.make_explanation(self.options, self.network, photo, selection=selection)
        explanation.true_boxes = self.boxes_of(photo.path)
        warn_outside(photo, itertools.chain.from_iterable(explanation.true_boxes.values()))
        return explanation


# --- true classes ---


def known_answers(network: Network, photos: PhotoSet) -> dict[Path, int]:
    """{path: class index}, by the names of sub-folders. UserError: there is none."""
    if network.kind == "number":
        advice = "if it tells two classes apart, name them with --labels"
        raise UserError(f"{network.label} gives a number, no class: {advice}")
    with_photos = set(photos.subfolder_of.values())
    try:
        found = match_folders(sorted(with_photos), network.classes)
    except UserError as error:
        raise UserError(f"{error}{hint_above(network.classes, photos)}") from error
    empty = [folder for folder in photos.subfolders if folder not in with_photos]
    empty = [folder for folder in empty if names_class(network.classes, folder)]
    if empty:
        log_once(f"sub-folders without photographs: {abbreviate(empty)}")
    places = photos.subfolder_of.items()
    return {path: found[folder] for path, folder in places if folder in found}


def match_folders(folders: Sequence[str], classes: ClassNames) -> dict[str, int]:
    """{sub-folder: class index} of the sub-folders that are named like classes.

    Those left out, and several of one class, are reported. UserError: there is none."""
    found = {folder: classes.named(folder) for folder in folders if names_class(classes, folder)}
    unknown = [folder for folder in folders if folder not in found]
    if not found:
        lack = (
            f"no sub-folder ({abbreviate(unknown)})" if unknown else "there is no sub-folder that"
        )
        raise UserError(f"{lack} is named like a class ({abbreviate(classes.names)})")
    if unknown:
        log_once(f"sub-folders named like no class, or like several: {abbreviate(unknown)}")
    counts = Counter(found.values())
    doubled = [folder for folder, index in found.items() if counts[index] > 1]
    if doubled:
        log_once(f"sub-folders of the same class are taken together: {abbreviate(doubled)}")
    return found


def names_class(classes: ClassNames, folder: str) -> bool:
    """Whether a folder is named like one class."""
    with contextlib.suppress(UserError):
        classes.named(folder)
        return True
    return False


def hint_above(classes: ClassNames, photos: PhotoSet) -> str:
    """A hint where the folders of classes were given one by one; else nothing."""
    outside = [path for path in photos.paths if path not in photos.subfolder_of]
    folders = list(dict.fromkeys(path.parent for path in outside))
    named = [folder for folder in folders if names_class(classes, folder.resolve().name)]
    if len(folders) < 2 and not named:
        return ""
    return f": give the folder above, {os.path.normpath(folders[0] / '..')}"


# --- boxes ---


def box_collector(evaluation: FolderEvaluation) -> BoxCollector | None:
    """A BoxCollector where several photographs have true boxes, else None."""
    has_several = len(evaluation.photos.paths) > 1
    return BoxCollector(evaluation) if evaluation.options.boxes and has_several else None


class BoxCollector:
    """Gathers how well the boxes of maps fit true boxes."""

    def __init__(self, evaluation: FolderEvaluation):
        self.evaluation = evaluation
        self.localisation = Localisation()
        self.order = []  # of each map, the place of its photograph

    def add(self, explanation: GradCamExplanation) -> None:
        """Score the maps of the classes that have true boxes."""
        for index, truths in self.evaluation.boxes_of(explanation.photo.path).items():
            segment = explanation.segment(index)
            self.localisation.add(segment.heat, segment.box, truths)
            self.order.append(self.evaluation.photos.order[explanation.photo.path])

    def state(self) -> tuple:
        """What other workers need to know."""
        return self.order, self.localisation.scores, self.localisation.cases

    def merge(self, states: Sequence[tuple]) -> None:
        """Take the states of all workers, in the order of the photographs."""
        maps = itertools.chain.from_iterable(zip(*state, strict=True) for state in states)
        ordered = sorted(maps, key=lambda each: each[0])
        self.order = [order for order, _, _ in ordered]
        self.localisation.scores = [scores for _, scores, _ in ordered]
        self.localisation.cases = [case for _, _, case in ordered]

    def drawings(self) -> list[Drawing]:
        """The page of the summary, which is printed too."""
        scores = self.localisation.scores
        if not scores:
            return []
        network, photos = self.evaluation.network, self.evaluation.photos
        log(f"{network.label}: {self.localisation.line()}")
        is_taken = photos.name in photos.stems.values()  # by the page of a photograph
        suffix = "_summary" if is_taken else ""
        note = f"{network.main_layer} · {len(scores)} maps with true boxes"
        arrays = network.keyed({"localisation": np.stack(scores)})
        return [Drawing([[self.localisation.tile()]], note, arrays, bars=[], suffix=suffix)]


# --- table ---


class TableCollector:
    """Gathers a row a photograph: truth, predictions, probabilities, the map's maximum, its box."""

    def __init__(self, evaluation: FolderEvaluation):
        self.evaluation = evaluation
        self.rows = {}  # {path: cells}

    def add(self, explanation: GradCamExplanation) -> None:
        """Add the row of a photograph."""
        network, path = self.evaluation.network, explanation.photo.path
        predicted = int(explanation.logits.argmax())
        probabilities = network.probabilities(explanation.logits)
        cells = class_cells(network.classes.short, probabilities, self.evaluation.truths.get(path))
        maximum = explanation.maps[predicted].max()
        cells |= {"layer": network.main_layer, "map_maximum": f"{maximum:.6g}"}
        box = explanation.segment(predicted).box
        self.rows[path] = cells | (box._asdict() if box else {})

    def state(self) -> dict:
        """What other workers need to know."""
        return self.rows

    def merge(self, states: Sequence[dict]) -> None:
        """Take the states of all workers."""
        for rows in states:
            self.rows |= rows

    def drawings(self) -> list[Drawing]:
        """The table, in the order of the photographs, with those that cannot be read."""
        photos, settings = self.evaluation.photos, self.settings()
        rows = []
        for path in photos.paths:
            cells = self.rows.get(path) or {"error": photos.unreadable.get(path, "")}
            rows.append({"photograph": str(path), "settings": settings, **cells})
        return [Drawing(table=table_text(rows))]

    def settings(self) -> str:
        """What --skip-existing finds in the table; pictures have it in their metadata."""
        evaluation, photos = self.evaluation, self.evaluation.photos
        figure = next(
            each for each in evaluation.options.chosen if each.collector is TableCollector
        )
        what = (evaluation.options, figure, evaluation.network)
        result = Result(*what, tuple(photos.paths), photos.name, photos.arguments)
        return f"{result.photo_digest} {result.digest} origin {result.origin}"


def class_cells(
    name: Callable[[int], str], probabilities: np.ndarray, true: int | None = None
) -> dict[str, str]:
    """Cells {column: text}: the true class, and the five most probable; name(index): of a class."""
    cells = {}
    if true is not None:
        cells = {"true_class": name(true), "true_p": f"{probabilities[true]:.6g}"}
    ranked = np.argsort(-probabilities, kind="stable")[:5].tolist()
    for rank, index in enumerate(ranked, 1):
        cells[f"class_{rank}"] = name(index)
        cells[f"p_{rank}"] = f"{probabilities[index]:.6g}"
    return cells


def table_text(rows: Sequence[dict]) -> str:
    """Rows {column of TABLE_COLUMNS: cell} as CSV (RFC 4180); missing cells are empty."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, TABLE_COLUMNS, restval="")
    writer.writeheader()
    for row in rows:
        writer.writerow({column: safe_cell(cell) for column, cell in row.items()})
    return text.getvalue().encode("utf-8", "replace").decode()  # a file name may be no text


def safe_cell(cell: Any) -> str:
    """A cell with ' before it if a spreadsheet may take it for a formula; numbers stay.

    As owasp.org/www-community/attacks/CSV_Injection recommends."""
    text = str(cell)
    if not text.startswith(FORMULA_STARTS):
        return text
    with contextlib.suppress(ValueError):
        float(text)
        return text
    return f"'{text}"
