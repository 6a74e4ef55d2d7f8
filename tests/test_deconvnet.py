"""`deconvnet` of the DeconvNet scripts against a second one, written from Zeiler and Fergus, section 2.1.

The second one (`Reference`) keeps every layer's way down while it goes up: transposed kernels in plain TensorFlow,
switches in NumPy, all in float64 and never cut. It shares no line with the scripts. What it knows no rule for is
compared with TensorFlow's own derivative. Then the helpers that choose kernels, cut patches and lay them out."""

import functools
import itertools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl

import utils
from deconvnet_vgg import deconvnet, different, mosaic, patches, strongest

MODES = ("max", "all")
WAYS = list(itertools.product(MODES, ("deconvnet", "guided", "gradient")))


def error(found, expected):
    """The largest difference, as a share of the largest expected value, which must not be zero."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape and np.abs(expected).max() > 0
    return np.abs(found - expected).max() / np.abs(expected).max()


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def shake(model):
    """Random weights, that keep signals alive: Keras's biases of 0 and variances of 1 would hide mistakes."""
    rng = np.random.default_rng(2)
    for variable in model.weights:
        values = (
            rng.standard_normal(variable.shape, np.float32)
            * (2 / math.prod(variable.shape[:-1] or [8])) ** 0.5
        )
        variable.assign(
            {"moving_variance": abs(values) + 0.5, "bias": abs(values) * 0.2}.get(
                variable.name, values
            )
        )
    return model


# --- the second implementation: of each operation what it gives, and its way down, of signals (N, ...) ---------------


def windows_of(x, size, stride, padding, fill):
    """All windows of a pool over (H, W, C): (h, w, C, positions) in row order; and the padding above, on the left."""
    pads = [(0, 0), (0, 0)]
    if padding == "same":
        need = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(x.shape, size, stride)]
        pads = [(n // 2, n - n // 2) for n in need]
    x = np.pad(x, [*pads, (0, 0)], constant_values=fill)
    windows = np.lib.stride_tricks.sliding_window_view(x, size, axis=(0, 1))[
        :: stride[0], :: stride[1]
    ]
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
            np.add.at(
                one, (rows, columns, channels), part
            )  # overlapping windows may share a maximum: add
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
            below[:, max(y, 0) : y + height, max(z, 0) : z + width] += share[
                :, i : i + 1, j : j + 1
            ]
        return [below]

    return np.nanmean(windows, -1)[None], down


def convolution(layer, x):
    if layer.groups > 1 or max(layer.dilation_rate) > 1:
        return matrix(layer, x)
    kernel, how = (
        layer.kernel.numpy().astype(np.float64),
        {"strides": layer.strides, "padding": layer.padding.upper()},
    )
    return (
        tf.nn.conv2d(x, kernel, **how) + (layer.bias.numpy() if layer.use_bias else 0.0),
        lambda s: [tf.nn.conv2d_transpose(s, kernel, (len(s), *x.shape[1:]), **how)],
    )


def matrix(layer, x):
    """Any other linear layer: what it makes of each pixel are the rows of its matrix, which goes down transposed."""
    activation = getattr(layer, "activation", None)
    if activation:
        layer.activation = keras.activations.linear
    bias = layer(np.zeros_like(x, np.float32)).numpy().astype(np.float64)
    rows = (
        layer(np.eye(x.size, dtype=np.float32).reshape(-1, *x.shape[1:])).numpy() - bias
    ).reshape(x.size, -1)
    if activation:
        layer.activation = activation
    return (x.reshape(1, -1) @ rows).reshape(bias.shape) + bias, lambda s: [
        (s.reshape(len(s), -1) @ rows.T).reshape(-1, *x.shape[1:])
    ]


def batch_norm(layer, x):
    scale = (layer.gamma.numpy() if layer.scale else 1) / np.sqrt(
        np.float64(layer.moving_variance) + layer.epsilon
    )
    shift = layer.beta.numpy() if layer.center else 0
    return (x - layer.moving_mean.numpy()) * scale + shift, lambda s: [s * scale]


def concatenate(_, *values):
    ends = np.cumsum([value.shape[-1] for value in values])[:-1]
    return np.concatenate(values, -1), lambda s: np.split(s, ends, -1)


OPERATIONS = {
    "Conv2D": convolution,
    "BatchNormalization": batch_norm,
    "MaxPooling2D": max_pool,
    "AveragePooling2D": average_pool,
    "Concatenate": concatenate,
    "Add": lambda _, *values: (sum(values), lambda s: [s] * len(values)),
    "Split": lambda _, x: (np.split(x, 2, -1), lambda *s: [np.concatenate(s, -1)]),  # in two halves
    **dict.fromkeys(["ReLU", "Relu", "Relu6", "Activation"], lambda _, x: (x, lambda s: [s])),
}  # see activate
RECTIFY = {  # of a signal, and of where the ReLU let the forward pass through
    "deconvnet": lambda s, active: np.maximum(s, 0),
    "guided": lambda s, active: np.maximum(s, 0) * active,
    "gradient": lambda s, active: s * active,
}


def activate(operation, value, keras_value, down):
    """An operation's activation: what it gives, and the way down through it and the operation, (rule, *signals)."""
    kind = type(operation).__name__
    name = (
        kind.lower()
        if kind in ("ReLU", "Relu", "Relu6")
        else getattr(operation, "activation", down).__name__
    )
    if name in ("relu", "relu6"):
        ceiling = 6 if name == "relu6" else getattr(operation, "max_value", None) or np.inf
        active = (keras_value > 0) & (keras_value < ceiling)
        return np.clip(value, 0, ceiling), lambda rule, s: down(RECTIFY[rule](s, active))
    if name == "softplus":  # no ReLU: by every rule its derivative
        return np.logaddexp(0, value), lambda rule, s: down(s / (1 + np.exp(-value)))
    return value, lambda rule, *s: down(*s)


class Reference:
    """Up once through a flat model, every operation beside Keras's own; `project` goes down.
    What a switch or a ReLU decides is decided by Keras's numbers, float32: in float64 a maximum and its runner-up may
    come out the other way round, and send a signal to another pixel.
    """

    def __init__(self, model, x):
        tensors = keras.tree.flatten([operation.output for operation in model.operations])
        values = map(np.float64, keras.Model(model.inputs[0], tensors)(x, training=False))
        self.values, self.input = dict(zip(map(id, tensors), values)), id(model.inputs[0])
        self.ways, self.layers = [], {}
        for operation in model.operations[
            1:
        ]:  # in an order in which each comes after what it reads
            read, written = (
                [id(tensor) for tensor in keras.tree.flatten(tensors)]
                for tensors in (operation.input, operation.output)
            )
            value, down = OPERATIONS.get(type(operation).__name__, matrix)(
                operation, *(self.values[i] for i in read)
            )
            value, down = activate(operation, value, self.values[written[0]], down)
            for i, ours in zip(written, value if len(written) > 1 else [value]):
                np.testing.assert_allclose(
                    ours, self.values[i], rtol=1e-4, atol=1e-5 * np.abs(self.values[i]).max()
                )
            self.ways.append((read, written, down))
            self.layers[operation.name] = written[0]

    def best(self, layer, count=2):
        """The kernels with the strongest responses; a kernel that never responds has nothing to compare."""
        maps = self.values[self.layers[layer]]
        return np.argsort(-maps.reshape(-1, maps.shape[-1]).max(0))[:count].tolist()

    def project(self, layer, kernels, mode, rule):
        """Where a map is kept it is left as it is in a DeconvNet, otherwise one; the rest of the layer is zero."""
        maps = self.values[self.layers[layer]]
        seeds = np.zeros((len(kernels), *maps.shape[1:]))
        for seed, kernel in zip(seeds, kernels):
            first = np.unravel_index(
                maps[0, ..., kernel].argmax(), maps.shape[1:-1]
            )  # of equals the first
            kept = (*first, kernel) if mode == "max" else (..., kernel)
            seed[kept] = maps[0][kept] if rule == "deconvnet" else 1
        signals = {self.layers[layer]: seeds}
        for read, written, down in reversed(self.ways):
            if not signals.keys().isdisjoint(written):
                arriving = [
                    signals.pop(i, np.zeros((len(kernels), *self.values[i].shape[1:])))
                    for i in written
                ]
                for i, signal in zip(read, down(rule, *arriving), strict=True):
                    signals[i] = signals.get(i, 0) + np.asarray(
                        signal
                    )  # branches meet before the next ReLU
        return signals[self.input]


def assert_equal_projections(model, x, reference, layer, kernels, ways=WAYS):
    for mode, rule in ways:
        found = deconvnet(model, x, layer, kernels, mode, rule)
        assert found.dtype == np.float32 and found.shape == (len(kernels), *x.shape[1:])
        expected = reference.project(layer, kernels, mode, rule)
        saturated = (
            mode == "max" and not expected.any()
        )  # where a ReLU6 is no gradient comes through
        assert not found.any() if saturated else error(found, expected) < 1e-5, (layer, mode, rule)


# --- VGG16 and InceptionV3 ------------------------------------------------------------------------------------------


@functools.cache
def own(name, *shape):
    """A script's own network, a picture, and the second implementation on both."""
    model = shake(
        getattr(keras.applications, name)(weights=None, include_top=False, input_shape=shape)
    )
    return model, noise(1, *shape), Reference(model, noise(1, *shape))


@pytest.mark.parametrize(
    "layer",
    ["block1_conv2", "block2_conv1", "block3_conv3", "block5_conv3", "mixed0", "mixed4", "mixed10"],
)
def test_the_scripts_own_networks_equal_the_second_implementation(layer):
    model, x, reference = (
        own("VGG16", 64, 72, 3) if "block" in layer else own("InceptionV3", 107, 139, 3)
    )
    assert_equal_projections(model, x, reference, layer, reference.best(layer)[::-1])


# --- small networks, every kind of layer ----------------------------------------------------------------------------


def chain():
    """Batch normalisation with and without gamma and beta; all sorts of max pools, ReLUs and strides."""
    inputs = keras.Input((25, 22, 3))
    x = kl.BatchNormalization(name="norm1")(
        kl.Conv2D(4, 3, padding="same", use_bias=False, name="conv1")(inputs)
    )
    x = kl.ReLU(name="relu1")(kl.MaxPooling2D(3, 1, padding="same", name="pool1")(x))
    x = kl.BatchNormalization(scale=False, epsilon=0.1, name="norm2")(
        kl.Conv2D(5, 3, strides=2, name="conv2")(x)
    )
    x = kl.MaxPooling2D((2, 3), (1, 2), padding="same", name="pool2")(
        kl.Activation("relu", name="relu2")(x)
    )
    x = kl.Conv2D(6, (4, 3), strides=(2, 1), padding="same", name="conv3")(x)
    x = kl.MaxPooling2D(3, 2, name="pool3")(kl.BatchNormalization(center=False, name="norm3")(x))
    return keras.Model(
        inputs, kl.Conv2D(7, (1, 2), padding="same", activation="relu", name="top")(x)
    )


def branches():
    """Inception and residual: signals of branches and shortcuts meet again before the ReLU, not behind it."""
    inputs = keras.Input((19, 18, 3))
    x = kl.Conv2D(4, 3, strides=2, padding="same", activation="relu", name="conv1")(inputs)
    a = kl.Conv2D(3, 5, padding="same", activation="relu", name="b")(
        kl.Conv2D(2, 1, activation="relu", name="a")(x)
    )
    b = kl.Conv2D(2, 1, activation="relu", name="c")(
        kl.AveragePooling2D(3, 1, padding="same", name="average")(x)
    )
    x = kl.Concatenate(name="mixed1")(
        [x, a, b, kl.MaxPooling2D(3, 1, padding="same", name="pool1")(x)]
    )
    y = kl.Conv2D(13, 3, padding="same", name="conv2")(
        kl.Conv2D(3, 1, activation="relu", name="narrow")(x)
    )
    x = kl.Activation("relu", name="out1")(kl.Add(name="add1")([x, y]))
    x = kl.Concatenate(name="mixed2")(
        [
            kl.Conv2D(4, 3, strides=2, activation="relu", name="e")(x),
            kl.MaxPooling2D(3, 2, name="pool2")(x),
            kl.AveragePooling2D(3, 2, name="f")(x),
        ]
    )
    return keras.Model(
        inputs, kl.Conv2D(3, (1, 3), padding="same", activation="relu", name="top")(x)
    )


def other_layers():
    """Other convolutions; dense layers on top, whose kernels are units, a map one number."""
    inputs = keras.Input((11, 10, 3))
    x = kl.DepthwiseConv2D(
        3, padding="same", depth_multiplier=2, activation="relu", name="depthwise"
    )(inputs)
    x = kl.Conv2D(4, 3, dilation_rate=2, activation="relu", name="dilated")(
        kl.Rescaling(0.5, offset=-0.1)(x)
    )
    x = kl.Conv2D(6, 3, groups=2, activation="relu", name="groups")(x)
    x = kl.SeparableConv2D(4, 3, padding="same", activation="relu", name="separable")(x)
    x = kl.Conv2DTranspose(5, 3, strides=2, activation="relu", name="transposed")(x)
    x = kl.Flatten(name="flatten")(kl.AveragePooling2D(4, 3, padding="same", name="average")(x))
    x = kl.Dropout(0.5, name="dropout")(kl.Dense(7, activation="relu", name="fc1")(x))
    return keras.Model(
        inputs, kl.Dense(4, name="top")(kl.Dense(6, activation="relu", name="fc2")(x))
    )


def other_operations():
    """Several outputs, one of them left aside on the way to `half`; ReLU6, as its function and as a layer; no ReLU."""
    inputs = keras.Input((12, 11, 3))
    a, b = keras.ops.split(kl.Conv2D(6, 3, name="conv1")(kl.Rescaling(3.0)(inputs)), 2, axis=-1)
    x = kl.Conv2D(4, 3, activation="softplus", name="half")(kl.Activation("relu6", name="six")(a))
    y = kl.Conv2D(4, 3, activation="relu", name="other")(kl.ReLU(6, name="six_too")(b))
    x = kl.Activation(tf.nn.relu, name="function")(kl.Concatenate(name="both")([x, y]))
    return keras.Model(inputs, kl.Conv2D(3, 2, name="top")(keras.ops.relu6(x)))


@pytest.mark.parametrize("build", [chain, branches, other_layers, other_operations])
def test_every_layer_of_a_small_network_equals_the_second_implementation(build):
    model = shake(build())
    x = noise(1, *model.input_shape[1:], seed=3)
    reference = Reference(model, x)
    for number, layer in enumerate(
        model.layers[:0:-1]
    ):  # the uppermost one in all ways, the others in two each
        ways = WAYS[number % 3 :: 3 if number else 1]
        assert_equal_projections(
            model, x, reference, layer.name, reference.best(layer.name, 3), ways
        )


@pytest.mark.parametrize("value", [0, 5], ids=["all_zero", "all_five"])
@pytest.mark.parametrize(
    "size, stride, padding, side, first",
    [
        (2, 2, "valid", 4, [0, 2]),
        (3, 2, "valid", 5, [0, 2]),
        (3, 2, "same", 4, [0, 2]),
        (3, 2, "same", 5, [0, 1, 3]),
        (3, 1, "same", 3, [0, 0, 1]),
    ],
    ids=str,
)
def test_of_equal_values_the_first_in_row_order_is_the_strongest(
    size, stride, padding, side, first, value
):
    """After a ReLU most ties are windows full of zeros: the signal still has to go somewhere, and to one place only."""
    model = keras.Sequential(
        [
            keras.Input((side, side, 3)),
            kl.Conv2D(1, 1, activation="relu", name="low"),
            kl.MaxPooling2D(size, stride, padding=padding),
            kl.Conv2D(1, 1, name="high"),
        ]
    )
    # A picture of ones gives value everywhere; `high` answers 1 everywhere and sends 2 down.
    model.get_layer("low").set_weights([np.float32([[[[1], [2], [-3]]]]), np.float32([value])])
    model.get_layer("high").set_weights([np.float32([[[[2]]]]), np.float32([1 - 2 * value])])
    x, everywhere, one = np.ones((1, side, side, 3), np.float32), *np.zeros((2, side, side, 3))
    one[0, 0] = [2, 4, -6]
    for row, column in itertools.product(first, first):
        everywhere[row, column] += one[0, 0]
    np.testing.assert_array_equal(deconvnet(model, x, "high", [0], "all")[0], everywhere)
    np.testing.assert_array_equal(deconvnet(model, x, "high", [0], "max")[0], one)


@pytest.mark.parametrize("row, column", [*itertools.product((0, 25, 59), (0, 31, 71))])
def test_the_strongest_position_alone_equals_the_whole_photograph_brought_back(row, column):
    """Where only a rectangle is followed down, kernels of even and uneven sides and the borders count."""
    inputs = keras.Input((60, 72, 3))
    x = kl.MaxPooling2D()(kl.Conv2D(4, 3, padding="same", activation="relu")(inputs))
    x = kl.Conv2D(4, (1, 5), padding="same", activation="relu")(kl.Conv2D(4, 4, padding="same")(x))
    model = keras.Model(
        inputs, kl.Conv2D(4, 2, padding="same", activation="relu", name="top")(kl.MaxPooling2D()(x))
    )
    for weight in shake(
        model
    ).weights:  # positive weights: the bright pixel excites every kernel above it
        weight.assign(abs(weight))
    x = np.abs(noise(1, 60, 72, 3)) / 100
    x[0, row, column] = 40
    reference = Reference(model, x)
    lit = reference.project("top", [2], "max", "gradient")[0].any(-1)
    assert lit[row, column] and lit.mean() < 0.3
    assert_equal_projections(
        model, x, reference, "top", [2, 0], [("max", "deconvnet"), ("max", "guided")]
    )


def test_kernels_may_be_asked_for_in_any_order_more_than_nine_near_and_far_twice_and_silent():
    inputs = keras.Input((40, 44, 3))
    x = kl.MaxPooling2D()(kl.Conv2D(11, 5, padding="same", activation="relu", name="near")(inputs))
    model = shake(keras.Model(inputs, kl.Conv2D(11, (17, 16), activation="relu", name="far")(x)))
    for layer in ("near", "far"):
        model.get_layer(layer).bias.assign(0.1 - 1e6 * (np.arange(11) == 4))  # kernel 4 is silent
        kernels = np.array([10, 3, 3, *range(9)])  # as np.argsort gives them
        found = deconvnet(model, noise(1, 40, 44, 3), layer, kernels)  # mode max, rule deconvnet
        expected = Reference(model, noise(1, 40, 44, 3)).project(
            layer, kernels.tolist(), "max", "deconvnet"
        )
        assert len(found) == 12 and 6 <= sum(map(np.any, expected)) <= 11
        for picture, other in zip(found, expected):
            assert error(picture, other) < 1e-5 if other.any() else not picture.any()


# --- beyond ReLUs, networks inside networks, errors -----------------------------------------------------------------


def gated():
    """What a DeconvNet has no rule for has a derivative all the same, that of a network that is not being trained."""
    inputs = keras.Input((13, 12, 3))
    x = kl.GaussianNoise(0.9)(kl.RandomTranslation(0.4, 0.4)(kl.RandomFlip()(inputs / 2 - 0.5)))
    x = kl.Conv2D(4, 3, padding="same", activation="swish")(kl.ZeroPadding2D(((3, 2), (1, 4)))(x))
    gate = kl.Dense(4, activation="sigmoid")(
        kl.Dense(3, activation="relu")(kl.GlobalAveragePooling2D()(x))
    )
    x = kl.LayerNormalization()(kl.Multiply()([x, kl.Reshape((1, 1, 4))(gate)]))
    x = kl.LeakyReLU()(kl.Conv2DTranspose(4, 3, strides=2)(kl.Cropping2D(2)(kl.UpSampling2D()(x))))
    x = kl.Conv2D(4, 3, activation=kl.ReLU(negative_slope=0.2, threshold=0.1))(kl.PReLU()(x))
    return keras.Model(inputs, kl.Conv2D(5, 3, activation="gelu", name="top")(kl.MaxPooling2D()(x)))


@pytest.mark.parametrize("build", [chain, branches, other_layers, other_operations, gated])
@pytest.mark.parametrize("mode", MODES)
def test_the_rule_gradient_equals_gradient_tape(build, mode):
    model = shake(build())
    pixels = tf.Variable(noise(1, *model.input_shape[1:], seed=3))
    with tf.GradientTape(persistent=True) as tape:
        maps = model(pixels, training=False)
        kept = [
            (tf.reduce_max if mode == "max" else tf.reduce_sum)(maps[..., kernel])
            for kernel in (2, 0)
        ]
    expected = np.concatenate([tape.gradient(value, pixels) for value in kept])
    assert error(deconvnet(model, pixels.numpy(), "top", [2, 0], mode, "gradient"), expected) < 1e-5


def test_one_tensor_may_be_both_inputs_of_an_operation():
    inputs = keras.Input((4, 5, 3))
    x, half = noise(1, 4, 5, 3), kl.Rescaling(0.5)(inputs)
    found = deconvnet(
        keras.Model(inputs, kl.Multiply(name="top")([half, half])), x, "top", [1], "all", "gradient"
    )
    np.testing.assert_allclose(found, 0.5 * x * [0, 1, 0], rtol=1e-6)


def test_networks_inside_networks_are_laid_open():
    inner = keras.Sequential(
        [keras.Input((9, 8, 4)), kl.Conv2D(5, 3, activation="relu", name="conv")], name="inner"
    )
    inputs = keras.Input((18, 16, 3))
    x = inner(
        kl.MaxPooling2D()(kl.Conv2D(4, 3, padding="same", activation="relu", name="conv")(inputs))
    )
    opened = utils.open_network(shake(keras.Model(inputs, kl.Dense(3, "softmax")(kl.Flatten()(x)))))
    reference, inside = Reference(opened, noise(1, 18, 16, 3)), f"inner{utils.SLASH}conv"
    np.testing.assert_array_equal(opened.get_layer(inside).kernel, inner.get_layer("conv").kernel)
    found = deconvnet(opened, noise(1, 18, 16, 3), "inner/conv", reference.best(inside), "all")
    assert (
        error(found, reference.project(inside, reference.best(inside), "all", "deconvnet")) < 1e-5
    )


@pytest.mark.parametrize(
    "layer, kernels, more, word",
    [
        ("nowhere", [0], [], "nowhere"),
        ("top", [7], [], "7"),
        ("top", [0, -1], [], "-1"),
        ("top", [0], ["maximum"], "maximum"),
        ("top", [0], ["all", "backprop"], "backprop"),
    ],
    ids=str,
)
def test_what_is_unknown_is_a_value_error_that_names_it(layer, kernels, more, word):
    with pytest.raises(ValueError, match=word):
        deconvnet(chain(), noise(1, 25, 22, 3), layer, kernels, *more)


def test_what_would_come_out_wrong_is_refused():
    relu, inputs = keras.layers.ReLU(), keras.Input((9, 9, 3))
    x = relu(keras.layers.Conv2D(4, 3)(inputs))
    model = keras.Model(
        inputs, keras.layers.Conv2D(2, 3, name="last")(relu(keras.layers.Conv2D(4, 3)(x)))
    )
    with pytest.raises(ValueError, match="more than once"):
        deconvnet(model, noise(1, 9, 9, 3), "last", [0])
    with pytest.raises(ValueError, match="one x"):
        deconvnet(chain(), noise(2, 25, 22, 3), "top", [0])


def test_a_copied_layer_leaves_no_trace():
    inputs = keras.Input((9, 9, 3))
    flat = keras.layers.Flatten()
    dense = keras.layers.Dense(5, activation="relu", name="dense")(
        flat(keras.layers.Conv2D(4, 3)(inputs))
    )
    model = keras.Model(inputs, dense)
    deconvnet(model, noise(1, 9, 9, 3), "dense", [0, 1])
    assert len(flat._outbound_nodes) == 1


@pytest.mark.parametrize("build", [other_layers, other_operations, gated])
def test_the_network_is_left_as_it_was(build):
    def state():
        return [
            model.to_json(),
            *(a.tobytes() for a in (*model.get_weights(), np.array(model(x, training=False)))),
        ]

    model = shake(build())
    x = noise(1, *model.input_shape[1:])
    before = state()
    for mode, rule in WAYS:
        deconvnet(model, x, "top", [0, 1], mode, rule)
    assert state() == before


# --- which kernels, which part of a picture, laid out how -----------------------------------------------------------


def test_strongest_are_those_asked_for_or_those_with_the_largest_value_anywhere():
    maps = np.zeros((4, 3, 5))
    maps[0, 2] = [1, 5, 0, 9, 5]
    maps[2] -= [0, 0, 0, 20, 0]
    assert strongest(maps, 4) == [3, 1, 4, 0] and strongest(maps, [2, 0]) == [2, 0]


def test_different_kernels_are_the_strongest_whose_maps_correlate_little():
    basis = np.linalg.qr(np.c_[np.ones(30), noise(30, 3)])[0].T[
        1:
    ]  # without mean, of length one, uncorrelated
    mixed = [
        c * basis[0] + (1 - c * c) ** 0.5 * basis[1] for c in (0.82, 0.78)
    ]  # correlate so much with the first
    u, v, w, *mixed = (vector / vector.max() for vector in (*basis, *mixed))
    maps = [
        4 * w,
        9 * u,
        np.full(30, 99),
        7 * mixed[0],
        6 * mixed[1],
        3 * v,
        np.zeros(30),
        8 * u + 0.5,
    ]
    maps = np.stack(maps, -1).reshape(5, 6, 8)
    assert different(maps, 4) == [
        1,
        4,
        0,
        5,
    ]  # not 3, which correlates 0.82 with 1; 5 correlates 0.63 with 4
    assert different(maps) == [
        1,
        4,
        0,
        5,
        7,
        3,
    ]  # filled up with the strongest of the rest; never the constant ones


@pytest.mark.parametrize(
    "boxes",
    [
        [(0, 0, 4, 5), (30, 33, 40, 44), (20, 20, 21, 21)],
        [(0, 39, 3, 44), (37, 0, 40, 9), (5, 5, 12, 6)],
    ],
    ids=str,
)
def test_patches_are_of_one_size_inside_the_photograph_around_what_is_not_zero(boxes):
    projections = np.zeros((4, 40, 44, 3))  # the last one is silent
    for one, (top, left, bottom, right) in zip(projections, boxes):
        one[top, left, 0] = one[bottom - 1, right - 1, 2] = -1
    side = max(box[axis + 2] - box[axis] for box in boxes for axis in (0, 1))
    for one, cut in zip(projections, patches(projections), strict=True):
        assert (
            one[cut].shape == (side, side, 3) and one[cut].sum() == one.sum()
        )  # nothing is left outside


def test_a_receptive_field_that_is_most_of_the_photograph_is_no_patch():
    projections = np.zeros((2, 20, 21, 1))
    projections[1, 3:13] = 1
    projections[1, :, 11:] = 0
    assert patches(projections)[1] == (slice(2, 13), slice(0, 11))  # 121 of 420 pixels
    projections[1, 3:13] = [[0], *[[1]] * 20]  # as wide as 20 by 20
    assert patches(projections) is None


@pytest.mark.parametrize("count, columns", [(9, 3), (7, 3), (2, 3), (4, 4)])
def test_a_mosaic_is_regular_and_whole(count, columns):
    page, rows = (
        mosaic([np.full((5, 8, 3), 10 * n, np.uint8) for n in range(count)], columns),
        -(-count // columns),
    )
    cells = page.reshape(
        rows, page.shape[0] // rows, columns, page.shape[1] // columns, 3
    ).swapaxes(1, 2)
    for place, cell in enumerate(cells.reshape(-1, *cells.shape[2:])):
        picture = (cell == 10 * place).all(-1) if place < count else np.zeros(cell.shape[:2], bool)
        assert picture.sum() == 40 * (place < count) and (cell[~picture] == 255).all()
