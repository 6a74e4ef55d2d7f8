"""`deconvnet` of the DeconvNet scripts against a second one, `helpers.Projector`, and a tape."""

import functools
import itertools

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import Projector, error, noise, shake
from keras import layers as kl

from deconvnet_vgg import deconvnet

MODES = ("max", "all")
WAYS = list(itertools.product(MODES, ("deconvnet", "guided", "gradient")))


def assert_equal_projections(model, x, projector, layer, kernels, ways=WAYS):
    for mode, rule in ways:
        found = deconvnet(model, x, layer, kernels, mode, rule)
        expected = projector.project(layer, kernels, mode, rule)
        assert found.dtype == np.float32
        if mode == "max" and not expected.any():  # of a ReLU6 that is cut off comes no gradient
            assert not found.any()
        else:
            assert error(found, expected) < 1e-5, (layer, mode, rule)


OWN = [
    ("VGG16", (64, 72, 3), ["block3_conv3", "block5_conv3"]),
    ("InceptionV3", (107, 139, 3), ["mixed0", "mixed10"]),
]


@pytest.mark.parametrize("name, shape, layers", OWN, ids=["VGG16", "InceptionV3"])
def test_the_scripts_own_networks(name, shape, layers):
    build = getattr(keras.applications, name)
    model = shake(build(weights=None, include_top=False, input_shape=shape))
    x = noise(1, *shape)
    projector = Projector(model, x)
    for number, layer in enumerate(layers):
        best = projector.best(layer)[::-1]
        assert_equal_projections(model, x, projector, layer, best, WAYS[number::2])


def chain():
    """Batch normalisation with and without gamma and beta; max pools, ReLUs and strides."""
    inputs = keras.Input((25, 22, 3))
    x = kl.Conv2D(4, 3, padding="same", use_bias=False, name="conv1")(inputs)
    x = kl.MaxPooling2D(3, 1, padding="same", name="pool1")(kl.BatchNormalization(name="norm1")(x))
    x = kl.Conv2D(5, 3, strides=2, name="conv2")(kl.ReLU(name="relu1")(x))
    x = kl.BatchNormalization(scale=False, epsilon=0.1, name="norm2")(x)
    x = kl.Activation("relu", name="relu2")(x)
    x = kl.MaxPooling2D((2, 3), (1, 2), padding="same", name="pool2")(x)
    x = kl.Conv2D(6, (4, 3), strides=(2, 1), padding="same", name="conv3")(x)
    x = kl.MaxPooling2D(3, 2, name="pool3")(kl.BatchNormalization(center=False, name="norm3")(x))
    top = kl.Conv2D(7, (1, 2), padding="same", activation="relu", name="top")
    return keras.Model(inputs, top(x))


def branches():
    """Inception and residual: signals meet again before the ReLU, not behind it."""
    conv = functools.partial(kl.Conv2D, padding="same", activation="relu")
    inputs = keras.Input((19, 18, 3))
    x = conv(4, 3, strides=2, name="conv1")(inputs)
    a = conv(3, 5, name="b")(conv(2, 1, name="a")(x))
    b = conv(2, 1, name="c")(kl.AveragePooling2D(3, 1, padding="same", name="average")(x))
    c = kl.MaxPooling2D(3, 1, padding="same", name="pool1")(x)
    x = kl.Concatenate(name="mixed1")([x, a, b, c])
    y = kl.Conv2D(13, 3, padding="same", name="conv2")(conv(3, 1, name="narrow")(x))
    x = kl.Activation("relu", name="out1")(kl.Add(name="add1")([x, y]))
    a = kl.Conv2D(4, 3, strides=2, activation="relu", name="d")(x)
    b = kl.MaxPooling2D(3, 2, name="pool2")(x)
    x = kl.Concatenate(name="mixed2")([a, b, kl.AveragePooling2D(3, 2, name="e")(x)])
    return keras.Model(inputs, conv(3, (1, 3), name="top")(x))


def other_layers():
    """Other convolutions; dense layers on top, whose kernels are units, a map one number."""
    inputs = keras.Input((9, 8, 3))
    depthwise = {"padding": "same", "depth_multiplier": 2, "activation": "relu"}
    x = kl.DepthwiseConv2D(3, **depthwise, name="depthwise")(inputs)
    x = kl.Rescaling(0.5, offset=-0.1)(x)
    x = kl.Conv2D(4, 3, dilation_rate=2, activation="relu", name="dilated")(x)
    x = kl.Conv2D(6, 3, groups=2, activation="relu", name="groups")(x)
    x = kl.SeparableConv2D(4, 3, padding="same", activation="relu", name="separable")(x)
    x = kl.Conv2DTranspose(5, 3, strides=2, activation="relu", name="transposed")(x)
    x = kl.Flatten(name="flatten")(kl.AveragePooling2D(4, 3, padding="same", name="average")(x))
    x = kl.Dropout(0.5, name="dropout")(kl.Dense(7, activation="relu", name="fc1")(x))
    return keras.Model(inputs, kl.Dense(4, name="top")(x))


def other_operations():
    """Several outputs, one of them left aside on the way to `half`; ReLU6, twice; no ReLU."""
    inputs = keras.Input((12, 11, 3))
    x = kl.Conv2D(6, 3, name="conv1")(kl.Rescaling(3.0)(inputs))
    a, b = keras.ops.split(x, 2, axis=-1)
    x = kl.Conv2D(4, 3, activation="softplus", name="half")(kl.Activation("relu6", name="six")(a))
    y = kl.Conv2D(4, 3, activation="relu", name="other")(kl.ReLU(6, name="six_too")(b))
    x = kl.Activation(tf.nn.relu, name="function")(kl.Concatenate(name="both")([x, y]))
    return keras.Model(inputs, kl.Conv2D(3, 2, name="top")(keras.ops.relu6(x)))


def normalised():
    """A number without a batch axis on the way."""
    inputs = keras.Input((12, 10, 3))
    x = kl.Conv2D(4, 3, activation="relu", name="conv")(inputs)
    return keras.Model(inputs, kl.Conv2D(5, 3, name="top")(x / keras.ops.max(x)))


def gated():
    """What a DeconvNet has no rule for has a derivative, that of a network not being trained."""
    inputs = keras.Input((13, 12, 3))
    x = kl.RandomTranslation(0.4, 0.4)(kl.RandomFlip()(inputs / 2 - 0.5))
    x = kl.ZeroPadding2D(((3, 2), (1, 4)))(kl.SpatialDropout2D(0.5)(kl.GaussianNoise(0.9)(x)))
    x = kl.Conv2D(4, 3, padding="same", activation="swish")(x)
    gate = kl.Dense(3, activation="relu")(kl.GlobalAveragePooling2D()(x))
    gate = kl.Reshape((1, 1, 4))(kl.Dense(4, activation="sigmoid")(gate))
    x = kl.LayerNormalization()(kl.Multiply()([x, gate]))
    x = kl.Multiply()([x, x])  # one tensor, twice
    x = kl.Conv2DTranspose(4, 3, strides=2)(kl.Cropping2D(2)(kl.UpSampling2D()(x)))
    x = kl.PReLU()(kl.LeakyReLU()(x))
    x = kl.Conv2D(4, 3, activation=kl.ReLU(negative_slope=0.2, threshold=0.1))(x)
    return keras.Model(inputs, kl.Conv2D(5, 3, activation="gelu", name="top")(kl.MaxPooling2D()(x)))


@pytest.mark.parametrize("build", [chain, branches, other_layers, other_operations])
def test_every_layer_of_a_small_network(build):
    model = shake(build())
    x = noise(1, *model.input_shape[1:], seed=3)
    projector = Projector(model, x)
    for number, layer in enumerate(model.layers[:0:-1]):  # the uppermost one in all ways
        ways = WAYS[number % 6 :: 6] if number else WAYS
        best = projector.best(layer.name, 3)
        assert_equal_projections(model, x, projector, layer.name, best, ways)


@pytest.mark.parametrize(
    "build", [chain, branches, other_layers, other_operations, gated, normalised]
)
@pytest.mark.parametrize("mode", MODES)
def test_the_rule_gradient_equals_gradient_tape(build, mode):
    model = shake(build())
    pixels = tf.Variable(noise(1, *model.input_shape[1:], seed=3))
    best = Projector(model, pixels).best("top")
    reduce = tf.reduce_max if mode == "max" else tf.reduce_sum
    with tf.GradientTape(persistent=True) as tape:
        maps = model(pixels, training=False)
        kept = [reduce(maps[..., kernel]) for kernel in best]
    expected = np.concatenate([tape.gradient(value, pixels) for value in kept])
    found = deconvnet(model, pixels.numpy(), "top", best, mode, "gradient")
    assert error(found, expected) < 1e-5


TIES = [  # a pool, the side of a picture, which row or column each window chooses
    (3, 2, "valid", 5, [0, 2]),
    (3, 2, "same", 4, [0, 2]),
    (3, 2, "same", 5, [0, 1, 3]),
    (3, 1, "same", 3, [0, 0, 1]),
]


@pytest.mark.parametrize("value", [0, 5])
@pytest.mark.parametrize("size, stride, padding, side, first", TIES, ids=str)
def test_of_equal_values_the_first_is_the_strongest(size, stride, padding, side, first, value):
    """After a ReLU most ties are windows of zeros: the signal goes somewhere, to one place only."""
    low = kl.Conv2D(1, 1, activation="relu")
    pool = kl.MaxPooling2D(size, stride, padding=padding)
    high = kl.Conv2D(1, 1, name="high")
    model = keras.Sequential([keras.Input((side, side, 3)), low, pool, high])
    # A picture of ones gives value everywhere; `high` answers 1 everywhere and sends 2 down.
    low.set_weights([np.float32([[[[1], [2], [-3]]]]), np.float32([value])])
    high.set_weights([np.float32([[[[2]]]]), np.float32([1 - 2 * value])])
    x = np.ones((1, side, side, 3), np.float32)
    everywhere, one = np.zeros((2, side, side, 3))
    one[0, 0] = [2, 4, -6]
    for row, column in itertools.product(first, first):
        everywhere[row, column] += one[0, 0]
    np.testing.assert_array_equal(deconvnet(model, x, "high", [0], "all")[0], everywhere)
    np.testing.assert_array_equal(deconvnet(model, x, "high", [0], "max")[0], one)


@pytest.mark.parametrize("row, column", itertools.product((0, 25, 59), (0, 31, 71)))
def test_the_strongest_position_anywhere(row, column):
    """Where only a rectangle is followed down, even and uneven kernels and the borders count."""
    inputs = keras.Input((60, 72, 3))
    x = kl.MaxPooling2D()(kl.Conv2D(4, 3, padding="same", activation="relu")(inputs))
    x = kl.Conv2D(4, 4, padding="same")(x)
    x = kl.MaxPooling2D()(kl.Conv2D(4, (1, 5), padding="same", activation="relu")(x))
    x = kl.Conv2D(4, 2, padding="same", activation="relu", name="top")(x)
    model = shake(keras.Model(inputs, x))
    for weight in model.weights:  # positive ones: a bright pixel excites every kernel above it
        weight.assign(abs(weight))
    x = np.abs(noise(1, 60, 72, 3)) / 100
    x[0, row, column] = 40
    projector = Projector(model, x)
    lit = projector.project("top", [2], "max", "gradient")[0].any(-1)
    assert lit[row, column]
    assert lit.mean() < 0.3
    assert_equal_projections(model, x, projector, "top", [2, 0], WAYS[:2])


def test_kernels_in_any_order_more_than_nine_near_and_far_twice_and_silent():
    inputs = keras.Input((40, 44, 3))
    x = kl.MaxPooling2D()(kl.Conv2D(11, 5, padding="same", activation="relu", name="near")(inputs))
    model = shake(keras.Model(inputs, kl.Conv2D(11, (17, 16), activation="relu", name="far")(x)))
    x = noise(1, 40, 44, 3)
    kernels = np.array([10, 3, 3, *range(9)])  # as np.argsort gives them
    for layer in ("near", "far"):
        model.get_layer(layer).bias.assign(0.1 - 1e6 * (np.arange(11) == 4))  # kernel 4 is silent
        found = deconvnet(model, x, layer, kernels)  # mode max, rule deconvnet
        expected = Projector(model, x).project(layer, kernels.tolist(), "max", "deconvnet")
        assert error(found, expected) < 1e-5
        assert not found[7].any()


@pytest.mark.parametrize("build", [other_layers, other_operations, gated])
def test_the_network_is_left_as_it_was_and_gains_no_nodes(build):
    model = shake(build())
    x = noise(1, *model.input_shape[1:])
    before = helpers.state(model)
    output = model(x, training=False)
    for mode, rule in WAYS:
        deconvnet(model, x, "top", [0, 1], mode, rule)
        assert helpers.state(model) == before
    np.testing.assert_array_equal(model(x, training=False), output)


REFUSED = [  # layer, kernels, further arguments, how many pictures; a word of the message
    ("nowhere", [0], [], 1, "nowhere"),
    ("top", [7], [], 1, "7"),
    ("top", [0, -1, "1"], [], 1, "-1, .1."),
    ("top", [], [], 1, "kernel"),
    ("top", [0], ["maximum"], 1, "maximum"),
    ("top", [0], ["all", "backprop"], 1, "backprop"),
    ("top", [0], [], 2, "one"),
]


@pytest.mark.parametrize("layer, kernels, more, count, word", REFUSED, ids=str)
def test_what_is_unknown_or_empty_is_a_value_error(layer, kernels, more, count, word):
    with pytest.raises(ValueError, match=word):
        deconvnet(chain(), noise(count, 25, 22, 3), layer, kernels, *more)
