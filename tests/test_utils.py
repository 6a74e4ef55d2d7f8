"""Images, preprocessing, classes and overlays, without a network and without TensorFlow's own code.

Expected pixels are those that were drawn, before another library stored them."""

import csv
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from runs import refusal

import utils
from cnnvis import cli
from utils import Selection, UserError

RED, GREEN, BLUE, ORANGE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 160, 32)


def quadrants(*colours):
    """Four colours: swapped channels, flips and turns all show."""
    picture = np.array(colours, np.uint8).reshape(2, 2, *np.shape(colours[0]))
    return picture.repeat(16, axis=0).repeat(32, axis=1)


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
    pixels = utils.load_image(tmp_path / name)
    assert pixels.dtype == np.uint8 and pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize("ending", ["jpg", "png", "gif", "webp", "tif"])
def test_a_truncated_photograph_is_refused_and_never_half_grey(tmp_path, ending):
    noise = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    whole, cut = tmp_path / f"whole.{ending}", tmp_path / f"cut.{ending}"
    Image.fromarray(noise).save(whole)
    for share in (0, 0.1, 0.5, 0.75):
        cut.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
        assert str(cut) in refusal(utils.load_image, cut)


NO_PHOTOGRAPHS = {  # what is in the file, and what the line says
    "notes.jpg": (b"this is no photograph\n" * 50, "GIF"),  # the formats that are read are named
    "phone.jpg": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" * 9, "HEIC"),
    "page.jpg": (b"\n<!DOCTYPE html><html><body>404</body></html>", "web page"),
    "nothing.jpg": (b"", "the file is empty"),
    "drawing.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n%%EOF\n", "GIF"),
    "pointer.jpg": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
}


@pytest.mark.parametrize("name", NO_PHOTOGRAPHS)
def test_what_is_no_photograph_is_refused_and_starts_no_program(tmp_path, monkeypatch, name):
    data, says = NO_PHOTOGRAPHS[name]
    monkeypatch.setattr(subprocess, "Popen", lambda *words, **_: os._exit(9))  # Ghostscript, say
    (tmp_path / name).write_bytes(data)
    line = refusal(utils.load_image, tmp_path / name)
    assert str(tmp_path / name) in line and says in line


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    assert "no regular file" in refusal(utils.load_image, tmp_path / "pipe.jpg")


def test_an_infinite_pixel_does_not_blacken_the_rest(tmp_path, capfd):
    values = np.linspace(0, 2000, 12, dtype=np.float32).reshape(3, 4)
    stored = values.copy()
    stored[0, :3] = np.inf, -np.inf, np.nan
    cv2.imwrite(str(tmp_path / "a.tif"), stored)
    pixels = utils.load_image(tmp_path / "a.tif")[..., 0]
    np.testing.assert_allclose(pixels.ravel()[3:], values.ravel()[3:] * 255 / 2000, atol=1)
    assert pixels[0, :3].tolist()[::2] == [255, 0]
    assert str(tmp_path / "a.tif") in capfd.readouterr().err


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
        lines = list(pool.map(refusal, [utils.load_image] * 4, [tmp_path / "bomb.gif"] * 4))
    assert all("pixels" in line for line in lines)


def test_imagenet_s_classes_are_found_by_index_id_or_name_in_any_case():
    classes = utils.read_classes()
    assert len(classes) == 1000
    assert classes.wordnet_ids == sorted(set(classes.wordnet_ids))  # as in ILSVRC
    assert (classes.wordnet_ids[285], classes.names[285]) == ("n02124075", "Egyptian cat")
    names = [name.lower() for name in classes.names]
    for index, (synset, name) in enumerate(zip(classes.wordnet_ids, classes.names, strict=True)):
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
        return classes.select(cli.split_words(words))

    if isinstance(expected, str):
        with pytest.raises((UserError, OSError), match=expected):
            select()
    else:
        assert select() == expected
        assert "4 classes" in refusal(utils.read_classes, "training", 3)
        names = LABELS["commas.txt"]
        assert cli.split_words(cli.as_typed("CLASSES", names)) == names  # as a constant


NUMBERED = {  # files that say more than a name a line
    "class_indices.json": b'{"disc": 1, "10": 2, "caf\xc3\xa9": 0}',
    "names.json": '["café", "disc", "10"]'.encode(),
    "id2label.json": '{"0": "café", "2": "10", "1": "disc"}'.encode(),
    "utf16.txt": "café\r\ndisc\r\n10\r\n".encode("utf-16"),
    "numbered.csv": "0,café\n2,10\n1,disc\n".encode(),
}


@pytest.mark.parametrize("file", NUMBERED)
def test_files_of_labels_are_read_in_the_order_of_the_indices(tmp_path, file):
    path = tmp_path / file
    path.write_bytes(NUMBERED[file])
    classes = utils.read_classes(str(path), 3)
    assert classes.names == ["café", "disc", "10"]
    assert classes.index("CAFE\N{COMBINING ACUTE ACCENT}") == 0  # as macOS names folders
    assert classes.named("10") == 2
    for word in ("9" * 5000, "top" + "9" * 5000, "-" + "9" * 5000):
        assert len(refusal(classes.select, [word])) < 300
    if path.suffix == ".json":
        for text in ('{"disc": 1, "cafe": 2}', '{"disc": [1]}', '{"disc": 1', "9" * 5000):
            path.write_text(text)
            assert file in refusal(utils.read_classes, str(path), 2)


def test_predictions_are_decoded_as_keras_does(monkeypatch):
    from keras.applications import imagenet_utils

    with open(utils.IMAGE_FOLDER / "imagenet_classes.csv", newline="") as file:
        index = {i: [wordnet_id, name] for i, wordnet_id, name in csv.reader(file)}
    monkeypatch.setattr("keras.src.applications.imagenet_utils.CLASS_INDEX", index)
    predictions = np.random.default_rng(0).random((2, 1000), np.float32)
    for top in (1, 5, 1000):
        expected = imagenet_utils.decode_predictions(predictions, top)
        assert utils.decode_predictions(predictions, top) == expected
    for wrong in (predictions[0], predictions[:, :10]):
        with pytest.raises(ValueError, match=r"Expected.*1000.*Received"):
            utils.decode_predictions(wrong)


def test_a_selection_keeps_the_order_asked_for():
    scores = [0.1, 0.7, 0.7, 0.3]
    assert Selection((3, 1), top=2, position=1).among(scores) == [3, 1, 2]  # of equals the first
    assert Selection((0,), top=1, position=0).first().among(scores) == [1]
    assert Selection((0,), top=1, position=1).first().among(scores) == [0]


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
def test_preprocess_input(mode):
    """The whole photograph; grey ones for networks of one channel."""
    expected = PREPROCESSED[mode]
    found = utils.preprocess_input(PHOTO, (40, 50), mode)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected(PHOTO[None].astype(float)), atol=1e-4)
    step = 0.51 * np.max(expected(np.ones(3)) - expected(np.zeros(3)))  # rounding to whole numbers
    means = PHOTO.reshape(1, 20, 2, 10, 5, 3).mean(axis=(2, 4))
    found = utils.preprocess_input(PHOTO, (20, 10), mode)
    np.testing.assert_allclose(found, expected(means), atol=step)
    if mode in ("tf", "unit", "none"):  # the others are made for three channels
        found = utils.preprocess_input(PHOTO, (40, 50), mode, channels=1)
        np.testing.assert_allclose(found[0, ..., 0], expected(PHOTO @ GREY), atol=step)


def test_an_image_is_averaged_along_the_axis_that_shrinks():
    stripes = np.tile(np.uint8([0, 255]), (200, 1000))[..., None].repeat(3, axis=2)
    for image in (stripes, np.swapaxes(stripes, 0, 1)):
        x = utils.preprocess_input(image, mode="none")
        assert x.shape == (1, 224, 224, 3) and np.abs(x - 127.5).max() < 20
    shrunk = utils.resize(PHOTO, 25, 80)
    columns = PHOTO.reshape(40, 25, 2, 3).mean(axis=2)
    enlarged = cv2.resize(columns, (25, 80), interpolation=cv2.INTER_CUBIC).clip(0, 255)
    np.testing.assert_allclose(shrunk, enlarged, atol=2)
    grown = cv2.resize(PHOTO, (75, 80), interpolation=cv2.INTER_CUBIC)
    np.testing.assert_array_equal(utils.resize(PHOTO, 75, 80), grown)


@pytest.mark.parametrize("value", [0, 128])
def test_padding_is_black_as_keras_pads_or_of_another_grey(value):
    image = np.full((10, 30, 3), 200, np.uint8)
    x = utils.preprocess_input(image, (30, 30), "none", fit="pad", pad=value)
    assert (x[0, 10:20] == 200).all() and (x[0, :10] == value).all() and (x[0, 20:] == value).all()


def test_what_is_no_image_or_map_is_a_value_error():
    image = Image.fromarray(PHOTO)
    expected = utils.preprocess_input(PHOTO)
    np.testing.assert_array_equal(utils.preprocess_input(image), expected)
    wrong = [PHOTO / 255, PHOTO.astype(np.uint16), PHOTO[..., 0], image.convert("L")]
    for received in [*wrong, image.convert("RGBA"), PHOTO[None]]:
        for call in (utils.preprocess_input, lambda one: utils.overlay(one, np.ones((2, 2)))):
            with pytest.raises(ValueError, match=r"Expected.*uint8 \(H, W, 3\).*Received"):
                call(received)
    words = [{"mode": "x"}, {"fit": "x"}, {"interpolation": "x"}, {"channels": 2}, {"size": 224}]
    for word in words:
        with pytest.raises(ValueError, match=r"Expected.*Received"):
            utils.preprocess_input(PHOTO, **word)
    for cam in ([[1, np.nan]], [[np.inf]], [1, 2]):
        with pytest.raises(ValueError, match=r"Expected.*map.*Received"):
            utils.overlay(PHOTO, np.array(cam))
    with pytest.raises(ValueError, match=r"Expected colormap.*jet.*Received: 'rainbows'"):
        utils.overlay(PHOTO, np.ones((2, 2)), colormap="rainbows")


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
