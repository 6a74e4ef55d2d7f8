"""Occlusion: what a grey square over a part of the photograph takes from a class or a kernel
(Zeiler and Fergus 2013, arXiv 1311.2901, section 4.2 and figure 7).

How well that agrees with a heat map is measured in faithfulness.py."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np

from cnnvis.geometry import Geometry
from cnnvis.graph import get_operation
from cnnvis.pages import Tile
from cnnvis.runtime import keras
from utils import ClassNames


def occlude(
    x: np.ndarray, grey: np.ndarray, evaluate: Callable, patch: int = 25, stride: int = 7
) -> tuple[list, list]:
    """What a network returns where a grey square occludes a part of the photograph (Zeiler and
    Fergus 2013, arXiv 1311.2901, section 4.2 and figure 7).

    x: float32 (1, H, W, C). grey: (C,), of x's kind. evaluate(batch (N, H, W, C)) gives a tuple of
    arrays (N, …). patch, stride: the square's width and steps, percent of the shorter side.
    Returns the squares, (slice of y, slice of x), row by row, and for each array of `evaluate` one
    of shape (rows, columns, …).
    """
    downs, acrosses = (occluding_slices(x.shape[1:3], axis, patch, stride) for axis in (0, 1))
    answers = []
    for down in downs:
        batch = np.repeat(x, len(acrosses), axis=0)
        for picture, across in zip(batch, acrosses, strict=True):
            picture[down, across] = grey
        answers.append(evaluate(batch))
    values = [np.stack(rows) for rows in zip(*answers, strict=True)]
    return list(itertools.product(downs, acrosses)), values


def occluding_slices(shape: tuple, axis: int, patch: int, stride: int) -> list[slice]:
    """What the squares occlude along one axis of (H, W), cut off at the borders."""
    side, step = (max(round(min(shape) * percent / 100), 1) for percent in (patch, stride))
    starts = range(step // 2 - side // 2, shape[axis] - side // 2, step)
    return [slice(max(start, 0), start + side) for start in starts]


class OcclusionDrop(NamedTuple):
    """How far a number drops where a part of the photograph is occluded."""

    before: float
    occluded: np.ndarray  # (rows, columns)

    def map(self) -> np.ndarray:
        """How much the number depends on each part, (rows, columns)."""
        return self.before - self.occluded

    def words(self) -> str:
        """The number with nothing occluded, and its range."""
        return f"{self.before:.3g}, occluded {self.occluded.min():.3g} to {self.occluded.max():.3g}"


def measure_occlusion(explanation: Any, layer: str, kernel: int) -> tuple:
    """What a grey square takes from a class and a kernel.

    Returns the OcclusionDrop of the first class's probability, that of the sum of a kernel's map,
    and the most probable classes, int (rows, columns)."""
    network = explanation.network
    outputs = [network.model.outputs[0], get_operation(network.model, layer).output]
    model = keras.Model(network.model.inputs[0], outputs)

    def evaluate(batch):
        logits, activations = model(batch, training=False)
        responses = activations.numpy()[..., kernel].reshape(len(batch), -1)
        return network.probabilities(logits), responses.sum(axis=1)

    index = explanation.classes[0]
    before, response = evaluate(explanation.x)
    how = (
        explanation.grey_input(),
        evaluate,
        explanation.options.patch,
        explanation.options.stride,
    )
    probabilities, responses = occlude(explanation.x, *how)[1]
    probability = OcclusionDrop(before[0, index], probabilities[..., index])
    return probability, OcclusionDrop(response[0], responses), probabilities.argmax(axis=-1)


COLOURS = {  # of the most frequent classes; grey of all the rest
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "yellow": (240, 220, 60),
    "blue": (31, 119, 180),
    "violet": (148, 103, 189),
}


def most_probable_tile(
    winners: np.ndarray, image: np.ndarray, geometry: Geometry, names: ClassNames
) -> Tile:
    """The Tile of the most probable classes, int (rows, columns), in colours over an image."""
    frequent = Counter(sorted(winners.ravel().tolist())).most_common(len(COLOURS))
    colours = {index: colour for (index, _), colour in zip(frequent, COLOURS, strict=False)}
    painted = np.full((*winners.shape, 3), 128, np.uint8)
    for index, colour in colours.items():
        painted[winners == index] = COLOURS[colour]
    painted = painted[geometry.nearest_cells(winners.shape, image.shape[:2])]
    mixed = cv2.addWeighted(painted, 0.5, image, 0.5, 0)
    legend = "; ".join(f"{colour}: {names.title(index)}" for index, colour in colours.items())
    return Tile(geometry.dim(mixed), f"most probable: {legend}")
