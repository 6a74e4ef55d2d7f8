"""Where the cells of a feature map are in the photograph: centre, step and extent of their
receptive fields, followed from layer to layer (Araujo et al. 2019, «Computing receptive fields of
convolutional neural networks», distill.pub).

A Geometry resamples a map to its photograph. Colours and tiles are not in here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from cnnvis.graph import SLASH, unwrap
from cnnvis.runtime import keras
from utils import fit_box


@dataclass(frozen=True, eq=False)
class Geometry:
    """The positions of the cells of a map.

    Rows of the arrays are y and x. The unit is a pixel of the network's input, whose first pixel
    has its centre at 0.5."""

    cells: np.ndarray  # float32 (2, 2): the centre of cell 0, and the step from cell to cell
    size: tuple  # (H, W) of the network's input
    visible: np.ndarray  # float32 (2, 2): first and last edge of what crops leave of the input
    reach: np.ndarray  # float32 (2,): how far a receptive field extends on either side
    fit: str = "squeeze"  # how the photograph became the network's input, see utils.fit_box

    def resample(self, cam: np.ndarray, height: int, width: int) -> np.ndarray:
        """A map (h, w) at the size of a photograph: float32 (height, width).

        Cubic between cells; beyond the outermost cells their values continue; zero where the
        network does not see the photograph."""
        rows, columns = self.interpolation_matrices(cam.shape, (height, width))
        resampled = np.zeros((height, width), np.float32)
        visible = self.visible_box(height, width)
        resampled[visible] = (rows @ np.float32(cam) @ columns.T)[visible]
        return resampled

    def interpolation_matrices(self, shape: tuple, size: tuple) -> list[np.ndarray]:
        """For each axis the matrix (pixels of a photograph, cells of a map).

        shape: (h, w) of the map. size: (H, W) of the photograph."""
        start, length = fit_box(size, self.size, self.fit)
        matrices = []
        for axis, count in enumerate(size):
            pixels = np.arange(count) + 0.5
            inputs = (pixels - start[axis]) / length[axis] * self.size[axis]
            offset, step = self.cells[axis]
            matrices.append(cubic_matrix((inputs - offset) / step, shape[axis]))
        return matrices

    def covered(self, region: np.ndarray, shape: tuple) -> np.ndarray:
        """Which share of each cell of a map, (h, w), a region of a photograph covers.

        region: bool (H, W). shape: (h, w). A cell is as wide as the step to the next one."""
        start, length = fit_box(region.shape, self.size, self.fit)
        matrices = []
        for axis, count in enumerate(shape):
            offset, step = self.cells[axis]
            inputs = offset + step * (np.arange(count + 1) - 0.5)
            edges = inputs / self.size[axis] * length[axis] + start[axis]
            matrices.append(overlaps(edges, region.shape[axis]))
        rows, columns = matrices
        return (rows @ np.float64(region) @ columns.T).round(6)

    def visible_box(self, height: int, width: int) -> tuple[slice, slice]:
        """What the network sees of a photograph (height, width): slices of rows and columns."""
        start, length = fit_box((height, width), self.size, self.fit)
        edges = self.visible.T / self.size * length + start
        (top, left), (bottom, right) = np.clip(np.rint(edges), 0, (height, width)).astype(int)
        return slice(top, bottom), slice(left, right)

    def dim(self, image: np.ndarray, visible: np.ndarray | None = None) -> np.ndarray:
        """A copy of an image, uint8 (H, W, 3), dark where the network does not see it.

        visible: the image where the network sees it, if that is another."""
        box = self.visible_box(*image.shape[:2])
        dimmed = image // 3
        dimmed[box] = (image if visible is None else visible)[box]
        return dimmed

    def inner_cells(self, height: int, width: int) -> np.ndarray:
        """Which cells of a map are away from the border of what the network sees: bool.

        Their receptive field is inside it. A field wider than half of it counts as half, because
        most weight is in the middle of a field (Luo et al. 2016): block5_conv3 of VGG16 reads 196
        of 224 pixels, and has 8 x 8 inner cells of 14 x 14. All cells where none are inside."""
        inside = []
        for axis, count in enumerate((height, width)):
            offset, step = self.cells[axis]
            first, last = self.visible[axis]
            centres = offset + step * np.arange(count)
            margin = min(self.reach[axis], (last - first) / 4)
            within = (centres - first >= margin) & (last - centres >= margin)
            inside.append(within if within.any() else np.ones(count, bool))
        return np.logical_and.outer(*inside)

    def nearest_cells(self, shape: tuple, size: tuple) -> tuple:
        """For each pixel of a photograph the nearest cell of a map stretched over the input.

        shape: (h, w) of the map. size: (H, W) of the photograph. Returns two index arrays."""
        start, length = fit_box(size, self.size, self.fit)
        nearest = []
        for axis, count in enumerate(shape):
            positions = (np.arange(size[axis]) + 0.5 - start[axis]) / length[axis] * count
            nearest.append(np.clip(positions, 0, count - 1).astype(int))
        return np.ix_(*nearest)


class Window(NamedTuple):
    """How a layer's output cells are placed in its input: (y, x) each, in cells of that input."""

    shift: np.ndarray  # the centre of output cell 0, relative to that of input cell 0
    step: np.ndarray
    reach: np.ndarray  # how far an output cell reads on either side of its centre
    crops: bool = False  # the network does not see beyond the outermost cells


def sliding(layer: Any, size: np.ndarray, out: np.ndarray) -> Window:
    """Window of a convolution or pooling; `same` pads like TensorFlow, odd pixels at the end."""
    kernel = np.array(getattr(layer, "kernel_size", None) or layer.pool_size)
    half = (kernel - 1) * getattr(layer, "dilation_rate", 1) / 2
    missing = (out - 1) * layer.strides + 2 * half + 1 - size
    before = np.maximum(missing, 0) // 2 if layer.padding == "same" else 0
    return Window(half - before, np.array(layer.strides), half)


def transposed(layer: Any, size: np.ndarray, out: np.ndarray) -> Window:
    """Window of a transposed convolution: a convolution's with input and output exchanged."""
    window = sliding(layer, out, size)
    return Window(-window.shift / window.step, 1 / window.step, window.reach / window.step)


def stretched(start: Any, length: Any, out: np.ndarray) -> Window:
    """Window of a box of the input, perhaps larger than it, that becomes `out` cells."""
    step = length / out
    reach = np.where(step == 1, 0, np.maximum(step, 1))  # interpolation reads the neighbours
    return Window(start + (step - 1) / 2, step, reach, crops=True)


def resized(layer: Any, size: np.ndarray, out: np.ndarray) -> Window:
    """Window of Resizing."""
    fit = "pad" if layer.pad_to_aspect_ratio else "squeeze"
    return stretched(*fit_box(size, out, "crop" if layer.crop_to_aspect_ratio else fit), out)


def centre_cropped(layer: Any, size: np.ndarray, out: np.ndarray) -> Window:
    """Window of CenterCrop, which enlarges what is smaller than it."""
    if (size < out).any():
        return stretched(*fit_box(size, out, "crop"), out)
    return stretched((size - out) // 2, out, out)


def sliced(operation: Any, size: np.ndarray, out: np.ndarray) -> Window:
    """Window of x[key]; a step is not positive where the key mirrors or drops rows or columns."""
    call = operation._inbound_nodes[0].arguments
    key = call.kwargs.get("key", call.args[-1])
    key = tuple(key) if isinstance(key, list) else key  # Keras saves a tuple as a list
    positions = np.indices((1, *size, *operation.input.shape[3:]))[1:3]  # y and x of every value
    taken = np.stack([each[key] for each in positions]).reshape(2, *out, -1)[..., 0]
    first, last = taken[:, 0, 0], taken[:, -1, -1]
    step = np.where(out > 1, (last - first) / np.maximum(out - 1, 1), 1)
    return Window(first, step, np.zeros(2), crops=True)


# Layers (also augmentation, which is inactive) and operations that keep positions
KEEPS = Window(np.zeros(2), np.ones(2), np.zeros(2))
KEEPING = """
    Activation ActivityRegularization AlphaDropout BaseImagePreprocessingLayer
    BatchNormalization CustomScaleLayer Dense Dropout ELU GaussianDropout GaussianNoise
    GroupNormalization Identity LayerNormalization LayerScale LeakyReLU Masking Merge
    Normalization PReLU RMSNormalization ReLU Rescaling Softmax StochasticDepth
    UnitNormalization
    Absolute Add Cast Ceil Celu Clip Concatenate Cos Divide DivideNoNan Elu Exp Expm1 Floor Gelu
    HardSigmoid HardSilu HardTanh LayerNorm LeakyRelu Log Log1p LogSigmoid LogSoftmax Max
    Maximum Mean Minimum Multiply Negative Normalize Power RMSNorm Reciprocal Relu Relu6 Round
    Rsqrt Selu Sigmoid Sign Silu Sin Softplus Softsign Split Sqrt Square Stack StopGradient
    Subtract Sum Tanh TrueDivide Where"""
WINDOWS = {  # by class, given the layer (or operation) and height and width of its input and output
    **dict.fromkeys(KEEPING.split(), lambda layer, size, out: KEEPS),
    "AveragePooling2D": sliding,
    "CenterCrop": centre_cropped,
    "Conv2D": sliding,
    "Conv2DTranspose": transposed,
    "Cropping2D": lambda layer, size, out: stretched(np.array(layer.cropping)[:, 0], out, out),
    "DepthwiseConv2D": sliding,
    "GetItem": sliced,
    "MaxPooling2D": sliding,
    "Pad": lambda layer, size, out: stretched(-np.array(layer.pad_width)[1:3, 0], out, out),
    "Resize": resized,
    "Resizing": resized,
    "SeparableConv2D": sliding,
    "SpectralNormalization": lambda layer, size, out: window_of(layer.layer, size, out),
    "UpSampling2D": lambda layer, size, out: stretched(0, size, out),
    "ZeroPadding2D": lambda layer, size, out: stretched(-np.array(layer.padding)[:, 0], out, out),
}


def window_of(layer: Any, size: np.ndarray, out: np.ndarray) -> Window | None:
    """Window of a layer; None where the layer may rearrange positions."""
    for kind in type(layer).__mro__:
        if kind.__name__ in WINDOWS:
            window = WINDOWS[kind.__name__](layer, size, out)
            return window if window and np.all(window.step > 0) else None
    return None


def geometry_after(source: Geometry, window: Window, out: np.ndarray) -> Geometry:
    """Geometry of the `out` cells of a layer, from its input's geometry and its window."""
    offset, step = source.cells.T
    first, wider = offset + window.shift * step, window.step * step
    visible = source.visible
    if window.crops:
        beyond = source.reach - step / 2  # what a cell reads outside its own square
        start = np.maximum(visible[:, 0], first - wider / 2 - beyond)
        end = np.minimum(visible[:, 1], first + wider * (out - 0.5) + beyond)
        visible = np.stack([start, end], axis=1)
    cells, reach = np.stack([first, wider], axis=1), source.reach + window.reach * step
    return replace(source, cells=np.float32(cells), visible=visible, reach=np.float32(reach))


def merged(branches: Sequence[Geometry], out: np.ndarray) -> Geometry | None:
    """Mean geometry of branches of `out` cells; None where they are more than a cell apart."""
    cells = np.stack([branch.cells for branch in branches])
    mean = cells.mean(axis=0)
    offset, step = np.moveaxis(cells - mean, -1, 0)  # (branches, 2) each
    apart = np.maximum(np.abs(offset), np.abs(offset + (out - 1) * step))
    if (apart > mean[:, 1]).any():
        return None
    edges = np.stack([branch.visible for branch in branches])
    visible = np.stack([edges[..., 0].min(axis=0), edges[..., 1].max(axis=0)], axis=1)
    reach = np.max(apart + [branch.reach for branch in branches], axis=0)
    return replace(branches[0], cells=mean, visible=visible, reach=np.float32(reach))


def map_size(tensor: Any) -> np.ndarray | None:
    """Height and width of a Keras tensor of maps, int (2,); None of any other tensor."""
    sides = tensor.shape[1:3]
    return None if len(tensor.shape) not in (3, 4) or None in sides else np.array(sides)


def geometry_of(operation: Any, known: dict) -> Geometry | None:
    """Geometry of an operation's output, given {id of tensor: Geometry or None} of its inputs."""
    out = map_size(keras.tree.flatten(operation.output)[0])
    branches = []
    for tensor in keras.tree.flatten(operation.input):
        size = map_size(tensor)
        if out is None or size is None:
            continue
        try:
            window = window_of(unwrap(operation), size, out)
        except Exception:  # an unknown variant of a known layer: its maps are stretched
            return None
        if window is KEEPS and (size != out).any():
            continue  # a factor for every channel, as in squeeze-and-excitation
        if window is None or known.get(id(tensor)) is None:
            return None
        branches.append(geometry_after(known[id(tensor)], window, out))
    return merged(branches, out) if branches else None


def layer_geometries(model: Any) -> dict[str, Geometry | None]:
    """{layer: Geometry} of a flat network, named as `grad_cam` takes them.

    None for layers without a map, and where positions may be rearranged, branches are more than a
    cell apart, or the input size is not fixed."""
    entry = model.inputs[0]
    size = map_size(entry)
    known = {id(entry): None if size is None else stretched_geometry(entry.shape[1:3], *size)}
    geometries = {}
    for operation in model.operations:
        outputs = keras.tree.flatten(operation.output)
        geometry = known.get(id(outputs[0])) or geometry_of(operation, known)
        known.update((id(tensor), geometry) for tensor in outputs)
        geometries[operation.name.replace(SLASH, "/")] = geometry
    return geometries


def stretched_geometry(size: tuple, height: int, width: int, fit: str = "squeeze") -> Geometry:
    """Geometry of a map (height, width) stretched over the whole of a network's input (H, W)."""
    sides = np.float32(size)
    step = np.float32(sides / (height, width))
    cells, whole = np.stack([step / 2, step], axis=1), np.stack([0 * sides, sides], axis=1)
    return Geometry(cells, tuple(size), whole, step / 2, fit)


def true_span(mask: np.ndarray, reach: int = 0) -> slice:
    """The slice from the first true value of a mask, bool (n,), to the last, wider by `reach`."""
    positions = np.flatnonzero(mask) if mask.any() else np.zeros(1, int)
    return slice(max(positions[0] - reach, 0), min(positions[-1] + reach + 1, len(mask)))


def overlaps(edges: np.ndarray, count: int) -> np.ndarray:
    """Which share of each interval between n + 1 edges each of `count` pixels is: (n, count)."""
    pixels = np.arange(count)
    first, last = edges[:-1, None], edges[1:, None]
    return np.maximum(np.minimum(last, pixels + 1) - np.maximum(first, pixels), 0) / (last - first)


def cubic_matrix(positions: np.ndarray, count: int) -> np.ndarray:
    """Matrix (positions, count) that interpolates `count` values at positions.

    The first value is at 0. As cv2.INTER_CUBIC (Keys 1981, a = -0.75); the outermost values
    continue."""
    cells = np.floor(positions).astype(int)[:, None] + np.arange(-1, 3)  # the four around each
    d = np.abs(positions[:, None] - cells)
    near = (1.25 * d - 2.25) * d**2 + 1
    far = -0.75 * (((d - 5) * d + 8) * d - 4)
    matrix = np.zeros((len(positions), count), np.float32)
    rows = np.arange(len(positions))[:, None]
    np.add.at(matrix, (rows, np.clip(cells, 0, count - 1)), np.where(d < 1, near, far))
    return matrix
