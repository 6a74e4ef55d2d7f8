"""Folders with known answers: failures, boxes and the table of runs over drawn shapes."""

import csv
import io
import re
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import shapes
from runs import arrays, call, save_photo

import cnnvis
import utils
from cnnvis import boxes, failures, folder

IMAGE = utils.IMAGE_FOLDER
SHAPES = ["--weights", IMAGE / "shapes.keras", "--preprocess", "none"]
LABELLED = [*SHAPES, "--labels", IMAGE / "shapes.txt"]


def run(cwd, *words, code=0):
    """Run the script in a folder; its lines on stderr."""
    done = call(cwd, "gradcam_resnet50", *words)
    assert done.code == code, done.err
    return "\n".join([*done.err, ""])


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    return tmp_path_factory.mktemp("desk")


WORDS = ["val", *LABELLED, "--figures", "failures,table", "--arrays"]


@pytest.fixture(scope="module")
def wrong(desk):
    """Stems of thirty of eighty in a wrong sub-folder, and the log; one is no picture."""
    misplaced = shapes.draw_folder(desk / "val", 20, 30)
    (desk / "val" / "disc" / 'a, "b"\n猫.png').write_bytes(b"none")
    return {path.stem for path in misplaced}, run(desk, *WORDS, code=1)


def test_thirty_wrong_ones_are_found_with_their_confusions(desk, wrong):
    misplaced, log = wrong
    assert "50 of 80 right (62.5 %); " in log
    for true, name in zip(np.roll(shapes.NAMES, -1), shapes.NAMES, strict=True):
        times = 8 if name in ("disc", "cross") else 7
        assert f"{true} taken for {name} {times} times" in log
    pages = [arrays(desk / f"results/val_shapes_failures_{page}.npz") for page in (1, 2, 3, 4)]
    logits = [key for page in pages for key in page if key.endswith("/logits")]
    assert {key.split("/")[1] for key in logits} == misplaced
    assert len(list(desk.glob("results/*failures_*.jpg"))) == 5  # with the mean heat


def test_the_difference_is_on_the_shape(desk, wrong):
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
    """Positions of the pixels of the most frequent colour: a shape has one colour."""
    pixels = utils.load_image(path)
    colours, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    return np.nonzero((pixels == colours[counts.argmax()]).all(axis=-1))


def test_the_table_of_a_run_is_read_back_and_kept(desk, wrong):
    path = desk / "results/val_shapes_table.csv"
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 81 and list(rows[0]) == folder.TABLE_COLUMNS
    assert [row["photograph"] for row in rows if row["error"]] == ['val/disc/a, "b"\n猫.png']
    differing = [row for row in rows if row["true_class"] != row["class_1"]]
    assert {Path(row["photograph"]).stem for row in differing} == wrong[0]
    written = path.stat().st_mtime_ns
    log = run(desk, *WORDS, "--skip-existing")
    assert "failures: there already" in log and "table: there already" in log
    assert path.stat().st_mtime_ns == written


def test_true_boxes_are_scored_beside_a_centred_one(desk, wrong):
    names = [path.name for path in desk.glob("val/disc/disc_0[4-7]*.png")]
    lines = [f"val/disc/{name},disc,23,23,73,73\n" for name in names]
    (desk / "truth.csv").write_text("photo,class,x0,y0,x1,y1\n" + "".join(lines))
    words = ["val/disc", *LABELLED, "--figures", "boxes", "--classes", "cross", "--arrays"]
    log = run(desk, *words, "--boxes", "truth.csv", "--output", "o", code=1)
    assert f"{len(lines)} maps with true boxes" in log
    assert re.search(r"mean IoU 0\.\d{3} \(1\.000\)", log)
    found = arrays(desk / "o/disc_048_shapes_boxes.npz")
    boxed = {key for key in found if key.endswith("box")}
    assert boxed == {"shapes/relu4_2/0/box", "shapes/relu4_2/1/box"}
    network = cnnvis.open_network(keras.saving.load_model(IMAGE / "shapes.keras"))
    geometry = cnnvis.layer_geometries(network)["relu4_2"]
    heat = geometry.resample(np.maximum(found["shapes/relu4_2/0"], 0), 96, 96)
    assert tuple(found["shapes/relu4_2/0/box"]) == boxes.segment_box(heat)
    assert (desk / "o" / "disc_shapes_boxes.jpg").exists()


def test_a_folder_named_like_one_of_its_photographs_has_a_summary_of_its_own(tmp_path):
    for name in "ab":
        save_photo(tmp_path / "a" / f"{name}.png")
    truth = tmp_path / "truth.csv"
    truth.write_text("photo,class,x0,y0,x1,y1\na/a.png,disc,1,1,9,9\na/b.png,disc,1,1,9,9\n")
    run(tmp_path, "a", *LABELLED, "--figures", "boxes", "--boxes", "truth.csv")
    names = {path.name.removesuffix(".jpg") for path in tmp_path.glob("results/*")}
    assert names == {"a_shapes_boxes", "b_shapes_boxes", "a_shapes_boxes_summary"}


def test_wrong_folders_are_one_line(tmp_path):
    for name in ("no/bird", "no/plane", "flat", "sorted/disc", "sorted/cross"):
        save_photo(tmp_path / name / "a.png")
    (tmp_path / "empty" / "disc").mkdir(parents=True)
    lines = {
        "no": "no sub-folder (bird, plane) is named like a class (disc, cross, triangle, square)",
        "flat": "there is no sub-folder that is named like a class",
        "sorted/*": ": give the folder above, sorted",
        "empty": "no photographs in",
        "missing": "missing",
    }
    for name, line in lines.items():
        log = run(tmp_path, name, *LABELLED, "--figures", "failures", code=2).splitlines()
        assert line in log[-1] and len(log) == 1 and log[0].startswith("error: ")


def test_half_labelled_and_doubly_named_folders(tmp_path):
    shapes.draw_folder(tmp_path / "half", 2)
    half = tmp_path / "half"
    for name, other in (("cross", "1"), ("square", "3"), ("triangle", "bird")):
        (half / name).rename(half / other)
    for name in ("cross", "square", "__MACOSX", "nothing"):
        (half / name).mkdir()
    next((half / "1").iterdir()).rename(half / "cross" / "a.png")
    log = run(tmp_path, "half", *LABELLED, "--figures", "failures")
    assert "like several: bird\n" in log and "without photographs: square\n" in log
    assert "taken together: 1, cross\n" in log
    assert "6 of 6 right (100.0 %): no failures to draw" in log
    drawn = [path.name for path in tmp_path.glob("results/*")]
    assert drawn == ["half_shapes_failures_heat.jpg"]


def test_sub_folders_are_the_classes_of_a_network_without_labels(tmp_path, monkeypatch):
    """Their order is not that of the training; later all photographs vanish before the pages."""
    shapes.draw_folder(tmp_path / "sorted", 15)
    words = ["sorted", *SHAPES, "--figures", "failures", "--pages", "1"]
    log = run(tmp_path, *words)
    assert "sub-folders in sorted order: cross, disc, square, triangle" in log
    assert "the labels in the order of training" in log
    tried = re.search(r"right of 50 photographs with --preprocess (.*)", log)[1]
    assert [word.split()[0] for word in tried.split(", ")] == list(utils.PREPROCESS_MODES)
    assert len(list(tmp_path.glob("results/*"))) == 2
    draw_pages = failures.FailuresCollector.draw_pages

    def vanish(collector):
        for path in collector.evaluation.photos.paths:
            path.unlink()
        return draw_pages(collector)

    monkeypatch.setattr(failures.FailuresCollector, "draw_pages", vanish)
    log = run(tmp_path, *words, "--output", "o", code=1)
    assert "nan" not in log and "skipped: " in log
    assert [path.name for path in tmp_path.glob("o/*")] == ["sorted_shapes_failures_heat.jpg"]
    ten = utils.ClassNames([""] * 3, ["0", "1", "10"])
    assert [ten.named(word) for word in ("0", "1", "10", "2")] == [0, 1, 2, 2]


NOT_CLASSES = {  # folders, and which classes the network's four are; None: not told by folders
    "cross disc square triangle": "cross disc square triangle",
    "cross disc square thumbs-": "cross disc square thumbs-",  # as Keras counts: it fits
    "cross disc empty- square triangle thumbs-": "cross disc square triangle",
    "cross disc square empty- thumbs-": None,
}


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("names", NOT_CLASSES)
def test_what_archives_and_notebooks_leave_is_no_class(tmp_path, names, labelled):
    """Names with a dash are those of folders without a photograph."""
    classes = NOT_CLASSES[names]
    for name in [*names.split(), "__MACOSX-", ".ipynb_checkpoints"]:
        save_photo(tmp_path / "all" / name / ("Thumbs.png" if name[-1] != "-" else "._a.png"))
    words = ["all", *SHAPES, "--figures", "table"]
    if labelled:
        save_photo(tmp_path / "a.png")
        words = ["a.png", *words[1:], "--labels", "all"]
    for path in tmp_path.glob("all/*-"):
        path.rename(path.with_name(path.name.rstrip("-")))
    log = run(tmp_path, *words, code=2 if labelled and not classes else 0)
    left_out = "without photographs are no classes: empty, thumbs"
    assert (left_out in log) == ("empty" in names and bool(classes))
    if labelled:
        assert ("all names 5 classes" in log) == (not classes)
    told = (classes or "").replace("-", "").replace(" ", ", ")
    assert labelled or (f"in sorted order: {told};" in log) == bool(classes)
    if classes:
        table = next(tmp_path.glob("results/*.csv")).read_text()
        named = {word for row in csv.DictReader(io.StringIO(table)) for word in row.values()}
        assert {*classes.replace("-", "").split()} <= named


def test_one_unit_without_labels_needs_them():
    network = SimpleNamespace(kind="number", label="mine")
    with pytest.raises(utils.UserError, match="--labels"):
        folder.known_answers(network, None)


def test_the_most_frequent_confusion_comes_first():
    counts = failures.ConfusionCounts({(1, 0): 1, (0, 0): 412, (0, 1): 31})
    line = "412 of 444 right (92.8 %); cat taken for dog 31 times, dog taken for cat once"
    assert counts.line(["cat", "dog"].__getitem__) == line
    assert counts.by_class() == ({0: 443, 1: 1}, {0: 413, 1: 31})


def test_always_the_same_answer_is_reported(capsys, monkeypatch):
    counts = failures.ConfusionCounts({(0, 0): 12, (1, 0): 12})
    classes = utils.ClassNames([""] * 2, ["square", "disc"])
    network = SimpleNamespace(label="mine", preprocess="caffe", classes=classes)
    monkeypatch.setattr(failures, "try_preprocessings", lambda _: (24, {"unit": 1.0}))
    failures.report_doubts(SimpleNamespace(network=network), counts)
    log = capsys.readouterr().err
    assert "it answers square for all 24 " in log
    assert "right of 24 photographs with --preprocess unit 100.0 %" in log


def test_the_table_is_read_back_as_written():
    names = ['crane, "machine"', "Кошка", "two\nlines", "=1+1", "-1", "@f"]
    probabilities = np.float32([0.5, 0.25, 0.125, 0.0625, 0.03125, 0.03125])
    row = {"photograph": 'a, "b"\r\n猫.jpg'}
    row |= folder.class_cells(names.__getitem__, probabilities, 1)
    rows = [row | {"x0": 3}, {"photograph": "\udcff.jpg", "error": "\tcannot read"}]
    text = folder.table_text(rows)
    header, first, second = csv.reader(io.StringIO(text, newline=""))
    assert header == folder.TABLE_COLUMNS and len(set(header)) == len(header) == len(first) == 21
    assert first[:7] == [row["photograph"], "Кошка", "0.25", names[0], "0.5", names[1], "0.25"]
    assert first[7:13] == [names[2], "0.125", "'=1+1", "0.0625", "-1", "0.03125"]  # no formula
    assert first[13:] == ["", "", "3", *[""] * 5]
    assert second == ["?.jpg", *[""] * 19, "'\tcannot read"]
    assert text.count("\r\n") == 4  # one of them in a name
    small = folder.class_cells("ab".__getitem__, np.float32([0.25, 0.75]))
    assert small == {"class_1": "b", "p_1": "0.75", "class_2": "a", "p_2": "0.25"}
