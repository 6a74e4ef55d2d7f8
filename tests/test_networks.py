"""Networks as people save them, drawn by a script as they come back from their files."""

import keras
import numpy as np
import pytest
from helpers import head, shake
from keras import layers as kl
from keras import ops
from runs import CAT

from utils import load_image, preprocess_input


def conv(x, filters=6, **how):
    return kl.Conv2D(filters, 3, padding="same", activation="relu", **how)(x)


def pooled(x, units=3, end="softmax"):
    return kl.Dense(units, end)(kl.GlobalAveragePooling2D()(x))


def fused(x):
    """A nested network of two inputs."""
    first, second = keras.Input((16, 16, 6)), keras.Input((16, 16, 6))
    inner = keras.Model([first, second], conv(kl.Add()([first, second])), name="fuse")
    return pooled(inner([conv(x), conv(x)]))


def weighted_mean(x):
    """Attention pooling: weights from a softmax, values from no such."""
    weights = kl.Activation("softmax")(kl.Reshape((256,))(kl.Conv2D(1, 1)(conv(x))))
    return kl.Dot(axes=(1, 1))([weights, kl.Reshape((256, 3))(kl.Conv2D(3, 1)(conv(x)))])


@keras.saving.register_keras_serializable("test")
class Block(kl.Layer):
    """A residual block with a strided pointwise convolution inside."""

    def __init__(self, filters=6, **more):
        super().__init__(**more)
        self.filters = filters
        self.conv = kl.Conv2D(filters, 3, 2, "same", activation="relu")
        self.shortcut = kl.Conv2D(filters, 1, 2)

    def build(self, shape):
        self.conv.build(shape)
        self.shortcut.build(shape)

    def call(self, x):
        return self.conv(x) + self.shortcut(x)

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


BLUR = np.full((3, 3, 6, 1), 1 / 9, np.float32)
NETWORKS = {  # what comes of a photograph; «p»: probabilities, «z»: logits, «log p» by its line
    "operations": (lambda x: pooled(conv(x) / 2.0 + 1.0), "p"),
    "blur": (lambda x: pooled(conv(ops.depthwise_conv(conv(x), BLUR, 2, "same"))), "p"),
    "ops_max_pool": (lambda x: pooled(conv(ops.max_pool(conv(x), 2))), "p"),
    "nested": (fused, "p"),
    "blocks": (lambda x: pooled(Block()(Block()(x))), "p"),
    "spectral": (lambda x: pooled(kl.SpectralNormalization(kl.Conv2D(4, 3))(x)), "p"),
    "one_minus": (lambda x: 1.0 - pooled(conv(x), 1, "sigmoid"), "log p"),
    "mean_of_two": (lambda x: (pooled(conv(x)) + pooled(conv(x))) / 2.0, "log p"),
    "weighted_mean": (weighted_mean, "z"),
    "gated": (
        lambda x: kl.Multiply()([pooled(conv(x), 3, None) * 9, pooled(x, 3, "sigmoid")]),
        "z",
    ),
    "age": (lambda x: kl.Rescaling(100.0)(pooled(conv(x), 1, "sigmoid")), "z"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_drawn_with_its_own_numbers(run, name):
    build, returned = NETWORKS[name]
    image = keras.Input((16, 16, 3))
    shake(keras.Model(image, build(image))).save("net.keras")
    keras.utils.clear_session()  # names are counted from the start, as in another process
    words = f"{CAT} --weights net.keras --preprocess unit --figures classes,layers,trust --arrays"
    done = run("gradcam_vgg", words, "--classes 0")
    assert done.code == 0 and len(done.out) == 6, done.err
    x = preprocess_input(load_image(CAT), (16, 16), "unit")
    output = keras.models.load_model("net.keras")(x, training=False).numpy()[0]
    z = done.arrays()["net/logits"]
    if returned == "p":
        z, output = z - z.mean(), np.log(output) - np.log(output).mean()
    if returned == "log p":
        output = np.log([1 - output[0], output[0]]) if len(output) == 1 else np.log(output)
    assert any("the maps explain log p" in line for line in done.err) == (returned == "log p")
    np.testing.assert_allclose(z, output, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("figure", ["classes", "guided"])
def test_a_network_without_a_gradient_is_one_line(run, figure):
    image = keras.Input((16, 16, 3))
    stopped = ops.stop_gradient(conv(image, name="first"))
    keras.Model(image, head()(kl.GlobalAveragePooling2D()(conv(stopped)))).save("net.keras")
    done = run("gradcam_vgg", f"{CAT} --weights net.keras --layers first --figures {figure}")
    assert "no gradient of the logits reaches" in done.error()


def test_the_last_layer_with_a_map_is_drawn_even_if_positions_are_unknown(run):
    image = keras.Input((16, 16, 3))
    x = Block(name="last")(conv(image, name="stem"))
    keras.Model(image, pooled(x)).save("net.keras")
    done = run("gradcam_vgg", f"{CAT} --weights net.keras --figures classes --arrays --classes 0")
    assert done.code == 0 and "net/last/0" in done.arrays()
    assert any(line.startswith("last: the positions of its cells are unknown") for line in done.err)
