"""The figures of a run: what a figure is, and the loop that draws them, photograph by photograph.

A figure only makes Drawings. While the network runs, one thread reads the next photographs, and
another lays out and writes what is drawn. Which figures there are is in gradcam_figures.py and
deconvnet_figures.py; what a figure returns, a Drawing, is in results.py."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cnnvis.folder import FolderEvaluation
from cnnvis.networks import Network
from cnnvis.photos import Photo, PhotoSet
from cnnvis.results import Drawing, Result
from cnnvis.runtime import BackgroundThread, compute_ahead, log, progress


@dataclass(frozen=True)
class Figure:
    """A figure that a script can draw. At least one of draw, draw_folder and collector is given."""

    name: str
    summary: str  # a line for --help
    draw: Callable | None = None  # draw(explanation) -> a Drawing of one photograph, or several
    draw_folder: Callable | None = None  # draw_folder(evaluation) -> Drawings over all photographs
    collector: Callable | None = None  # collector(evaluation) -> a Collector, or None
    extension: str = ""  # of its files; empty: the --format of pictures
    needs_classifier: bool = False  # DeconvNet's networks are opened without one, to download less
    uses_truths: bool = False  # the names of sub-folders are the right answers
    uses_boxes: bool = False  # --boxes
    shared: bool = False  # one page for all networks: draw(explanations), one a network
    kernels_of: str = ""  # it draws kernels of the `main` or `last` layer, and no CAM's
    draws_units: bool = False  # dense layers may be drawn too
    lacks_pixels: str = ""  # why it is not drawn of a segmentation network


def registry(*figures: Figure) -> dict[str, Figure]:
    """{name: Figure}, in the order of --help."""
    return {figure.name: figure for figure in figures}


@dataclass(frozen=True)
class Target:
    """A figure of one network, or of several that share its page."""

    figure: Figure
    network: Network  # as files are named
    evaluations: tuple  # the FolderEvaluation of each network
    collector: Any = None  # .add(explanation), .drawings()

    def result(self, photos: PhotoSet, path: Path | None = None) -> Result:
        """The Result of one photograph, or over all of them."""
        what = (self.evaluations[0].options, self.figure, self.network)
        if path:
            return Result(*what, (path,), photos.stems[path])
        return Result(*what, tuple(photos.paths), photos.name, photos.arguments)

    def is_complete(self, photos: PhotoSet) -> bool:
        """Whether all files of a figure over all photographs are there already."""
        paths = [None] if photos.writes_folder else []
        paths += photos.share if self.figure.draw else []  # a file each, and one over all
        is_drawn = all(self.result(photos, path).is_drawn() for path in paths)
        return all(photos.gather(is_drawn))


def draw_figures(
    options: argparse.Namespace,
    photos: PhotoSet,
    networks: list[Network],
    make_explanation: Callable,
) -> int:
    """Draw what the options ask for; the exit code of the run.

    make_explanation(options, network, photo, selection=…) returns an Explanation."""
    evaluations = [
        FolderEvaluation(options, network, photos, make_explanation) for network in networks
    ]
    targets = find_targets(options, evaluations)
    targets = [target for target in targets if not left_out(target, photos)]
    of_photos = [target for target in targets if target.figure.draw or target.collector]
    with BackgroundThread() as writer:
        for photo, pending in pending_photos(of_photos, photos):
            draw_photo(photo, pending, writer)
        if photos.cluster:
            gather_folder(targets, photos)
        for target in targets:
            if target.collector and photos.writes_folder:
                write_behind(writer, target.result(photos), target.collector.drawings())
        for target in targets:
            if target.figure.draw_folder:
                drawings = target.figure.draw_folder(target.evaluations[0])
                write_behind(writer, target.result(photos), drawings)
    if photos.cluster:
        photos.share_unreadable()  # and wait until every worker is done
    return photos.exit_code()


def gather_folder(targets: list[Target], photos: PhotoSet) -> None:
    """Let every worker know what all of them have collected, and could not read."""
    photos.share_unreadable()
    for target in targets:
        if target.collector:
            target.collector.merge(photos.gather(target.collector.state()))


def write_behind(
    writer: BackgroundThread, result: Result, drawings: Drawing | Iterable[Drawing]
) -> None:
    """Lay out and write Drawings in another thread. The network runs in this one only."""
    drawings = [drawings] if isinstance(drawings, Drawing) else list(drawings)
    writer.submit(result.write, drawings)


def find_targets(
    options: argparse.Namespace, evaluations: list[FolderEvaluation]
) -> Iterator[Target]:
    """Every figure of every network; a shared one once for all networks."""
    for figure in options.chosen:
        if figure.shared:
            yield Target(figure, page_network(evaluations), tuple(evaluations))
            continue
        for evaluation in evaluations:
            collector = figure.collector(evaluation) if figure.collector else None
            if collector or figure.draw or figure.draw_folder:
                yield Target(figure, evaluation.network, (evaluation,), collector)


def page_network(evaluations: list[FolderEvaluation]) -> Network:
    """The network of a page; of a page that both VGGs share, the first one under their name."""
    first, *others = [evaluation.network for evaluation in evaluations]
    return replace(first, label="VGG", heading="") if others else first


def left_out(target: Target, photos: PhotoSet) -> bool:
    """Whether a figure over all photographs is there already; if so, report it."""
    is_over_all = target.figure.draw_folder or target.collector
    if not is_over_all or not target.is_complete(photos):
        return False
    log(f"{target.network.label}, {target.figure.name}: there already")
    return True


def pending_photos(targets: list[Target], photos: PhotoSet) -> Iterator[tuple[Photo, list]]:
    """Each readable Photo, and the (Target, Result) that are still to be drawn of it."""

    def read(path):  # in a thread, while the photograph before it is drawn
        results = [(target, target.result(photos, path)) for target in targets]
        pending = [each for each in results if each[0].collector or not each[1].is_drawn()]
        return path, pending, photos.decode(path) if pending else None

    drawn, existing = 0, 0
    advance = progress(len(photos.share))
    for path, pending, pixels in compute_ahead(read, photos.share if targets else ()):
        if photos.cluster:
            photos.cluster.check()
        photo = photos.admit(path, pixels) if pending else None
        if photo:
            yield photo, pending
            drawn += 1
        elif not pending:
            existing += 1
        advance()
    if existing or (targets and len(photos.paths) > 1):
        unreadable = len(photos.unreadable)
        log(f"photographs: {drawn} drawn, {existing} there already, {unreadable} unreadable")


def draw_photo(
    photo: Photo, pending: list[tuple[Target, Result]], writer: BackgroundThread
) -> None:
    """Draw the figures of one photograph, and collect what figures over all need of it."""
    explanations = {}  # {evaluation's id: Explanation}
    for target, result in pending:
        for evaluation in target.evaluations:
            if id(evaluation) not in explanations:
                explanations[id(evaluation)] = evaluation.explain(photo)
        explained = [explanations[id(evaluation)] for evaluation in target.evaluations]
        if target.figure.draw:
            drawings = target.figure.draw(explained if target.figure.shared else explained[0])
            write_behind(writer, result, drawings)
        if target.collector:
            target.collector.add(explained[0])
