"""The five scripts as programs: what a person types, what lands on disk, what is said, and the exit code.

A process costs seconds for TensorFlow alone. So there are few of them, two at a time, each looked at by several tests;
most draw with a small network saved here. Wrong words are tried where a TensorFlow that must not be imported stands in
for the real one. Maps are compared with a tape on the same network.
"""

import importlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

import utils

CLONE = Path(__file__).resolve().parent.parent
CAT, HOPPER_COFFEE = CLONE / "Image" / "cat.jpg", CLONE / "Image" / "hopper_coffee.jpg"
SCRIPTS = (
    "gradcam_vgg",
    "gradcam_resnet50",
    "gradcam_googlenet",
    "deconvnet_vgg",
    "deconvnet_inceptionv3",
)
CHATTER = re.compile(
    r"^[IWEF]\d{4}\b|^\d{4}-\d\d-\d\d|warning|onednn|cuda|absl|cpu_feature_guard|rebuild tensorflow"
    r"|site-packages|traceback|retracing|font cache|exception ignored",
    re.IGNORECASE,
)


# --- how a program is run ---------------------------------------------------------------------------------------------


class Done(NamedTuple):
    """A program that has ended, and the folder in which it ran."""

    code: int
    out: list
    err: list
    cwd: Path

    def files(self, folder="results"):
        """The names in the output folder, hidden ones too: exactly those that stdout lists, one a line."""
        names = sorted(path.name for path in (self.cwd / folder).iterdir())
        assert sorted(self.out) == [f"{folder}/{name}" for name in names]
        assert not [line for line in self.err if CHATTER.search(line)]
        return set(names)

    def arrays(self, name):
        with np.load(self.cwd / "results" / f"{name}.npz", allow_pickle=False) as stored:
            return dict(stored)

    def error(self):
        """The one line on stderr of a program that did nothing."""
        assert (self.code, self.out, [line[:7] for line in self.err]) == (2, [], ["error: "]), (
            "\n".join(self.err)
        )
        return self.err[0]


def start(script, *words, cwd, **env):
    """A script as a person's shell starts it: without what the tests have set for TensorFlow in this process."""
    ours = ("TF_", "KERAS_", "PYTHON", "COLUMNS")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)} | env
    return subprocess.Popen(
        [sys.executable, CLONE / f"{script}.py", *map(str, words)],
        cwd=cwd,
        env=env,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def program(script, *words, cwd, **env):
    with start(script, *words, cwd=cwd, **env) as process:
        out, err = process.communicate(timeout=400)
    return Done(process.returncode, out.splitlines(), err.splitlines(), cwd)


def assert_picture(path):
    """A whole picture that shows something, of a size that a screen shows."""
    if path.suffix == ".pdf":
        data = path.read_bytes()
        assert data.startswith(b"%PDF") and data.rstrip().endswith(b"%%EOF") and b"/Image" in data
        return
    with Image.open(path) as image:
        assert image.format == {".jpg": "JPEG", ".png": "PNG"}[path.suffix]
        assert 300 <= max(image.size) <= 4000 and np.ptp(np.asarray(image.convert("RGB"))) > 200


# --- wrong words: one line, code 2, no file, no TensorFlow ------------------------------------------------------------


IMPORTED = 99


@pytest.fixture(scope="module")
def without_tensorflow(tmp_path_factory):
    """Run a script; it ends at once, with the code IMPORTED, where it imports TensorFlow."""
    trap, cwd = tmp_path_factory.mktemp("trap"), tmp_path_factory.mktemp("desk")
    (trap / "tensorflow").mkdir()
    (trap / "tensorflow" / "__init__.py").write_text(f"import os\nos._exit({IMPORTED})\n")
    (cwd / "taken").write_text("a file")
    (cwd / "cut.jpg").write_bytes(CAT.read_bytes()[:9000])
    (cwd / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    return lambda script, *words: program(script, *words, cwd=cwd, PYTHONPATH=str(trap))


@pytest.mark.parametrize(
    "script, words, says",
    [
        *((script, ["--figures", "clases,blocs"], "'clases'") for script in SCRIPTS),
        ("gradcam_vgg", ["--classes", "egyptain cat"], "egyptian cat"),
        ("gradcam_googlenet", ["cut.jpg"], "cut.jpg"),
        ("gradcam_resnet50", ["--classes", "crane"], "134 or 517"),
        ("deconvnet_vgg", ["phone.heic"], "phone.heic"),
        ("gradcam_googlenet", ["HTTPS://a.org//b.jpg"], "HTTPS://a.org//b.jpg"),
        ("gradcam_vgg", ["--kernels", "8-"], "8-"),
        ("deconvnet_inceptionv3", ["nowhere/*.jpg"], "nowhere/*.jpg"),
        ("deconvnet_vgg", ["--weights", "no.h5"], "no.h5"),
        ("gradcam_vgg", ["--output", "taken"], "taken"),
        ("gradcam_vgg", ["--output", "taken/below"], "taken/below"),
    ],
)
def test_what_is_wrong_is_told_before_tensorflow_is_imported(
    without_tensorflow, script, words, says
):
    done = without_tensorflow(script, *words)
    assert says in done.error()
    assert not (done.cwd / "results").exists()


def test_right_words_reach_tensorflow_and_help_does_without(without_tensorflow):
    """The proof that the trap of the test above catches."""
    done = without_tensorflow(
        "gradcam_vgg", CAT, "--classes", "Egyptian cat", "--output", "out", HOPPER_COFFEE
    )
    assert (done.code, done.out, done.err) == (IMPORTED, [], [])
    done = without_tensorflow("deconvnet_vgg", "--help")
    assert (done.code, done.err) == (0, []) and "usage: deconvnet_vgg.py" in done.out[0]


def test_constants_are_changed_at_the_top_of_a_copy(without_tensorflow, tmp_path):
    shutil.copy(CLONE / "utils.py", tmp_path)
    shutil.copytree(CLONE / "Image", tmp_path / "Image")
    text = (CLONE / "deconvnet_vgg.py").read_text(encoding="utf-8")
    for value, code in {
        "range(9)": IMPORTED,
        '"0-8"': IMPORTED,
        "[12, 77]": IMPORTED,
        "[1.5]": 2,
    }.items():
        changed = re.sub(r"^KERNELS = \S+ ", f"KERNELS = {value} ", text, flags=re.MULTILINE)
        assert changed != text
        (tmp_path / "mine.py").write_text(changed, encoding="utf-8")
        done = without_tensorflow(tmp_path / "mine", "--output", "out")
        assert done.code == code and ("1.5" in "".join(done.err)) == (code == 2)


# --- programs that draw -----------------------------------------------------------------------------------------------


NAMES = [
    "ring",
    "disc",
    "the class whose name is by far the longest of all the five names in this list of labels",
    "Old_English_sheepdog,_bobtail_and_several_other_names_of_it_in_a_row",
    "nothing",
]


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with a small network, the names of its classes and photographs; nothing speaks for its last class."""
    import keras

    desk, layers = tmp_path_factory.mktemp("desk"), keras.layers
    keras.utils.set_random_seed(0)
    image = x = keras.Input((32, 32, 3))
    for number, width in enumerate((8, 12, 16), 1):
        x = layers.MaxPooling2D()(
            layers.Conv2D(width, 3, padding="same", activation="relu", name=f"conv{number}")(x)
        )
    model = keras.Model(image, layers.Dense(5, "softmax")(layers.GlobalAveragePooling2D()(x)))
    kernel, bias = model.layers[-1].get_weights()
    kernel[:, 4] = -0.1
    model.layers[-1].set_weights([kernel, bias])
    model.save(desk / "mine.keras")
    (desk / "names.txt").write_text("\n".join(NAMES))
    for name in (
        "photos/p1.png",
        "photos/p2.png",
        "photos/sub/P2.png",
        "pair/p3.png",
        "pair/p4.png",
    ):
        save_photo(desk / name)
    (desk / "photos" / "cut.jpg").write_bytes(CAT.read_bytes()[:9000])
    (desk / "photos" / "a phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (desk / "broken").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (desk / "broken" / name).write_bytes(b"broken")
    for count in (5, 60):
        for number in range(count):
            save_photo(desk / f"of{count}" / f"{number:02}.jpg", size=(1200, 800))
    return desk


def save_photo(path, seed=0, size=(115, 57)):
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng([seed, *path.stem.encode()]).integers(
        0, 256, (4, 6, 3), dtype=np.uint8
    )
    Image.fromarray(small).resize(size).save(path)


SAVED = ("--weights", "../mine.keras", "--preprocess", "unit", "--labels", "../names.txt")
JOBS = {  # a name and what is typed; where the desk is the folder above
    "googlenet": [
        "gradcam_googlenet",
        HOPPER_COFFEE,
        "--weights",
        "tiny",
        "--figures",
        "all",
        "--arrays",
        "--classes",
        "espresso,n02883205",
        "--kernels",
        "511,0,7",
    ],
    "vgg": [
        "gradcam_vgg",
        CAT,
        "--weights",
        "random",
        "--figures",
        "layers,one_class",
        "--classes",
        "285",
        "--arrays",
    ],
    "resnet50": [
        "gradcam_resnet50",
        CAT,
        "--weights",
        "random",
        "--figures",
        "layers,classes,negative,one_class,kernels,guided,overlay",
        "--format",
        "png",
        "--seed",
        "3",
    ],
    "tiny": [
        "deconvnet_vgg",
        CAT,
        "--weights",
        "tiny",
        "--arrays",
        "--kernels",
        "top2",
        "--models",
        "vgg16",
    ],
    "inceptionv3": [
        "deconvnet_inceptionv3",
        HOPPER_COFFEE,
        "--weights",
        "random",
        "--figures",
        "all",
        "--kernels",
        "top2",
        "--stride",
        "50",
        "--format",
        "pdf",
        "--rules",
        "guided",
    ],
    "folder": [
        "gradcam_vgg",
        "../photos",
        *SAVED,
        "--figures",
        "all",
        "--arrays",
        "--classes",
        "ring,4",
    ],
    "kernels": [
        "deconvnet_vgg",
        "../photos",
        *SAVED,
        "--figures",
        "all",
        "--arrays",
        "--mode",
        "max",
        "--kernels",
        "3,0-1",
        "--layers",
        "conv2",
    ],
    "comparison": ["deconvnet_vgg", "../photos", *SAVED, "--figures", "comparison"],
    "none": ["deconvnet_inceptionv3", "../broken", *SAVED, "--figures", "top9,comparison"],
    "resnet_layers": ["gradcam_resnet50", "--list-layers"],
    "mine_layers": ["deconvnet_vgg", "--list-layers", *SAVED],
    "conv5": ["gradcam_resnet50", "--weights", "random", "--layers", "conv5"],
    "kernel 16": ["deconvnet_vgg", *SAVED, "--layers", "conv3", "--kernels", "16"],
    "class": ["gradcam_vgg", *SAVED, "--classes", "rign"],
}


def peak_memory(desk, count):
    """What a run over a folder of so many photographs takes at most, in kilobytes."""
    process = start(
        "gradcam_vgg",
        f"of{count}",
        *(word.removeprefix("../") for word in SAVED),
        "--figures",
        "classes",
        "--output",
        f"memory{count}",
        cwd=desk,
    )
    assert len(process.stdout.readlines()) == count
    return os.wait4(process.pid, 0)[2].ru_maxrss


def drawn_twice(desk, cwd):
    """Runs with --skip-existing: everything new, one photograph again, and again what some of is gone or changed."""
    again = [
        *SAVED,
        "--classes",
        "top2",
        "--figures",
        "classes,overlay",
        "--arrays",
        "--skip-existing",
    ]
    for number in range(4):
        save_photo(cwd / "four" / f"q{number}.png")
    yield program("gradcam_vgg", "four", *again, cwd=cwd)
    yield program("gradcam_vgg", "four/q0.png", *again, cwd=cwd)
    for gone in (
        min(cwd.glob("results/q1_mine_overlay_*.jpg")),
        cwd / "results" / "q2_mine_classes.jpg",
    ):
        gone.unlink()  # as a kill leaves them
    save_photo(cwd / "four" / "q3.png", seed=1)
    yield program("gradcam_vgg", "four", *again, cwd=cwd)


def compared_twice(desk, cwd):
    for _ in range(2):
        yield program(
            "deconvnet_vgg",
            "../pair/p3.png",
            *SAVED,
            "--figures",
            "comparison",
            "--skip-existing",
            cwd=cwd,
        )


def ended_early(desk, cwd, how):
    """A run over a folder that something happens to when it has listed its first file."""
    with start("gradcam_vgg", "../of60", *SAVED, "--figures", "classes", cwd=cwd) as process:
        line = process.stdout.readline()
        how(process)
        err = process.stderr.read()
        out = [] if process.stdout.closed else process.stdout.readlines()
    return Done(process.returncode, [line.strip(), *map(str.strip, out)], err.splitlines(), cwd)


@pytest.fixture(scope="module")
def result_of(desk):
    """What a job gives. All are begun at once, two at a time."""
    jobs = {
        name: lambda cwd, words=words: program(*words, cwd=cwd) for name, words in JOBS.items()
    } | {
        "memory": lambda cwd: [peak_memory(desk, count) for count in (5, 60)],
        "skip": lambda cwd: [*drawn_twice(desk, cwd)],
        "skip comparison": lambda cwd: [*compared_twice(desk, cwd)],
        "Ctrl-C": lambda cwd: ended_early(
            desk, cwd, lambda process: process.send_signal(signal.SIGINT)
        ),
        "kill": lambda cwd: ended_early(desk, cwd, subprocess.Popen.kill),
        "head": lambda cwd: ended_early(desk, cwd, lambda process: process.stdout.close()),
    }
    for name in jobs:
        (desk / name).mkdir()
    listening = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # children of the deaf to Ctrl-C are deaf, too
    with ThreadPoolExecutor(2) as pool:
        futures = {name: pool.submit(job, desk / name) for name, job in jobs.items()}
        yield lambda name: futures[name].result()
        pool.shutdown(cancel_futures=True)
    signal.signal(signal.SIGINT, listening)


GRADCAM = "layers classes negative one_class kernels guided trust".split()
DECONVNET = "projections blocks comparison top9 occlusion".split()


def both(*stems):
    return {f"{stem}.{ending}" for stem in stems for ending in ("jpg", "npz")}


WRITTEN = {  # by the contract: OUTPUT/STEM_MODEL_FIGURE, a figure over both VGGs as vgg, over a folder by its name
    "googlenet": both(
        *(
            f"hopper_coffee_googlenet_{figure}"
            for figure in (*GRADCAM, "overlay_967", "overlay_457")
        )
    ),
    "vgg": both("cat_vgg_layers", "cat_vgg16_one_class", "cat_vgg19_one_class"),
    "tiny": both(*(f"cat_vgg16_{figure}" for figure in DECONVNET[:4])),
    "inceptionv3": {f"hopper_coffee_inceptionv3_{figure}.pdf" for figure in DECONVNET},
    "folder": both(
        *(
            f"{stem}_mine_{figure}"
            for stem in ("p1", "p2", "sub_p2_png")
            for figure in (*GRADCAM, "overlay_0", "overlay_4")
        )
    ),
    "kernels": both(
        "photos_mine_comparison",
        "photos_mine_top9",
        *(
            f"{stem}_mine_{figure}"
            for stem in ("p1", "p2", "sub_p2_png")
            for figure in ("projections", "blocks", "occlusion")
        ),
    ),
}


@pytest.mark.parametrize("name", [*WRITTEN, "resnet50"])
def test_a_run_lists_exactly_the_pictures_of_the_contract_quietly(result_of, name):
    done = result_of(name)
    files = done.files()
    if name == "resnet50":  # the default, top4: which four, the logits say
        files = {re.sub(r"overlay_\d{1,3}\.", "overlay.", file) for file in files}
        assert len(done.out) == 10 and files == {
            f"cat_resnet50_{figure}.png" for figure in [*GRADCAM[:6], "overlay"]
        }
    else:
        assert files == WRITTEN[name]
    for path in (done.cwd / "results").glob("*.[jp][pnd]?"):
        if "overlay" not in path.name:
            assert_picture(path)


@pytest.mark.parametrize("name", ["googlenet", "vgg", "tiny", "inceptionv3", "resnet50"])
def test_a_run_that_goes_well_ends_with_0_and_says_nothing(result_of, name):
    assert (result_of(name).code, result_of(name).err) == (0, [])


@pytest.mark.parametrize(
    "name", ["folder", "kernels", "comparison"]
)  # which reads its photographs itself
def test_what_cannot_be_read_in_a_folder_is_named_the_rest_drawn_and_the_code_is_1(result_of, name):
    done = result_of(name)
    assert done.code == 1 and done.out
    for unreadable in ("cut.jpg", "a phone.heic"):
        assert len([line for line in done.err if unreadable in line]) == 1


def test_a_folder_of_which_nothing_can_be_read_is_no_traceback(result_of):
    done = result_of("none")
    assert done.files() == set() and done.code == 2
    assert all(any(name in line for line in done.err) for name in ("a.jpg", "b.jpg"))


# --- the numbers behind the pictures ----------------------------------------------------------------------------------


VGG = {
    number: {
        f"block{b}_conv{c}": 448 >> b
        for b, convolutions in enumerate((2, 2, *[most] * 3), 1)
        for c in range(1, convolutions + 1)
    }
    for number, most in ((16, 3), (19, 4))
}
GOOGLENET = {"Conv2d_1a_7x7": 112, "Conv2d_2b_1x1": 56, "Conv2d_2c_3x3": 56} | {
    f"Mixed_{stage}{letter}": side
    for stage, letters, side in ((3, "bc", 28), (4, "bcdef", 14), (5, "bc", 7))
    for letter in letters
}


def expected_keys():
    """(job, picture): {key: shape}, by the contract's table; the sides of the maps are those of the papers."""
    basic, last = (
        {"googlenet/input": (1, 224, 224, 3), "googlenet/logits": (1000,)},
        "googlenet/Mixed_5c",
    )
    two = basic | {f"{last}/{index}": (7, 7) for index in (967, 457)}
    kernels = {f"{last}/kernels": (7, 7, 3), f"{last}/kernel_numbers": (3,)}
    wanted = {
        "layers": basic
        | {f"googlenet/{layer}/967": (side, side) for layer, side in GOOGLENET.items()},
        "classes": two,
        "negative": two,
        "one_class": basic | {f"{last}/967": (7, 7)},
        "kernels": basic | kernels,
        "guided": two | {f"googlenet/guided/{index}": (224, 224, 3) for index in (967, 457)},
        "overlay_967": {f"{last}/967": (7, 7)},
    }
    for figure, keys in wanted.items():
        yield "googlenet", f"hopper_coffee_googlenet_{figure}", keys
    yield (
        "vgg",
        "cat_vgg_layers",
        {
            f"vgg{n}/{key}": shape
            for n, layers in VGG.items()
            for key, shape in {
                "input": (1, 224, 224, 3),
                "logits": (1000,),
                **{f"{layer}/285": (s, s) for layer, s in layers.items()},
            }.items()
        },
    )
    yield (
        "kernels",
        "p1_mine_projections",
        {"mine/input": (1, 32, 32, 3)}
        | {f"mine/conv2/{kernel}": (32, 32, 3) for kernel in (3, 0, 1)},
    )


@pytest.mark.parametrize(
    "name, picture, keys", [pytest.param(*case, id=case[1]) for case in expected_keys()]
)
def test_arrays_have_the_contract_s_keys_shapes_and_types(result_of, name, picture, keys):
    stored = result_of(name).arrays(picture)
    assert {key: stored[key].shape for key in keys if key in stored} == keys
    for key in keys:
        assert (
            stored[key].dtype.kind == "i"
            if key.endswith("numbers")
            else stored[key].dtype == np.float32
        )
        assert np.isfinite(stored[key]).all()
    more = [
        key
        for key in stored
        if re.fullmatch(r"\w+/\w+/\d+|\w+/guided/\d+", key) and key not in keys
    ]
    assert not more  # of layers, classes and kernels that nobody asked for
    if picture.endswith("_kernels"):
        assert stored["googlenet/Mixed_5c/kernel_numbers"].tolist() == [511, 0, 7]


def test_arrays_of_deconvnet_hold_nine_kernels_of_every_block(result_of):
    stored = result_of("tiny").arrays("cat_vgg16_blocks")
    projections = [key for key in stored if re.fullmatch(r"vgg16/block\d_conv\d/\d+", key)]
    assert sorted(key.split("/")[1] for key in projections) == sorted(
        ["block1_conv2", "block2_conv2", "block3_conv3", "block4_conv3", "block5_conv3"] * 9
    )
    assert all(stored[key].shape == (224, 224, 3) and stored[key].any() for key in projections)


def test_the_projection_stored_is_that_of_the_mode_asked_for(result_of):
    """Conv2 sees at most 8 of 32 pixels: two 3 x 3 convolutions around a pooling; the whole map sees all."""
    stored = result_of("kernels").arrays("p1_mine_projections")
    for kernel in (3, 0, 1):
        rows, columns = np.nonzero(stored[f"mine/conv2/{kernel}"].any(axis=-1))
        assert rows.size == 0 or max(np.ptp(rows), np.ptp(columns)) < 8
    assert any(
        np.abs(value).any() and "all" in key for key, value in stored.items()
    )  # and the other is there, too


@pytest.mark.parametrize(
    "name, picture, photo, back",
    [
        ("googlenet", "hopper_coffee_googlenet_classes", HOPPER_COFFEE, lambda x: (x + 1) * 127.5),
        ("vgg", "cat_vgg19_one_class", CAT, lambda x: (x + [103.939, 116.779, 123.68])[..., ::-1]),
    ],
)  # BGR less the mean
def test_the_input_stored_is_the_whole_photograph_as_the_network_wants_it(
    result_of, name, picture, photo, back
):
    (x,) = [
        back(value[0])
        for key, value in result_of(name).arrays(picture).items()
        if key.endswith("/input")
    ]
    expected = np.asarray(
        Image.open(photo).convert("RGB").resize((224, 224), Image.Resampling.BOX), float
    )
    assert np.abs(x - expected).mean() < 4 and -0.01 <= x.min() and x.max() <= 255.01


def tape_cam(model, layer, x, index):
    """Grad-CAM by the usual recipe, of a network that ends in pooling and one dense layer: (map, logits)."""
    import keras
    import tensorflow as tf

    network = keras.Model(model.inputs, [model.get_layer(layer).output, model.layers[-2].output])
    kernel, bias = model.layers[-1].get_weights()
    with tf.GradientTape() as tape:
        maps, pooled = network(x)
        logits = pooled @ kernel + bias
        score = logits[0, index]
    alpha = tf.reduce_mean(tape.gradient(score, maps), axis=(1, 2), keepdims=True)
    return tf.reduce_sum(alpha * maps, axis=-1)[0].numpy(), logits[0].numpy()


@pytest.mark.parametrize(
    "name, model, stem, layers, index",
    [
        ("googlenet", "googlenet", "hopper_coffee", ["Conv2d_2c_3x3", "Mixed_4b", "Mixed_5c"], 967),
        ("folder", "mine", "sub_p2_png", ["conv1", "conv2", "conv3"], 0),
    ],
)
def test_maps_stored_are_those_of_an_independent_tape(
    result_of, desk, name, model, stem, layers, index
):
    import keras

    stored = result_of(name).arrays(f"{stem}_{model}_layers")
    network = (
        importlib.import_module("gradcam_googlenet").build("tiny")
        if name == "googlenet"
        else keras.saving.load_model(desk / "mine.keras")
    )
    for layer in layers:
        cam, logits = tape_cam(network, layer, stored[f"{model}/input"], index)
        found = stored[f"{model}/{layer}/{index}"]
        np.testing.assert_allclose(
            found, cam, rtol=0, atol=1e-3 * np.abs(cam).max()
        )  # oneDNN rounds
        np.testing.assert_allclose(stored[f"{model}/logits"], logits, rtol=1e-4, atol=1e-4)


# --- what a picture carries, and --skip-existing ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, picture, words",
    [
        (
            "googlenet",
            "hopper_coffee_googlenet_guided.jpg",
            "gradcam_googlenet hopper_coffee.jpg tiny guided jet 967 457",
        ),
        (
            "resnet50",
            "cat_resnet50_layers.png",
            "gradcam_resnet50 cat.jpg random layers jet top4 caffe gradcam",
        ),
        (
            "inceptionv3",
            "hopper_coffee_inceptionv3_top9.pdf",
            "deconvnet_inceptionv3 hopper_coffee.jpg random guided tf",
        ),
        ("tiny", "cat_vgg16_blocks.jpg", "deconvnet_vgg cat.jpg tiny blocks deconvnet vgg16"),
    ],
)
def test_a_picture_tells_what_it_was_drawn_with(result_of, name, picture, words):
    path = result_of(name).cwd / "results" / picture
    if path.suffix == ".pdf":
        about = re.search(rb"/Subject \((.*?)\)\n", path.read_bytes())[1].decode()
    else:
        with Image.open(path) as image:
            about = image.info.get("Subject") or image.info["comment"].decode()
    settings = json.JSONDecoder().raw_decode(about)[0]
    assert {
        "script",
        "weights",
        "layers",
        "colormap",
        "seed",
        "preprocess",
        "kernels",
    } <= settings.keys()
    assert all(word in about for word in words.split()), about


def test_overlays_are_the_photograph_at_its_own_size_with_colours(result_of, desk):
    for done, name, path in (
        (result_of("googlenet"), "hopper_coffee_googlenet_overlay_967.jpg", HOPPER_COFFEE),
        (result_of("folder"), "p1_mine_overlay_0.jpg", desk / "photos" / "p1.png"),
    ):
        with Image.open(done.cwd / "results" / name) as image, Image.open(path) as photo:
            assert image.size == photo.size
            assert (
                5
                < np.abs(np.asarray(image, float) - np.asarray(photo.convert("RGB"), float)).mean()
                < 120
            )


def test_skip_existing_draws_what_is_not_there_and_counts_the_rest(result_of):
    first, single, third = result_of("skip")
    assert (first.code, single.code, third.code) == (0, 0, 0)
    assert len([line for line in first.out if line.endswith(".jpg")]) == 4 * 3
    assert single.out == [] and re.search(
        r"\b1 there already", single.err[-1]
    )  # for one as for many
    assert re.search(r"\b3 drawn, 1 there already", third.err[-1])
    assert min(line for line in first.out if "/q1_mine_overlay" in line) in third.out
    assert "results/q2_mine_classes.npz" in third.out
    assert {line for line in third.out if "/q3" in line} == {
        line for line in first.out if "/q3" in line
    }
    assert not [line for line in third.out if "/q0" in line]


def test_skip_existing_counts_pictures_over_several_photographs_too(result_of):
    first, second = result_of("skip comparison")
    assert (first.out, second.out) == (["results/p3_mine_comparison.jpg"], [])
    assert [line for line in second.err if "there already" in line]


# --- layers, kernels and classes that only the network knows ----------------------------------------------------------


def test_layers_are_listed_one_a_line(result_of):
    for name, some in (
        ("resnet_layers", {"conv1_relu", "conv5_block3_out"}),
        ("mine_layers", {"conv1", "conv2"}),
    ):
        done = result_of(name)
        assert (done.code, done.err) == (0, []) and some <= set(done.out)
        assert len(done.out) == len(set(done.out)) and all(
            re.fullmatch(r"[\w/]+", line) for line in done.out
        )


@pytest.mark.parametrize(
    "name, wrong, near",
    [
        ("conv5", "conv5", r"mean (conv5_block\w+,? ?)+\?"),
        ("kernel 16", "16", "0 to 15"),
        ("class", "rign", "ring"),
    ],
)
def test_a_wrong_layer_kernel_or_class_of_a_network_is_told_with_near_ones(
    result_of, name, wrong, near
):
    line = result_of(name).error()
    assert wrong in line and re.search(near, line)
    assert not [*(result_of(name).cwd / "results").iterdir()]


# --- runs that end early, and long ones -------------------------------------------------------------------------------


def test_ctrl_c_is_130_and_leaves_whole_files(result_of):
    done = result_of("Ctrl-C")
    assert done.code == 130 and not [line for line in done.err if line.startswith("error")]
    assert 1 <= len(done.files()) < 60
    for path in (done.cwd / "results").iterdir():
        assert_picture(path)


def test_a_kill_leaves_no_half_picture_under_a_name(result_of):
    done = result_of("kill")
    pictures = [*(done.cwd / "results").glob("[!.]*")]
    assert done.code == -signal.SIGKILL and 1 <= len(pictures) < 60
    for path in pictures:
        assert_picture(path)


def test_a_reader_that_goes_away_is_no_traceback(result_of):
    done = result_of("head")
    assert len(done.err) <= 1 and not [line for line in done.err if CHATTER.search(line)]
    assert not [path for path in (done.cwd / "results").iterdir() if path.suffix != ".jpg"]


def test_memory_does_not_grow_with_the_folder(result_of):
    few, many = result_of("memory")
    assert many - few < 40_000  # kilobytes; a photograph or a page is 3,000


# --- what pictures say ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pages(desk):
    """Every page that two scripts lay out of a photograph with a long name: [(figure of matplotlib, rows)]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    pages, lay_out, patch = [], utils.lay_out, pytest.MonkeyPatch()
    photo = desk / f"{'a photograph with a long name ' * 4}.png"
    save_photo(photo)

    def keep(rows, *arguments):
        page = lay_out(rows, *arguments)
        pages.append((page, FigureCanvasAgg(page).get_renderer(), rows))
        return page

    patch.setattr(utils, "lay_out", keep)
    patch.chdir(desk)
    words = [
        photo.name,
        *(word.removeprefix("../") for word in SAVED),
        "--figures",
        "all",
        "--output",
        "pages",
    ]
    for script, more in (("gradcam_resnet50", "2,3,4"), ("deconvnet_inceptionv3", "3")):
        module = importlib.import_module(script)
        patch.setattr(sys, "argv", [script, *words, "--classes", more])
        module.main(utils.read_options(vars(module)))
    patch.undo()
    assert len(pages) == 7 + 5
    return pages


def test_every_text_stands_on_the_page_beside_all_others_and_all_pictures(pages):
    for page, renderer, _ in pages:
        texts = [text.get_window_extent(renderer) for text in page.texts if text.get_text()]
        pictures = [image.get_window_extent(renderer) for image in page.images]
        assert len(texts) > 2 and pictures
        for box in texts:
            assert (
                0 <= box.x0
                and box.x1 <= page.bbox.width
                and 0 <= box.y0
                and box.y1 <= page.bbox.height
            )
        for first, second in itertools.chain(
            itertools.combinations(texts, 2), itertools.product(texts, pictures)
        ):
            across = min(first.x1, second.x1) - max(first.x0, second.x0)
            assert across <= 1 or min(first.y1, second.y1) - max(first.y0, second.y0) <= 1.5, (
                page.texts
            )


def test_a_map_without_positive_evidence_says_so(pages, result_of):
    titles = [title for _, _, rows in pages for row in rows for _, title in row]
    assert (
        sum(NAMES[4] in title and "no positive evidence" in title for title in titles) >= 3
    )  # classes, guided …
    assert not [title for title in titles if NAMES[2] in title and "no positive" in title]
    assert [
        line for line in result_of("folder").err if NAMES[4] in line
    ]  # an overlay bears no words: stderr does


def python(code, cwd):
    return subprocess.run(
        [sys.executable, "-c", code, "--no-such-option"],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(CLONE), "MPLBACKEND": "Agg"},
        timeout=400,
    )


def test_importing_the_scripts_runs_nothing_and_writes_nothing(tmp_path):
    done = python(f"import {', '.join(SCRIPTS)}", tmp_path)
    assert (done.returncode, done.stdout, done.stderr, [*tmp_path.iterdir()]) == (0, "", "", [])


def test_the_readme_s_notebook_example_runs_as_it_stands(tmp_path):
    for path in CLONE.glob("[!.]*"):
        (tmp_path / path.name).symlink_to(path)
    text = (CLONE / "README.md").read_text(encoding="utf-8")
    done = python(re.search(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[1], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
