"""Where cells lie: against measured input gradients, picked pixels, and discs that are found."""

import functools
import itertools
from dataclasses import replace

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import utils

PHOTO = 200, 320
RADIUS = 12  # of the disc
PLACES = [(y, x) for y in (35, 100, 165) for x in (35, 118, 202, 285)]
RED = np.float32([0.9, 0.2, 0.1])


def averaging(model):
    """Set every kernel so that its layer takes plain means of pixels and channels."""
    for weight in model.weights:
        if "kernel" in weight.name:
            inputs = weight.shape[:-2] if "depthwise" in weight.path else weight.shape[:-1]
            weight.assign(np.full(weight.shape, 1 / np.prod(inputs)))
    return model


def unpooled(layer):
    """A copy of a layer; of maximum pooling, whose gradient takes sides, mean pooling."""
    kind = layers.AveragePooling2D if type(layer) is layers.MaxPooling2D else type(layer)
    return kind.from_config(layer.get_config())


def check_centre(model, geometry):
    """Centre of mass of the input gradient of a map's middle (one to four cells)."""
    height, width = model.output.shape[1:3]
    rows = slice((height - 1) // 2, height // 2 + 1)
    columns = slice((width - 1) // 2, width // 2 + 1)
    x = tf.fill(model.inputs[0].shape[1:], 1e-3)[None]  # so small that ReLU6 stays linear
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = tf.reduce_sum(model(x, training=False)[0, rows, columns])
    mass = np.abs(tape.gradient(value, x)[0]).sum(axis=-1)
    pixels = np.indices(mass.shape) + 0.5
    measured = (pixels * mass).sum(axis=(1, 2)) / mass.sum()
    offset, step = geometry.cells.T
    computed = offset + step * (height / 2 - 0.5, width / 2 - 0.5)
    np.testing.assert_allclose(computed, measured, atol=3)


@pytest.mark.parametrize(
    "name, layer, size",
    [
        ("VGG16", "block5_conv3", 224),
        ("ResNet50", "conv4_block6_out", 224),
        ("ResNet50", "conv5_block3_out", 224),
        ("InceptionV3", "mixed10", 299),
        ("MobileNetV2", "out_relu", 224),
    ],
)
def test_published_networks(name, layer, size):
    build = getattr(keras.applications, name)
    model = build(weights=None, include_top=False, input_shape=(size, size, 3))
    model = averaging(keras.models.clone_model(model, clone_function=unpooled))
    geometry = utils.layer_geometries(model)[layer]
    check_centre(keras.Model(model.inputs, model.get_layer(layer).output), geometry)


def resize(x, **how):
    return layers.Resizing(x.shape[1] * 2 // 3, x.shape[1] * 2 // 3, **how)(x)


def excited(x):
    factors = layers.Dense(3, "sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    return layers.Multiply()([x, factors])


MAXIMUM = 4  # of KINDS
KINDS = [
    lambda x: layers.Conv2D(3, 5, strides=2)(x),
    lambda x: layers.Conv2D(3, 3, strides=2, padding="same", activation="relu")(x),
    lambda x: layers.DepthwiseConv2D(3, dilation_rate=3)(x),
    lambda x: layers.SeparableConv2D(3, (3, 5))(x),
    lambda x: layers.MaxPooling2D(3, 2, padding="same")(x),
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
    excited,
    resize,
    lambda x: resize(x, crop_to_aspect_ratio=True),
    lambda x: resize(x, pad_to_aspect_ratio=True),
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
    return model, utils.layer_geometries(model)["heat"]


@pytest.mark.parametrize("seed", range(25))
def test_random_networks(seed):
    mean = np.delete(range(len(KINDS)), MAXIMUM)  # the gradient of a maximum goes to one side
    kinds = np.random.default_rng(seed).permutation(mean)[:5]
    model, geometry = network_of(kinds, (64, 80))
    check_centre(model, geometry)


def test_every_cell_picks_one_pixel():
    inputs = keras.Input((45, 64, 2))  # y and x of every pixel
    x = layers.DepthwiseConv2D(5, strides=2, padding="same")(inputs)
    x = layers.MaxPooling2D(1, 2)(layers.ZeroPadding2D(((1, 2), (3, 0)))(x))
    x = layers.DepthwiseConv2D(3, dilation_rate=2)(layers.CenterCrop(9, 15)(x))
    x = layers.Cropping2D(((3, 0), (0, 2)))(layers.UpSampling2D(3)(x))
    model = keras.Model(inputs, layers.DepthwiseConv2D(3, strides=3)(x))
    for kernel in model.weights[::2]:
        picks = np.zeros(kernel.shape)
        picks[kernel.shape[0] // 2, kernel.shape[1] // 2] = 1
        kernel.assign(picks)
    positions = np.moveaxis(np.indices((45, 64)), 0, -1)[None] + 0.5
    picked = model(positions)[0].numpy()
    cells = utils.layer_geometries(model)[model.layers[-1].name].cells
    computed = np.moveaxis(np.indices(picked.shape[:2]), 0, -1) * cells[:, 1] + cells[:, 0]
    np.testing.assert_allclose(picked, computed, atol=1e-5)


@pytest.mark.parametrize(
    "rearrange",
    [
        layers.Permute((2, 1, 3)),
        layers.Reshape((32, 8, 12)),
        lambda x: layers.MultiHeadAttention(1, 2)(x, x),
        lambda x: ops.flip(x, axis=2),
        lambda x: ops.roll(x, 4, axis=1),
        lambda x: x[:, :, ::-1],
        lambda x: layers.Concatenate()([x, ops.flip(x, axis=1)]),
        lambda x: x[:, 8:] + x[:, :-8],
        lambda x: ops.transpose(x, (0, 2, 1, 3)),
    ],
)
def test_rearranged_positions_are_unknown(rearrange):
    inputs = keras.Input((32, 32, 3))
    below = layers.Conv2D(3, 3, padding="same", name="below")(inputs)
    above = layers.Conv2D(4, 3, name="above")(rearrange(below))
    scores = layers.Dense(2, name="scores")(layers.GlobalAveragePooling2D()(above))
    found = utils.layer_geometries(keras.Model(inputs, scores))
    assert found["below"] and found["above"] is None and found["scores"] is None


def network_input(photo, size, fit):
    """A photograph as the network's input."""
    (top, left), (height, width) = utils.fitted(photo.shape[:2], size, fit)
    borders = max(-top, 0), max(-top, 0), max(-left, 0), max(-left, 0)
    if fit == "pad":
        photo = cv2.copyMakeBorder(photo, *borders, cv2.BORDER_CONSTANT, value=(0.5, 0.5, 0.5))
    else:
        photo = photo[top : top + height, left : left + width]
    return cv2.resize(photo, size[::-1], interpolation=cv2.INTER_AREA)


@functools.cache
def discs(size, fit):
    """For every place: how far pixels are from it; red discs there as a network's input."""
    y, x = np.indices(PHOTO) + 0.5
    away = [np.hypot(y - place[0], x - place[1]) for place in PLACES]
    photos = [np.where(disc[..., None] < RADIUS, RED, np.float32(0.5)) for disc in away]
    return away, np.stack([network_input(photo, size, fit) for photo in photos])


SINGLES = [((kind,), fit) for kind in range(len(KINDS)) for fit in ("squeeze", "crop", "pad")]
PAIRS = [(pair, "squeeze") for pair in itertools.permutations(range(len(KINDS)), 2)]


@pytest.mark.parametrize("kinds, fit", SINGLES + PAIRS[::4])
def test_heat_lies_on_the_disc(kinds, fit):
    model, geometry = network_of(kinds, (120, 144))
    geometry = replace(geometry, fit=fit)
    away, inputs = discs(geometry.size, fit)
    maps = model(inputs, training=False)[..., 0].numpy()
    length = utils.fitted(PHOTO, geometry.size, fit)[1]
    half_cell = geometry.cells[:, 1] / geometry.size * length / 2
    shown = utils.dim(np.full((*PHOTO, 3), 255, np.uint8), geometry)[..., 0] == 255
    assert shown[100, 160]
    for cam, disc, place in zip(maps, away, PLACES, strict=True):
        if not shown[disc < RADIUS + 2].all():
            continue
        heat = utils.place(cam, geometry, *PHOTO)
        assert disc.flat[heat.argmax()] <= RADIUS + half_cell.max()
        peak = np.argwhere(heat > heat.max() / 2).mean(axis=0) + 0.5
        if len(kinds) == 1:  # in pairs it may be beyond the outermost cells
            assert (np.abs(peak - place) <= half_cell + 0.5).all()


def slow_place(cam, height, width, offset, step):
    """Cubic interpolation by Horner's scheme, pixel by pixel, in photograph pixels."""
    heat = np.zeros((height, width))
    for pixel in np.ndindex(height, width):
        at = (np.array(pixel) + 0.5 - offset) / step
        cell = np.floor(at).astype(int)
        taps = []
        for t in at - cell:
            outer = [((-0.75 * (u + 1) + 3.75) * (u + 1) - 6) * (u + 1) + 3 for u in (t, 1 - t)]
            inner = ((1.25 * t) - 2.25) * t * t + 1
            taps.append([outer[0], inner, 1 - outer[0] - inner - outer[1], outer[1]])
        rows = np.clip(cell[0] + np.arange(-1, 3), 0, cam.shape[0] - 1)
        columns = np.clip(cell[1] + np.arange(-1, 3), 0, cam.shape[1] - 1)
        heat[pixel] = taps[0] @ cam[np.ix_(rows, columns)] @ taps[1]
    return heat


def test_place_interpolates():
    cam = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    stretched = cv2.resize(cam, (320, 200), interpolation=cv2.INTER_CUBIC)
    for geometry in (None, utils.tiled((96, 96), 5, 7)):
        np.testing.assert_allclose(utils.place(cam, geometry, *PHOTO), stretched, atol=1e-4)
    shifted = replace(utils.tiled((60, 80), 5, 7), cells=np.float32([[3, 9], [30, 6]]))
    slow = slow_place(cam, 30, 40, np.array([1.5, 15]), np.array([4.5, 3]))
    np.testing.assert_allclose(utils.place(cam, shifted, 30, 40), slow, atol=1e-4)


def test_inner_cells_and_dim():
    inputs = keras.Input((64, 64, 3))
    x = layers.Cropping2D(((0, 0), (16, 0)), name="crop")(inputs)
    x = layers.Conv2D(4, 9, padding="same", name="narrow")(x)
    x = layers.Conv2D(4, 31, padding="same", name="wide")(x)
    geometries = utils.layer_geometries(keras.Model(inputs, x))
    inner = utils.inner_cells(geometries["narrow"], 64, 48)
    assert inner[4:-4, 4:-4].all() and inner.sum() == 56 * 40  # a field of 9 lies inside
    wide = utils.inner_cells(geometries["wide"], 64, 48)
    assert wide[16:-16, 12:-12].all() and wide.sum() == 32 * 24  # of 39: the inner half
    assert utils.inner_cells(None, 3, 4).all()
    photo = np.full((100, 128, 3), 200, np.uint8)
    dimmed = utils.dim(photo, geometries["narrow"])
    assert (dimmed[:, :32] < 100).all() and (dimmed[:, 32:] == 200).all()
    dimmed = utils.dim(photo, replace(geometries["narrow"], fit="crop"))
    assert (dimmed[:, :39] < 100).all() and (dimmed[:, 39:114] == 200).all()
    assert (dimmed[:, 114:] < 100).all()
