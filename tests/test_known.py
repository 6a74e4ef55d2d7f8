"""Folders with known answers: failures, boxes and the table of runs over drawn shapes."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import shapes
from runs import arrays, call, save_photo

import utils

IMAGE = Path(utils.HERE) / "Image"
SHAPES = ["--weights", IMAGE / "shapes.keras", "--preprocess", "none"]
LABELLED = [*SHAPES, "--labels", IMAGE / "shapes.txt"]


def run(folder, *words, code=0):
    """Run the script in a folder; what it said on stderr."""
    done = call(folder, "gradcam_resnet50", *words)
    assert done.code == code, done.err
    return "\n".join([*done.err, ""])


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    return tmp_path_factory.mktemp("desk")


WORDS = ["val", *LABELLED, "--figures", "failures,table", "--arrays"]


@pytest.fixture(scope="module")
def wrong(desk):
    """Stems of thirty of eighty in a wrong sub-folder, and what was said; one is no picture."""
    misplaced = shapes.draw_folder(desk / "val", 20, 30)
    (desk / "val" / "disc" / 'a, "b"\n猫.png').write_bytes(b"none")
    return {path.stem for path in misplaced}, run(desk, *WORDS, code=1)


def test_thirty_wrong_ones_are_found_with_their_confusions(desk, wrong):
    misplaced, said = wrong
    assert "50 of 80 right (62.5 %); " in said
    for true, name in zip(np.roll(shapes.NAMES, -1), shapes.NAMES, strict=True):
        times = 8 if name in ("disc", "cross") else 7
        assert f"{true} taken for {name} {times} times" in said
    pages = [arrays(desk / f"results/val_shapes_failures_{page}.npz") for page in (1, 2, 3, 4)]
    logits = [key for page in pages for key in page if key.endswith("/logits")]
    assert {key.split("/")[1] for key in logits} == misplaced
    assert len(list(desk.glob("results/*failures_*.jpg"))) == 5  # with the mean heat


def test_the_difference_lies_on_the_shape(desk, wrong):
    page = arrays(desk / "results/val_shapes_failures_1.npz")
    for stem in {key.split("/")[1] for key in page}:
        drawn = str(shapes.NAMES.index(stem.partition("_")[0]))
        cams = {key.split("/")[-1]: page[key] for key in page if f"{stem}/relu4_2/" in key}
        difference = cams.pop(drawn) - next(iter(cams.values()))
        y, x = np.unravel_index(difference.argmax(), difference.shape)
        ys, xs = shape_of(next((desk / "val").rglob(f"{stem}.png")))
        far = np.hypot(ys - 8 * y - 4, xs - 8 * x - 4).min()
        assert far < 12, stem  # cells are 8 pixels wide


def shape_of(path):
    """Positions of the pixels of the most frequent colour: shapes are of one."""
    pixels = utils.read_photo(path)
    colours, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    return np.nonzero((pixels == colours[counts.argmax()]).all(axis=-1))


def test_the_table_is_read_back_and_left_as_it_is(desk, wrong):
    path = desk / "results/val_shapes_table.csv"
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 81 and list(rows[0]) == utils.TABLE_COLUMNS
    assert [row["photograph"] for row in rows if row["error"]] == ['val/disc/a, "b"\n猫.png']
    differing = [row for row in rows if row["true_class"] != row["class_1"]]
    assert {Path(row["photograph"]).stem for row in differing} == wrong[0]
    written = path.stat().st_mtime_ns
    assert "0 drawn, 81 there already" in run(desk, *WORDS, "--skip-existing")
    assert path.stat().st_mtime_ns == written


def test_true_boxes_are_scored_beside_a_centred_one(desk, wrong):
    names = [path.name for path in desk.glob("val/disc/disc_0[4-7]*.png")]
    lines = [f"val/disc/{name},disc,23,23,73,73\n" for name in names]
    (desk / "truth.csv").write_text("photo,class,x0,y0,x1,y1\n" + "".join(lines))
    words = ["val/disc", *LABELLED, "--figures", "boxes", "--classes", "cross", "--arrays"]
    said = run(desk, *words, "--boxes", "truth.csv", "--output", "o", code=1)
    assert f"{len(lines)} maps with true boxes" in said
    assert re.search(r"mean IoU 0\.\d{3} \(1\.000\)", said)
    found = arrays(desk / "o/disc_048_shapes_boxes.npz")
    boxes = {key for key in found if key.endswith("box")}
    assert boxes == {"shapes/relu4_2/0/box", "shapes/relu4_2/1/box"}
    network = utils.open_network(utils.keras.saving.load_model(IMAGE / "shapes.keras"))
    at = utils.layer_geometries(network)["relu4_2"]
    heat = utils.place(np.maximum(found["shapes/relu4_2/0"], 0), at, 96, 96)
    assert tuple(found["shapes/relu4_2/0/box"]) == utils.segment_box(heat)
    assert (desk / "o" / "disc_shapes_boxes.jpg").exists()


def test_wrong_folders_say_one_line(tmp_path):
    for folder in ("no/bird", "no/plane", "flat"):
        save_photo(tmp_path / folder / "a.png")
    (tmp_path / "empty" / "disc").mkdir(parents=True)
    lines = {
        "no": "no sub-folder (bird, plane) is called like a class (disc, cross, triangle, square)",
        "flat": "there is no sub-folder that is called like a class",
        "empty": "no photographs in",
        "missing": "missing",
    }
    for folder, line in lines.items():
        said = run(tmp_path, folder, *LABELLED, "--figures", "failures", code=2).splitlines()
        assert line in said[-1] and len(said) == 1 and said[0].startswith("error: ")


def test_half_labelled_and_doubly_named_folders(tmp_path):
    shapes.draw_folder(tmp_path / "half", 2)
    for name, other in (("cross", "1"), ("square", "3"), ("triangle", "bird")):
        (tmp_path / "half" / name).rename(tmp_path / "half" / other)
    (tmp_path / "half" / "cross").mkdir()
    said = run(tmp_path, "half", *LABELLED, "--figures", "failures")
    assert "left out: bird\n" in said and "without photographs: cross\n" in said
    assert "taken together: 1, cross\n" in said
    assert "6 of 6 right (100.0 %): no failures to draw" in said
    drawn = [path.name for path in tmp_path.glob("results/*")]
    assert drawn == ["half_shapes_failures_heat.jpg"]


def test_sub_folders_are_the_classes_of_a_network_without_labels(tmp_path):
    shapes.draw_folder(tmp_path / "sorted", 15)
    said = run(tmp_path, "sorted", *SHAPES, "--figures", "failures", "--pages", "1")
    assert "classes are the sub-folders, sorted: cross, disc, square, triangle" in said
    assert "the labels in the order of training" in said
    tried = re.search(r"right of 50 photographs with --preprocess (.*)", said)[1]
    assert [word.split()[0] for word in tried.split(", ")] == list(utils.PREPROCESS)
    assert len(list(tmp_path.glob("results/*"))) == 2
    ten = utils.ClassNames([""] * 3, ["0", "1", "10"])
    assert [ten.called(word) for word in ("0", "1", "10", "2")] == [0, 1, 2, 2]
