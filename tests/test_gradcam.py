"""Grad-CAM and guided backpropagation of utils.py against a second computation, written from the papers.

Nothing here asks utils what is right: the expected numbers come from a piece of paper, from differences in NumPy, or
from plain TensorFlow operations in float64.  Papers: Selvaraju et al. 2016, equations 1 and 2; Springenberg et al. 2014,
figure 1.
"""

import contextlib
import gc
from typing import Callable, NamedTuple

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


def shake(model, seed=0):
    """Random weights everywhere: Keras begins with biases of 0 and moving variances of 1, which hide mistakes."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        values = rng.normal(scale=0.4, size=variable.shape)
        variable.assign(np.abs(values) + 0.5 if "variance" in variable.name else values)
    return model


@pytest.fixture(params=["first_call_eager", "later_call_traced"])
def grad_cam(request):
    """utils.grad_cam as it runs the first time, and as it runs later; in between it has seen another picture."""
    def call(model, x, layers, classes):
        if request.param == "later_call_traced":
            utils.grad_cam(model, np.flip(x) + 1, layers, classes)
        return utils.grad_cam(model, x, layers, classes)
    return call


# --- 1. Grad-CAM by hand and by finite differences ------------------------------------------------------------------

def test_grad_cam_of_a_network_worked_out_on_paper(grad_cam):
    inputs = keras.Input((2, 2, 3))
    maps = kl.Conv2D(2, 1, activation="relu", name="conv")(inputs)
    model = keras.Model(inputs, kl.Dense(2, name="head")(kl.Flatten()(maps)))
    model.get_layer("conv").set_weights([np.float32([[[[1, 0], [0, 1], [0, -1]]]]), np.float32([0, 1])])
    # Flatten puts the channels of a position side by side: rows are (position, channel), columns classes.
    model.get_layer("head").set_weights([np.float32([[1, 0], [2, -8], [3, 0], [0, 0], [0, 0], [0, 0], [0, 4], [2, 0]]),
                                         np.float32([0.5, 0])])
    x = np.float32([[[[1, 2, 0], [-3, 0, 4]], [[2, 0, 1], [5, 1, 0]]]])
    # A1 = relu(r) = [1 0; 2 5],  A2 = relu(g - b + 1) = [3 0; 0 2].
    # Class 0: alpha = ((1+3+0+0)/4, (2+0+0+2)/4) = (1, 1).  Class 1: alpha = ((0+0+0+4)/4, (-8+0+0+0)/4) = (1, -2).
    found, logits = grad_cam(model, x, ["conv"], [0, 1])
    np.testing.assert_array_equal(found["conv"], [[[4, 0], [2, 7]], [[-5, 0], [2, 1]]])
    np.testing.assert_array_equal(logits, [1 * 1 + 2 * 3 + 2 * 2 + 0.5, -8 * 3 + 4 * 5])
    assert found["conv"].dtype == logits.dtype == np.float32


def test_under_global_average_pooling_grad_cam_is_cam(grad_cam):
    """Selvaraju et al., section 3.1: there alpha is the classifier's weight divided by the number of positions."""
    inputs = keras.Input((6, 5, 3))
    maps = kl.Conv2D(4, 3, name="conv")(inputs)
    model = shake(keras.Model(inputs, kl.Dense(3, name="head")(kl.GlobalAveragePooling2D()(maps))))
    x = noise(1, 6, 5, 3)
    values = np.asarray(keras.Model(inputs, maps)(x))[0]
    found = grad_cam(model, x, ["conv"], [0, 1, 2])[0]["conv"]
    expected = np.moveaxis(values @ model.get_layer("head").get_weights()[0] / 12, -1, 0)
    assert error(found, expected) < 1e-5
    assert expected.min() < 0 < expected.max() and found.min() < 0  # signed: what speaks against a class is kept


def numpy_convolution(x, kernel, bias):
    """Cross-correlation with no padding, (h, w, c) -> (h - 2, w - 2, k) for 3x3 kernels."""
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], axis=(0, 1))
    return np.einsum("hwcij,ijck->hwk", windows, kernel) + bias


def numpy_pool(x):
    height, width = x.shape[0] // 2, x.shape[1] // 2
    return x[:2 * height, :2 * width].reshape(height, 2, width, 2, -1).max((1, 3))


@pytest.mark.parametrize("layer", ["conv1", "pool", "conv2"])
def test_grad_cam_against_central_differences(grad_cam, layer):
    # No ReLU before the pool: where a window holds equal zeros, a maximum has no derivative to compare with.
    model = shake(keras.Sequential([
        keras.Input((11, 10, 3)), kl.Conv2D(3, 3, name="conv1"), kl.MaxPooling2D(name="pool"),
        kl.Conv2D(4, 3, activation="relu", name="conv2"), kl.Flatten(), kl.Dense(5, activation="relu"), kl.Dense(3)]))
    weights = [w.astype("float64") for w in model.get_weights()]
    steps = [lambda v: numpy_convolution(v, weights[0], weights[1]), numpy_pool,
             lambda v: np.maximum(numpy_convolution(v, weights[2], weights[3]), 0),
             lambda v: np.maximum(v.ravel() @ weights[4] + weights[5], 0) @ weights[6] + weights[7]]
    x = noise(1, 11, 10, 3, seed=1)

    position = ["conv1", "pool", "conv2"].index(layer) + 1
    maps = x[0].astype("float64")
    for step in steps[:position]:
        maps = step(maps)

    def logits_above(values):
        for step in steps[position:]:
            values = step(values)
        return values

    gradient = np.zeros((3, *maps.shape))
    for place in np.ndindex(maps.shape):
        nudge = np.zeros(maps.shape)
        nudge[place] = 1e-6
        gradient[(slice(None), *place)] = (logits_above(maps + nudge) - logits_above(maps - nudge)) / 2e-6
    expected = np.einsum("ck,hwk->chw", gradient.mean((1, 2)), maps)

    found, logits = grad_cam(model, x, [layer], [0, 1, 2])
    assert expected.min() < 0  # else the test would not see a ReLU that came too early
    assert error(found[layer], expected) < 1e-5
    assert error(logits, logits_above(maps)) < 1e-5


# --- 2. Grad-CAM of the published networks against the textbook -----------------------------------------------------

def textbook(model, x, layer, classes):
    """The recipe that everybody knows: a model with two outputs and an eager tape, for one layer."""
    both = keras.Model(model.inputs[0], [model.get_layer(layer).output, model.output])
    with tf.GradientTape(persistent=True) as tape:
        maps, logits = both(x, training=False)
        scores = [logits[0, index] for index in classes]
    alphas = [tf.reduce_mean(tape.gradient(score, maps), axis=(0, 1, 2)) for score in scores]
    return [tf.reduce_sum(alpha * maps[0], axis=-1).numpy() for alpha in alphas], logits[0].numpy()


PUBLISHED = {"VGG16": ["block1_conv1", "block4_pool", "block5_conv3"],
             "ResNet50": ["conv1_relu", "conv4_block6_2_bn", "conv5_block3_out"]}


@pytest.fixture(scope="module", params=PUBLISHED)
def published(request):
    """A network from keras.applications with random weights, a picture, and what the textbook says of it."""
    keras.utils.set_random_seed(7)
    build = getattr(keras.applications, request.param)
    model = build(weights=None, classifier_activation=None, input_shape=(96, 64, 3))
    x, layers, classes = 50 * noise(1, 96, 64, 3), PUBLISHED[request.param], [3, 998]
    expected = {layer: textbook(model, x, layer, classes) for layer in layers}
    return model, x, layers, classes, expected


def test_published_network_equals_textbook(grad_cam, published):
    model, x, layers, classes, expected = published
    maps, logits = grad_cam(model, x, layers, classes)
    assert list(maps) == layers
    for layer, (cams, textbook_logits) in expected.items():
        assert error(logits, textbook_logits) < 1e-4
        for found, cam in zip(maps[layer], cams, strict=True):
            assert error(found, cam) < 1e-4, layer


# --- 3 and 4. every way to write a network, against plain TensorFlow ------------------------------------------------
# A network is built twice: with Keras, and as a function of its weights in tf.nn, where the ReLU is an argument.

@tf.custom_gradient
def guided_relu(x):
    """Springenberg et al.: the signal goes on where both the forward value and the signal itself are positive."""
    y = tf.nn.relu(x)
    return y, lambda signal: tf.where((y > 0) & (signal > 0), signal, tf.zeros_like(signal))


def conv(x, weights, padding="SAME", stride=1):
    return tf.nn.conv2d(x, weights[0], stride, padding) + weights[1]


def dense(x, weights):
    return x @ weights[0] + weights[1]


def norm(x, weights):
    gamma, beta, mean, variance = weights
    return (x - mean) / tf.sqrt(variance + 1e-3) * gamma + beta  # 1e-3: BatchNormalization's default


def mean(x):
    return tf.reduce_mean(x, (1, 2))


def every_layer(model):
    """All layers, those of the models inside the model included."""
    for layer in model.layers:
        yield layer
        if isinstance(layer, keras.Model):
            yield from every_layer(layer)


def plain_two_convs(w, x, relu):
    first = relu(conv(x, w["conv1"]))
    second = relu(conv(tf.nn.max_pool2d(first, 2, 2, "VALID"), w["conv2"]))
    return [first, second], dense(mean(second), w["head"])


def two_convs(relu):
    """The same two convolutions; `relu` decides how the ReLU behind each of them is written."""
    def build():
        inputs = keras.Input((12, 10, 3))
        x = relu(inputs, kl.Conv2D(5, 3, padding="same", name="conv1"), "relu1")
        x = relu(kl.MaxPooling2D()(x), kl.Conv2D(6, 3, padding="same", name="conv2"), "relu2")
        return keras.Model(inputs, kl.Dense(3, name="head")(kl.GlobalAveragePooling2D()(x)))
    return build


def relu_as_argument(x, layer, _):
    layer.activation = keras.activations.relu
    return layer(x)


def base():
    return keras.Model(*trunk(), name="base")


def trunk():
    inputs = keras.Input((12, 10, 3))
    x = kl.Conv2D(5, 3, padding="same", activation="relu", name="conv1")(inputs)
    x = kl.MaxPooling2D()(x)
    return inputs, kl.Conv2D(6, 3, padding="same", activation="relu", name="conv2")(x)


def sequential():
    return keras.Sequential([
        keras.Input((12, 10, 3)), kl.Conv2D(5, 3, padding="same", activation="relu", name="conv1"), kl.MaxPooling2D(),
        kl.Conv2D(6, 3, padding="same", name="conv2"), kl.ReLU(name="relu2"), kl.GlobalAveragePooling2D(),
        kl.Dense(3, name="head")])


def nested_functional():
    """Fine-tuning as the Keras guide has it: the base is called, as a layer, on a new input."""
    inputs = keras.Input((12, 10, 3))
    x = kl.Dropout(0.5)(kl.GlobalAveragePooling2D()(base()(inputs, training=False)))
    return keras.Model(inputs, kl.Dense(3, name="head")(x))


def nested_by_keyword():
    inputs = keras.Input((12, 10, 3))
    return keras.Model(inputs, kl.Dense(3, name="head")(kl.GlobalAveragePooling2D()(base()(inputs=inputs))))


def nested_in_sequential():
    return keras.Sequential([keras.Input((12, 10, 3)), base(), kl.GlobalAveragePooling2D(), kl.Dense(3, name="head")])


def twice_nested():
    inputs = keras.Input((12, 10, 3))
    middle = keras.Model(inputs, kl.GlobalAveragePooling2D()(base()(inputs)), name="middle")
    outer = keras.Input((12, 10, 3))
    return keras.Model(outer, kl.Dense(3, name="head")(middle(outer)))


def new_head_on_old_layers():
    """Fine-tuning without nesting: the layers of the old network, which still has its own head, get a second one."""
    old = two_convs(relu_as_argument)()
    x = kl.GlobalAveragePooling2D()(old.get_layer("conv2").output)
    return keras.Model(old.input, kl.Dense(3, name="head")(x))


def depthwise():
    inputs = keras.Input((12, 10, 3))
    x = kl.DepthwiseConv2D(3, padding="same", depth_multiplier=2, activation="relu", name="depthwise")(inputs)
    x = kl.SeparableConv2D(7, 3, strides=2, padding="same", activation="relu", name="separable")(x)
    return keras.Model(inputs, kl.Dense(3, name="head")(kl.GlobalAveragePooling2D()(x)))


def plain_depthwise(w, x, relu):
    (kernel, bias), (deep, wide, bias2) = w["depthwise"], w["separable"]
    first = relu(tf.nn.depthwise_conv2d(x, kernel, [1, 1, 1, 1], "SAME") + bias)
    second = relu(conv(tf.nn.depthwise_conv2d(first, deep, [1, 2, 2, 1], "SAME"), (wide, bias2)))
    return [first, second], dense(mean(second), w["head"])


def padding_and_flatten():
    inputs = keras.Input((9, 8, 3))
    x = kl.ZeroPadding2D(((1, 2), (0, 3)))(inputs)
    x = kl.Conv2D(4, 3, strides=2, activation="relu", name="conv1")(x)
    x = kl.Dropout(0.5)(kl.AveragePooling2D(2, name="pool")(x))
    x = kl.Dropout(0.5)(kl.Dense(6, activation="relu", name="fc")(kl.Flatten()(x)))
    return keras.Model(inputs, kl.Dense(3, name="head")(x))


def plain_padding_and_flatten(w, x, relu):
    first = relu(conv(tf.pad(x, [[0, 0], [1, 2], [0, 3], [0, 0]]), w["conv1"], "VALID", 2))
    pooled = tf.nn.avg_pool2d(first, 2, 2, "VALID")
    return [first, pooled], dense(relu(dense(tf.reshape(pooled, (1, -1)), w["fc"])), w["head"])


def augmented():
    """Fine-tuning as the Keras guide has it, from the pixels on: augmentation and dropout belong to training alone."""
    inputs = keras.Input((12, 10, 3))
    x = keras.Sequential([kl.RandomFlip("horizontal_and_vertical"), kl.RandomTranslation(0.3, 0.3)])(inputs)
    x = kl.GaussianNoise(1.0)(kl.RandomZoom(0.4)(kl.Rescaling(1 / 2, offset=-1)(x)))
    x = kl.Conv2D(5, 3, padding="same", activation="relu", name="conv1")(x)
    x = kl.SpatialDropout2D(0.5)(kl.MaxPooling2D()(x))
    x = kl.Conv2D(6, 3, padding="same", activation="relu", name="conv2")(x)
    return keras.Model(inputs, kl.Dense(3, name="head")(kl.Dropout(0.5)(kl.GlobalAveragePooling2D()(x))))


def plain_augmented(w, x, relu):
    return plain_two_convs(w, x / 2 - 1, relu)


def split():
    """One operation with two results, each with a fate of its own."""
    inputs = keras.Input((8, 8, 3))
    x = kl.Conv2D(6, 3, padding="same", activation="relu", name="conv1")(inputs)
    a, b = keras.ops.split(x, 2, axis=-1)
    x = kl.Concatenate(name="both")([b, kl.Conv2D(3, 3, padding="same", activation="relu", name="conv2")(a)])
    return keras.Model(inputs, kl.Dense(3, name="head")(kl.GlobalAveragePooling2D()(x)))


def plain_split(w, x, relu):
    first = relu(conv(x, w["conv1"]))
    a, b = tf.split(first, 2, -1)
    both = tf.concat([b, relu(conv(a, w["conv2"]))], -1)
    return [first, both], dense(mean(both), w["head"])


def squeeze_and_excite():
    inputs = keras.Input((8, 8, 3))
    x = kl.Conv2D(6, 3, padding="same", activation="relu", name="conv1")(inputs)
    gate = kl.GlobalAveragePooling2D(keepdims=True)(x)
    gate = kl.Dense(6, activation="sigmoid", name="up")(kl.Dense(4, activation="relu", name="down")(gate))
    x = kl.Multiply(name="gated")([x, gate])
    return keras.Model(inputs, kl.Dense(3, name="head")(kl.GlobalAveragePooling2D()(x)))


def plain_squeeze_and_excite(w, x, relu):
    first = relu(conv(x, w["conv1"]))
    gated = first * tf.sigmoid(dense(relu(dense(mean(first)[:, None, None], w["down"])), w["up"]))
    return [first, gated], dense(mean(gated), w["head"])


def residual():
    inputs = keras.Input((8, 8, 3))
    x = kl.BatchNormalization(name="norm1")(kl.Conv2D(4, 3, padding="same", name="conv1")(inputs))
    x = kl.ReLU(name="relu1")(x)
    y = kl.BatchNormalization(name="norm2")(kl.Conv2D(4, 3, padding="same", name="conv2")(x))
    x = kl.Activation("relu", name="out")(kl.Add(name="add")([x, y]))
    x = kl.Concatenate(name="both")([x, kl.Conv2D(2, 1, activation="relu", name="side")(x)])
    return keras.Model(inputs, kl.Dense(3, name="head")(kl.GlobalMaxPooling2D()(x)))


def plain_residual(w, x, relu):
    first = relu(norm(conv(x, w["conv1"]), w["norm1"]))
    add = first + norm(conv(first, w["conv2"]), w["norm2"])
    out = relu(add)
    both = tf.concat([out, relu(conv(out, w["side"]))], -1)
    return [first, add, both], dense(tf.reduce_max(both, (1, 2)), w["head"])


class Case(NamedTuple):
    build: Callable
    plain: Callable
    layers: list  # their outputs are what `plain` returns, in this order


CASES = {
    "relu_as_argument": Case(two_convs(relu_as_argument), plain_two_convs, ["conv1", "conv2"]),
    "relu_as_layer": Case(two_convs(lambda x, layer, name: kl.ReLU(name=name)(layer(x))), plain_two_convs,
                          ["relu1", "relu2"]),
    "activation_layer": Case(two_convs(lambda x, layer, name: kl.Activation("relu", name=name)(layer(x))),
                             plain_two_convs, ["relu1", "relu2"]),
    "relu_of_tensorflow": Case(two_convs(lambda x, layer, name: kl.Activation(tf.nn.relu, name=name)(layer(x))),
                               plain_two_convs, ["relu1", "relu2"]),
    "relu_as_function": Case(two_convs(lambda x, layer, name: kl.Identity(name=name)(keras.ops.relu(layer(x)))),
                             plain_two_convs, ["relu1", "relu2"]),
    "sequential": Case(sequential, plain_two_convs, ["conv1", "relu2"]),
    "nested_functional": Case(nested_functional, plain_two_convs, ["conv1", "conv2"]),
    "nested_by_keyword": Case(nested_by_keyword, plain_two_convs, ["conv1", "conv2"]),
    "nested_in_sequential": Case(nested_in_sequential, plain_two_convs, ["conv1", "conv2"]),
    "twice_nested": Case(twice_nested, plain_two_convs, ["conv1", "conv2"]),
    "new_head_on_old_layers": Case(new_head_on_old_layers, plain_two_convs, ["conv1", "conv2"]),
    "depthwise": Case(depthwise, plain_depthwise, ["depthwise", "separable"]),
    "padding_and_flatten": Case(padding_and_flatten, plain_padding_and_flatten, ["conv1", "pool"]),
    "augmented": Case(augmented, plain_augmented, ["conv1", "conv2"]),
    "split": Case(split, plain_split, ["conv1", "both"]),
    "squeeze_and_excite": Case(squeeze_and_excite, plain_squeeze_and_excite, ["conv1", "gated"]),
    "residual": Case(residual, plain_residual, ["relu1", "add", "both"]),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """The Keras model, a picture, the names of layers, and the model as a function (x, relu) of plain TensorFlow."""
    build, plain, layers = CASES[request.param]
    model = shake(build(), seed=3)
    weights = {layer.name: [tf.constant(w, "float64") for w in layer.get_weights()] for layer in every_layer(model)}
    return model, noise(1, *model.input_shape[1:], seed=4), layers, lambda x, relu: plain(weights, x, relu)


def test_every_way_to_write_a_network_grad_cam(grad_cam, case):
    model, x, layers, plain = case
    with tf.GradientTape(persistent=True) as tape:
        values = tf.constant(x, "float64")
        tape.watch(values)
        maps, logits = plain(values, tf.nn.relu)
        scores = tf.unstack(logits[0])
    found, found_logits = grad_cam(model, x, layers, [0, 1, 2])
    assert error(found_logits, logits[0]) < 1e-5
    for layer, map_ in zip(layers, maps, strict=True):
        alphas = [tf.reduce_mean(tape.gradient(score, map_), (0, 1, 2)) for score in scores]
        assert error(found[layer], [tf.reduce_sum(alpha * map_[0], -1) for alpha in alphas]) < 1e-5, layer


def test_every_way_to_write_a_network_guided_backprop(case):
    model, x, _, plain = case
    expected = []
    for index in range(3):
        values = tf.constant(x, "float64")
        with tf.GradientTape() as tape:
            tape.watch(values)
            score = plain(values, guided_relu)[1][0, index]
        expected.append(tape.gradient(score, values)[0])
    found = utils.guided_backprop(model, x, [0, 1, 2])
    assert found.dtype == np.float32
    assert error(found, expected) < 1e-5


def test_guided_backprop_of_a_network_worked_out_on_paper():
    model = keras.Sequential([keras.Input((1, 2, 3)), kl.Conv2D(2, 1, activation="relu"), kl.Flatten(), kl.Dense(2)])
    model.set_weights([np.float32([[[[1, 2], [0, 1], [-1, 0]]]]), np.float32([0, 0]),
                       np.float32([[3, -1], [-2, 4], [5, 1], [1, -6]]), np.float32([0, 0])])
    x = np.float32([[[[4, 1, 1], [1, 1, 2]]]])
    # Left pixel: both kernels respond (3, 9); right pixel: the first does not (-1), the second does (3).
    # Class 0 sends (3, -2) and (5, 1): -2 falls as a signal, 5 as the forward value was negative.
    # Class 1 sends (-1, 4) and (1, -6): only the 4 gets through.
    expected = [[[[3, 0, -3], [2, 1, 0]]], [[[8, 4, 0], [0, 0, 0]]]]
    np.testing.assert_array_equal(utils.guided_backprop(model, x, [0, 1]), expected)


def test_guided_backprop_of_dense_layers_in_numpy():
    model = shake(keras.Sequential([keras.Input((3, 4, 3)), kl.Flatten(), kl.Dense(20, activation="relu"),
                                    kl.Dense(15, activation="relu"), kl.Dense(4)]))
    x = noise(1, 3, 4, 3)
    w1, b1, w2, b2, w3, _ = (w.astype("float64") for w in model.get_weights())
    h1 = x.ravel() @ w1 + b1
    h2 = np.maximum(h1, 0) @ w2 + b2
    signal = w3.T * (w3.T > 0) * (h2 > 0) @ w2.T
    expected = signal * (signal > 0) * (h1 > 0) @ w1.T
    assert error(utils.guided_backprop(model, x, range(4)), expected.reshape(4, 3, 4, 3)) < 1e-5


def test_fine_tuned_vgg16_of_three_classes(grad_cam):
    """The base from keras.applications, called as one layer; the names inside it are the names that a person knows."""
    keras.utils.set_random_seed(0)
    base_ = keras.applications.VGG16(weights=None, include_top=False, input_shape=(48, 48, 3))
    inputs = keras.Input((48, 48, 3))
    head = kl.Dense(3, name="head")
    model = keras.Model(inputs, head(kl.GlobalAveragePooling2D()(base_(inputs, training=False))))
    x, layers = 50 * noise(1, 48, 48, 3), ["block2_conv2", "block5_conv3"]
    # The base's own tensors and the head's weights, put together again without nesting: the textbook can be asked.
    flat = keras.Model(base_.input, head(kl.GlobalAveragePooling2D()(base_.output)))
    found = grad_cam(model, x, layers, [2, 0])[0]
    for layer in layers:
        assert error(found[layer], textbook(flat, x, layer, [2, 0])[0]) < 1e-4


# --- many at once, one after the other ------------------------------------------------------------------------------

def test_all_layers_and_classes_at_once_equal_one_by_one(grad_cam):
    model = shake(residual())
    x, layers, classes = noise(1, 8, 8, 3), ["both", "conv1", "add"], [2, 0, 2]
    maps, _ = grad_cam(model, x, layers, classes)
    assert list(maps) == layers  # in the order asked for
    for layer in layers:
        assert maps[layer].shape == (3, 8, 8)
        for found, index in zip(maps[layer], classes, strict=True):
            assert error(found, grad_cam(model, x, [layer], [index])[0][layer][0]) < 1e-5


def test_guided_backprop_of_several_classes_equals_one_by_one():
    model, x = shake(residual()), noise(1, 8, 8, 3)
    together = utils.guided_backprop(model, x, [2, 0, 2])
    assert error(together, np.concatenate([utils.guided_backprop(model, x, [index]) for index in (2, 0, 2)])) < 1e-5


def test_later_calls_see_new_classes():
    """The number of classes is traced, the classes themselves must not be."""
    model, x = shake(sequential()), noise(1, 12, 10, 3)
    everything = utils.grad_cam(model, x, ["conv1"], [0, 1, 2])[0]["conv1"]
    for pair in ([0, 1], [1, 2], [2, 0]):
        assert error(utils.grad_cam(model, x, ["conv1"], pair)[0]["conv1"], everything[pair]) < 1e-5


def test_later_calls_see_new_weights():
    """A notebook trains on and asks again."""
    model, twin, x = shake(sequential(), seed=1), shake(sequential(), seed=2), noise(1, 12, 10, 3)
    for _ in range(2):
        utils.grad_cam(model, x, ["conv1"], [1])
    model.set_weights(twin.get_weights())
    found, expected = (utils.grad_cam(m, x, ["conv1"], [1])[0]["conv1"] for m in (model, twin))
    assert error(found, expected) < 1e-5


def test_later_calls_see_a_picture_of_another_size():
    """A network without Flatten takes any size."""
    model = shake(keras.Sequential([keras.Input((None, None, 3)), kl.Conv2D(4, 3, activation="relu", name="conv"),
                                    kl.GlobalAveragePooling2D(), kl.Dense(2, name="head")]))
    for side in (8, 8, 11, 6, 11):
        x = noise(1, side, side + 1, 3)
        values = np.asarray(model.get_layer("conv")(x))[0]
        # d logit / d A is the head's weight over the number of positions, the same at each of them.
        expected = values @ model.get_layer("head").get_weights()[0][:, 1] / values[..., 0].size
        assert error(utils.grad_cam(model, x, ["conv"], [1])[0]["conv"][0], expected) < 1e-5


def test_a_new_network_never_gets_the_old_one_s_graph():
    """Networks come and go in a notebook; a later one may be given the address, and the layer names, of a dead one."""
    x = noise(1, 12, 10, 3)
    for seed in range(4):
        model = shake(sequential(), seed)
        values = np.asarray(keras.Model(model.inputs[0], model.get_layer("relu2").output)(x))[0]
        expected = values @ model.get_layer("head").get_weights()[0][:, 1] / 30
        for _ in range(2):
            assert error(utils.grad_cam(model, x, ["relu2"], [1])[0]["relu2"][0], expected) < 1e-5
        del model
        gc.collect()


@pytest.mark.parametrize("kind", [np.array, tuple, lambda numbers: [np.int64(n) for n in numbers]],
                         ids=["array", "tuple", "numpy_integers"])
def test_classes_may_come_from_numpy(kind):
    """np.argsort(logits) is where a notebook has its classes from."""
    model, x = shake(sequential()), noise(1, 12, 10, 3)
    np.testing.assert_allclose(utils.grad_cam(model, x, ["conv1"], kind([2, 1]))[0]["conv1"],
                               utils.grad_cam(model, x, ["conv1"], [2, 1])[0]["conv1"], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(utils.guided_backprop(model, x, kind([2, 1])), utils.guided_backprop(model, x, [2, 1]),
                               rtol=1e-5, atol=1e-7)


# --- 5. errors, and a model left as it was --------------------------------------------------------------------------

def state(model):
    """All that a caller could find changed: names, activations, connections, weights to the bit."""
    return [(layer.name, layer.trainable, getattr(layer, "activation", None), layer.__dict__.get("call"),
             len(layer._inbound_nodes), len(layer._outbound_nodes), [w.tobytes() for w in layer.get_weights()])
            for layer in [model, *every_layer(model)]]


CALLS = {"grad_cam": lambda model, x: utils.grad_cam(model, x, [first_convolution(model)], [0]),
         "guided_backprop": lambda model, x: utils.guided_backprop(model, x, [0])}


def first_convolution(model):
    """The name of the model's first convolution."""
    return next(layer.name for layer in every_layer(model) if isinstance(layer, kl.Conv2D))


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("build", [sequential, nested_functional, residual])
def test_model_is_left_as_it_was(call, build):
    model = shake(build())
    x = noise(1, *model.input_shape[1:])
    before, outputs = state(model), np.asarray(model(x))
    for _ in range(2):
        call(model, x)
    assert state(model) == before
    np.testing.assert_array_equal(model(x), outputs)


@pytest.mark.parametrize("calls", [1, 2], ids=["on_the_way_up", "on_the_way_down"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_model_is_left_as_it_was_when_a_layer_fails(call, calls):
    """A layer may be called once more on the way down, with its ReLU out of the way: then, too, it comes back."""
    class Fragile(kl.DepthwiseConv2D):
        calls_left = np.inf

        def call(self, x):
            self.calls_left -= 1
            if not self.calls_left:
                raise RuntimeError("gave up")
            return super().call(x)

    inputs, x = keras.Input((6, 6, 3)), noise(1, 6, 6, 3)
    fragile = Fragile(3, activation="relu")
    y = fragile(kl.Conv2D(4, 3, activation="relu", name="conv")(inputs))
    model = shake(keras.Model(inputs, kl.Dense(3)(kl.Flatten()(kl.ReLU()(y)))))
    before = state(model)
    fragile.calls_left = calls
    with contextlib.suppress(RuntimeError):  # no second call, no error: that is well, too
        call(model, x)
    fragile.calls_left = np.inf
    assert state(model) == before
    call(model, x)  # and the method works again


@pytest.mark.parametrize("layers, classes, word", [
    (["conv1", "nowhere"], [0], "nowhere"), (["base"], [0], "base"), (["conv1"], [3], "3"), (["conv1"], [-1], "-1"),
    (["conv1"], [0, 7], "7"), (["head"], [0], "head")],
    ids=["unknown_layer", "part_of_another_model", "class_too_large", "negative_class", "second_class_wrong",
         "layer_without_map"])
def test_grad_cam_names_what_it_does_not_know(layers, classes, word):
    model, x = shake(sequential()), noise(1, 12, 10, 3)
    before = state(model)
    for _ in range(2):  # the second time a traced graph might be found
        with pytest.raises(ValueError, match=word):
            utils.grad_cam(model, x, layers, classes)
    assert state(model) == before


@pytest.mark.parametrize("classes", [[3], [-1], [0, 5]])
def test_guided_backprop_names_an_unknown_class(classes):
    model, x = shake(sequential()), noise(1, 12, 10, 3)
    before = state(model)
    with pytest.raises(ValueError, match=str(classes[-1])):
        utils.guided_backprop(model, x, classes)
    assert state(model) == before


SOFTMAX = {"argument": lambda x: kl.Dense(3, activation="softmax")(x), "layer": lambda x: kl.Softmax()(kl.Dense(3)(x)),
           "activation_layer": lambda x: kl.Activation("softmax")(kl.Dense(3)(x)),
           "tensorflow_function": lambda x: kl.Dense(3, activation=tf.nn.softmax)(x),
           "keras_function": lambda x: keras.ops.softmax(kl.Dense(3)(x)),
           "nested": lambda x: keras.Sequential([keras.Input((4,)), kl.Dense(3, activation="softmax")])(x)}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("end", SOFTMAX.values(), ids=SOFTMAX)
def test_softmax_at_the_end_is_refused(call, end):
    """Probabilities have other gradients than logits: a silent answer would be a wrong one."""
    inputs = keras.Input((6, 6, 3))
    model = keras.Model(inputs, end(kl.GlobalAveragePooling2D()(kl.Conv2D(4, 3, activation="relu")(inputs))))
    before = state(model)
    with pytest.raises(ValueError, match="(?i)softmax|logit"):
        call(model, noise(1, 6, 6, 3))
    assert state(model) == before


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_subclassed_model_is_refused(call):
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.conv, self.pool, self.head = kl.Conv2D(4, 3), kl.GlobalAveragePooling2D(), kl.Dense(3)

        def call(self, x):
            return self.head(self.pool(self.conv(x)))

    model, x = Subclassed(), noise(1, 6, 6, 3)
    model(x)
    with pytest.raises(ValueError, match="(?i)functional"):
        call(model, x)
