"""`grad_cam` and `guided_backprop` against a second computation, and the pictures that are made of their maps.

Expected numbers come from a piece of paper, from differences in NumPy or from plain TensorFlow in float64, never from
the code under test. The functions are those of gradcam_vgg.py; test_copies.py sees to it that the other scripts hold
the same. Papers: Selvaraju et al. 2016, equations 1 and 2; Springenberg et al. 2014, figure 1; Chattopadhyay et al.
2017, equation 19; Draelos and Carin 2020, equation 2; Jiang et al. 2021, LayerCAM, equation 6.
"""

import functools
import types
from typing import Callable, NamedTuple

import keras
import matplotlib
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl

import gradcam_vgg
import utils
from gradcam_vgg import guided_backprop


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
    for _, layer in every_layer(model):
        if isinstance(layer, kl.Normalization):
            layer.finalize_state()
    return model


def every_layer(model):
    """(network, layer) of all layers, also of networks inside."""
    for layer in model.layers:
        yield model, layer
        yield from every_layer(layer) if isinstance(layer, keras.Model) else ()


@pytest.fixture(params=["eagerly", "traced"])
def grad_cam(request):
    """grad_cam as it runs for one photograph, and as it runs for several, by a trace made of another picture."""

    def call(model, x, layers, classes, **options):
        if request.param == "traced":
            gradcam_vgg.grad_cam(model, np.flip(x) + 1, layers, classes[::-1], **options)
        return gradcam_vgg.grad_cam(model, x, layers, classes, **options)

    tf.config.run_functions_eagerly(request.param == "eagerly")
    yield call
    tf.config.run_functions_eagerly(False)


# --- by hand and by finite differences ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method, expected",
    {
        # Class 0: alpha = ((1+3+0+0)/4, (2+0+0+2)/4) = (1, 1). Class 1: alpha = ((0+0+0+4)/4, (-8+0+0+0)/4) = (1, -2).
        "gradcam": [[[4, 0], [2, 7]], [[-5, 0], [2, 1]]],
        "hirescam": [
            [[7, 0], [0, 4]],
            [[-24, 0], [0, 20]],
        ],  # with the bias each map adds up to its logit
        "layercam": [[[7, 0], [0, 4]], [[0, 0], [0, 20]]],
        # g^3 / (2 g^2 + g^3 sum A), with the sums 8 and 5. Class 0: 1/10 + 3/26 and 1/6 + 1/6; class 1: 4/34 and 0.
        "gradcam++": [
            [[1 / 10 + 3 / 26 + 3 / 3, 0], [2 / 10 + 6 / 26, 5 / 10 + 15 / 26 + 2 / 3]],
            [[4 / 34, 0], [8 / 34, 20 / 34]],
        ],
    }.items(),
)
def test_a_network_worked_out_on_paper(grad_cam, method, expected):
    inputs = keras.Input((2, 2, 3))
    maps = kl.Conv2D(2, 1, activation="relu", name="conv")(inputs)
    model = keras.Model(inputs, kl.Dense(2, name="head")(kl.Flatten()(maps)))
    model.get_layer("conv").set_weights(
        [np.float32([[[[1, 0], [0, 1], [0, -1]]]]), np.float32([0, 1])]
    )
    # Flatten puts the channels of a position side by side: rows are (position, channel), columns classes.
    model.get_layer("head").set_weights(
        [
            np.float32([[1, 0], [2, -8], [3, 0], [0, 0], [0, 0], [0, 0], [0, 4], [2, 0]]),
            np.float32([0.5, 0]),
        ]
    )
    x = np.float32([[[[1, 2, 0], [-3, 0, 4]], [[2, 0, 1], [5, 1, 0]]]])
    # A1 = relu(r) = [1 0; 2 5], A2 = relu(g - b + 1) = [3 0; 0 2].
    found, logits = grad_cam(model, x, ["conv"], [0, 1], method=method)
    np.testing.assert_allclose(found["conv"], expected, rtol=1e-6)
    np.testing.assert_array_equal(logits, [1 * 1 + 2 * 3 + 2 * 2 + 0.5, -8 * 3 + 4 * 5])
    assert found["conv"].dtype == logits.dtype == np.float32


def test_grad_cam_against_central_differences(grad_cam):
    """In NumPy, in float64, from the feature maps on: max pooling, a convolution, a ReLU, a dense layer."""
    # No ReLU before the pool: where a window holds equal zeros, a maximum has no derivative to compare with.
    model = shake(
        keras.Sequential(
            [
                keras.Input((11, 10, 3)),
                kl.Conv2D(3, 3, name="conv1"),
                kl.MaxPooling2D(name="pool"),
                kl.Conv2D(4, 3, activation="relu"),
                kl.Flatten(),
                kl.Dense(3),
            ]
        )
    )
    kernel, bias, weights, offset = (w.astype("float64") for w in model.get_weights()[2:])

    def score(maps):
        pooled = maps[:8, :8].reshape(4, 2, 4, 2, 3).max((1, 3))
        windows = np.lib.stride_tricks.sliding_window_view(pooled, (3, 3), axis=(0, 1))
        return (
            np.maximum(np.einsum("hwcij,ijck->hwk", windows, kernel) + bias, 0).ravel() @ weights
            + offset
        )

    x = noise(1, 11, 10, 3, seed=1)
    maps = (
        keras.Model(model.inputs[0], model.get_layer("conv1").output)(x)[0]
        .numpy()
        .astype("float64")
    )
    nudges = 1e-6 * np.eye(maps.size).reshape(-1, *maps.shape)
    gradient = np.array([score(maps + nudge) - score(maps - nudge) for nudge in nudges]).T / 2e-6
    found, logits = grad_cam(model, x, ["conv1"], [0, 1, 2])
    assert (
        error(found["conv1"], np.einsum("ck,hwk->chw", gradient.reshape(3, -1, 3).mean(1), maps))
        < 1e-5
    )
    assert error(logits, score(maps)) < 1e-5 and found["conv1"].min() < 0


# --- published networks and the other methods against the textbook --------------------------------------------------


def gradcam_plus_plus(g, A):
    """Equation 19 with Y = exp(S), whose derivatives are exp(S) g, exp(S) g^2 and exp(S) g^3; exp(S) is left out."""
    alpha = np.divide(g**2, 2 * g**2 + A.sum((0, 1)) * g**3, out=np.zeros_like(g), where=g != 0)
    return (np.maximum(g, 0) * alpha).sum((0, 1)) * A


METHODS = {
    "gradcam": lambda g, A: g.mean((0, 1)) * A,
    "gradcam++": gradcam_plus_plus,
    "hirescam": lambda g, A: g * A,
    "layercam": lambda g, A: np.maximum(g, 0) * A,
}


def textbook(model, x, layer, classes, method="gradcam"):
    """The recipe that everybody knows: a model with two outputs and an eager tape, for one layer. (maps, logits)"""
    (output,) = (
        each.output for each in getattr(model, "operations", model.layers) if each.name == layer
    )
    both = keras.Model(model.inputs[0], [output, model.outputs[0]])
    with tf.GradientTape(persistent=True) as tape:
        A, logits = both(x, training=False)
        scores = [logits[0, index] for index in classes]
    gradients = [tape.gradient(score, A)[0].numpy().astype("float64") for score in scores]
    return [METHODS[method](g, A[0].numpy()).sum(-1) for g in gradients], logits[0].numpy()


@pytest.mark.parametrize("method", METHODS)
def test_methods_are_those_of_their_papers(grad_cam, method):
    model, x, layers = (
        shake(residual()),
        noise(1, 8, 8, 3),
        ["both", "add", "relu1"],
    )  # add is signed; in no order
    maps, _ = grad_cam(model, x, layers, [2, 0], method=method)
    for layer in layers:
        assert error(maps[layer], textbook(model, x, layer, [2, 0], method)[0]) < 1e-4, layer


@pytest.mark.parametrize(
    "name, layers",
    [
        ("VGG16", ["block1_conv1", "block5_conv3"]),
        ("ResNet50", ["conv1_relu", "conv4_block6_2_bn", "conv5_block3_out"]),
    ],
)
def test_published_networks_equal_the_textbook(grad_cam, name, layers):
    keras.utils.set_random_seed(7)
    model = getattr(keras.applications, name)(
        weights=None, classifier_activation=None, input_shape=(96, 64, 3)
    )
    x = 50 * noise(1, 96, 64, 3)
    maps, logits = grad_cam(model, x, layers, [3, 998])
    assert list(maps) == layers
    for layer in layers:
        expected, textbook_logits = textbook(model, x, layer, [3, 998])
        assert error(logits, textbook_logits) < 1e-4
        for found, cam in zip(maps[layer], expected, strict=True):
            assert error(found, cam) < 1e-4, layer


# --- every way to write a network, against plain TensorFlow ---------------------------------------------------------
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


def mean(x):
    return tf.reduce_mean(x, (1, 2))


def classify(x):
    return kl.Dense(3, name="head")(kl.GlobalAveragePooling2D()(x))


RELUS = {
    "as_argument": lambda x, layer: type(layer).from_config(
        {**layer.get_config(), "activation": "relu"}
    )(x),
    "as_layer": lambda x, layer: kl.ReLU()(inputs=layer(x)),
    "as_one_layer_for_all": lambda x, layer, relu=kl.ReLU(): relu(layer(x)),
    "as_activation_layer": lambda x, layer: kl.Activation("relu")(layer(x)),
    "of_tensorflow": lambda x, layer: kl.Activation(tf.nn.relu)(layer(x)),
    "as_function": lambda x, layer: keras.ops.relu(layer(x)),
}
ENDS = {
    "softmax_as_argument": lambda x: kl.Dense(3, activation="softmax", name="head")(x),
    "softmax_as_layer": lambda x: kl.Softmax()(kl.Dense(3, name="head")(x)),
    "softmax_as_activation_layer": lambda x: kl.Activation("softmax")(kl.Dense(3, name="head")(x)),
    "softmax_of_tensorflow": lambda x: kl.Dense(3, activation=tf.nn.softmax, name="head")(x),
    "softmax_as_function": lambda x: keras.ops.softmax(kl.Dense(3, name="head")(x)),
    "softmax_in_another_network": lambda x: keras.Sequential(
        [keras.Input((6,)), kl.Dense(3, activation="softmax", name="head")]
    )(x),
    "softmax_before_what_changes_nothing": lambda x: kl.Activation("linear", dtype="float32")(
        kl.Identity()(kl.Reshape((3,))(kl.Dense(3, activation="softmax", name="head")(x)))
    ),
    "softmax_as_layer_before_identity": lambda x: kl.Identity()(
        kl.Softmax()(kl.Dense(3, name="head")(x))
    ),
    "three_sigmoids": lambda x: kl.Dense(3, activation="sigmoid", name="head")(x),
    "one_sigmoid": lambda x: kl.Dense(1, activation="sigmoid", name="head")(x),
    "one_sigmoid_as_layer": lambda x: kl.Activation("sigmoid")(kl.Dense(1, name="head")(x)),
}
BASES = {
    "nested": lambda base, x: kl.Dropout(0.5)(base(x, training=False)),
    "nested_by_keyword": lambda base, x: base(inputs=x),
    "nested_twice": lambda base, x: keras.Sequential([keras.Input(x.shape[1:]), base])(x),
}


def trunk(relu=RELUS["as_argument"]):
    """The same two convolutions; `relu` decides how the ReLU behind each of them is written."""
    inputs = keras.Input((12, 10, 3))
    x = kl.Identity(name="map1")(relu(inputs, kl.Conv2D(5, 3, padding="same", name="conv1")))
    x = relu(kl.MaxPooling2D()(x), kl.Conv2D(6, 3, padding="same", name="conv2"))
    return inputs, kl.Identity(name="map2")(x)


def two_convs(relu=RELUS["as_argument"], end=None):
    inputs, x = trunk(relu)
    return keras.Model(inputs, end(kl.GlobalAveragePooling2D()(x)) if end else classify(x))


def plain_two_convs(w, x, relu):
    first = relu(conv(x, w["conv1"]))
    second = relu(conv(tf.nn.max_pool2d(first, 2, 2, "VALID"), w["conv2"]))
    return [first, second], dense(mean(second), w["head"])


def plain_one_sigmoid(*network):
    maps, z = plain_two_convs(*network)
    return maps, tf.concat([-z / 2, z / 2], axis=-1)


def on_a_base(call):
    """Fine-tuning as the Keras guide has it: the base is called, as a layer, on a new input."""
    inputs = keras.Input((12, 10, 3))
    return keras.Model(inputs, classify(call(keras.Model(*trunk(), name="base"), inputs)))


def new_head_on_old_layers():
    """Fine-tuning without nesting: the layers of the old network, which still has its own head, get a second one."""
    old = two_convs()
    return keras.Model(old.input, classify(old.get_layer("map2").output))


def from_the_pixels_on():
    """Augmentation and dropout belong to training alone, preprocessing does not; grey photographs; depthwise layers."""
    norm = kl.Normalization(name="norm")
    norm.adapt(noise(4, 9, 8, 1))
    return keras.Sequential(
        [
            keras.Input((9, 8, 1)),
            keras.Sequential([kl.RandomFlip("horizontal_and_vertical"), kl.RandomZoom(0.4)]),
            kl.Rescaling(1 / 2, offset=-1),
            kl.GaussianNoise(1.0),
            norm,
            kl.ZeroPadding2D(((1, 2), (0, 3))),
            kl.DepthwiseConv2D(
                3, padding="same", depth_multiplier=2, activation="relu", name="depthwise"
            ),
            kl.SeparableConv2D(7, 3, 2, "same", activation="relu", name="separable"),
            kl.AveragePooling2D(2, name="pool"),
            kl.Flatten(),
            kl.Dense(6, activation="relu", name="fc"),
            kl.Dropout(0.5),
            kl.Dense(3, name="head"),
        ]
    )


def plain_from_the_pixels_on(w, x, relu):
    (kernel, bias), (deep, wide, bias2) = w["depthwise"], w["separable"]
    x = tf.pad((x / 2 - 1 - w["norm"][0]) / tf.sqrt(w["norm"][1]), [[0, 0], [1, 2], [0, 3], [0, 0]])
    first = relu(tf.nn.depthwise_conv2d(x, kernel, [1, 1, 1, 1], "SAME") + bias)
    second = relu(conv(tf.nn.depthwise_conv2d(first, deep, [1, 2, 2, 1], "SAME"), (wide, bias2)))
    pooled = tf.nn.avg_pool2d(second, 2, 2, "VALID")
    return [first, pooled], dense(relu(dense(tf.reshape(pooled, (1, -1)), w["fc"])), w["head"])


def residual():
    """Residual addition, batch normalisation, concatenation, an operation with two results, squeeze and excitation."""
    inputs = keras.Input((8, 8, 3))
    x = kl.BatchNormalization(name="norm1")(kl.Conv2D(4, 3, padding="same", name="conv1")(inputs))
    x = kl.ReLU(name="relu1")(x)
    y = kl.BatchNormalization(name="norm2")(kl.Conv2D(4, 3, padding="same", name="conv2")(x))
    x = kl.Activation("relu", name="out")(kl.Add(name="add")([x, y]))
    a, b = keras.ops.split(
        kl.Concatenate(name="both")([x, kl.Conv2D(2, 1, activation="relu", name="side")(x)]), 2, -1
    )
    gate = kl.Dense(4, activation="relu", name="down")(kl.GlobalAveragePooling2D(keepdims=True)(a))
    x = kl.Multiply(name="gated")([b, kl.Dense(3, activation="sigmoid", name="up")(gate)])
    return keras.Model(inputs, kl.Dense(3, name="head")(kl.GlobalMaxPooling2D()(x)))


def plain_residual(w, x, relu):
    def norm(x, weights):
        gamma, beta, average, variance = weights
        return (x - average) / tf.sqrt(
            variance + 1e-3
        ) * gamma + beta  # 1e-3: BatchNormalization's default

    first = relu(norm(conv(x, w["conv1"]), w["norm1"]))
    add = first + norm(conv(first, w["conv2"]), w["norm2"])
    both = tf.concat([relu(add), relu(conv(relu(add), w["side"]))], -1)
    a, b = tf.split(both, 2, -1)
    gated = b * tf.sigmoid(dense(relu(dense(mean(a)[:, None, None], w["down"])), w["up"]))
    return [first, add, both, gated], dense(tf.reduce_max(gated, (1, 2)), w["head"])


def namesakes(calls):
    """Two networks with layers of one name: the second's are called OUTER/INNER. It is called several times."""

    def build():
        inputs = keras.Input((8, 8, 3))
        first, second = (
            keras.Sequential(
                [inputs, kl.Conv2D(3, 3, padding="same", name="conv"), kl.ReLU(name="relu")],
                name=name,
            )
            for name in ("first", "second")
        )
        return keras.Model(
            inputs, classify(functools.reduce(lambda x, _: second(x), range(calls), first(inputs)))
        )

    def plain(w, x, relu):
        maps = [relu(conv(x, w["first/conv"]))]
        for _ in range(calls):
            maps.append(relu(conv(maps[-1], w["second/conv"])))
        return maps[:2], dense(mean(maps[-1]), w["head"])

    return Case(build, plain, ["relu", "second/relu"])


class Case(NamedTuple):
    build: Callable
    plain: Callable = plain_two_convs
    layers: tuple = ("map1", "map2")  # their outputs are what `plain` returns, in this order


CASES = {
    **{f"relu_{name}": Case(functools.partial(two_convs, relu)) for name, relu in RELUS.items()},
    "relu_6": Case(
        functools.partial(two_convs, lambda x, layer: kl.ReLU(max_value=6)(layer(x))),
        lambda w, x, relu: plain_two_convs(w, x, lambda x: tf.minimum(relu(x), 6)),
    ),
    **{
        name: Case(
            functools.partial(two_convs, end=end),
            plain_one_sigmoid if "one" in name else plain_two_convs,
        )
        for name, end in ENDS.items()
    },
    **{name: Case(functools.partial(on_a_base, call)) for name, call in BASES.items()},
    "base_in_sequential": Case(
        lambda: keras.Sequential(
            [
                keras.Input((12, 10, 3)),
                keras.Model(*trunk()),
                kl.GlobalAveragePooling2D(),
                kl.Dense(3, name="head"),
            ]
        )
    ),
    "new_head_on_old_layers": Case(new_head_on_old_layers),
    "from_the_pixels_on": Case(from_the_pixels_on, plain_from_the_pixels_on, ["depthwise", "pool"]),
    "residual": Case(residual, plain_residual, ["relu1", "add", "both", "gated"]),
    "namesakes": namesakes(2),
    "called_five_times": namesakes(5),
}
TO_BE_OPENED = [
    *ENDS,
    *BASES,
    "base_in_sequential",
    "from_the_pixels_on",
    "namesakes",
    "called_five_times",
]


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """The network as it is, where that will do, and opened; a picture; names of layers; the number of classes; and the
    network as a function (x, relu) of plain TensorFlow."""
    build, plain, layers = CASES[request.param]
    model = shake(build(), seed=3)
    weights = {
        name: [tf.constant(w, "float64") for w in layer.get_weights()]
        for outer, layer in every_layer(model)
        for name in (layer.name, f"{outer.name}/{layer.name}")
    }
    opened = utils.open_network(model)
    return (
        opened if request.param in TO_BE_OPENED else model,
        opened,
        2 * noise(1, *model.input_shape[1:], seed=4),
        layers,
        2 if plain is plain_one_sigmoid else 3,
        functools.partial(plain, weights),
    )


def test_every_way_to_write_a_network_grad_cam(grad_cam, case):
    _, opened, x, layers, classes, plain = case
    with tf.GradientTape(persistent=True) as tape:
        values = tf.constant(x, "float64")
        tape.watch(values)
        maps, logits = plain(values, tf.nn.relu)
        scores = tf.unstack(logits[0])
    found, found_logits = grad_cam(opened, x, layers, range(classes))
    assert error(found_logits, logits[0]) < 1e-5
    for layer, A in zip(layers, maps, strict=True):
        alphas = [tf.reduce_mean(tape.gradient(score, A), (0, 1, 2)) for score in scores]
        assert error(found[layer], [tf.reduce_sum(alpha * A[0], -1) for alpha in alphas]) < 1e-5, (
            layer
        )


def test_every_way_to_write_a_network_guided_backprop(case):
    as_it_is, _, x, _, classes, plain = case
    with tf.GradientTape(persistent=True) as tape:
        values = tf.constant(x, "float64")
        tape.watch(values)
        scores = tf.unstack(plain(values, guided_relu)[1][0])
    found = guided_backprop(as_it_is, x, range(classes))
    assert (
        found.dtype == np.float32
        and error(found, [tape.gradient(score, values)[0] for score in scores]) < 1e-5
    )


def test_guided_backprop_worked_out_on_paper():
    model = keras.Sequential(
        [keras.Input((1, 2, 3)), kl.Conv2D(2, 1, activation="relu"), kl.Flatten(), kl.Dense(2)]
    )
    model.set_weights(
        [
            np.float32([[[[1, 2], [0, 1], [-1, 0]]]]),
            np.float32([0, 0]),
            np.float32([[3, -1], [-2, 4], [5, 1], [1, -6]]),
            np.float32([0, 0]),
        ]
    )
    # Left pixel: both kernels respond (3, 9); right pixel: the first does not (-1), the second does (3).
    # Class 0 sends (3, -2) and (5, 1): -2 falls as a signal, 5 as the forward value was negative.
    # Class 1 sends (-1, 4) and (1, -6): only the 4 gets through.
    found = guided_backprop(model, np.float32([[[[4, 1, 1], [1, 1, 2]]]]), [0, 1])
    np.testing.assert_array_equal(found, [[[[3, 0, -3], [2, 1, 0]]], [[[8, 4, 0], [0, 0, 0]]]])


def test_names_that_keras_gave_and_would_give_again_do_no_harm(grad_cam):
    """As in a new process: Keras counts from the start again, and a layer may have a name that no trace allows."""
    keras.utils.clear_session()
    inputs = keras.Input((8, 8, 3))
    x = kl.Activation("relu")(kl.Conv2D(4, 3, padding="same", name="my conv")(inputs / 255.0))
    y = kl.Conv2D(2, 1, padding="same")(x)
    x = keras.ops.relu(keras.ops.concatenate([x, y + y], axis=-1))
    model = shake(keras.Model(inputs, kl.Dense(1, activation="sigmoid")(kl.Flatten()(x))))
    keras.utils.clear_session()
    opened, x = utils.open_network(model), 255 * noise(1, 8, 8, 3)
    layers = [*utils.named_layers(opened)]
    assert layers == [
        "my_conv",
        "activation",
        "conv2d",
        "add",
        "concatenate",
        "relu",
    ]  # sums written as such, too
    maps, logits = grad_cam(opened, x, layers, [0, 1])
    for layer in layers:
        for found, cam in zip(maps[layer], textbook(opened, x, layer, [0, 1])[0], strict=True):
            assert error(found, cam) < 1e-4
    assert (
        error(guided_backprop(opened, x, [0]), -guided_backprop(opened, x, [1])) > 0
    )  # and no clash of names
    np.testing.assert_allclose(1 / (1 + np.exp(logits[0] - logits[1])), model(x)[0, 0], rtol=1e-5)


# --- many calls, errors, and a model left as it was -----------------------------------------------------------------


def test_top_puts_the_most_probable_classes_first(grad_cam):
    model, x = shake(residual(), seed=1), noise(1, 8, 8, 3)
    order = np.argsort(-model(x)[0].numpy()).tolist()
    assert order != [0, 1, 2]
    found = grad_cam(model, x, ["both"], [1], top=2)[0]["both"]
    assert error(found, textbook(model, x, "both", [*order[:2], 1])[0]) < 1e-4


def test_later_calls_see_new_classes_new_weights_and_other_sizes():
    """A notebook asks again, with classes from np.argsort, too: nothing of earlier calls may be left in the trace."""
    model = keras.Sequential(
        [
            keras.Input((None, None, 3)),
            kl.Conv2D(4, 3, activation="relu", name="conv"),
            kl.GlobalAveragePooling2D(),
            kl.Dense(3),
        ]
    )
    for seed, side, classes in (
        (0, 8, [0]),
        (1, 8, [2]),
        (2, 11, (1, 2)),
        (3, 6, np.array([2, 0])),
        (4, 11, [0, 1]),
    ):
        shake(model, seed)
        x = noise(1, side, side + 1, 3)
        maps, _ = gradcam_vgg.grad_cam(model, x, ["conv"], classes)
        assert error(maps["conv"], textbook(model, x, "conv", classes)[0]) < 1e-4
        assert (
            error(
                guided_backprop(model, x, classes),
                [guided_backprop(model, x, [c])[0] for c in classes],
            )
            < 1e-5
        )


def state(model):
    """All that a caller could find changed: configuration with names and connections, activations, weights."""
    return model.to_json(), [
        (
            getattr(layer, "activation", None),
            layer.trainable,
            *(w.tobytes() for w in layer.get_weights()),
        )
        for _, layer in every_layer(model)
    ]


@pytest.mark.parametrize("name", ["softmax_as_argument", "nested", "residual"])
def test_model_is_left_as_it_was(name):
    model = shake(CASES[name].build())
    opened, x = utils.open_network(model), noise(1, *model.input_shape[1:])
    before = [(network, state(network), network(x)) for network in (model, opened)]
    for network in [opened, opened] + [model] * (name not in TO_BE_OPENED):
        gradcam_vgg.grad_cam(network, x, ["conv1"], [0])
        guided_backprop(network, x, [0])
    for network, as_found, output in before:
        assert state(network) == as_found
        np.testing.assert_array_equal(network(x), output)


@pytest.mark.parametrize("classes", [[3], [-1], [0, 7]])
def test_unknown_layers_and_classes_are_named(classes):
    model, x = two_convs(), noise(1, 12, 10, 3)
    for _ in range(2):  # the second time a trace could be there
        with pytest.raises(ValueError, match="nowhere"):
            gradcam_vgg.grad_cam(model, x, ["map1", "nowhere"], [0])
        with pytest.raises(ValueError, match="head"):  # which gives no map
            gradcam_vgg.grad_cam(model, x, ["head"], [0])
        with pytest.raises(ValueError, match="one x"):
            gradcam_vgg.grad_cam(model, np.concatenate([x, x]), ["map1"], [0])
        with pytest.raises(ValueError, match=str(classes[-1])):
            gradcam_vgg.grad_cam(model, x, ["map1"], classes)
        with pytest.raises(ValueError, match=str(classes[-1])):
            guided_backprop(model, x, classes)


@pytest.mark.parametrize("name", TO_BE_OPENED)
def test_probabilities_and_networks_inside_are_refused(name):
    """Probabilities have other gradients than logits, and networks inside hide their ReLUs: silence would be wrong."""
    model, x = CASES[name].build(), noise(1, 12, 10, 3)
    for call in (
        lambda: gradcam_vgg.grad_cam(model, x, [], [0]),
        lambda: guided_backprop(model, x, [0]),
    ):
        with pytest.raises(ValueError, match="open_network"):
            call()


# --- what networks are fed, and the pictures ------------------------------------------------------------------------

PHOTO = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
BGR_MEAN, MEAN, DEVIATION = (
    (103.939, 116.779, 123.68),
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # of ImageNet
PREPROCESS = {  # as the documentation of keras.applications.imagenet_utils.preprocess_input has it
    "caffe": lambda rgb: rgb[..., ::-1] - BGR_MEAN,
    "tf": lambda rgb: rgb / 127.5 - 1,
    "unit": lambda rgb: rgb / 255,
    "torch": lambda rgb: (rgb / 255 - MEAN) / DEVIATION,
    "none": lambda rgb: rgb,
}


@pytest.mark.parametrize("mode", PREPROCESS)
def test_network_input(mode):
    """The whole photograph; grey ones for networks of one channel."""
    found = utils.network_input(PHOTO, (40, 50), mode)
    assert found.dtype == np.float32 and found.shape == (1, 40, 50, 3)
    np.testing.assert_allclose(found[0], PREPROCESS[mode](PHOTO.astype(float)), atol=1e-4)
    step = 0.51 * np.max(
        PREPROCESS[mode](np.ones(3)) - PREPROCESS[mode](np.zeros(3))
    )  # of rounding to a whole number
    means = PHOTO.reshape(20, 2, 10, 5, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(
        utils.network_input(PHOTO, (20, 10), mode)[0], PREPROCESS[mode](means), atol=step
    )
    if mode in ("tf", "unit", "none"):  # the others are made for three channels
        found, grey = (
            utils.network_input(PHOTO, (40, 50), mode, channels=1),
            PHOTO @ [0.299, 0.587, 0.114],
        )  # BT.601
        np.testing.assert_allclose(found, PREPROCESS[mode](grey)[None, ..., None], atol=step)


def cubic(count, size):
    """Keys's cubic convolution, with OpenCV's a = -0.75, of `count` values to `size`, edges repeated, as a matrix."""
    matrix, a = np.zeros((size, count)), -0.75
    for row, centre in enumerate((np.arange(size) + 0.5) * count / size - 0.5):
        for tap in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            t = abs(centre - tap)
            weight = (
                (a + 2) * t**3 - (a + 3) * t**2 + 1 if t <= 1 else a * (t**3 - 5 * t**2 + 8 * t - 4)
            )
            matrix[row, np.clip(tap, 0, count - 1)] += weight
    return matrix


@pytest.mark.parametrize("size", [1e-12, 1, 1e12])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_heat_map_is_relu_scaled_by_the_maximum_and_enlarged(size, scale):
    cam = noise(5, 7)
    expected = cubic(5, 60) @ np.maximum(cam, 0) @ cubic(7, 45).T / (scale or cam.max())
    found = utils.heat_map(cam * size, 60, 45, scale and scale * size)
    np.testing.assert_allclose(found, expected.clip(0, 1), atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (4, 6), (40, 50), (1, 300)])
def test_overlay_mixes_photograph_and_colours(shape):
    for value, colour in (
        (0, (0, 0, 128)),
        (-3, (0, 0, 128)),
        (7, (128, 0, 0)),
    ):  # jet's cold end, twice, and its hot
        laid = utils.overlay(PHOTO, np.full(shape, value), alpha=0.25)
        np.testing.assert_allclose(laid, 0.75 * PHOTO + 0.25 * np.array(colour), atol=0.51)
        assert utils.heat_map(np.full(shape, value), 40, 50).max() == (value > 0)  # and not NaN


@pytest.mark.parametrize("name", ["turbo", "viridis", "inferno"])
def test_colours_are_those_of_matplotlib(name):
    values = np.linspace(0, 1, 256)[None]
    found = utils.colorize(values, name)
    assert np.abs(found - 255 * matplotlib.colormaps[name](values)[..., :3]).max() < 1
    np.testing.assert_array_equal(utils.colorize(np.array([[-1, 2]]), name), found[:, [0, -1]])


def test_signed_grey_keeps_signs_on_one_scale():
    like, ramp = np.empty((50, 4)), np.linspace(-1, 1, 50)[:, None, None] * np.ones((1, 4, 1))
    values = ramp * [1, 0.5, 0]
    for size in (1e-20, 1, 1e20):
        rgb = utils.signed_grey(values * size, like)
        assert rgb.dtype == np.uint8 and (rgb[..., 2] == 128).all()  # zero is grey
        np.testing.assert_allclose(
            rgb, (128 + 127 * values).clip(1, 255), atol=4
        )  # 4: the 99th percentile is white
    np.testing.assert_array_equal(
        utils.signed_grey(values, like, "caffe"), utils.signed_grey(values, like)[..., ::-1]
    )
    assert (utils.signed_grey(np.zeros((5, 6, 3)), like) == 128).all()
    # Shrinking averages alternating signs away, one hot pixel does not darken the rest.
    values = (
        np.tile([[1.0, -1.0], [-1.0, 1.0]], (20, 20))[..., None] * 1000
        + np.linspace(-1, 1, 40)[:, None, None]
    )
    values[0, 0] += 1e5
    picture = utils.signed_grey(values, np.empty((20, 20)))
    assert picture[1:5].max() < 64 and picture[-5:].min() > 192 and picture.shape == (20, 20, 3)


def test_a_map_without_evidence_is_a_grey_photograph_with_words():
    network = types.SimpleNamespace(layer="conv", prepare=lambda pixels: pixels)
    seen = gradcam_vgg.Evidence(types.SimpleNamespace(colormap="jet"), network, "photo.jpg", PHOTO)
    for cam in (np.zeros((3, 3)), np.full((3, 3), -2)):
        picture, title = seen.heat(PHOTO, cam, "cup")
        assert picture.shape == PHOTO.shape and (np.ptp(picture, axis=2) == 0).all()
        assert title.splitlines() == ["cup", "no positive evidence"]
        assert (
            np.corrcoef(picture[..., 0].ravel(), (PHOTO @ [0.299, 0.587, 0.114]).ravel())[0, 1]
            > 0.99
        )
    picture, title = seen.heat(PHOTO, np.float32([[0, 2.5]]), "cup")
    np.testing.assert_array_equal(picture, utils.overlay(PHOTO, np.float32([[0, 2.5]])))
    assert title.splitlines() == ["cup", "max 2.5"]
