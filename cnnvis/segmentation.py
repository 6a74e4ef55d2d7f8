"""Segmentation networks, whose output is a score for every pixel and class.

The score of a class is the sum of its logits over a region: Seg-Grad-CAM (Vinogradova et al. 2020,
arXiv 2002.11434). The region is what the network assigns to the class, or a mask that is given.
Files of networks are not read here, and nothing is written."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cnnvis.geometry import Geometry, layer_geometries, stretched_geometry
from cnnvis.graph import SLASH, function_name, last_of_resolutions
from cnnvis.runtime import keras

SMALLEST_P = 1e-37  # a probability of 0 has no logarithm
# Operations by which scores become scores: those of a quarter of the resolution, enlarged, say
STILL_SCORES = re.compile(
    "linear|identity|softmax|sigmoid|sparsemax|upsampling|resiz|add|average|batchnorm|dropout"
    "|crop|pad|reshape|getitem"
)


# --- the network ---


def class_logits(output: Any, kind: str) -> Any:
    """Logits (N, h, w, classes) of what a network returns, without its softmax or sigmoid.

    kind: `log`, where it could not be removed. One channel is two classes."""
    is_single = output.shape[-1] == 1
    if kind == "log":
        p = keras.ops.concatenate([1 - output, output], axis=-1) if is_single else output
        return keras.ops.log(keras.ops.maximum(p, SMALLEST_P))
    if is_single:
        return keras.ops.concatenate([-output / 2, output / 2], axis=-1)
    return output


def kind_of_pixels(output: Any, kind: str) -> str:
    """How logits of pixels become probabilities. kind: what the network ends in."""
    is_single = output.shape[-1] == 1
    if is_single and kind == "softmax":
        raise ValueError("it ends in a softmax of one channel, which is 1 whatever the image shows")
    if is_single and kind == "hard_sigmoid":
        return "hard_pair"
    is_pair = is_single and kind == "sigmoid"
    return "softmax" if is_pair or kind == "linear" else kind


@functools.cache
def layer_class() -> type:
    """The class of the layer that ends a network; made here because Keras is imported late."""

    class RegionScores(keras.layers.Layer):
        """The sum of each class's logits over a region.

        region: bool (h, w), or one a class, (classes, h, w). None: over the pixels whose largest
        logit is the class's, or over all if there are none.
        The region is constant in the derivative."""

        def __init__(self, kind="softmax", region=None, **how):
            super().__init__(**how)
            self.kind = kind
            self.region = None if region is None else np.array(region, bool)

        def call(self, output):
            z = class_logits(output, self.kind)
            if self.region is not None:
                regions = np.broadcast_to(self.region, (z.shape[-1], *z.shape[1:3]))
                weights = np.float32(np.moveaxis(regions, 0, -1))[None]
            else:
                winners = keras.ops.argmax(z, axis=-1)
                weights = keras.ops.one_hot(winners, z.shape[-1], dtype=z.dtype)
                counts = keras.ops.sum(weights, axis=(1, 2), keepdims=True)
                weights += keras.ops.cast(counts == 0, z.dtype)
                weights = keras.ops.stop_gradient(weights)
            return keras.ops.sum(weights * z, axis=(1, 2))

        def get_config(self):
            region = None if self.region is None else self.region.tolist()
            return {**super().get_config(), "kind": self.kind, "region": region}

    return RegionScores


def add_region_scores(
    image: Any, output: Any, kind: str, region: np.ndarray | None = None, fit: str = "squeeze"
) -> tuple[Any, str]:
    """Scores (N, classes) of a network's output (N, h, w, channels), and the kind of its pixels.

    image: the network's input. kind: what the network ends in. region: bool (H, W), of the
    photograph, which became the network's input by `fit`, or (h, w) of the output."""
    kind = kind_of_pixels(output, kind)
    shape = tuple(output.shape[1:3])
    if region is not None:
        region = np.asarray(region)
        if region.ndim != 2 or region.dtype != bool:
            raise ValueError(
                f"Expected region bool (h, w). Received: {region.dtype} {region.shape}"
            )
        if region.shape != shape or fit != "squeeze":
            geometry = output_geometry(keras.Model(image, output), fit)
            region = region_cells(region, geometry, shape)
        if not region.any():
            raise ValueError("its mask has no pixel that the network sees")
    name = f"region{SLASH}scores"
    return layer_class()(kind, region, name=name, dtype="float32")(output), kind


def output_geometry(model: Any, fit: str = "squeeze") -> Geometry:
    """The Geometry of the maps that a flat network returns."""
    output = model.outputs[0]
    known = list(layer_geometries(model).values())[-1]
    stretched = stretched_geometry(model.inputs[0].shape[1:3], *output.shape[1:3])
    geometry = known or stretched
    return replace(geometry, fit=fit)


def region_cells(region: np.ndarray, geometry: Geometry, shape: tuple) -> np.ndarray:
    """The cells of a map, bool of a shape (h, w), that a region of a photograph covers by half.

    Of a region that covers none by half: the cells that it covers most."""
    covered = geometry.covered(region, shape)
    return covered >= min(0.5, covered.max() or 1)


# --- layers ---


def score_layers(model: Any) -> set[str]:
    """Names of the layers of an opened network whose maps are scores of the classes already."""
    sources = {}
    for operation in model.operations:
        for tensor in keras.tree.flatten(operation.output):
            sources[id(tensor)] = operation
    found, pending = set(), [model.operations[-1].input]
    channels = pending[0].shape[-1]
    while pending:
        operation = sources[id(pending.pop())]
        shape = getattr(operation.output, "shape", (0,))
        if not STILL_SCORES.search(function_name(operation)) or shape[-1] != channels:
            continue
        name = operation.name.replace(SLASH, "/")
        pending += keras.tree.flatten(operation.input) if name not in found else []
        found.add(name)
    return found


def layers_down_and_up(model: Any, layers: dict) -> tuple[list[str], str | None]:
    """Names of the last layer of every resolution on the way down and on the way up, and of the
    smallest resolution; of layers whose maps are not scores yet, if any."""
    scores = score_layers(model)
    kept = {name: layers[name] for name in layers if name not in scores} or layers

    def area(name):
        return np.prod(kept[name].output.shape[1:3])

    smallest = min(last_of_resolutions(kept), key=area, default=None)
    if smallest is None:
        return [], None
    names = list(kept)
    cut = names.index(smallest) + 1
    found = []
    for part in (names[:cut], names[cut:]):
        found += last_of_resolutions({name: kept[name] for name in part})
    return found, smallest


# --- pixels of a photograph ---


@dataclass(frozen=True)
class Pixels:
    """What a network says of every pixel of a photograph."""

    shares: np.ndarray  # float (classes,): of the pixels, or of the mask's, that are a class's
    regions: np.ndarray  # bool (classes, h, w): where each class is explained
    has_mask: bool

    def title(self, index: int) -> str:
        """The share of pixels of a class."""
        share = f"{100 * self.shares[index]:.3g} %"
        if self.has_mask:
            return f"{share} of the mask"
        return f"{share} of pixels" if self.shares[index] else "no pixel: explained over all"


@dataclass(frozen=True)
class PixelNetwork:
    """The part of an opened network that returns scores of pixels."""

    model: Any  # from photographs to what `class_logits` takes
    scores: Any  # the RegionScores behind it
    to_probabilities: Callable
    geometry: Geometry  # of the pixels

    def logits(self, x: np.ndarray) -> np.ndarray:
        """float32 (h, w, classes) of one input (1, H, W, channels)."""
        output = self.model(x, training=False)
        return class_logits(output, self.scores.kind)[0].numpy()

    def predict(self, x: np.ndarray) -> Pixels:
        """The Pixels of one input."""
        logits = self.logits(x)
        winners = logits.argmax(axis=-1)
        assigned = np.stack([winners == index for index in range(logits.shape[-1])])
        mask = self.scores.region
        if mask is None:
            shares = assigned.mean(axis=(1, 2))
            return Pixels(shares, assigned | (shares == 0)[:, None, None], False)
        regions = np.broadcast_to(mask, assigned.shape)
        return Pixels(assigned[:, mask].mean(axis=1), regions, True)

    def measure(self, batch: np.ndarray, regions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores and mean probabilities, (N, classes) each, of inputs over regions that stay.

        regions: bool (classes, h, w)."""
        scores, means = [], []
        for x in batch:
            logits = self.logits(x[None])
            scores.append(np.einsum("hwc,chw->c", logits, regions))
            sums = np.einsum("hwc,chw->c", self.to_probabilities(logits), regions)
            means.append(sums / regions.sum(axis=(1, 2)))
        return np.stack(scores), np.stack(means)


def with_regions(scores: Any, regions: np.ndarray) -> Any:
    """A copy of a RegionScores whose regions, bool (classes, h, w), stay on every photograph."""
    return type(scores).from_config({**scores.get_config(), "region": regions})


def is_segmentation(model: Any) -> bool:
    """Whether an opened network gives a score a pixel."""
    return isinstance(model.operations[-1], layer_class())


def pixel_network(model: Any, to_probabilities: Callable) -> PixelNetwork | None:
    """The PixelNetwork of an opened network; None of one that gives a score a class."""
    if not is_segmentation(model):
        return None
    last = model.operations[-1]
    part = keras.Model(model.inputs[0], last.input)
    return PixelNetwork(part, last, to_probabilities, output_geometry(part))
