"""Can a picture be believed: deletion and insertion, the control, occlusion, and layers named by wildcard.

What is expected is worked out on paper, by a naive loop written here, or known because the test drew the picture.
Papers: Petsiuk et al. 2018, section 4; Adebayo et al. 2018; Zeiler and Fergus 2013, section 4.2.
"""
import itertools
import math
import os
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl

import deconvnet_vgg
import gradcam_googlenet
import utils

CLONE = Path(__file__).resolve().parent.parent


def sigmoid(values):
    return 1 / (1 + np.exp(-np.asarray(values, "float64")))


# --- 1. Deletion and insertion of a network worked out on paper -------------------------------------------------------
# The picture is 20 x 20, so that a row of it is 5 % of the pixels: one step of the curves. It has stripes of +1 and -1,
# and the network weighs its upper half with the same stripes: m, the mean of pixel * stripe there, is 1 in the picture
# and 0 in grey. Blurred stripes are the same stripes, weaker: m is GLOW.

SIDE = 20
STRIPES = np.broadcast_to(np.where(np.arange(SIDE) % 2, -1, 1)[None, :, None], (SIDE, SIDE, 3)).astype("float32")
GAUSS = [math.exp(-distance ** 2 / 50) for distance in range(-5, 6)]  # 11 wide, sigma 5, as in the authors' program
GLOW = sum(weight * (-1) ** place for place, weight in enumerate(GAUSS, 1)) / sum(GAUSS)  # -0.06
DOWNWARDS = np.repeat(np.linspace(1, -1, SIDE, dtype="float32")[:, None], SIDE, axis=1)
K = np.arange(21)
GONE_IF_RIGHT, GONE_IF_REVERSED = np.minimum(K, 10) / 10, np.maximum(K - 10, 0) / 10  # of the half that counts


class Counter(kl.Layer):
    """Lets pictures through and counts them."""

    def build(self, shape):
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        self.count.assign_add(tf.cast(tf.shape(x)[0], tf.float32))
        return x


def weighing(weights, sharpness, threshold):
    """A network of two classes with the logits (sharpness * (m - threshold), 0), m the sum of weights * pixels."""
    inputs = keras.Input(weights.shape)
    x = kl.Activation("linear", name="maps")(Counter(name="counter")(inputs))
    model = keras.Model(inputs, kl.Dense(2, name="logits")(kl.Flatten()(x)))
    column = sharpness * weights.reshape(-1, 1)
    model.get_layer("logits").set_weights(
        [np.hstack([column, 0 * column]).astype("float32"), np.float32([-sharpness * threshold, 0])])
    return model


def seeing_half(sharpness, threshold, half="upper"):
    rows = np.arange(SIDE)[:, None, None] < SIDE // 2
    weights = STRIPES * (rows if half == "upper" else ~rows)
    return weighing(weights / np.abs(weights).sum(), sharpness, threshold)


def trial_of(model, cam, x=STRIPES, **more):
    return utils.put_to_the_test(model, x[None], cam, 0, "maps", **more)


MAPS = {"row_by_row": lambda sign: sign * DOWNWARDS,
        # Whatever the order within a tie, all of the warm half goes before the cold one.
        "ties": lambda sign: np.sign(sign * DOWNWARDS),
        "coarse": lambda sign: np.float32([[sign], [-sign]]),  # to be enlarged
        "all_negative": lambda sign: sign * DOWNWARDS - 9}  # of a signed map the order counts


@pytest.mark.parametrize("cam", MAPS.values(), ids=MAPS)
@pytest.mark.parametrize("sign, leaves, enters", [
    # m falls from 1 by 0.1 a row and passes 0.45 after row 5; it rises from GLOW by 0.106 a row, and passes it at row 5.
    pytest.param(1, 6 * [1] + 15 * [0], 5 * [0] + 16 * [1], id="right"),
    # The ten rows that do not count come first: everything happens ten rows later.
    pytest.param(-1, 16 * [1] + 5 * [0], 15 * [0] + 6 * [1], id="reversed")])
def test_curves_of_a_network_with_a_threshold(cam, sign, leaves, enters):
    trial = trial_of(seeing_half(2000, 0.45), cam(sign))
    np.testing.assert_allclose(trial.shares, K / 20)
    np.testing.assert_allclose(trial.deletion, leaves, atol=1e-6)
    np.testing.assert_allclose(trial.insertion, enters, atol=1e-6)
    lost, won = (5.5 / 20, 15.5 / 20) if sign > 0 else (15.5 / 20, 5.5 / 20)
    assert utils.area(trial.deletion) == pytest.approx(lost, abs=1e-6)
    assert utils.area(trial.insertion) == pytest.approx(won, abs=1e-6)


@pytest.mark.parametrize("sign, gone", [(1, GONE_IF_RIGHT), (-1, GONE_IF_REVERSED)], ids=["right", "reversed"])
def test_curves_of_a_network_without_a_threshold(sign, gone):
    """Here every point of the curves says how much has left for grey, and how much has entered a blurred picture."""
    trial = trial_of(seeing_half(4, 0.5), sign * DOWNWARDS)
    np.testing.assert_allclose(trial.deletion, sigmoid(4 * (1 - gone - 0.5)), atol=1e-5)
    np.testing.assert_allclose(trial.insertion, sigmoid(4 * (GLOW + (1 - GLOW) * gone - 0.5)), atol=1e-5)


def test_the_other_class_has_what_is_left():
    model = seeing_half(4, 0.5)
    ours, theirs = (utils.put_to_the_test(model, STRIPES[None], DOWNWARDS, index, "maps") for index in (0, 1))
    for key in ("deletion", "insertion", "random_deletion", "random_insertion"):
        np.testing.assert_allclose(getattr(ours, key) + getattr(theirs, key), 1, atol=1e-5)


@pytest.mark.parametrize("height, width", [(20, 20), (23, 19), (7, 50)])
def test_so_many_pixels_leave_in_every_order(height, width):
    """The network gives the share of white pixels; blurred white is white."""
    white = np.ones((height, width, 3), "float32")
    trial = trial_of(weighing(white / white.size, 1, 0), np.float32([[3, 1], [2, 5]]), white)
    for curve in (trial.deletion, *trial.random_deletion):
        left = np.log(curve / (1 - curve))
        np.testing.assert_allclose(left, 1 - K / 20, atol=0.5 / (height * width) + 1e-5)
    np.testing.assert_allclose([trial.insertion, *trial.random_insertion], sigmoid(1), atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_random_curves_keep_within_what_an_order_can_do(seed):
    trial = trial_of(seeing_half(4, 0.5), DOWNWARDS, seed=seed)
    assert trial.random_deletion.shape == trial.random_insertion.shape == (4, 21)
    for chance, start, end in ((trial.random_deletion, 1, 0), (trial.random_insertion, GLOW, 1)):
        worst, best = (sigmoid(4 * (start + (end - start) * gone - 0.5)) for gone in (GONE_IF_RIGHT, GONE_IF_REVERSED))
        assert (chance >= np.minimum(worst, best) - 1e-5).all() and (chance <= np.maximum(worst, best) + 1e-5).all()
        np.testing.assert_allclose(chance[:, 0], sigmoid(4 * (start - 0.5)), atol=1e-5)
        np.testing.assert_allclose(chance[:, -1], sigmoid(4 * (end - 0.5)), atol=1e-5)
        assert len(np.unique(chance[:, 10].round(4))) > 1  # they are not one order four times


@pytest.mark.parametrize("row, column", [(0, 0), (3, 5), (6, 6)])
def test_random_orders_take_whole_patches(row, column):
    """A network sees one of the 49 patches of 3 x 3 pixels: it goes at once, or is cut by one step at most."""
    weights = np.zeros((21, 21, 3), "float32")
    weights[3 * row:3 * row + 3, 3 * column:3 * column + 3] = 1 / 27
    trial = trial_of(weighing(weights, 1, 0), weights[..., 0], np.ones_like(weights))
    left = np.log(trial.random_deletion / (1 - trial.random_deletion))
    assert (((left > 1e-3) & (left < 1 - 1e-3)).sum(axis=1) <= 1).all()
    assert (np.diff(left, axis=1) < 1e-4).all()  # what has left does not come back


def test_the_same_seed_gives_the_same_trial_and_another_another():
    model = seeing_half(4, 0.5)
    first, again, other = (trial_of(model, DOWNWARDS, seed=seed) for seed in (3, 3, 4))
    assert all(np.array_equal(*both) for both in zip(first, again))
    np.testing.assert_array_equal(first.deletion, other.deletion)
    assert not np.allclose(first.random_deletion, other.random_deletion)


def test_a_class_costs_no_more_than_200_evaluations():
    model, x = seeing_half(4, 0.5), STRIPES.copy()
    trial_of(model, DOWNWARDS, x)
    assert 5 * 2 * 19 < float(model.get_layer("counter").count) <= 200  # ten curves of 19 inner points, and their ends
    np.testing.assert_array_equal(x, STRIPES)  # the photograph is left as it was


@pytest.mark.parametrize("curve, expected", [
    ([0.25, 0.25], 0.25), ([1, 0], 0.5), ([1, 0, 0, 0, 0], 0.125), ([0, 1, 0], 0.5),
    ([[1, 1, 0], [0, 0, 1]], [0.75, 0.25])])
def test_area_by_hand(curve, expected):
    np.testing.assert_allclose(utils.area(np.array(curve, float)), expected)


# --- 2. What is said of a map -----------------------------------------------------------------------------------------

BETTER, WORSE, SAME = "the map beats chance", "the map does worse than chance", "the map does no better than chance"


def said(trial):
    """The finding of a verdict, whose numbers are made sure of first."""
    sentence, number = utils.verdict(trial, "stripes (0, n0)"), r"(\d\.\d\d)"
    found = re.fullmatch(rf"Without the warmest 20 % of the pixels the probability of stripes \(0, n0\) \w+ (?:from|at) "
                         rf"{number}(?: to {number})?; without a random 20 % to {number} ± {number}: (.+)\.", sentence)
    before, after, mean, spread, finding = found.groups()
    chance = trial.random_deletion[:, 4]
    np.testing.assert_allclose([float(before), float(after or before), float(mean), float(spread)],
                               [trial.deletion[0], trial.deletion[4], chance.mean(), chance.std(ddof=1)], atol=0.0051)
    return finding


@pytest.mark.parametrize("half", ["upper", "lower"])
@pytest.mark.parametrize("cam, expected", [
    pytest.param(DOWNWARDS, BETTER, id="right"),
    pytest.param(-DOWNWARDS, WORSE, id="reversed"),
    pytest.param(DOWNWARDS.T, SAME, id="irrelevant"),  # from left to right: takes as much from either half
    pytest.param(np.ones_like(DOWNWARDS), SAME, id="constant")])
def test_the_finding(cam, expected, half):
    trial = trial_of(seeing_half(4, 0.5, half), cam if half == "upper" else np.flipud(cam))
    gain = utils.area(trial.random_deletion).mean() - utils.area(trial.deletion)
    assert (gain > 0.1) == (expected == BETTER) and (gain < -0.1) == (expected == WORSE), gain
    assert said(trial) == expected


def test_maps_drawn_by_lot_are_seldom_said_to_beat_chance():
    """They are chance: of a hundred of them a sentence that can be believed says so of a few."""
    model, rng = seeing_half(4, 0.5), np.random.default_rng(1)
    lots = [cv2.resize(rng.random((7, 7)), (SIDE, SIDE), interpolation=cv2.INTER_NEAREST) for _ in range(100)]
    findings = [said(trial_of(model, lot, seed=seed)) for seed, lot in enumerate(lots)]
    assert findings.count(BETTER) <= 12 and findings.count(WORSE) <= 12


def by_hand(before, after, chance):
    """A Trial with these probabilities without the warmest 20 %, and without four random fifths."""
    deletion, random = np.full(21, before), np.full((4, 21), before)
    deletion[4], random[:, 4] = after, chance
    return utils.Trial(K / 20, deletion, deletion, random, random)


def test_the_sentence_word_for_word():
    assert utils.verdict(by_hand(0.81, 0.09, [0.54, 0.70, 0.54, 0.70]), "espresso (967, n07920052)") == (
        "Without the warmest 20 % of the pixels the probability of espresso (967, n07920052) falls from 0.81 to 0.09; "
        "without a random 20 % to 0.62 ± 0.09: the map beats chance.")
    assert utils.verdict(by_hand(0.004, 0.004, [0.0] * 4), "cat").endswith(
        "stays at 0.00; without a random 20 % to 0.00 ± 0.00: the map does no better than chance.")


@pytest.mark.parametrize("after, word", [(0.3, "falls"), (0.7, "rises")])
def test_the_sentence_says_where_the_probability_went(after, word):
    assert f" {word} from 0.50 to {after:.2f};" in utils.verdict(by_hand(0.5, after, 0.4), "cat")


@pytest.mark.parametrize("after", [0.5, 0.5001, 0.4999])
def test_a_probability_that_stays_neither_falls_nor_rises(after):
    sentence = utils.verdict(by_hand(0.5, after, [0.4, 0.5, 0.6, 0.5]), "cat")
    assert "falls" not in sentence and "rises" not in sentence, sentence


@pytest.mark.parametrize("kind", ["deletion", "insertion"])
def test_a_curve_is_drawn_with_its_area(kind):
    trial = trial_of(seeing_half(4, 0.5), DOWNWARDS)
    ours, chance = (utils.area(getattr(trial, f"{start}{kind}")) for start in ("", "random_"))
    tile = utils.curve_tile(trial, kind)
    assert tile.title.split("\n") == [f"{kind}: area {ours:.3f}", f"at random {chance.mean():.3f} ± {chance.std():.3f}"]
    flat = utils.curve_tile(trial._replace(**{kind: np.full(21, 0.5)}), kind)
    assert tile.image.dtype == np.uint8 and tile.image.shape == flat.image.shape
    red = (np.ptp(tile.image.astype(int), axis=2) > 100).any(axis=1).sum()  # rows in which the curve is
    assert red > 2 * (np.ptp(flat.image.astype(int), axis=2) > 100).any(axis=1).sum()


# --- 3. Rank correlation ----------------------------------------------------------------------------------------------


def spearman(first, second):
    """Equal values share their mean rank; Pearson's correlation of the ranks."""
    def ranks(values):
        return [sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2
                for value in values]
    first, second = ranks(list(np.ravel(first))), ranks(list(np.ravel(second)))
    mean = (len(first) + 1) / 2
    both = sum((a - mean) * (b - mean) for a, b in zip(first, second))
    return both / math.sqrt(sum((a - mean) ** 2 for a in first) * sum((b - mean) ** 2 for b in second))


@pytest.mark.parametrize("values", [2, 5, 1000], ids="values_{}".format)  # few values: many ties
@pytest.mark.parametrize("shape", [(2, 3), (7, 7), (5, 14)], ids=str)
def test_rank_correlation_is_spearmans(values, shape):
    rng = np.random.default_rng(values)
    first, second = rng.integers(0, values, (2, *shape)).astype("float32") - values // 2
    first.flat[:2], second.flat[:2] = (0, 1), (0, 1)  # neither is constant
    assert utils.rank_correlation(first, second) == pytest.approx(spearman(first, second), abs=1e-12)


def test_rank_correlation_by_hand():
    # Ranks 1, 2.5, 2.5, 4 and 2, 1, 3, 4; less their mean -1.5, 0, 0, 1.5 and -0.5, -1.5, 0.5, 1.5: 0.75 + 2.25 = 3.
    assert utils.rank_correlation([[1, 5], [5, 9]], [[3, 2], [4, 7]]) == pytest.approx(3 / math.sqrt(4.5 * 5))


@pytest.mark.parametrize("change, expected", [
    (lambda map_: map_, 1), (lambda map_: np.exp(3 * map_), 1), (lambda map_: -map_, -1)],
    ids=["identical", "any_rising_function", "reversed"])
def test_rank_correlation_of_a_map_with_itself(change, expected):
    map_ = np.random.default_rng(0).normal(size=(7, 7)).astype("float32")
    assert utils.rank_correlation(map_, change(map_)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("order", [1, -1], ids=["first", "second"])
def test_rank_correlation_with_a_constant_map_is_not_a_number(order):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(utils.rank_correlation(*[np.full((3, 3), 0.1), np.arange(9).reshape(3, 3)][::order]))


# --- 4. A small network trained on drawn shapes -----------------------------------------------------------------------

SHAPES = ("circle", "square", "cross", "triangle")


def draw(picture, shape, left, rng):
    """A filled shape of random size, place and colour in the half of a 64 x 64 picture that begins at column `left`."""
    r = int(rng.integers(8, 13))
    x, y = left + int(rng.integers(r + 1, 31 - r)), int(rng.integers(r + 1, 63 - r))
    outline = {"square": [(-r, -r), (r, -r), (r, r), (-r, r)], "triangle": [(0, -r), (r, r), (-r, r)],
               "cross": [(-r // 3, -r), (r // 3, -r), (r // 3, r), (-r // 3, r)]}
    colour = rng.uniform(0.3, 1, 3).tolist()
    if shape == "circle":
        cv2.circle(picture, (x, y), r, colour, -1)
    else:
        cv2.fillPoly(picture, [np.int32(outline[shape]) + (x, y)], colour)
    if shape == "cross":
        cv2.fillPoly(picture, [np.int32(outline[shape])[:, ::-1] + (x, y)], colour)


def drawings(count, seed):
    """Pictures (count, 64, 64, 3) of two different shapes, one in each half, and their classes (count, 2)."""
    rng = np.random.default_rng(seed)
    pictures, classes = np.zeros((count, 64, 64, 3), np.float32), []
    for picture in pictures:
        classes.append(rng.permutation(len(SHAPES))[:2])
        for half, index in enumerate(classes[-1]):
            draw(picture, SHAPES[index], 32 * half, rng)
    return pictures, np.array(classes)


def shape_network(seed):
    """A network of the kind of the scripts': convolution, batch normalisation and ReLU, three times."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((64, 64, 3))
    x = kl.AveragePooling2D(2)(inputs)
    for name, width in (("first", 16), ("second", 32), ("last", 32)):
        x = kl.Conv2D(width, 3, padding="same", use_bias=False)(x if name == "first" else kl.MaxPooling2D(2)(x))
        x = kl.ReLU(name=name)(kl.BatchNormalization(momentum=0.9)(x))
    return keras.Model(inputs, kl.Dense(len(SHAPES))(kl.GlobalAveragePooling2D()(x)))


def maps_of(model, pictures, classes):
    """Signed Grad-CAM maps (count, 2, 8, 8) of the class on the left and the class on the right."""
    return np.stack([utils.grad_cam(model, picture[None], ["last"], list(range(len(SHAPES))))[0]["last"][pair]
                     for picture, pair in zip(pictures, classes)])


@pytest.fixture(scope="module")
def trained():
    """The network, 200 drawings that it has not seen, their classes and its maps."""
    start, (pictures, classes) = time.perf_counter(), drawings(1000, seed=0)
    answers = np.zeros((len(classes), len(SHAPES)), np.float32)
    np.put_along_axis(answers, classes, 1, axis=1)
    model = shape_network(0)
    model.compile(keras.optimizers.Adam(0.005), keras.losses.BinaryCrossentropy(from_logits=True))
    model.fit(pictures, answers, batch_size=16, epochs=5, verbose=0)
    print(f"\ntrained in {time.perf_counter() - start:.1f} s")
    pictures, classes = drawings(200, seed=1)
    return SimpleNamespace(model=model, pictures=pictures, classes=classes, maps=maps_of(model, pictures, classes))


def test_the_network_has_learned_the_shapes(trained):
    """Nothing below would mean anything otherwise."""
    ranked = np.argsort(-trained.model.predict(trained.pictures, verbose=0), axis=1)[:, :2]
    right = np.mean(np.sort(ranked, axis=1) == np.sort(trained.classes, axis=1))
    print(f"\nclasses found: {right:.3f}")
    assert right > 0.95


def test_the_positive_heat_of_a_class_lies_on_its_own_object(trained):
    heat = np.maximum(trained.maps, 0)
    assert (heat.sum(axis=(2, 3)) > 0).all()
    own = np.stack([heat[:, 0, :, :4].sum(axis=(1, 2)), heat[:, 1, :, 4:].sum(axis=(1, 2))], axis=1)
    shares = own / heat.sum(axis=(2, 3))
    print(f"\nshare of the positive heat on the class's own half: mean {shares.mean():.3f}, median "
          f"{np.median(shares):.3f}, fifth percentile {np.percentile(shares, 5):.3f}")
    assert shares.mean() >= 0.9


def test_mirrored_drawings_agree_and_drawn_weights_do_not(trained):
    """Adebayo et al. 2018: a map that explains survives what does not matter, and not the loss of what was learned."""
    def correlations(others):
        return np.array([utils.rank_correlation(*both) for both in zip(
            trained.maps.reshape(-1, 8, 8), np.asarray(others).reshape(-1, 8, 8))])

    mirrored = correlations(maps_of(trained.model, trained.pictures[:, :, ::-1], trained.classes)[..., ::-1])
    controls = [correlations(maps_of(shape_network(seed), trained.pictures, trained.classes)) for seed in (1, 2, 3)]
    low, high = np.percentile(mirrored, 5), np.percentile(controls, 95)
    print(f"\nrank correlation with the map of the mirrored drawing: mean {mirrored.mean():.3f}, fifth percentile "
          f"{low:.3f}\nwith that of weights drawn anew: mean {np.mean(controls):.3f} (of three draws "
          f"{', '.join(f'{np.mean(control):.3f}' for control in controls)}), 95th percentile {high:.3f}\n"
          f"mirrored is above the control in {100 * np.mean(mirrored > controls):.1f} % of the maps")
    assert mirrored.mean() > 0.85 and max(abs(np.mean(control)) for control in controls) < 0.25
    assert low > high + 0.2
    assert np.mean(mirrored > controls) > 0.99


def test_maps_of_the_trained_network_beat_chance_on_average(trained):
    """Of the more probable object: softmax, in which one rises when the other leaves, leaves nothing to the other."""
    probable = trained.model.predict(trained.pictures, verbose=0).argmax(axis=1)
    gains = []
    for picture, index in zip(trained.pictures[:20], probable):
        cam = utils.grad_cam(trained.model, picture[None], ["last"], [index])[0]["last"][0]
        trial = utils.put_to_the_test(trained.model, picture[None], cam, index, "last")
        gains.append([utils.area(trial.random_deletion).mean() - utils.area(trial.deletion),
                      utils.area(trial.insertion) - utils.area(trial.random_insertion).mean()])
    deletion, insertion = np.mean(gains, axis=0)
    print(f"\narea better than at random: deletion by {deletion:.3f}, insertion by {insertion:.3f}")
    assert deletion > 0.15 and insertion > 0.15


# --- 5. Occlusion -----------------------------------------------------------------------------------------------------


def small_network(height, width):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((height, width, 3))
    x = kl.Conv2D(4, 3, strides=2, padding="same", activation="relu", name="conv")(inputs)
    return keras.Model(inputs, kl.Dense(3, name="head")(kl.Flatten()(x)))


@pytest.mark.parametrize("layer", ["conv", "head"])  # a dense layer's units have one response each
@pytest.mark.parametrize("patch, stride, height, width", [
    (1, 4, 16, 20), (4, 4, 16, 20), (5, 3, 15, 12), (6, 5, 17, 13), (9, 2, 11, 8), (3, 8, 16, 9), (50, 6, 12, 17),
    (4, 1, 5, 7)])
def test_occlusion_is_a_loop_over_grey_squares(patch, stride, height, width, layer):
    model = small_network(height, width)
    x = np.random.default_rng(0).normal(size=(1, height, width, 3)).astype("float32")
    given, both = x.copy(), keras.Model(model.inputs[0], [model.output, model.get_layer(layer).output])
    probabilities, responses = utils.occlusion(model, x, layer, patch, stride)
    np.testing.assert_array_equal(x, given)
    assert responses.shape[:2] == probabilities.shape[:2]  # how large, see below
    for i, j in np.ndindex(probabilities.shape[:2]):
        middle_y, middle_x = (stride * place + stride // 2 for place in (i, j))
        hidden = x.copy()
        for y, x_ in itertools.product(range(height), range(width)):
            # Of an even square the middle is the pixel after its centre.
            if all(0 <= away + patch // 2 < patch for away in (y - middle_y, x_ - middle_x)):
                hidden[0, y, x_] = 0
        logits, maps = (np.asarray(output[0], "float64") for output in both(hidden))
        np.testing.assert_allclose(probabilities[i, j], np.exp(logits) / np.exp(logits).sum(), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(responses[i, j], maps.reshape(-1, maps.shape[-1]).sum(axis=0), rtol=1e-4, atol=1e-5)


def test_a_square_larger_than_the_picture_leaves_nothing_of_it():
    model, x = small_network(12, 17), np.ones((1, 12, 17, 3), "float32")
    probabilities, responses = utils.occlusion(model, x, "conv", 100, 6)
    grey = utils.softmax(model(0 * x).numpy())[0]
    np.testing.assert_allclose(probabilities, np.broadcast_to(grey, probabilities.shape), rtol=1e-5)
    assert not responses.any()


@pytest.mark.parametrize("stride, size", [(16, 224), (16, 299), (64, 299), (6, 20), (40, 299), (7, 10), (50, 20)])
def test_the_grid_is_as_large_as_promised_and_every_pixel_is_hidden_once(stride, size):
    """H over stride, rounded up; squares as wide as the stride leave no rim that is never hidden."""
    inputs = keras.Input((size, stride, 1))  # as wide as one square
    rows = kl.Flatten(name="rows")(kl.AveragePooling2D((1, stride))(inputs))
    white = np.ones((1, size, stride, 1), "float32")
    rows = utils.occlusion(keras.Model(inputs, kl.Dense(2)(rows)), white, "rows", stride, stride)[1]
    assert rows.shape == (math.ceil(size / stride), 1, size)
    np.testing.assert_array_equal((rows == 0).sum(axis=(0, 1)), 1)


def test_a_colour_a_class():
    """The ten classes that the legend names have ten colours, however many classes there are."""
    indices = np.repeat(np.r_[0:12], [9, 9, 9, 9, 9, 9, 9, 9, 1, 1, 9, 9])[None]  # classes 8 and 9 are the rare ones
    picture = utils.class_map(indices, np.zeros((1, indices.size, 3), np.uint8))[0].image
    frequent = {tuple(colour) for index, colour in zip(indices[0], picture[0]) if index not in (8, 9)}
    assert len(frequent) == 10


# --- 6. Layers by wildcard --------------------------------------------------------------------------------------------


@pytest.fixture
def layers(monkeypatch, tmp_path):
    """The layers that a command line, or a constant, stands for: {network: names}."""
    def layers(script, networks, *words, **constants):
        monkeypatch.setattr(sys, "argv", ["script", *words, "--output", str(tmp_path)])
        return utils.read_options(vars(script) | constants, ("kernels", "trust", *script.FIGURES), networks).layers
    return layers


LAST = ["block3_conv3", "block4_conv3", "block5_conv3"]
MODULES = [f"Mixed_4{letter}" for letter in "bcdef"]


@pytest.mark.parametrize("words, expected", [
    ("block*_conv3", {"vgg16": LAST, "vgg19": LAST}),
    ("block5_conv?", {"vgg16": ["block5_conv1", "block5_conv2", "block5_conv3"],
                      "vgg19": ["block5_conv1", "block5_conv2", "block5_conv3", "block5_conv4"]}),
    ("block[12]_conv2", {"vgg16": ["block1_conv2", "block2_conv2"], "vgg19": ["block1_conv2", "block2_conv2"]}),
    # the order is the one that was typed, since figures of one layer draw the last; none comes twice
    ("block5_conv2,block[45]_conv[12],block1_conv1", 2 * [["block5_conv2", "block4_conv1", "block4_conv2",
                                                           "block5_conv1", "block1_conv1"]]),
    ("block*_conv4,block2_conv1", {"vgg16": ["block2_conv1"],
                                   "vgg19": ["block3_conv4", "block4_conv4", "block5_conv4", "block2_conv1"]})])
def test_wildcards_of_both_vggs(layers, words, expected):
    expected = expected if isinstance(expected, dict) else dict(zip(("vgg16", "vgg19"), expected))
    assert layers(deconvnet_vgg, deconvnet_vgg.networks(), "--layers", words) == expected


def test_wildcards_of_googlenet(layers):
    network = gradcam_googlenet.network()
    found = layers(gradcam_googlenet, {"googlenet": network}, "--layers", "Mixed_4?")["googlenet"]
    assert found == MODULES
    found = layers(gradcam_googlenet, {"googlenet": network}, "--layers", "Mixed_4*")["googlenet"]
    assert found == [name for name in network.widths if name.startswith("Mixed_4")]
    assert set(MODULES) < set(found) and found[-1] == "Mixed_4f"  # the convolutions in the modules too


def test_wildcards_in_the_constant(layers):
    found = layers(gradcam_googlenet, {"googlenet": gradcam_googlenet.network()}, LAYERS=["Conv2d_2?_*", "Mixed_5c"])
    assert found == {"googlenet": ["Conv2d_2b_1x1", "Conv2d_2c_3x3", "Mixed_5c"]}


@pytest.mark.parametrize("word", ["block6*", "conv?", "block[6-9]_conv1", "block5_conv3,mixed*"])
def test_a_wildcard_that_no_layer_answers_to(layers, word):
    with pytest.raises(utils.UserError, match=re.escape(repr(word.split(",")[-1]))):
        layers(deconvnet_vgg, deconvnet_vgg.networks(), "--layers", word)


def test_a_wildcard_that_one_of_two_networks_does_not_answer_to(layers):
    with pytest.raises(utils.UserError, match=r"vgg16 .*block\*_conv4"):
        layers(deconvnet_vgg, deconvnet_vgg.networks(), "--layers", "block*_conv4")


# --- 7. The figures ---------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(monkeypatch):
    """What a figure would write, by name."""
    saved = {}

    def save_figure(options, stem, label, figure, rows, note, arrays, colorbar=True):
        saved.update(rows=rows, figure=figure, arrays=arrays)
    monkeypatch.setattr(utils, "save_figure", save_figure)
    return saved


def look_at(model, x, classes, layer, **options):
    photo = utils.Photo(Path("drawing.png"), "drawing", np.uint8(255 * np.clip(x[0], 0, 1)), {})
    options = SimpleNamespace(layers={"net": [layer]}, classes=classes, colormap=2, kernels=9, **options)
    return utils.Look("Net", model, photo, x, options)


def test_trust_says_in_a_row_a_class_what_was_found(saved):
    """Of the class 0 every pixel speaks, of class 1 none: its weights are negative."""
    models = []
    for seed in (1, 2):
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((16, 16, 3))
        x = kl.Conv2D(4, 3, activation="relu", bias_initializer="ones", name="conv")(inputs)
        models.append(keras.Model(inputs, kl.Dense(2, name="head")(kl.GlobalAveragePooling2D()(x))))
        models[-1].get_layer("head").set_weights([np.float32(4 * [[1, -1]]), np.zeros(2, "float32")])
    x = np.random.default_rng(0).random((1, 16, 16, 3)).astype("float32")
    look = look_at(models[0], x, [0, 1], "conv")
    utils.draw_trust(look, models[1])
    tiles, sentence, empty, nothing = saved["rows"]
    arrays, control = saved["arrays"], utils.grad_cam(models[1], x, ["conv"], [0])[0]["conv"][0]
    trial = utils.put_to_the_test(models[0], x, arrays["net/conv/0"], 0, "conv")
    assert len(tiles) == 4 and sentence == utils.verdict(trial, utils.class_name(0))
    assert "no positive evidence" in empty[0].title
    assert utils.class_name(1) in nothing and "nothing to test" in nothing
    for key, curve in trial._asdict().items():
        np.testing.assert_allclose(arrays[f"net/conv/0/{key}"], curve, rtol=1e-5)
    np.testing.assert_allclose(arrays["net/conv/0/control"], control, rtol=1e-4, atol=1e-6)
    same = spearman(arrays["net/conv/0"], arrays["net/conv/0/control"])
    assert float(arrays["net/conv/0/rank_correlation"]) == pytest.approx(same)
    assert f"rank correlation {same:.2f}" in tiles[3].title
    assert not [key for key in arrays if key.startswith("net/conv/1/")]


def test_occlusion_draws_the_class_the_winner_and_the_strongest_kernel(saved):
    model = small_network(16, 16)
    x = np.random.default_rng(0).random((1, 16, 16, 3)).astype("float32")
    look = look_at(model, x, ["top1"], "conv", patch=6, stride=4, mode="max")
    utils.draw_occlusion(look)
    probabilities, responses = utils.occlusion(model, x, "conv", 6, 4)
    maps = keras.Model(model.inputs[0], model.get_layer("conv").output)(x).numpy()[0]
    index, kernel = int(model(x).numpy().argmax()), int(maps.max(axis=(0, 1)).argmax())
    arrays = {key: value for key, value in saved["arrays"].items() if key not in ("net/input", "net/logits")}
    assert set(arrays) == {f"net/conv/{index}/probability", f"net/conv/{kernel}/response", "net/most_probable"}
    np.testing.assert_allclose(arrays[f"net/conv/{index}/probability"], probabilities[..., index])
    np.testing.assert_allclose(arrays[f"net/conv/{kernel}/response"], responses[..., kernel])
    np.testing.assert_array_equal(arrays["net/most_probable"], probabilities.argmax(axis=-1))
    titles = [tile.title for row in saved["rows"] for tile in row]
    assert len(titles) == 6 and utils.class_name(index) in titles[1] and f"conv kernel {kernel}" in titles[4]


def test_a_sentence_has_room_below_its_row(tmp_path, capsys):
    """However long: the page grows by its lines, and every line shows ink."""
    tile, heights = utils.Tile(np.full((60, 300, 3), 255, np.uint8), ""), []
    for count in (1, 12):
        path = tmp_path / f"{count}.jpg"
        utils.save_picture(path, [[tile], "Seven words are said of this row. " * count, [tile]], "")
        picture = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        inked = (picture < 128).any(axis=1)
        heights.append((len(picture), (inked[1:] & ~inked[:-1]).sum()))
    lines = heights[1][1] - heights[0][1]
    assert lines >= 4 and heights[1][0] - heights[0][0] >= 12 * lines


def run(script, *arguments, cwd):
    """The program in a shell that has nothing of what these tests set: its .npz, and what it said on stderr."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TF_", "KERAS_", "PYTHON"))}
    done = subprocess.run([sys.executable, CLONE / script, *arguments, "--arrays", "--output", "out"], cwd=cwd, env=kept,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done


def stored(done, cwd, stem):
    """The arrays by key; the picture is whole, and stdout lists the two files and nothing else."""
    assert done.stdout.splitlines() == [f"out/{stem}.jpg", f"out/{stem}.npz"]
    assert sorted(path.name for path in (cwd / "out").iterdir()) == [f"{stem}.jpg", f"{stem}.npz"]
    assert cv2.imread(str(cwd / "out" / f"{stem}.jpg")).std() > 10
    with np.load(cwd / "out" / f"{stem}.npz", allow_pickle=False) as arrays:
        assert all(np.isfinite(arrays[key]).all() for key in arrays.files)
        return dict(arrays)


def test_trust_as_a_program(tmp_path):
    """Of tench the tiny weights know nothing in this photograph: there is nothing to test, and nothing is wrong."""
    done = run("gradcam_googlenet.py", str(CLONE / "Image" / "hopper_coffee.jpg"), "--weights", "tiny",
               "--figures", "trust", "--classes", "espresso,tench", cwd=tmp_path)
    arrays, last = stored(done, tmp_path, "hopper_coffee_googlenet_trust"), "googlenet/Mixed_5c"
    assert done.stderr == ""
    assert {key: value.shape for key, value in arrays.items()} == {
        "googlenet/input": (1, 224, 224, 3), "googlenet/logits": (1000,), f"{last}/967": (7, 7), f"{last}/0": (7, 7),
        f"{last}/967/shares": (21,), f"{last}/967/deletion": (21,), f"{last}/967/insertion": (21,),
        f"{last}/967/random_deletion": (4, 21), f"{last}/967/random_insertion": (4, 21), f"{last}/967/control": (7, 7),
        f"{last}/967/rank_correlation": ()}
    assert arrays[f"{last}/0"].max() <= 0 < arrays[f"{last}/967"].max()
    probability = utils.softmax(arrays["googlenet/logits"])[967]  # the ends of the curves are the photograph
    assert arrays[f"{last}/967/deletion"][0] == pytest.approx(probability, rel=1e-3)
    assert arrays[f"{last}/967/insertion"][-1] == pytest.approx(probability, rel=1e-3)
    assert abs(arrays[f"{last}/967/rank_correlation"]) <= 1


def test_occlusion_as_a_program(tmp_path):
    done = run("deconvnet_inceptionv3.py", str(CLONE / "Image" / "hopper_coffee.jpg"), "--figures", "occlusion",
               "--weights", "random", "--stride", "64", cwd=tmp_path)
    arrays = stored(done, tmp_path, "hopper_coffee_inceptionv3_occlusion")
    assert done.stderr == ""
    index = int(arrays["inceptionv3/logits"].argmax())
    kernel, = (int(key.split("/")[2]) for key in arrays if key.endswith("/response"))
    assert {key: value.shape for key, value in arrays.items()} == {
        "inceptionv3/input": (1, 299, 299, 3), "inceptionv3/logits": (1000,), "inceptionv3/most_probable": (5, 5),
        f"inceptionv3/mixed10/{index}/probability": (5, 5), f"inceptionv3/mixed10/{kernel}/response": (5, 5)}
    assert arrays["inceptionv3/most_probable"].dtype.kind == "i"
    assert 0 < arrays[f"inceptionv3/mixed10/{index}/probability"].min() and 0 <= kernel < 2048
