"""Segmentation networks: maps are those of a plain tape on the network built without its end, whose
scores are sums of logits over pixels; shares, regions, layers; what is refused in one line."""

import functools

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import error, guided_relu, guided_tape, noise, shake, textbook, two_logits
from keras import layers as kl

import cnnvis
from cnnvis import segmentation
from cnnvis.geometry import stretched_geometry
from cnnvis.graph import named_layers
from cnnvis.logits import open_with_kind, probabilities
from gradcam_vgg import grad_cam, guided_backprop

SHAPE = (32, 48, 3)


def conv(x, width, name, **how):
    return kl.Conv2D(width, 3, padding="same", activation="relu", name=name, **how)(x)


def unet(last):
    image = keras.Input(SHAPE)
    down = conv(kl.Rescaling(0.5, -1)(image), 4, "down1")
    middle = conv(kl.MaxPooling2D()(down), 6, "down2")
    bottom = conv(kl.MaxPooling2D()(middle), 8, "bottom")
    up = conv(kl.Concatenate()([kl.UpSampling2D()(bottom), middle]), 6, "up2")
    up = conv(kl.Concatenate()([kl.UpSampling2D()(up), down]), 4, "up1")
    return keras.Model(image, last(lambda units, end: kl.Conv2D(units, 1, activation=end))(up))


def fully_convolutional(last):
    """Scores at a stride of 8, enlarged; its convolutions are a network inside it."""
    image = keras.Input(SHAPE)
    x = image
    for block, width in enumerate((4, 6, 8), 1):
        x = kl.MaxPooling2D()(conv(x, width, f"block{block}"))
    inner = keras.Model(image, x, name="inner")
    x = keras.Input(SHAPE)

    def scores(units, end):
        enlarge = kl.Conv2DTranspose(units, 16, 8, "same", activation=end)
        return lambda x: enlarge(kl.Conv2D(units, 1, name="scores8")(x))

    return keras.Model(x, last(scores)(conv(inner(x), 8, "main")))


def dilated(last):
    """An output of a quarter of the input's size."""
    image = keras.Input(SHAPE)
    x = conv(conv(image, 6, "stride2", strides=2), 6, "stride4", strides=2)
    branches = [conv(x, 4, f"rate{rate}", dilation_rate=rate) for rate in (1, 2, 3)]
    x = kl.BatchNormalization()(kl.Concatenate()(branches))
    x = conv(x, 6, "joined")
    return keras.Model(image, last(lambda units, end: kl.Conv2D(units, 3, activation=end))(x))


def in_two(layers):
    """The last layer without activation, and then its activation as a layer."""
    return lambda make: lambda x: layers(make(4, None)(x))


def in_one(units, activation):
    return lambda make: make(units, activation)


NETWORKS = {  # a network, given its end; its main layer
    "unet": (unet, "bottom"),
    "fully_convolutional": (fully_convolutional, "main"),
    "dilated": (dilated, "joined"),
}
ENDS = {
    "logits": in_one(4, None),
    "softmax": in_one(4, "softmax"),
    "Softmax": in_two(kl.Softmax()),
    "sigmoid": in_one(4, "sigmoid"),
    "one_sigmoid": in_one(1, "sigmoid"),
}


def region_scores(z, region=None):
    """Sums of logits (1, h, w, classes) over pixels, written anew."""
    z = two_logits(z) if z.shape[-1] == 1 else z
    winners = z.numpy().argmax(axis=-1)[0]
    sums = []
    for index in range(z.shape[-1]):
        chosen = winners == index if region is None else region
        chosen = chosen if chosen.any() else np.ones_like(chosen)
        sums.append(tf.reduce_sum(tf.boolean_mask(z[0, ..., index], chosen)))
    return tf.stack(sums)[None]


def saved(path, network, end):
    """A network saved with its end, and the same one without it."""
    build = NETWORKS[network][0]
    model = shake(build(ENDS[end]))
    model.save(path)
    plain = build(in_one(1 if end == "one_sigmoid" else 4, None))
    plain.set_weights(model.get_weights())
    return keras.saving.load_model(path, compile=False), plain


def some_pixels(plain):
    """A region, bool (h, w), of a network's output."""
    height, width = plain.output_shape[1:3]
    region = np.zeros((height, width), bool)
    region[: height // 2, width // 3 :] = True
    return region


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("end", ENDS)
def test_maps_are_those_of_a_plain_tape(tmp_path, network, end):
    loaded, plain = saved(tmp_path / "network.keras", network, end)
    layer = NETWORKS[network][1]
    for region in (None, some_pixels(plain)):
        opened = cnnvis.open_network(loaded, region=region)
        score = functools.partial(region_scores, region=region)
        for seed in range(2):  # eagerly, and traced
            x = noise(1, *SHAPE, seed=seed)
            maps, scores = grad_cam(opened, x, [layer], [1, 0])
            expected, expected_scores = textbook(plain, x, layer, [1, 0], score=score)
            assert error(maps[layer], expected) < 1e-5
            assert error(scores, expected_scores) < 1e-5
        again, same = grad_cam(cnnvis.open_network(opened), x, [layer], [1, 0])
        assert error(again[layer], expected) < 1e-5 and error(same, scores) < 1e-6


def test_guided_backpropagation_is_that_of_a_tape():
    model = shake(dilated(in_one(3, None)))
    expected = keras.models.clone_model(model)
    expected.set_weights(model.get_weights())
    for layer in expected.layers:
        if getattr(layer, "activation", None) is keras.activations.relu:
            layer.activation = guided_relu
    x = noise(1, *SHAPE)
    score = functools.partial(region_scores, region=some_pixels(model))
    opened = cnnvis.open_network(model, region=some_pixels(model))
    wanted = guided_tape(expected, x, score)
    assert error(guided_backprop(opened, x, [2, 0]), [wanted[2], wanted[0]]) < 1e-5


def test_where_softmax_cannot_be_removed_log_p_is_summed():
    def build(make):
        return lambda x: kl.UpSampling2D(2, interpolation="bilinear")(make(3, "softmax")(x))

    model = shake(dilated(build))
    x = noise(1, *SHAPE)
    opened, kind = open_with_kind(model)
    maps, _ = grad_cam(opened, x, ["joined"], [0, 2])

    def score(p):
        return region_scores(tf.math.log(p))

    expected, _ = textbook(model, x, "joined", [0, 2], score=score)
    assert kind == "log" and error(maps["joined"], expected) < 1e-4


def test_shares_and_mean_probabilities_are_those_of_the_pixels():
    """A class without a pixel is explained over all of them, and its title says so."""
    model = shake(dilated(ENDS["softmax"]))
    bias = model.layers[-1].bias
    bias.assign(bias - [0, 0, 0, 1e3])
    x, other = noise(1, *SHAPE), noise(2, *SHAPE, seed=1)
    for region in (None, some_pixels(model)):
        opened, kind = open_with_kind(model, region=region)
        network = segmentation.pixel_network(opened, functools.partial(probabilities, kind=kind))
        pixels = network.predict(x)
        winners, inside = model(x).numpy()[0].argmax(-1), region
        inside = np.ones_like(winners, bool) if region is None else region
        for index in range(4):
            share = (winners == index)[inside].mean()
            assert np.isclose(pixels.shares[index], share)
            chosen = (winners == index) if region is None and share else inside
            means = model(other).numpy()[:, chosen, index].mean(axis=1)
            scores, found = network.measure(other, pixels.regions)
            np.testing.assert_allclose(found[:, index], means, rtol=1e-4)
        with_all = [opened(each[None])[0, 3] for each in other]
        np.testing.assert_allclose(scores[:, 3], with_all, rtol=1e-4)
        no_pixel = "no pixel: explained over all" if region is None else "0 % of the mask"
        assert pixels.title(3) == no_pixel and " % of " in pixels.title(int(winners[0, -1]))


@pytest.mark.parametrize("fit", ["squeeze", "crop", "pad"])
def test_a_mask_of_the_photograph_becomes_cells_of_the_output(fit):
    """A cell belongs to the region if the mask covers half of it, or of all cells most of it."""
    photo = np.zeros((64, 64), bool)
    photo[16:48, 20:40] = True
    geometry = segmentation.Geometry(**{**vars(stretched_geometry((32, 48), 8, 12)), "fit": fit})
    found = segmentation.region_cells(photo, geometry, (8, 12))
    canvas = np.float32(photo)
    if fit == "crop":
        canvas = canvas[11:53]
    if fit == "pad":
        canvas = np.pad(canvas, ((0, 0), (16, 16)))
    share = cv2.resize(canvas, (12, 8), interpolation=cv2.INTER_AREA)
    clear = np.abs(share - 0.5) > 1e-3
    np.testing.assert_array_equal(found[clear], share[clear] > 0.5)
    dot = np.zeros((64, 64), bool)
    dot[32, 32] = True
    assert segmentation.region_cells(dot, geometry, (8, 12)).sum() == 1


def test_layers_are_the_last_of_every_resolution_down_and_up():
    expected = {
        "unet": ["down1", "down2", "bottom", "up2", "up1"],
        "fully_convolutional": ["block1", "block2", "block3", "main"],
        "dilated": ["stride2", "joined"],
    }
    for network, (build, main) in NETWORKS.items():
        model = cnnvis.open_network(build(ENDS["Softmax"]))
        layers = named_layers(model)
        found = segmentation.layers_down_and_up(model, layers)
        assert found == (expected[network], main)
