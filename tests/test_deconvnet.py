"""The DeconvNet of utils.py against a second one, written layer by layer from Zeiler and Fergus 2013, section 2.1.

The second one (`Reference`) keeps every layer's way down in a list while it goes up: transposed kernels in plain TensorFlow,
switches in NumPy, in float64.  It shares no line with utils.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl

import utils


# --- what the tests share ---------------------------------------------------------------------------------------------

def error(found, expected):
    """The largest difference, as a share of the largest expected value (which must not be zero)."""
    found, expected = np.asarray(found, "float64"), np.asarray(expected, "float64")
    assert found.shape == expected.shape and np.abs(expected).max() > 0
    return np.abs(found - expected).max() / np.abs(expected).max()


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def photograph(height, width, seed=0):
    """Coarse and fine structure on top of each other, 0 to 255, as in a picture of the world: (1, H, W, 3)."""
    rng = np.random.default_rng(seed)
    layers = [tf.image.resize(rng.normal(size=(1, n, n, 3)), (height, width), "bicubic") / n for n in (3, 6, 12, 24, 48)]
    picture = np.asarray(sum(layers))
    return (255 * (picture - picture.min()) / np.ptp(picture)).astype("float32")


def shake(model, seed=0):
    """Random weights everywhere: Keras begins with biases of 0 and moving variances of 1, which hide mistakes."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        values = rng.normal(scale=0.4, size=variable.shape)
        variable.assign(np.abs(values) + 0.5 if "variance" in variable.name else values)
    return model


# --- the second implementation ----------------------------------------------------------------------------------------

def windows_of(x, size, stride, padding, fill):
    """All windows of a pool over (H, W, C): (h, w, C, size * size) in row order, and the padding above and on the left."""
    pads = [(0, 0), (0, 0)]
    if padding == "same":
        need = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(x.shape, size, stride)]
        pads = [(n // 2, n - n // 2) for n in need]
    x = np.pad(x, [*pads, (0, 0)], constant_values=fill)
    windows = np.lib.stride_tricks.sliding_window_view(x, size, axis=(0, 1))[:: stride[0], :: stride[1]]
    return windows.reshape(*windows.shape[:3], -1), pads[0][0], pads[1][0]


def max_pool(layer, x):
    """Switches: the place of each window's maximum.  np.argmax takes the first of equals, and the padding never wins."""
    windows, top, left = windows_of(x[0], layer.pool_size, layer.strides, layer.padding, -np.inf)
    row, column = np.divmod(windows.argmax(-1), layer.pool_size[1])
    rows, columns, channels = np.indices(row.shape)
    rows, columns = rows * layer.strides[0] + row - top, columns * layer.strides[1] + column - left

    def down(signal):
        below = np.zeros(x.shape)
        np.add.at(below[0], (rows, columns, channels), signal[0])  # overlapping windows may share a maximum: add
        return [below]
    return windows.max(-1)[None], down


def average_pool(layer, x):
    """Every position of a window gets the same share; positions in the padding do not count."""
    size, stride = layer.pool_size, layer.strides
    windows, top, left = windows_of(x[0], size, stride, layer.padding, np.nan)

    def down(signal):
        below = np.zeros(x.shape)
        share = signal[0] / (~np.isnan(windows)).sum(-1)
        for i, j, channel in np.ndindex(share.shape):
            y, x_ = i * stride[0] - top, j * stride[1] - left
            below[0, max(y, 0):y + size[0], max(x_, 0):x_ + size[1], channel] += share[i, j, channel]
        return [below]
    return np.nanmean(windows, -1)[None], down


def convolution(layer, x):
    kernel = layer.get_weights()[0].astype(x.dtype)
    bias = layer.get_weights()[1] if layer.use_bias else 0
    how = {"strides": layer.strides, "padding": layer.padding.upper()}
    if isinstance(layer, kl.DepthwiseConv2D):
        how["strides"] = [1, *layer.strides, 1]
        return (tf.nn.depthwise_conv2d(x, kernel, **how) + bias,
                lambda s: [tf.nn.depthwise_conv2d_backprop_input(x.shape, kernel, s, **how)])
    how["dilations"] = layer.dilation_rate
    return (tf.nn.conv2d(x, kernel, **how) + bias,
            lambda s: [tf.nn.conv2d_transpose(s, kernel, x.shape, **how)])  # no bias on the way down


def dense(layer, x):
    kernel, bias = layer.get_weights()
    return x @ kernel + bias, lambda s: [s @ kernel.T]


def batch_norm(layer, x):
    scale = 1 / np.sqrt(layer.moving_variance.numpy().astype("float64") + layer.epsilon)
    if layer.scale:
        scale = scale * layer.gamma.numpy()
    shift = layer.beta.numpy() if layer.center else 0
    return (x - layer.moving_mean.numpy()) * scale + shift, lambda s: [s * scale]


def zero_padding(layer, x):
    (top, _), (left, _) = layer.padding
    _, height, width, _ = x.shape
    return (np.pad(x, [(0, 0), *layer.padding, (0, 0)]),
            lambda s: [s[:, top:top + height, left:left + width]])


def concatenate(_, *values):
    ends = np.cumsum([value.shape[-1] for value in values])[:-1]
    return np.concatenate(values, -1), lambda s: np.split(s, ends, -1)


LAYERS = {
    kl.Conv2D: convolution, kl.DepthwiseConv2D: convolution, kl.Dense: dense, kl.BatchNormalization: batch_norm,
    kl.MaxPooling2D: max_pool, kl.AveragePooling2D: average_pool, kl.ZeroPadding2D: zero_padding,
    kl.Concatenate: concatenate,
    kl.Add: lambda _, *values: (sum(values), lambda s: [s] * len(values)),
    kl.Flatten: lambda _, x: (x.reshape(1, -1), lambda s: [s.reshape(x.shape)]),
    kl.Dropout: lambda _, x: (x, lambda s: [s]),
    kl.Rescaling: lambda layer, x: (x * layer.scale + layer.offset, lambda s: [s * layer.scale]),
    kl.GlobalAveragePooling2D: lambda _, x: (x.mean((1, 2)), lambda s: [np.broadcast_to(
        s[:, None, None] / (x.shape[1] * x.shape[2]), x.shape)]),
}


def rectify(x):
    """Up, the ReLU.  Down, the ReLU again, of the signal: what was negative in the forward pass does not matter."""
    return np.maximum(x, 0), lambda signal: [np.maximum(signal, 0)]


class Reference:
    """One way up through a functional model; `project` goes down."""

    def __init__(self, model, x):
        self.pixels = id(model.inputs[0])
        self.values, self.tensors, self.ways = {self.pixels: x.astype("float64")}, {}, []
        for layer in model.layers:  # Keras keeps them in an order in which each comes after what it reads
            if isinstance(layer, kl.InputLayer):
                continue
            read = [id(tensor) for tensor in tf.nest.flatten(layer.input)]
            relu = isinstance(layer, kl.ReLU) or getattr(layer, "activation", None) is keras.activations.relu
            if type(layer) in LAYERS:
                self._up(lambda *values: LAYERS[type(layer)](layer, *values), read, id(layer.output))
                read = [id(layer.output)]
            if relu:
                self._up(rectify, read, ("relu", id(layer.output)))
                # What comes next reads the rectified value under the name of the layer's output.
                self.ways[-1] = (read, id(layer.output), self.ways[-1][2])
                self.values[id(layer.output)] = self.values.pop(("relu", id(layer.output)))
            assert relu or type(layer) in LAYERS, layer
            self.tensors[layer.name] = id(layer.output)

    def _up(self, operation, read, name):
        value, down = operation(*(self.values[key] for key in read))
        self.values[name] = np.asarray(value)
        self.ways.append((read, name, down))
