"""What goes in and what comes out without a network, and without TensorFlow: photographs, folders, words, classes,
files. Photographs are written by another library or by hand, and compared with the pixels they were made of."""

import contextlib
import os
import re
import resource
import shlex
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import utils

CLONE = Path(__file__).resolve().parent.parent
GRADCAM = "gradcam_vgg.py", "gradcam_resnet50.py", "gradcam_googlenet.py"
DECONVNET = "deconvnet_vgg.py", "deconvnet_inceptionv3.py"
FIGURES = dict.fromkeys(
    GRADCAM, "layers classes negative one_class kernels guided overlay trust".split()
)
FIGURES |= dict.fromkeys(DECONVNET, "projections blocks comparison top9 occlusion".split())
RED, GREEN, BLUE, ORANGE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 160, 32)


def quadrants(*colours):
    """Four colours, different in every corner, so that swapped channels, flips and turns all show."""
    picture = np.array(colours, np.uint8).reshape(2, 2, *np.shape(colours[0]))
    return picture.repeat(16, axis=0).repeat(32, axis=1)


PATTERN, GREY, ALPHA = (
    quadrants(RED, GREEN, BLUE, ORANGE),
    quadrants(0, 90, 180, 255),
    quadrants(0, 255, 128, 64),
)


def refusal(call, *arguments):
    """The one line of the UserError that a call ends with."""
    with pytest.raises(utils.UserError) as caught:
        call(*arguments)
    line = str(caught.value)
    assert line.strip() and "\n" not in line
    return line


INDICES, CLEAR = quadrants(0, 1, 2, 3), quadrants(RED, (255, 255, 255), BLUE, ORANGE)
CMYK = quadrants((255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 255, 0), (0, 0, 0, 200))
CMYK_RGB = quadrants((0, 255, 255), (255, 0, 255), (255, 255, 0), (55, 55, 55))
GREY16 = np.linspace(0, 65535, 64 * 32).reshape(32, 64).astype(np.uint16)
RGB16, RGBA = np.stack([GREY16, GREY16[::-1], GREY16[:, ::-1]], axis=2), np.dstack([PATTERN, ALPHA])
GREY3, OVER_WHITE = (
    np.dstack([GREY] * 3),
    PATTERN * (ALPHA[..., None] / 255) + 255 - ALPHA[..., None],
)
KINDS = {  # name of the photograph: its mode, what is stored, settings, its pixels, tolerance; cv2 stands for OpenCV
    "a.jpg": ("cv2", PATTERN, {}, PATTERN, 6),
    "B.PNG": ("cv2", PATTERN, {}, PATTERN, 0),
    "猫 $b&c;%20.bmp": ("cv2", PATTERN, {}, PATTERN, 0),
    "a.tif": ("cv2", PATTERN, {}, PATTERN, 0),
    "two.gif": (
        "P",
        INDICES,
        {"save_all": True, "append_images": [Image.new("P", (64, 32), 2)]},
        PATTERN,
        0,
    ),
    "grey.jpg": ("L", GREY, {"quality": 98}, GREY3, 4),
    "grey.png": ("L", GREY, {}, GREY3, 0),
    "palette.png": ("P", INDICES, {}, PATTERN, 0),
    "clear.gif": ("P", INDICES, {"transparency": 1}, CLEAR, 0),
    "clear.png": ("RGB", PATTERN, {"transparency": GREEN}, CLEAR, 0),
    "palette_alpha.png": ("P", INDICES, {"transparency": bytes((0, 255, 128, 64))}, OVER_WHITE, 1),
    "rgba.webp": ("RGBA", RGBA, {"lossless": True, "exact": True}, OVER_WHITE, 1),
    "rgba.tif": ("RGBA", RGBA, {}, OVER_WHITE, 1),
    "rgba.png": ("RGBA", RGBA, {}, OVER_WHITE, 1),
    "float.tif": ("cv2", GREY.astype(np.float32) / 255, {}, GREY3, 1),
    "cmyk.jpg": ("CMYK", CMYK, {"quality": 98}, CMYK_RGB, 5),
    "cmyk.tif": ("CMYK", CMYK, {}, CMYK_RGB, 1),
    **{
        f"{name}16.{ending}": (
            "cv2",
            stored,
            {},
            np.dstack([stored / 257] * (3 if name == "grey" else 1)),
            1,
        )
        for ending in ("png", "tif")
        for name, stored in (("grey", GREY16), ("rgb", RGB16))
    },
}


def differ(path, expected):
    """By how much the pixels read differ from those expected, at most; warnings count as failures."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = utils.read_photo(path)
    assert pixels.dtype == np.uint8 and pixels.shape == expected.shape
    return np.abs(pixels.astype(int) - expected).max()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore:'mode' parameter:DeprecationWarning")
def test_every_format_and_kind_of_pixel_is_read_in_rgb(tmp_path, name):
    mode, stored, settings, expected, tolerance = KINDS[name]
    if mode == "cv2":  # another library, which wants BGR
        full = [cv2.IMWRITE_JPEG_QUALITY, 98, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111]
        cv2.imwrite(
            str(tmp_path / name),
            stored[..., ::-1] if stored.ndim == 3 else stored,
            full * (name == "a.jpg"),
        )
    else:
        image = Image.fromarray(stored, mode)
        if mode == "P":
            image.putpalette([*RED, *GREEN, *BLUE, *ORANGE])
        image.save(tmp_path / name, **settings)
    assert differ(tmp_path / name, expected) <= tolerance


UPRIGHT = {  # EXIF 2.3, tag 274: what a viewer does to the stored rows
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a.transpose(1, 0, 2), 2),
    8: np.rot90,
}


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_turns_the_photograph_upright(tmp_path, orientation, ending):
    exif, path = Image.Exif(), tmp_path / f"turned.{ending}"
    exif[274] = orientation
    Image.fromarray(PATTERN).save(path, exif=exif, quality=98, subsampling=0, lossless=True)
    assert differ(path, UPRIGHT[orientation](PATTERN)) <= (4 if ending == "jpg" else 0)


NOISE = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
CUT = {
    "plain.jpg": {},
    "progressive.jpg": {"progressive": True},
    "plain.png": {},
    "plain.gif": {},
    "plain.bmp": {},
    "lossy.webp": {},
    "lossless.webp": {"lossless": True},
    "plain.tif": {},
    "lzw.tif": {"compression": "tiff_lzw"},
}


@pytest.mark.parametrize("name", CUT)
def test_a_truncated_photograph_is_refused_and_never_half_grey(tmp_path, name):
    Image.fromarray(NOISE).save(tmp_path / name, **CUT[name])
    pixels, data, cut = (
        utils.read_photo(tmp_path / name),
        (tmp_path / name).read_bytes(),
        tmp_path / f"cut_{name}",
    )
    for size in range(0, len(data), len(data) // 40):
        cut.write_bytes(data[:size])
        if size < 0.8 * len(data):
            assert str(cut) in refusal(utils.read_photo, cut)
        with contextlib.suppress(
            utils.UserError
        ):  # what lacks nothing but its last words may hold the whole picture
            assert np.array_equal(utils.read_photo(cut), pixels), (
                f"{size} of {len(data)} bytes: another picture"
            )


NO_PHOTOGRAPHS = {
    "empty.png": b"",
    "notes.jpg": b"this is no photograph\n" * 50,
    "page.jpg": b"<!doctype html><title>404</title>",
    "header.jpg": b"\xff\xd8\xff\xe0",
    "phone.heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" * 9,
    "web.avif": b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" * 9,
    "paper.png": b"%PDF-1.4\n1 0 obj\n" * 20,
    "drawing.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n",
}


@pytest.mark.parametrize("name", [*NO_PHOTOGRAPHS, ".", "gone.jpg"])
def test_what_is_no_photograph_is_refused_and_starts_no_other_program(tmp_path, monkeypatch, name):
    started = []
    monkeypatch.setattr(
        subprocess, "Popen", lambda *arguments, **_: started.append(arguments)
    )  # Ghostscript, say
    if name in NO_PHOTOGRAPHS:
        (tmp_path / name).write_bytes(NO_PHOTOGRAPHS[name])
    line = refusal(utils.read_photo, tmp_path / name)
    assert str(tmp_path / name) in line and "GIF" in line  # the formats that are read are named
    assert not started


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path):
    """A GIF of a few bytes that declares 20,000 by 10,000 pixels."""
    Image.fromarray(NOISE).save(tmp_path / "bomb.gif")
    data = (tmp_path / "bomb.gif").read_bytes()
    (tmp_path / "bomb.gif").write_bytes(data[:6] + b"\x20\x4e\x10\x27" + data[10:])
    assert "pixels" in refusal(
        utils.read_photo, tmp_path / "bomb.gif"
    )  # and not that the file ends early


@pytest.mark.parametrize("ending", ["jpg", "png", "gif", "bmp", "webp", "tif"])
def test_changed_bytes_end_in_a_photograph_or_one_line(tmp_path, ending):
    path, generator = tmp_path / f"mutated.{ending}", np.random.default_rng(1)
    Image.fromarray(NOISE).save(path)
    data = np.frombuffer(path.read_bytes(), np.uint8)
    for number in range(25):
        some = data.copy()  # a header may stand at the end, too
        places = generator.integers(
            0, 120 if number % 2 else len(data), generator.integers(1, 8)
        ) % len(data)
        some[places if number % 5 else -1 - places] = generator.integers(0, 256, len(places))
        path.write_bytes(some.tobytes())
        with contextlib.suppress(utils.UserError):
            pixels = utils.read_photo(path)
            assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3


def find(*given):
    options = SimpleNamespace()
    utils.find_photos(options, [*given])
    return options


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Photographs, hidden ones, our own results, and things that are none, where the person stands."""
    monkeypatch.chdir(tmp_path)
    for name in """b/2.PNG b/10.jpg a/z.Tiff a/deep/er/x.webp c.JPEG d.bmp e.gif f.HEIC d[1].png .hidden.jpg
            a/.git/y.jpg notes.txt jpg film.mp4 b/.2.png.part c_vgg16_one_class.jpg a/my_vgg_layers.png
            c_mine_overlay_3.jpg c_vgg16_classes.npz b/cake_layers.png""".split():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        ours = PngInfo()  # a photograph may have a name like ours
        ours.add_text(
            "Subject",
            "cake in layers" if "cake" in name else '{"photographs": ["c.jpg"]}' * ("_" in name),
        )
        Image.fromarray(PATTERN).save(Path(name), "png", pnginfo=ours)
    Path("B c").mkdir()
    Path("b/10.jpg").rename("B c/My КОТ.2.PNG")
    Path("folder.jpg").mkdir()


@pytest.mark.parametrize(
    "given, found, stems, group",
    [
        (["a"], "a/deep/er/x.webp a/z.Tiff", "x z", "a"),
        (["B c"], "B c/My КОТ.2.PNG", "my кот.2", "b c"),
        (
            ["."],
            "B c/My КОТ.2.PNG a/deep/er/x.webp a/z.Tiff b/2.PNG b/cake_layers.png c.JPEG d.bmp d[1].png e.gif"
            " f.HEIC",
            None,
            None,
        ),
        (["a/.git"], "a/.git/y.jpg", "y", ".git"),
        (["d.bmp"], "d.bmp", "d", "d"),  # hidden ones are read when asked for
        (
            ["d.bmp", "b", "./c.JPEG", "b/2.PNG", "d.bmp"],
            "d.bmp b/2.PNG b/cake_layers.png c.JPEG",  # each once
            "d 2 cake_layers c",
            "d_and_3_more",
        ),
        (["b/[0-9]*", "?.bmp"], "b/2.PNG d.bmp", "2 d", "2_and_1_more"),
        (["**/*.webp"], "a/deep/er/x.webp", "x", "x"),
        (["d[1].png"], "d[1].png", "d[1]", "d[1]"),
        (["c_vgg16_one_class.jpg"], "c_vgg16_one_class.jpg", None, None),
    ],
)
def test_files_folders_and_patterns_are_found_in_order_and_named_in_lower_case(
    tree, given, found, stems, group
):
    options = find(*given)
    assert " ".join(path.as_posix() for path in options.images) == found
    assert stems is None or (" ".join(options.stems.values()), options.group) == (stems, group)


@pytest.mark.parametrize(
    "paths",
    [
        ["a/cat.jpg", "b/cat.jpg"],
        ["cat.jpg", "cat.png"],
        ["a/cat.jpg", "a/Cat.PNG", "b/CAT.png"],
        ["x/a/cat.jpg", "y/a/cat.jpg", "z/a/cat.jpg"],  # the folders' names are the same, too
        ["a_cat_jpg.png", "a/cat.jpg", "b/cat.jpg"],
        ["x/a/cat.jpg", "y/a/cat.jpg", "a_cat_jpg_.png"],
    ],
    ids=" ".join,
)
def test_no_two_photographs_share_a_name(tmp_path, monkeypatch, paths):
    monkeypatch.chdir(tmp_path)
    for path in map(Path, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    stems = find(*paths).stems
    assert len(set(stems.values())) == len(paths)
    assert all(stem == stem.lower() and path.stem.lower() in stem for path, stem in stems.items())


def before_tensorflow(name):
    """The globals of a script where its command line is read: what stands before TensorFlow is imported."""
    source, names = (
        (CLONE / name).read_text(encoding="utf-8"),
        {"__file__": str(CLONE / name), "__name__": name},
    )
    exec(source.partition('\nif __name__ == "__main__":')[0], names)
    return names


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Read the words typed behind a script's name, some of its constants having other values."""
    monkeypatch.chdir(tmp_path)

    def read(script, *words, **constants):
        monkeypatch.setattr(sys, "argv", [script, *words])
        return utils.read_options(before_tensorflow(script) | constants)

    return read


@pytest.mark.parametrize(
    "script, name, typed, constant, value",
    [
        ("gradcam_vgg.py", "MODELS", "VGG19", ["vgg19"], ["vgg19"]),
        *((script, "FIGURES", "all", ["all"], figures) for script, figures in FIGURES.items()),
        (
            "gradcam_resnet50.py",
            "FIGURES",
            "guided, layers,guided",
            ("guided", "layers"),
            ["guided", "layers"],
        ),
        (
            "gradcam_vgg.py",
            "LAYERS",
            "block?_conv1,fc2",
            ["block?_conv1", "fc2"],
            ["block?_conv1", "fc2"],
        ),
        (
            "gradcam_vgg.py",
            "CLASSES",
            "Egyptian_CAT,n03126707,top3",
            ["egyptian cat", 517, "top3"],
            [285, 517, "top3"],
        ),
        ("deconvnet_vgg.py", "CLASSES", "967", 967, [967]),
        ("deconvnet_vgg.py", "KERNELS", "top12", ["top12"], 12),
        ("deconvnet_vgg.py", "KERNELS", "0-8", range(9), [*range(9)]),
        ("gradcam_vgg.py", "KERNELS", "7", 7, [7]),
        ("deconvnet_inceptionv3.py", "KERNELS", "12,3-5,4", ["12", "3-5", 4], [12, 3, 4, 5]),
        (
            "deconvnet_vgg.py",
            "RULES",
            "guided,gradient",
            ["guided", "gradient"],
            ["guided", "gradient"],
        ),
        ("gradcam_vgg.py", "SEED", "7", 7, 7),
        ("gradcam_vgg.py", "OUTPUT", "x/y", "x/y", Path("x/y")),
        *(
            ("gradcam_vgg.py", name, word, word, word)
            for name, word in {
                "METHOD": "gradcam++",
                "WEIGHTS": "random",
                "PREPROCESS": "unit",
                "FORMAT": "pdf",
                "COLORMAP": "bone",
            }.items()
        ),
        *(("deconvnet_vgg.py", "MODE", word, word, word) for word in ("max", "all")),
    ],
)
def test_a_constant_and_its_option_are_read_alike(read, script, name, typed, constant, value):
    assert getattr(read(script, f"--{name.lower()}", typed), name.lower()) == value
    assert getattr(read(script, **{name: constant}), name.lower()) == value


def test_photographs_named_at_the_top_of_a_script_are_relative_to_it(read):
    options = read("gradcam_vgg.py", ARRAYS=True, IMAGES=["Image/co*.jpg", "Image/cat.jpg"])
    assert options.arrays and options.images == [
        CLONE / "Image" / name for name in ("coffee.jpg", "cat.jpg")
    ]


@pytest.mark.parametrize("script", FIGURES)
def test_help_names_every_option_its_default_and_every_figure(read, capfd, monkeypatch, script):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        read(script, "--help")
    sys.__stdout__.flush()
    text, names = " ".join(capfd.readouterr().out.split()), before_tensorflow(script)
    more = " METHOD" if script in GRADCAM else " MODE RULES PATCH STRIDE COMPARED"
    for name in f"FIGURES LAYERS CLASSES KERNELS WEIGHTS LABELS PREPROCESS SEED OUTPUT FORMAT COLORMAP{more}".split():
        shown = ",".join(names[name]) if isinstance(names[name], list) else names[name]
        assert (
            f"(default: {'none' if shown == '' else shown})"
            in text.partition(f" --{name.lower()} {name} ")[2][:280]
        )
    assert not ended.value.code and all(
        word in text for word in ("--arrays", "--skip-existing", "--list-layers")
    )
    assert all(re.search(rf" {figure} [A-Z][^.]{{10,}}", text) for figure in FIGURES[script])


WRONG = {  # words behind a script, and what the line must hold: the wrong word and what was meant
    "gradcam_vgg.py --figures kernls": "kernls kernels",
    "deconvnet_vgg.py --figures classes": "classes top9",
    "gradcam_vgg.py --figures ,": "--figures",
    "gradcam_vgg.py --models vgg61": "vgg61 vgg16",
    "gradcam_resnet50.py --models resnet50": "--models",
    "gradcam_vgg.py --mode max": "--mode",  # of other scripts
    "deconvnet_vgg.py --mode maximum": "maximum max",
    "deconvnet_vgg.py --rules guide": "guide guided",
    "gradcam_vgg.py --method gradcm": "gradcm gradcam",
    "gradcam_vgg.py --format jpeg": "jpeg jpg",
    "gradcam_vgg.py --colormap viridsi": "viridsi viridis",
    "gradcam_vgg.py --preprocess keras": "keras caffe",
    "gradcam_vgg.py --kernel 0": "--kernel",
    "gradcam_vgg.py --skip": "--skip",  # options are not guessed
    **{
        f"deconvnet_vgg.py --kernels {word}": word
        for word in ("0,-1", "nine", "top0", ",", "0-", "1.5")
    },
    "gradcam_vgg.py --seed x": "--seed x",
    "gradcam_vgg.py --labels x": "--labels",
    "gradcam_vgg.py --weights nowhere.h5": "nowhere.h5 random",
    "gradcam_vgg.py --weights tiny": "tiny imagenet",
    "gradcam_vgg.py --classes egyptain_cat": "egyptain_cat Egyptian",
    "gradcam_vgg.py --classes 7,-1": "-1 999",
    "gradcam_vgg.py --classes top2000": "top2000 top99",
    "gradcam_vgg.py --classes retriever": "golden",
    "gradcam_vgg.py --classes BOW_TY": "bow tie",
    "deconvnet_vgg.py --classes maillot": "638 639",
    "gradcam_vgg.py --classes 1000": "1000 999",
    "gradcam_vgg.py a/nowhere.jpg": "a/nowhere.jpg",
    "gradcam_vgg.py no/*.webp": "no/*.webp",
    "gradcam_vgg.py .": ".tiff",
    "gradcam_vgg.py https://a.org/b//c.jpg?d=1": "https://a.org/b//c.jpg?d=1 address",
}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_word_is_named_with_what_may_stand_there(read, words):
    line = refusal(read, *words.split())
    assert all(word.lower() in line.lower() for word in WRONG[words].split()), line


def test_every_command_of_the_readme_is_accepted(read, tmp_path):
    commands = re.findall(
        r"\bpython (\w+\.py)\b([^`\n#&|]*)", (CLONE / "README.md").read_text(encoding="utf-8")
    )
    assert {script for script, _ in commands} == FIGURES.keys()
    (tmp_path / "Image").symlink_to(CLONE / "Image")
    for script, words in commands:
        # photo.jpg, photos/, mine.keras …
        for word in re.findall(r"(?<=\s)(?!\"?Image/|-)\S+(?:/|\.\w{2,5}\b)", words):
            path = tmp_path / word.strip('"').replace("*", "a") / ("photo.png" * word.endswith("/"))
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(PATTERN).save(path.open("wb"), "png")
        read(script, *shlex.split(words))


def test_the_table_has_imagenet_s_classes_and_each_is_found_by_index_id_or_its_name_in_any_case():
    classes = utils.read_classes()
    synsets, names = zip(*classes)
    assert len(classes) == 1000 and [*synsets] == sorted(set(synsets))  # ILSVRC numbers them so
    assert (classes[0], classes[285]) == (("n01440764", "tench"), ("n02124075", "Egyptian cat"))
    for index, (synset, name) in enumerate(classes):
        assert (
            index
            == utils.find_class(str(index), classes)
            == utils.find_class(synset.upper(), classes)
        )
        if [*map(str.lower, names)].count(name.lower()) == 1:
            assert (
                index
                == utils.find_class(name, classes)
                == utils.find_class(name.replace(" ", "_").upper(), classes)
            )
        else:
            assert str(index) in refusal(
                utils.find_class, name, classes
            )  # crane, maillot: an index is asked for


WRITE_BIG = """import pathlib, sys, utils
utils.write_whole(pathlib.Path(sys.argv[1]), lambda file: file.write(b"n" * int(sys.argv[2])))"""


def test_a_kill_in_the_middle_leaves_no_half_file_under_the_name(tmp_path):
    path, size = tmp_path / "picture.jpg", 300_000_000
    path.write_bytes(b"older")
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE_BIG, path, str(size)], cwd=CLONE, stdout=subprocess.DEVNULL
    )
    while process.poll() is None and not any(
        file.stat().st_size > 9 for file in tmp_path.iterdir()
    ):
        time.sleep(0.0002)
    process.kill()
    process.wait()
    assert any(file.stat().st_size > 9 for file in tmp_path.iterdir())  # it had begun
    assert path.stat().st_size in (5, size)


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_everything_as_it_was(tmp_path, error):
    """Where nothing else goes wrong a limit on the size of files stands for a full disk."""

    def fill(file):
        file.write(b"n" * 5_000_000)
        if error:
            raise error

    path, limits = tmp_path / "picture.jpg", resource.getrlimit(resource.RLIMIT_FSIZE)
    path.write_bytes(b"older")
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, limits[1]))
    try:
        with pytest.raises(error or OSError):
            utils.write_whole(path, fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [*tmp_path.iterdir()] == [path] and path.read_bytes() == b"older"


SETTINGS = {
    "layers": ["conv1"],
    "classes": [1],
    "kernels": [0],
    "colormap": "bone",
    "seed": 1,
    "preprocess": "tf",
    "method": "layercam",
    "mode": "max",
    "rules": ["guided"],
    "patch": 9,
    "stride": 9,
    "compared": 2,
    "weights": "random",
    "labels": "names.txt",
    "arrays": True,
}


@pytest.mark.parametrize("ending", ["jpg", "png", "pdf"])
@pytest.mark.parametrize("script", ["gradcam_vgg.py", "deconvnet_vgg.py"])
def test_a_picture_is_known_again_by_every_setting(read, tmp_path, script, ending):
    Image.fromarray(PATTERN).save(tmp_path / "photo.png")
    options = read(script, "photo.png", "--skip-existing", "--format", ending)

    def drawn(figure="occlusion", network="vgg16"):
        return bool(utils.is_drawn(options, figure, network, "photo", options.images))

    view = SimpleNamespace(
        options=options, path=options.images[0], network=SimpleNamespace(label="VGG16")
    )
    assert not drawn()
    utils.View.write(view, "occlusion", "photo_vgg16_occlusion", Figure((1, 1)), {})
    assert drawn() and not drawn("trust") and not drawn(network="vgg19")
    for name, value in SETTINGS.items():
        before = getattr(options, name, None)
        if before is not None:
            setattr(options, name, value)
            assert not drawn(), name
            setattr(options, name, before)
            assert drawn()
    os.utime("photo.png", (1, 1))  # another photograph under the same name
    assert not drawn()
