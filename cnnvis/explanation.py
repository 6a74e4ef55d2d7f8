"""One photograph and one network: the input, the logits, the classes, and tiles of maps.

Figures are drawn from these objects; they compute each thing once. The methods themselves are
handed in by the scripts, and nothing is written here."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from cnnvis.boxes import Box, segment_box
from cnnvis.geometry import Geometry, stretched_geometry
from cnnvis.networks import Network
from cnnvis.pages import Tile, columns_for, fit_tile
from cnnvis.photos import Photo
from cnnvis.runtime import log_once
from utils import Selection, UserError, overlay, pale_grey, signed_grey

CERTAIN = 0.999999  # a probability above it makes the preprocessing suspect


class Explanation:
    """One photograph run through one network, and tiles that show what comes of it."""

    def __init__(
        self,
        options: argparse.Namespace,
        network: Network,
        photo: Photo,
        selection: Selection | None = None,
    ):
        self.options, self.network, self.photo = options, network, photo
        self.selection = selection or network.selection  # of classes whose maps are needed
        self.true_boxes = {}  # {class index: [Box, …]}
        self.x = network.prepare(photo.image)

    # --- classes ---

    @functools.cached_property
    def logits(self) -> np.ndarray:
        """float32 (n_classes,) of the photograph."""
        return checked_logits(self.network, self.network.logits(self.x)[0])

    @property
    def classes(self) -> list[int]:
        """The indices of the classes asked for, in that order."""
        return self.network.selection.among(self.logits)

    def class_title(self, index: int, between: str = "\n", logits: Any = None) -> str:
        """A class and its probability; of a regression the number."""
        logits = self.logits if logits is None else logits
        p = self.network.probabilities(logits)[index]
        if self.network.kind == "number":
            return f"{p:.4g}: red raises it, blue lowers it"
        return f"{self.network.classes.title(index)}{between}p {p:.3f}"

    # --- where maps are placed ---

    def geometry(self, layer: str | None, cells: tuple) -> Geometry:
        """The Geometry by which a map of `cells`, (h, w), is laid over the photograph."""
        known = self.network.geometry(layer) if layer else None
        if known and self.options.place == "field":
            return replace(known, fit=self.options.fit)
        return stretched_geometry(self.x.shape[1:3], *cells, self.options.fit)

    def input_geometry(self, layer: str | None, cells: tuple) -> Geometry:
        """The same for a map that is laid over the network's input instead."""
        return replace(self.geometry(layer, cells), fit="squeeze")

    # --- tiles ---

    def tile(self, columns: int) -> np.ndarray:
        """The photograph as a tile of a page of so many columns."""
        return fit_tile(self.photo.image, columns, self.options.scale)

    def grid_tile(self, count: int) -> np.ndarray:
        """The photograph as one of so many tiles of a grid."""
        return self.tile(columns_for(count))

    def heat_tile(
        self,
        image: np.ndarray,
        cam: np.ndarray,
        layer: str | None,
        title: str,
        word: str = "max",
        lack: str = "no positive evidence",
        **how: Any,
    ) -> Tile:
        """The Tile of a map over an image, with its maximum; in grey where nothing is positive.

        word: before the maximum; lack: in its stead; how: colormap and scale of `overlay`."""
        if not cam.max() > 0:
            return Tile(pale_grey(image), f"{title}\n{lack}")
        how = {"colormap": self.options.colormap, **how}
        picture = overlay(image, cam, self.geometry(layer, cam.shape), **how)
        return Tile(picture, f"{title}\n{word} {cam.max():.3g}")

    def grey_input(self) -> np.ndarray:
        """The network's input of mid-grey, (channels,)."""
        return self.network.prepare(np.full((9, 9, 3), 128, np.uint8))[0, 0, 0]

    def grey(self, values: np.ndarray, like: np.ndarray) -> np.ndarray:
        """A projection or gradient as a picture of the size of another."""
        return signed_grey(values, like, self.network.preprocess)

    def grey_over(self, values: np.ndarray, image: np.ndarray) -> np.ndarray:
        """A projection as a picture that is laid over the image, by --fit."""
        if self.options.fit == "squeeze":
            return self.grey(values, image)
        size, shape = self.x.shape[1:3], image.shape[:2]
        geometry = stretched_geometry(size, *size, self.options.fit)
        channels = [geometry.resample(each, *shape) for each in np.moveaxis(values, -1, 0)]
        return geometry.dim(self.grey(np.stack(channels, axis=-1), image))

    # --- numbers to save ---

    def arrays(self, arrays: dict, logits: np.ndarray | None = None) -> dict:
        """Arrays under the network's name, with its input, its logits and layers' geometries."""
        arrays = {"input": self.x, **arrays}
        if logits is not None:
            arrays["logits"] = logits
        for layer in dict.fromkeys([*self.network.layers, self.network.main_layer]):
            known = self.network.geometry(layer)
            if known and any(key.startswith(f"{layer}/") for key in arrays):
                arrays[f"{layer}/geometry"] = known.cells
        return self.network.keyed(arrays)

    def note(self, text: str) -> str:
        """The line below a page's heading: the photograph's name and a text."""
        return f"{self.photo.path.name} · {text}"


def checked_logits(network: Network, logits: np.ndarray) -> np.ndarray:
    """Logits of a photograph. UserError where they are not finite; a certain answer is reported."""
    if not np.isfinite(logits).all():
        wrong = "returns numbers that are not finite: are its weights whole?"
        raise UserError(f"{network.label} {wrong}")
    if network.kind != "number" and network.probabilities(logits).max() > CERTAIN:
        doubt = f"is certain (p > {CERTAIN}): is --preprocess {network.preprocess} right?"
        log_once(f"{network.label} {doubt}")
    return logits


# --- Grad-CAM ---


class Methods(NamedTuple):
    """The methods of a Grad-CAM script."""

    grad_cam: Callable
    guided_backprop: Callable


class ClassMaps(NamedTuple):
    """What one call of `grad_cam` gives. maps: {layer: {class index: float32 (h, w), signed}}."""

    logits: np.ndarray
    maps: dict


@dataclass(frozen=True)
class Segment:
    """The positive heat of a class at the photograph's size, (H, W), and its box, or None."""

    heat: np.ndarray
    box: Box | None


class GradCamExplanation(Explanation):
    """One photograph, one network, and Grad-CAM's maps of its classes."""

    def __init__(self, options, network, photo, methods: Methods, selection=None):
        super().__init__(options, network, photo, selection)
        self.methods = methods
        self.segments = {}

    def maps_at(self, layers: list[str], selection: Selection) -> ClassMaps:
        """The ClassMaps of a Selection of classes at some layers, from one forward pass."""
        indices, top = selection.indices, selection.top
        call = self.methods.grad_cam
        cams, logits = call(self.network.model, self.x, layers, indices, self.options.method, top)
        checked_logits(self.network, logits)
        order = [*Selection(top=top).among(logits), *indices]
        maps = {layer: dict(zip(order, of_layer, strict=True)) for layer, of_layer in cams.items()}
        return ClassMaps(logits, maps)

    @functools.cached_property
    def main_maps(self) -> ClassMaps:
        """The ClassMaps of the main layer, for every class that a figure needs."""
        return self.maps_at([self.network.main_layer], self.selection)

    @property
    def logits(self) -> np.ndarray:
        """float32 (n_classes,), from the forward pass that gives the maps."""
        return self.main_maps.logits

    @property
    def maps(self) -> dict[int, np.ndarray]:
        """{class index: signed map of the main layer} of every class that a figure needs."""
        return self.main_maps.maps[self.network.main_layer]

    @property
    def cams(self) -> dict[int, np.ndarray]:
        """Those of the classes asked for, in that order."""
        return {index: self.maps[index] for index in self.classes}

    def cam_arrays(self) -> dict[str, np.ndarray]:
        """Those maps as arrays to save."""
        return {f"{self.network.main_layer}/{index}": cam for index, cam in self.cams.items()}

    def resample_heat(self, cam: np.ndarray) -> np.ndarray:
        """Positive evidence of a map of the main layer at the photograph's size, float32 (H, W).

        The ReLU comes first: enlarging a negative map may overshoot zero."""
        geometry = self.geometry(self.network.main_layer, cam.shape)
        height, width = self.photo.image.shape[:2]
        return np.maximum(geometry.resample(np.maximum(cam, 0), height, width), 0)

    def segment(self, index: int) -> Segment:
        """The Segment of a class, computed once."""
        if index not in self.segments:
            heat = self.resample_heat(self.maps[index])
            self.segments[index] = Segment(heat, segment_box(heat, self.options.threshold))
        return self.segments[index]

    def cam_tile(self, image: np.ndarray, index: int, **how: Any) -> Tile:
        """The Tile of a class's map over an image."""
        title = self.class_title(index)
        return self.heat_tile(image, self.cams[index], self.network.main_layer, title, **how)
