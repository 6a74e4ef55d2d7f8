"""One photograph and one network: the input, the logits, the classes, and tiles of maps.

Figures are drawn from these objects; they compute each thing once. The methods themselves are
handed in by the scripts, and nothing is written here."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import cv2
import numpy as np

from cnnvis.boxes import Box, segment_box
from cnnvis.geometry import Geometry, stretched_geometry
from cnnvis.networks import Network
from cnnvis.pages import Bar, Tile, columns_for, fit_tile, outlined
from cnnvis.photos import Photo
from cnnvis.runtime import log_once
from cnnvis.segmentation import Pixels
from utils import Selection, UserError, overlay, pale_grey, signed_grey

POSITIVE, NEGATIVE = (178, 24, 43), (33, 102, 172)  # RGB: red and blue of signed maps
CERTAIN = 0.999999  # a probability above it makes the preprocessing suspect


class Explanation:
    """A photograph and a network, which runs when a result is first read; tiles of the results."""

    def __init__(
        self,
        options: argparse.Namespace,
        network: Network,
        photo: Photo,
        selection: Selection | None = None,
    ):
        self.options, self.network, self.photo = options, network, photo
        # Classes whose maps are computed: those asked for and, in a folder, the true ones
        self.needed_selection = selection or network.selection
        self.true_boxes = {}  # {class index: [Box, …]}
        self.x = network.prepare(photo.image)

    # --- classes ---

    @functools.cached_property
    def logits(self) -> np.ndarray:
        """float32 (n_classes,) of the photograph."""
        return checked_logits(self.network, self.network.logits(self.x)[0])

    @functools.cached_property
    def probabilities(self) -> np.ndarray:
        """float32 (n_classes,) of the photograph; of a regression the number."""
        return self.network.probabilities(self.logits)

    @property
    def classes(self) -> list[int]:
        """The indices of the classes asked for, in that order."""
        return self.among(self.network.selection)

    @functools.cached_property
    def segmentation(self) -> Pixels | None:
        """The regions of the classes, of a segmentation network; None of another."""
        return self.network.pixel_network and self.network.pixel_network.predict(self.x)

    def among(self, selection: Selection, logits: np.ndarray | None = None) -> list[int]:
        """The indices of a Selection of classes: the `top` by share of pixels, or by logits."""
        if self.segmentation:
            return selection.among(self.segmentation.shares)
        return selection.among(self.logits if logits is None else logits)

    def measure(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits and probabilities, (N, n_classes) each, of inputs that the photograph became.

        Of a segmentation network: scores and mean probabilities over this photograph's regions."""
        if self.segmentation:
            return self.network.pixel_network.measure(batch, self.segmentation.regions)
        logits = self.network.logits(batch)
        return logits, self.network.probabilities(logits)

    def class_title(self, index: int, between: str = "\n", logits: Any = None) -> str:
        """A class and its probability; of a regression the number."""
        if self.segmentation:
            return f"{self.network.classes.title(index)}{between}{self.segmentation.title(index)}"
        known = self.probabilities if logits is None else self.network.probabilities(logits)
        p = known[index]
        if self.network.kind == "number":
            return f"{p:.4g}: red raises it, blue lowers it"
        return f"{self.network.classes.title(index)}{between}p {p:.3f}"

    # --- where maps are placed ---

    def geometry(self, layer: str | None, shape: tuple) -> Geometry:
        """The Geometry by which a map of a layer, of shape (h, w), is laid over the photograph."""
        known = self.network.geometry(layer) if layer else None
        if known and self.options.place == "field":
            return replace(known, fit=self.options.fit)
        return stretched_geometry(self.x.shape[1:3], *shape, self.options.fit)

    def input_geometry(self, layer: str | None, shape: tuple) -> Geometry:
        """The Geometry by which such a map is laid over the network's input."""
        return replace(self.geometry(layer, shape), fit="squeeze")

    # --- tiles ---

    def tile(self, columns: int) -> np.ndarray:
        """The photograph as a tile of a page of so many columns."""
        return fit_tile(self.photo.image, columns, self.options.scale)

    def grid_tile(self, count: int) -> np.ndarray:
        """The photograph as one of so many tiles of a grid."""
        return self.tile(columns_for(count))

    def outlined(self, picture: np.ndarray, *classes: int) -> np.ndarray:
        """A picture of the photograph with the regions of classes outlined, if there are any."""
        if not self.segmentation:
            return picture
        indices = classes[:1] if self.segmentation.has_mask else classes
        geometry = self.network.pixel_network.geometry
        if self.options.place != "field":
            geometry = self.geometry(None, self.segmentation.regions.shape[1:])
        geometry = replace(geometry, fit=self.options.fit)
        return outlined(picture, [self.segmentation.regions[index] for index in indices], geometry)

    def photograph(self, image: np.ndarray, *classes: int) -> Tile:
        """The Tile of the photograph, with the regions of classes outlined, if there are any."""
        return Tile(self.outlined(image, *classes), "photograph")

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

        word: text before the maximum. lack: text where nothing is positive. how: colormap and
        scale of `overlay`."""
        if not cam.max() > 0:
            return Tile(pale_grey(image), f"{title}\n{lack}")
        how = {"colormap": self.options.colormap, **how}
        picture = overlay(image, cam, self.geometry(layer, cam.shape), **how)
        return Tile(picture, f"{title}\n{word} {cam.max():.3g}")

    def signed_picture(self, image: np.ndarray, cam: np.ndarray, layer: str | None) -> np.ndarray:
        """A signed map over an image in pale grey: red where positive, blue where negative."""
        geometry = self.geometry(layer, cam.shape)
        values = geometry.resample(cam, *image.shape[:2])[..., None]
        ends = np.float32(np.where(values > 0, POSITIVE, NEGATIVE))
        strength = np.abs(values) / (np.abs(values).max() or 1)
        colours = np.uint8(255.5 + strength * (ends - 255))
        return geometry.dim(cv2.addWeighted(colours, 0.6, pale_grey(image), 0.4, 0))

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
        if self.segmentation:
            arrays["shares"] = self.segmentation.shares
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
    has_p = network.kind not in ("number", "segmentation")
    if has_p and network.probabilities(logits).max() > CERTAIN:
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
    """One photograph, one network, and Grad-CAM's maps of its classes.

    The network runs when `logits`, `maps` or `cams` is first read."""

    def __init__(self, options, network, photo, methods: Methods, selection=None):
        super().__init__(options, network, photo, selection)
        self.methods = methods
        self.segments = {}

    def maps_at(self, layers: list[str], selection: Selection) -> ClassMaps:
        """The ClassMaps of a Selection of classes at some layers, from one forward pass."""
        if self.segmentation:  # which the method does not rank
            selection = Selection(tuple(self.among(selection)))
        indices, top = selection.indices, selection.top
        call = self.methods.grad_cam
        cams, logits = call(self.network.model, self.x, layers, indices, self.options.method, top)
        checked_logits(self.network, logits)
        order = [*Selection(top=top).among(logits), *indices]  # of equal ones as tf.math.top_k
        maps = {layer: dict(zip(order, of_layer, strict=True)) for layer, of_layer in cams.items()}
        return ClassMaps(logits, maps)

    @functools.cached_property
    def main_maps(self) -> ClassMaps:
        """The ClassMaps of the main layer, for every class that a figure needs."""
        return self.maps_at([self.network.main_layer], self.needed_selection)

    @property
    def logits(self) -> np.ndarray:
        """float32 (n_classes,), from the forward pass that gives the maps."""
        return self.main_maps.logits

    @property
    def maps(self) -> dict[int, np.ndarray]:
        """{class index: signed map of the main layer} of every class that a figure needs."""
        return self.main_maps.maps[self.network.main_layer]

    @functools.cached_property
    def cams(self) -> dict[int, np.ndarray]:
        """{class index: signed map of the main layer} of the classes asked for, in that order."""
        return {index: self.maps[index] for index in self.classes}

    def cam_arrays(self) -> dict[str, np.ndarray]:
        """The maps of the classes asked for, as arrays to save."""
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

    def evidence_tile(
        self, image: np.ndarray, cam: np.ndarray, layer: str, title: str, **how: Any
    ) -> Tile:
        """A heat tile; of a regression a signed one: red raises the number, blue lowers it."""
        if self.network.kind != "number":
            return self.heat_tile(image, cam, layer, title, **how)
        picture = self.signed_picture(image, cam, layer)
        return Tile(picture, f"{title}\n{cam.min():.3g} to {cam.max():.3g}")

    def cam_tile(self, image: np.ndarray, index: int, **how: Any) -> Tile:
        """The Tile of a class's map over an image."""
        title = self.class_title(index)
        layer = self.network.main_layer
        tile = self.evidence_tile(image, self.cams[index], layer, title, **how)
        return tile._replace(picture=self.outlined(tile.picture, index))

    @property
    def bars(self) -> list[Bar]:
        """Colour bars of a page of such tiles; none of a regression, whose titles give the ends."""
        is_signed = self.network.kind == "number"
        return [] if is_signed else [Bar(self.options.colormap, "max")]
