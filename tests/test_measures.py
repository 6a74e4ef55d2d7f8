"""Measures against second computations: plain loops, flood fill, sorting everything."""

import csv
import io
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

import utils
from utils import Box, UserError

SEEDS = range(8)


def random_map(seed, shape=(13, 17)):
    """Smooth noise with zeros, ties and negative values."""
    noise = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    smooth = sum(np.roll(noise, shift, axis) for shift in (0, 1, 2) for axis in (0, 1))
    return np.round(smooth, 1)


def answer(batch):
    """Three made-up probabilities of pictures: sums over the upper half, the left half, all."""
    halves = [batch[:, :6], batch[:, :, :8], batch]
    sums = np.stack([half.sum(axis=(1, 2, 3)) / 500 for half in halves], axis=1)
    return np.exp(sums) / np.exp(sums).sum(axis=1, keepdims=True)


@pytest.mark.parametrize("channels", [1, 3])
def test_deletion_and_insertion_against_a_plain_loop(channels):
    x = np.random.default_rng(1).normal(size=(1, 13, 17, channels)).astype(np.float32)
    grey = np.full(channels, 0.25, np.float32)
    distinct = np.random.default_rng(2).permutation(13 * 17).reshape(13, 17).astype(np.float32)
    deletion, insertion = utils.deletion_and_insertion(x, {2: distinct}, grey, answer)[2]
    assert deletion.curves.shape == insertion.curves.shape == (11, 11)
    blurred = cv2.GaussianBlur(x[0], (11, 11), 5).reshape(x[0].shape)
    order = sorted(np.ndindex(13, 17), key=lambda at: -distinct[at])
    for step in range(11):
        deleted, inserted = x[0].copy(), blurred.copy()
        for at in order[: round(221 * step / 10)]:
            deleted[at], inserted[at] = grey, x[0][at]
        expected = answer(np.stack([deleted, inserted]))[:, 2]
        np.testing.assert_allclose(deletion.curves[0, step], expected[0], rtol=1e-6)
        np.testing.assert_allclose(insertion.curves[0, step], expected[1], rtol=1e-6)


VERDICTS = [(0.69, "like", "like"), (0.71, "worse", "better"), (0.29, "better", "worse")]


@pytest.mark.parametrize("level, deletion, insertion", VERDICTS)
def test_verdict_is_two_deviations_of_the_areas(level, deletion, insertion):
    curves = np.repeat([[level], [0.4], [0.5], [0.6]], 11, axis=1)  # chance: 0.5 ± 0.2
    assert utils.Trial("insertion", curves).verdict().split()[0] == insertion
    title = utils.Trial("deletion", curves).title()
    assert title.startswith(f"deletion: area {level}\n{deletion}") and title.endswith("0.5 ± 0.2")


@pytest.mark.parametrize("seed", SEEDS)
def test_rank_correlation_counts_pairs(seed):
    first, second = random_map(seed), random_map(seed + 100) + random_map(seed)
    ranks = []
    for values in (first.ravel(), second.ravel()):
        lower = (values[None] < values[:, None]).sum(axis=1)
        equal = (values[None] == values[:, None]).sum(axis=1)
        ranks.append(lower + (equal - 1) / 2)
    a, b = (rank - rank.mean() for rank in ranks)
    expected = (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())
    assert utils.rank_correlation(first, second) == pytest.approx(expected, abs=1e-12)
    assert utils.rank_correlation(first, np.exp(first)) == pytest.approx(1)
    assert np.isnan(utils.rank_correlation(first, np.full(first.shape, 0.1)))


def test_kernels_are_ranked_by_what_they_answer_inside():
    maps = np.zeros((5, 5, 3), np.float32)
    maps[0, 0, 0], maps[2, 2, 1], maps[1, 3, 2] = 9, 1, 2
    inside = np.zeros((5, 5), bool)
    assert utils.inner_responses(maps, inside).tolist() == [9, 1, 2]
    inside[1:-1, 1:-1] = True
    two = utils.inner_responses(np.stack([maps, 2 * maps]), inside)
    assert two.tolist() == [[0, 1, 2], [0, 2, 4]]
    assert utils.diverse_kernels(maps, inside, 2) == [2, 1]
    assert utils.diverse_kernels(maps[..., :1], inside) == [0]


def test_diverse_kernels_correlate_little_and_are_filled_up():
    base = np.random.default_rng(3).random((2, 6, 6)).astype(np.float32)
    first, second = base / base.max(axis=(1, 2), keepdims=True)
    kernels = [first, 0.9 * first, 0.8 * second, np.ones((6, 6), np.float32)]
    maps, inside = np.stack(kernels, axis=-1), np.ones((6, 6), bool)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.8
    assert utils.diverse_kernels(maps, inside, 2) == [0, 2]
    assert utils.diverse_kernels(maps, inside) == [0, 2, 1]
    assert utils.diverse_kernels(np.ones((6, 6, 3)), inside, 2) == [0, 1]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("share", [0.5, 0.95, 1.0])
def test_patches_hold_the_share_and_no_smaller_size_does(seed, share):
    generator = np.random.default_rng(seed)
    projections = np.zeros((4, 30, 41, 3), np.float32)
    for one in projections[:3]:  # the last one is silent
        y, x, side = generator.integers((0, 0, 3), (25, 36, 9))
        lit = one[y : y + side, x : x + side]
        lit[:] = generator.normal(size=lit.shape)
    found = [SimpleNamespace(values={"max": each}) for each in projections]
    utils.cut_patches(found, "max", share)
    short = []
    for each in found:
        mass = np.abs(each.values["max"].astype(float)).sum(axis=-1)
        rows, columns = each.cut
        side = rows.stop - rows.start
        assert side == columns.stop - columns.start == found[0].cut[0].stop - found[0].cut[0].start
        assert mass[each.cut].sum() >= share * mass.sum() * (1 - 1e-9)
        running = [np.cumsum(mass.sum(axis=other)) for other in (1, 0)]
        middle = [np.searchsorted(along, along[-1] / 2) for along in running]
        smaller = utils.square_around(middle, side - 1, mass.shape)
        short.append(mass[smaller].sum() < share * mass.sum())
    assert any(short)


def flood(hot):
    """Segments of a bool map, connected also at corners: arrays of positions (n, 2)."""
    left = set(zip(*np.nonzero(hot), strict=True))
    segments = []
    while left:
        segment = [left.pop()]
        for y, x in segment:  # which grows on the way
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            segment += near
        segments.append(np.array(segment))
    return segments


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("threshold", [1, 15, 60])
def test_segment_box_against_flood_fill(seed, threshold):
    heat = random_map(seed)
    segments = flood(heat > heat.max() * threshold / 100)
    size = max(map(len, segments))
    largest = [segment[:, ::-1] for segment in segments if len(segment) == size]
    boxes = [(*each.min(axis=0), *each.max(axis=0) + 1) for each in largest]
    assert utils.segment_box(heat, threshold) in boxes


def test_no_box_where_enlarging_alone_makes_heat():
    """A cubic goes beyond the cells: of a map without positive evidence above zero."""
    cam = -np.float32([[9, 9, 0.01, 0.01], [9, 9, 0.01, 0.01]])
    photo, network = SimpleNamespace(pixels=np.zeros((40, 80, 3))), SimpleNamespace(layer="conv")
    view = SimpleNamespace(photo=photo, network=network, at=lambda *_: utils.tiled((8, 8), 2, 4))
    assert utils.place(cam, view.at(), 40, 80).max() > 0
    assert utils.segment_box(utils.Explanation.placed(view, cam)) is None


def test_localisation_beside_a_centred_box():
    found = utils.Localisation()
    heat = np.zeros((100, 200), np.float32)
    heat[10:30, 20:60] = 1
    heat[60:70, 150:190] = 0.1
    heat[90:, 190:] = -5
    exact = [Box(20, 10, 60, 30)]
    near = [Box(75, 10, 115, 30), Box(150, 50, 190, 70)]  # the maximum at (10, 20) is far
    found.add(heat, utils.segment_box(heat), exact)
    found.add(heat, Box(80, 10, 120, 30), near)
    found.add(-np.abs(heat), None, exact)
    own, centred = zip(*found.summary().values(), strict=True)
    np.testing.assert_allclose(own, [2 / 3, (1 + 35 / 45) / 3, 1 / 3, 1 / 3, (800 + 40) / 840 / 3])
    assert list(found.summary()) == list(utils.LOCALISATION)
    assert centred == (0, 0, 0, 0, 0)  # 40 × 20 in the middle: none of them is there
    middle = utils.Localisation()
    middle.add(heat, utils.segment_box(heat), [Box(80, 40, 120, 60)])
    middle.add(heat, utils.segment_box(heat), [Box(110, 40, 150, 60)])
    _, centred = zip(*middle.summary().values(), strict=True)
    np.testing.assert_allclose(centred, [0.5, (1 + 1 / 7) / 2, 1, 0.5, (1 + 0.25) / 2])
    assert "IoU ≥ 0.5 0.000 (0.500)" in middle.line()


def test_boxes_are_read_and_bad_lines_named(tmp_path):
    path = tmp_path / "truth.csv"
    header = "photo,class,x0,y0,x1,y1\n"
    good = '"a, b.jpg",cat,0,1,2.5,3\nsub/猫.jpg, dog ,1,1,2,2\n"a, b.jpg",cat,5,5,6,6\n'
    path.write_text("\ufeff" + header + good, encoding="utf-8")
    assert utils.read_boxes(path) == {
        (tmp_path / "a, b.jpg").resolve(): {"cat": [(0, 1, 2.5, 3), (5, 5, 6, 6)]},
        (tmp_path / "sub/猫.jpg").resolve(): {"dog": [(1, 1, 2, 2)]},
    }
    bad = ["a.jpg,cat,1,2,3", "a.jpg,cat,1,2,3,x", "a.jpg,cat,3,1,3,2", "a,b.jpg,cat,1,2,3,4"]
    bad += [",cat,1,2,3,4", "a.jpg,,1,2,3,4", "a.jpg,cat,-1,0,3,4", "a.jpg,cat,0,0,nan,inf"]
    for line in bad:
        path.write_text(header + good + line + "\n", encoding="utf-8")
        with pytest.raises(UserError, match="no box in line 5: "):
            utils.read_boxes(path)
    path.write_text("photo,x0\n")
    with pytest.raises(UserError, match="first line"):
        utils.read_boxes(path)


def test_tally_says_the_most_frequent_confusion_first():
    tally = utils.Tally({(1, 0): 1, (0, 0): 412, (0, 1): 31})
    told = "412 of 444 right (92.8 %); cat taken for dog 31 times, dog taken for cat once"
    assert tally.line(["cat", "dog"].__getitem__) == told
    assert tally.by_class() == ({0: 443, 1: 1}, {0: 413, 1: 31})


def test_always_the_same_answer_is_suspected(capsys):
    survey = object.__new__(utils.Survey)
    survey.tally = utils.Tally({(0, 0): 12, (1, 0): 12})
    survey.network = SimpleNamespace(label="mine", preprocess="caffe")
    survey.try_preprocessings = lambda: (24, {"unit": 1.0})
    survey.suspect()
    assert "right of 24 photographs with --preprocess unit 100.0 %" in capsys.readouterr().err


def test_the_table_is_read_back_as_written():
    names = ['crane, "machine"', "Кошка", "two\nlines", "=1+1", "e", "f"]
    probabilities = np.float32([0.5, 0.25, 0.125, 0.0625, 0.03125, 0.03125])
    row = {"photograph": 'a, "b"\r\n猫.jpg'}
    row |= utils.class_cells(names.__getitem__, probabilities, 1)
    rows = [row | {"x0": 3}, {"photograph": "\udcff.jpg", "error": "cannot read"}]
    text = utils.table_text(rows)
    header, first, second = csv.reader(io.StringIO(text, newline=""))
    assert header == utils.TABLE_COLUMNS and len(set(header)) == len(header) == len(first) == 21
    assert first[:7] == [row["photograph"], "Кошка", "0.25", names[0], "0.5", names[1], "0.25"]
    assert first[7:13] == [names[2], "0.125", "=1+1", "0.0625", "e", "0.03125"]
    assert first[13:] == ["", "", "3", *[""] * 5]
    assert second == ["?.jpg", *[""] * 19, "cannot read"]
    assert text.count("\r\n") == 4  # one of them in a name
    small = utils.class_cells("ab".__getitem__, np.float32([0.25, 0.75]))
    assert small == {"class_1": "b", "p_1": "0.75", "class_2": "a", "p_2": "0.25"}
