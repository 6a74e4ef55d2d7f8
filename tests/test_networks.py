"""Networks that come from files: saved ones of any kind, published and bundled weights, and files that are refused.

A saved network's maps and logits are held against a plain GradientTape on the same network built without its last
activation; GoogLeNet against a second forward pass in tf.nn, from the checkpoint's variables alone. Programs run in
this process (see `Shell`), since starting TensorFlow takes seconds, but for some that run as a person starts them.
"""

import functools
import logging
import os
import pickle
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl
from PIL import Image, ImageDraw

import deconvnet_inceptionv3
import deconvnet_vgg
import gradcam_googlenet
import gradcam_resnet50
import gradcam_vgg
import utils

PHOTO = utils.HERE / "Image" / "cat.jpg"
MINE = "--weights", "mine.keras", "--preprocess", "none"


class Shell:
    """`python SCRIPT.py cat.jpg WORDS …`, in this process, from an empty folder."""

    def __init__(self, monkeypatch, capfd, folder):
        self.patch, self.capfd, self.folder = monkeypatch, capfd, folder
        (folder / "temporary").mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(folder / "temporary"))
        monkeypatch.setattr(
            logging.root.manager, "disable", logging.NOTSET
        )  # which utils.run changes
        monkeypatch.chdir(folder)

    def __call__(self, script, *words):
        """Exit code, lines on stdout, lines on stderr."""
        self.patch.setattr(sys, "argv", [script.__file__, str(PHOTO), *map(str, words)])
        utils.tell.cache_clear()  # a notice is said once a process
        self.capfd.readouterr()
        try:
            code = utils.run(lambda: script.main(utils.read_options(vars(script))))
        except SystemExit as end:
            code = end.code
        tf.config.run_functions_eagerly(False)  # which `main` sets for its process
        sys.__stdout__.flush()
        out, err = [text.splitlines() for text in self.capfd.readouterr()]
        # Both of TensorFlow: what utils silences where it comes first, and what is deleted when the process ends.
        assert all("autograph" in name for name in os.listdir("temporary"))
        return code, out, [line for line in err if not re.match("[EIW]0000 ", line)]

    def arrays(self, script, *words, figure="classes"):
        """The numbers behind a figure, and what was said on stderr."""
        code, out, err = self(script, "--figures", figure, "--arrays", *words)
        assert code == 0 and len(out) == 2, err
        with np.load(out[0], allow_pickle=False) as file:
            return dict(file), err

    def refusal(self, script, *words):
        """The one line of a program that ends as promised: nothing on stdout, no file anywhere, code 2."""
        before = {*self.folder.rglob("*"), self.folder / "results"}
        code, out, err = self(script, *words)
        assert code == 2 and not out and len(err) == 1 and err[0].startswith("error: "), (
            code,
            out,
            err,
        )
        assert not {*self.folder.rglob("*")} - before, err
        return err[0]

    def networks(self, *words):
        """What deconvnet_vgg.py opens, before it draws."""
        self.patch.setattr(sys, "argv", [deconvnet_vgg.__file__, str(PHOTO), *map(str, words)])
        return deconvnet_vgg.open_networks(utils.read_options(vars(deconvnet_vgg)))


@pytest.fixture
def shell(monkeypatch, capfd, tmp_path):
    return Shell(monkeypatch, capfd, tmp_path)


def same(found, expected):
    found, expected = np.asarray(found, "float64"), np.asarray(expected, "float64")
    return (
        found.shape == expected.shape
        and np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    )


# --- saved networks: each built as people build it, and a second time flat and without its last activation ----------
def small(head="softmax", units=4, shape=(64, 64, 3), before=lambda x: x):
    keras.utils.set_random_seed(0)
    image = keras.Input(shape)
    x = kl.MaxPooling2D()(kl.Conv2D(6, 3, activation="relu", name="conv1")(before(image)))
    x = kl.Dropout(0.5)(kl.MaxPooling2D()(kl.Conv2D(8, 3, activation="relu", name="conv2")(x)))
    return keras.Model(image, kl.Dense(units, head, name="head")(kl.GlobalAveragePooling2D()(x)))


def pair(saved, plain, feed=lambda x: x, gain=1):
    """The two, with equal weights, and what stands before the second. Biases and batch normalisation are drawn: those
    that Keras begins with hide mistakes. gain: of its scales; by 1 some deep untrained networks forget their input."""
    rng = np.random.default_rng(0)
    for variable in [variable for variable in saved.weights if len(variable.shape) == 1]:
        values = rng.normal(scale=0.1, size=variable.shape)
        variable.assign(
            values + {"variance": 1, "gamma": gain}.get(variable.name.removeprefix("moving_"), 0)
        )
    plain.set_weights(saved.get_weights())
    for layer in plain.layers:
        if isinstance(layer, kl.Normalization):
            layer.finalize_state()
    return saved, plain, feed


def nested_vgg16():
    one, other = [
        keras.applications.VGG16(include_top=False, weights=None, input_shape=(64, 96, 3))
        for _ in "12"
    ]
    saved = [
        keras.Input((64, 96, 3)),
        kl.Rescaling(1 / 255),
        one,
        kl.Flatten(),
        kl.Dense(5, "softmax"),
    ]
    plain = keras.Model(other.input, kl.Dense(5)(kl.Flatten()(other.output)))
    return pair(keras.Sequential(saved), plain, lambda x: x / 255)


def published(name, gain):
    build = functools.partial(
        getattr(keras.applications, name), weights=None, input_shape=(64, 96, 3), classes=7
    )
    return pair(build(), build(classifier_activation=None), gain=gain)


NETWORKS = {  # file: (how it is built, shape of its input, last layer with a map)
    "Nested VGG16.keras": (nested_vgg16, (64, 96, 3), "block5_conv3"),
    "one sigmoid.keras": (
        lambda: pair(
            small("sigmoid", 1, before=keras.applications.vgg16.preprocess_input),
            small(None, 1),
            lambda x: x[..., ::-1] - np.float32([103.939, 116.779, 123.68]),
        ),
        (64, 64, 3),
        "conv2",
    ),
    "six sigmoids.h5": (
        lambda: pair(
            small("sigmoid", 6, before=kl.Rescaling(1 / 255)), small(None, 6), lambda x: x / 255
        ),
        (64, 64, 3),
        "conv2",
    ),
    "softmax.h5": (
        lambda: pair(keras.Sequential([small(None), kl.Softmax()]), small(None)),
        (64, 64, 3),
        "conv2",
    ),
    "MobileNetV2.h5": (lambda: published("MobileNetV2", 6), (64, 96, 3), "out_relu"),
    "EfficientNetB0.keras": (
        lambda: published("EfficientNetB0", 1.3),
        (64, 96, 3),
        "top_activation",
    ),
    "ResNet50.keras": (lambda: published("ResNet50", 1), (64, 96, 3), "conv5_block3_out"),
    "grey, adapted.keras": (
        lambda: pair(
            *(
                small(head, shape=(64, 64, 1), before=kl.Normalization())
                for head in ("softmax", None)
            )
        ),
        (64, 64, 1),
        "conv2",
    ),
    "open size.keras": (
        lambda: pair(small(shape=(None, None, 3)), small(None, shape=(224, 224, 3))),
        (224, 224, 3),
        "conv2",
    ),
}


def tape(model, x, layer):
    """The recipe that everybody knows: the maps of classes 0 and 1, by an eager tape, and the logits."""
    both = keras.Model(model.inputs[0], [model.get_layer(layer).output, model.outputs[0]])
    with tf.GradientTape(persistent=True) as gradients:
        maps, logits = both(x, training=False)
        logits = tf.concat([-logits / 2, logits / 2], axis=1) if logits.shape[-1] == 1 else logits
        scores = logits[0, 0], logits[0, 1]
    alphas = [tf.reduce_mean(gradients.gradient(score, maps), axis=(1, 2)) for score in scores]
    return [tf.reduce_sum(alpha * maps[0], axis=-1).numpy() for alpha in alphas], logits[0].numpy()


@pytest.mark.parametrize("name", NETWORKS)
def test_maps_of_a_saved_network_are_those_of_a_plain_tape(shell, name):
    (build, shape, layer), figure = NETWORKS[name], "trust" if "sigmoid" in name else "classes"
    keras.utils.set_random_seed(1)
    saved, plain, feed = build()
    saved.save(name)
    found, _ = shell.arrays(
        gradcam_vgg, "--weights", name, *MINE[2:], "--classes", "0,1", figure=figure
    )
    found = {key.removeprefix(f"{Path(name).stem.lower()}/"): array for key, array in found.items()}
    assert {key for key in found if key[-2:] in ("/0", "/1")} == {f"{layer}/0", f"{layer}/1"}
    maps, logits = tape(plain, feed(found["input"]), layer)
    assert found["input"].shape == (1, *shape) and same(found["logits"], logits)
    assert same(found[f"{layer}/0"], maps[0]) and same(found[f"{layer}/1"], maps[1])
    if figure == "trust":  # its curves begin with the probabilities of the photograph itself
        z = np.float64([-logits[1] * 2, logits[1] * 2] if "one" in name else logits[:2])
        for index, p in enumerate(1 / (1 + np.exp(-z))):
            assert same(found[f"{layer}/{index}/deletion"][:, 0], np.repeat(p, 11))


def test_layers_of_inner_networks_are_listed_drawn_and_asked_for_by_their_names(shell):
    def inner(before=""):
        return [
            kl.Conv2D(4, 3, name=f"{before}conv"),
            kl.BatchNormalization(name=f"{before}norm"),
            kl.ReLU(name=f"{before}relu"),
        ]

    def whole(left, right, head):
        return keras.Sequential(
            [
                keras.Input((32, 32, 3)),
                *left,
                kl.MaxPooling2D(name="pool"),
                *right,
                kl.GlobalAveragePooling2D(),
                kl.Dense(3, head),
            ]
        )

    saved, plain, _ = pair(
        whole(
            [keras.Sequential(inner(), name="left")],
            [keras.Sequential(inner(), name="right")],
            "softmax",
        ),
        whole(inner(), inner("second_"), None),
    )
    saved.save("mine.keras")
    words = *MINE, "--classes", "0"
    assert shell(gradcam_resnet50, *words, "--list-layers")[:2] == (
        0,
        ["conv", "norm", "relu", "pool", "right/conv", "right/norm", "right/relu"],
    )
    found, _ = shell.arrays(gradcam_resnet50, *words, figure="layers")
    assert {key for key in found if key.endswith("/0")} == {
        "mine/relu/0",
        "mine/right/relu/0",
    }  # one a resolution
    found, _ = shell.arrays(gradcam_resnet50, *words, "--layers", "relu,right/n*", figure="layers")
    for layer, twin in (("relu", "relu"), ("right/norm", "second_norm")):
        assert same(found[f"mine/{layer}/0"], tape(plain, found["mine/input"], twin)[0][0])
    assert "right/conv" in shell.refusal(gradcam_resnet50, *words, "--layers", "left/conv")


@pytest.mark.parametrize(
    "script",
    [gradcam_vgg, gradcam_resnet50, gradcam_googlenet, deconvnet_vgg, deconvnet_inceptionv3],
)
def test_every_script_draws_every_figure_of_a_saved_network(shell, script):
    small().save("Mine.keras")
    words = "--weights", "Mine.keras", "--figures", "all", "--classes", "0,1", "--kernels", "top2"
    code, out, _ = shell(script, *words)
    assert code == 0 and [Path(line).name[:9] for line in out] == ["cat_mine_"] * (
        5 if "dec" in script.__name__ else 9
    )


NAMES = ["red fox", "tabby", "tiger cat", "dog"]  # of the four classes of `small`
LABELS = {
    "numbers.txt": ["5", "4", "3", "2"],
    "names.txt": NAMES,
    "three.txt": NAMES[:3],
    "twice.txt": ["dog", "cat", "owl", "dog"],
}


@pytest.mark.parametrize(
    "labels, word, expected",
    [  # indices, or what the error says
        ("names.txt", "Tiger_Cat,DOG,0", {2, 3, 0}),
        ("training", "dog,tabby", {0, 2}),  # its folders, sorted
        (None, "class 2", {2}),
        (None, "Egyptian cat,n01443537", {285, 1}),  # of 1000: ImageNet's
        ("numbers.txt", "3", {3}),
        ("names.txt", "tigre cat", "'tigre cat'.*did you mean tiger cat"),
        ("names.txt", "4", "'4'.*0.*3"),
        ("twice.txt", "dog", "2 classes.*'dog'.*0.*3"),
        ("three.txt", "0", "three.txt.*3.*4"),
        ("no.txt", "0", "no.txt"),
    ],
)
def test_classes_are_asked_for_by_labels_and_what_is_wrong_with_them_is_told(
    shell, labels, word, expected
):
    small(units=1000 if "Egyptian" in word else 4).save("mine.keras")
    for file, names in LABELS.items():
        Path(file).write_text("\n".join(names) + "\n")
    for name in (*NAMES, ".hidden"):
        Path("training", name).mkdir(parents=True)
    words = *MINE, *(["--labels", labels] if labels else []), "--classes", word
    if isinstance(expected, str):
        assert re.search(expected, shell.refusal(gradcam_vgg, *words))
    else:
        found, _ = shell.arrays(gradcam_vgg, *words)
        assert {int(key.rpartition("/")[2]) for key in found if "conv2" in key} == expected


@pytest.mark.parametrize(
    "before, mode, notice",
    [
        (kl.Rescaling(1 / 255), "caffe", "--preprocess none"),
        (kl.Rescaling(1 / 255), "none", None),
        (
            lambda x: kl.Rescaling(1 / 255)(kl.RandomFlip()(x)),
            "caffe",
            "--preprocess none",
        ),  # as the guides have it
        (keras.applications.mobilenet_v2.preprocess_input, "tf", "--preprocess none"),
        (lambda x: x, "caffe", None),
        (kl.Rescaling(1e6), "none", "--preprocess"),
    ],
)  # the last one is saturated
def test_preprocessing_twice_and_answers_that_are_all_too_sure_are_noticed(
    shell, before, mode, notice
):
    pair(small(before=before), small())[0].save("mine.keras")
    _, err = shell.arrays(gradcam_vgg, *MINE[:-1], mode)
    assert len(err) == bool(notice) and all(notice in line for line in err), err


# --- GoogLeNet and its checkpoint -----------------------------------------------------------------------------------
TABLE = Path(__file__).with_name("inception_v1_checkpoint.tsv").read_text().splitlines()[1:]
SHAPES = {name: tuple(map(int, shape.split("x"))) for name, shape in map(str.split, TABLE)}
FIRST, LOGITS = "InceptionV1/Conv2d_1a_7x7", "InceptionV1/Logits/Conv2d_0c_1x1"
ARCHIVE = "inception_v1_2016_08_28.tar.gz"


def forward(arrays, x):
    """The 1001 logits, a second way."""
    arrays = {
        name: tf.constant(array, tf.float32)
        for name, array in arrays.items()
        if name != "global_step"
    }
    pool = functools.partial(tf.nn.max_pool2d, strides=2, padding="SAME")

    def convolve(x, *names, stride=1):
        for name in names:
            x = tf.nn.conv2d(x, arrays[f"InceptionV1/{name}/weights"], stride, "SAME")
            mean, variance, beta = [
                arrays[f"InceptionV1/{name}/BatchNorm/{part}"]
                for part in ("moving_mean", "moving_variance", "beta")
            ]
            x = tf.nn.relu((x - mean) / tf.sqrt(variance + 0.001) + beta)
        return x

    def mixed(x, *names):
        for name in names:
            one, two, three, four = [f"{name}/Branch_{number}/Conv2d_0" for number in range(4)]
            x = tf.concat(
                [
                    convolve(x, f"{one}a_1x1"),
                    convolve(x, f"{two}a_1x1", f"{two}b_3x3"),
                    convolve(
                        x, f"{three}a_1x1", f"{three}{'a' if name == 'Mixed_5b' else 'b'}_3x3"
                    ),
                    convolve(pool(x, 3, strides=1), f"{four}b_1x1"),
                ],
                axis=3,
            )
        return x

    x = pool(
        convolve(pool(convolve(x, "Conv2d_1a_7x7", stride=2), 3), "Conv2d_2b_1x1", "Conv2d_2c_3x3"),
        3,
    )
    x = pool(mixed(x, "Mixed_3b", "Mixed_3c"), 3)
    x = pool(mixed(x, "Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e", "Mixed_4f"), 2)
    x = tf.nn.avg_pool2d(mixed(x, "Mixed_5b", "Mixed_5c"), 7, 1, "VALID")
    return (tf.nn.conv2d(x, arrays[f"{LOGITS}/weights"], 1, "SAME") + arrays[f"{LOGITS}/biases"])[
        0, 0, 0
    ].numpy()


@pytest.fixture(scope="module")
def arrays():
    """Random values of every variable such that signals neither die nor explode."""
    rng, found = np.random.default_rng(0), {"global_step": np.int64(4242)}
    for name, shape in SHAPES.items():
        values = rng.normal(
            0, np.sqrt(2 / np.prod(shape[:-1])) if len(shape) > 1 else 0.3, shape
        ).astype(np.float32)
        found[name] = abs(values) + np.float32(0.5) if name.endswith("moving_variance") else values
    return found


FORMS = {
    "checkpoint, V1": "inception_v1.ckpt",
    "checkpoint, V2": "model.ckpt-42",
    "its index": "model.ckpt-42.index",
    "arrays": "weights.npz",
    "archive": f"archive/{ARCHIVE}",
    "folder with the archive": "archive",
    "folder with the checkpoint": ".",
}  # of what --weights takes


@pytest.fixture(scope="module")
def forms(arrays, tmp_path_factory):
    """A folder that holds the same values in every form."""
    folder = tmp_path_factory.mktemp("Gewichte für GoogLeNet")
    names, tensors = [*arrays], [tf.constant(array) for array in arrays.values()]
    tf.raw_ops.Save(
        filename=str(folder / FORMS["checkpoint, V1"]), tensor_names=names, data=tensors
    )
    tf.raw_ops.SaveV2(
        prefix=str(folder / FORMS["checkpoint, V2"]),
        tensor_names=names,
        tensors=tensors,
        shape_and_slices=[""] * len(names),
    )
    np.savez(folder / FORMS["arrays"], **arrays)
    (folder / "archive").mkdir()
    with tarfile.open(folder / "archive" / ARCHIVE, "w:gz", compresslevel=0) as tar:
        tar.add(folder / "inception_v1.ckpt", "inception_v1.ckpt")
    return folder


googlenet = functools.cache(gradcam_googlenet.googlenet)


@pytest.fixture
def quick(monkeypatch):
    """One network, which programs fill again and again, full of NaN before, which shows what a load leaves unset."""
    for variable in googlenet().weights:
        variable.assign(tf.fill(variable.shape, np.nan))
    monkeypatch.setattr(gradcam_googlenet, "googlenet", googlenet)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_checkpoint_gives_the_logits_of_the_second_way(
    shell, quick, arrays, forms, form
):
    found, err = shell.arrays(
        gradcam_googlenet, "--weights", forms / FORMS[form], "--classes", "top1"
    )
    assert not err and same(
        found["googlenet/logits"], forward(arrays, found["googlenet/input"])[1:]
    )


def test_the_bundled_googlenet_gives_the_logits_of_the_second_way_and_says_what_it_knows(
    shell, quick
):
    words = ["--weights", "tiny", "--classes"]
    found, _ = shell.arrays(gradcam_googlenet, *words, "Egyptian cat")
    with np.load(gradcam_googlenet.TINY, allow_pickle=False) as stored:
        assert same(found["googlenet/logits"], forward(dict(stored), found["googlenet/input"])[1:])
        assert {*stored} == {*SHAPES} == {*gradcam_googlenet.variables(googlenet())}
        trained = np.flatnonzero(stored[f"{LOGITS}/weights"][0, 0, :, 1:].any(axis=0))
    lines = (utils.HERE / "Image" / "tiny_classes.txt").read_text().splitlines()
    assert [int(line.split()[0]) for line in lines] == trained.tolist() and len(lines) == 81
    assert re.search(
        "tench.*tiny_classes.txt", shell.refusal(gradcam_googlenet, *words, "Egyptian cat,tench")
    )


def test_the_bundled_vgg16_in_half_precision_is_loaded_as_it_is(shell):
    [network] = shell.networks("--weights", "tiny", "--models", "vgg16")
    with h5py.File(deconvnet_vgg.TINY) as file:
        for number, layer in enumerate(layer for layer in network.model.layers if layer.weights):
            stored = file[f"layers/conv2d{f'_{number}' * (number > 0)}/vars"]
            assert stored["0"].dtype == np.float16 and stored["0"].compression == "gzip"
            assert np.array_equal(layer.kernel, stored["0"]) and np.array_equal(
                layer.bias, stored["1"]
            )
    assert number == 12


def test_a_folder_of_published_files_serves_both_vggs(shell, tmp_path):
    """In their layout (of Keras 1 and 2): a group a layer, names and order in attributes."""
    for name in ("vgg16", "vgg19"):
        model = getattr(keras.applications, name.upper())(weights=None, include_top=False)
        with h5py.File(
            tmp_path / f"{name}_weights_tf_dim_ordering_tf_kernels_notop.h5", "w"
        ) as file:
            file.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
            for layer in model.layers:
                names = [f"{layer.name}_{part}_1:0" for part in "Wb"[: len(layer.weights)]]
                file.create_group(layer.name).attrs["weight_names"] = [
                    each.encode() for each in names
                ]
                for each, weight in zip(names, layer.weights):
                    file.create_dataset(
                        f"{layer.name}/{each}", weight.shape, "f4", fillvalue=int(name[3:])
                    )
    for network, number in zip(shell.networks("--weights", tmp_path), (16, 19), strict=True):
        assert network.name == f"vgg{number}" and all(
            np.all(weight == number) for weight in network.model.weights
        )


# --- files that are refused -----------------------------------------------------------------------------------------
def trapped():
    """A network whose code, were it run, would make a folder."""
    trap = kl.Lambda(lambda x: (__import__("os").mkdir("sprung"), x)[1])
    trap.call = lambda x: x  # here; not in the file
    return small(before=trap)


Trap = type(
    "Trap", (), {"__reduce__": lambda self: (os.mkdir, ("sprung",))}
)  # unpickled, it makes a folder
Unknown = type("Unknown", (kl.Layer,), {"call": lambda self, x: x, "__module__": "somewhere_else"})
Subclassed = type(
    "Subclassed",
    (keras.Model,),
    {"call": lambda self, x: x[:, 0, 0], "__module__": "somewhere_else"},
)


def write(path, content, forms=None, arrays=None):
    """A file as REFUSED describes it."""
    if callable(content):  # makes a network, which is saved as the ending says
        model = content()
        model.save_weights(path) if "weights" in path.name else model.save(path)
    elif isinstance(content, dict):  # what becomes of GoogLeNet's arrays
        np.savez(
            path, **{name: array for name, array in (arrays | content).items() if array is not None}
        )
    elif isinstance(content, tuple):  # what an archive holds: name, kind, where a link leads
        member = tarfile.TarInfo(content[0])
        member.type, member.linkname = content[1:]
        with tarfile.open(path, "w:gz") as archive:
            archive.addfile(member)
    else:
        path.write_bytes((forms / FORMS[content]).read_bytes() if content in FORMS else content)
    if "truncated" in path.name:
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])


TEXT, PICKLE, CHECKPOINT = b"these are no weights\n" * 99, pickle.dumps(Trap()), "inception_v1.ckpt"
REFUSED = {  # file: (what is written, see `write`; what the line says besides the file's name)
    "lambda.keras": (trapped, "Lambda"),
    "lambda.h5": (trapped, "Lambda"),
    "subclassed.keras": (Subclassed, "Subclassed"),
    "own layer.keras": (lambda: small(before=Unknown()), "Unknown"),
    "two images.keras": (
        lambda: keras.Model(
            images := [keras.Input((8, 8, 3)), keras.Input((8, 8, 3))],
            kl.Dense(2)(kl.Flatten()(kl.Add()(images))),
        ),
        "one image",
    ),
    "segmentation.keras": (
        lambda: keras.Sequential([keras.Input((64, 64, 3)), kl.Conv2D(4, 1)]),
        "one vector",
    ),
    "no map.keras": (
        lambda: keras.Sequential([keras.Input((8, 8, 3)), kl.Flatten(), kl.Dense(3)]),
        "no layer",
    ),
    "truncated.keras": (small, "not a whole one"),
    "truncated.h5": (small, "truncated"),
    "text.keras": (TEXT, "no .keras file"),
    "text.h5": (TEXT, "signature"),
    "pickle.keras": (PICKLE, "no .keras file"),
    "truncated.weights.h5": (small, "truncated"),
    "another network.weights.h5": (small, "whole network"),
    "five classes.weights.h5": (
        lambda: keras.Model(
            (whole := googlenet()).input, kl.Dense(5, name="Logits")(whole.layers[-2].output)
        ),
        "for 5 classes, not for 1000",
    ),
    "one missing.npz": ({f"{FIRST}/weights": None}, f"{FIRST}/weights"),
    "channels swapped.npz": ({f"{FIRST}/weights": np.zeros((7, 7, 64, 3))}, "7, 64, 3"),
    "no background.npz": ({f"{LOGITS}/biases": np.zeros(1000)}, "1000"),
    "not finite.npz": ({f"{FIRST}/BatchNorm/beta": np.full(64, np.nan)}, "not finite"),
    "objects.npz": ({f"{FIRST}/weights": np.full((7, 7, 3, 64), Trap())}, "pickle"),
    "pickle.npz": (PICKLE, ""),
    "pickle.ckpt": (PICKLE, ""),
    "pickle.h5": (PICKLE, ""),
    "text.tar.gz": (TEXT, ""),
    "truncated.npz": ("arrays", ""),
    "truncated.ckpt": ("checkpoint, V1", ""),
    "truncated.tar.gz": ("archive", "ended"),
    "without its data.index": ("its index", ""),
    "pipe.tar.gz": ((CHECKPOINT, tarfile.FIFOTYPE, ""), CHECKPOINT),
    "outside.tar.gz": ((f"../../{CHECKPOINT}", tarfile.REGTYPE, ""), CHECKPOINT),
    "link.tar.gz": ((CHECKPOINT, tarfile.SYMTYPE, "/etc/hostname"), CHECKPOINT),
}


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_are_no_weights_or_those_of_another_network_are_refused(
    shell, quick, forms, arrays, tmp_path, name
):
    content, line = REFUSED[name]
    write(tmp_path / name, content, forms, arrays)
    said = shell.refusal(gradcam_googlenet, "--weights", name)  # no folder is made: nothing sprang
    assert line in said.replace(name, "") and (
        name in said or line in ("not finite", "no layer")
    ), said


def test_in_python_layers_of_ones_own_are_opened_and_subclassed_networks_refused():
    model, x = small(None, before=Unknown()), np.ones((1, 64, 64, 3), np.float32)
    assert np.array_equal(utils.open_network(model)(x), model(x))
    with pytest.raises(ValueError, match="functional"):
        utils.open_network(Subclassed())


def test_the_traps_of_these_tests_are_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trapped().save("trap.keras")
    for spring in (
        lambda: keras.saving.load_model("trap.keras", safe_mode=False),
        lambda: pickle.loads(PICKLE),
    ):
        spring()
        Path("sprung").rmdir()


def test_what_is_absent_or_in_the_place_of_something_else_is_refused(shell, quick, tmp_path):
    assert "absent.npz" in shell.refusal(gradcam_googlenet, "--weights", "absent.npz")
    assert ARCHIVE in shell.refusal(gradcam_googlenet, "--weights", tmp_path)
    assert "--labels" in shell.refusal(
        gradcam_googlenet, "--weights", "tiny", "--labels", "names.txt"
    )
    small().save("network.keras")
    small().save_weights("only.weights.h5")
    for name, wrong in (("network.keras", "a.weights.h5"), ("only.weights.h5", "a.keras")):
        os.rename(name, wrong)
        assert re.search(
            f"{wrong}.*whole network", shell.refusal(gradcam_googlenet, "--weights", wrong)
        )


@pytest.mark.parametrize(
    "script, name, content",
    [
        ("deconvnet_inceptionv3.py", "mine.keras", trapped),
        ("gradcam_googlenet.py", "mine.ckpt", TEXT),
    ],
)
def test_from_the_shell_it_is_one_line_too_without_a_traceback_or_chatter(
    tmp_path, script, name, content
):
    write(tmp_path / name, content)
    done = subprocess.run(
        [sys.executable, utils.HERE / script, PHOTO, "--weights", name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert (
        done.returncode == 2
        and not done.stdout
        and re.fullmatch(f"error: .*{name}.*\n", done.stderr)
    )
    assert sorted(os.listdir(tmp_path)) == [name, "results"] and not os.listdir(
        tmp_path / "results"
    )


OFFLINE = """
import importlib, shutil, sys, utils
photo, archive, home = sys.argv[1:]
for name in "gradcam_vgg", "gradcam_resnet50", "deconvnet_vgg", "deconvnet_inceptionv3", *["gradcam_googlenet"] * 2:
    script, sys.argv = importlib.import_module(name), [f"{name}.py", photo]
    try:
        utils.run(lambda: script.main(utils.read_options(vars(script))))
    except SystemExit as end:
        assert end.code == 2
    utils.tell.cache_clear()
    shutil.copy(archive, home)
"""


def test_published_weights_without_a_connection_are_one_line_that_names_them(tmp_path, forms):
    """The last run finds another archive, which would load, under the published name: its hash differs."""
    home, end = tmp_path / "keras" / "models", "weights_tf_dim_ordering_tf_kernels"
    home.mkdir(parents=True)
    environment = os.environ | {
        "KERAS_HOME": str(home.parent),
        "PYTHONPATH": str(utils.HERE),
        "no_proxy": "",
    }
    environment |= {
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }  # where nobody listens
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, PHOTO, forms / FORMS["archive"], home],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    errors = [
        line
        for line in done.stderr.splitlines()
        if not line.startswith(("Downloading data", "A local file"))
    ]
    names = (
        f"vgg16_{end}.h5",
        f"resnet50_{end}.h5",
        f"vgg16_{end}_notop.h5",
        f"inception_v3_{end}_notop.h5",
    )
    assert done.returncode == 0 and not done.stdout and not os.listdir(tmp_path / "results"), (
        done.stderr
    )
    for line, name in zip(errors, [*names, ARCHIVE, ARCHIVE], strict=True):
        assert (
            line.startswith("error: ")
            and name in line
            and f"put {name} into" in line
            and "--weights random" in line
        )


def drawing(rng, *shapes):
    """A disc (0), a cross (1) or a square (2) in each half of a picture over noise; None leaves a half empty."""
    image = Image.fromarray(rng.integers(0, 90, (48, 48, 3), np.uint8))
    pen = ImageDraw.Draw(image)
    for half, shape in enumerate(shapes):
        x, y, size = half * 24 + rng.integers(9, 15), rng.integers(10, 38), rng.integers(6, 9)
        box, colour = (
            (x - size, y - size, x + size, y + size),
            tuple(rng.integers(120, 256, 3).tolist()),
        )
        if shape == 1:
            pen.line((*box, x, y, x - size, y + size, x + size, y - size), colour, 4)
        elif shape is not None:
            pen.ellipse(box, colour) if shape == 0 else pen.rectangle(box, None, colour, 3)
    return np.asarray(image)


def test_the_heat_of_a_trained_network_lies_on_the_shape_it_is_asked_for(tmp_path):
    keras.utils.set_random_seed(0)
    rng, shares, labels = np.random.default_rng(0), [], np.arange(900) % 3
    pictures = np.stack([drawing(rng, *(label, None)[:: rng.choice([-1, 1])]) for label in labels])
    network = keras.Sequential(
        [
            keras.Input((48, 48, 3)),
            kl.Rescaling(1 / 255),
            kl.Conv2D(12, 5, activation="relu"),
            kl.MaxPooling2D(),
            kl.Conv2D(16, 3, activation="relu"),
            kl.MaxPooling2D(),
            kl.Conv2D(24, 3, activation="relu", name="last"),
            kl.GlobalAveragePooling2D(),
            kl.Dense(3, "softmax"),
        ]
    )
    network.compile(
        keras.optimizers.Adam(5e-3), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    accuracy = network.fit(pictures, labels, 32, epochs=10, verbose=0).history["accuracy"][-1]
    network.save(tmp_path / "shapes.keras")
    opened = utils.open_network(keras.saving.load_model(tmp_path / "shapes.keras"))
    for left, right in (rng.permutation(3)[:2].tolist() for _ in range(50)):
        x = drawing(rng, left, right)[None].astype(np.float32)
        maps, _ = gradcam_vgg.grad_cam(opened, x, ["last"], [left, right])
        for half, cam in zip((slice(None, 24), slice(24, None)), maps["last"]):
            heat = utils.heat_map(cam, 48, 48)
            shares.append(heat[:, half].sum() / heat.sum())
    assert accuracy > 0.95 and np.mean(shares) > 0.8
