"""The figures of the Grad-CAM scripts: a function a figure, and the registry GRADCAM_FIGURES.

Each function takes a GradCamExplanation and returns Drawings: rows of tiles, and the arrays behind
them. Grad-CAM itself is in the scripts; collecting over a folder is in folder.py."""

from __future__ import annotations

import functools
from typing import Any

import cv2
import numpy as np

from cnnvis.boxes import BOX_COLOUR, TRUE_BOX_COLOUR, Box, draw_box, over_threshold
from cnnvis.drawing import Figure, registry
from cnnvis.explanation import GradCamExplanation
from cnnvis.failures import failures_collector
from cnnvis.faithfulness import measure_faithfulness, rank_correlation
from cnnvis.folder import TableCollector, box_collector
from cnnvis.graph import cached_for_model, is_quantised
from cnnvis.pages import Bar, Tile, in_grid, in_rows
from cnnvis.results import Drawing
from cnnvis.runtime import keras, log
from cnnvis.segmentation import with_regions
from utils import Selection, colorize, heat_map, overlay

NEGATIVE_COLORMAP = "viridis"  # of evidence against a class
ONE_ANSWER = "it is of one right answer a photograph"
CONTROL_SEED = 181003292  # far from the seeds that people choose; the number of Adebayo's paper


# --- several layers ---


def draw_layers(explanations: list[GradCamExplanation]) -> Drawing:
    """One class at every layer: in rows of blocks, or in a grid."""
    if explanations[0].network.row_of:
        return draw_layers_by_row(explanations)
    explanation = explanations[0]
    network = explanation.network
    asked = network.selection.first()
    found = explanation.maps_at(network.layers, asked)
    index = explanation.among(asked, found.logits)[0]
    image = explanation.grid_tile(len(found.maps) + 1)
    tiles = [explanation.photograph(image, index)]
    for layer, maps in found.maps.items():
        tile = explanation.evidence_tile(image, maps[index], layer, layer)
        tiles.append(tile._replace(picture=explanation.outlined(tile.picture, index)))
    arrays = {f"{layer}/{index}": maps[index] for layer, maps in found.maps.items()}
    title = explanation.class_title(index, " · ", found.logits)
    saved = explanation.arrays(arrays, found.logits)
    return Drawing(in_grid(tiles), explanation.note(title), saved, explanation.bars)


def draw_layers_by_row(explanations: list[GradCamExplanation]) -> Drawing:
    """One class at every layer of one or several networks, a row a block."""
    first = explanations[0]
    asked = first.network.selection.first()
    is_alone = len(explanations) == 1
    image = first.tile(4 if is_alone else 7)
    rows, arrays, notes = {}, {}, []
    for explanation in explanations:
        network = explanation.network
        found = explanation.maps_at(network.layers, asked)
        index = explanation.among(asked, found.logits)[0]
        asked = Selection((index,))  # the same class of the next network
        for layer, maps in found.maps.items():
            title = layer if is_alone else f"{network.label} {layer}"
            tile = explanation.evidence_tile(image, maps[index], layer, title)
            rows.setdefault(network.row_of(layer), []).append(tile)
        cams = {f"{layer}/{index}": maps[index] for layer, maps in found.maps.items()}
        arrays |= explanation.arrays(cams, found.logits)
        notes.append(f"{network.label}: {explanation.class_title(index, ', ', found.logits)}")
    next(iter(rows.values())).append(Tile(image, "photograph"))
    return Drawing(list(rows.values()), first.note(" · ".join(notes)), arrays)


# --- several classes of the main layer ---


def drawing_of(
    explanation: GradCamExplanation,
    rows: list,
    arrays: dict,
    note: str = "",
    bars: list[Bar] | None = None,
) -> Drawing:
    """A Drawing of the main layer; its note is by default the layer's name, its bars are heat's."""
    note = explanation.note(note or explanation.network.main_layer)
    bars = explanation.bars if bars is None else bars
    return Drawing(rows, note, explanation.arrays(arrays, explanation.logits), bars)


def draw_classes(explanation: GradCamExplanation) -> Drawing:
    """One layer, a tile a class."""
    cams = explanation.cams
    image = explanation.grid_tile(len(cams) + 1)
    tiles = [explanation.photograph(image, *cams)]
    tiles += [explanation.cam_tile(image, index) for index in cams]
    return drawing_of(explanation, in_grid(tiles), explanation.cam_arrays())


def draw_negative(explanation: GradCamExplanation) -> Drawing:
    """Positive evidence and, below it, negative evidence.

    The last ReLU of equation 2 is replaced by keeping the negative pixels only."""
    image, layer = explanation.tile(5), explanation.network.main_layer
    cams = explanation.cams
    how = {"lack": "no negative evidence", "word": "against: max", "colormap": NEGATIVE_COLORMAP}
    rows = []
    for classes in in_rows(list(cams), 4):
        first = explanation.outlined(image, *classes)
        positive = [Tile(first, "for")]
        negative = [Tile(first, "against")]
        for index in classes:
            positive.append(explanation.cam_tile(image, index, word="for: max"))
            tile = explanation.heat_tile(image, -cams[index], layer, "", **how)
            negative.append(tile._replace(picture=explanation.outlined(tile.picture, index)))
        rows += [positive, negative]
    bars = [
        Bar(NEGATIVE_COLORMAP, "most against"),
        Bar(explanation.options.colormap, "most for"),
    ]
    return drawing_of(explanation, rows, explanation.cam_arrays(), bars=bars)


def draw_one_class(explanation: GradCamExplanation) -> Drawing:
    """One class, large: photograph, heat map, overlay."""
    layer, image = explanation.network.main_layer, explanation.tile(3)
    index, cam = next(iter(explanation.cams.items()))
    geometry = explanation.geometry(layer, cam.shape)
    heat = heat_map(cam, *image.shape[:2], geometry=geometry)
    colours = colorize(heat, explanation.options.colormap)
    row = [explanation.photograph(image, index), Tile(colours, "heat map")]
    row.append(explanation.cam_tile(image, index))
    return drawing_of(explanation, [row], {f"{layer}/{index}": cam})


def draw_kernels(explanation: GradCamExplanation) -> Drawing:
    """Feature maps of one layer over the photograph."""
    network, layer = explanation.network, explanation.network.main_layer
    activations = network.activations(layer, explanation.x)
    kernels = explanation.options.kernels.among(activations.max(axis=(0, 1)))
    image = explanation.grid_tile(len(kernels) + 1)
    tiles = [Tile(image, "photograph")]
    for kernel in kernels:
        activation = activations[..., kernel]
        title = f"kernel {kernel}"
        tiles.append(explanation.heat_tile(image, activation, layer, title, lack="silent"))
    arrays = {f"{layer}/kernels": activations[..., kernels], f"{layer}/kernel_numbers": kernels}
    return drawing_of(explanation, in_grid(tiles), arrays, note=f"{layer} · feature maps")


def draw_guided(explanation: GradCamExplanation) -> Drawing:
    """Guided backpropagation and its product with the heat map, Guided Grad-CAM, a row a class."""
    network, cams = explanation.network, explanation.cams
    saliencies = explanation.methods.guided_backprop(network.model, explanation.x, list(cams))
    rows, arrays = [], explanation.cam_arrays()
    titles = ["guided backpropagation", "Guided Grad-CAM: their product"]
    for index, saliency in zip(cams, saliencies, strict=True):
        rows.append(guided_row(explanation, index, saliency, titles))
        titles = ["", ""]  # titles of columns stand once
        arrays[f"guided/{index}"] = saliency
    note = f"{network.main_layer} · in grey pictures zero is grey"
    return drawing_of(explanation, rows, arrays, note=note)


def guided_row(
    explanation: GradCamExplanation, index: int, saliency: np.ndarray, titles: list[str]
) -> list[Tile]:
    """The Tiles of a class: its heat, its saliency, (H, W, channels), and their product."""
    image, cam = explanation.tile(3), explanation.cams[index]
    geometry = explanation.input_geometry(explanation.network.main_layer, cam.shape)
    heat = heat_map(cam, *saliency.shape[:2], geometry=geometry)
    row = [explanation.cam_tile(image, index)]
    for values, title in zip([saliency, saliency * heat[..., None]], titles, strict=True):
        row.append(Tile(explanation.grey_over(values, image), title))
    return row


def draw_overlay(explanation: GradCamExplanation) -> list[Drawing]:
    """A file a class: the overlay at the photograph's own size, without text."""
    network, image = explanation.network, explanation.photo.image
    drawings = []
    for index, cam in explanation.cams.items():
        if not cam.max() > 0:
            name = network.classes.title(index)
            cold = "the overlay shows no heat"
            log(f"{explanation.photo.path}: no positive evidence for {name}: {cold}")
        geometry = explanation.geometry(network.main_layer, cam.shape)
        picture = overlay(image, cam, geometry, explanation.options.colormap)
        picture = explanation.outlined(picture, index)
        arrays = explanation.arrays({f"{network.main_layer}/{index}": cam}, explanation.logits)
        drawings.append(Drawing(picture=picture, arrays=arrays, suffix=f"_{index}"))
    return drawings


# --- can the map be believed ---


def draw_trust(explanation: GradCamExplanation) -> Drawing:
    """Can the map be believed: deletion, insertion, occlusion, and re-initialised weights."""
    layer, image = explanation.network.main_layer, explanation.tile(6)
    cams = explanation.cams
    measured = measure_faithfulness(explanation, cams)
    rows, arrays = [], explanation.cam_arrays()
    for index, control in untrained_maps(explanation).items():
        likeness = rank_correlation(cams[index], control)
        title = f"weights re-initialised\nrank correlation {likeness:.2f}"
        tiles = measured[index].tiles(explanation, explanation.cam_tile(image, index))
        rows.append([*tiles, explanation.heat_tile(image, control, layer, title)])
        arrays[f"{layer}/{index}/control"] = control
        arrays |= measured[index].arrays(f"{layer}/{index}")
    note = f"{layer} · red: warmest first; grey: random orders, ± two standard deviations"
    return drawing_of(explanation, rows, arrays, note=note)


def untrained_maps(explanation: GradCamExplanation) -> dict[int, np.ndarray]:
    """{class: map} of the same network untrained (Adebayo et al. 2018, arXiv 1810.03292)."""
    network, options = explanation.network, explanation.options
    regions = explanation.segmentation and explanation.segmentation.regions
    make = functools.partial(reinitialise, options.seed, regions=regions)
    if regions is None:
        control = cached_for_model(network.model, "control", make)
    else:
        control = make(network.model)
    classes = list(explanation.cams)
    grad_cam = explanation.methods.grad_cam
    maps, _ = grad_cam(control, explanation.x, [network.main_layer], classes, options.method)
    return dict(zip(classes, maps[network.main_layer], strict=True))


def reinitialise(seed: int, model: Any, regions: np.ndarray | None = None) -> Any:
    """The same network with newly drawn weights; statistics of data (Normalization) stay.

    regions: bool (classes, h, w), which a segmentation network explains."""

    def clone(layer):
        if isinstance(layer, keras.layers.Normalization):
            return layer
        if regions is not None and layer is model.layers[-1]:
            return with_regions(layer, regions)
        config = layer.get_config()
        if is_quantised(layer):  # no integers are drawn
            config["dtype"] = "float32"
        return type(layer).from_config(config)

    keras.utils.set_random_seed((seed + CONTROL_SEED) % 2**32)  # not the seed of the network
    return keras.models.clone_model(model, clone_function=clone)


# --- boxes ---


def draw_boxes(explanation: GradCamExplanation) -> Drawing:
    """The box of the largest segment of heat, a tile a class."""
    network, layer = explanation.network, explanation.network.main_layer
    truths = explanation.true_boxes
    classes = list(dict.fromkeys([*explanation.classes, *truths]))
    image = explanation.grid_tile(len(classes) + 1)
    tiles, arrays = [Tile(image, "photograph")], {}
    for index in classes:
        tiles.append(box_tile(explanation, image, index, truths.get(index, [])))
        box = explanation.segment(index).box
        arrays[f"{layer}/{index}"] = explanation.maps[index]
        arrays[f"{layer}/{index}/box"] = np.float32(box or np.full(4, np.nan))
    note = f"{network.main_layer} · white: over {explanation.options.threshold} % of the maximum; "
    note += "red: the box of its largest segment"
    note += "; green: true boxes" if truths else ""
    return drawing_of(explanation, in_grid(tiles), arrays, note=note, bars=[])


def box_tile(
    explanation: GradCamExplanation, image: np.ndarray, index: int, truths: list[Box]
) -> Tile:
    """The Tile of a class: its heat outlined, its Box and the true ones drawn on an image."""
    options, segment = explanation.options, explanation.segment(index)
    geometry = explanation.geometry(explanation.network.main_layer, explanation.maps[index].shape)
    picture = geometry.dim(image)
    hot = over_threshold(segment.heat, options.threshold)
    hot = cv2.resize(hot, picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    outlines, _ = cv2.findContours(hot, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, outlines, -1, (255, 255, 255), options.scale)
    shape, width = segment.heat.shape, 2 * options.scale
    for true in truths:
        draw_box(picture, true, shape, TRUE_BOX_COLOUR, width)
    if not segment.box:
        return Tile(picture, f"{explanation.class_title(index)}\nno positive evidence")
    draw_box(picture, segment.box, shape, BOX_COLOUR, width)
    title = f"{explanation.class_title(index)}\nbox {tuple(segment.box)}"
    if truths:
        title += f"\nIoU {max(map(segment.box.iou, truths)):.2f}"
    return Tile(picture, title)


GRADCAM_FIGURES = registry(
    Figure("layers", "one class at every layer", draw_layers, shared=True),
    Figure("classes", "one layer, a tile a class", draw_classes),
    Figure("negative", "positive evidence and, below it, negative evidence", draw_negative),
    Figure("one_class", "one class, large: photograph, heat map, overlay", draw_one_class),
    Figure("kernels", "feature maps of one layer", draw_kernels, kernels_of="main"),
    Figure("guided", "guided backpropagation and Guided Grad-CAM, a row a class", draw_guided),
    Figure(
        "overlay", "a file a class: the overlay alone, as large as the photograph", draw_overlay
    ),
    Figure("trust", "can the map be believed: deletion, insertion, occlusion", draw_trust),
    Figure(
        "boxes",
        "the box of the largest segment of heat, a tile a class; with --boxes also scores",
        draw_boxes,
        collector=box_collector,
        uses_boxes=True,
        lacks_pixels="regions say more than boxes",
    ),
    Figure(
        "failures",
        "a folder of classes: what is taken for what, and why",
        collector=failures_collector,
        uses_truths=True,
        lacks_pixels=ONE_ANSWER,
    ),
    Figure(
        "table",
        "a CSV over all photographs: truth, predictions, map maximum, box",
        collector=TableCollector,
        extension="csv",
        uses_truths=True,
        lacks_pixels=ONE_ANSWER,
    ),
)
