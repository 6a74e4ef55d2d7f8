"""Occlusion against a plain loop, and the colours of the most probable classes.

test_deconvnet_figures.py tests the numbers of the whole figure."""

import numpy as np
import pytest

from cnnvis import occlusion
from cnnvis.geometry import stretched_geometry
from utils import ClassNames


@pytest.mark.parametrize(
    "patch, stride, side, step", [(35, 30, 4, 4), (25, 7, 3, 1), (1, 99, 1, 12)]
)
def test_occlude_against_a_plain_loop(patch, stride, side, step):
    """side, step: in pixels, of a shorter side of 12."""
    x = np.random.default_rng(0).normal(size=(1, 12, 17, 3)).astype(np.float32)
    grey = np.float32([0.5, 0.25, -1])
    original = x.copy()
    squares, (pictures,) = occlusion.occlude(x, grey, lambda batch: (batch,), patch, stride)
    np.testing.assert_array_equal(x, original)
    points = [(y, x) for y in range(step // 2, 12, step) for x in range(step // 2, 17, step)]
    pictures = pictures.reshape(-1, 12, 17, 3)
    for square, picture, (y, x) in zip(squares, pictures, points, strict=True):
        expected, (top, left) = original[0].copy(), (y - side // 2, x - side // 2)
        expected[max(top, 0) : top + side, max(left, 0) : left + side] = grey
        np.testing.assert_array_equal(picture, expected)
        assert (picture[square] == grey).all()


def test_drops_and_colours_of_the_most_probable_classes():
    drop = occlusion.OcclusionDrop(0.75, np.float32([[0.5, 1]]))
    assert drop.map().tolist() == [[0.25, -0.25]] and drop.words() == "0.75, occluded 0.5 to 1"
    winners = np.array([[6, 6, 6, 6, 1, 1], [1, 2, 2, 3, 4, 5]])  # 5 comes last: it stays grey
    geometry = stretched_geometry((20, 60), *winners.shape, "crop")
    names = ClassNames([""] * 7, list("abcdefg"))
    image = np.zeros((20, 80, 3), np.uint8)  # 10 columns on either side are cropped
    tile = occlusion.most_probable_tile(winners, image, geometry, names)
    assert tile.title.startswith("most probable: red: g (6); green: b (1); yellow: c (2); blue: d")
    assert "f (5)" not in tile.title
    colours = [occlusion.COLOURS["red"], occlusion.COLOURS["green"], (128, 128, 128)]
    for position, colour in zip([(5, 15), (15, 15), (15, 65)], colours, strict=True):
        assert np.abs(tile.picture[position] - np.divide(colour, 2)).max() <= 0.5
    assert tile.picture[5, 5].max() < tile.picture[5, 15].max() / 2
