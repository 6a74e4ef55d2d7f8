"""What networks are fed, and maps and projections as pictures, against NumPy and matplotlib."""

import matplotlib
import numpy as np
import pytest
from helpers import noise

import utils

PHOTO = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
GREY = [0.299, 0.587, 0.114]  # BT.601
BGR_MEAN = (103.939, 116.779, 123.68)  # of ImageNet, as the two below
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PREPROCESS = {  # as the documentation of Keras's imagenet_utils.preprocess_input has it
    "caffe": lambda rgb: rgb[..., ::-1] - BGR_MEAN,
    "tf": lambda rgb: rgb / 127.5 - 1,
    "torch": lambda rgb: (rgb / 255 - MEAN) / DEVIATION,
    "unit": lambda rgb: rgb / 255,
    "none": lambda rgb: rgb,
}


@pytest.mark.parametrize("mode", PREPROCESS)
def test_network_input(mode):
    """The whole photograph; grey ones for networks of one channel."""
    expected = PREPROCESS[mode]
    found = utils.network_input(PHOTO, (40, 50), mode)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected(PHOTO[None].astype(float)), atol=1e-4)
    step = 0.51 * np.max(expected(np.ones(3)) - expected(np.zeros(3)))  # rounding to whole numbers
    means = PHOTO.reshape(1, 20, 2, 10, 5, 3).mean(axis=(2, 4))
    found = utils.network_input(PHOTO, (20, 10), mode)
    np.testing.assert_allclose(found, expected(means), atol=step)
    if mode in ("tf", "unit", "none"):  # the others are made for three channels
        found = utils.network_input(PHOTO, (40, 50), mode, channels=1)
        np.testing.assert_allclose(found[0, ..., 0], expected(PHOTO @ GREY), atol=step)


def cubic(count, size):
    """Keys's cubic convolution, with OpenCV's a = -0.75, edges repeated, as a matrix."""
    a = -0.75
    matrix = np.zeros((size, count))
    for row, centre in enumerate((np.arange(size) + 0.5) * count / size - 0.5):
        for tap in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            t = abs(centre - tap)
            inner = (a + 2) * t**3 - (a + 3) * t**2 + 1
            outer = a * (t**3 - 5 * t**2 + 8 * t - 4)
            matrix[row, np.clip(tap, 0, count - 1)] += inner if t <= 1 else outer
    return matrix


@pytest.mark.parametrize("size", [1e-12, 1, 1e12])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_heat_is_relu_scaled_by_the_maximum_and_enlarged(size, scale):
    cam = noise(5, 7)
    heat = cubic(5, 40) @ np.maximum(cam, 0) @ cubic(7, 50).T / (scale or cam.max())
    found = utils.overlay(PHOTO, cam * size, colormap="bone", alpha=1, scale=scale and scale * size)
    expected = utils.colorize(heat, "bone")
    assert np.abs(found.astype(int) - expected).max() <= 3  # a colour beside it


@pytest.mark.parametrize("shape", [(1, 1), (4, 6), (40, 50), (1, 300)])
def test_overlay_mixes_photograph_and_colours(shape):
    cold, hot = (0, 0, 128), (128, 0, 0)  # jet's ends
    for value, colour in ((0, cold), (-3, cold), (7, hot)):
        laid = utils.overlay(PHOTO, np.full(shape, value), alpha=0.25)
        np.testing.assert_allclose(laid, 0.75 * PHOTO + 0.25 * np.array(colour), atol=0.51)


@pytest.mark.parametrize("name", ["turbo", "viridis", "inferno"])
def test_colours_are_those_of_matplotlib(name):
    values = np.linspace(0, 1, 256)[None]
    found = utils.colorize(values, name)
    assert np.abs(found - 255 * matplotlib.colormaps[name](values)[..., :3]).max() < 1
    np.testing.assert_array_equal(utils.colorize(np.array([[-1, 2]]), name), found[:, [0, -1]])


def test_signed_grey_keeps_signs_on_one_scale():
    like = np.empty((50, 4))
    values = np.linspace(-1, 1, 50)[:, None, None] * np.ones((1, 4, 1)) * [1, 0.5, 0]
    for size in (1e-20, 1, 1e20):
        rgb = utils.signed_grey(values * size, like)
        assert rgb.dtype == np.uint8
        assert (rgb[..., 2] == 128).all()  # zero is grey
        # 4: the 99th percentile is white
        np.testing.assert_allclose(rgb, (128 + 127 * values).clip(1, 255), atol=4)
    bgr = utils.signed_grey(values, like, "caffe")
    np.testing.assert_array_equal(bgr, utils.signed_grey(values, like)[..., ::-1])
    assert (utils.signed_grey(np.zeros((5, 6, 3)), like) == 128).all()


def test_signed_grey_shrinks_before_it_scales():
    """Alternating signs average away, and one hot pixel does not darken the rest."""
    values = np.tile([[1000.0, -1000.0], [-1000.0, 1000.0]], (20, 20))[..., None]
    values = values + np.linspace(-1, 1, 40)[:, None, None]
    values[0, 0] += 1e5
    picture = utils.signed_grey(values, np.empty((20, 20)))
    assert picture[1:5].max() < 64
    assert picture[-5:].min() > 192
    assert picture.shape == (20, 20, 3)
