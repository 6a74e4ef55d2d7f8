"""Files of results: metadata, names, writes that fail; exit codes."""

import argparse
import errno
import os
import re
import types
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image
from runs import refusal

from cnnvis import pages, results, runtime, saved_models
from cnnvis.results import Drawing
from utils import Selection, UserError

VGG = "gradcam_vgg"
PATTERN = np.random.default_rng(0).integers(0, 255, (16, 24, 3), np.uint8)


WORDS = {"method": "gradcam++", "fit": "crop", "resize": "nearest", "place": "stretch"}
WORDS |= {"preprocess": "unit", "format": "pdf", "colormap": "bone"}


FULL = OSError(errno.ENOSPC, "No space left on device", "a.jpg")
RAISED = [(UserError("no layer"), 2, "error: no layer"), (FULL, 2, "a.jpg")]


@pytest.mark.parametrize("raised, code, says", [*RAISED, (KeyboardInterrupt(), 130, "stopped")])
def test_what_is_expected_to_go_wrong_is_one_line_and_a_code(capfd, raised, code, says):
    def main():
        raise raised

    assert runtime.run(main) == code
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and says in err
    with pytest.raises(AttributeError):  # fault 5: a mistake of ours is no broken file
        runtime.run(lambda: None.shape)


def test_a_write_that_fails_leaves_everything_as_it_was(tmp_path, monkeypatch):
    """A full disk: half of the bytes fit."""
    path = tmp_path / "picture.jpg"
    path.write_bytes(b"older")

    def full(part, data):
        with open(part, "wb") as file:
            file.write(bytes(data)[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    line = refusal(results.write_whole, path, lambda file: file.write(b"n" * 1000))
    assert str(path) in line and "No space left" in line
    assert [*tmp_path.iterdir()] == [path] and path.read_bytes() == b"older"


def result_of(options, *paths, figure="overlay", stem="photo", network="vgg16"):
    parts = types.SimpleNamespace(name=network, label=network, heading="")
    figure = types.SimpleNamespace(name=figure, extension="", kernels_of="")
    return results.Result(options, figure, parts, tuple(map(Path, paths)), stem)


SETTINGS = {**WORDS, "layers": ["conv1"], "classes": ["1"], "kernels": Selection((0,)), "seed": 1}
SETTINGS |= {"pad": 9, "scale": 2, "weights": saved_models.Weights("random"), "arrays": True}
del SETTINGS["format"]


@pytest.mark.parametrize("ending", ["jpg", "png", "pdf"])
@pytest.mark.parametrize("page", ["page", "pixels"])
def test_a_picture_is_known_again_by_every_setting(read, ending, page):
    options = read(VGG, "photo.png", "--skip-existing", "--format", ending)
    result = result_of(options, "photo.png")
    drawing = Drawing(picture=PATTERN)
    if page == "page":
        drawing = Drawing([[pages.Tile(PATTERN, "one")]], "note")
    assert not result_of(options, "photo.png").is_drawn()
    result.write([drawing])
    assert result.is_drawn()
    assert not result_of(options, "photo.png", figure="trust").is_drawn()
    for name, value in SETTINGS.items():
        changed = argparse.Namespace(**{**vars(options), name: value})
        assert not result_of(changed, "photo.png").is_drawn(), name
    os.utime("photo.png", (1, 1))  # another photograph under the same name
    assert not result_of(options, "photo.png").is_drawn()


def test_names_depend_on_the_run_alone_and_a_later_run_overwrites(read):
    """Whatever is in the folder: two photographs of one stem, of two runs, have one name."""
    options = read(VGG, "photo.png")
    drawings = [Drawing(picture=PATTERN, suffix=f"_{number}") for number in (1, 2)]
    for name in ("photo.png", "other/photo.png", "photo.png"):
        result_of(options, name).write(drawings)
        written = sorted(path.name for path in Path("results").iterdir())
        assert written == ["photo_vgg16_overlay_1.jpg", "photo_vgg16_overlay_2.jpg"]


@pytest.mark.parametrize("ending", ["jpg", "png", "pdf", "csv"])
def test_a_network_whose_namesake_s_results_it_overwrites_is_reported_once(read, capfd, ending):
    """By every kind of file; --skip-existing does not know where a network's file is."""
    runtime.log_once.cache_clear()
    options = read(VGG, "photo.png", "--format", "jpg" if ending == "csv" else ending)
    digests, reported = set(), []
    for folder in ("fold1", "fold1", "other/../fold1", "fold2", "fold2", "fold1"):
        path = Path(folder, "best.keras").resolve()
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.utime(path, (1, 1))
        options.weights = saved_models.Weights("", path, True)
        result = result_of(options, "photo.png", network="best")
        cell = f"settings\n{result.photo_digest} {result.digest} origin {result.origin}\n"
        for suffix in ("_1", "_2"):
            page = {"table": cell} if ending == "csv" else {"rows": [[pages.Tile(PATTERN)]]}
            result.write([Drawing(suffix=suffix, **page)])
        reported.append(capfd.readouterr().err.count("another network named best"))
        digests.add(result.digest)
    assert (len(digests), reported) == (1, [0, 0, 0, 1, 0, 0])
    runtime.log_once.cache_clear()
    options.weights = saved_models.Weights("random")  # of the script's own network
    result_of(options, "photo.png", network="best").write([Drawing(suffix="_1", **page)])
    assert "--output gives another folder" in capfd.readouterr().err
    for content in (b"", b"origin", b"\xff" * 200_000):
        Path("broken").write_bytes(content)
        assert results.read_origin(Path("broken")) is None
    assert results.read_origin(Path("results")) is None


@pytest.mark.parametrize("kind", ["page", "pixels"])
def test_what_is_higher_than_a_jpeg_may_be_is_written_as_png_and_known_again(read, capfd, kind):
    options = read(VGG, "photo.png", "--skip-existing")
    tall = np.full((66_000, 2, 3), 128, np.uint8)
    drawing = Drawing(picture=tall) if kind == "pixels" else Drawing([[pages.Tile(tall)]])
    result = result_of(options, "photo.png")
    result.write([drawing])
    assert [path.suffix for path in Path("results").iterdir()] == [".png"]
    assert re.search(r"more than a JPEG can be: as PNG", capfd.readouterr().err)
    assert result.is_drawn()


RC = """savefig.dpi: 300
savefig.bbox: tight
image.origin: lower
figure.facecolor: red
text.color: white
font.size: 30
"""


def test_a_person_s_matplotlibrc_changes_no_page(read, tmp_path):
    drawing = Drawing([[pages.Tile(PATTERN, "one")]], "a note")
    plain = result_of(read(VGG, "photo.png", "--format", "png"), "photo.png")
    plain.write([drawing, Drawing(picture=PATTERN, suffix="_1")])
    before = [np.asarray(Image.open(path)) for path in sorted(Path("results").iterdir())]
    (tmp_path / "rc").write_text(RC)
    with matplotlib.rc_context(fname=tmp_path / "rc"):
        plain.write([drawing, Drawing(picture=PATTERN, suffix="_1")])
    after = [np.asarray(Image.open(path)) for path in sorted(Path("results").iterdir())]
    for first, second in zip(before, after, strict=True):
        np.testing.assert_array_equal(first, second)


def test_long_names_are_shortened_and_stay_apart_and_are_known_again(read):
    options = read(VGG, "photo.png", "--skip-existing", "--arrays")
    for end in "ab":
        result = result_of(options, "photo.png", stem="猫" * 49, network="n" * 240 + end)
        assert not result.is_drawn()
        suffixes = [f"_{'s' * 200}{number}" for number in (1, 2)]
        result.write([Drawing(picture=PATTERN, suffix=suffix) for suffix in suffixes])
        assert result.is_drawn()
    assert len(list(Path("results").iterdir())) == 8
