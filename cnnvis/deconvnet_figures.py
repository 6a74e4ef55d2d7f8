"""The figures of the DeconvNet scripts: a function a figure, and the registry DECONVNET_FIGURES.

Each function returns Drawings: rows of tiles, and the arrays behind them. DeconvNet itself is in
the scripts; cutting patches is in projections.py."""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from cnnvis.activations import TOP_COUNT, TopActivations, diverse_kernels, inner_responses, scan
from cnnvis.drawing import Figure, registry
from cnnvis.explanation import Explanation
from cnnvis.folder import FolderEvaluation
from cnnvis.networks import Network
from cnnvis.occlusion import OcclusionDrop, measure_occlusion, most_probable_tile
from cnnvis.pages import Tile, in_rows, mosaic
from cnnvis.photos import Photo
from cnnvis.projections import (
    KernelProjections,
    Projection,
    cut_patches,
    kernel_mosaics,
    mosaic_layout,
    patch_side,
    projection_arrays,
    tiles_of_one_height,
)
from cnnvis.results import Drawing
from cnnvis.runtime import progress
from utils import Selection, fit_image, resize

BLOCKS_NOTE = "whole maps of different kernels, strongest first · zero is grey"
STRONGEST = Projection("max", "deconvnet")
FOUR_WAYS = (  # in which one photograph is compared with itself
    Projection("all", "deconvnet"),
    STRONGEST,
    Projection("all", "guided"),
    Projection("all", "gradient"),
)


class DeconvNetExplanation(Explanation):
    """One photograph run through one network, and projections of kernels back to its pixels."""

    def __init__(
        self,
        options: argparse.Namespace,
        network: Network,
        photo: Photo,
        deconvnet: Callable,
        selection: Selection | None = None,
    ):
        super().__init__(options, network, photo, selection)
        self.deconvnet = deconvnet

    def strongest(self, layer: str) -> tuple[np.ndarray, list[int]]:
        """The feature maps of a layer, float32 (h, w, K), and the kernels that are drawn."""
        activations = self.network.activations(layer, self.x)
        responses = inner_responses(activations, self.network.inner_cells(layer))
        return activations, self.options.kernels.among(responses)

    def project_kernels(
        self,
        layer: str,
        kernels: Sequence[int],
        projections: Sequence[Projection],
        activations: np.ndarray | None = None,
    ) -> list[KernelProjections]:
        """The KernelProjections of each kernel; with its feature map if given, (h, w, K)."""
        image = fit_image(self.photo.image, self.x.shape[1:3], **self.network.fitting)
        found = []
        for kernel in kernels:
            activation = None if activations is None else activations[..., kernel]
            of_kernel = KernelProjections(kernel, self.photo.stem, np.uint8(image), activation)
            found.append(of_kernel)
        for projection in projections:
            values = self.deconvnet(self.network.model, self.x, layer, kernels, *projection)
            for of_kernel, of_one in zip(found, values, strict=True):
                of_kernel.values[projection] = of_one
        return found

    # --- tiles ---

    def activation_tile(
        self,
        image: np.ndarray,
        found: KernelProjections,
        layer: str,
        name: str = "",
        scale: float | None = None,
    ) -> Tile:
        """The Tile of a kernel's feature map over the photograph, below a name."""
        title = f"{name}\nkernel {found.kernel}".strip()
        return self.heat_tile(image, found.activation, layer, title, lack="silent", scale=scale)

    def whole_tile(
        self, image: np.ndarray, found: KernelProjections, projection: Projection, title: str = ""
    ) -> Tile:
        """The Tile of a projection over the whole photograph."""
        return Tile(self.grey_over(found.values[projection], image), title)

    def patch_tile(
        self, image: np.ndarray, found: KernelProjections, projection: Projection, title: str = ""
    ) -> Tile:
        """The Tile of a projection's patch."""
        side = patch_side(image, self.options.scale)
        return Tile(self.grey(found.values[projection][found.patch], np.empty((side, side))), title)

    def projection_tile(
        self, image: np.ndarray, found: KernelProjections, projection: Projection, title: str = ""
    ) -> Tile:
        """The Tile of a whole map's projection, or the patch of a strongest position's."""
        draw = self.whole_tile if projection.mode == "all" else self.patch_tile
        return draw(image, found, projection, title)


# --- one photograph ---


def draw_projections(explanation: DeconvNetExplanation) -> Drawing:
    """Kernels of one layer: map, whole map projected, strongest position projected, its patch."""
    layer, rules = explanation.network.main_layer, explanation.options.rules
    image = explanation.tile(2 + 3 * len(rules))
    activations, kernels = explanation.strongest(layer)
    projections = []
    for rule in rules:
        projections += [Projection("all", rule), Projection("max", rule)]
    found = explanation.project_kernels(layer, kernels, projections, activations)
    cut_patches(found, Projection("max", rules[0]))
    rows = []
    for of_kernel in found:
        first, *others = projection_tiles(explanation, of_kernel, image)
        if rows:  # only the first row has titles of columns
            others = [Tile(tile.picture) for tile in others]
        rows.append([first, *others])
    arrays = explanation.arrays(projection_arrays(explanation.options, layer, found))
    return Drawing(rows, explanation.note(f"{layer} · in grey pictures zero is grey"), arrays)


def projection_tiles(
    explanation: DeconvNetExplanation, found: KernelProjections, image: np.ndarray
) -> list[Tile]:
    """A kernel's feature map, its projections and their patches."""
    tiles = [explanation.activation_tile(image, found, explanation.network.main_layer)]
    for rule in explanation.options.rules:
        whole, strongest = Projection("all", rule), Projection("max", rule)
        tiles += [
            explanation.whole_tile(image, found, whole, f"{rule}: whole map"),
            explanation.whole_tile(image, found, strongest, "strongest position"),
            explanation.patch_tile(image, found, strongest, "its patch"),
        ]
    side = patch_side(image, explanation.options.scale)
    patch = resize(found.input_image[found.patch], side, side)
    return [*tiles, Tile(patch, "of the photograph")]


def draw_blocks(explanation: DeconvNetExplanation) -> Drawing:
    """Nine different kernels of the last layer of every block: maps, and their projections."""
    network = explanation.network
    projections = [Projection("all", rule) for rule in explanation.options.rules]
    image = explanation.tile(6)  # with several rules the page is wider, not the tiles smaller
    rows, arrays = [], {}
    for layer in network.layers:
        activations = network.activations(layer, explanation.x)
        kernels = diverse_kernels(activations, network.inner_cells(layer))
        found = explanation.project_kernels(layer, kernels, projections, activations)
        tiles = [explanation.activation_tile(image, each, layer) for each in found]
        row = [joined_tile(tiles, f"{layer}: kernels {' '.join(map(str, kernels))}")]
        for projection in projections:
            tiles = [explanation.whole_tile(image, each, projection) for each in found]
            row.append(joined_tile(tiles, "" if rows else projection.rule))
        rows.append(row)
        arrays |= projection_arrays(explanation.options, layer, found)
    return Drawing(rows, explanation.note(BLOCKS_NOTE), explanation.arrays(arrays))


def joined_tile(tiles: Sequence[Tile], title: str) -> Tile:
    """A Tile of the pictures of several, as a mosaic."""
    return Tile(mosaic([tile.picture for tile in tiles]), title)


def draw_occlusion(explanation: DeconvNetExplanation) -> Drawing:
    """What a class and a kernel need: how far they drop where a grey square covers a part."""
    network, layer = explanation.network, explanation.network.layers[-1]
    kernel = explanation.strongest(layer)[1][0]
    probability, response, winners = measure_occlusion(explanation, layer, kernel)
    image, title = explanation.tile(5), f"kernel {kernel}"
    row = [
        Tile(image, "photograph"),
        drop_tile(explanation, image, probability, explanation.network.unit),
        most_probable_tile(
            winners, image, explanation.geometry(None, winners.shape), network.classes
        ),
        drop_tile(explanation, image, response, f"{title}: sum of its map"),
    ]
    projection = Projection("all", explanation.options.rules[0])
    found = explanation.project_kernels(layer, [kernel], [projection])[0]
    row.append(explanation.whole_tile(image, found, projection, f"{title}, projected"))
    index = explanation.classes[0]
    note = f"{network.classes.title(index)} · {layer} · a grey square on each point; "
    note += "hot: where the photograph is needed"
    arrays = {
        f"{layer}/{index}/probability": probability.occluded,
        f"{layer}/{kernel}/response": response.occluded,
        "most_probable": winners,
    }
    arrays = explanation.arrays(arrays, explanation.logits)
    return Drawing([row], explanation.note(note), arrays)


def drop_tile(
    explanation: DeconvNetExplanation, image: np.ndarray, drop: OcclusionDrop, title: str
) -> Tile:
    """The Tile of how far a number drops."""
    return explanation.heat_tile(image, drop.map(), None, f"{title} {drop.words()}")


# --- comparison ---


def draw_comparison(evaluation: FolderEvaluation) -> list[Drawing]:
    """The same kernels of several photographs side by side; of one photograph in four ways."""
    if not evaluation.photos.writes_folder:
        return []
    photos = itertools.islice(evaluation.photos.readable(), evaluation.options.compared)
    explanations = [evaluation.explain(photo) for photo in photos]
    if not explanations:
        return []
    if len(explanations) == 1:
        return [compare_projections(explanations[0])]
    return [compare_photographs(evaluation, explanations)]


def compare_projections(explanation: DeconvNetExplanation) -> Drawing:
    """One photograph: a column a kernel, its map above and its projections below."""
    layer = explanation.network.main_layer
    activations, kernels = explanation.strongest(layer)
    columns = min(len(kernels), 9)
    image = explanation.tile(columns)
    found = explanation.project_kernels(layer, kernels, FOUR_WAYS, activations)
    cut_patches(found, STRONGEST)
    rows = []
    for in_row in in_rows(found, columns):
        rows.append([explanation.activation_tile(image, each, layer) for each in in_row])
        for projection in FOUR_WAYS:
            row = [explanation.projection_tile(image, each, projection) for each in in_row]
            row[0] = Tile(row[0].picture, projection.title())
            rows.append(row)
    arrays = projection_arrays(explanation.options, layer, found)
    arrays = explanation.network.keyed({**arrays, "input": explanation.x})
    return Drawing(rows, explanation.note(f"{layer} · zero is grey"), arrays)


def compare_photographs(
    evaluation: FolderEvaluation, explanations: Sequence[DeconvNetExplanation]
) -> Drawing:
    """Several photographs: a row a kernel, a column a photograph, maps on one scale."""
    options, layer = evaluation.options, evaluation.network.main_layer
    projections = [Projection(options.mode, rule) for rule in options.rules]
    kernels = explanations[0].strongest(layer)[1]
    images = tiles_of_one_height(explanations, 1 + len(projections))
    found, arrays = [], {}
    for explanation in explanations:
        activations = evaluation.network.activations(layer, explanation.x)
        found.append(explanation.project_kernels(layer, kernels, projections, activations))
        arrays[f"input/{explanation.photo.stem}"] = explanation.x
    everything = list(itertools.chain(*found))
    if options.mode == "max":
        cut_patches(everything, projections[0])
    arrays |= projection_arrays(options, layer, everything, several=True)
    rows = []
    for same_kernel in zip(*found, strict=True):
        rows.append(compared_tiles(explanations, same_kernel, images, named=not rows))
    note = f"{layer} · {len(explanations)} of {len(evaluation.photos.paths)} photographs"
    note += " · zero is grey"
    return Drawing(rows, note, evaluation.network.keyed(arrays))


def compared_tiles(
    explanations: Sequence[DeconvNetExplanation],
    found: Sequence[KernelProjections],
    images: Sequence[np.ndarray],
    named: bool,
) -> list[Tile]:
    """The Tiles of one kernel for several photographs; named: with titles of the columns."""
    scale = max(each.activation.max() for each in found)
    tiles = []
    for explanation, each, image in zip(explanations, found, images, strict=True):
        layer = explanation.network.main_layer
        name = explanation.photo.path.name if named else ""
        tiles.append(explanation.activation_tile(image, each, layer, name, scale))
        for projection in each.values:
            title = projection.title() if named else ""
            tiles.append(explanation.projection_tile(image, each, projection, title))
    return tiles


# --- top9 ---


def draw_top9(evaluation: FolderEvaluation) -> list[Drawing]:
    """A folder: for each kernel the nine patches that excite it most, and their projections."""
    options, network = evaluation.options, evaluation.network
    layer, count = network.main_layer, len(evaluation.photos.paths)
    top = scan(network, evaluation.photos)
    if not len(top.photo_indices) or not evaluation.photos.writes_folder:
        return []
    kernels = options.kernels.among(top.activations[0])
    found, arrays = project_top(evaluation, top, kernels)
    if not found:
        return []
    cut_patches(list(found.values()), Projection("max", options.rules[0]))
    layout, tiles = mosaic_layout(options, min(TOP_COUNT, count)), []
    for kernel in kernels:
        of_kernel = [found[kernel, index] for index in top.of(kernel) if (kernel, index) in found]
        if of_kernel:
            tiles += kernel_mosaics(of_kernel, layout.across, layout.side, network.preprocess)
        arrays[f"{layer}/{kernel}/activations"] = top.activations[:, kernel]
    arrays |= projection_arrays(options, layer, found.values(), several=True)
    note = f"{layer} · of {count} files · zero is grey"
    return [Drawing(in_rows(tiles, layout.per_row), note, network.keyed(arrays), bars=[])]


def project_top(
    evaluation: FolderEvaluation, top: TopActivations, kernels: Sequence[int]
) -> tuple[dict, dict[str, np.ndarray]]:
    """{(kernel, photograph's index): KernelProjections}, and inputs as arrays to save.

    Photographs that can no longer be read are left out."""
    layer, found, inputs = evaluation.network.main_layer, {}, {}
    projections = [Projection("max", rule) for rule in evaluation.options.rules]
    indices = np.unique(np.concatenate(list(map(top.of, kernels))))
    advance = progress(len(indices))
    for index in indices:  # each photograph is read once for all its kernels
        photo = evaluation.photos.read(evaluation.photos.paths[index])
        if photo:
            explanation = evaluation.explain(photo)
            inputs[f"input/{photo.stem}"] = explanation.x
            excited = [kernel for kernel in kernels if index in top.of(kernel)]
            for each in explanation.project_kernels(layer, excited, projections):
                each.response = top.response(each.kernel, index)
                found[each.kernel, index] = each
        advance()
    return found, inputs


layer_figure = functools.partial(Figure, draws_units=True, kernels_of="main")
DECONVNET_FIGURES = registry(
    layer_figure(
        "projections",
        "kernels of one layer: map, whole map projected, strongest position, its patch",
        draw_projections,
    ),
    layer_figure(
        "blocks",
        "nine different kernels of the last layer of every block, whole maps projected",
        draw_blocks,
        kernels_of="",
    ),
    layer_figure(
        "comparison",
        "the same kernels of several photographs; of one photograph in four ways",
        draw_folder=draw_comparison,
    ),
    layer_figure(
        "top9",
        "a folder: for each kernel the nine patches that excite it most, projected",
        draw_folder=draw_top9,
    ),
    layer_figure(
        "occlusion",
        "how far a class and a kernel drop where a grey square covers a part",
        draw_occlusion,
        needs_classifier=True,
        lacks_pixels="it is of one answer a photograph",
        kernels_of="last",
    ),
)
