"""The five scripts as programs: what a person types, what lands on disk, what is said, and the exit code.

A process costs seconds for TensorFlow alone. So there are few of them, each rich enough for many small tests, two at a
time; wrong words are tried where a TensorFlow that must not be imported stands in for the real one.
"""
import ast
import functools
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
from PIL import Image

import utils

CLONE = Path(__file__).resolve().parent.parent
CAT, ROCKET, HOPPER_COFFEE = (CLONE / "Image" / name for name in ("cat.jpg", "rocket.jpg", "hopper_coffee.jpg"))
GRADCAM = ("gradcam_vgg.py", "gradcam_resnet50.py", "gradcam_googlenet.py")
DECONVNET = ("deconvnet_vgg.py", "deconvnet_inceptionv3.py")
SCRIPTS = (*GRADCAM, *DECONVNET)
SIX = ("layers", "classes", "negative", "one_class", "kernels", "guided")  # the contract's figures of Grad-CAM
CHATTER = re.compile(r"^[IWEF]\d{4}\b|^\d{4}-\d\d-\d\d|warning|onednn|cuda|absl|cpu_feature_guard|rebuild tensorflow"
                     r"|site-packages|traceback|retracing|font cache", re.IGNORECASE)


# --- how a program is run ---------------------------------------------------------------------------------------------


class Done(NamedTuple):
    """A program that has ended, and the folder in which it ran."""

    code: int
    out: list
    err: list
    cwd: Path

    def error(self):
        """The one line on stderr; no file was listed."""
        assert self.out == []
        assert len(self.err) == 1 and self.err[0].startswith("error: "), "\n".join(self.err)
        return self.err[0]


def environment(**more):
    """What a person's shell has: nothing of what the tests or utils have set for TensorFlow in this process."""
    ours = ("TF_", "KERAS_", "PYTHONPATH", "PYTHONWARNINGS", "COLUMNS")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | {
        name: str(value) for name, value in more.items()}


def program(script, *arguments, cwd, **env):
    done = subprocess.run([sys.executable, CLONE / script, *map(str, arguments)], cwd=cwd, env=environment(**env),
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600)
    return Done(done.returncode, done.stdout.splitlines(), done.stderr.splitlines(), cwd)


def interrupted(script, *arguments, cwd, stream, when):
    """A program to which Ctrl-C is sent as soon as a line of its `stream` answers to `when`."""
    # What a shell runs in the background is deaf to Ctrl-C, and so are its children, unless their parent listens.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen([sys.executable, CLONE / script, *map(str, arguments)], cwd=cwd, env=environment(),
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    lines = {"stdout": [], "stderr": []}

    def listen(name):
        for line in getattr(process, name):
            lines[name].append(line.rstrip("\n"))
            if name == stream and when(lines[name][-1]):
                process.send_signal(signal.SIGINT)

    with process, ThreadPoolExecutor(2) as listeners:
        try:
            listeners.map(listen, lines)
            code = process.wait(timeout=200)
        finally:
            process.kill()
    return Done(code, *lines.values(), cwd)


JOBS = {}


def job(function):
    """A long run that many tests look at: a function of a folder of its own."""
    JOBS[function.__name__] = function
    return function


@pytest.fixture(scope="module")
def result_of(tmp_path_factory):
    """What a job returns. A thread goes through the jobs from the last; tests run what it has not begun when they ask."""
    with ThreadPoolExecutor(1) as pool:
        futures = {name: pool.submit(lambda function=function: function(tmp_path_factory.mktemp(function.__name__)))
                   for name, function in reversed(JOBS.items())}

        def ask(name):
            if futures[name].cancel():
                futures[name] = Future()
                try:
                    futures[name].set_result(JOBS[name](tmp_path_factory.mktemp(name)))
                except Exception as error:
                    futures[name].set_exception(error)
            return futures[name].result()
        yield ask
        pool.shutdown(cancel_futures=True)


def files(folder):
    """Every file below a folder, hidden ones too, relative to it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def listed(done, folder):
    """The files in the output folder, after making sure that stdout lists exactly them, one a line."""
    assert sorted((done.cwd / line).resolve() for line in done.out) == [(folder / name).resolve() for name in files(folder)]
    return set(files(folder))


def names(stem, model, figures):
    return {f"{stem}_{model}_{figure}.{ending}" for figure in figures for ending in ("jpg", "npz")}


def arrays(path):
    with np.load(path, allow_pickle=False) as stored:
        return dict(stored)


def assert_holds(stored, expected):
    """expected: {key: (dtype, shape)}. Other keys may be added, but none in another network's name."""
    kinds = {key: "int" if value.dtype.kind == "i" else value.dtype.name for key, value in stored.items()}
    assert {key: (kinds[key], stored[key].shape) for key in expected if key in stored} == expected
    assert {key.split("/")[0] for key in stored} == {key.split("/")[0] for key in expected}
    assert all(np.isfinite(value).all() for value in stored.values() if value.dtype.kind == "f")


def assert_picture(path):
    """A whole JPEG that shows something, of a size that a screen shows."""
    assert path.read_bytes().endswith(b"\xff\xd9")
    with Image.open(path) as image:
        assert image.format == "JPEG" and image.mode == "RGB"
        assert 300 <= min(image.size) and max(image.size) <= 6000
        assert np.ptp(np.asarray(image)) > 200


def assert_quiet(done):
    assert not [line for line in done.err if CHATTER.search(line)]


# --- wrong words: one line, code 2, no file, no TensorFlow ------------------------------------------------------------


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A working directory with what a person may give by mistake."""
    desk = tmp_path_factory.mktemp("desk")
    (desk / "empty").mkdir()
    (desk / "taken").write_text("a file")
    (desk / "notes.jpg").write_text("this is no photograph\n" * 50)
    (desk / "cut.jpg").write_bytes(CAT.read_bytes()[:CAT.stat().st_size // 2])
    return desk


IMPORTED = 99


@pytest.fixture(scope="module")
def without_tensorflow(desk, tmp_path_factory):
    """Run a script in the folder `desk`; it ends at once, with the code IMPORTED, where it imports TensorFlow."""
    trap = tmp_path_factory.mktemp("trap")
    (trap / "tensorflow").mkdir()
    (trap / "tensorflow" / "__init__.py").write_text(f"import os\nos._exit({IMPORTED})\n")
    return lambda script, *arguments: program(script, *arguments, cwd=desk, PYTHONPATH=trap, COLUMNS=200)


def wrong(script, *arguments, says=()):
    """A wrong command line, and words that its error must hold: the wrong word, or what was meant."""
    return pytest.param(script, arguments, says, id=" ".join((script.removesuffix(".py"), *map(str, arguments))))


WRONG = [
    *(wrong(script, "--figures", "kernls", says=["kernls", "kernels"]) for script in SCRIPTS),
    *(wrong(script, "--kernels", "0,-1", says=["-1"]) for script in SCRIPTS),
    *(wrong(script, "--kernel", "0", says=["--kernel"]) for script in SCRIPTS),  # options are not guessed
    *(wrong(script, "--weights", "nowhere.h5", says=["nowhere.h5"]) for script in SCRIPTS),
    *(wrong(script, "--classes", "egyptain cat", says=["egyptain cat", "Egyptian cat"]) for script in GRADCAM),
    wrong("gradcam_vgg.py", "--models", "vgg61", says=["vgg61", "vgg16"]),
    wrong("deconvnet_vgg.py", "--models", "vgg16,vgg91", says=["vgg91", "vgg19"]),
    wrong("gradcam_resnet50.py", "--models", "resnet50", says=["--models"]),  # the VGG scripts only
    wrong("gradcam_vgg.py", "--layers", "block5_conv9", says=["block5_conv9", "block5_conv3"]),
    wrong("deconvnet_vgg.py", "--layers", "block1_conv2,block6_conv1", says=["block6_conv1", "block5_conv1"]),
    wrong("deconvnet_vgg.py", "--models", "vgg16", "--layers", "block5_conv4", says=["block5_conv4"]),  # of VGG19
    wrong("gradcam_resnet50.py", "--layers", "conv5_blok3_out", says=["conv5_blok3_out", "conv5_block3_out"]),
    wrong("gradcam_googlenet.py", "--layers", "mixed5c", says=["mixed5c", "Mixed_5c"]),
    wrong("deconvnet_inceptionv3.py", "--layers", "mixed11", says=["mixed11", "mixed10"]),
    wrong("gradcam_vgg.py", "--layers", ",", says=["layer"]),
    wrong("gradcam_vgg.py", "--figures", ",", says=["figure", "layers"]),
    wrong("gradcam_resnet50.py", "--classes", "1000", says=["1000", "999"]),
    wrong("gradcam_resnet50.py", "--classes", "-1", says=["-1"]),
    wrong("gradcam_googlenet.py", "--classes", "n00000000", says=["n00000000"]),
    wrong("gradcam_googlenet.py", "--classes", "crane", says=["134", "517"]),  # a bird and a machine
    wrong("gradcam_googlenet.py", "--classes", "285,top0", says=["top0"]),
    wrong("gradcam_googlenet.py", "--classes", ",", says=["class"]),
    wrong("gradcam_googlenet.py", "--classes", "", says=["class"]),
    wrong("gradcam_vgg.py", "--kernels", "512", says=["512", "511"]),
    wrong("deconvnet_inceptionv3.py", "--kernels", "2048", says=["2048", "2047"]),
    wrong("deconvnet_vgg.py", "--layers", "block1_conv1", "--kernels", "64", says=["64", "63"]),
    wrong("deconvnet_vgg.py", "--kernels", "top513", says=["top513", "512"]),
    wrong("deconvnet_vgg.py", "--kernels", "top0", says=["top0"]),
    wrong("gradcam_googlenet.py", "--kernels", ",", says=["kernel"]),
    wrong("gradcam_googlenet.py", "--kernels", "nine", says=["nine"]),
    *(wrong(script, "--mode", "maximum", says=["maximum", "max"]) for script in DECONVNET),
    wrong("gradcam_vgg.py", "--mode", "max", says=["--mode"]),  # DeconvNet only
    wrong("gradcam_vgg.py", "--colormap", "jett", says=["jett", "jet"]),
    wrong("deconvnet_vgg.py", "--colormap", "", says=["colour map"]),
    wrong("gradcam_vgg.py", "--weights", "tiny", says=["tiny"]),  # bundled for GoogLeNet only
    wrong("gradcam_resnet50.py", "--seed", "x", says=["seed", "x"]),
    wrong("gradcam_resnet50.py", "--weights", "random", "--seed", "-1", says=["seed", "-1"]),
    wrong("deconvnet_vgg.py", "--weights", "random", "--seed", str(2**32), says=["seed", str(2**32)]),  # one too many
    wrong("gradcam_googlenet.py", "--seed", says=["--seed"]),
    wrong("gradcam_googlenet.py", "--seed", "1e3", says=["--seed", "1e3", "whole number"]),
    *(wrong("gradcam_googlenet.py", option, "", says=[option, "empty"]) for option in ("--output", "--weights")),
    wrong("deconvnet_vgg.py", "", says=["empty"]),  # what "$PHOTO" becomes where it is not set
    wrong("deconvnet_vgg.py", "--patch", "0", says=["patch 0"]),
    wrong("deconvnet_inceptionv3.py", "--compared", "33", says=["compared 33", "32"]),
    wrong("gradcam_vgg.py", CAT.with_name("cta.jpg"), says=["cta.jpg", "cat.jpg"]),
    wrong("gradcam_vgg.py", "--colormap", "grey", says=["grey", "viridis"]),
    wrong("deconvnet_inceptionv3.py", "--layers", "xyz", says=["xyz", "--list-layers"]),
    wrong("gradcam_googlenet.py", "nowhere.jpg", says=["nowhere.jpg"]),
    wrong("deconvnet_vgg.py", "notes.jpg", says=["notes.jpg"]),
    wrong("gradcam_resnet50.py", "taken", says=["taken"]),
    wrong("gradcam_vgg.py", "cut.jpg", says=["cut.jpg"]),
    wrong("deconvnet_inceptionv3.py", "cut.jpg", says=["cut.jpg"]),
    wrong("deconvnet_inceptionv3.py", "empty", says=["empty"]),
    wrong("gradcam_googlenet.py", CAT, "empty", says=["empty"]),
    wrong("gradcam_googlenet.py", "--output", "taken", says=["taken"]),
    wrong("deconvnet_vgg.py", "--output", "taken/below", says=["below"]),
]


@pytest.mark.parametrize("script, arguments, says", WRONG)
def test_wrong_words_are_told_in_one_line_before_tensorflow_and_leave_no_file(
        without_tensorflow, desk, script, arguments, says):
    before = files(desk)
    done = without_tensorflow(script, *(() if "--output" in arguments else ("--output", "out")), *arguments)
    line = done.error()
    assert done.code == 2
    assert [word for word in says if word not in line] == [], line
    assert files(desk) == before


RIGHT = [
    ("gradcam_vgg.py", "--classes", "Egyptian cat,egyptian_CAT,n02124075,285,top4", "--models", "vgg19", "--layers", "all"),
    ("gradcam_resnet50.py", "--kernels", "0,2047", "--colormap", "viridis", "--figures", "all"),
    ("gradcam_googlenet.py", "--weights", "tiny", "--layers", "Mixed_5c,Conv2d_1a_7x7", "--kernels", "63"),
    ("deconvnet_vgg.py", "--layers", "block1_conv1", "--kernels", "63", "--mode", "all"),
    ("deconvnet_vgg.py", "--models", "VGG16", "--layers", "Block1_*", "--mode", "ALL", "--figures", "all,kernels"),
    ("deconvnet_inceptionv3.py", "--kernels", "top2048", "--seed", str(2**32 - 1), "notes.jpg", "cut.jpg"),
]


@pytest.mark.parametrize("script, arguments", [(script, arguments) for script, *arguments in RIGHT],
                         ids=[" ".join(words) for words in RIGHT])
def test_right_words_reach_tensorflow(without_tensorflow, desk, script, arguments):
    """What must be accepted, and the proof that the trap of the test above catches."""
    done = without_tensorflow(script, *arguments, "--output", "out")
    assert (done.code, done.out, done.err) == (IMPORTED, [], [])
    assert not (desk / "out").is_dir() or files(desk / "out") == []


# --- constants and options, layer names -------------------------------------------------------------------------------


def constants(script):
    """{name: value} of the constants that a script opens with: the first lines of assignments that follow each other."""
    text = (CLONE / script).read_text(encoding="utf-8")
    found, last = {}, None
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and (last is None or node.lineno == last + 1):
            last = node.end_lineno
            targets, value = node.targets[0], ast.literal_eval(node.value)
            many = isinstance(targets, ast.Tuple)
            found |= dict(zip([t.id for t in targets.elts], value)) if many else {targets.id: value}
    return found


@pytest.fixture(scope="module")
def help_of(without_tensorflow):
    """A script's --help, each option's text on one line: {option: text}; the photographs under `images`."""
    done = {}

    def read(script):
        if script not in done:
            done[script] = without_tensorflow(script, "--help")
        entries = re.split(r"^ {2}(?=\S)", "\n".join(done[script].out + done[script].err), flags=re.MULTILINE)
        texts = (" ".join(entry.split()) for entry in entries)
        named = {text.split(" ")[0].lstrip("-"): text for text in texts}
        return done[script], named | {"images": named.pop("PHOTO_OR_FOLDER", "")}
    return read


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_on_stdout_and_needs_no_tensorflow(help_of, script):
    done, _ = help_of(script)
    assert done.code == 0 and done.err == [] and f"usage: {script}" in done.out[0]


@pytest.mark.parametrize("script, name", [(script, name) for script in SCRIPTS for name in constants(script)])
def test_every_constant_has_an_option_that_tells_its_default(help_of, script, name):
    _, texts = help_of(script)
    assert name.lower() in texts
    value = constants(script)[name]
    value = [Path(path).name for path in value] if name == "IMAGES" else value
    if name != "ARRAYS":  # a flag: its default is to be left out
        shown = ",".join(map(str, value)) if isinstance(value, list) else value
        assert f"(default: {shown})" in texts[name.lower()]


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_contract_s_constants_are_there(script):
    wanted = {"IMAGES", "FIGURES", "LAYERS", "KERNELS", "WEIGHTS", "SEED", "OUTPUT", "ARRAYS", "COLORMAP"}
    wanted |= {"CLASSES"} if script in GRADCAM else {"MODE"}
    found = constants(script)
    assert wanted | ({"MODELS"} if "vgg" in script else set()) <= found.keys()
    assert (found["WEIGHTS"], found["OUTPUT"], found["COLORMAP"], found["ARRAYS"]) == ("imagenet", "results", "jet", False)


def write_script(clone, script, **values):
    """The project in another place, with other constants in one of its scripts: that script's path."""
    if not clone.is_dir():
        shutil.copytree(CLONE / "Image", clone / "Image")
        shutil.copy(CLONE / "utils.py", clone)
    text = (CLONE / script).read_text(encoding="utf-8")
    for name, value in values.items():
        text, count = re.subn(rf"^{name} = .*$", lambda _: f"{name} = {value!r}", text, flags=re.MULTILINE)
        assert count == 1, name
    (clone / script).write_text(text, encoding="utf-8")
    return clone / script


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    return functools.partial(write_script, tmp_path_factory.mktemp("clone") / "of the project")


@pytest.mark.parametrize("script, name, value", [
    ("deconvnet_vgg.py", "KERNELS", [12]), ("deconvnet_inceptionv3.py", "KERNELS", [12, 77]),
    ("gradcam_vgg.py", "CLASSES", [285, "n02124075", "Egyptian cat"]), ("gradcam_resnet50.py", "LAYERS", ["conv1_relu"]),
    ("gradcam_vgg.py", "MODELS", ["vgg19"]), ("gradcam_googlenet.py", "WEIGHTS", "tiny"),
    ("deconvnet_vgg.py", "MODE", "all"), ("gradcam_resnet50.py", "FIGURES", ["all"]),
    ("gradcam_vgg.py", "CLASSES", 285), ("deconvnet_vgg.py", "KERNELS", 5), ("gradcam_vgg.py", "LAYERS", "block1*")])
def test_a_constant_takes_what_its_comment_says(without_tensorflow, clone, script, name, value):
    done = without_tensorflow(clone(script, **{name: value}), "--output", "out")
    assert (done.code, done.err) == (IMPORTED, [])


@pytest.mark.parametrize("name, value", [
    ("FIGURES", ["clases"]), ("COLORMAP", "jett"), ("IMAGES", ["nowhere.jpg"]), ("IMAGES", []), ("COLORMAP", 2),
    ("FIGURES", None), ("ARRAYS", "no"), ("SEED", "0"), ("OUTPUT", ""), ("CLASSES", 1000)])
def test_a_wrong_constant_is_told_like_a_wrong_option(without_tensorflow, clone, name, value):
    done = without_tensorflow(clone("gradcam_googlenet.py", **{name: value}), "--output", "out")
    assert done.code == 2 and (str(value[0] if isinstance(value, list) else value) if value else name) in done.error()


@pytest.fixture(scope="module")
def published_networks():
    """The networks as Keras, and the scripts, build them: name -> model. Zeros for weights: drawing them takes long."""
    keras = utils.import_keras()
    patch = pytest.MonkeyPatch()
    zeros = keras.ops.zeros
    patch.setattr(keras.initializers.VarianceScaling, "__call__", lambda _, shape, dtype=None: zeros(shape, dtype))
    built = {}

    def build(name):
        if name not in built:
            if name == "googlenet":
                built[name] = importlib.import_module("gradcam_googlenet").googlenet()
            else:
                keras.utils.clear_session()  # InceptionV3's layers are numbered from the session's start
                builders = {"vgg16": "VGG16", "vgg19": "VGG19", "resnet50": "ResNet50", "inceptionv3": "InceptionV3"}
                built[name] = getattr(keras.applications, builders[name])(weights=None)
        return built[name]
    yield build
    patch.undo()


NETWORKS = {"gradcam_vgg.py": ["vgg16", "vgg19"], "gradcam_resnet50.py": ["resnet50"],
            "gradcam_googlenet.py": ["googlenet"], "deconvnet_vgg.py": ["vgg16", "vgg19"],
            "deconvnet_inceptionv3.py": ["inceptionv3"]}


def known_networks(script, monkeypatch):
    """What a script's main tells the command line of its networks: {name: utils.Network}."""
    told = {}

    def read_options(script, figures, networks, **_):
        told.update(networks)
        raise utils.UserError("enough")

    monkeypatch.setattr(utils, "read_options", read_options)
    with pytest.raises(utils.UserError):
        importlib.import_module(script.removesuffix(".py")).main()
    return told


@pytest.mark.parametrize("script", SCRIPTS)
def test_layers_listed_exist_with_their_number_of_kernels(without_tensorflow, published_networks, monkeypatch, script):
    done = without_tensorflow(script, "--list-layers")
    networks = known_networks(script, monkeypatch)
    assert (done.code, done.err, list(networks)) == (0, [], NETWORKS[script])
    assert len(done.out) == len(set(done.out))
    assert set(done.out) == {layer for network in networks.values() for layer in network.widths}
    for name, network in networks.items():
        model = published_networks(name)
        assert network.widths == {layer: model.get_layer(layer).output.shape[-1] for layer in network.widths}


@pytest.mark.parametrize("script, name, layers", [
    ("gradcam_vgg.py", "vgg16", [f"block{b}_conv{c}" for b, n in enumerate((2, 2, 3, 3, 3), 1) for c in range(1, n + 1)]),
    ("gradcam_vgg.py", "vgg19", [f"block{b}_conv{c}" for b, n in enumerate((2, 2, 4, 4, 4), 1) for c in range(1, n + 1)]),
    ("deconvnet_vgg.py", "vgg16", ["block1_conv2", "block2_conv2", "block3_conv3", "block4_conv3", "block5_conv3"]),
    ("deconvnet_vgg.py", "vgg19", ["block1_conv2", "block2_conv2", "block3_conv4", "block4_conv4", "block5_conv4"]),
    ("deconvnet_inceptionv3.py", "inceptionv3", [f"mixed{number}" for number in range(11)])])
def test_all_stands_for_the_layers_of_the_contract(monkeypatch, script, name, layers):
    assert known_networks(script, monkeypatch)[name].all == layers


def test_dense_layers_can_be_named():
    assert {"fc1", "fc2", "predictions"} <= utils.vgg_network("vgg16", dense=True).widths.keys()


def test_layers_of_one_model_are_listed_alone(without_tensorflow):
    done = without_tensorflow("gradcam_vgg.py", "--list-layers", "--models", "vgg16")
    assert "block5_conv3" in done.out and "block5_conv4" not in done.out


# --- Grad-CAM: the six figures of every network -----------------------------------------------------------------------


SIDES = {  # from the papers: the side of every layer's map that the figure `layers` shows, the last layer last
    "vgg16": {f"block{b}_conv{c}": 448 >> b for b, n in enumerate((2, 2, 3, 3, 3), 1) for c in range(1, n + 1)},
    "vgg19": {f"block{b}_conv{c}": 448 >> b for b, n in enumerate((2, 2, 4, 4, 4), 1) for c in range(1, n + 1)},
    "resnet50": {"conv1_relu": 112} | {f"conv{s}_block{b}_out": 224 >> s for s, n in ((2, 3), (3, 4), (4, 6), (5, 3))
                                       for b in range(1, n + 1)},
    "googlenet": {"Conv2d_1a_7x7": 112, "Conv2d_2b_1x1": 56, "Conv2d_2c_3x3": 56} | {
        f"Mixed_{stage}{letter}": side for stage, letters, side in ((3, "bc", 28), (4, "bcdef", 14), (5, "bc", 7))
        for letter in letters},
}
MEAN = np.array([103.939, 116.779, 123.68])  # of ImageNet, blue first: what Keras takes off for VGG and ResNet50
CLASSES = {"vgg16": [285, 281, 3], "vgg19": [285, 281, 3], "googlenet": [400, 457, 967]}  # resnet50: the default, top4


class Drawn(NamedTuple):
    """A run of all six figures on one photograph."""

    done: Done
    folder: Path
    stem: str
    photo: Path
    more: set  # files of the other photographs of the run


@job
def gradcam_googlenet(cwd):
    halves = np.split(np.asarray(Image.open(HOPPER_COFFEE)), 2, axis=1)
    Image.fromarray(np.concatenate(halves[::-1], axis=1)).save(cwd / "Swapped Halves.PNG")
    done = program("gradcam_googlenet.py", HOPPER_COFFEE, "Swapped Halves.PNG", "--weights", "tiny", "--arrays",
                   "--figures", ",".join(SIX), "--classes", "academic_gown,n02883205,967", "--output", "My Results/here",
                   cwd=cwd)
    return Drawn(done, cwd / "My Results" / "here", "hopper_coffee", HOPPER_COFFEE,
                 names("swapped halves", "googlenet", SIX))


@job
def gradcam_vgg(cwd):
    done = program("gradcam_vgg.py", CAT, "--weights", "random", "--figures", ",".join(SIX), "--kernels", "511,0,7",
                   "--classes", "Egyptian cat,n02123045,3", "--arrays", "--output", "out", cwd=cwd)
    return Drawn(done, cwd / "out", "cat", CAT, set())


@job
def gradcam_resnet50(cwd):
    done = program("gradcam_resnet50.py", CAT, "--weights", "random", "--figures", ",".join(SIX), "--colormap", "turbo",
                   "--arrays", "--output", "out", cwd=cwd)
    return Drawn(done, cwd / "out", "cat", CAT, set())


@pytest.fixture(params=GRADCAM)
def drawn(request, result_of):
    """Each of the three runs in turn, and the networks that it drew."""
    return result_of(request.param.removesuffix(".py")), NETWORKS[request.param]


def read_figure(run, model, figure):
    shared = figure == "layers" and model in ("vgg16", "vgg19")
    return arrays(run.folder / f"{run.stem}_{'vgg' if shared else model}_{figure}.npz")


def classes_of(run, model):
    """The classes that a run was asked for; of the default, the four most probable."""
    logits = read_figure(run, model, "classes")[f"{model}/logits"]
    return CLASSES.get(model) or np.argsort(-logits, kind="stable")[:4].tolist()


def test_gradcam_writes_exactly_the_files_of_the_contract(drawn):
    run, models = drawn
    figures = {model: [figure for figure in SIX if len(models) == 1 or figure != "layers"] for model in models}
    expected = set().union(*(names(run.stem, model, figures[model]) for model in models), run.more)
    expected |= names(run.stem, "vgg", ["layers"]) if len(models) == 2 else set()
    assert listed(run.done, run.folder) == expected
    assert all(name == name.lower() for name in files(run.folder))


def test_gradcam_that_goes_well_is_quiet_and_ends_with_0(drawn):
    run, _ = drawn
    assert run.done.code == 0
    assert_quiet(run.done)


def test_gradcam_pictures_are_whole(drawn):
    for path in drawn[0].folder.glob("*.jpg"):
        assert_picture(path)


@pytest.mark.parametrize("figure", SIX)
def test_gradcam_arrays_have_the_contract_s_keys_and_shapes(drawn, figure):
    run, models = drawn
    expected = {}
    for model in models:
        sides, classes = SIDES[model], classes_of(run, model)
        last, wide = list(sides)[-1], "float32"
        keys = {"input": (wide, (1, 224, 224, 3)), "logits": (wide, (1000,))}
        if figure == "layers":
            keys |= {f"{layer}/{classes[0]}": (wide, (side, side)) for layer, side in sides.items()}
        elif figure == "kernels":
            count = 3 if "vgg" in model else 9  # VGG was asked for three; the default is top9
            keys |= {f"{last}/kernels": (wide, (sides[last], sides[last], count)),
                     f"{last}/kernel_numbers": ("int", (count,))}
        else:
            drawn_classes = classes[:1] if figure == "one_class" else classes
            keys |= {f"{last}/{index}": (wide, (sides[last], sides[last])) for index in drawn_classes}
            keys |= {f"guided/{index}": (wide, (224, 224, 3)) for index in classes} if figure == "guided" else {}
        keys = {f"{model}/{key}": value for key, value in keys.items()}
        if not (figure == "layers" and len(models) == 2):
            assert_holds(read_figure(run, model, figure), keys)
        expected |= keys
    if figure == "layers":
        assert_holds(read_figure(run, models[0], figure), expected)


def test_gradcam_figures_tell_the_same_of_a_class(drawn):
    """One computation serves them all: `negative` reads the same signed map as `classes`, not a second one."""
    run, models = drawn
    for model in models:
        last, classes = list(SIDES[model])[-1], classes_of(run, model)
        base = read_figure(run, model, "classes")
        shown_by = {"negative": classes, "guided": classes, "one_class": classes[:1], "layers": classes[:1]}
        for figure, shown in shown_by.items():
            other = read_figure(run, model, figure)
            for key in (f"{model}/input", f"{model}/logits", *(f"{model}/{last}/{index}" for index in shown)):
                np.testing.assert_allclose(other[key], base[key], rtol=1e-4, atol=1e-4 * np.abs(base[key]).max())


def test_kernels_are_those_asked_for_or_the_strongest(drawn):
    run, models = drawn
    for model in models:
        stored = read_figure(run, model, "kernels")
        last = f"{model}/{list(SIDES[model])[-1]}"
        numbers, strengths = stored[f"{last}/kernel_numbers"].tolist(), stored[f"{last}/kernels"].max(axis=(0, 1))
        if "vgg" in model:
            assert numbers == [511, 0, 7]
        else:
            assert len(set(numbers)) == 9 and strengths[-1] > 0 and (np.diff(strengths) <= 0).all()


def assert_is_photo(x, photo, back):
    """An input is the whole photograph, resized: undone by `back`, its 8x8 blocks have the colours of the photograph's."""
    with Image.open(photo) as image:
        blocks = np.asarray(image.convert("RGB").resize((8, 8), Image.Resampling.BOX), float)
    found = cv2.resize(back(x[0].astype(float)), (8, 8), interpolation=cv2.INTER_AREA)
    assert np.abs(found - blocks).max() < 8 and np.abs(found - blocks).mean() < 2


def test_gradcam_inputs_are_the_photograph_preprocessed_for_the_network(drawn):
    run, models = drawn
    for model in models:
        back = (lambda x: (x + 1) * 127.5) if model == "googlenet" else (lambda x: (x + MEAN)[..., ::-1])
        assert_is_photo(read_figure(run, model, "classes")[f"{model}/input"], run.photo, back)


@pytest.mark.parametrize("stem, left", [("hopper_coffee", True), ("swapped halves", False)])
@pytest.mark.parametrize("index, hopper", [(400, True), (457, True), (967, False)], ids=["gown", "bow tie", "espresso"])
def test_heat_lies_where_the_object_is(result_of, stem, left, index, hopper):
    stored = arrays(result_of("gradcam_googlenet").folder / f"{stem}_googlenet_classes.npz")
    heat = cv2.resize(np.maximum(stored[f"googlenet/Mixed_5c/{index}"], 0), (224, 224), interpolation=cv2.INTER_LINEAR)
    half = heat[:, :112] if hopper == left else heat[:, 112:]
    assert half.sum() >= 0.85 * heat.sum() > 0


# --- constants, other people's settings, several photographs ----------------------------------------------------------


@job
def stranger(folder):
    """Constants in place of options, another backend and channel order in the settings, one photograph broken."""
    cwd, home = folder / "elsewhere", folder / "keras"
    cwd.mkdir()
    home.mkdir()
    (home / "keras.json").write_text(json.dumps({"epsilon": 1e-7, "backend": "jax", "image_data_format": "channels_first"}))
    script = write_script(folder / "clone of the project", "gradcam_googlenet.py", IMAGES=["photos"], WEIGHTS="tiny",
                          FIGURES=["classes"], ARRAYS=True, CLASSES=[400, "Bow Tie", "n07920052"])
    photos = script.parent / "photos"
    for name, source in (("a/cat.jpg", CAT), ("b/cat.jpg", ROCKET), ("hopper_coffee.jpg", HOPPER_COFFEE)):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, photos / name)
    (photos / "b" / "broken.jpg").write_bytes(CAT.read_bytes()[:5000])
    (photos / "notes.txt").write_text("not asked for")
    return program(script, cwd=cwd, KERAS_BACKEND="jax", KERAS_HOME=home), script.parent / "results"


@pytest.fixture
def strangers_run(result_of):
    return result_of("stranger")


def test_results_lie_beside_the_script_when_constants_say_where(strangers_run):
    done, results = strangers_run
    assert files(done.cwd) == [] and results.is_dir()
    assert listed(done, results)


def test_an_unreadable_photograph_of_several_is_named_skipped_and_makes_the_code_1(strangers_run):
    done, _ = strangers_run
    assert done.code == 1
    assert len([line for line in done.err if "broken.jpg" in line]) == 1
    assert not [line for line in done.err if "notes.txt" in line or "cat.jpg" in line]
    assert_quiet(done)


def test_photographs_of_one_stem_from_different_folders_get_files_of_their_own(strangers_run):
    done, _ = strangers_run
    pictures = [done.cwd / line for line in done.out if line.endswith("_googlenet_classes.jpg")]
    assert len(set(pictures)) == 3 and sum("cat" in path.name for path in pictures) == 2
    inputs = [arrays(path.with_suffix(".npz"))["googlenet/input"] for path in pictures]
    for photo in (CAT, ROCKET, HOPPER_COFFEE):  # each of them once
        def shows(x):
            try:
                assert_is_photo(x, photo, lambda x: (x + 1) * 127.5)
            except AssertionError:
                return False
            return True
        assert sum(map(shows, inputs)) == 1


def test_neither_keras_backend_nor_keras_json_changes_a_number(strangers_run, result_of):
    """The same photograph and classes as options, in a plain environment, from the project's own folder."""
    done, _ = strangers_run
    line = next(line for line in done.out if line.endswith("hopper_coffee_googlenet_classes.npz"))
    ours, plain = arrays(done.cwd / line), read_figure(result_of("gradcam_googlenet"), "googlenet", "classes")
    assert ours.keys() == plain.keys()
    for key in plain:
        np.testing.assert_allclose(ours[key], plain[key], rtol=1e-4, atol=1e-4 * np.abs(plain[key]).max())


def test_keras_json_s_floatx_leaves_the_arrays_float32(tmp_path):
    """Keras writes `floatx` into keras.json beside the backend."""
    (tmp_path / "keras.json").write_text(json.dumps({"floatx": "float64"}))
    done = program("gradcam_googlenet.py", CAT, "--weights", "tiny", "--figures", "one_class", "--arrays",
                   "--output", "out", cwd=tmp_path, KERAS_HOME=tmp_path)
    assert done.code == 0, done.err[-1]
    stored = arrays(tmp_path / "out" / "cat_googlenet_one_class.npz")
    assert {value.dtype.name for value in stored.values()} == {"float32"}


def test_no_readable_photograph_of_several_is_an_error(desk):
    before = files(desk)
    photos = ("notes.jpg", "cut.jpg", "gone.jpg")
    done = program("gradcam_googlenet.py", *photos, "--weights", "tiny", "--output", "none", cwd=desk)
    assert done.code == 2 and done.out == []
    assert [name for name in photos if not any(name in line for line in done.err)] == []
    assert sum(line.startswith("error: ") for line in done.err) == 1 and done.err[-1].startswith("error: ")
    assert_quiet(done)
    assert files(desk) == before


@pytest.mark.parametrize("script, weights, says", [
    ("gradcam_googlenet.py", "notes.jpg", ["notes.jpg"]),  # no weights at all
    ("gradcam_vgg.py", "imagenet", ["vgg16_weights", "https://", "models", "random"])])  # no network, nothing in the cache
def test_weights_that_cannot_be_had_or_do_not_fit_are_told_in_one_line(desk, tmp_path, script, weights, says):
    before = files(desk)
    closed = "http://127.0.0.1:9"  # the port that discards: nobody listens
    done = program(script, CAT, "--weights", weights, "--output", "out", cwd=desk, KERAS_HOME=tmp_path,
                   http_proxy=closed, https_proxy=closed, HTTPS_PROXY=closed, no_proxy="", NO_PROXY="")
    line = done._replace(err=[line for line in done.err if not line.startswith("Downloading ")]).error()
    assert done.code == 2 and [word for word in says if word not in line] == []
    assert files(desk) == before and files(tmp_path) in ([], ["keras.json"])


# --- DeconvNet --------------------------------------------------------------------------------------------------------


class Network(NamedTuple):
    """What the DeconvNet runs below draw."""

    script: str
    side: int  # of the input
    layers: str  # of `blocks`; the other figures draw the last
    mode: str


DECONV = {
    "vgg16": Network("deconvnet_vgg.py", 224, "block1_conv2,block2_conv2,block3_conv3,block4_conv3,block5_conv3", "max"),
    "vgg19": Network("deconvnet_vgg.py", 224, "block1_conv2,block2_conv2,block3_conv4,block4_conv4,block5_conv4", "max"),
    "inceptionv3": Network("deconvnet_inceptionv3.py", 299, "mixed0,mixed9", "all")}
ONE_PHOTO = ("--figures", "kernels,blocks,comparison", "--kernels", "top2",
             "--weights", "random", "--arrays", "--output", "out")


@job
def deconvnet_vgg(cwd):
    return program("deconvnet_vgg.py", CAT, *ONE_PHOTO, cwd=cwd)


@job
def deconvnet_inceptionv3(cwd):
    _, _, layers, mode = DECONV["inceptionv3"]
    return program("deconvnet_inceptionv3.py", CAT, "--layers", layers, "--mode", mode, *ONE_PHOTO, cwd=cwd)


@pytest.fixture(params=DECONV)
def one_photo(request, result_of):
    """(network, the run in which its script drew kernels, blocks and comparison of one photograph)"""
    return request.param, result_of(DECONV[request.param].script.removesuffix(".py"))


@pytest.mark.parametrize("script", DECONVNET)
def test_deconvnet_writes_the_files_of_the_contract_and_is_quiet(result_of, script):
    done = result_of(script.removesuffix(".py"))
    assert done.code == 0
    assert listed(done, done.cwd / "out") == set().union(
        *(names("cat", model, ("kernels", "blocks", "comparison")) for model in NETWORKS[script]))
    assert_quiet(done)
    for path in (done.cwd / "out").glob("*.jpg"):
        assert_picture(path)


@pytest.mark.parametrize("figure", ["kernels", "blocks", "comparison"])
def test_deconvnet_arrays_have_the_contract_s_keys_and_shapes(one_photo, figure):
    model, done = one_photo
    _, side, layers, _ = DECONV[model]
    stored = arrays(done.cwd / "out" / f"cat_{model}_{figure}.npz")
    projections = [key for key in stored if re.fullmatch(rf"{model}/\w+/\d+", key)]
    assert_holds(stored, {f"{model}/input": ("float32", (1, side, side, 3))}
                 | {key: ("float32", (side, side, 3)) for key in projections})
    layers = layers.split(",")
    per_layer = [sum(key.split("/")[1] == layer for key in projections) for layer in layers]
    assert per_layer == ([9] * len(layers) if figure == "blocks" else [0] * (len(layers) - 1) + [2])
    assert len(projections) == sum(per_layer)
    assert all(stored[key].any() for key in projections)  # the strongest kernels are not silent


def test_kernels_and_comparison_show_the_same_projection(one_photo):
    """The comparison's way of the mode asked for is what `kernels` draws; its other ways are others."""
    model, done = one_photo
    kernels, comparison = (arrays(done.cwd / "out" / f"cat_{model}_{figure}.npz") for figure in ("kernels", "comparison"))
    for key in (key for key in kernels if re.fullmatch(rf"{model}/\w+/\d+", key)):
        ways = {way: comparison[way] for way in comparison if way.startswith(f"{key}/")}
        assert len(ways) == 4
        same = [way for way, value in ways.items() if np.abs(value - kernels[key]).max() < 1e-3 * np.abs(value).max()]
        assert same == [way for way in ways if DECONV[model].mode in way]


def test_deconvnet_inputs_are_the_photograph_preprocessed_for_the_network(one_photo):
    model, done = one_photo
    back = (lambda x: (x + 1) * 127.5) if model == "inceptionv3" else (lambda x: (x + MEAN)[..., ::-1])
    assert_is_photo(arrays(done.cwd / "out" / f"cat_{model}_kernels.npz")[f"{model}/input"], CAT, back)


CONTRASTS = [55, 20, 90, 13, 70, 100, 34, 62, 27, 80, 41, 48]  # of a dozen photographs, in the order of their names
BROKEN = 4  # which comes after the fourth of them


def contrasts(folder, grey):
    """A dozen pictures of one pattern at different contrasts around what the network takes for grey, and a broken file.

    Untrained networks have no biases: what they answer grows with the contrast, so that the strongest are known.
    """
    folder.mkdir()
    pattern = np.random.default_rng(0).uniform(-1, 1, (7, 7, 3)).astype(np.float32)
    pattern = np.clip(cv2.resize(pattern, (112, 112), interpolation=cv2.INTER_CUBIC), -1, 1)
    for place, contrast in enumerate(CONTRASTS):
        Image.fromarray(np.uint8(np.round(grey + contrast * pattern))).save(folder / f"p{place:02}.png")
    (folder / f"p{BROKEN - 1:02}x.png").write_bytes(b"broken")
    return folder


STRONGEST = [f"p{place:02}" for place in np.argsort(-np.array(CONTRASTS))[:9]]


class Scan(NamedTuple):
    """A run over the photographs of `contrasts`."""

    done: Done
    group: str  # what figures over several photographs are called
    model: str
    layer: str
    side: int
    figures: tuple

    def stored(self, figure):
        return arrays(self.done.cwd / "out" / f"{self.group}_{self.model}_{figure}.npz")

    def kernels(self, stored):
        """The kernels drawn, as they stand in the keys."""
        found = {key.split("/")[2] for key in stored if key.startswith(f"{self.model}/{self.layer}/")}
        assert len(found) == 2
        return found


TOP_TWO = ("--weights", "random", "--kernels", "top2", "--arrays", "--output", "out")


@job
def folder(cwd):
    """VGG16: a folder, comparison and top9."""
    contrasts(cwd / "My Photos", MEAN[::-1])
    figures, layer = ("comparison", "top9"), "block2_conv2"
    done = program("deconvnet_vgg.py", "My Photos", "--models", "vgg16", "--figures", ",".join(figures), "--layers", layer,
                   *TOP_TWO, cwd=cwd)
    return Scan(done, "my photos", "vgg16", layer, 224, figures)


@job
def several_files(cwd):
    """InceptionV3: files, top9, which then reads and skips by itself."""
    photos = sorted(contrasts(cwd / "photos", np.full(3, 127.5)).iterdir())
    done = program("deconvnet_inceptionv3.py", *photos, "--figures", "top9", "--layers", "mixed0", *TOP_TWO, cwd=cwd)
    return Scan(done, "p00_and_12_more", "inceptionv3", "mixed0", 299, ("top9",))


@pytest.fixture(params=["folder", "several_files"])
def scan(request, result_of):
    return result_of(request.param)


def test_figures_over_several_photographs_bear_the_folder_s_name_or_the_first_stem(scan):
    assert listed(scan.done, scan.done.cwd / "out") == names(scan.group, scan.model, scan.figures)
    for path in (scan.done.cwd / "out").glob("*.jpg"):
        assert_picture(path)


def test_a_broken_file_of_the_folder_is_named_once_and_makes_the_code_1(scan):
    assert scan.done.code == 1
    assert len([line for line in scan.done.err if f"p{BROKEN - 1:02}x.png" in line]) == 1
    assert_quiet(scan.done)


def test_top9_finds_the_nine_strongest_of_the_folder_in_order(scan):
    stored = scan.stored("top9")
    for kernel in scan.kernels(stored):
        key = f"{scan.model}/{scan.layer}/{kernel}"
        assert [Path(path).stem for path in stored[f"{key}/photographs"]] == STRONGEST
        assert all((scan.done.cwd / path).is_file() for path in stored[f"{key}/photographs"])
        strengths = stored[f"{key}/activations"]
        assert strengths.dtype == np.float32 and strengths[-1] > 0
        # They are proportional to the contrast, but for the rounding of pixels and of the mean.
        np.testing.assert_allclose(strengths / strengths[0], np.sort(CONTRASTS)[:-10:-1] / 100, rtol=0.1)


def test_top9_keeps_a_projection_of_each_of_the_nine(scan):
    stored = scan.stored("top9")
    for kernel in scan.kernels(stored):
        for stem in STRONGEST:
            projection = stored[f"{scan.model}/{scan.layer}/{kernel}/{stem}"]
            assert projection.dtype == np.float32 and projection.shape == (scan.side, scan.side, 3) and projection.any()


@pytest.mark.parametrize("scan", ["folder"], indirect=True)
def test_comparison_of_several_photographs_has_every_kernel_of_every_photograph(scan):
    stored = scan.stored("comparison")
    stems = [key.rpartition("/")[2] for key in stored if key.startswith(f"{scan.model}/input/")]
    assert len(stems) > 1
    assert_holds(stored, {f"{scan.model}/input/{stem}": ("float32", (1, scan.side, scan.side, 3)) for stem in stems}
                 | {f"{scan.model}/{scan.layer}/{kernel}/{stem}": ("float32", (scan.side, scan.side, 3))
                    for kernel in scan.kernels(stored) for stem in stems})


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------


ctrl_c = pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to one process")


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A folder of many photographs, all the same small one but for two broken files, the first and number 200."""
    one, folder = tmp_path_factory.mktemp("one") / "one.png", tmp_path_factory.mktemp("many") / "many"
    folder.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(one)
    for number in range(5000):
        if number in (0, 200):
            (folder / f"{number:05}.png").write_bytes(b"broken")
        else:
            os.link(one, folder / f"{number:05}.png")
    return folder


def assert_stopped(done):
    assert done.code == 130
    assert "Traceback" not in "\n".join(done.err) and not [line for line in done.err if line.startswith("error:")]
    assert_quiet(done)


@ctrl_c
def test_ctrl_c_during_grad_cam_leaves_whole_files_only(many, tmp_path):
    done = interrupted("gradcam_googlenet.py", many, "--weights", "tiny", "--figures", "classes", "--arrays",
                       "--output", "out", cwd=tmp_path, stream="stdout",
                       when=lambda line: line.endswith("00002_googlenet_classes.npz"))
    assert_stopped(done)
    assert 4 <= len(listed(done, tmp_path / "out")) < 100
    for path in (tmp_path / "out").iterdir():
        assert_picture(path) if path.suffix == ".jpg" else arrays(path)


def interrupted_scan(many, cwd, name):
    """top9 over the folder, interrupted when the broken file of that name has been named: when it is read, that is."""
    return interrupted("deconvnet_vgg.py", many, "--weights", "random", "--models", "vgg16", "--figures", "top9",
                       "--layers", "block1_conv1", "--kernels", "0", "--arrays", "--output", "out", cwd=cwd, stream="stderr",
                       when=lambda line: line.startswith("skipped") and name in line)


@ctrl_c
def test_ctrl_c_during_a_scan_draws_what_has_been_seen_and_says_how_much(many, tmp_path):
    done = interrupted_scan(many, tmp_path, "00200.png")  # by then whole batches have gone before
    assert_stopped(done)
    said = [re.search(r"\b(\d+) of (\d+)\b", line) for line in done.err]
    assert [0 < int(match[1]) < int(match[2]) == 5000 for match in said if match] == [True], done.err
    assert listed(done, tmp_path / "out") == names("many", "vgg16", ["top9"])
    assert_picture(tmp_path / "out" / "many_vgg16_top9.jpg")
    assert arrays(tmp_path / "out" / "many_vgg16_top9.npz")["vgg16/block1_conv1/0/photographs"].shape == (9,)


@ctrl_c
def test_ctrl_c_before_the_scan_has_seen_anything_is_no_error(many, tmp_path):
    done = interrupted_scan(many, tmp_path, "00000.png")
    assert_stopped(done)
    assert listed(done, tmp_path / "out") <= names("many", "vgg16", ["top9"])


# --- the scan itself, on photographs whose strongest are known --------------------------------------------------------


GOOD = 41
RANKS = np.random.default_rng(0).permuted(np.tile(np.arange(GOOD), (3, 1)), axis=1)  # of each photograph, in each channel
BROKEN_PLACES = [0, 5, 6, 21, 45]  # the first, the last, two in a row, and one more


def one_bright_pixel_each(folder):
    """The paths of black photographs with one bright pixel, every channel as bright as its rank, and of broken files."""
    paths, good = [], iter(range(GOOD))
    for place in range(GOOD + len(BROKEN_PLACES)):
        paths.append(folder / f"{place:02}.png")
        if place in BROKEN_PLACES:
            paths[-1].write_bytes(b"broken")
            continue
        number = next(good)
        picture = np.zeros((6, 5, 3), np.uint8)
        picture[number % 6, number % 5] = 10 + 5 * RANKS[:, number]  # between 10 and 210, never twice
        Image.fromarray(picture).save(paths[-1])
    return paths


def four_kernels():
    """Red, green, blue, and one that never answers; above them a classifier, which the scan does not need."""
    keras = utils.import_keras()
    image = keras.Input((6, 5, 3))
    maps = keras.layers.Conv2D(4, 1, activation="relu", name="conv")(image)
    model = keras.Model(image, keras.layers.Dense(2)(keras.layers.Flatten()(maps)))
    kernels = np.float32([[[[1, 0, 0, -1], [0, 1, 0, -1], [0, 0, 1, -1]]]])
    model.get_layer("conv").set_weights([kernels, np.zeros(4, np.float32)])
    return model


def scan_all(paths, **settings):
    return utils.strongest_photos(four_kernels(), "conv", paths, lambda pixels: np.float32(pixels)[None], **settings)


def assert_nine_strongest(activations, photos, paths):
    good = [place for place in range(len(paths)) if place not in BROKEN_PLACES]
    for kernel in range(3):
        expected = np.argsort(-RANKS[kernel])[:9]
        assert [good.index(place) for place in np.asarray(photos)[:, kernel]] == expected.tolist()
        assert np.asarray(activations)[:, kernel].tolist() == (10 + 5 * RANKS[kernel, expected]).tolist()
    # All answer 0 to the last kernel, and so would a picture of zeros in place of a broken one: that must not come in.
    silent = np.asarray(photos)[:, 3].tolist()
    assert len(set(silent)) == 9 and set(silent) <= set(good) and not np.asarray(activations)[:, 3].any()


@pytest.mark.parametrize("batch", [1, 4, 7, 16, 100])
def test_the_nine_strongest_are_found_across_batches_and_broken_files(tmp_path, capfd, batch):
    paths = one_bright_pixel_each(tmp_path)
    found = scan_all(paths, batch=batch)
    assert_nine_strongest(found.activations, found.photos, paths)
    assert (found.seen, found.interrupted) == (GOOD, False)
    assert sorted(found.unreadable) == [paths[place] for place in BROKEN_PLACES]
    err = capfd.readouterr().err
    named = [[path.name in line for line in err.splitlines()].count(True) for path in paths]
    assert named == [place in BROKEN_PLACES for place in range(len(paths))]


def test_fewer_photographs_than_nine_leave_places_empty(tmp_path):
    paths = one_bright_pixel_each(tmp_path)[1:5]
    found = scan_all(paths)
    assert found.photos.shape == (9, 4) and (found.photos[4:] == -1).all() and (found.activations[4:] == -np.inf).all()
    assert (np.sort(found.photos[:4], axis=0).T == [0, 1, 2, 3]).all()


def test_nothing_readable_is_an_error(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"broken")
    with pytest.raises(utils.UserError):
        scan_all([tmp_path / "broken.png"])


@pytest.fixture(scope="module")
def two_devices(tmp_path_factory):
    """The same scan on two devices at once: logical ones must be made before TensorFlow starts, so in a new process."""
    folder = tmp_path_factory.mktemp("two devices")
    paths = one_bright_pixel_each(folder)
    code = """if True:
        import json, sys
        from pathlib import Path
        sys.path[:0] = sys.argv[1:3]
        import tensorflow as tf
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        import test_programs
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        found = test_programs.scan_all(sorted(Path(sys.argv[3]).iterdir()), batch=int(sys.argv[4]), strategy=strategy)
        print(json.dumps([strategy.num_replicas_in_sync, found.activations.tolist(), found.photos.tolist(), found.seen,
                          sorted(map(str, found.unreadable))]))
    """
    done = subprocess.run([sys.executable, "-c", code, CLONE, CLONE / "tests", folder, "3"],  # 3: never halves evenly
                          env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return paths, json.loads(done.stdout.splitlines()[-1])


def test_two_devices_find_the_same(two_devices):
    paths, (replicas, activations, photos, seen, unreadable) = two_devices
    assert (replicas, seen, unreadable) == (2, GOOD, [str(paths[place]) for place in BROKEN_PLACES])
    assert_nine_strongest(activations, photos, paths)
