"""Failures of a folder with known answers: what is taken for what, and why; mean heat of classes.

Which class is true is in folder.py; nothing is written in here."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cnnvis.explanation import GradCamExplanation
from cnnvis.folder import FolderEvaluation
from cnnvis.pages import Bar, Tile, columns_for, fit_tile, in_grid, in_rows
from cnnvis.results import Drawing
from cnnvis.runtime import abbreviate, log, log_once, progress
from utils import PREPROCESS_MODES, UserError, colorize, heat_map

ROWS_PER_PAGE = 8
MEAN_HEATS = 35  # classes on the page of mean heat at most
TRIED_PHOTOS = 50  # photographs at most that other preprocessings are tried on
LINEAR_METHODS = ("gradcam", "hirescam")  # the map of y1 - y2 is the map of y1 less that of y2


class ConfusionCounts(Counter):
    """How often each pair (true class, predicted class) of indices occurred."""

    def correct(self) -> int:
        """How many photographs are predicted correctly."""
        return sum(times for (true, predicted), times in self.items() if true == predicted)

    def by_class(self) -> tuple[Counter, Counter]:
        """Counters of photographs by their true class, and by the predicted one."""
        by_true, by_predicted = Counter(), Counter()
        for (true, predicted), times in self.items():
            by_true[true] += times
            by_predicted[predicted] += times
        return by_true, by_predicted

    def line(self, name: Callable[[int], str]) -> str:
        """`412 of 500 right (82.4 %); cat taken for dog 31 times, …`; name(index): of a class."""
        parts = []
        for (true, predicted), times in sorted(self.items(), key=lambda item: (-item[1], item[0])):
            if true != predicted:
                often = "once" if times == 1 else f"{times} times"
                parts.append(f"{name(true)} taken for {name(predicted)} {often}")
        share = 100 * self.correct() / self.total()
        text = f"{self.correct()} of {self.total()} right ({share:.1f} %)"
        return f"{text}; {abbreviate(parts)}" if parts else f"{text}: no failures to draw"


class Failure(NamedTuple):
    """A photograph that is taken for another class."""

    p: float  # of the predicted class
    path: Path
    predicted: int
    true: int
    logits: np.ndarray
    maps: np.ndarray  # (2, h, w), of the predicted class and of the true one

    def arrays(self, stem: str, layer: str) -> dict[str, np.ndarray]:
        """Its arrays to save."""
        arrays = {f"{stem}/logits": self.logits}
        for index, cam in zip((self.predicted, self.true), self.maps, strict=True):
            arrays[f"{stem}/{layer}/{index}"] = cam
        return arrays


def failures_collector(evaluation: FolderEvaluation) -> FailuresCollector | None:
    """A FailuresCollector; None where no true class is known, which is reported.

    UserError if the run draws nothing that does without true classes."""
    if evaluation.truths:
        return FailuresCollector(evaluation)
    if all(figure.uses_truths for figure in evaluation.options.chosen):
        raise UserError(f"failures: {evaluation.lack}")
    log_once(f"failures is left out: {evaluation.lack}")
    return None


class FailuresCollector:
    """Gathers what is taken for what, the most confident failures, and the mean heat of classes."""

    def __init__(self, evaluation: FolderEvaluation):
        self.evaluation = evaluation
        self.counts = ConfusionCounts()
        self.first = {}  # {pair: the place of its first photograph}
        self.failures = []  # the most confident first
        self.heats = {}  # {predicted class: the sum of its maps, each divided by its maximum}
        self.geometry = None  # of these maps over the network's input

    def add(self, explanation: GradCamExplanation) -> None:
        """Count a photograph with a true class, and keep what its failure needs."""
        true = self.evaluation.truths.get(explanation.photo.path)
        if true is None:
            return
        logits = explanation.logits
        predicted = int(logits.argmax())
        cam = explanation.maps[predicted]
        self.counts[true, predicted] += 1
        self.first.setdefault(
            (true, predicted), self.evaluation.photos.order[explanation.photo.path]
        )
        self.geometry = explanation.input_geometry(self.evaluation.network.main_layer, cam.shape)
        heat = np.maximum(cam, 0)
        self.heats[predicted] = self.heats.get(predicted, 0) + heat / (heat.max() or 1)
        if predicted != true:
            p = float(self.evaluation.network.probabilities(logits)[predicted])
            both = np.stack([cam, explanation.maps[true]])
            self.failures.append(Failure(p, explanation.photo.path, predicted, true, logits, both))
            self.keep_failures()

    def keep_failures(self) -> None:
        """Sort the failures, and keep those that are drawn."""
        order = self.evaluation.photos.order
        self.failures.sort(key=lambda failure: (-failure.p, order[failure.path]))
        del self.failures[ROWS_PER_PAGE * self.evaluation.options.pages :]

    def state(self) -> tuple:
        """What other workers need to know."""
        return dict(self.counts), self.first, self.failures, self.heats, self.geometry

    def merge(self, states: Sequence[tuple]) -> None:
        """Take the states of all workers."""
        every_count, every_first, failures, every_heat, geometries = zip(*states, strict=True)
        firsts = [pair for first in every_first for pair in first.items()]
        self.first = dict(sorted(firsts, key=lambda item: -item[1]))  # the least one stays
        in_order = sorted(self.first, key=self.first.get)  # as ties are broken
        self.counts = ConfusionCounts(dict.fromkeys(in_order, 0))
        for counts in every_count:
            self.counts.update(counts)
        self.failures = list(itertools.chain.from_iterable(failures))
        self.keep_failures()
        self.heats = {}
        for index, heat in itertools.chain.from_iterable(heats.items() for heats in every_heat):
            self.heats[index] = self.heats.get(index, 0) + heat
        self.geometry = next(filter(None, geometries), None)

    def drawings(self) -> Iterator[Drawing]:
        """Pages of failures, and one of mean heat; the counts are printed."""
        if not self.counts:
            return
        network = self.evaluation.network
        log(f"{network.label}: {self.counts.line(network.classes.short)}")
        yield from self.draw_pages()
        yield self.draw_mean_heat()
        report_doubts(self.evaluation, self.counts)

    def draw_pages(self) -> Iterator[Drawing]:
        """The pages of failures; a photograph that can no longer be read is left out."""
        evaluation, pages = self.evaluation, in_rows(self.failures, ROWS_PER_PAGE)
        bars = [Bar(evaluation.options.colormap, "max of both")]
        advance = progress(len(self.failures))
        for number, failures in enumerate(pages, 1):
            rows, arrays = [], {}
            for failure in failures:
                photo = evaluation.photos.read(failure.path)
                if photo:
                    rows.append(failure_row(evaluation.explain(photo), failure))
                    arrays |= failure.arrays(photo.stem, evaluation.network.main_layer)
                advance()
            if rows:
                note = self.note(f"page {number} of {len(pages)}")
                arrays = evaluation.network.keyed(arrays)
                yield Drawing(rows, note, arrays, bars, suffix=f"_{number}")

    def note(self, page: str) -> str:
        """The note of a page of failures."""
        total = self.counts.total()
        wrong = total - self.counts.correct()
        note = f"{self.evaluation.network.main_layer} · "
        note += f"{wrong} of {total} wrong, the most confident first · {page}"
        if self.evaluation.options.method in LINEAR_METHODS:
            note += " · the difference of two maps is the map of the logits' difference"
        return note

    def draw_mean_heat(self) -> Drawing:
        """The mean heat of each predicted class, of the most frequent ones."""
        network, options = self.evaluation.network, self.evaluation.options
        classes = self.counts.by_class()[1].most_common(MEAN_HEATS)
        tiles, arrays = [], {}
        for index, times in classes:
            mean = self.heats[index] / times
            heat = heat_map(mean, *self.geometry.size, geometry=self.geometry)
            picture = colorize(heat, options.colormap)
            picture = fit_tile(picture, columns_for(len(classes)), options.scale)
            title = f"{network.classes.title(index)}\npredicted {times} times"
            title += f", right {self.counts[index, index]}\nmax {mean.max():.2f}"
            tiles.append(Tile(picture, title))
            arrays[f"{network.main_layer}/{index}/mean"] = mean
        note = f"{network.main_layer} · mean heat of the predicted class"
        note += " · each map divided by its maximum"
        if len(classes) < len(self.heats):
            note += f" · the {len(classes)} most frequent of {len(self.heats)} classes"
        return Drawing(in_grid(tiles), note, network.keyed(arrays), suffix="_heat")


def failure_row(explanation: GradCamExplanation, failure: Failure) -> list[Tile]:
    """Tiles: photograph, heat of the predicted class and of the true one, their difference."""
    image, layer = explanation.tile(4), explanation.network.main_layer
    predicted = explanation.class_title(failure.predicted, logits=failure.logits)
    true = explanation.class_title(failure.true, logits=failure.logits)
    scale = max(failure.maps.max(), 0)
    wrong, right = failure.maps
    name = Path(*explanation.photo.path.parts[-2:])
    return [
        Tile(image, f"{name}\ntrue: {true}"),
        explanation.heat_tile(image, wrong, layer, f"taken for {predicted}", scale=scale),
        explanation.heat_tile(image, right, layer, f"true: {true}", scale=scale),
        difference_tile(explanation, image, wrong - right, failure),
    ]


def difference_tile(
    explanation: GradCamExplanation, image: np.ndarray, difference: np.ndarray, failure: Failure
) -> Tile:
    """The Tile of the map of the predicted class less that of the true one: red where positive."""
    picture = explanation.signed_picture(image, difference, explanation.network.main_layer)
    short = explanation.network.classes.short
    predicted, true = short(failure.predicted), short(failure.true)
    title = f"red: {predicted} rather than {true}\nblue: {true} rather than {predicted}"
    return Tile(picture, title)


# --- doubts about the labels or the preprocessing ---


def report_doubts(evaluation: FolderEvaluation, counts: ConfusionCounts) -> None:
    """Report a network that is not above the majority class, and how other preprocessings do."""
    by_true, by_predicted = counts.by_class()
    most, label = max(by_true.values()), evaluation.network.label
    if counts.correct() > most or len(by_true) == 1:
        return
    if len(by_predicted) == 1:
        name = evaluation.network.classes.short(*by_predicted)
        log(f"{label}: it answers {name} for all {counts.total()} photographs")
    causes = "are the labels in the order of training"
    causes += f", is --preprocess {evaluation.network.preprocess} right?"
    log(f"{label}: no better than always the most frequent class, which has {most}: {causes}")
    count, shares = try_preprocessings(evaluation)
    tried = ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items())
    if count:
        log(f"{label}: right of {count} photographs with --preprocess {tried}")


def try_preprocessings(evaluation: FolderEvaluation) -> tuple[int, dict[str, float]]:
    """How many photographs were tried, and {--preprocess: share that is predicted correctly}."""
    networks = [replace(evaluation.network, preprocess=name) for name in PREPROCESS_MODES]
    paths = take_turns(evaluation.truths)[:TRIED_PHOTOS]
    correct, count = np.zeros(len(networks)), 0
    advance = progress(len(paths))
    for path in paths:
        photo = evaluation.photos.read(path)
        if photo:
            batch = np.concatenate([network.prepare(photo.image) for network in networks])
            correct += evaluation.network.logits(batch).argmax(axis=1) == evaluation.truths[path]
            count += 1
        advance()
    return count, dict(zip(PREPROCESS_MODES, (correct / max(count, 1)).tolist(), strict=True))


def take_turns(truths: dict[Path, int]) -> list[Path]:
    """Photographs in another order: the first of each class, then the second of each …"""
    turns, seen = {}, Counter()
    for path, true in truths.items():
        turns[path] = seen[true]
        seen[true] += 1
    return sorted(turns, key=turns.get)
