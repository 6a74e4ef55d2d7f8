"""`trust`: can a map be believed? Deletion and insertion, rank correlation, the control, and what is said of them.

What is expected is worked out on paper, by a naive loop written here, or known because the test drew the picture.
Papers: Petsiuk et al. 2018, section 4; Adebayo et al. 2018.
"""

import argparse
import math
import re
from types import SimpleNamespace

import cv2
import keras
import numpy as np
import pytest
import shapes
import tensorflow as tf
from keras import layers as kl

import utils
from gradcam_vgg import (
    curve_tile,
    deletion_and_insertion,
    draw_trust,
    Evidence,
    grad_cam,
    rank_correlation,
)


def sigmoid(values):
    return 1 / (1 + np.exp(-np.asarray(values, "float64")))


# --- deletion and insertion of a network worked out on paper ----------------------------------------------------------
# The picture is 20 x 20, so that two rows of it are 10 % of the pixels: one step of the curves. It has stripes of +1
# and -1, and the network weighs its upper half with the same stripes: m, the mean of pixel * stripe there, is 1 in the
# picture and 0 in grey. Blurred stripes are the same stripes, weaker: m is GLOW.

SIDE, K = 20, np.arange(11)
STRIPES = np.broadcast_to(
    np.where(np.arange(SIDE) % 2, -1, 1)[None, :, None], (SIDE, SIDE, 3)
).astype("float32")
GAUSS = [
    math.exp(-(distance**2) / 50) for distance in range(-5, 6)
]  # 11 wide, sigma 5, as in the authors' program
GLOW = sum(weight * (-1) ** place for place, weight in enumerate(GAUSS, 1)) / sum(GAUSS)  # -0.06
DOWNWARDS = np.repeat(np.linspace(1, -1, SIDE, dtype="float32")[:, None], SIDE, axis=1)
GONE = {
    1: np.minimum(K, 5) / 5,
    -1: np.maximum(K - 5, 0) / 5,
}  # of the half that counts, if right or reversed


def seen_by(weights, sharpness, threshold, picture=STRIPES):
    """A photograph before a network of the logits (sharpness * (m - threshold), 0), m the sum of weights * pixels."""
    column = sharpness * weights.reshape(-1, 1).astype("float32")

    def predict(x):
        score = tf.reshape(x, (len(x), -1)) @ column - sharpness * threshold
        return tf.concat([score, tf.zeros_like(score)], axis=1)

    return SimpleNamespace(
        x=picture[None],
        network=SimpleNamespace(
            prepare=lambda pixels: np.zeros((1, *picture.shape), "float32"),
            predict=predict,
            probabilities=tf.nn.softmax,
        ),
    )


def half(sharpness, threshold):
    weights = STRIPES * (np.arange(SIDE)[:, None, None] < SIDE // 2)
    return seen_by(weights / np.abs(weights).sum(), sharpness, threshold)


MAPS = {
    "row by row": lambda sign: sign * DOWNWARDS,
    "ties": lambda sign: np.sign(
        sign * DOWNWARDS
    ),  # whatever their order, the warm half goes before the cold one
    "coarse": lambda sign: np.float32([[sign], [-sign]]),  # to be enlarged
    "all negative": lambda sign: sign * DOWNWARDS - 9,
}  # of a signed map the order counts


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize(
    "sign, leaves, enters",
    [
        # m falls from 1 by 0.2 a step and passes 0.5 after the third; it rises from GLOW and passes it at the third.
        (1, 3 * [1] + 8 * [0], 3 * [0] + 8 * [1]),
        (-1, 8 * [1] + 3 * [0], 8 * [0] + 3 * [1]),
    ],
)  # the rows that do not count come first: five steps later
def test_curves_of_a_network_with_a_threshold(kind, sign, leaves, enters):
    curves = deletion_and_insertion(half(2000, 0.5), [MAPS[kind](sign)])
    np.testing.assert_allclose(curves["deletion"][0, :, 0], leaves, atol=1e-6)
    np.testing.assert_allclose(curves["insertion"][0, :, 0], enters, atol=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_curves_of_a_network_without_a_threshold(sign):
    """Here every point says how much has left for grey, and how much has entered a blurred picture."""
    curves = deletion_and_insertion(half(4, 0.5), [DOWNWARDS, sign * DOWNWARDS])
    expected = {
        "deletion": sigmoid(4 * (1 - GONE[sign] - 0.5)),
        "insertion": sigmoid(4 * (GLOW + (1 - GLOW) * GONE[sign] - 0.5)),
    }
    for name, values in curves.items():
        assert values.shape == (
            2 + 10,
            11,
            2,
        )  # two maps and ten random orders; eleven points; two classes
        np.testing.assert_allclose(values[1, :, 0], expected[name], atol=1e-5)
        np.testing.assert_allclose(values.sum(axis=2), 1, atol=1e-5)


@pytest.mark.parametrize("height, width", [(20, 20), (23, 19), (7, 50)])
def test_so_many_pixels_leave_in_every_order(height, width):
    """The network gives the share of white pixels; blurred white is white."""
    white = np.ones((height, width, 3), "float32")
    curves = deletion_and_insertion(
        seen_by(white / white.size, 1, 0, white), [np.float32([[3, 1], [2, 5]])]
    )
    left = curves["deletion"][..., 0]
    expected, rounding = np.tile(1 - K / 10, (11, 1)), 1 / (height * width) + 1e-5
    np.testing.assert_allclose(np.log(left / (1 - left)), expected, atol=rounding)
    np.testing.assert_allclose(curves["insertion"][..., 0], sigmoid(1), atol=1e-5)


@pytest.mark.parametrize("row, column", [(0, 0), (3, 5), (6, 6)])
def test_random_orders_take_whole_patches_and_differ(row, column):
    """A network sees one of the 49 patches of 3 x 3 pixels: it goes at once, or is cut by one step at most."""
    weights = np.zeros((21, 21, 3), "float32")
    weights[3 * row : 3 * row + 3, 3 * column : 3 * column + 3] = 1 / 27
    probabilities = deletion_and_insertion(seen_by(weights, 1, 0, np.ones_like(weights)), [])[
        "deletion"
    ][..., 0]
    left = np.log(probabilities / (1 - probabilities))
    assert (((left > 1e-3) & (left < 1 - 1e-3)).sum(axis=1) <= 1).all()
    assert (np.diff(left, axis=1) < 1e-4).all()  # what has left does not come back
    assert (
        len(np.unique((left > 0.5).sum(axis=1))) > 3
    )  # the patch goes at ten different moments, not at one


# --- what is said of a map --------------------------------------------------------------------------------------------


def curves_with(area, chance):
    """A constant curve above constant ones: their areas are their values."""
    return np.float64([area, *chance])[:, None] * np.ones(11)


@pytest.mark.parametrize(
    "area, chance, deletion, insertion",
    [
        (0.1, [0.4, 0.5, 0.6], "better than", "worse than"),
        (0.9, [0.4, 0.5, 0.6], "worse than", "better than"),
        (0.31, [0.4, 0.5, 0.6], "like", "like"),  # sample deviation: 0.1; population: 0.08
        (0.29, [0.4, 0.5, 0.6], "better than", "worse than"),
    ],
)
def test_the_verdict_is_two_sample_deviations_of_the_areas(area, chance, deletion, insertion):
    for name, word in (("deletion", deletion), ("insertion", insertion)):
        picture, title, verdict = curve_tile(name, curves_with(area, chance))
        assert title == f"{name}: area {area:.4g}\n{word} chance, 0.5 ± 0.2" and verdict == word
        assert (
            picture.dtype == np.uint8 and np.ptp(picture.astype(int), axis=2).max() > 100
        )  # the curve is red


def test_areas_are_those_of_trapezia():
    curve = np.zeros(11)
    curve[[0, 1, 10]] = 1, 0.5, 0.25  # (1 + 0.5) / 2 + 0.5 / 2 + 0.25 / 2, of a width of 0.1
    title = curve_tile("deletion", np.stack([curve, *curves_with(0.4, [0.5, 0.6])]))[1]
    assert title.startswith("deletion: area 0.1125\n")


def test_maps_drawn_by_lot_are_seldom_said_to_beat_chance():
    """They are chance: of a hundred of them a verdict that can be believed says so of a few."""
    rng = np.random.default_rng(1)
    lots = [
        cv2.resize(rng.random((7, 7)), (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
        for _ in range(100)
    ]
    values = deletion_and_insertion(half(4, 0.5), lots)["deletion"][..., 0]
    verdicts = [
        curve_tile("deletion", np.vstack([one[None], values[100:]]))[2] for one in values[:100]
    ]
    assert verdicts.count("better than") <= 12


# --- rank correlation -------------------------------------------------------------------------------------------------


def spearman(first, second):
    """Equal values share their mean rank; Pearson's correlation of the ranks."""

    def ranks(values):
        return [
            sum(other < value for other in values)
            + (sum(other == value for other in values) + 1) / 2
            for value in values
        ]

    first, second = ranks(list(np.ravel(first))), ranks(list(np.ravel(second)))
    mean = (len(first) + 1) / 2
    both = sum((a - mean) * (b - mean) for a, b in zip(first, second))
    return both / math.sqrt(
        sum((a - mean) ** 2 for a in first) * sum((b - mean) ** 2 for b in second)
    )


@pytest.mark.parametrize("values", [2, 5, 1000])  # few values: many ties
@pytest.mark.parametrize("shape", [(2, 3), (5, 14)])
def test_rank_correlation_is_spearmans(values, shape):
    first, second = np.random.default_rng(values).integers(0, values, (2, *shape)).astype("float32")
    first.flat[:2], second.flat[:2] = (0, 1), (0, 1)  # neither is constant
    assert rank_correlation(first, second) == pytest.approx(spearman(first, second), abs=1e-12)


def test_rank_correlation_with_a_constant_map_is_not_a_number():
    with np.errstate(invalid="ignore"):
        assert math.isnan(rank_correlation(np.full((3, 3), 0.1), np.arange(9).reshape(3, 3)))


# --- a network trained on drawn shapes, bundled in Image/ -------------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    opened = utils.open_network(
        keras.models.load_model(utils.HERE / "Image" / "shapes.keras", compile=False)
    )
    return argparse.Namespace(
        model=opened,
        label="shapes",
        name="shapes",
        titles=shapes.NAMES,
        layer="relu4_2",
        prepare=lambda pixels: utils.network_input(pixels, (96, 96), "none"),
        predict=opened,
        probabilities=tf.nn.softmax,
    )


def pairs(count, seed=3):
    """Pictures of two different shapes, one in each half, and their numbers."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        picture, numbers = shapes.background(generator, 96), generator.permutation(4)[:2]
        for number, x in zip(numbers, (24, 72)):
            shapes.draw(
                picture, shapes.NAMES[number], generator, (x, generator.uniform(24, 72)), 20
            )
        yield picture, numbers


def test_the_heat_is_on_the_right_shape(network):
    shares = []
    for picture, numbers in pairs(60):
        maps = grad_cam(network.model, network.prepare(picture), [network.layer], numbers)[0][
            network.layer
        ]
        heat = np.maximum(maps, 0)
        shares += [
            heat[0, :, :6].sum() / max(heat[0].sum(), 1e-9),
            heat[1, :, 6:].sum() / max(heat[1].sum(), 1e-9),
        ]
    print(f"{np.mean(shares):.0%} of a class's positive heat lies on its own half")
    assert np.mean(shares) > 0.8


class Trust(Evidence):
    """Keeps what would be written."""

    def save(self, figure, rows, note, arrays, **_):
        self.saved = rows, arrays


@pytest.fixture(scope="module")
def trust(network):
    picture, numbers = next(pairs(1))
    options = SimpleNamespace(
        method="gradcam", classes=numbers.tolist(), colormap="jet", seed=0, preprocess="none"
    )
    kept = network.model.get_weights()
    seen = Trust(options, network, None, picture)
    draw_trust(seen)
    assert all(map(np.array_equal, kept, network.model.get_weights()))  # the control is a copy
    return seen


def test_a_row_says_of_both_curves_what_holds(trust):
    rows, arrays = trust.saved
    for index, row in zip(trust.classes, rows, strict=True):
        beats = re.search(r"beats chance: (.*)", row[0][1])[1]
        areas = {
            name: (values[:, 1:] + values[:, :-1]).mean(axis=1) / 2
            for name, values in (
                (name, arrays[f"{trust.layer}/{index}/{name}"])
                for name in ("deletion", "insertion")
            )
        }
        expected = [
            name
            for name, (own, *chance) in areas.items()
            for sign in [-1 if name == "deletion" else 1]
            if sign * (own - np.mean(chance)) > 2 * np.std(chance, ddof=1)
        ]
        assert beats == (" and ".join(expected) or "neither")
        assert arrays[f"{trust.layer}/{index}/deletion"].shape == (
            11,
            11,
        )  # the map's curve and ten of chance
        np.testing.assert_array_equal(
            row[1][1], curve_tile("deletion", arrays[f"{trust.layer}/{index}/deletion"])[1]
        )
    assert "neither" not in rows[0][0][1]  # this network is trained


def test_the_control_is_the_same_network_untrained(trust, network):
    rows, arrays = trust.saved
    assert [layer.name for layer in network.control.layers[1:]] == [
        layer.name for layer in network.model.layers[1:]
    ]
    assert not np.allclose(
        network.control.get_layer("conv2_1").kernel, network.model.get_layer("conv2_1").kernel
    )
    for index, row in zip(trust.classes, rows):
        ours, control = arrays[f"{trust.layer}/{index}"], arrays[f"{trust.layer}/{index}/control"]
        expected = grad_cam(network.control, trust.x, [trust.layer], [index])[0][trust.layer][0]
        np.testing.assert_allclose(control, expected, rtol=1e-4, atol=1e-7)
        assert float(re.search(r"rank correlation (\S+)", row[3][1])[1]) == round(
            spearman(ours, control), 2
        )


def test_the_control_keeps_what_a_normalization_layer_measured():
    """Its mean and variance come from the photographs, not from training: drawn anew they would be another scale."""
    inputs = keras.Input((8, 8, 3))
    x = kl.Conv2D(4, 3, activation="relu", name="conv")(
        kl.Normalization(mean=[1, 2, 3], variance=[4, 4, 4])(inputs)
    )
    model = keras.Model(inputs, kl.Dense(2)(kl.GlobalAveragePooling2D()(x)))
    network = argparse.Namespace(
        model=model,
        label="n",
        name="n",
        titles=["a", "b"],
        layer="conv",
        predict=model,
        prepare=lambda p: utils.network_input(p, (8, 8), "none"),
        probabilities=tf.nn.softmax,
    )
    options = SimpleNamespace(
        method="gradcam", classes=[0], colormap="jet", seed=0, preprocess="none"
    )
    draw_trust(Trust(options, network, None, np.zeros((8, 8, 3), np.uint8)))
    layer = network.control.layers[1]
    np.testing.assert_allclose(layer(np.float32([[[[3, 4, 5]]]])), np.ones((1, 1, 1, 3)), rtol=1e-6)
