"""Networks that are opened: maps are those of a plain tape on the network built flat, without its
last activation, or on log p where that cannot be taken off; and what is refused."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import channels_first, error, head, noise, shake, small, textbook, two_logits
from keras import layers as kl
from runs import CAT, program

import cnnvis
from cnnvis import graph, logits, networks
from deconvnet_vgg import deconvnet
from gradcam_vgg import grad_cam, guided_backprop


def test_what_cannot_be_drawn_is_said():
    def network(shape, inputs=1, outputs=1, flat=True):
        xs = [keras.Input(shape) for _ in range(inputs)]
        scores = [(kl.Flatten() if flat else kl.Reshape((64, 3)))(xs[0]) for _ in range(outputs)]
        return keras.Model(xs, scores)

    wrong = {
        "no channels.*Reshape": network((28, 28)),
        "is no image": network((784,)),
        "4 channels": network((8, 8, 4)),
        "channels_first": network((3, 8, 8)),
        "2 inputs": network((8, 8, 3), inputs=2),
        "2 outputs": network((8, 8, 3), outputs=2),
        "has 2 dimensions": network((8, 8, 3), flat=False),
        "known sizes": keras.Sequential([keras.layers.Flatten()]),
    }
    for said, model in wrong.items():
        with pytest.raises(ValueError, match=f"{said}.*drawn are networks of one image"):
            logits.check_signature(model)


def on_vgg16(activation="softmax"):
    base = keras.applications.VGG16(include_top=False, weights=None, input_shape=(32, 48, 3))
    if activation is None:
        return keras.Model(base.input, head(None, 5)(kl.Flatten()(base.output)))
    layers = [kl.Dropout(0.2), base, kl.Flatten(), head(activation, 5)]
    return keras.Sequential([keras.Input((32, 48, 3)), *layers])


def mobilenet_v2(activation):
    options = {"weights": None, "input_shape": (64, 32, 3), "classes": 7}
    return keras.applications.MobileNetV2(**options, classifier_activation=activation)


def recurrent(layer, activation="softmax"):
    inputs = keras.Input((12, 10, 3))
    x = kl.Conv2D(4, 3, activation="relu", name="conv")(inputs)
    return keras.Model(inputs, head(activation)(layer(kl.Reshape((10, 32))(x))))


def hard_gru():
    return kl.GRU(3, recurrent_activation="hard_sigmoid")


imagenet = keras.applications.vgg16.preprocess_input
SAVED = {  # how it is built, given the activation; a layer
    "on VGG16.keras": (on_vgg16, "block5_conv3"),
    "MobileNetV2.h5": (mobilenet_v2, "out_relu"),
    "one sigmoid.keras": (functools.partial(small, units=1, before=imagenet), "conv2"),
    "six sigmoids.h5": (functools.partial(small, units=6, before=kl.Rescaling(1 / 255)), "conv1"),
    "softmax.h5": (small, "conv2"),
    "LSTM.keras": (lambda end: recurrent(kl.LSTM(5, activation="relu"), end), "conv"),
    "GRU.keras": (lambda end: recurrent(kl.GRU(5), end), "conv"),
    "Bidirectional.h5": (lambda end: recurrent(kl.Bidirectional(hard_gru()), end), "conv"),
}


@pytest.mark.parametrize("name", SAVED)
def test_maps_of_a_saved_network_are_those_of_a_plain_tape(tmp_path, name):
    build, layer = SAVED[name]
    saved = shake(build("sigmoid" if "sigmoid" in name else "softmax"))
    plain = build(None)
    plain.set_weights(saved.get_weights())
    saved.save(tmp_path / name)
    opened = cnnvis.open_network(keras.saving.load_model(tmp_path / name, compile=False))
    tf.config.run_functions_eagerly("RNN" not in name)  # to trace each takes long
    score = two_logits if "one sigmoid" in name else tf.identity
    for seed in range(2):
        x = noise(1, *saved.input_shape[1:], seed=seed)
        maps, logits = grad_cam(opened, x, [layer], [1, 0])
        expected, expected_logits = textbook(plain, x, layer, [1, 0], score=score)
        assert error(maps[layer], expected) < 1e-4
        assert error(logits, expected_logits) < 1e-4
    tf.config.run_functions_eagerly(False)


def average(activation, units):
    return lambda x: kl.Average()([kl.Dense(units, activation)(x) for _ in range(2)])


def renormalised(x):
    x = keras.ops.clip(head("softmax")(x), 0.05, 0.8)
    return x / keras.ops.sum(x, axis=-1, keepdims=True)


def yes_or_no(p):
    return tf.math.log(tf.concat([1 - p, p], axis=-1))


NO_LOGITS = {  # how it ends; what is explained
    "average_of_two_softmax_heads": (average("softmax", 3), tf.math.log),
    "softmax_twice": (lambda x: kl.Softmax()(head("softmax")(x)), tf.math.log),
    "clip_and_division": (renormalised, tf.math.log),
    "cast": (lambda x: keras.ops.cast(head("softmax")(x), "float64"), tf.math.log),
    "averaged_sigmoids": (average("sigmoid", 3), tf.math.log),
    "average_of_one_sigmoid": (average("sigmoid", 1), yes_or_no),
}


@pytest.mark.parametrize("end", NO_LOGITS)
def test_where_an_end_cannot_be_taken_off_log_p_is_explained(end):
    build, score = NO_LOGITS[end]
    inputs = keras.Input((9, 8, 3))
    x = kl.Conv2D(6, 3, activation="relu", name="conv")(inputs)
    model = shake(keras.Model(inputs, build(kl.GlobalAveragePooling2D()(x))))
    x = noise(1, 9, 8, 3)
    maps, outputs = grad_cam(cnnvis.open_network(model), x, ["conv"], [1, 0])
    expected, log_p = textbook(model, x, "conv", [1, 0], score=score)
    assert error(maps["conv"], expected) < 1e-4
    np.testing.assert_allclose(tf.nn.softmax(outputs), tf.nn.softmax(log_p), rtol=1e-4)


def test_an_open_input_size_is_asked_for():
    model = shake(small(shape=(None, None, 3)))
    for size in (None, 40, (40, 50, 3), (0, 50)):
        with pytest.raises(ValueError, match=r"size=\(height, width\)"):
            cnnvis.open_network(model, size)
    opened = cnnvis.open_network(model, size=(40, 50))
    x = noise(1, 40, 50, 3)
    assert opened.input_shape == (None, 40, 50, 3)
    np.testing.assert_allclose(tf.nn.softmax(opened(x)), model(x), rtol=1e-4)


class Unknown(kl.Layer):
    """A custom layer, which is not registered."""

    def call(self, x):
        return 2 * x


class Subclassed(keras.Model):
    def call(self, x):
        return x[:, 0, 0]


def test_custom_layers_are_opened_and_subclassed_or_channels_first_networks_refused():
    model = shake(small(None, before=Unknown()))
    x = noise(1, 64, 64, 3)
    np.testing.assert_array_equal(cnnvis.open_network(model)(x), model(x))
    with pytest.raises(ValueError, match="functional"):
        cnnvis.open_network(Subclassed())
    with pytest.raises(ValueError, match="channels_first"):
        cnnvis.open_network(channels_first())


def explained(saved, x):
    """Maps, logits, guided backpropagation and projections of a network as it is opened now."""
    model = cnnvis.open_network(saved)
    layer = list(graph.named_layers(model))[-1]
    maps, logits = grad_cam(model, x, [layer], [0, 1])
    guided = guided_backprop(model, x, [1])
    return [maps[layer], logits, guided, deconvnet(model, x, layer, [0, 1], rule="guided")]


def test_half_precision_and_channels_first_do_not_leak_in():
    saved, x = small(), noise(1, 64, 64, 3)
    expected = explained(saved, x)
    keras.config.set_floatx("float16")
    keras.config.set_image_data_format("channels_first")
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:
        found = explained(saved, x)
        assert keras.config.floatx() == "float16"  # what the person chose stays
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_image_data_format("channels_last")
        keras.mixed_precision.set_dtype_policy("float32")
    for got, wanted in zip(found, expected, strict=True):
        assert got.dtype == np.float32 and error(got, wanted) < 1e-6


def test_a_layer_that_gives_another_shape_than_it_declares_is_named():
    stack = [keras.Input((64, 64, 3)), kl.RandomCrop(32, 32), kl.Conv2D(4, 3, name="conv")]
    model = keras.Sequential([*stack, kl.GlobalAveragePooling2D(), kl.Dense(2)])
    with pytest.raises(ValueError, match=r"random_crop\w* declares maps of \(32, 32, 3\)"):
        networks.check_shapes(cnnvis.open_network(model))


def test_a_strided_pointwise_convolution_of_few_channels_does_not_end_the_process(tmp_path):
    """oneDNN's kernel for its filters' gradient, which nobody asked for, writes past its memory."""
    conv = kl.Conv2D(8, 3, padding="same", name="conv")
    above = [kl.Conv2D(16, 1, strides=2), kl.GlobalAveragePooling2D(), head("softmax")]
    keras.Sequential([keras.Input((64, 64, 1)), conv, *above]).save(tmp_path / "narrow.keras")
    words = "--weights narrow.keras --preprocess unit --layers conv --figures layers,guided"
    done = program("gradcam_vgg", CAT, words, cwd=tmp_path)
    assert (done.code, len(done.out)) == (0, 2), done.err


ENDS = {  # an activation at the end: how logits become probabilities without it
    "log_softmax": "softmax",
    "hard_sigmoid": "hard_sigmoid",
    "sparsemax": "sparsemax",
    "sigmoid": "sigmoid",
}


@pytest.mark.parametrize("units", [1, 4])
@pytest.mark.parametrize("name", ENDS)
def test_probabilities_are_what_the_saved_network_gives(tmp_path, name, units):
    """Whatever is taken off: the titles' numbers are the network's own."""
    if units == 1 and name in ("log_softmax", "sparsemax"):
        return  # they need several units
    shake(small(name, units)).save(tmp_path / "net.keras")
    loaded = keras.models.load_model(tmp_path / "net.keras")
    opened, kind = logits.open_with_kind(loaded)
    x = noise(1, 64, 64, 3)
    found = logits.probabilities(opened(x, training=False), kind)
    expected = loaded(x, training=False).numpy()
    if name == "log_softmax":
        expected = np.exp(expected)
    if units == 1:
        expected = np.concatenate([1 - expected, expected], axis=-1)
    else:
        assert kind == ENDS[name]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_softmax_of_one_unit_is_refused():
    with pytest.raises(ValueError, match="softmax of one unit"):
        logits.open_with_kind(small("softmax", 1))


def two_in_two_out():
    """A nested network with two inputs and two outputs."""
    first, second = keras.Input((8, 8, 4)), keras.Input((8, 8, 4))
    outputs = [kl.ReLU()(kl.Add()([first, second])), kl.Conv2D(4, 1)(first)]
    return keras.Model([first, second], outputs, name="inner")


@keras.saving.register_keras_serializable("test")
class Branch(keras.Model):
    """A subclassed network inside another one."""

    def __init__(self, **more):
        super().__init__(**more)
        self.conv = kl.Conv2D(4, 3, activation="relu")

    def call(self, x):
        return self.conv(x)

    def build(self, shape):
        self.conv.build(shape)


@pytest.mark.parametrize("kind", ["several inputs and outputs", "subclassed"])
def test_nested_networks_that_cannot_be_inlined_are_layers(tmp_path, kind):
    inputs = keras.Input((10, 10, 3))
    x = kl.Conv2D(4, 3, activation="relu", name="conv")(inputs)
    if kind == "subclassed":
        x = Branch()(x)
    else:
        x = kl.Concatenate()(two_in_two_out()([x, kl.Activation("tanh")(x)]))
    model = shake(keras.Model(inputs, head("softmax")(kl.GlobalAveragePooling2D()(x))))
    model.save(tmp_path / "net.keras")
    loaded, x = keras.models.load_model(tmp_path / "net.keras"), noise(1, 10, 10, 3)
    maps, scores = grad_cam(cnnvis.open_network(loaded), x, ["conv"], [0, 1])
    expected, log_p = textbook(loaded, x, "conv", [0, 1], score=tf.math.log)
    np.testing.assert_allclose(tf.nn.softmax(scores), np.exp(log_p), rtol=1e-4)
    difference = np.subtract(*maps["conv"]), np.subtract(*expected)  # less the log of the sum
    assert error(*difference) < 1e-4
