"""The command line: constants, options, wrong words, help."""

import os
import re
import shlex
import sys
from pathlib import Path

import pytest
from runs import DECONVNET, GRADCAM, ROOT, SCRIPTS, program, refusal

from cnnvis import photos
from utils import Selection

VGG, DECONV = "gradcam_vgg", "deconvnet_vgg"


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
    found_photos = photos.find_photos(read(VGG), images)
    assert found_photos.paths == [ROOT / "Image" / name for name in ("coffee.jpg", "cat.jpg")]
    assert photos.find_photos(read(VGG, "photo.png"), images).paths == [Path("photo.png")]
    Path("--seed").write_bytes(Path("photo.png").read_bytes())
    found_photos = photos.find_photos(
        read(VGG, "--fit", "pad", "--", "--seed", "photo.png"), images
    )
    assert found_photos.paths == [Path("--seed"), Path("photo.png")]


FIGURES = dict.fromkeys(GRADCAM, "layers one_class guided overlay trust boxes failures table")
FIGURES |= dict.fromkeys(DECONVNET, "projections blocks comparison top9 occlusion")


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_constant_is_an_option_and_help_names_all(read, capfd, monkeypatch, script):
    """Fault 11: the one that is a switch is overridden, too."""
    assert not read(script, "--no-arrays", ARRAYS=True).arrays
    source = (ROOT / f"{script}.py").read_text(encoding="utf-8")
    block = source.partition("# fmt: off\n")[2].partition("# fmt: on")[0]
    names = re.findall(r"^([A-Z_]+) = .*  # \S", block, re.MULTILINE)
    assert len(names) == block.count("\n") > 20
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        read(script, "--help")
    sys.__stdout__.flush()
    text, constants = capfd.readouterr().out, vars(sys.modules[script])
    for name in {*names} - {"IMAGES", "ARRAYS", "AS_STORED"}:
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
    "gradcam_resnet50 --weights bundled": "bundled imagenet",
    "gradcam_vgg --size 0,5": "0,5 224,224",
    "gradcam_vgg --name a/b": "a/b",
    "gradcam_vgg --classes egyptain_cat": "egyptain_cat Egyptian",
    "gradcam_vgg --classes 1000": "1000 999",
    "gradcam_vgg a/nowhere.jpg": "a/nowhere.jpg",
    "gradcam_vgg empty": ".tiff",  # the endings of photographs are named
    "gradcam_vgg https://a.org/b//c.jpg?d=1": "https://a.org/b//c.jpg?d=1",
}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_word_is_named_with_what_may_stand_there(read, words):
    Path("empty").mkdir()
    line = refusal(lambda: photos.find_photos(read(*words.split()), []))
    assert all(word.lower() in line.lower() for word in WRONG[words].split()), line


EDITED = {  # constants of other types, and what the line says that they take
    "LABELS": (None, "text"),
    "OUTPUT": (None, "text"),
    "FIGURES": (True, "list"),
    "THRESHOLD": (0.15, "1 to 99"),
    "SCALE": (2.0, "1 to 8"),
    "ARRAYS": (1, "True or False"),
    "WEIGHTS": ("gone.h5", "bundled"),
}


@pytest.mark.parametrize("name", EDITED)
def test_a_constant_that_cannot_be_read_is_named_with_what_it_takes(read, name):
    value, takes = EDITED[name]
    line = refusal(read, VGG, **{name: value})
    assert f"{name} = {value!r}" in line and takes in line
    if isinstance(value, str | float):  # an option overrides it
        typed = {"WEIGHTS": "random"}.get(name, "5")
        assert getattr(read(VGG, f"--{name.lower()}", typed, **{name: value}), name.lower())


def test_size_name_and_orientation_are_read(read):
    options = read(VGG, "--size", "20,30", "--name", "mine", "--as-stored")
    assert (options.size, options.name, options.as_stored) == ((20, 30), "mine", True)
    assert read(VGG, SIZE=(20, 30)).size == (20, 30)
    assert (read(VGG).size, read(VGG).name, read(VGG).as_stored) == (None, "", False)


def test_help_needs_no_docstrings_and_no_unicode_terminal(tmp_path):
    done = program("gradcam_vgg --help", cwd=tmp_path, PYTHONIOENCODING="ascii", PYTHONOPTIMIZE="2")
    text = "\n".join(done.out)
    assert done.code == 0 and not done.err and text.isascii()
    assert "Grad-CAM on VGG16" in text and "positive evidence" in text


def test_boxes_are_read_once_from_a_pipe_and_unused_words_are_reported(read, capsys):
    reader, writer = os.pipe()
    Path("a.py").touch()
    os.write(writer, b"photo,class,x0,y0,x1,y1\nphoto.png,a,1,2,3,4\n")  # where a person stands
    os.close(writer)
    words = ("--boxes", f"/dev/fd/{reader}", "--figures")
    assert read(VGG, *words, "boxes").true_boxes[Path("photo.png").resolve()]["a"]
    assert not capsys.readouterr().err
    os.close(reader)
    Path("boxes.csv").write_text("photo,class,x0,y0,x1,y1\n")
    read(VGG, "--boxes", "boxes.csv", "--figures", "trust", "--import", "a.py")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in sorted(lines)] == ["--boxes", "--import"]


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
            path.write_bytes(Path("photo.png").read_bytes())
            if path.suffix == ".csv":  # of --boxes
                path.write_text("photo,class,x0,y0,x1,y1\n")
        photos.find_photos(read(script, *shlex.split(words)), ["Image/cat_coffee.jpg"])
