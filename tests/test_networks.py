"""Saved networks of any kind, opened: their maps are those of a plain tape on the network built
flat, without its last activation; or on log p where that cannot be taken off.
"""

import functools
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import channels_first, error, head, noise, shake, small, textbook, two_logits
from keras import layers as kl

import utils
from gradcam_vgg import grad_cam

PHOTO = utils.HERE / "Image" / "cat.jpg"


# --- saved networks: each built as people build it, and flat without its last activation ----------


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


imagenet = keras.applications.vgg16.preprocess_input
SAVED = {  # how it is built, given the activation; a layer
    "on VGG16.keras": (on_vgg16, "block5_conv3"),
    "MobileNetV2.h5": (mobilenet_v2, "out_relu"),
    "one sigmoid.keras": (functools.partial(small, units=1, before=imagenet), "conv2"),
    "six sigmoids.h5": (functools.partial(small, units=6, before=kl.Rescaling(1 / 255)), "conv1"),
    "softmax.h5": (small, "conv2"),
    "LSTM.keras": (lambda end: recurrent(kl.LSTM(5), end), "conv"),
    "GRU.keras": (lambda end: recurrent(kl.GRU(5, activation="relu"), end), "conv"),
    "SimpleRNN.keras": (lambda end: recurrent(kl.SimpleRNN(3), end), "conv"),
    "Bidirectional.h5": (lambda end: recurrent(kl.Bidirectional(kl.LSTM(3)), end), "conv"),
}


@pytest.mark.parametrize("name", SAVED)
def test_maps_of_a_saved_network_are_those_of_a_plain_tape(tmp_path, name):
    build, layer = SAVED[name]
    saved = shake(build("sigmoid" if "sigmoid" in name else "softmax"))
    plain = build(None)
    plain.set_weights(saved.get_weights())
    saved.save(tmp_path / name)
    opened = utils.open_network(keras.saving.load_model(tmp_path / name, compile=False))
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
    maps, outputs = grad_cam(utils.open_network(model), x, ["conv"], [1, 0])
    expected, log_p = textbook(model, x, "conv", [1, 0], score=score)
    assert error(maps["conv"], expected) < 1e-4
    np.testing.assert_allclose(tf.nn.softmax(outputs), tf.nn.softmax(log_p), rtol=1e-4)


def test_an_open_input_size_is_asked_for():
    model = shake(small(shape=(None, None, 3)))
    with pytest.raises(ValueError, match="size"):
        utils.open_network(model)
    opened = utils.open_network(model, size=(40, 50))
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
    np.testing.assert_array_equal(utils.open_network(model)(x), model(x))
    with pytest.raises(ValueError, match="functional"):
        utils.open_network(Subclassed())
    with pytest.raises(ValueError, match="channels_first"):
        utils.open_network(channels_first())


def test_a_strided_pointwise_convolution_of_few_channels_does_not_end_the_process(tmp_path):
    """oneDNN's kernel for its filters' gradient, which nobody asked for, writes past its memory."""
    conv = kl.Conv2D(8, 3, padding="same", name="conv")
    above = [kl.Conv2D(16, 1, strides=2), kl.GlobalAveragePooling2D(), head("softmax")]
    keras.Sequential([keras.Input((64, 64, 1)), conv, *above]).save(tmp_path / "narrow.keras")
    words = [PHOTO, "--weights", "narrow.keras", "--preprocess", "unit"]
    words += ["--layers", "conv", "--figures", "layers,guided"]
    environment = {key: value for key, value in os.environ.items() if "ONEDNN" not in key}
    program = [sys.executable, utils.HERE / "gradcam_vgg.py", *words]
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run(program, **options)
    assert (done.returncode, done.stdout.count("\n")) == (0, 2), done.stderr
