"""Positions of cells against measured input gradients, picked pixels, and discs."""

import itertools
from dataclasses import replace

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import cnnvis
import gradcam_googlenet
import utils
from cnnvis import geometry as places

PHOTO = 200, 320
PLACES = [(y, x) for y in (35, 100, 165) for x in (35, 118, 202, 285)]
RADIUS = 12  # of the disc
RED = np.uint8([230, 51, 26])
Y, X = np.indices(PHOTO) + 0.5
AWAY = [np.hypot(Y - y, X - x) for y, x in PLACES]
DISCS = [np.where(away[..., None] < RADIUS, RED, np.uint8(128)) for away in AWAY]


def check_centre(model, geometry):
    """Centre of mass of the input gradient of a map's middle (one to four cells)."""
    height, width = model.output.shape[1:3]
    rows = slice((height - 1) // 2, height // 2 + 1)
    columns = slice((width - 1) // 2, width // 2 + 1)
    # So small that ReLU6 stays linear; not all the same, for the sake of maxima
    x = tf.random.stateless_uniform((1, *model.inputs[0].shape[1:]), (0, 0), 5e-4, 15e-4)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = tf.reduce_sum(model(x, training=False)[0, rows, columns])
    mass = np.abs(tape.gradient(value, x)[0]).sum(axis=-1)
    measured = ((np.indices(mass.shape) + 0.5) * mass).sum(axis=(1, 2)) / mass.sum()
    offset, step = geometry.cells.T
    computed = offset + step * (height / 2 - 0.5, width / 2 - 0.5)
    np.testing.assert_allclose(computed, measured, atol=3)


def unpooled(layer):
    """A copy of a layer; of maximum pooling, whose gradient takes sides, mean pooling."""
    kind = layers.AveragePooling2D if type(layer) is layers.MaxPooling2D else type(layer)
    return kind.from_config(layer.get_config())


NETWORKS = [
    ("VGG16", "block5_conv3", 224),
    ("GoogLeNet", "Mixed_5c", 224),
    ("ResNet50", "conv5_block3_out", 224),
    ("InceptionV3", "mixed10", 299),
    ("MobileNetV2", "out_relu", 224),
]


@pytest.mark.parametrize("name, layer, size", NETWORKS)
def test_published_networks(name, layer, size):
    if name == "GoogLeNet":
        model = gradcam_googlenet.build()
    else:
        build = getattr(keras.applications, name)
        model = build(weights=None, include_top=False, input_shape=(size, size, 3))
    model = keras.models.clone_model(model, clone_function=unpooled)
    for weight in model.weights:
        if "kernel" in weight.name:  # plain means of pixels and channels
            inputs = weight.shape[:-2] if "depthwise" in weight.path else weight.shape[:-1]
            weight.assign(np.full(weight.shape, 1 / np.prod(inputs)))
    geometry = cnnvis.layer_geometries(model)[layer]
    check_centre(keras.Model(model.inputs, model.get_layer(layer).output), geometry)


KINDS = [
    lambda x: layers.MaxPooling2D(3, 2, padding="same")(x),
    lambda x: layers.Conv2D(3, 5, strides=2)(x),
    lambda x: layers.Conv2D(3, 3, strides=2, padding="same", activation="relu")(x),
    lambda x: layers.DepthwiseConv2D(3, dilation_rate=3)(x),
    lambda x: layers.SeparableConv2D(3, (3, 5))(x),
    lambda x: layers.AveragePooling2D(2)(x),
    lambda x: layers.Conv2DTranspose(3, 4, strides=2)(x),
    lambda x: layers.UpSampling2D(2)(x),
    lambda x: layers.ZeroPadding2D(((4, 0), (0, 5)))(x),
    lambda x: layers.Cropping2D(((4, 0), (1, 3)))(x),
    lambda x: layers.CenterCrop(x.shape[1] * 3 // 4, x.shape[2] * 3 // 4)(x),
    lambda x: ops.pad(x, [[0, 0], [2, 0], [0, 3], [0, 0]])[:, 1::2, ..., :],
    lambda x: ops.relu(layers.Rescaling(2)(layers.RandomFlip()(layers.RandomRotation(0.2)(x)))),
    lambda x: x + layers.Conv2D(3, 3, padding="same")(layers.Dropout(0.5)(x)),
    lambda x: layers.Concatenate()([x[..., :1], layers.MaxPooling2D(1)(x)[..., 1:]]),
    lambda x: x * ops.sigmoid(layers.GlobalAveragePooling2D(keepdims=True)(x)),
    lambda x: layers.Resizing(80, 80)(x),
    lambda x: layers.Resizing(80, 80, crop_to_aspect_ratio=True)(x),
    lambda x: layers.Resizing(80, 80, pad_to_aspect_ratio=True)(x),
]


def network_of(kinds, size):
    """A network that finds red behind layers of some kinds, which blur, and its map's geometry."""
    x = inputs = keras.Input((*size, 3))
    for kind in kinds:
        x = KINDS[kind](x)
    model = keras.Model(inputs, layers.Conv2D(1, 1, use_bias=False, name="heat")(x))
    for weight in model.weights[:-1]:
        if "kernel" in weight.name:
            channels = np.ones((3, 1)) if "depthwise" in weight.path else np.eye(3)
            weight.assign(np.ones(weight.shape) / np.prod(weight.shape[:2]) * channels)
    model.get_layer("heat").set_weights([(RED - RED.mean())[None, None, :, None]])
    return model, cnnvis.layer_geometries(model)["heat"]


@pytest.mark.parametrize("seed", range(6))
def test_random_networks(seed):
    kinds = np.random.default_rng(seed).permutation(len(KINDS))[:5]
    check_centre(*network_of(kinds, (64, 80)))


def test_every_cell_picks_one_pixel():
    inputs = keras.Input((45, 64, 2))  # y and x of every pixel
    x = layers.DepthwiseConv2D(5, strides=2, padding="same")(inputs)
    x = layers.MaxPooling2D(1, 2)(layers.ZeroPadding2D(((1, 2), (3, 0)))(x))
    x = layers.DepthwiseConv2D(3, dilation_rate=2)(layers.CenterCrop(9, 15)(x))
    x = layers.Cropping2D(((3, 0), (0, 2)))(layers.UpSampling2D(3)(x))
    model = keras.Model(inputs, layers.DepthwiseConv2D(3, strides=3, name="last")(x))
    for kernel in model.weights[::2]:
        picks = np.zeros(kernel.shape)
        picks[kernel.shape[0] // 2, kernel.shape[1] // 2] = 1
        kernel.assign(picks)
    picked = model(np.stack(np.indices((45, 64)), axis=-1)[None] + 0.5)[0].numpy()
    offset, step = cnnvis.layer_geometries(model)["last"].cells.T
    computed = np.stack(np.indices(picked.shape[:2]), axis=-1) * step + offset
    np.testing.assert_allclose(picked, computed, atol=1e-5)


REARRANGE = [
    layers.Permute((2, 1, 3)),
    layers.Reshape((32, 8, 12)),
    lambda x: layers.MultiHeadAttention(1, 2)(x, x),
    lambda x: ops.roll(x, 4, axis=1),
    lambda x: x[:, :, ::-1],
    lambda x: layers.Concatenate()([x, ops.flip(x, axis=1)]),
    lambda x: x[:, 8:] + x[:, :-8],
    lambda x: ops.transpose(x, (0, 2, 1, 3)),
]


@pytest.mark.parametrize("rearrange", REARRANGE)
def test_rearranged_positions_are_unknown(rearrange):
    inputs = keras.Input((32, 32, 3))
    below = layers.Conv2D(3, 3, padding="same", name="below")(inputs)
    above = layers.Conv2D(4, 3, name="above")(rearrange(below))
    scores = layers.Dense(2, name="scores")(layers.GlobalAveragePooling2D()(above))
    found = cnnvis.layer_geometries(keras.Model(inputs, scores))
    assert found["below"] and found["above"] is None and found["scores"] is None


SINGLES = [((kind,), "squeeze") for kind in range(len(KINDS))]
FITTED = [((1,), "crop"), ((1,), "pad"), ((16,), "crop"), ((16,), "pad")]
PAIRS = [(pair, "squeeze") for pair in itertools.permutations(range(len(KINDS)), 2)][::12]


@pytest.mark.parametrize("kinds, fit", SINGLES + FITTED + PAIRS)
def test_heat_is_on_the_disc(kinds, fit):
    model, geometry = network_of(kinds, (120, 144))
    geometry, size = replace(geometry, fit=fit), geometry.size
    inputs = [utils.preprocess_input(photo, size, "unit", fit=fit)[0] for photo in DISCS]
    maps = model(np.stack(inputs), training=False)[..., 0].numpy()
    half_cell = geometry.cells[:, 1] / size * utils.fit_box(PHOTO, size, fit)[1] / 2
    shown = geometry.dim(np.full((*PHOTO, 3), 255, np.uint8))[..., 0] == 255
    assert shown[100, 160]
    for cam, away, place in zip(maps, AWAY, PLACES, strict=True):
        if not shown[away < RADIUS + 2].all():
            continue
        heat = geometry.resample(cam, *PHOTO)
        assert away.flat[heat.argmax()] <= RADIUS + half_cell.max()
        peak = np.argwhere(heat > heat.max() / 2).mean(axis=0) + 0.5
        if len(kinds) == 1:  # in pairs it may be beyond the outermost cells
            assert (np.abs(peak - place) <= half_cell + 0.5).all()


def test_resample_interpolates():
    cam = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    stretched = cv2.resize(cam, (320, 200), interpolation=cv2.INTER_CUBIC)
    whole = places.stretched_geometry((96, 96), 5, 7)
    np.testing.assert_allclose(whole.resample(cam, *PHOTO), stretched, atol=1e-4)
    cells = np.float32([[30, 10], [50, 10]])  # 20 of the photograph's pixels each
    part = replace(places.stretched_geometry((100, 160), 5, 7), cells=cells)
    placed = part.resample(cam, *PHOTO)
    inner = cv2.resize(cam, (140, 100), interpolation=cv2.INTER_CUBIC)
    np.testing.assert_allclose(placed[50:150, 90:230], inner, atol=1e-4)


def test_inner_cells_and_dim():
    inputs = keras.Input((64, 64, 3))
    x = layers.Cropping2D(((0, 0), (16, 0)), name="crop")(inputs)
    x = layers.Conv2D(4, 9, padding="same", name="narrow")(x)
    x = layers.Conv2D(4, 31, padding="same", name="wide")(x)
    geometries = cnnvis.layer_geometries(keras.Model(inputs, x))
    inner = geometries["narrow"].inner_cells(64, 48)
    assert inner[4:-4, 4:-4].all() and inner.sum() == 56 * 40  # where a field of 9 is inside
    wide = geometries["wide"].inner_cells(64, 48)
    assert wide[16:-16, 12:-12].all() and wide.sum() == 32 * 24  # of 39: the inner half
    for fit, first, last in (("squeeze", 32, 128), ("crop", 39, 114)):
        geometry = replace(geometries["narrow"], fit=fit)
        dimmed = geometry.dim(np.full((100, 128, 3), 200, np.uint8))
        assert (dimmed[:, first:last] == 200).all()
        assert (np.delete(dimmed, slice(first, last), axis=1) < 100).all()


SLICES = {
    "vgg16": (keras.applications.vgg16.preprocess_input, (0.5, 0.5)),
    "resnet50": (keras.applications.resnet50.preprocess_input, (0.5, 0.5)),
    "cropped": (lambda x: x[:, 8:-8, 4:-4], (8.5, 4.5)),
    "one_channel": (lambda x: x[..., 0:1], (0.5, 0.5)),
    "steps": (lambda x: x[:, ::2, 1::2], (0.5, 1.5)),
}


@pytest.mark.parametrize("name", SLICES)
def test_slices_of_a_network_that_comes_back_from_its_file(name, tmp_path, monkeypatch):
    """Keras writes the key of a slice as a list, and NumPy would index by a list otherwise."""
    slice_it, first = SLICES[name]
    inputs = keras.Input((64, 64, 3))
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="conv")(slice_it(inputs))
    x = layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling2D()(x))
    keras.Model(inputs, x).save(tmp_path / "net.keras")
    loaded = cnnvis.open_network(keras.models.load_model(tmp_path / "net.keras"))
    known = cnnvis.layer_geometries(loaded)["conv"]
    assert known.cells[:, 0].tolist() == list(first)
    # An unknown variant of a known layer: no exception, no geometry
    monkeypatch.setitem(places.WINDOWS, "Conv2D", lambda layer, size, out: layer.no_such_thing)
    assert cnnvis.layer_geometries(loaded)["conv"] is None
