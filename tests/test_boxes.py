"""Boxes against flood fill, true boxes from files, and scores."""

import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import random_map
from runs import save_photo

from cnnvis import boxes
from cnnvis.boxes import Box
from cnnvis.explanation import GradCamExplanation
from cnnvis.geometry import stretched_geometry
from cnnvis.runtime import log_once
from utils import ClassNames, UserError

SEEDS = range(8)


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
    expected = [(*each.min(axis=0), *each.max(axis=0) + 1) for each in largest]
    assert boxes.segment_box(heat, threshold) in expected


def test_no_box_where_enlarging_alone_makes_heat():
    """A cubic overshoots: a map without positive evidence may become positive between its cells."""
    cam = -np.float32([[9, 9, 0.01, 0.01], [9, 9, 0.01, 0.01]])
    geometry = stretched_geometry((8, 8), 2, 4)
    assert geometry.resample(cam, 40, 80).max() > 0
    network = SimpleNamespace(main_layer="conv")
    photo = SimpleNamespace(image=np.zeros((40, 80, 3)))
    explanation = SimpleNamespace(photo=photo, network=network, geometry=lambda *_: geometry)
    assert boxes.segment_box(GradCamExplanation.resample_heat(explanation, cam)) is None


def test_localisation_beside_a_centred_box():
    found = boxes.Localisation()
    heat = np.zeros((100, 200), np.float32)
    heat[10:30, 20:60] = 1
    heat[60:70, 150:190] = 0.1
    heat[90:, 190:] = -5
    exact = [Box(20, 10, 60, 30)]
    near = [Box(75, 10, 115, 30), Box(150, 50, 190, 70)]  # the maximum at (10, 20) is far
    found.add(heat, boxes.segment_box(heat), exact)
    found.add(heat, Box(80, 10, 120, 30), near)
    found.add(-np.abs(heat), None, exact)
    own, centred = zip(*found.summary().values(), strict=True)
    np.testing.assert_allclose(own, [2 / 3, (1 + 35 / 45) / 3, 1 / 3, 1 / 3, (800 + 40) / 840 / 3])
    assert list(found.summary()) == list(boxes.SCORES)
    assert centred == (0, 0, 0, 0, 0)  # 40 × 20 in the middle: none of them is there
    middle = boxes.Localisation()
    middle.add(heat, boxes.segment_box(heat), [Box(80, 40, 120, 60)])
    middle.add(heat, boxes.segment_box(heat), [Box(110, 40, 150, 60)])
    _, centred = zip(*middle.summary().values(), strict=True)
    np.testing.assert_allclose(centred, [0.5, (1 + 1 / 7) / 2, 1, 0.5, (1 + 0.25) / 2])
    assert "IoU ≥ 0.5 0.000 (0.500)" in middle.line()


def test_boxes_are_read_and_bad_lines_named(tmp_path):
    path = tmp_path / "truth.csv"
    header = "photo,class,x0,y0,x1,y1\n"
    good = '"a, b.jpg",cat,0,1,2.5,3\nsub/猫.jpg, dog ,1,1,2,2\n"a, b.jpg",cat,5,5,6,6\n'
    path.write_text("\ufeff" + header + good, encoding="utf-8")
    assert boxes.read_boxes(path) == {
        (tmp_path / "a, b.jpg").resolve(): {"cat": [(0, 1, 2.5, 3), (5, 5, 6, 6)]},
        (tmp_path / "sub/猫.jpg").resolve(): {"dog": [(1, 1, 2, 2)]},
    }
    bad = ["a.jpg,cat,1,2,3", "a.jpg,cat,1,2,3,x", "a.jpg,cat,3,1,3,2", "a,b.jpg,cat,1,2,3,4"]
    bad += [",cat,1,2,3,4", "a.jpg,,1,2,3,4", "a.jpg,cat,-1,0,3,4", "a.jpg,cat,0,0,nan,inf"]
    for line in bad:
        path.write_text(header + good + line + "\n", encoding="utf-8")
        with pytest.raises(UserError, match="no box in line 5: "):
            boxes.read_boxes(path)
    path.write_text("photo,x0\n")
    with pytest.raises(UserError, match="first line"):
        boxes.read_boxes(path)


ODD = {  # rows of a file whose columns are x0,y0,x1,y1,photo,class, and what the message says
    "0,0,99999999999,4,a.jpg,cat": "no box in line 2",
    "0,0,3,4,a\0.jpg,cat": "no box in line 2",
    "0,0,3,4,a.jpg": "no box in line 2",
    f"0,0,3,4,a.jpg,{'7' * 5000}": "no box in line 2",
    f"0,0,3,4,a.jpg,{'c' * 140_000}": "line 2: field larger",
    "0.1,0.2,0.9,1,a.jpg,cat": "pixels expected",
    "0.5,0.5,0.2,0.3,a.jpg,cat": "pixels expected",  # centre, width and height, as of YOLO
    "50,60,20,30,a.jpg,cat": "line 2: .* with width and height",
    "-5,0,3,4,a.jpg,cat": "0 <= y0 < y1$",
}


@pytest.mark.parametrize("row", ODD, ids=range(len(ODD)))
def test_odd_cells_are_one_line(tmp_path, row):
    (tmp_path / "truth.csv").write_text(f"x0,y0,x1,y1,photo,class\n{row}\n")
    with pytest.raises(UserError, match=ODD[row]):
        boxes.read_boxes(tmp_path / "truth.csv")


PERCENT = [(10, 20, 60.5, 90), (0, 0, 100, 100), (5, 5, 9, 9)]
ALIKE = {  # boxes, a photograph each, of a width: whether they look like percent
    "percent": (PERCENT, 300, True),
    "two photographs": (PERCENT[:2], 300, False),
    "one in pixels": ([*PERCENT, (20, 20, 101, 50)], 300, False),
    "small ones in a corner": ([(10, 20, 45, 90)] * 5, 300, False),
    "small photographs": (PERCENT, 128, False),
}


@pytest.mark.parametrize("name", ALIKE)
def test_boxes_that_look_like_percent_are_reported_once(tmp_path, capsys, name):
    given, width, is_reported = ALIKE[name]
    paths = [save_photo(tmp_path / f"{k}.png", size=(width, 250)) for k in range(len(given))]
    read = {path: {"cat": [Box(*box)]} for path, box in zip(paths, given, strict=True)}
    log_once.cache_clear()
    for _ in range(2):  # networks
        options = SimpleNamespace(boxes="truth.csv", true_boxes=read)
        assert len(boxes.find_true_boxes(options, ClassNames([""], ["cat"]), paths)) == len(given)
    err = capsys.readouterr().err
    assert err.count("\n") == err.count("300 x 250 pixels: if they are in percent") == is_reported


def test_unknown_classes_are_left_out_and_accents_compared(tmp_path, capsys):
    """Café as a Mac writes it, decomposed, in the name of the photograph and of the class."""
    decomposed = "cafe\N{COMBINING ACUTE ACCENT}"
    composed = unicodedata.normalize("NFC", decomposed)
    rows = f"{decomposed}.jpg,{decomposed},1,1,3,3\n{decomposed}.jpg,unicorn,1,1,3,3\n"
    (tmp_path / "truth.csv").write_text(f"photo,class,x0,y0,x1,y1\n{rows}", encoding="utf-8")
    read = boxes.read_boxes(tmp_path / "truth.csv")
    options = SimpleNamespace(boxes="truth.csv", true_boxes=read)
    path = tmp_path / f"{composed}.jpg"
    found = boxes.find_true_boxes(options, ClassNames(["", ""], ["dog", composed]), [path])
    assert found == {path: {1: [(1, 1, 3, 3)]}}
    assert "left out: unknown class 'unicorn'" in capsys.readouterr().err
    with pytest.raises(UserError, match="unknown class"):
        boxes.find_true_boxes(options, ClassNames([""], ["dog"]), [path])
    with pytest.raises(UserError, match="none of the photographs has a box there"):
        boxes.find_true_boxes(options, ClassNames([""], ["dog"]), [tmp_path / "other.jpg"])
