"""`grad_cam` and `guided_backprop` against a second computation, and the pictures that are made of their maps.

Expected numbers come from a piece of paper, from differences in NumPy, from plain TensorFlow in float64 or from another
package, never from the code under test. The functions are those of gradcam_vgg.py; test_copies.py sees to it that the
other scripts hold the same. Papers: Selvaraju et al. 2016, equations 1 and 2; Springenberg et al. 2014, figure 1;
Chattopadhyay et al. 2017, equation 19; Draelos and Carin 2020, equation 2; Jiang et al. 2021, LayerCAM, equation 6.
"""
import functools
from typing import Callable, NamedTuple

import keras
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
    return model


@pytest.fixture(params=["first_call_eager", "later_call_by_the_trace"])
def grad_cam(request):
    """grad_cam as it runs the first time, and as it runs later, by a trace made of another picture and classes."""
    def call(model, x, layers, classes, **options):
        for _ in range(2 * (request.param != "first_call_eager")):
            gradcam_vgg.grad_cam(model, np.flip(x) + 1, layers, classes[::-1], **options)
        return gradcam_vgg.grad_cam(model, x, layers, classes, **options)
    return call


# --- by hand and by finite differences ------------------------------------------------------------------------------

@pytest.mark.parametrize("method, expected", {
    # Class 0: alpha = ((1+3+0+0)/4, (2+0+0+2)/4) = (1, 1). Class 1: alpha = ((0+0+0+4)/4, (-8+0+0+0)/4) = (1, -2).
    "gradcam": [[[4, 0], [2, 7]], [[-5, 0], [2, 1]]],
    "hirescam": [[[7, 0], [0, 4]], [[-24, 0], [0, 20]]],  # with the bias each map adds up to its logit
    "layercam": [[[7, 0], [0, 4]], [[0, 0], [0, 20]]],
    # g^3 / (2 g^2 + g^3 sum A), with the sums 8 and 5. Class 0: 1/10 + 3/26 and 1/6 + 1/6; class 1: 4/34 and 0.
    "gradcam++": [[[1 / 10 + 3 / 26 + 3 / 3, 0], [2 / 10 + 6 / 26, 5 / 10 + 15 / 26 + 2 / 3]],
                  [[4 / 34, 0], [8 / 34, 20 / 34]]]}.items())
def test_a_network_worked_out_on_paper(grad_cam, method, expected):
    inputs = keras.Input((2, 2, 3))
    maps = kl.Conv2D(2, 1, activation="relu", name="conv")(inputs)
    model = keras.Model(inputs, kl.Dense(2, name="head")(kl.Flatten()(maps)))
    model.get_layer("conv").set_weights([np.float32([[[[1, 0], [0, 1], [0, -1]]]]), np.float32([0, 1])])
    # Flatten puts the channels of a position side by side: rows are (position, channel), columns classes.
    model.get_layer("head").set_weights([np.float32([[1, 0], [2, -8], [3, 0], [0, 0], [0, 0], [0, 0], [0, 4], [2, 0]]),
                                         np.float32([0.5, 0])])
    x = np.float32([[[[1, 2, 0], [-3, 0, 4]], [[2, 0, 1], [5, 1, 0]]]])
    # A1 = relu(r) = [1 0; 2 5], A2 = relu(g - b + 1) = [3 0; 0 2].
    found, logits = grad_cam(model, x, ["conv"], [0, 1], method=method)
    np.testing.assert_allclose(found["conv"], expected, rtol=1e-6)
    np.testing.assert_array_equal(logits, [1 * 1 + 2 * 3 + 2 * 2 + 0.5, -8 * 3 + 4 * 5])
    assert found["conv"].dtype == logits.dtype == np.float32


def test_under_global_average_pooling_grad_cam_is_cam(grad_cam):
    """Selvaraju et al., section 3.1: there alpha is the classifier's weight divided by the number of positions."""
    inputs = keras.Input((6, 5, 3))
    maps = kl.Conv2D(4, 3, name="conv")(inputs)
    model = shake(keras.Model(inputs, kl.Dense(3, name="head")(kl.GlobalAveragePooling2D()(maps))))
    x = noise(1, 6, 5, 3)
    expected = keras.Model(inputs, maps)(x)[0].numpy() @ model.get_layer("head").get_weights()[0] / 12
    found = grad_cam(model, x, ["conv"], [0, 1, 2])[0]["conv"]
    assert error(found, np.moveaxis(expected, -1, 0)) < 1e-5
    assert found.min() < 0 < found.max()  # signed: what speaks against a class is kept


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
    x, position = noise(1, 11, 10, 3, seed=1), ["conv1", "pool", "conv2"].index(layer) + 1

    def run(values, steps):
        return functools.reduce(lambda values, step: step(values), steps, values)

    maps = run(x[0].astype("float64"), steps[:position])
    gradient = np.zeros((3, *maps.shape))
    for place in np.ndindex(maps.shape):
        nudge = np.zeros(maps.shape)
        nudge[place] = 1e-6
        gradient[(slice(None), *place)] = (run(maps + nudge, steps[position:]) - run(maps - nudge, steps[position:])) / 2e-6
    found, logits = grad_cam(model, x, [layer], [0, 1, 2])
    assert error(found[layer], np.einsum("ck,hwk->chw", gradient.mean((1, 2)), maps)) < 1e-5
    assert error(logits, run(maps, steps[position:])) < 1e-5


# --- published networks and the other methods against the textbook --------------------------------------------------

def tape(model, x, layer, classes):
    """The recipe that everybody knows: a model with two outputs and an eager tape, for one layer. (A, [g], logits)"""
    both = keras.Model(model.inputs[0], [model.get_layer(layer).output, model.output])
    with tf.GradientTape(persistent=True) as gradients:
        maps, logits = both(x, training=False)
        scores = [logits[0, index] for index in classes]
    return maps[0].numpy(), [gradients.gradient(score, maps)[0].numpy() for score in scores], logits[0].numpy()


def gradcam_plus_plus(g, A):
    """Equation 19 with Y = exp(S), whose derivatives are exp(S) g, exp(S) g^2 and exp(S) g^3; exp(S) is left out."""
    alpha = np.divide(g**2, 2 * g**2 + A.sum((0, 1)) * g**3, out=np.zeros_like(g), where=g != 0)
    return (np.maximum(g, 0) * alpha).sum((0, 1)) * A


METHODS = {"gradcam": lambda g, A: g.mean((0, 1)) * A, "gradcam++": gradcam_plus_plus,
           "hirescam": lambda g, A: g * A, "layercam": lambda g, A: np.maximum(g, 0) * A}


@pytest.mark.parametrize("method", METHODS)
def test_methods_are_those_of_their_papers(grad_cam, method):
    model, x, layers = shake(residual()), noise(1, 8, 8, 3), ["relu1", "add", "both"]  # add is signed
    maps, _ = grad_cam(model, x, layers, [2, 0], method=method)
    for layer in layers:
        A, gradients, _ = tape(model, x, layer, [2, 0])
        assert error(maps[layer], [METHODS[method](g.astype("float64"), A).sum(-1) for g in gradients]) < 1e-4, layer


@pytest.mark.parametrize("name, theirs", {"gradcam": "GradCAM", "gradcam++": "GradCAMPlusPlus", "hirescam": "HiResCAM",
                                          "layercam": "LayerCAM"}.items())
def test_maps_are_those_of_pytorch_grad_cam(name, theirs):
    torch, package = pytest.importorskip("torch"), pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    model, x, nn = shake(two_convs(relu_as_argument)()), noise(1, 12, 10, 3), torch.nn
    twin = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(5, 6, 3, padding=1),
                         nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    for parameter, w in zip(twin.parameters(), model.get_weights(), strict=True):
        parameter.data = torch.tensor(w.transpose({1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}[w.ndim]))
    method = getattr(package, theirs)(twin, [twin[1]])
    for index in range(3):
        expected = method(torch.tensor(x.transpose(0, 3, 1, 2)), [ClassifierOutputTarget(index)])[0]
        cam = gradcam_vgg.grad_cam(model, x, ["conv1"], [index], name)[0]["conv1"][0]
        assert error(utils.heat_map(cam, 12, 10), expected) < 1e-3  # its maps come after ReLU, scaled to 1; its eps


@pytest.fixture(scope="module", params=["VGG16", "ResNet50", "fine-tuned"])
def published(request):
    """A network from keras.applications with random weights; the same for the textbook; names of layers; classes."""
    keras.utils.set_random_seed(7)
    if request.param != "fine-tuned":
        model = getattr(keras.applications, request.param)(
            weights=None, classifier_activation=None, input_shape=(96, 64, 3))
        return model, model, {"V": ["block1_conv1", "block5_conv3"],
                              "R": ["conv1_relu", "conv4_block6_2_bn", "conv5_block3_out"]}[request.param[0]], [3, 998]
    # The base called as one layer, as the Keras guide has it; and again from the base's own tensors.
    base, inputs = keras.applications.VGG16(False, None, input_shape=(96, 64, 3)), keras.Input((96, 64, 3))
    ends = [kl.GlobalAveragePooling2D(), kl.Dense(4), kl.Softmax()]
    model = keras.Model(inputs, functools.reduce(lambda x, layer: layer(x), ends, base(inputs, training=False)))
    flat = keras.Model(base.input, ends[1](ends[0](base.output)))
    return utils.open_network(model), flat, ["block2_conv2", "block5_conv3"], [3, 0]


def test_published_networks_equal_the_textbook(grad_cam, published):
    model, flat, layers, classes = published
    x = 50 * noise(1, 96, 64, 3)
    maps, logits = grad_cam(model, x, layers, classes)
    assert list(maps) == layers
    for layer in layers:
        A, gradients, textbook_logits = tape(flat, x, layer, classes)
        assert error(logits, textbook_logits) < 1e-4
        for found, g in zip(maps[layer], gradients, strict=True):
            assert error(found, METHODS["gradcam"](g, A).sum(-1)) < 1e-4, layer


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


def classify(x, units=3):
    return kl.Dense(units, name="head")(kl.GlobalAveragePooling2D()(x))


def as_argument(x, layer):
    layer.activation = keras.activations.relu
    return layer(x)


RELUS = {"as_argument": as_argument, "as_layer": lambda x, layer: kl.ReLU()(layer(x)),
         "as_activation_layer": lambda x, layer: kl.Activation("relu")(layer(x)),
         "of_tensorflow": lambda x, layer: kl.Activation(tf.nn.relu)(layer(x)),
         "as_function": lambda x, layer: keras.ops.relu(layer(x)),
         "6": lambda x, layer: kl.ReLU(max_value=6)(layer(x))}
ENDS = {"softmax_as_argument": lambda x: kl.Dense(3, activation="softmax", name="head")(x),
        "softmax_as_layer": lambda x: kl.Softmax()(kl.Dense(3, name="head")(x)),
        "softmax_as_activation_layer": lambda x: kl.Activation("softmax")(kl.Dense(3, name="head")(x)),
        "softmax_of_tensorflow": lambda x: kl.Dense(3, activation=tf.nn.softmax, name="head")(x),
        "softmax_as_function": lambda x: keras.ops.softmax(kl.Dense(3, name="head")(x)),
        "softmax_in_another_network": lambda x: keras.Sequential([keras.Input((6,)), ENDS["softmax_as_argument"]])(x),
        "sigmoid": lambda x: kl.Dense(3, activation="sigmoid", name="head")(x)}
BASES = {"nested": lambda base, x: kl.Dropout(0.5)(base(x, training=False)),
         "nested_by_keyword": lambda base, x: base(inputs=x),
         "nested_twice": lambda base, x: keras.Sequential([keras.Input(x.shape[1:]), base])(x)}


def trunk(relu=as_argument, inputs=None):
    """The same two convolutions; `relu` decides how the ReLU behind each of them is written."""
    inputs = keras.Input((12, 10, 3)) if inputs is None else inputs
    x = kl.Identity(name="map1")(relu(inputs, kl.Conv2D(5, 3, padding="same", name="conv1")))
    x = relu(kl.MaxPooling2D()(x), kl.Conv2D(6, 3, padding="same", name="conv2"))
    return inputs, kl.Identity(name="map2")(x)


def two_convs(relu=as_argument, end=None):
    inputs, x = trunk(relu)
    return keras.Model(inputs, end(kl.GlobalAveragePooling2D()(x)) if end else classify(x))


def plain_two_convs(w, x, relu):
    first = relu(conv(x, w["conv1"]))
    second = relu(conv(tf.nn.max_pool2d(first, 2, 2, "VALID"), w["conv2"]))
    return [first, second], dense(mean(second), w["head"])


def plain_two_convs_6(w, x, relu):
    return plain_two_convs(w, x, lambda x: tf.minimum(relu(x), 6))


def on_a_base(call):
    """Fine-tuning as the Keras guide has it: the base is called, as a layer, on a new input."""
    inputs = keras.Input((12, 10, 3))
    return keras.Model(inputs, classify(call(keras.Model(*trunk(), name="base"), inputs)))


def base_in_sequential():
    return keras.Sequential([keras.Input((12, 10, 3)), keras.Model(*trunk()), kl.GlobalAveragePooling2D(),
                             kl.Dense(3, name="head")])


def base_with_two_outputs():
    inputs, second = trunk()
    base, image = keras.Model(inputs, [second.map1, second]), keras.Input((12, 10, 3))
    return base, image


def new_head_on_old_layers():
    """Fine-tuning without nesting: the layers of the old network, which still has its own head, get a second one."""
    old = two_convs()
    return keras.Model(old.input, classify(old.get_layer("map2").output))


def augmented():
    """From the pixels on: augmentation and dropout belong to training alone."""
    inputs = keras.Input((12, 10, 3))
    x = keras.Sequential([kl.RandomFlip("horizontal_and_vertical"), kl.RandomTranslation(0.3, 0.3)])(inputs)
    x = kl.GaussianNoise(1.0)(kl.RandomZoom(0.4)(kl.Rescaling(1 / 2, offset=-1)(x)))
    return keras.Model(inputs, classify(kl.SpatialDropout2D(0.5)(trunk(inputs=x)[1])))


def plain_augmented(w, x, relu):
    return plain_two_convs(w, x / 2 - 1, relu)
