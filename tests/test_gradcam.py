"""`grad_cam` and `guided_backprop` against a second computation, and what their maps look like.

Expected numbers come from a piece of paper, from differences in NumPy, from plain TensorFlow in
float64 or from the textbook's tape (helpers.py). The functions are those of gradcam_vgg.py;
test_copies.py sees to it that the other scripts hold the same.
"""

import functools
import gc
import weakref
from collections.abc import Callable
from typing import NamedTuple

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import METHODS, classify, error, head, noise, shake, textbook
from keras import layers as kl

import cnnvis
import gradcam_vgg
from cnnvis import graph
from cnnvis.failures import LINEAR_METHODS
from deconvnet_vgg import deconvnet
from gradcam_vgg import guided_backprop


@pytest.fixture(params=["eagerly", "traced"])
def grad_cam(request):
    """grad_cam as for one photograph, and as for several, by a trace made of another picture."""

    def call(model, x, layers, classes, **options):
        if request.param == "traced":
            gradcam_vgg.grad_cam(model, np.flip(x) + 1, layers, classes[::-1], **options)
        return gradcam_vgg.grad_cam(model, x, layers, classes, **options)

    tf.config.run_functions_eagerly(request.param == "eagerly")
    yield call
    tf.config.run_functions_eagerly(False)


ON_PAPER = {
    # Class 0: alpha = ((1+3+0+0)/4, (2+0+0+2)/4) = (1, 1). Class 1: (4/4, -8/4) = (1, -2).
    "gradcam": [[[4, 0], [2, 7]], [[-5, 0], [2, 1]]],
    # With the bias each map adds up to its logit.
    "hirescam": [[[7, 0], [0, 4]], [[-24, 0], [0, 20]]],
    "layercam": [[[7, 0], [0, 4]], [[0, 0], [0, 20]]],
    # g^3 / (2 g^2 + g^3 sum A), the sums being 8 and 5. Class 0: 1/10 + 3/26 and 1/6 + 1/6;
    # class 1: 4/34 and 0.
    "gradcam++": [
        [[1 / 10 + 3 / 26 + 3 / 3, 0], [2 / 10 + 6 / 26, 5 / 10 + 15 / 26 + 2 / 3]],
        [[4 / 34, 0], [8 / 34, 20 / 34]],
    ],
}


@pytest.mark.parametrize("method", gradcam_vgg.CAM_WEIGHTS)
def test_grad_cam_worked_out_on_paper(grad_cam, method):
    inputs = keras.Input((2, 2, 3))
    maps = kl.Conv2D(2, 1, activation="relu", name="conv")(inputs)
    model = keras.Model(inputs, kl.Dense(2, name="head")(kl.Flatten()(maps)))
    kernel = np.float32([[[[1, 0], [0, 1], [0, -1]]]])
    model.get_layer("conv").set_weights([kernel, np.float32([0, 1])])
    # Flatten puts the channels of a position side by side: rows are (position, channel).
    weights = [[1, 0], [2, -8], [3, 0], [0, 0], [0, 0], [0, 0], [0, 4], [2, 0]]
    model.get_layer("head").set_weights([np.float32(weights), np.float32([0.5, 0])])
    x = np.float32([[[[1, 2, 0], [-3, 0, 4]], [[2, 0, 1], [5, 1, 0]]]])
    # A1 = relu(r) = [1 0; 2 5], A2 = relu(g - b + 1) = [3 0; 0 2].
    found, logits = grad_cam(model, x, ["conv"], [0, 1], method=method)
    np.testing.assert_allclose(found["conv"], ON_PAPER[method], rtol=1e-6)
    np.testing.assert_array_equal(logits, [1 * 1 + 2 * 3 + 2 * 2 + 0.5, -8 * 3 + 4 * 5])
    assert found["conv"].dtype == logits.dtype == np.float32


@pytest.mark.parametrize("method", gradcam_vgg.CAM_WEIGHTS)
def test_the_methods_that_failures_takes_for_linear_are(method):
    A, *gs = (noise(1, 3, 4, 5, seed=seed) for seed in range(3))
    first, second, both = (gradcam_vgg.CAM_WEIGHTS[method](g, A) for g in [*gs, sum(gs)])
    assert np.allclose(first + second, both, atol=1e-5) == (method in LINEAR_METHODS)


def test_guided_backprop_worked_out_on_paper():
    layers = [kl.Conv2D(2, 1, activation="relu"), kl.Flatten(), kl.Dense(2)]
    model = keras.Sequential([keras.Input((1, 2, 3)), *layers])
    kernel = np.float32([[[[1, 2], [0, 1], [-1, 0]]]])
    weights = np.float32([[3, -1], [-2, 4], [5, 1], [1, -6]])
    model.set_weights([kernel, np.zeros(2), weights, np.zeros(2)])
    # Left pixel: both kernels respond (3, 9); right pixel: the first does not (-1), the second (3).
    # Class 0 sends (3, -2) and (5, 1): -2 falls as a signal, 5 as the forward value was negative.
    # Class 1 sends (-1, 4) and (1, -6): only the 4 gets through.
    found = guided_backprop(model, np.float32([[[[4, 1, 1], [1, 1, 2]]]]), [0, 1])
    np.testing.assert_array_equal(found, [[[[3, 0, -3], [2, 1, 0]]], [[[8, 4, 0], [0, 0, 0]]]])


# --- every way to write a network -----------------------------------------------------------------
# Each is compared with a flat reference of the same weights, whose ReLU is an argument.


def with_activation(layer, activation):
    return type(layer).from_config({**layer.get_config(), "activation": activation})


RELUS = {  # behind a layer, called on x
    "relu_as_argument": lambda x, layer: with_activation(layer, "relu")(x),
    "one_relu_for_all": lambda x, layer, relu=kl.ReLU(): relu(layer(x)),  # noqa: B008, it is the case
    "relu_as_activation_layer": lambda x, layer: kl.Activation("relu")(layer(x)),
    "relu_of_tensorflow": lambda x, layer: kl.Activation(tf.nn.relu)(layer(x)),
    "relu_as_function": lambda x, layer: keras.ops.relu(layer(x)),
    "relu_6": lambda x, layer: kl.ReLU(6)(inputs=layer(x)),
}
ENDS = {
    "softmax_as_argument": lambda x: head("softmax")(x),
    "softmax_as_layer": lambda x: kl.Identity()(kl.Softmax()(head()(x))),
    "softmax_as_activation_layer": lambda x: kl.Activation("softmax")(head()(x)),
    "softmax_of_tensorflow": lambda x: head(tf.nn.softmax)(x),
    "softmax_as_function": lambda x: keras.ops.softmax(head()(x)),
    "softmax_in_another_network": lambda x: keras.Sequential([head("softmax")])(x),
    "softmax_before_what_changes_nothing": lambda x: kl.Reshape((3,))(head("softmax")(x)),
    "softmax_before_linear": lambda x: kl.Activation("linear")(head("softmax")(x)),
    "three_sigmoids": lambda x: head("sigmoid")(x),
    "one_sigmoid": lambda x: head("sigmoid", 1)(x),
    "one_sigmoid_as_layer": lambda x: kl.Activation("sigmoid")(head(units=1)(x)),
}
BASES = {
    "nested": lambda base, x: kl.Dropout(0.5)(base(inputs=x, training=False)),
    "nested_twice": lambda base, x: keras.Sequential([keras.Input(x.shape[1:]), base])(x),
}


def two_maps(inputs, relu, between=lambda x: x):
    """Two convolutions; relu: how that behind each is written; between: what is called there."""
    x = relu(between(inputs), kl.Conv2D(5, 3, padding="same", name="conv1"))
    x = between(kl.Identity(name="map1")(x))
    x = relu(kl.MaxPooling2D()(x), kl.Conv2D(6, 3, padding="same", name="conv2"))
    return between(kl.Identity(name="map2")(x))


def two_convs(relu="relu_as_argument", end="logits", between=lambda x: x):
    inputs = keras.Input((12, 10, 3))
    x = kl.GlobalAveragePooling2D()(two_maps(inputs, RELUS[relu], between))
    return keras.Model(inputs, ENDS[end](x) if end in ENDS else head()(x))


def plain_two_convs(relu, units=3):
    inputs = keras.Input((12, 10, 3))
    x = two_maps(inputs, lambda x, layer: kl.Activation(relu)(layer(x)))
    return keras.Model(inputs, classify(x, units))


def on_a_base(call):
    """Fine-tuning as the Keras guide has it: the base is called, as a layer, on a new input."""
    image = keras.Input((12, 10, 3))
    inputs = keras.Input((12, 10, 3))
    base = keras.Model(image, two_maps(image, RELUS["relu_as_argument"]), name="base")
    return keras.Model(inputs, classify(call(base, inputs)))


def new_head_on_old_layers():
    """Fine-tuning without nesting: layers of a network that still has its own head."""
    old = two_convs()
    return keras.Model(old.input, classify(old.get_layer("map2").output))


def for_training_only(x):
    """Random in training; otherwise nothing of it may be seen."""
    x = kl.RandomRotation(0.4)(kl.RandomTranslation(0.4, 0.4)(kl.RandomFlip()(x)))
    return kl.GaussianNoise(1.0)(kl.SpatialDropout2D(0.5)(kl.GaussianDropout(0.5)(x)))


def from_the_pixels_on(relu="relu"):
    """Preprocessing of its own, of grey photographs; padding; depthwise layers; dense layers."""
    deep = kl.DepthwiseConv2D(3, padding="same", depth_multiplier=2, activation=relu, name="deep")
    wide = kl.SeparableConv2D(7, 3, 2, "same", activation=relu, name="wide")
    padding = kl.ZeroPadding2D(((1, 2), (0, 3)))
    before = [kl.Rescaling(1 / 2, offset=-1), kl.Normalization(), padding]
    above = [kl.AveragePooling2D(2, name="pool"), kl.Flatten(), kl.Dense(6, relu), head()]
    return keras.Sequential([keras.Input((9, 8, 1)), *before, deep, wide, *above])


def augmented():
    inner = from_the_pixels_on()
    return keras.Sequential([keras.Input((9, 8, 1)), kl.RandomZoom(0.4), inner])


def residual(relu="relu"):
    """Addition, batch normalisation, concatenation, an operation of two results, a gate."""
    inputs = keras.Input((8, 8, 3))
    x = kl.BatchNormalization(name="norm1")(kl.Conv2D(4, 3, padding="same", name="conv1")(inputs))
    x = kl.Activation(relu, name="relu1")(x)
    y = kl.BatchNormalization(name="norm2")(kl.Conv2D(4, 3, padding="same", name="conv2")(x))
    x = kl.Activation(relu, name="out")(kl.Add(name="add")([x, y]))
    y = kl.Conv2D(2, 1, activation=relu, name="side")(x)
    a, b = keras.ops.split(kl.Concatenate(name="both")([x, y]), 2, -1)
    gate = kl.Dense(4, relu)(kl.GlobalAveragePooling2D(keepdims=True)(a))
    x = kl.Multiply(name="gated")([b, kl.Dense(3, "sigmoid")(gate)])
    return keras.Model(inputs, head()(kl.GlobalMaxPooling2D()(x)))


def namesakes():
    """Two networks with layers of one name, the second called three times."""
    inputs = keras.Input((8, 8, 3))
    networks = []
    for name in ("first", "second"):
        layers = [kl.Conv2D(3, 3, padding="same", name="conv"), kl.ReLU(name="relu")]
        networks.append(keras.Sequential([keras.Input((8, 8, 3)), *layers], name=name))
    first, second = networks
    return keras.Model(inputs, classify(second(second(second(first(inputs))))))


def plain_namesakes(relu):
    inputs = keras.Input((8, 8, 3))
    x = kl.Activation(relu, name="relu")(kl.Conv2D(3, 3, padding="same")(inputs))
    conv = kl.Conv2D(3, 3, padding="same")
    for name in ("second/relu", "third", "fourth"):
        x = kl.Activation(relu, name=name.replace("/", "_"))(conv(x))
    return keras.Model(inputs, classify(x))


class Case(NamedTuple):
    build: Callable
    plain: Callable = plain_two_convs  # given the ReLU
    layers: tuple = ("map1", "map2")
    closed: bool = True  # it has to be opened
    score: Callable = tf.identity


def plain_relu_6(relu):
    return plain_two_convs(lambda x: tf.minimum(relu(x), 6))


CASES = {
    **{name: Case(functools.partial(two_convs, name), closed=False) for name in RELUS},
    **{name: Case(functools.partial(two_convs, end=name)) for name in ENDS},
    **{name: Case(functools.partial(on_a_base, BASES[name])) for name in BASES},
    "new_head_on_old_layers": Case(new_head_on_old_layers, closed=False),
    "for_training_only": Case(lambda: two_convs(between=for_training_only), closed=False),
    "from_the_pixels_on": Case(augmented, from_the_pixels_on, ("deep", "pool")),
    "residual": Case(residual, residual, ("relu1", "add", "both", "gated"), closed=False),
    "namesakes": Case(namesakes, plain_namesakes, ("relu", "second/relu")),
}
CASES["relu_6"] = CASES["relu_6"]._replace(plain=plain_relu_6)
one_unit = {"plain": functools.partial(plain_two_convs, units=1), "score": helpers.two_logits}
for name in ("one_sigmoid", "one_sigmoid_as_layer"):
    CASES[name] = CASES[name]._replace(**one_unit)


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """The case, its network, the same opened, and a picture."""
    case = CASES[request.param]
    model = shake(case.build(), seed=3)
    opened = cnnvis.open_network(model)
    return case, model, opened, 2 * noise(1, *model.input_shape[1:])


def plain(case, model, relu):
    """The reference with the weights of a network."""
    reference = case.plain(relu)
    reference.set_weights(model.get_weights())
    for layer in reference.layers:
        if isinstance(layer, kl.Normalization):
            layer.finalize_state()
    return reference


def test_every_way_to_write_a_network_grad_cam(grad_cam, case):
    case, model, opened, x = case
    reference = plain(case, model, tf.nn.relu)
    classes = [1, 0]
    found, logits = grad_cam(opened, x, case.layers, classes)
    for layer in case.layers:
        name = layer.replace("/", "_")
        expected, scores = textbook(reference, x, name, classes, score=case.score)
        assert error(found[layer], expected) < 2e-5, layer
        assert error(logits, scores) < 2e-5


def test_every_way_to_write_a_network_guided_backprop(case):
    case, model, opened, x = case
    expected = helpers.guided_tape(plain(case, model, helpers.guided_relu), x, case.score)
    found = guided_backprop(opened if case.closed else model, x, range(len(expected)))
    assert found.dtype == np.float32
    assert error(found, expected) < 2e-5


@pytest.mark.parametrize("method", METHODS)
def test_methods_are_those_of_their_papers(grad_cam, method):
    model = shake(residual())
    x = noise(1, 8, 8, 3)
    layers = ["both", "add", "relu1"]  # add is signed; in no order
    maps, _ = grad_cam(model, x, layers, [2, 0], method=method)
    for layer in layers:
        assert error(maps[layer], textbook(model, x, layer, [2, 0], method)[0]) < 1e-4, layer


def test_resnet50_equals_the_textbook():
    build = keras.applications.ResNet50
    model = shake(build(weights=None, classifier_activation=None, input_shape=(64, 64, 3)))
    x = noise(1, 64, 64, 3)
    layers = ["conv1_relu", "conv4_block6_2_bn", "conv5_block3_out"]
    tf.config.run_functions_eagerly(True)  # to trace it takes 10 seconds
    maps, _ = gradcam_vgg.grad_cam(model, x, layers, [3, 998])
    tf.config.run_functions_eagerly(False)
    assert list(maps) == layers
    for layer in layers:
        assert error(maps[layer], textbook(model, x, layer, [3, 998])[0]) < 1e-4, layer


def test_names_that_keras_gave_and_would_give_again_do_no_harm(grad_cam):
    """As in a new process, Keras counts from the start; and a name that no trace allows."""
    keras.utils.clear_session()
    inputs = keras.Input((8, 8, 3))
    x = kl.Activation("relu")(kl.Conv2D(4, 3, padding="same", name="my conv")(inputs / 255.0))
    y = kl.Conv2D(2, 1, padding="same")(x)
    x = keras.ops.relu(keras.ops.concatenate([x, y + y], axis=-1))
    model = shake(keras.Model(inputs, classify(x)))
    keras.utils.clear_session()
    opened = cnnvis.open_network(model)
    x = 255 * noise(1, 8, 8, 3)
    layers = [*graph.named_layers(opened)]
    assert layers == ["my_conv", "activation", "conv2d", "add", "concatenate", "relu"]
    maps, logits = grad_cam(opened, x, layers, [0, 1])
    for layer in layers:
        assert error(maps[layer], textbook(opened, x, layer, [0, 1])[0]) < 1e-4
    assert error(logits, model(x)[0]) < 1e-5
    expected = helpers.Projector(opened, x).project("head", [0], "all", "guided")
    assert error(guided_backprop(opened, x, [0]), expected) < 1e-4


def test_top_puts_the_most_probable_classes_first(grad_cam):
    model = shake(residual(), seed=1)
    x = noise(1, 8, 8, 3)
    order = np.argsort(-model(x)[0].numpy()).tolist()
    assert order != [0, 1, 2]
    found = grad_cam(model, x, ["both"], [1], top=2)[0]["both"]
    assert error(found, textbook(model, x, "both", [*order[:2], 1])[0]) < 1e-4


def attend_by_hand(s):
    scores = keras.ops.matmul(s, keras.ops.transpose(s, (0, 2, 1)))
    return keras.ops.matmul(keras.ops.softmax(scores / 3), s)


ATTENTION = {  # of the positions of a map, as a sequence s, to each other
    "multi_head": lambda s: kl.MultiHeadAttention(2, 4)(s, s),
    "attention": lambda s: kl.Attention()([s, s]),
    "matmul": attend_by_hand,
    "einsum": lambda s: kl.EinsumDense("abc,bcd->abd", (100, 7))(s),
}


def check_attention():
    for kind, attend in ATTENTION.items():
        inputs = keras.Input((12, 12, 3))
        x = kl.Conv2D(16, 3, activation="relu", name="conv")(inputs)
        x = kl.GlobalAveragePooling1D()(attend(kl.Reshape((100, 16))(x)))
        model = shake(keras.Model(inputs, head(units=4)(x)))
        for seed, classes in enumerate(([0, 1, 3], [2, 0], [0, 1, 3], [2, 0])):
            x = noise(1, 12, 12, 3, seed=seed)
            found = gradcam_vgg.grad_cam(model, x, ["conv"], classes)[0]["conv"]
            assert error(found, textbook(model, x, "conv", classes)[0]) < 1e-4, (kind, seed)
        for _ in range(2):
            one_by_one = [guided_backprop(model, x, [index])[0] for index in classes]
            assert error(guided_backprop(model, x, classes), one_by_one) < 1e-4, kind


def test_several_classes_at_once_behind_attention():
    """TensorFlow's oneDNN is wrong, or dies, where batched products are broadcast."""
    helpers.run_apart("test_gradcam", "check_attention")


def test_layers_called_twice_and_shared_with_another_network(grad_cam):
    for model in helpers.recurring():
        x = noise(1, *model.input_shape[1:])
        found = grad_cam(model, x, ["later"], [2, 0])[0]["later"]
        assert error(found, textbook(model, x, "later", [2, 0])[0]) < 1e-4
        projector = helpers.Projector(model, x)
        expected = projector.project("head", [2, 0], "all", "guided")
        assert error(guided_backprop(model, x, [2, 0]), expected) < 1e-4
        best = projector.best("later")
        expected = projector.project("later", best, "max", "deconvnet")
        assert error(deconvnet(model, x, "later", best), expected) < 1e-5


def test_later_calls_see_new_classes_new_weights_and_other_sizes():
    """A notebook asks again: nothing of earlier calls may be left in a trace."""
    layers = [kl.Conv2D(4, 3, activation="relu", name="conv"), kl.GlobalAveragePooling2D(), head()]
    model = keras.Sequential([keras.Input((None, None, 3)), *layers])
    asked = [(8, [0]), (8, [2]), (11, (1, 2)), (6, np.array([2, 0])), (11, [0, 1])]
    for seed, (side, classes) in enumerate(asked):
        shake(model, seed)
        x = noise(1, side, side + 1, 3)
        maps, _ = gradcam_vgg.grad_cam(model, x, ["conv"], classes)
        assert error(maps["conv"], textbook(model, x, "conv", classes)[0]) < 1e-4
        expected = helpers.Projector(model, x).project("head", classes, "all", "guided")
        assert error(guided_backprop(model, x, classes), expected) < 1e-4


@pytest.mark.parametrize("name", ["softmax_as_argument", "nested", "residual"])
def test_model_is_left_as_it_was_and_gains_no_nodes(name):
    case = CASES[name]
    model = shake(case.build())
    x = noise(1, *model.input_shape[1:])
    before = helpers.state(model)
    output = model(x)
    opened = cnnvis.open_network(model)
    networks = [opened] if case.closed else [opened, model]
    states = [helpers.state(network) for network in networks]
    for _ in range(3):
        for network, state in zip(networks, states, strict=True):
            gradcam_vgg.grad_cam(network, x, ["conv1", "conv2"], [0, 1])
            guided_backprop(network, x, [0])
            assert helpers.state(network) == state
    assert helpers.state(model) == before
    np.testing.assert_array_equal(model(x), output)


def test_nine_layers_one_call_each_are_not_traced_for_ever():
    traces = []

    def counting(x):
        if not tf.executing_eagerly():
            traces.append(x)
        return x

    convs = [kl.Conv2D(3, 3, padding="same", name=f"conv{number}") for number in range(9)]
    above = [kl.Activation(counting), kl.GlobalAveragePooling2D(), head()]
    model = shake(keras.Sequential([keras.Input((8, 8, 3)), *convs, *above]))
    counts = []
    for seed in range(4):
        for conv in convs:
            gradcam_vgg.grad_cam(model, noise(1, 8, 8, 3, seed=seed), [conv.name], [0, 2])
        guided_backprop(model, noise(1, 8, 8, 3, seed=seed), [0, 2])
        counts.append(len(traces))
    assert counts[3] == counts[1], counts


def test_networks_that_are_dropped_are_collected():
    dropped = []
    for _ in range(3):
        model = two_convs(end="softmax_as_argument")
        opened = cnnvis.open_network(model)
        for _ in range(2):
            gradcam_vgg.grad_cam(opened, noise(1, 12, 10, 3), ["conv1"], [0, 1])
            guided_backprop(opened, noise(1, 12, 10, 3), [0, 1])
            deconvnet(opened, noise(1, 12, 10, 3), "conv2", [0, 1])
        dropped += [weakref.ref(model), weakref.ref(opened)]
    del model, opened
    gc.collect()
    assert [ref() for ref in dropped] == [None] * 6


def test_what_is_kept_of_a_network_goes_when_its_owner_changes_it(grad_cam):
    convs = [kl.Conv2D(4, 3, name="conv1"), kl.Conv2D(5, 3, activation="relu", name="conv2")]
    model = keras.Sequential([keras.Input((9, 8, 3)), *convs, kl.GlobalMaxPooling2D(), head()])
    x = noise(1, 9, 8, 3)

    def another_head():
        model.pop()
        model.add(head(units=5))

    def without_relu():
        convs[1].activation = keras.activations.tanh

    for change in (lambda: None, another_head, without_relu):
        change()
        shake(model)
        last = [model.output_shape[-1] - 1]
        found = grad_cam(model, x, ["conv1"], last)[0]["conv1"]
        assert error(found, textbook(model, x, "conv1", last)[0]) < 1e-5


REFUSED = [  # layers, classes, the method, how many pictures; a word of the message
    (["map1", "nowhere"], [0], "gradcam", 1, "nowhere"),
    (["head"], [0], "gradcam", 1, "head"),
    ("map1", [0], "gradcam", 1, "list"),
    (["map1"], [0], "gradcam", 2, "one"),
    (["map1"], [1, "cat", 1.5], "gradcam", 1, "'cat', 1.5"),
    (["map1"], [3], "gradcam", 1, "3"),
    (["map1"], [0, -1], "gradcam", 1, "-1"),
    (["map1"], [0], "eigencam", 1, r"gradcam.*gradcam\+\+.*hirescam.*layercam"),
    ([], [0], "gradcam", 1, "layer"),
    (["map1"], [], "gradcam", 1, "class"),
    (["aside"], [0], "gradcam", 1, "aside"),
]


@pytest.mark.parametrize("layers, classes, method, count, word", REFUSED, ids=str)
def test_what_is_unknown_or_empty_is_a_value_error(layers, classes, method, count, word):
    model = two_convs()
    aside = kl.Conv2D(2, 3, name="aside")(model.get_layer("map1").output)
    model = keras.Model(model.input, [model.output, aside])
    x = noise(count, 12, 10, 3)
    for _ in range(2):  # the second time a trace could be there
        with pytest.raises(ValueError, match=word):
            gradcam_vgg.grad_cam(model, x, layers, classes, method)
    if layers == ["map1"] and method == "gradcam":
        with pytest.raises(ValueError, match=word):
            guided_backprop(model, x, classes)


@pytest.mark.parametrize("shape", [(12, 10, 3), (1, 12, 9, 3), (1, 12, 10, 1), (1, 12, 10, 3, 1)])
def test_a_picture_of_another_shape_is_a_value_error(shape):
    for function in (gradcam_vgg.grad_cam, deconvnet):
        with pytest.raises(ValueError, match=r"one photograph, \(1, 12, 10, 3\)"):
            function(two_convs(), noise(*shape), ["conv1"], [0])


def test_pixels_that_no_gradient_reaches_are_a_value_error():
    inputs = keras.Input((12, 10, 3))
    model = keras.Model(inputs, classify(kl.Lambda(tf.stop_gradient)(inputs)))
    with pytest.raises(ValueError, match="reaches the photograph"):
        guided_backprop(model, noise(1, 12, 10, 3), [0])


def test_channels_first_is_a_value_error():
    model, x = helpers.channels_first(), noise(1, 3, 12, 10)
    with pytest.raises(ValueError, match="channels_first"):
        gradcam_vgg.grad_cam(model, x, ["conv"], [0])
    with pytest.raises(ValueError, match="channels_first"):
        guided_backprop(model, x, [0])
    with pytest.raises(ValueError, match="channels_first"):
        deconvnet(model, x, "conv", [0])


@pytest.mark.parametrize("end", ENDS)
def test_probabilities_are_refused(end):
    """They have other gradients than logits."""
    model = two_convs(end=end)
    x = noise(1, 12, 10, 3)
    with pytest.raises(ValueError, match="open_network"):
        gradcam_vgg.grad_cam(model, x, ["map1"], [0])
    with pytest.raises(ValueError, match="open_network"):
        guided_backprop(model, x, [0])
