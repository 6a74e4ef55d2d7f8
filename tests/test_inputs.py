"""What goes in and what comes out without a network, and without TensorFlow: photographs, folders,
words, classes, pictures, files. Expected pixels are those that were drawn, before another library
stored them."""

import argparse
import dataclasses
import errno
import os
import re
import shlex
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from runs import DECONVNET, GRADCAM, ROOT, SCRIPTS, read_options, save_photo

import utils
from utils import Selection, UserError

RED, GREEN, BLUE, ORANGE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 160, 32)
VGG, DECONV = "gradcam_vgg", "deconvnet_vgg"


def quadrants(*colours):
    """Four colours: swapped channels, flips and turns all show."""
    picture = np.array(colours, np.uint8).reshape(2, 2, *np.shape(colours[0]))
    return picture.repeat(16, axis=0).repeat(32, axis=1)


def refusal(call, *arguments, **constants):
    """The one line of the UserError that a call ends with."""
    with pytest.raises(UserError) as caught:
        call(*arguments, **constants)
    line = str(caught.value)
    assert line.strip() and "\n" not in line
    return line


# --- photographs ---

PATTERN = quadrants(RED, GREEN, BLUE, ORANGE)
GREY = quadrants(0, 90, 180, 255)
ALPHA = quadrants(0, 255, 128, 64)
RGBA = np.dstack([PATTERN, ALPHA])
OVER_WHITE = PATTERN * (ALPHA[..., None] / 255) + 255 - ALPHA[..., None]
GREY16 = np.linspace(0, 65535, 64 * 32).reshape(32, 64).astype(np.uint16)
RGB16 = np.stack([GREY16, GREY16[::-1], GREY16[:, ::-1]], axis=2)
TURNED = Image.Exif()
TURNED[274] = 6  # EXIF 2.3: a viewer turns the stored rows by 90 degrees
KINDS = {  # name: what is stored, how Pillow stores it (None: OpenCV), the pixels, by how much off
    "a.jpg": (PATTERN, {"quality": 98, "subsampling": 0}, PATTERN, 6),
    "猫 $b&c;%20.bmp": (PATTERN, None, PATTERN, 0),
    "grey.png": (GREY, {}, np.dstack([GREY] * 3), 0),
    "rgba.webp": (RGBA, {"lossless": True, "exact": True}, OVER_WHITE, 1),
    "clear.png": (PATTERN, {"transparency": GREEN}, quadrants(RED, (255,) * 3, BLUE, ORANGE), 0),
    "turned.png": (PATTERN, {"exif": TURNED}, np.rot90(PATTERN, -1), 0),
    "float.tif": (GREY.astype(np.float32) / 255, None, np.dstack([GREY] * 3), 1),
    "grey16.png": (GREY16, None, np.dstack([GREY16 / 257] * 3), 1),
    "rgb16.png": (RGB16, None, RGB16 / 257, 1),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_pixel_is_read_in_rgb(tmp_path, name):
    stored, how, expected, tolerance = KINDS[name]
    if how is None:  # OpenCV wants BGR
        cv2.imwrite(str(tmp_path / name), stored[..., ::-1] if stored.ndim == 3 else stored)
    else:
        Image.fromarray(stored).save(tmp_path / name, **how)
    pixels = utils.read_photo(tmp_path / name)
    assert pixels.dtype == np.uint8 and pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize("ending", ["jpg", "png", "gif", "webp", "tif"])
def test_a_truncated_photograph_is_refused_and_never_half_grey(tmp_path, ending):
    noise = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    whole, cut = tmp_path / f"whole.{ending}", tmp_path / f"cut.{ending}"
    Image.fromarray(noise).save(whole)
    for share in (0, 0.1, 0.5, 0.75):
        cut.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
        assert str(cut) in refusal(utils.read_photo, cut)


NO_PHOTOGRAPHS = {  # what is in the file, and what the line says
    "notes.jpg": (b"this is no photograph\n" * 50, "GIF"),  # the formats that are read are named
    "phone.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" * 9, "GIF"),
    "drawing.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n%%EOF\n", "GIF"),
    "pointer.jpg": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
}


@pytest.mark.parametrize("name", NO_PHOTOGRAPHS)
def test_what_is_no_photograph_is_refused_and_starts_no_program(tmp_path, monkeypatch, name):
    data, says = NO_PHOTOGRAPHS[name]
    monkeypatch.setattr(subprocess, "Popen", lambda *words, **_: os._exit(9))  # Ghostscript, say
    (tmp_path / name).write_bytes(data)
    line = refusal(utils.read_photo, tmp_path / name)
    assert str(tmp_path / name) in line and says in line


@pytest.mark.parametrize("width", [12_000, 20_000])  # Pillow itself warns of the one, refuses both
def test_a_bomb_is_refused_by_its_size_whatever_warnings_do(tmp_path, monkeypatch, width):
    """A GIF of a few bytes that declares 10,000 lines. Fault 8: filters are of all threads."""
    monkeypatch.setattr("warnings.catch_warnings", lambda **_: pytest.fail("filters were changed"))
    monkeypatch.setattr("warnings.warn", lambda *_: None)
    Image.fromarray(PATTERN).save(tmp_path / "bomb.gif")
    data = (tmp_path / "bomb.gif").read_bytes()
    size = width.to_bytes(2, "little") + (10_000).to_bytes(2, "little")
    (tmp_path / "bomb.gif").write_bytes(data[:6] + size + data[10:])
    with ThreadPoolExecutor(4) as pool:
        lines = list(pool.map(refusal, [utils.read_photo] * 4, [tmp_path / "bomb.gif"] * 4))
    assert all("pixels" in line for line in lines)


# --- folders and names ---


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Photographs, hidden ones, our own results and others of such names, where a person stands."""
    monkeypatch.chdir(tmp_path)
    names = """b/2.PNG a/z.Tiff a/deep/er/x.webp c.JPEG d.bmp e.gif f.HEIC d[1].png .hidden.jpg
        a/.git/y.jpg notes.txt jpg film.mp4 b/.2.png.part c_vgg16_one_class.jpg b/cake_layers.png
        c_mine_overlay_3.jpg photos_mine_failures_1.png c_vgg16_classes.npz my/Übel.2.PNG"""
    for name in map(Path, names.split()):
        name.parent.mkdir(parents=True, exist_ok=True)
        text = PngInfo()
        ours = "_" in name.name and name.stem != "cake_layers"
        text.add_text("Subject", '{"photographs": ["c.jpg"]}' if ours else "cake in layers")
        Image.fromarray(PATTERN).save(name, "png", pnginfo=text)
    Path("folder.jpg").mkdir()


def album_of(*given):
    return utils.open_album(argparse.Namespace(images=[*map(str, given)]), [])


FOUND = {  # what is typed: what is found, and what results are called, of each and of all
    "a": ("a/deep/er/x.webp a/z.Tiff", "x z", "a"),
    "my": ("my/Übel.2.PNG", "übel.2", "my"),
    "a/.git": ("a/.git/y.jpg", "y", ".git"),  # hidden ones are read when asked for
    "d.bmp b ./c.JPEG b/2.PNG d.bmp": (  # each once
        "d.bmp b/2.PNG b/cake_layers.png c.JPEG",
        "d 2 cake_layers c",
        "d_and_3_more",
    ),
    "b/[0-9]* ?.bmp": ("b/2.PNG d.bmp", "2 d", "2_and_1_more"),
    "**/*.webp": ("a/deep/er/x.webp", "x", "x"),
    "c_vgg16_one_class.jpg": ("c_vgg16_one_class.jpg", "c_vgg16_one_class", "c_vgg16_one_class"),
}


@pytest.mark.parametrize("given", FOUND)
def test_files_folders_and_patterns_are_found_and_named(tree, given):
    album = album_of(*given.split())
    found = " ".join(path.as_posix() for path in album.paths)
    assert (found, " ".join(album.stems.values()), album.name) == FOUND[given]


def test_a_folder_s_own_results_are_known_by_what_they_carry_and_only_those_read(tree, monkeypatch):
    """Fault 6: a phone's name is like ours at first sight."""
    for name in ("IMG_20240101_123456.jpg", "b/my_photo_2.jpg"):
        Path(name).write_bytes(b"not read before its turn")
    opened, pillow_opens = [], Image.open

    def spy(path, *more, **how):
        opened.append(Path(path).name)
        return pillow_opens(path, *more, **how)

    monkeypatch.setattr(Image, "open", spy)
    found = [path.name for path in album_of(".").paths]
    wanted = "IMG_20240101_123456.jpg x.webp z.Tiff 2.PNG cake_layers.png my_photo_2.jpg c.JPEG"
    assert found == [*wanted.split(), "d.bmp", "d[1].png", "e.gif", "f.HEIC", "Übel.2.PNG"]
    ours = {"c_vgg16_one_class.jpg", "c_mine_overlay_3.jpg", "photos_mine_failures_1.png"}
    assert set(opened) == {*ours, "cake_layers.png"}


@pytest.mark.parametrize(
    "paths",
    [
        "a/cat.jpg b/cat.jpg",
        "cat.jpg cat.png",
        "x/a/cat.jpg y/a/cat.jpg z/a/cat.jpg",  # the folders' names are the same, too
        "a_cat_jpg.png a/cat.jpg b/cat.jpg",
        f"{'猫' * 60}a.jpg {'猫' * 60}b.jpg",  # a file name has 255 bytes at most
    ],
)
def test_no_two_photographs_share_a_name(paths):
    stems = utils.name_results([Path(path) for path in paths.split()])
    assert len(set(stems.values())) == len(paths.split())
    assert all(stem == stem.lower() and len(stem.encode()) < 200 for stem in stems.values())


# --- constants and options ---


@pytest.fixture
def read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_photo(tmp_path / "photo.png")
    return lambda *words, **constants: read_options(monkeypatch, *words, **constants)


WORDS = {"method": "gradcam++", "fit": "crop", "resize": "nearest", "place": "stretch"}
WORDS |= {"preprocess": "unit", "format": "pdf", "colormap": "bone"}


@pytest.mark.parametrize(
    "script, name, typed, constant, value",
    [
        (VGG, "models", "VGG19", ["vgg19"], ["vgg19"]),
        (VGG, "figures", "guided, layers,guided", ("guided", "layers"), ["guided", "layers"]),
        (VGG, "layers", "block?_conv1,fc2", ["block?_conv1", "fc2"], ["block?_conv1", "fc2"]),
        (VGG, "classes", "n02124075\ntop3\n", ["n02124075", "top3"], ["n02124075", "top3"]),
        (VGG, "classes", "967", 967, ["967"]),
        (VGG, "kernels", "top12", ["top12"], Selection(top=12)),
        (VGG, "kernels", "0-8", range(9), Selection(tuple(range(9)))),
        (VGG, "kernels", "12,3-5,4", ["12", "3-5", 4], Selection((12, 3, 4, 5))),
        (DECONV, "rules", "all", ["all"], ["deconvnet", "guided", "gradient"]),
        (DECONV, "patch", "100", 100, 100),
        *((VGG, name, word, word, word) for name, word in WORDS.items()),
        *((DECONV, "mode", word, word, word) for word in ("max", "all")),
        (VGG, "seed", "7", 7, 7),
        (VGG, "output", "x/y", "x/y", Path("x/y")),
        (VGG, "arrays", None, True, True),
    ],
)
def test_a_constant_and_its_option_are_read_alike(read, script, name, typed, constant, value):
    words = [f"--{name}"] + ([typed] if typed else [])
    assert getattr(read(script, *words), name) == value
    assert getattr(read(script, **{name.upper(): constant}), name) == value


def test_photographs_of_the_constant_are_relative_to_the_script_and_typed_ones_not(read):
    images = ["Image/co*.jpg", "Image/cat.jpg"]
    album = utils.open_album(read(VGG), images)
    assert album.paths == [ROOT / "Image" / name for name in ("coffee.jpg", "cat.jpg")]
    assert utils.open_album(read(VGG, "photo.png"), images).paths == [Path("photo.png")]
    Path("--seed").write_bytes(Path("photo.png").read_bytes())
    album = utils.open_album(read(VGG, "--fit", "pad", "--", "--seed", "photo.png"), images)
    assert album.paths == [Path("--seed"), Path("photo.png")]


FIGURES = dict.fromkeys(GRADCAM, "layers one_class guided overlay trust boxes failures table")
FIGURES |= dict.fromkeys(DECONVNET, "projections blocks comparison top9 occlusion")


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_constant_is_an_option_and_help_names_all(read, capfd, monkeypatch, script):
    """Fault 11: the one that is a switch is overridden, too."""
    assert not read(script, "--no-arrays", ARRAYS=True).arrays
    source = (ROOT / f"{script}.py").read_text(encoding="utf-8")
    block = source.partition("# fmt: off\n")[2].partition("# fmt: on")[0]
    names = re.findall(r"^([A-Z]+) = .*  # \S", block, re.MULTILINE)
    assert len(names) == block.count("\n") > 20
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        read(script, "--help")
    sys.__stdout__.flush()
    text, constants = capfd.readouterr().out, vars(sys.modules[script])
    for name in {*names} - {"IMAGES", "ARRAYS"}:
        shown = constants[name]
        shown = ",".join(shown) if isinstance(shown, list) else shown
        wanted = rf" --{name.lower()} {name}\s[^\n]*(\n {{9,}}[^\n]*)*\(default: "
        assert re.search(wanted + re.escape("none" if shown == "" else str(shown)), text), name
    assert not ended.value.code
    assert all(word in text for word in ("--no-arrays", "--skip-existing", "--list-layers"))
    assert all(re.search(rf"^{name} +\S.{{9,}}", text, re.M) for name in FIGURES[script].split())


WRONG = {  # words behind a script, and what the line must hold: the wrong word, and what was meant
    "gradcam_vgg --mode max": "--mode",
    "gradcam_vgg --kernel 0": "--kernel",  # options are not guessed
    **{
        f"gradcam_vgg --kernels {word}": word for word in ["0,-1", "nine", "top0", ",", "0-", "1.5"]
    },
    **{f"deconvnet_vgg --patch {word}": f"--patch {word} 1 100" for word in ("0", "-3", "101")},
    **{f"deconvnet_vgg --compared {word}": f"--compared {word} 1" for word in ("0", "-1")},
    "gradcam_vgg --weights nowhere.h5": "nowhere.h5 random",
    "gradcam_vgg --weights tiny": "tiny bundled",
    "deconvnet_inceptionv3 --weights bundled": "bundled imagenet",
    "gradcam_vgg --classes egyptain_cat": "egyptain_cat Egyptian",
    "gradcam_vgg --classes 1000": "1000 999",
    "gradcam_vgg a/nowhere.jpg": "a/nowhere.jpg",
    "gradcam_vgg empty": ".tiff",  # the endings of photographs are named
    "gradcam_vgg https://a.org/b//c.jpg?d=1": "https://a.org/b//c.jpg?d=1",
}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_word_is_named_with_what_may_stand_there(read, words):
    Path("empty").mkdir()
    line = refusal(lambda: utils.open_album(read(*words.split()), []))
    assert all(word.lower() in line.lower() for word in WRONG[words].split()), line


def test_every_command_of_the_readme_is_accepted(read, tmp_path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"\bpython (\w+)\.py\b([^`\n#&|]*)", text)
    assert {script for script, _ in commands} == set(SCRIPTS)
    (tmp_path / "Image").symlink_to(ROOT / "Image")
    for script, words in commands:
        for word in re.findall(r"(?<=\s)(?!\"?Image/|-)\S+(?:/|\.\w{2,5}\b)", words):
            path = tmp_path / word.strip('"').replace("*", "a")  # photo.jpg, photos/, mine.keras …
            path = path / "photo.png" if word.endswith("/") else path
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(PATTERN).save(path.open("wb"), "png")
            if path.suffix == ".csv":  # of --boxes
                path.write_text("photo,class,x0,y0,x1,y1\n")
        utils.open_album(read(script, *shlex.split(words)), ["Image/cat_coffee.jpg"])


def test_imagenet_s_classes_are_found_by_index_id_or_name_in_any_case():
    classes = utils.read_classes()
    assert len(classes) == 1000 and classes.synsets == sorted(set(classes.synsets))  # as in ILSVRC
    assert (classes.synsets[285], classes.names[285]) == ("n02124075", "Egyptian cat")
    names = [name.lower() for name in classes.names]
    for index, (synset, name) in enumerate(zip(classes.synsets, classes.names, strict=True)):
        assert index == classes.index(str(index)) == classes.index(synset.upper())
        if names.count(name.lower()) == 1:
            assert index == classes.index(name) == classes.index(name.replace(" ", "_").upper())
        else:
            assert str(index) in refusal(classes.index, name)  # crane, maillot: give an index


NAMES = ["red fox", "tabby", "tiger cat", "dog"]
LABELS = {  # the lines of a file
    "numbers.txt": ["5", "4", "3", "2"],
    "names.txt": NAMES,
    "twice.txt": ["dog", "cat", "owl", "dog"],
    "commas.txt": ["crane, machine", "crane, bird", "owl", "crane"],
}
ASKED = {  # labels and words: a selection, or what the error says
    "names.txt Tiger_Cat,DOG,0": Selection((2, 3, 0)),
    "training dog,tabby": Selection((0, 2)),  # its folders, sorted
    "none class 2,top9": Selection((2,), 4, 1),  # so many there are
    "numbers.txt 3": Selection((3,)),
    'commas.txt owl, "crane, bird",top1': Selection((2, 1), 1, 2),  # fault 12: as CSV has it
    "names.txt tigre cat": "'tigre cat'.*did you mean tiger cat",
    "names.txt 4": "'4'.*0.*3",
    "twice.txt dog": "2 classes.*'dog'.*0.*3",
    "no.txt 0": "no.txt",
}


@pytest.mark.parametrize("labels_words", ASKED)
def test_classes_are_asked_for_by_labels(tmp_path, monkeypatch, labels_words):
    """Fault 14: a file beside the folders is no class."""
    monkeypatch.chdir(tmp_path)
    for file, lines in LABELS.items():
        Path(file).write_text("\n".join(lines) + "\n")
    for name in [*NAMES, ".hidden"]:
        Path("training", name).mkdir(parents=True)
    Path("training/list.csv").touch()
    labels, words = labels_words.split(" ", 1)
    expected = ASKED[labels_words]

    def select():
        classes = utils.read_classes("" if labels == "none" else labels, 4)
        return classes.select(utils.split_words(words))

    if isinstance(expected, str):
        with pytest.raises((UserError, OSError), match=expected):
            select()
    else:
        assert select() == expected
        assert "4 classes" in refusal(utils.read_classes, "training", 3)
        names = LABELS["commas.txt"]
        assert utils.split_words(utils.as_typed(names)) == names  # as a constant


def test_a_selection_keeps_the_order_asked_for():
    scores = [0.1, 0.7, 0.7, 0.3]
    assert Selection((3, 1), top=2, place=1).among(scores) == [3, 1, 2]  # of equals the first
    assert Selection((0,), top=1, place=0).first().among(scores) == [1]
    assert Selection((0,), top=1, place=1).first().among(scores) == [0]


# --- what networks are fed, maps and projections as pictures ---

PHOTO = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
GREY = [0.299, 0.587, 0.114]  # BT.601
BGR_MEAN = (103.939, 116.779, 123.68)  # of ImageNet, as the two below
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PREPROCESSED = {  # as the documentation of Keras's imagenet_utils.preprocess_input has it
    "caffe": lambda rgb: rgb[..., ::-1] - BGR_MEAN,
    "tf": lambda rgb: rgb / 127.5 - 1,
    "torch": lambda rgb: (rgb / 255 - MEAN) / DEVIATION,
    "unit": lambda rgb: rgb / 255,
    "none": lambda rgb: rgb,
}


@pytest.mark.parametrize("mode", PREPROCESSED)
def test_network_input(mode):
    """The whole photograph; grey ones for networks of one channel."""
    expected = PREPROCESSED[mode]
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


@pytest.mark.parametrize("size", [1e-12, 1, 1e12])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_heat_is_relu_scaled_by_the_maximum_and_enlarged(size, scale):
    cam = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    heat = cv2.resize(np.maximum(cam, 0), (50, 40), interpolation=cv2.INTER_CUBIC)
    heat /= scale or cam.max()
    found = utils.overlay(PHOTO, cam * size, colormap="bone", alpha=1, scale=scale and scale * size)
    expected = utils.colorize(heat, "bone")
    assert np.abs(found.astype(int) - expected).max() <= 3  # a colour beside it


@pytest.mark.parametrize("shape", [(1, 1), (4, 6), (40, 50), (1, 300)])
def test_overlay_mixes_photograph_and_colours(shape):
    cold, hot = (0, 0, 128), (128, 0, 0)  # jet's ends
    for value, colour in ((0, cold), (-3, cold), (7, hot)):
        laid = utils.overlay(PHOTO, np.full(shape, value), alpha=0.25)
        np.testing.assert_allclose(laid, 0.75 * PHOTO + 0.25 * np.array(colour), atol=0.51)


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


FULL = OSError(errno.ENOSPC, "No space left on device", "a.jpg")
RAISED = [(UserError("no layer"), 2, "error: no layer"), (FULL, 2, "a.jpg")]


@pytest.mark.parametrize("raised, code, says", [*RAISED, (KeyboardInterrupt(), 130, "stopped")])
def test_what_is_expected_to_go_wrong_is_one_line_and_a_code(capfd, raised, code, says):
    def main():
        raise raised

    assert utils.run(main) == code
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and says in err
    with pytest.raises(AttributeError):  # fault 5: a mistake of ours is no broken file
        utils.run(lambda: None.shape)


def test_a_write_that_fails_leaves_everything_as_it_was(tmp_path, monkeypatch):
    """A full disk: half of the bytes fit."""
    path = tmp_path / "picture.jpg"
    path.write_bytes(b"older")

    def full(part, data):
        with open(part, "wb") as file:
            file.write(bytes(data)[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    line = refusal(utils.write_whole, path, lambda file: file.write(b"n" * 1000))
    assert str(path) in line and "No space left" in line
    assert [*tmp_path.iterdir()] == [path] and path.read_bytes() == b"older"


def result_of(options, *paths, figure="overlay", stem="photo"):
    network = types.SimpleNamespace(name="vgg16")
    return utils.Result(options, figure, network, tuple(map(Path, paths)), stem)


SETTINGS = {**WORDS, "layers": ["conv1"], "classes": ["1"], "kernels": Selection((0,)), "seed": 1}
SETTINGS |= {"scale": 2, "weights": utils.Weights("random"), "arrays": True}
del SETTINGS["format"]


@pytest.mark.parametrize("ending", ["jpg", "png", "pdf"])
@pytest.mark.parametrize("page", ["page", "pixels"])
def test_a_picture_is_known_again_by_every_setting(read, ending, page):
    options = read(VGG, "photo.png", "--skip-existing", "--format", ending)
    result = result_of(options, "photo.png")
    drawing = PATTERN
    if page == "page":
        drawing = utils.make_page([[utils.Tile(PATTERN, "one")]], "heading", "note")
    assert not result.is_drawn()
    result.write(drawing, {})
    assert result.is_drawn()
    assert not result_of(options, "photo.png", figure="trust").is_drawn()
    for name, value in SETTINGS.items():
        changed = argparse.Namespace(**{**vars(options), name: value})
        assert not dataclasses.replace(result, options=changed).is_drawn(), name
    os.utime("photo.png", (1, 1))  # another photograph under the same name
    assert not result.is_drawn()


def test_other_photographs_of_one_stem_have_a_number_for_all_files_of_a_figure(read):
    """Fault 10: of a single photograph, and of pages."""
    options = read(VGG, "photo.png")
    first, other = (result_of(options, name) for name in ("photo.png", "other/photo.png"))
    for result, suffix in ((first, "_1"), (other, "_1"), (other, "_2"), (first, "_1")):
        result.write(PATTERN, {}, suffix)
    written = ["photo_2_vgg16_overlay_1", "photo_2_vgg16_overlay_2", "photo_vgg16_overlay_1"]
    assert sorted(path.stem for path in Path("results").iterdir()) == written


def test_what_check_height_allows_is_no_higher_than_a_jpeg_may_be(read):
    """Fault 9: else hours of work end in an error."""
    options, rows = read(DECONV, "photo.png"), 1
    with pytest.raises(UserError, match=r"fewer kernels.*png"):
        for rows in range(1, 700):
            utils.check_height(options, rows, 100)
    tile = utils.Tile(np.full((100, 50, 3), 128, np.uint8), "kernel 1\nmax 1.00")
    page = utils.make_page([[tile]] * (rows - 1), "heading", "a note " * 40)
    assert 0.8 * 65500 < page.bbox.height <= 65500
    utils.check_height(read(DECONV, "photo.png", "--format", "png"), rows, 100)


def test_every_network_s_summary_is_said_though_they_are_equal(read, capfd):
    """Fault 13."""
    save_photo(Path("photos/a.png"))
    save_photo(Path("photos/b.png"))
    options = read(VGG, "photos")
    album = utils.open_album(options, [])
    for name in ("vgg16", "vgg19"):
        network = types.SimpleNamespace(name=name)
        assert len(list(utils.photographs(options, album, [("classes", network)]))) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2 and all("2 drawn, 0 there already" in line for line in lines)
