"""`deconvnet` of the DeconvNet scripts against a second one, written layer by layer from Zeiler and Fergus, section 2.1.

The second one (`Reference`) keeps every layer's way down while it goes up: transposed kernels in plain TensorFlow,
switches in NumPy, all in float64 and never cut. It shares no line with the scripts. What it knows no rule for is
compared with TensorFlow's own derivative. Then the helpers that choose kernels, cut patches and lay them out.
"""
import itertools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl

import utils
from deconvnet_vgg import deconvnet, different, mosaic, patches, strongest

RULES, MODES = ("deconvnet", "guided", "gradient"), ("max", "all")
WAYS = list(itertools.product(MODES, RULES))


def error(found, expected):
    """The largest difference, as a share of the largest expected value, which must not be zero."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape and np.abs(expected).max() > 0
    return np.abs(found - expected).max() / np.abs(expected).max()


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def shake(model, seed=2):
    """Random weights everywhere: Keras begins with biases of 0 and moving variances of 1, which hide mistakes."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        values = rng.normal(scale=0.4, size=variable.shape)
        variable.assign(np.abs(values) + 0.5 if "variance" in variable.name else values)
    return model


def kaiming(model, seed=0):
    """Random weights that keep signals alive through many layers."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        values = rng.standard_normal(variable.shape, np.float32) * (2 / math.prod(variable.shape[:-1] or [8])) ** 0.5
        variable.assign({"moving_variance": abs(values) + 0.5, "bias": values * 0.1}.get(variable.name, values))
    return model


# --- the second implementation: of each operation what it gives, and its way down, of signals (N, ...) ---------------

def windows_of(x, size, stride, padding, fill):
    """All windows of a pool over (H, W, C): (h, w, C, positions) in row order; and the padding above, on the left."""
    pads = [(0, 0), (0, 0)]
    if padding == "same":
        need = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(x.shape, size, stride)]
        pads = [(n // 2, n - n // 2) for n in need]
    x = np.pad(x, [*pads, (0, 0)], constant_values=fill)
    windows = np.lib.stride_tricks.sliding_window_view(x, size, axis=(0, 1))[:: stride[0], :: stride[1]]
    return windows.reshape(*windows.shape[:3], -1), pads[0][0], pads[1][0]


def max_pool(layer, x):
    """Switches: the place of each window's maximum. np.argmax takes the first of equals; the padding never wins."""
    windows, top, left = windows_of(x[0], layer.pool_size, layer.strides, layer.padding, -np.inf)
    row, column = np.divmod(windows.argmax(-1), layer.pool_size[1])
    rows, columns, channels = np.indices(row.shape)
    rows, columns = rows * layer.strides[0] + row - top, columns * layer.strides[1] + column - left

    def down(signal):
        below = np.zeros((len(signal), *x.shape[1:]))
        for one, part in zip(below, signal):
            np.add.at(one, (rows, columns, channels), part)  # overlapping windows may share a maximum: add
        return [below]
    return windows.max(-1)[None], down


def average_pool(layer, x):
    """Every position of a window gets the same share; positions in the padding do not count."""
    (height, width), stride = layer.pool_size, layer.strides
    windows, top, left = windows_of(x[0], layer.pool_size, stride, layer.padding, np.nan)

    def down(signal):
        below, share = np.zeros((len(signal), *x.shape[1:])), signal / (~np.isnan(windows)).sum(-1)
        for i, j in np.ndindex(share.shape[1:3]):
            y, z = i * stride[0] - top, j * stride[1] - left
            below[:, max(y, 0):y + height, max(z, 0):z + width] += share[:, i:i + 1, j:j + 1]
        return [below]
    return np.nanmean(windows, -1)[None], down


def spread(kernel, dilation):
    """Holes between the taps, spelled out: on a CPU TensorFlow cannot transpose a dilated kernel."""
    wide = np.zeros([d * (n - 1) + 1 for d, n in zip(dilation, kernel.shape)] + [*kernel.shape[2:]])
    wide[:: dilation[0], :: dilation[1]] = kernel
    return wide


def convolution(layer, x):
    """Each group of kernels sees its own channels; no bias on the way down."""
    kernels = np.split(spread(layer.kernel.numpy(), layer.dilation_rate), layer.groups, axis=-1)
    parts, how = np.split(x, layer.groups, axis=-1), {"strides": layer.strides, "padding": layer.padding.upper()}
    up = [tf.nn.conv2d(part, kernel, **how) for part, kernel in zip(parts, kernels)]
    return (np.concatenate(up, -1) + (layer.bias.numpy() if layer.use_bias else 0),
            lambda s: [np.concatenate([tf.nn.conv2d_transpose(one, kernel, (len(s), *part.shape[1:]), **how)
                                       for one, part, kernel in zip(np.split(s, layer.groups, -1), parts, kernels)], -1)])


def depthwise(layer, x, kernel=None):
    kernel = spread((layer.kernel if kernel is None else kernel).numpy(), layer.dilation_rate)
    how = {"strides": [1, *layer.strides, 1], "padding": layer.padding.upper()}
    bias = layer.bias.numpy() if layer.use_bias and kernel is layer.kernel else 0
    return (tf.nn.depthwise_conv2d(x, kernel, **how) + bias,
            lambda s: [tf.nn.depthwise_conv2d_backprop_input((len(s), *x.shape[1:]), kernel, s, **how)])


def separable(layer, x):
    middle, down = depthwise(layer, x, layer.depthwise_kernel)
    point = layer.pointwise_kernel.numpy()[0, 0].astype(np.float64)
    return middle @ point + layer.bias.numpy(), lambda s: down(s @ point.T)


def transposed(layer, x):
    kernel, how = layer.kernel.numpy().astype(np.float64), {"strides": layer.strides, "padding": layer.padding.upper()}
    return (tf.nn.conv2d_transpose(x, kernel, (1, *layer.output.shape[1:]), **how) + layer.bias.numpy(),
            lambda s: [tf.nn.conv2d(s, kernel, **how)])


def batch_norm(layer, x):
    scale = 1 / np.sqrt(layer.moving_variance.numpy().astype(np.float64) + layer.epsilon)
    scale = scale * layer.gamma.numpy() if layer.scale else scale
    shift = layer.beta.numpy() if layer.center else 0
    return (x - layer.moving_mean.numpy()) * scale + shift, lambda s: [s * scale]


def zero_padding(layer, x):
    (top, _), (left, _) = layer.padding
    return (np.pad(x, [(0, 0), *layer.padding, (0, 0)]),
            lambda s: [s[:, top:top + x.shape[1], left:left + x.shape[2]]])


def concatenate(_, *values):
    ends = np.cumsum([value.shape[-1] for value in values])[:-1]
    return np.concatenate(values, -1), lambda s: np.split(s, ends, -1)


OPERATIONS = {
    "Conv2D": convolution, "DepthwiseConv2D": depthwise, "SeparableConv2D": separable, "Conv2DTranspose": transposed,
    "BatchNormalization": batch_norm, "MaxPooling2D": max_pool, "AveragePooling2D": average_pool,
    "ZeroPadding2D": zero_padding, "Concatenate": concatenate,
    "Dense": lambda layer, x: (x @ layer.kernel.numpy() + layer.bias.numpy(), lambda s: [s @ layer.kernel.numpy().T]),
    "Add": lambda _, *values: (sum(values), lambda s: [s] * len(values)),
    "Split": lambda _, x: (np.split(x, 2, -1), lambda *s: [np.concatenate(s, -1)]),  # in two halves
    "Flatten": lambda _, x: (x.reshape(1, -1), lambda s: [s.reshape(-1, *x.shape[1:])]),
    "Rescaling": lambda layer, x: (x * layer.scale + layer.offset, lambda s: [s * layer.scale]),
    "GlobalAveragePooling2D": lambda _, x: (x.mean((1, 2)), lambda s: [
        np.repeat(np.repeat(s[:, None, None] / math.prod(x.shape[1:3]), x.shape[1], 1), x.shape[2], 2)]),
    **dict.fromkeys(["Dropout", "ReLU", "Relu", "Relu6", "Activation"], lambda _, x: (x, lambda s: [s]))}


def rectified(value, ceiling, below, rule):
    """Up, the ReLU. Down, in a DeconvNet, the ReLU again, of the signal: the forward pass has no say in it."""
    active = (value > 0) & (value < ceiling)
    way = {"deconvnet": lambda s: np.maximum(s, 0), "guided": lambda s: np.maximum(s, 0) * active,
           "gradient": lambda s: s * active}[rule]
    return lambda s: below(way(s))


class Reference:
    """Up once through a flat model, every operation beside Keras's own; `project` goes down.

    What is decided on the way, by a switch or by a ReLU, is decided by Keras's numbers, in float32: in float64 a maximum
    and its runner-up may come out the other way round, and send a signal to another pixel.
    """

    def __init__(self, model, x, rule="deconvnet"):
        tensors = keras.tree.flatten([operation.output for operation in model.operations])
        values = map(np.float64, keras.Model(model.inputs, tensors)(x, training=False))
        self.values, self.input, self.rule = dict(zip(map(id, tensors), values)), id(model.inputs[0]), rule
        self.ways, self.layers = [], {}
        for operation in model.operations[1:]:  # in an order in which each comes after what it reads
            read, written = ([id(tensor) for tensor in keras.tree.flatten(tensors)]
                             for tensors in (operation.input, operation.output))
            kind, activation = type(operation).__name__, getattr(operation, "activation", keras.activations.linear)
            value, down = OPERATIONS[kind](operation, *(self.values[i] for i in read))
            if kind in ("ReLU", "Relu", "Relu6") or activation.__name__ in ("relu", "relu6"):
                six = "Relu6" == kind or activation.__name__ == "relu6"
                ceiling = 6 if six else getattr(operation, "max_value", None) or np.inf
                value, down = np.clip(value, 0, ceiling), rectified(self.values[written[0]], ceiling, down, rule)
            for i, ours in zip(written, value if len(written) > 1 else [value]):
                np.testing.assert_allclose(ours, self.values[i], rtol=1e-4, atol=1e-5 * np.abs(self.values[i]).max())
            self.ways.append((read, written, down))
            self.layers[operation.name] = written[0]

    def map(self, layer):
        return self.values[self.layers[layer]]

    def best(self, layer, count=2):
        """The kernels with the strongest responses; a kernel that never responds has nothing to compare."""
        return np.argsort(-self.map(layer).reshape(-1, self.map(layer).shape[-1]).max(0))[:count].tolist()

    def project(self, layer, kernels, mode):
        """Where a map is kept it is left as it is in a DeconvNet, otherwise one; the rest of the layer is zero."""
        maps = self.map(layer)
        seeds = np.zeros((len(kernels), *maps.shape[1:]))
        for seed, kernel in zip(seeds, kernels):
            first = np.unravel_index(maps[0, ..., kernel].argmax(), maps.shape[1:-1])  # argmax takes the first of equals
            kept = (*first, kernel) if mode == "max" else (..., kernel)
            seed[kept] = maps[0][kept] if self.rule == "deconvnet" else 1
        signals = {self.layers[layer]: seeds}
        for read, written, down in reversed(self.ways):
            if not signals.keys().isdisjoint(written):
                arriving = [signals.pop(i, np.zeros((len(kernels), *self.values[i].shape[1:]))) for i in written]
                for i, signal in zip(read, down(*arriving), strict=True):
                    signals[i] = signals.get(i, 0) + np.asarray(signal)  # branches meet before the next ReLU
        return signals[self.input]


# --- VGG16 and InceptionV3 ------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def own(request):
    """A script's own network, a picture, and the second implementation by each rule."""
    keras.utils.clear_session()  # so that Keras numbers the layers from the start
    model = kaiming(getattr(keras.applications, request.param)(
        weights=None, include_top=False, input_shape=(64, 72, 3) if request.param == "VGG16" else (107, 139, 3)))
    x = noise(1, *model.input_shape[1:])
    return model, x, {rule: Reference(model, x, rule) for rule in RULES}


@pytest.mark.parametrize("own, layer", [
    ("VGG16", "block1_conv2"), ("VGG16", "block2_conv1"), ("VGG16", "block3_conv3"), ("VGG16", "block5_conv3"),
    ("InceptionV3", "mixed0"), ("InceptionV3", "mixed4"), ("InceptionV3", "mixed10")], indirect=["own"])
@pytest.mark.parametrize("mode, rule", WAYS)
def test_the_scripts_own_networks_equal_the_second_implementation(own, layer, mode, rule):
    model, x, references = own
    kernels = references[rule].best(layer)[::-1]
    found = deconvnet(model, x, layer, kernels, mode, rule)
    assert found.dtype == np.float32 and found.shape == (2, *x.shape[1:])
    for picture, expected in zip(found, references[rule].project(layer, kernels, mode)):
        assert error(picture, expected) < 1e-5
