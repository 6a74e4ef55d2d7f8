"""What goes in and what comes out without a network: photographs, ImageNet classes, names of results, pictures."""
import errno
import io
import os
import re
import struct
import subprocess
import sys
import time
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import utils

RED, GREEN, BLUE, ORANGE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 160, 32)


def quadrants(colours=(RED, GREEN, BLUE, ORANGE), height=16, width=32):
    """Four colours, different in every corner, so that swapped channels, flips and turns all show."""
    picture = np.zeros((2, 2, *np.shape(colours[0])), np.uint8)
    picture[0, 0], picture[0, 1], picture[1, 0], picture[1, 1] = colours
    return picture.repeat(height, axis=0).repeat(width, axis=1)


PATTERN = quadrants()
GREY = quadrants((0, 90, 180, 255))


def png(path, depth, colour_type, rows, *chunks):
    """A PNG written by hand: the kinds that Pillow and OpenCV do not write. rows: integers (height, width, channels)."""
    height, width = rows.shape[:2]
    lines = rows.astype(">u2" if depth == 16 else "u1").reshape(height, -1)
    body = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)), *chunks,
            (b"IDAT", zlib.compress(b"".join(b"\0" + line.tobytes() for line in lines))), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in body))


def differ(path, expected):
    """By how much the pixels read differ from those expected, at most; warnings count as failures."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = utils.read_photo(path)
    assert pixels.dtype == np.uint8 and pixels.shape == expected.shape
    return np.abs(pixels.astype(int) - expected).max()


def refusal(call, *arguments):
    """The one line of the UserError that a call ends with."""
    with pytest.raises(utils.UserError) as caught:
        call(*arguments)
    line = str(caught.value)
    assert line.strip() and "\n" not in line
    return line


# ---------------------------------------------------------------------------------------------------------------------
# Photographs: right colours


JPEG = [cv2.IMWRITE_JPEG_QUALITY, 98, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]


@pytest.mark.parametrize("name, settings, tolerance", [
    ("a.jpg", JPEG, 4), ("a.jpeg", [*JPEG, cv2.IMWRITE_JPEG_PROGRESSIVE, 1], 4),
    ("a.png", [], 0), ("A.PNG", [], 0), ("a.bmp", [], 0),
    ("a.webp", [cv2.IMWRITE_WEBP_QUALITY, 101], 0),  # 101: lossless
    ("a.tif", [], 0), ("a.tiff", [cv2.IMWRITE_TIFF_COMPRESSION, 1], 0)])
def test_every_format_is_read_in_rgb(tmp_path, name, settings, tolerance):
    cv2.imwrite(str(tmp_path / name), PATTERN[..., ::-1], settings)  # written by another library, from BGR
    assert differ(tmp_path / name, PATTERN) <= tolerance


def as_is(mode, pixels):
    return lambda path, **settings: Image.fromarray(pixels, mode).save(path, **settings)


def grey3(values):
    return np.repeat(np.asarray(values)[..., None], 3, axis=2)


def over_white(colour, alpha):
    return (colour.astype(float) * alpha[..., None] + 255 * (255.0 - alpha[..., None])) / 255


def palette(path, **settings):
    image = Image.fromarray(quadrants((0, 1, 2, 3)), "P")
    image.putpalette([*RED, *GREEN, *BLUE, *ORANGE])
    image.save(path, **settings)


ALPHA = quadrants((0, 255, 128, 64))
CMYK = quadrants(((255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 255, 0), (0, 0, 0, 200)))
CMYK_RGB = quadrants(((0, 255, 255), (255, 0, 255), (255, 255, 0), (55, 55, 55)))
GREY16 = np.linspace(0, 65535, 64 * 32).reshape(32, 64).astype(np.uint16)
RGB16 = np.stack([GREY16, GREY16[::-1], GREY16[:, ::-1]], axis=2)
KINDS = {  # name of the photograph: how it is written, its pixels, tolerance
    "grey.png": (as_is("L", GREY), grey3(GREY), 0),
    "grey.jpg": (lambda path: as_is("L", GREY)(path, quality=98), grey3(GREY), 4),
    "grey.bmp": (as_is("L", GREY), grey3(GREY), 0),
    "grey.tif": (as_is("L", GREY), grey3(GREY), 0),
    "one_bit.png": (lambda path: Image.fromarray(GREY > 100).save(path), grey3((GREY > 100) * 255), 0),
    "one_bit.tif": (lambda path: Image.fromarray(GREY > 100).save(path), grey3((GREY > 100) * 255), 0),
    "palette.png": (palette, PATTERN, 0),
    "palette.bmp": (palette, PATTERN, 0),
    "palette.tif": (palette, PATTERN, 0),
    "palette_one_transparent.png": (lambda path: palette(path, transparency=1),
                                    quadrants((RED, (255, 255, 255), BLUE, ORANGE)), 0),
    "palette_with_alpha.png": (lambda path: palette(path, transparency=bytes((0, 255, 128, 64))),
                               over_white(PATTERN, ALPHA), 1),
    "grey_one_transparent.png": (lambda path: as_is("L", GREY)(path, transparency=90),
                                 grey3(quadrants((0, 255, 180, 255))), 0),
    "rgb_one_transparent.png": (lambda path: as_is("RGB", PATTERN)(path, transparency=GREEN),
                                quadrants((RED, (255, 255, 255), BLUE, ORANGE)), 0),
    "grey_alpha.png": (as_is("LA", np.dstack([GREY, ALPHA])), over_white(grey3(GREY), ALPHA), 1),
    "rgba.png": (as_is("RGBA", np.dstack([PATTERN, ALPHA])), over_white(PATTERN, ALPHA), 1),
    "rgba.webp": (lambda path: as_is("RGBA", np.dstack([PATTERN, ALPHA]))(path, lossless=True, exact=True),
                  over_white(PATTERN, ALPHA), 1),
    "rgba.tif": (as_is("RGBA", np.dstack([PATTERN, ALPHA])), over_white(PATTERN, ALPHA), 1),
    "cmyk.jpg": (lambda path: as_is("CMYK", CMYK)(path, quality=98), CMYK_RGB, 5),
    "cmyk.tif": (as_is("CMYK", CMYK), CMYK_RGB, 1),
    "grey16.png": (lambda path: cv2.imwrite(str(path), GREY16), grey3(GREY16 / 257), 1),
    "grey16.tif": (lambda path: cv2.imwrite(str(path), GREY16), grey3(GREY16 / 257), 1),
    "grey16_big_endian.tif": (lambda path: Image.frombytes("I;16B", (64, 32), GREY16.astype(">u2").tobytes()).save(path),
                              grey3(GREY16 / 257), 1),
    "rgb16.png": (lambda path: cv2.imwrite(str(path), RGB16[..., ::-1]), RGB16 / 257, 1),
    "rgb16.tif": (lambda path: cv2.imwrite(str(path), RGB16[..., ::-1]), RGB16 / 257, 1),
    "rgba16.png": (lambda path: png(path, 16, 6, np.dstack([RGB16, ALPHA * 257.0])), over_white(RGB16 / 257, ALPHA), 2),
    "grey_alpha16.png": (lambda path: png(path, 16, 4, np.dstack([GREY16, ALPHA * 257.0])),
                         over_white(grey3(GREY16 / 257), ALPHA), 2),
    "grey16_one_transparent.png": (lambda path: png(path, 16, 0, GREY.astype(int) * 257,
                                                    (b"tRNS", struct.pack(">H", 90 * 257))),
                                   grey3(quadrants((0, 255, 180, 255))), 1),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_pixel_is_read(tmp_path, name):
    write, expected, tolerance = KINDS[name]
    write(tmp_path / name)
    assert differ(tmp_path / name, np.asarray(expected, float)) <= tolerance


UPRIGHT = {  # EXIF 2.3, tag 274: what a viewer does to the stored rows
    1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a.transpose(1, 0, 2), 2), 8: np.rot90}


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_turns_the_photograph_upright(tmp_path, orientation, ending):
    exif = Image.Exif()
    exif[274] = orientation
    settings = {"tif": {"tiffinfo": {274: orientation}}, "webp": {"exif": exif, "lossless": True},
                "jpg": {"exif": exif, "quality": 98, "subsampling": 0}, "png": {"exif": exif}}[ending]
    path = tmp_path / f"turned.{ending}"
    Image.fromarray(PATTERN).save(path, **settings)
    assert differ(path, UPRIGHT[orientation](PATTERN)) <= (4 if ending == "jpg" else 0)


def test_damaged_notes_of_a_camera_cost_neither_the_photograph_nor_its_turn(tmp_path):
    entries = [(274, 3, 1, struct.pack("<HH", 6, 0)), (282, 2, 4, b"abc\0")]  # orientation; a resolution that is a word
    exif = (b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries))
            + b"".join(struct.pack("<HHI4s", *entry) for entry in entries) + b"\0\0\0\0")
    Image.fromarray(PATTERN).save(tmp_path / "a.jpg", exif=exif, quality=98, subsampling=0)
    assert differ(tmp_path / "a.jpg", UPRIGHT[6](PATTERN)) <= 4


@pytest.mark.parametrize("name", ["my photo.png", "кошка.tiff", "猫 写真.webp", "قطة.bmp", "😀.tif", "a%20$b&c;.png"])
def test_any_file_name_is_read(tmp_path, name):
    Image.fromarray(PATTERN).save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    assert differ(tmp_path / name, PATTERN) == 0


# ---------------------------------------------------------------------------------------------------------------------
# Photographs: any size


def test_one_pixel(tmp_path):
    Image.new("RGB", (1, 1), ORANGE).save(tmp_path / "one.png")
    assert utils.read_photo(tmp_path / "one.png").tolist() == [[list(ORANGE)]]


@pytest.mark.parametrize("size, shape", [((10000, 1), (1, utils.LONGEST_SIDE)), ((1, 10000), (utils.LONGEST_SIDE, 1))])
def test_an_extreme_shape_keeps_a_pixel_of_its_short_side(tmp_path, size, shape):
    ramp = np.linspace(0, 255, 10000).astype(np.uint8).reshape(size[::-1])
    Image.fromarray(ramp).save(tmp_path / "line.png")
    line = utils.read_photo(tmp_path / "line.png")
    assert line.shape == (*shape, 3)
    assert np.abs(line[..., 0].ravel() - np.linspace(0, 255, utils.LONGEST_SIDE)).max() <= 2


READ_BIG = """
import resource, sys, time
import utils
from pathlib import Path
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
pixels = utils.read_photo(Path(sys.argv[1]))
print(*pixels.shape, *pixels[5, 5], *pixels[-5, -5], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before,
      time.monotonic() - start)
"""


@pytest.mark.parametrize("name, mode, side, left, right", [
    ("big.jpg", "RGB", 10000, RED, BLUE), ("big16.png", "I;16", 4000, 0, 65535)])
def test_a_large_photograph_is_read_in_sane_time_and_memory_without_a_warning(tmp_path, name, mode, side, left, right):
    image = Image.new(mode, (side, side), left)
    image.paste(right, (side // 2, 0, side, side))
    image.save(tmp_path / name)
    del image
    done = subprocess.run([sys.executable, "-c", READ_BIG, tmp_path / name], cwd=utils.HERE, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""  # a run that goes well prints no framework chatter
    *values, kilobytes, seconds = map(float, done.stdout.split())
    ends = [*left, *right] if mode == "RGB" else [0] * 3 + [255] * 3
    assert values[:3] == [utils.LONGEST_SIDE, utils.LONGEST_SIDE, 3] and np.abs(np.subtract(values[3:], ends)).max() <= 2
    assert kilobytes * 1024 / side**2 < 25 and seconds < 30  # bytes a pixel: no more than a few copies


# ---------------------------------------------------------------------------------------------------------------------
# Photographs that are none


CUT = {
    "baseline.jpg": {"quality": 90}, "progressive.jpg": {"progressive": True}, "restarts.jpg": {"restart_marker_rows": 1},
    "plain.png": {}, "plain.bmp": {}, "lossy.webp": {}, "lossless.webp": {"lossless": True}, "plain.tif": {},
    "lzw.tif": {"compression": "tiff_lzw"}, "deflate.tif": {"compression": "tiff_adobe_deflate"},
    "packbits.tif": {"compression": "packbits"}, "jpeg.tif": {"compression": "jpeg"},
}


@pytest.mark.parametrize("name", [*CUT, "grey16.png", "cmyk.jpg"])
def test_a_truncated_photograph_is_refused_and_never_half_grey(tmp_path, name, capfd):
    mode, kind = {"grey16.png": ("I;16", np.uint16), "cmyk.jpg": ("CMYK", np.uint8)}.get(name, ("RGB", np.uint8))
    noise = np.random.default_rng(0).integers(0, 256, (24, 40, 3 if mode == "RGB" else 4))
    noise = noise[..., 0] * 257 if mode == "I;16" else noise
    whole = tmp_path / name
    Image.frombytes(mode, (40, 24), noise.astype(kind).tobytes()).save(whole, **CUT.get(name, {}))
    pixels, data, refused = utils.read_photo(whole), whole.read_bytes(), set()
    sizes = range(0, len(data), max(1, len(data) // 100))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for size in sorted({*sizes, *range(len(data) - 30, len(data))}):
            path = tmp_path / f"{size}_{name}"  # a name of its own: read_photo may remember what it has read
            path.write_bytes(data[:size])
            try:  # a file that lacks nothing but its last words still holds the picture
                assert np.array_equal(utils.read_photo(path), pixels), f"{size} of {len(data)} bytes: another picture"
            except utils.UserError as error:
                assert "\n" not in str(error) and str(path) in str(error)
                refused.add(size)
    assert {size for size in sizes if size < len(data) * 0.8} <= refused
    assert not warned and capfd.readouterr() == ("", "")  # the error is the one line on stderr


@pytest.mark.parametrize("name, data", [
    ("notes.jpg", b"this is no photograph\n" * 50), ("empty.png", b""), ("noise.webp", bytes(range(256)) * 9),
    ("page.tif", b"<html><body>404</body></html>"), ("archive.bmp", b"PK\x03\x04" + b"\0" * 300),
    ("only_a_header.jpg", b"\xff\xd8\xff\xe0"), ("zeros.jpeg", b"\0" * 4096)])
def test_what_is_no_image_is_refused(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    assert str(tmp_path / name) in refusal(utils.read_photo, tmp_path / name)


def test_a_folder_or_nothing_in_place_of_a_photograph_is_refused(tmp_path):
    assert str(tmp_path) in refusal(utils.read_photo, tmp_path)
    assert "gone.jpg" in refusal(utils.read_photo, tmp_path / "gone.jpg")
    assert "gone.jpg" in refusal(utils.find_photos, [tmp_path / "gone.jpg"])


def test_a_decompression_bomb_is_refused_at_once(tmp_path):
    path, start = tmp_path / "bomb.png", time.monotonic()
    png(path, 8, 2, np.zeros((1, 1, 3)))
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 60000, 60000)  # the header alone: ten gigabytes if it were believed
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    assert "pixels" in refusal(utils.read_photo, path)
    assert time.monotonic() - start < 0.5


# ---------------------------------------------------------------------------------------------------------------------
# Folders, and what results are called


@pytest.fixture
def tree(tmp_path):
    """Photographs, hidden ones, and things that are none."""
    for name in ("b/2.PNG", "b/10.jpg", "a/z.Tiff", "a/deep/er/x.webp", "c.JPEG", "d.bmp", "e.tif", ".hidden.jpg", "a/.git/y.jpg",
                 "notes.txt", "jpg", "a/film.mp4", "b/.2.png.part", "c_vgg16_one_class.jpg", "a/my_photos_vgg_layers.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()
    return tmp_path


def test_a_folder_is_walked_in_sorted_order_without_what_is_hidden(tree):
    found = utils.find_photos([tree])
    assert {p.relative_to(tree).as_posix() for p in found} == {
        "b/2.PNG", "b/10.jpg", "a/z.Tiff", "a/deep/er/x.webp", "c.JPEG", "d.bmp", "e.tif"}
    assert found == sorted(found)


def test_a_folder_inside_a_hidden_one_is_walked_when_it_is_asked_for(tree):
    assert utils.find_photos([tree / "a" / ".git"]) == [tree / "a" / ".git" / "y.jpg"]


def test_photographs_keep_the_order_in_which_they_are_given_and_come_once(tree):
    assert utils.find_photos([tree / "d.bmp", tree / "b", tree / "c.JPEG", tree / "b" / "2.PNG"]) == [
        tree / "d.bmp", tree / "b" / "10.jpg", tree / "b" / "2.PNG", tree / "c.JPEG"]


def test_a_folder_without_photographs_is_named(tmp_path):
    (tmp_path / "notes.txt").touch()
    assert str(tmp_path) in refusal(utils.find_photos, [tmp_path])


@pytest.mark.parametrize("name, stem", [
    ("Cat.jpg", "cat"), ("My CAT.jpeg", "my cat"), ("КОТ.png", "кот"), ("a.b.jpg", "a.b")])
def test_results_are_called_after_the_photograph_in_lower_case(name, stem):
    assert utils._stems([Path("folder") / name]) == {Path("folder") / name: stem}


@pytest.mark.parametrize("paths", [
    ["a/cat.jpg", "b/cat.jpg"], ["cat.jpg", "cat.png"], ["cat.jpg", "CAT.jpg"], ["a/cat.jpg", "a/Cat.PNG", "b/CAT.png"],
    ["x/a/cat.jpg", "y/a/cat.jpg", "z/a/cat.jpg"],  # the folders' names are the same, too
    ["a/cat.jpg", "b/cat.jpg", "a_cat_jpg.png"], ["a_cat_jpg.png", "a/cat.jpg", "b/cat.jpg"],  # called as another becomes
    ["a/cat.jpg", "b/cat.jpg", "c/a_cat_jpg.png", "d/a_cat_jpg_2.png"],
    ["a_b/c.jpg", "a/b_c.jpg", "d/c.jpg", "d/b_c.jpg"], ["a/c.jpg", "a/c_jpg.jpg", "b/c.jpg", "b/c_jpg.jpg"],
    [f"{folder}/{'x' * 251}.jpg" for folder in "abc"], [f"{'x' * 250}{letter}.jpg" for letter in "abc"],
    [f"{folder}/{'猫' * 83}.jpg" for folder in ("p/q", "r/q")]], ids=lambda paths: " ".join(path[-12:] for path in paths))
@pytest.mark.parametrize("turn", [1, -1])
def test_no_two_photographs_share_a_name(paths, turn):
    stems = utils._stems([Path(path) for path in paths[::turn]])
    assert len({stem.casefold() for stem in stems.values()}) == len(paths)
    assert list(stems.values()) == [stem.lower() for stem in stems.values()]


@pytest.mark.parametrize("letter", ["x", "é", "猫", "😀"])
def test_a_name_of_255_bytes_gives_results_that_a_file_system_takes(tmp_path, letter):
    name = letter * (251 // len(letter.encode()))
    path = tmp_path / f"{name}{'x' * (251 - len(name.encode()))}.jpg"
    path.touch()
    (stem,) = utils._stems([path]).values()
    stem.encode()  # no half of a letter is left
    (tmp_path / f"{stem}_inceptionv3_comparison.jpg").touch()


# ---------------------------------------------------------------------------------------------------------------------
# ImageNet classes


def test_the_table_has_a_thousand_classes():
    classes = utils.imagenet_classes()
    assert len(classes) == len({synset for synset, _ in classes}) == 1000
    assert all(re.fullmatch(r"n\d{8}", synset) and name == name.strip() for synset, name in classes)
    assert [synset for synset, _ in classes] == sorted(synset for synset, _ in classes)  # ILSVRC numbers them so
    assert (utils.HERE / "Image" / "imagenet_classes.csv").read_text(encoding="utf-8").splitlines()[0] == "index,wordnet_id,name"


@pytest.mark.parametrize("index, synset, name", [
    (0, "n01440764", "tench"), (134, "n02012849", "crane"), (151, "n02085620", "Chihuahua"), (285, "n02124075", "Egyptian cat"),
    (400, "n02669723", "academic gown"), (457, "n02883205", "bow tie"), (517, "n03126707", "crane"),
    (638, "n03710637", "maillot"), (639, "n03710721", "maillot"), (657, "n03773504", "missile"),
    (967, "n07920052", "espresso"), (999, "n15075141", "toilet tissue")])
def test_spot_checks_of_the_table(index, synset, name):
    assert utils.imagenet_classes()[index] == (synset, name)


@pytest.mark.parametrize("word", ["285", " 285 ", 285, "n02124075", "N02124075", "Egyptian cat", "egyptian cat", "EGYPTIAN_CAT",
                                  "Egyptian_cat", " egyptian cat "])
def test_a_class_is_chosen_by_index_id_or_name(word):
    assert utils.read_class(word) == 285


def test_every_class_can_be_chosen_by_its_id_and_every_name_of_one_class_by_it():
    names = [name.lower() for _, name in utils.imagenet_classes()]
    for index, (synset, name) in enumerate(utils.imagenet_classes()):
        assert utils.read_class(synset) == index
        if names.count(name.lower()) == 1:
            assert utils.read_class(name) == utils.read_class(name.replace(" ", "_").upper()) == index


@pytest.mark.parametrize("word, indices", [("crane", "134 517"), ("Crane", "134 517"), ("maillot", "638 639"),
                                           ("cardigan", "264 474")])  # the corgi is «Cardigan», but case does not count
def test_a_name_of_two_classes_asks_for_the_index(word, indices):
    line = refusal(utils.read_class, word)
    assert all(re.search(rf"\b{index}\b", line) for index in indices.split()) and "index" in line


@pytest.mark.parametrize("word, name", [
    ("egyptain cat", "Egyptian cat"), ("espreso", "espresso"), ("academic_gwon", "academic gown"), ("zebr", "zebra"),
    ("golden retreiver", "golden retriever"), ("BOW TY", "bow tie"), ("siamese", "Siamese cat"),
    ("retriever", "golden retriever")])
def test_a_near_miss_is_answered_with_the_nearest_name(word, name):
    line = refusal(utils.read_class, word)
    assert word in line and name in line


@pytest.mark.parametrize("word", [
    "1000", "-1", "--5", "99999999999", "n00000000", "top0", "top1001", "top-1", "top", "1.5", "", "-", "qqqq"])
def test_a_wrong_class_says_what_is_right(word):
    line = refusal(utils.read_class, word)
    assert word in line
    assert re.search(r"index|WordNet|name|top1\b|did you mean", line.replace(repr(word), ""))


@pytest.mark.parametrize("words, chosen", [
    (["top3"], [4, 1, 0]), ([2, "top2"], [2, 4, 1]), (["top2", 4, 1, 3], [4, 1, 3]), ([3, 3], [3]), (["top1", "top2"], [4, 1])])
def test_top_n_are_the_most_probable_of_this_photograph_and_none_comes_twice(words, chosen):
    assert utils.choose_classes(words, np.array([0.5, 2, -3, -1, 7], np.float32)) == chosen


@pytest.mark.parametrize("word", ["top4", "TOP4", " top4 "])
def test_top_n_waits_for_the_photograph(word):
    assert utils.choose_classes([utils.read_class(word)], np.arange(1000.0)) == [999, 998, 997, 996]


def test_probabilities_survive_large_logits():
    assert np.allclose(utils.softmax(np.array([1000.0, 1000 + np.log(3)])), [0.25, 0.75])


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


@pytest.mark.parametrize("name", ["jet", "TURBO", "viridis", "bone"])
def test_colours_are_those_of_opencv_in_rgb(name):
    number = utils.colormap_number(name)
    assert number == getattr(cv2, f"COLORMAP_{name.upper()}")
    levels = np.arange(256, dtype=np.uint8)[None]
    assert np.array_equal(utils.colorize(levels / np.float32(255), number), cv2.applyColorMap(levels, number)[..., ::-1])


def test_hot_is_red_and_cold_is_blue_also_beyond_the_scale():
    colours = utils.colorize(np.array([[-3.0, 0, 1, 3]]), utils.colormap_number("jet"))
    assert colours.tolist() == [[[0, 0, 128], [0, 0, 128], [128, 0, 0], [128, 0, 0]]]


def test_an_unknown_colour_map_is_answered_with_a_near_one():
    assert "viridis" in refusal(utils.colormap_number, "viridsi")


CAM = np.zeros((7, 7), np.float32)
CAM[1, 5], CAM[5, 1] = 4, -2


@pytest.mark.parametrize("sign, strongest, place", [(1, 4, (30, 220)), (-1, 2, (110, 60))])
def test_a_heat_map_shows_one_sign_where_it_is(sign, strongest, place):
    heat, strength = utils.heat_map(CAM, 140, 280, sign)
    assert heat.shape == (140, 280) and heat.dtype == np.float32 and strength == strongest
    assert heat.min() == 0 and 0.95 < heat.max() <= 1
    assert np.abs(np.subtract(np.unravel_index(heat.argmax(), heat.shape), place)).max() <= 10
    opposite = 140 - place[0], 280 - place[1]
    assert heat[opposite] == 0


@pytest.mark.parametrize("cam, sign", [
    (np.zeros((7, 7)), 1), (np.zeros((7, 7)), -1), (-np.ones((7, 7)), 1), (np.ones((1, 1)), -1)])
def test_a_map_without_that_sign_is_empty_and_no_nan(cam, sign):
    heat, strength = utils.heat_map(cam, 30, 20, sign)
    assert strength == 0 and heat.shape == (30, 20) and not heat.any()


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_a_heat_map_does_not_depend_on_the_size_of_the_numbers(size):
    assert np.allclose(utils.heat_map(CAM * np.float32(size), 35, 35)[0], utils.heat_map(CAM, 35, 35)[0], atol=1e-5)


def test_an_overlay_mixes_photograph_and_colours():
    image, heat = np.full((4, 6, 3), (10, 200, 30), np.uint8), np.zeros((4, 6), np.float32)
    heat[0, 0] = 1
    laid = utils.overlay(image, heat, cv2.COLORMAP_JET)
    assert np.abs(laid[0, 0].astype(int) - (69, 100, 15)).max() <= 1 and np.abs(laid[3, 5].astype(int) - (5, 100, 79)).max() <= 1


def test_zero_is_grey():
    assert (utils.signed_grey(np.zeros((3, 4, 3))) == 128).all()


@pytest.mark.parametrize("size", [1e-20, 1.0, 1e20])
def test_the_sign_is_kept_on_one_scale_for_all_channels(size):
    ramp = np.linspace(-1, 1, 201)[:, None, None] * np.array([1, 0.5, 0])
    grey = utils.signed_grey(ramp * size).astype(int)
    assert (np.diff(grey[..., 0], axis=0) >= 0).all() and (grey[..., 2] == 128).all()
    assert grey[0, 0, 0] <= 2 and grey[-1, 0, 0] >= 254
    assert np.abs(grey[..., 1] - 128 - (grey[..., 0] - 128) / 2).max() <= 2
    assert np.abs(grey + utils.signed_grey(-ramp * size) - 256).max() <= 1


def test_one_hot_pixel_does_not_darken_the_rest():
    values = np.where(np.random.default_rng(0).random((50, 50, 3)) < 0.5, -1.0, 1.0)
    calm = utils.signed_grey(values)
    values[25, 25] = 1000
    hot = utils.signed_grey(values)
    assert (hot[25, 25] >= 254).all()
    hot[25, 25] = calm[25, 25]
    assert np.abs(hot.astype(int) - calm).max() <= 2


# ---------------------------------------------------------------------------------------------------------------------
# Files appear whole or not at all


@pytest.fixture(params=[True, False], ids=["over an older file", "new"])
def target(request, tmp_path):
    path = tmp_path / "картина 1.jpg"
    if request.param:
        path.write_bytes(b"older")
    return path


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("error, seen", [
    (OSError(errno.ENOSPC, "No space left on device"), utils.UserError), (OSError("encoder error -2"), utils.UserError),
    (ValueError("bug"), ValueError), (KeyboardInterrupt(), KeyboardInterrupt)], ids=["full disk", "encoder", "bug", "Ctrl-C"])
def test_a_writer_that_fails_leaves_everything_as_it_was(target, error, seen, capfd):
    def write(file):
        file.write(b"half")
        file.flush()
        raise error

    before = content(target.parent)
    with pytest.raises(seen) as caught:
        utils.write_whole(target, write)
    assert content(target.parent) == before
    assert capfd.readouterr().out == ""  # stdout lists files that were written
    if seen is utils.UserError:
        assert str(target) in str(caught.value) and str(error).split()[-1] in str(caught.value)


def test_a_file_written_is_whole_alone_and_listed_on_stdout(target, capfd):
    utils.write_whole(target, lambda file: file.write(b"whole"))
    assert content(target.parent) == {target.name: b"whole"}
    assert capfd.readouterr() == (f"{target}\n", "")


def test_a_name_that_is_no_utf8_is_written_and_listed_all_the_same(tmp_path, monkeypatch):
    listed = io.TextIOWrapper(io.BytesIO(), "utf-8", "strict")  # stdout under a locale such as en_US.UTF-8
    monkeypatch.setattr(sys, "__stdout__", listed)
    path = tmp_path / os.fsdecode(b"caf\xe9.jpg")  # Latin-1, as old archives have it
    utils.write_whole(path, lambda file: file.write(b"whole"))
    assert path.read_bytes() == b"whole" and listed.buffer.getvalue() == os.fsencode(path) + b"\n"


@pytest.mark.parametrize("path", ["no/such/folder/a.jpg", "file/a.jpg", "folder", f"{'x' * 300}.jpg"])
def test_a_place_that_cannot_be_written_is_one_line(tmp_path, path):
    (tmp_path / "file").write_bytes(b"kept")
    (tmp_path / "folder").mkdir()
    assert path in refusal(utils.write_whole, tmp_path / path, lambda file: file.write(b"x"))
    assert (tmp_path / "file").read_bytes() == b"kept" and sorted(os.listdir(tmp_path)) == ["file", "folder"]


def tile(colour, title="", height=60, width=90):
    return utils.Tile(np.full((height, width, 3), colour, np.uint8), title)


def box(picture, colour):
    """(top, bottom, left, right) of a colour in a picture that went through JPEG."""
    rows, columns = np.nonzero((np.abs(picture.astype(int) - colour) < 50).all(axis=2))
    assert rows.size, f"{colour} is not in the picture"
    return rows.min(), rows.max() + 1, columns.min(), columns.max() + 1


@pytest.fixture
def drawn(tmp_path, capfd):
    """Lay out tiles and read the picture back: (pixels, what stdout said, the path)."""
    def draw(rows, *arguments, **settings):
        path = tmp_path / "drawn.jpg"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            utils.save_picture(path, rows, *arguments, **settings)
        return cv2.imread(str(path))[..., ::-1], capfd.readouterr().out, path
    return draw


@pytest.mark.parametrize("colorbar", [None, cv2.COLORMAP_BONE])
def test_tiles_stand_in_rows_and_columns_unscaled(drawn, colorbar):
    rows = [[tile(RED, "red"), tile(GREEN, "green\ntwo lines"), tile(BLUE)], [None, tile((255, 0, 255), "below green")]]
    picture, _, _ = drawn(rows, "heading", "note", colorbar)
    red, green, blue, below = (box(picture, colour) for colour in (RED, GREEN, BLUE, (255, 0, 255)))
    for top, bottom, left, right in (red, green, blue, below):
        assert abs(bottom - top - 60) <= 2 and abs(right - left - 90) <= 2
    assert max(red[0], green[0], blue[0]) - min(red[0], green[0], blue[0]) <= 1
    assert red[3] < green[2] and green[3] < blue[2] and abs(below[2] - green[2]) <= 1 and below[0] > green[1]


def ink(picture):
    return (picture.max(axis=2) < 128)


def test_a_title_stands_above_its_tile_and_heading_and_note_above_all(drawn):
    picture, _, _ = drawn([[tile(RED, "title"), tile(GREEN)]], "heading", "note")
    (top, _, left, right), (_, _, other, end) = box(picture, RED), box(picture, GREEN)
    dark = ink(picture)
    assert dark[top - 18:top, left:right].any() and not dark[top - 18:top, other:end].any()
    lines = np.diff(np.r_[False, dark[:top].any(axis=1), False].astype(int)).tolist().count(1)
    assert lines == 3  # heading, note, title: three bands of ink


def test_a_colour_bar_runs_from_hot_to_cold(drawn):
    picture, _, _ = drawn([[tile((255, 255, 255), height=200)]], "heading", colorbar=cv2.COLORMAP_JET)
    (hot, _, left, right), (_, cold, _, _) = box(picture, (128, 0, 0)), box(picture, (0, 0, 128))
    assert cold - hot > 100 and left > picture.shape[1] // 2 and right < picture.shape[1]


def test_long_titles_run_neither_into_each_other_nor_off_the_picture(drawn):
    """A photograph 10 pixels wide under the longest things that scripts write above it."""
    titles = [f"{utils.class_name(165)}\np 0.000 · no positive evidence", "Mixed_5b_Branch_2_Conv2d_0a_3x3 · min -0.00123",
              f"{utils.class_name(400)}\np 0.999 · max 1.23e+03"]
    colours = (RED, GREEN, BLUE)
    row = [tile(colour, title, width=10) for colour, title in zip(colours, titles)]
    picture, _, _ = drawn([row], "heading " * 20, "note " * 60)
    dark, boxes = ink(picture), [box(picture, colour) for colour in colours]
    for top, _, left, _ in boxes[1:]:
        assert not dark[top - 40:top, left - 2:left].any()  # the title before has ended
    assert not dark[:, -4:].any() and not dark[:, :4].any()
    assert not dark[:4].any() and not dark[-4:].any()


@pytest.mark.parametrize("title", ["猫 кот قطة", "$x^2$ a_b {c} \\frac", "%s <b> & \"q\"", os.fsdecode(b"caf\xe9.jpg")])
def test_any_file_name_can_be_a_title(drawn, title):
    picture, _, _ = drawn([[tile(RED, title)]], title, title)
    assert box(picture, RED)


@pytest.mark.parametrize("height, width", [(1, 1), (1, 300), (300, 1)])
def test_a_tile_of_one_pixel_or_line_is_laid_out(drawn, height, width):
    picture, _, _ = drawn([[tile(RED, "thin", height, width), tile(GREEN, "tile")]], "heading", colorbar=cv2.COLORMAP_JET)
    assert box(picture, GREEN)[1] - box(picture, GREEN)[0] >= 58


def test_arrays_lie_beside_the_picture_and_both_are_listed(drawn):
    arrays = {"vgg16/input": np.ones((1, 2, 2, 3), np.float32), "vgg16/block5_conv3/285": np.eye(3, dtype=np.float32)}
    _, listed, path = drawn([[tile(RED)]], "heading", arrays=arrays)
    assert listed.splitlines() == [str(path), str(path.with_suffix(".npz"))]
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as stored:
        assert {key: stored[key].tolist() for key in stored} == {key: array.tolist() for key, array in arrays.items()}
