"""The DeconvNet of utils.py against a second one, written layer by layer from Zeiler and Fergus 2013, section 2.1.

The second one (`Reference`) keeps every layer's way down in a list while it goes up: transposed kernels in plain
TensorFlow, switches in NumPy, in float64.  It shares no line with utils.
"""

import contextlib
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl

import utils


# --- what the tests share -------------------------------------------------------------------------------------------

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
    picture = np.asarray(sum(tf.image.resize(rng.normal(size=(1, n, n, 3)), (height, width), "bicubic") / n
                             for n in (3, 6, 12, 24, 48)))
    return (255 * (picture - picture.min()) / np.ptp(picture)).astype("float32")


def shake(model, seed=0):
    """Random weights everywhere: Keras begins with biases of 0 and moving variances of 1, which hide mistakes."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        values = rng.normal(scale=0.4, size=variable.shape)
        variable.assign(np.abs(values) + 0.5 if "variance" in variable.name else values)
    return model


# --- the second implementation --------------------------------------------------------------------------------------

def windows_of(x, size, stride, padding, fill):
    """All windows of a pool over (H, W, C): (h, w, C, size * size) in row order; and the padding above, on the left."""
    pads = [(0, 0), (0, 0)]
    if padding == "same":
        need = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(x.shape, size, stride)]
        pads = [(n // 2, n - n // 2) for n in need]
    x = np.pad(x, [*pads, (0, 0)], constant_values=fill)
    windows = np.lib.stride_tricks.sliding_window_view(x, size, axis=(0, 1))[:: stride[0], :: stride[1]]
    return windows.reshape(*windows.shape[:3], -1), pads[0][0], pads[1][0]


def max_pool(layer, x):
    """Switches: the place of each window's maximum.  np.argmax takes the first of equals; the padding never wins."""
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
    # Holes between the taps, spelled out: on a CPU TensorFlow cannot transpose a dilated kernel.
    spread = np.zeros([d * (n - 1) + 1 for d, n in zip(layer.dilation_rate, kernel.shape)] + [*kernel.shape[2:]])
    spread[:: layer.dilation_rate[0], :: layer.dilation_rate[1]] = kernel
    kernel = spread
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
    **dict.fromkeys([kl.Dropout, kl.ReLU, kl.Activation], lambda _, x: (x, lambda s: [s])),  # `rectify` does the rest
    kl.Rescaling: lambda layer, x: (x * layer.scale + layer.offset, lambda s: [s * layer.scale]),
    kl.GlobalAveragePooling2D: lambda _, x: (x.mean((1, 2)), lambda s: [np.broadcast_to(
        s[:, None, None] / (x.shape[1] * x.shape[2]), x.shape)]),
}


def rectify(x, rule):
    """Up, the ReLU.  Down, in a DeconvNet, the ReLU again, of the signal: the forward pass has no say in it."""
    return np.maximum(x, 0), {"deconvnet": lambda signal: [np.maximum(signal, 0)],
                              "guided": lambda signal: [signal * (x > 0) * (signal > 0)],
                              "gradient": lambda signal: [signal * (x > 0)]}[rule]


class Reference:
    """Up once through a functional model; `project` goes down."""

    def __init__(self, model, x, rule="deconvnet"):
        self.values, self.ways = [x.astype("float64")], []
        self.layers, tensors = {}, {id(model.inputs[0]): 0}  # which of the values belongs to a layer, to a Keras tensor
        for layer in model.layers:  # in an order in which each comes after what it reads
            if isinstance(layer, kl.InputLayer):
                continue
            read = [tensors[id(tensor)] for tensor in tf.nest.flatten(layer.input)]
            read = self._up(read, LAYERS[type(layer)](layer, *(self.values[i] for i in read)))
            if isinstance(layer, kl.ReLU) or getattr(layer, "activation", None) is keras.activations.relu:
                read = self._up(read, rectify(self.values[read[0]], rule))
            tensors[id(layer.output)] = self.layers[layer.name] = read[0]

    def _up(self, read, value_and_way_down):
        value, down = value_and_way_down
        self.values.append(np.asarray(value))
        self.ways.append((read, len(self.values) - 1, down))
        return [len(self.values) - 1]

    def map(self, layer):
        return self.values[self.layers[layer]]

    def best(self, layer, count):
        """The kernels with the strongest responses; a kernel that never responds has nothing to compare."""
        maps = self.map(layer)
        return [int(k) for k in np.argsort(-maps.reshape(-1, maps.shape[-1]).max(0))[:count]]

    def kept(self, layer, kernel, mode):
        """1 where the layer's map is kept, 0 elsewhere."""
        kept = np.zeros_like(self.map(layer))
        of_kernel = self.map(layer)[..., kernel]
        first = np.unravel_index(of_kernel.argmax(), of_kernel.shape)  # argmax takes the first of equals
        kept[(*first, kernel) if mode == "max" else (..., kernel)] = 1
        return kept

    def project(self, layer, kernel, mode):
        return self.down(layer, self.map(layer) * self.kept(layer, kernel, mode))

    def down(self, layer, seed):
        signals = {self.layers[layer]: seed}
        for read, index, down in reversed(self.ways):
            if index in signals:
                for i, signal in zip(read, down(signals.pop(index)), strict=True):
                    signals[i] = signals.get(i, 0) + np.asarray(signal)  # branches meet before the next ReLU
        return signals[0][0]


# --- 1. VGG16 -------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def vgg():
    whole = keras.applications.VGG16(weights=None, classifier_activation=None, input_shape=(64, 72, 3))
    model = keras.Model(whole.input, whole.get_layer("fc1").output)  # most of the weights lie above
    rng = np.random.default_rng(0)
    model.set_weights([rng.standard_normal(weight.shape, "float32") * (2 / math.prod(weight.shape[:-1])) ** 0.5
                       for weight in model.weights])
    # Of forty pictures the one whose pools decide most clearly: nowhere do a maximum and its runner-up lie so close
    # that the rounding of float32 chooses between them, and sends a signal to another pixel than in float64.
    x = keras.applications.vgg16.preprocess_input(photograph(64, 72, seed=28))
    return model, x, Reference(model, x)


@pytest.mark.parametrize("mode", ["max", "all"])
@pytest.mark.parametrize("layer", ["block1_conv2", "block2_conv1", "block3_conv3", "block4_conv2", "block5_conv3",
                                   "fc1"])
def test_vgg16_equals_second_implementation(vgg, layer, mode):
    model, x, reference = vgg
    kernels = reference.best(layer, 2)[::-1]
    found = utils.deconvnet(model, x, layer, kernels, mode)
    assert found.dtype == np.float32 and found.shape == (2, 64, 72, 3)
    for picture, kernel in zip(found, kernels, strict=True):
        assert error(picture, reference.project(layer, kernel, mode)) < 1e-4, kernel


# --- 2. small networks, every kind of layer -------------------------------------------------------------------------

def norms():
    """Batch normalisation with and without gamma and beta, a ReLU layer, an activation layer, no ReLU at all."""
    inputs = keras.Input((14, 13, 3))
    x = kl.BatchNormalization(name="norm1")(kl.Conv2D(4, 3, padding="same", use_bias=False, name="conv1")(inputs))
    x = kl.Conv2D(5, 3, strides=2, name="conv2")(kl.ReLU(name="relu1")(x))
    x = kl.BatchNormalization(scale=False, epsilon=0.1, name="norm2")(x)
    x = kl.Conv2D(4, 3, strides=(1, 2), padding="same", name="conv3")(kl.Activation("relu", name="relu2")(x))
    x = kl.BatchNormalization(center=False, name="norm3")(x)
    return keras.Model(inputs, kl.Conv2D(3, 2, activation="relu", name="conv4")(x))


def overlapping_pools():
    """3x3 windows two apart, over an odd and an even side, padded and not."""
    inputs = keras.Input((23, 18, 3))
    x = kl.Conv2D(4, 3, padding="same", activation="relu", name="conv1")(inputs)
    x = kl.Conv2D(5, 2, activation="relu", name="conv2")(kl.MaxPooling2D(3, 2, padding="same", name="pool1")(x))
    x = kl.MaxPooling2D(3, 2, padding="valid", name="pool2")(x)
    return keras.Model(inputs, kl.Conv2D(3, 3, padding="same", activation="relu", name="conv3")(x))


def pools_of_signed_maps():
    """Where all is negative the padding of a pool must not win with its zero; nor need a pool be square."""
    inputs = keras.Input((11, 12, 3))
    x = kl.MaxPooling2D(3, 1, padding="same", name="pool1")(kl.Conv2D(4, 3, name="conv1")(inputs))
    x = kl.MaxPooling2D((2, 3), (1, 2), padding="same", name="pool2")(kl.BatchNormalization(name="norm1")(x))
    return keras.Model(inputs, kl.ReLU(name="relu1")(kl.Conv2D(3, 3, name="conv2")(x)))


def inception():
    """Branches of every reach side by side, average pools among them."""
    inputs = keras.Input((17, 16, 3))
    x = kl.Conv2D(4, 3, strides=2, padding="same", activation="relu", name="conv1")(inputs)
    a = kl.Conv2D(2, 1, activation="relu", name="a")(x)
    b = kl.Conv2D(3, 5, padding="same", activation="relu", name="b")(kl.Conv2D(2, 1, activation="relu", name="b0")(x))
    c = kl.Conv2D(2, 1, activation="relu", name="c")(kl.AveragePooling2D(3, 1, padding="same", name="average")(x))
    d = kl.MaxPooling2D(3, 1, padding="same", name="pool1")(x)
    x = kl.Concatenate(name="mixed1")([a, b, c, d])
    x = kl.Concatenate(name="mixed2")([kl.Conv2D(4, 3, strides=2, activation="relu", name="e")(x),
                                       kl.MaxPooling2D(3, 2, name="pool2")(x), kl.AveragePooling2D(3, 2, name="f")(x)])
    return keras.Model(inputs, kl.Conv2D(3, (1, 3), padding="same", activation="relu", name="conv2")(x))


def residual():
    """Shortcuts, as they are and through a convolution: signals meet again before the ReLU, not behind it."""
    inputs = keras.Input((22, 19, 3))
    x = kl.Conv2D(4, 7, strides=2, name="conv1")(kl.ZeroPadding2D(((3, 2), (1, 3)), name="pad1")(inputs))
    x = kl.ReLU(name="relu1")(kl.BatchNormalization(name="norm1")(x))
    x = kl.MaxPooling2D(3, 2, name="pool1")(kl.ZeroPadding2D(1, name="pad2")(x))
    y = kl.Conv2D(4, 3, padding="same", name="conv2")(kl.Conv2D(2, 1, activation="relu", name="narrow")(x))
    x = kl.Activation("relu", name="out1")(kl.Add(name="add1")([x, y]))
    y = kl.Conv2D(5, 1, strides=2, name="conv3")(x)
    x = kl.Add(name="add2")([kl.Conv2D(5, 3, strides=2, padding="same", name="conv4")(x), y])
    return keras.Model(inputs, kl.ReLU(name="out2")(x))


def with_dense_head():
    inputs = keras.Input((10, 9, 3))
    x = kl.Rescaling(1 / 4, offset=-1, name="rescaling")(inputs)
    x = kl.MaxPooling2D(name="pool1")(kl.Conv2D(4, 3, padding="same", activation="relu", name="conv1")(x))
    x = kl.Dense(7, activation="relu", name="fc1")(kl.Dropout(0.5, name="dropout")(kl.Flatten(name="flatten")(x)))
    return keras.Model(inputs, kl.Dense(4, name="head")(kl.Dense(6, activation="relu", name="fc2")(x)))


def other_kernels():
    """Depthwise, dilated, and averaged over windows that hang over the edge; then over everything."""
    inputs = keras.Input((15, 14, 3))
    x = kl.DepthwiseConv2D(3, padding="same", depth_multiplier=2, activation="relu", name="depthwise")(inputs)
    x = kl.Conv2D(4, 3, dilation_rate=2, activation="relu", name="dilated")(x)
    x = kl.AveragePooling2D(3, 2, padding="same", name="average")(x)
    x = kl.Conv2D(4, 3, padding="same", activation="relu", name="conv1")(x)
    return keras.Model(inputs, kl.Dense(3, name="head")(kl.GlobalAveragePooling2D(name="mean")(x)))


NETWORKS = [norms, overlapping_pools, pools_of_signed_maps, inception, residual, with_dense_head, other_kernels]


@pytest.mark.parametrize("mode", ["max", "all"])
@pytest.mark.parametrize("build", NETWORKS)
def test_every_layer_of_a_small_network_equals_second_implementation(build, mode):
    model = shake(build(), seed=2)
    x = noise(1, *model.input_shape[1:], seed=3)
    reference = Reference(model, x)
    for layer in reference.layers:
        kernels = reference.best(layer, 2)
        expected = [reference.project(layer, kernel, mode) for kernel in kernels]
        assert error(utils.deconvnet(model, x, layer, kernels, mode), expected) < 1e-4, layer


@pytest.mark.parametrize("value", [0, 5], ids=["all_zero", "all_five"])
@pytest.mark.parametrize("size, stride, padding, side, first", [
    (2, 2, "valid", 4, [0, 2]), (3, 2, "valid", 5, [0, 2]), (3, 2, "same", 4, [0, 2]), (3, 2, "same", 5, [0, 1, 3]),
    (3, 1, "same", 3, [0, 0, 1])], ids=str)
def test_of_equal_values_in_a_pool_the_first_in_row_order_is_the_switch(size, stride, padding, side, first, value):
    """After a ReLU most ties are windows full of zeros: the signal still has to go somewhere, and to one place only."""
    model = keras.Sequential([
        keras.Input((side, side, 3)), kl.Conv2D(1, 1, activation="relu", name="low"),
        kl.MaxPooling2D(size, stride, padding=padding), kl.Conv2D(1, 1, name="high")])
    # A picture of ones gives value everywhere; `high` answers 1 everywhere and sends 2 down.
    model.get_layer("low").set_weights([np.float32([[[[1], [2], [-3]]]]), np.float32([value])])
    model.get_layer("high").set_weights([np.float32([[[[2]]]]), np.float32([1 - 2 * value])])
    x = np.ones((1, side, side, 3), "float32")
    expected = np.zeros((side, side, 3))
    for row in first:
        for column in first:
            expected[row, column] += [2, 4, -6]
    np.testing.assert_array_equal(utils.deconvnet(model, x, "high", [0], "all")[0], expected)
    # Of equal responses, too, the first is the strongest one.
    expected = np.zeros((side, side, 3))
    expected[0, 0] = [2, 4, -6]
    np.testing.assert_array_equal(utils.deconvnet(model, x, "high", [0], "max")[0], expected)


# --- 3. only the receptive field ------------------------------------------------------------------------------------

def plain_chain():
    inputs = keras.Input((61, 70, 3))
    x = kl.MaxPooling2D()(kl.Conv2D(4, 3, padding="same", activation="relu")(inputs))
    x = kl.MaxPooling2D()(kl.Conv2D(4, 3, padding="same", activation="relu")(x))
    return keras.Model(inputs, kl.Conv2D(4, 3, padding="same", activation="relu", name="top")(x))


def overlapping_chain():
    inputs = keras.Input((61, 70, 3))
    x = kl.MaxPooling2D(3, 2, padding="same")(kl.Conv2D(4, 3, activation="relu")(inputs))
    x = kl.MaxPooling2D(3, 2)(kl.Conv2D(4, 3, strides=2, padding="same", activation="relu")(x))
    return keras.Model(inputs, kl.Conv2D(4, (1, 3), padding="same", name="top")(x))


def branches():
    inputs = keras.Input((61, 70, 3))
    x = kl.Conv2D(4, 3, strides=2, padding="same", activation="relu")(inputs)
    average = kl.AveragePooling2D(3, 1, padding="same")(x)
    wide = kl.Conv2D(3, 3, dilation_rate=2, padding="same", activation="relu")(kl.Conv2D(2, 1, activation="relu")(x))
    x = kl.Concatenate()([kl.Conv2D(2, 1, activation="relu")(average), wide, kl.MaxPooling2D(3, 1, padding="same")(x)])
    x = kl.Concatenate()([kl.Conv2D(4, 3, strides=2, activation="relu")(x), kl.AveragePooling2D(3, 2)(x)])
    return keras.Model(inputs, kl.Conv2D(3, 3, padding="same", activation="relu", name="top")(x))


def shortcuts():
    inputs = keras.Input((61, 70, 3))
    x = kl.ReLU()(kl.BatchNormalization()(kl.Conv2D(4, 7, strides=2, padding="same")(inputs)))
    x = kl.MaxPooling2D(3, 2, padding="same")(x)
    y = kl.BatchNormalization()(kl.Conv2D(4, 3, padding="same")(kl.Conv2D(2, 1, activation="relu")(x)))
    return keras.Model(inputs, kl.ReLU(name="top")(kl.Add()([x, y])))


PLACES = {"top_left": (0, 0), "top": (0, 0.5), "top_right": (0, 1), "left": (0.5, 0), "middle": (0.5, 0.5),
          "right": (0.5, 1), "bottom_left": (1, 0), "bottom": (1, 0.5), "bottom_right": (1, 1)}


def picture_with_strongest_response_at(model, row, column):
    """A bright pixel over faint noise, such that kernel 0 of `top` responds most at (row, column) of its map."""
    x = noise(1, *model.input_shape[1:], seed=6) / 10
    seed = np.zeros((1, *model.output_shape[1:]))
    seed[0, row, column, 0] = 1
    seen = np.abs(Reference(model, x, "gradient").down("top", seed)).sum(-1)
    pictures = np.repeat(x, 60, axis=0)
    for picture, pixel in zip(pictures, np.argsort(-seen, axis=None)):  # the sixty that this position looks at first
        picture.reshape(-1, 3)[pixel] += 40
    maps = np.asarray(model(pictures))[..., 0]
    fits = maps.reshape(60, -1).argmax(-1) == row * maps.shape[2] + column
    assert fits.any()
    return pictures[[np.argmax(fits)]]


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("build", [plain_chain, overlapping_chain, branches, shortcuts])
def test_receptive_field_equals_whole_image(build, place, monkeypatch):
    model = build()
    rng = np.random.default_rng(2)
    for weight in model.weights:  # every kernel copies its middle, more or less, so that a bright pixel stays one
        values = weight.numpy() + rng.normal(scale=0.1, size=weight.shape)
        if weight.name == "kernel":
            values = rng.normal(scale=0.1, size=weight.shape)
            values[weight.shape[0] // 2, weight.shape[1] // 2] += 1
        weight.assign(values)
    _, height, width, _ = model.output_shape
    x = picture_with_strongest_response_at(model, int(place[0] * (height - 1)), int(place[1] * (width - 1)))
    areas, area = [], utils.Window.area.fget
    monkeypatch.setattr(utils.Window, "area", property(lambda window: areas.append(area(window)) or areas[-1]))
    field = utils.deconvnet(model, x, "top", [0], "max")
    assert min(areas) < 61 * 70 / 2  # else both ways would be the same one
    monkeypatch.setattr(utils.Window, "area", property(lambda window: 1e12))  # far more than half of any picture
    whole = utils.deconvnet(model, x, "top", [0], "max")
    assert error(field, whole) < 1e-5
    assert error(field[0], Reference(model, x).project("top", 0, "max")) < 1e-4


def test_kernels_near_and_far_in_one_call_equal_one_by_one():
    """Each kernel of a call has a receptive field of its own; ten do not fit into one batch of nine."""
    inputs = keras.Input((40, 44, 3))
    x = kl.MaxPooling2D()(kl.Conv2D(11, 5, activation="relu", name="near")(inputs))
    model = shake(keras.Model(inputs, kl.Conv2D(11, (17, 16), name="far")(x)))
    x = noise(1, 40, 44, 3)
    reference = Reference(model, x)
    for layer in ("near", "far"):
        kernels = [10, 3, 3, *range(9)]
        found = utils.deconvnet(model, x, layer, kernels)
        for picture, kernel in zip(found, kernels, strict=True):
            assert error(picture, reference.project(layer, kernel, "max")) < 1e-4, (layer, kernel)


# --- 4. a known template is found -----------------------------------------------------------------------------------

@pytest.mark.parametrize("row, column", [(0, 0), (4, 21), (27, 35), (13, 0)])
@pytest.mark.parametrize("activation", ["relu", None])
def test_projection_paints_the_kernel_s_template_where_it_is_in_the_picture(row, column, activation):
    template = noise(5, 5, 3, seed=1)
    model = keras.Sequential([keras.Input((32, 40, 3)), kl.Conv2D(2, 5, activation=activation, name="conv")])
    model.set_weights([np.stack([noise(5, 5, 3, seed=2), template], -1), np.float32([1, 1])])
    x = np.zeros((1, 32, 40, 3), "float32")
    x[0, 8:13, 25:30] = 0.9 * template  # one that looks like it, but a little paler
    x[0, row:row + 5, column:column + 5] = template
    expected = np.zeros((32, 40, 3))
    response = (template ** 2).sum() + 1  # it is what the DeconvNet sends down
    expected[row:row + 5, column:column + 5] = template * response
    assert error(utils.deconvnet(model, x, "conv", [1], "max")[0], expected) < 1e-5


def test_projection_paints_a_figure_put_together_from_parts():
    """Low kernels know a part each, the high one their arrangement, above a pool: each part comes back in its place."""
    parts = np.array([[[1, 1], [0, 0]], [[0, 1], [0, 1]]])  # a dash and a bar
    model = keras.Sequential([
        keras.Input((12, 12, 3)), kl.Conv2D(2, 2, strides=2, activation="relu", name="low"), kl.MaxPooling2D(2),
        kl.Conv2D(1, (1, 2), activation="relu", name="high")])
    high = np.zeros((1, 2, 2, 1), "float32")
    high[0, 0, 0] = high[0, 1, 1] = 1  # the dash on the left, the bar to the right of it
    model.set_weights([np.float32(np.stack([np.dstack([part] * 3) for part in parts], -1)), np.float32([-5, -5]),
                       high, np.float32([0])])  # -5: six pixels of a part are there, or there is nothing
    x = np.zeros((1, 12, 12, 3), "float32")
    x[0, 6:8, 4:6] = parts[0][..., None]
    x[0, 4:6, 8:10] = parts[1][..., None]
    expected = 2 * x[0]  # two parts found: the high kernel's response, sent back to each of them
    np.testing.assert_allclose(utils.deconvnet(model, x, "high", [0])[0], expected, atol=1e-6)


# --- 5. every way to write a network; the other rules ---------------------------------------------------------------

def flat():
    inputs = keras.Input((18, 16, 3))
    x = kl.MaxPooling2D()(kl.Conv2D(4, 3, padding="same", activation="relu", name="low")(inputs))
    return keras.Model(inputs, kl.Conv2D(5, 3, activation="relu", name="top")(x), name="flat")


def nested(model):
    inputs = keras.Input((18, 16, 3))
    return keras.Model(inputs, kl.Dense(3)(kl.GlobalAveragePooling2D()(model(inputs, training=False))))


def rewritten(relu):
    """The same layers and weights with the ReLUs as something else than an argument."""
    def rewrite(model):
        inputs, (low, top) = keras.Input((18, 16, 3)), (model.get_layer(name) for name in ("low", "top"))
        first, second = kl.Conv2D(4, 3, padding="same"), kl.Conv2D(5, 3)
        x = kl.MaxPooling2D()(relu(first(inputs)))
        new = keras.Model(inputs, kl.Identity(name="top")(relu(second(x))))
        first.set_weights(low.get_weights())
        second.set_weights(top.get_weights())
        return new
    return rewrite


FORMS = {"sequential": lambda model: keras.Sequential(model.layers), "nested": nested,
         "nested_in_sequential": lambda model: keras.Sequential([keras.Input((18, 16, 3)), model, kl.Flatten()]),
         "relu_layers": rewritten(lambda x: kl.ReLU()(x)), "one_relu_layer_twice": rewritten(kl.ReLU()),
         "activation_layers": rewritten(lambda x: kl.Activation("relu")(x)),
         "keras_function": rewritten(lambda x: keras.ops.relu(x)),
         "tensorflow_function": rewritten(lambda x: kl.Activation(tf.nn.relu)(x))}


@pytest.mark.parametrize("mode", ["max", "all"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_way_to_write_a_network(form, mode):
    model, x = shake(flat(), seed=2), noise(1, 18, 16, 3)
    reference = Reference(model, x)
    kernels = reference.best("top", 3)
    expected = [reference.project("top", kernel, mode) for kernel in kernels]
    assert error(utils.deconvnet(form(model), x, "top", kernels, mode), expected) < 1e-4


@pytest.mark.parametrize("rule", ["gradient", "guided"])
@pytest.mark.parametrize("mode", ["max", "all"])
@pytest.mark.parametrize("build, layer", [(overlapping_pools, "conv3"), (inception, "mixed2"), (residual, "out1"),
                                          (with_dense_head, "fc2"), (plain_chain, "top")])
def test_other_rules_equal_second_implementation(build, layer, mode, rule):
    """They begin with 1 at the strongest position, or everywhere; only the ReLU on the way down differs."""
    model = shake(build(), seed=2)
    x = noise(1, *model.input_shape[1:], seed=3)
    reference = Reference(model, x, rule)
    kernel = reference.best(layer, 1)[0]
    found = utils.ForwardPass(model, x).deconvnet(layer, [kernel], mode, rule)
    assert error(found[0], reference.down(layer, reference.kept(layer, kernel, mode))) < 1e-4


def gated():
    """What a DeconvNet has no rule for has a derivative all the same."""
    inputs = keras.Input((13, 12, 3))
    x = kl.Conv2D(4, 3, padding="same", activation="relu")(inputs / 2 - 0.5)
    gate = kl.Dense(4, activation="sigmoid")(kl.Dense(3, activation="relu")(kl.GlobalAveragePooling2D()(x)))
    x = kl.Multiply()([x, kl.Reshape((1, 1, 4))(gate)])
    x = kl.LeakyReLU()(kl.Conv2DTranspose(4, 3, strides=2)(kl.Cropping2D(2)(kl.UpSampling2D()(x))))
    return keras.Model(inputs, kl.Conv2D(5, 3, name="top")(kl.SeparableConv2D(4, 3, activation="relu")(x)))


@pytest.mark.parametrize("build, layer", [(gated, "top"), (inception, "conv2"), (residual, "out2"),
                                          (plain_chain, "top"), (other_kernels, "head")])
def test_gradient_rule_equals_gradient_tape(build, layer):
    model = shake(build(), seed=2)
    x = noise(1, *model.input_shape[1:], seed=3)
    part = keras.Model(model.input, model.get_layer(layer).output)
    kernels = Reference(model, x).best(layer, 2) if build is not gated else [0, 3]
    expected = []
    for kernel in kernels:
        with tf.GradientTape() as tape:
            pixels = tf.constant(x)
            tape.watch(pixels)
            strongest = tf.reduce_max(part(pixels, training=False)[..., kernel])
        expected.append(tape.gradient(strongest, pixels)[0])
    found = utils.ForwardPass(model, x).deconvnet(layer, kernels, "max", "gradient")
    assert error(found, expected) < 1e-4


# --- 6. modes, errors, and a model left as it was -------------------------------------------------------------------

def every_layer(model):
    """All layers, those of the models inside the model included."""
    for layer in model.layers:
        yield layer
        if isinstance(layer, keras.Model):
            yield from every_layer(layer)


def state(model):
    """All that a caller could find changed: names, activations, connections, weights to the bit."""
    return [(layer.name, layer.trainable, getattr(layer, "activation", None), layer.__dict__.get("call"),
             len(layer._inbound_nodes), len(layer._outbound_nodes), [w.tobytes() for w in layer.get_weights()])
            for layer in [model, *every_layer(model)]]


def test_max_is_the_mode_unless_told_otherwise():
    model, x = shake(flat(), seed=2), noise(1, 18, 16, 3)
    default, strongest, all_ = (utils.deconvnet(model, x, "top", [1, 2], *mode) for mode in ((), ("max",), ("all",)))
    assert error(default, strongest) < 1e-5
    assert error(default, all_) > 0.1


def test_kernels_may_come_from_numpy():
    """np.argsort of the responses is where a notebook has its kernels from."""
    model, x = shake(flat(), seed=2), noise(1, 18, 16, 3)
    assert error(utils.deconvnet(model, x, "top", np.array([2, 1])), utils.deconvnet(model, x, "top", [2, 1])) < 1e-5


@pytest.mark.parametrize("layer, kernels, mode, word", [
    ("nowhere", [0], "max", "nowhere"), ("top", [5], "max", "5"), ("top", [-1], "all", "-1"),
    ("top", [0, 77], "max", "77"), ("top", [0], "maximum", "maximum"), ("top", [0], "", "mode")],
    ids=["unknown_layer", "kernel_too_large", "negative_kernel", "second_kernel_wrong", "unknown_mode", "no_mode"])
def test_what_is_unknown_is_named(layer, kernels, mode, word):
    model, x = shake(flat()), noise(1, 18, 16, 3)
    before = state(model)
    with pytest.raises(ValueError, match=word):
        utils.deconvnet(model, x, layer, kernels, mode)
    assert state(model) == before


def test_subclassed_model_is_refused():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.conv = kl.Conv2D(4, 3, name="conv")

        def call(self, x):
            return self.conv(x)

    model, x = Subclassed(), noise(1, 6, 6, 3)
    model(x)
    with pytest.raises(ValueError, match="(?i)functional"):
        utils.deconvnet(model, x, "conv", [0])


@pytest.mark.parametrize("mode", ["max", "all"])
@pytest.mark.parametrize("build, layer", [(lambda: nested(flat()), "top"), (residual, "out2"),
                                          (other_kernels, "conv1")], ids=["nested", "residual", "other_kernels"])
def test_model_is_left_as_it_was(build, layer, mode):
    model = shake(build())
    x = noise(1, *model.input_shape[1:])
    before, outputs = state(model), np.asarray(model(x))
    utils.deconvnet(model, x, layer, [0, 1], mode)
    assert state(model) == before
    np.testing.assert_array_equal(model(x), outputs)


@pytest.mark.parametrize("call", [1, 2], ids=["on_the_way_up", "on_the_way_down"])
def test_model_is_left_as_it_was_when_a_layer_fails(call):
    """A layer may be called once more on the way down, with its ReLU out of the way: then, too, it comes back."""
    class Fragile(kl.DepthwiseConv2D):
        calls_left = np.inf

        def call(self, x):
            self.calls_left -= 1
            if not self.calls_left:
                raise RuntimeError("gave up")
            return super().call(x)

    inputs, fragile = keras.Input((18, 16, 3)), Fragile(3, activation="relu")
    model = shake(keras.Model(inputs, kl.Conv2D(4, 3, name="top")(fragile(inputs))))
    x = noise(1, 18, 16, 3)
    before, expected = state(model), utils.deconvnet(model, x, "top", [0])
    fragile.calls_left = call
    with contextlib.suppress(RuntimeError):  # no second call, no error: that is well, too
        utils.deconvnet(model, x, "top", [0])
    fragile.calls_left = np.inf
    assert state(model) == before
    assert error(utils.deconvnet(model, x, "top", [0]), expected) < 1e-5
