"""GoogLeNet's checkpoint in every form: logits are those of a second forward pass in tf.nn, from
the checkpoint alone; and arrays of another network."""

import functools
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from helpers import error
from runs import CAT

GOOGLENET = f"gradcam_googlenet {CAT} --figures classes --arrays --weights"
TABLE = Path(__file__).with_name("inception_v1_checkpoint.tsv").read_text().splitlines()[1:]
SHAPES = {name: tuple(map(int, shape.split("x"))) for name, shape in map(str.split, TABLE)}
FIRST, LOGITS = "InceptionV1/Conv2d_1a_7x7", "InceptionV1/Logits/Conv2d_0c_1x1"
ARCHIVE = "inception_v1_2016_08_28.tar.gz"
pool = functools.partial(tf.nn.max_pool2d, strides=2, padding="SAME")


def convolve(arrays, x, *names, stride=1):
    for name in names:
        x = tf.nn.conv2d(x, arrays[f"InceptionV1/{name}/weights"], stride, "SAME")
        mean = arrays[f"InceptionV1/{name}/BatchNorm/moving_mean"]
        variance = arrays[f"InceptionV1/{name}/BatchNorm/moving_variance"]
        beta = arrays[f"InceptionV1/{name}/BatchNorm/beta"]
        x = tf.nn.relu((x - mean) / tf.sqrt(variance + 0.001) + beta)
    return x


def mixed(arrays, x, *names):
    for name in names:
        one, two, three, four = [f"{name}/Branch_{number}/Conv2d_0" for number in range(4)]
        second = "a" if name == "Mixed_5b" else "b"  # as TF-Slim has it
        branches = [
            convolve(arrays, x, f"{one}a_1x1"),
            convolve(arrays, x, f"{two}a_1x1", f"{two}b_3x3"),
            convolve(arrays, x, f"{three}a_1x1", f"{three}{second}_3x3"),
            convolve(arrays, pool(x, 3, strides=1), f"{four}b_1x1"),
        ]
        x = tf.concat(branches, axis=3)
    return x


def forward(arrays, x):
    """The 1001 logits, a second way."""
    x = pool(convolve(arrays, x, "Conv2d_1a_7x7", stride=2), 3)
    x = pool(convolve(arrays, x, "Conv2d_2b_1x1", "Conv2d_2c_3x3"), 3)
    x = pool(mixed(arrays, x, "Mixed_3b", "Mixed_3c"), 3)
    x = mixed(arrays, x, "Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e", "Mixed_4f")
    x = mixed(arrays, pool(x, 2), "Mixed_5b", "Mixed_5c")
    x = tf.nn.conv2d(tf.nn.avg_pool2d(x, 7, 1, "VALID"), arrays[f"{LOGITS}/weights"], 1, "SAME")
    return (x + arrays[f"{LOGITS}/biases"])[0, 0, 0]


@pytest.fixture(scope="module")
def arrays():
    """Random values of every variable such that signals neither die nor explode."""
    rng = np.random.default_rng(0)
    found = {}
    for name, shape in SHAPES.items():
        scale = np.sqrt(2 / np.prod(shape[:-1])) if len(shape) > 1 else 0.3
        values = np.float32(rng.normal(0, scale, shape))
        found[name] = abs(values) + np.float32(0.5) if name.endswith("variance") else values
    return found | {"global_step": np.int64(4242)}


FORMS = ["inception_v1.ckpt", "model.ckpt-42.index", "weights.npz", "archive"]  # V1, V2, and so on


@pytest.fixture(scope="module")
def forms(arrays, tmp_path_factory):
    """A folder that holds the same values in every form."""
    folder = tmp_path_factory.mktemp("Gewichte für GoogLeNet")
    names, tensors = [*arrays], [tf.constant(array) for array in arrays.values()]
    one, two = str(folder / "inception_v1.ckpt"), str(folder / "model.ckpt-42")
    tf.raw_ops.Save(filename=one, tensor_names=names, data=tensors)
    slices = [""] * len(names)
    tf.raw_ops.SaveV2(prefix=two, tensor_names=names, tensors=tensors, shape_and_slices=slices)
    np.savez(folder / "weights.npz", **arrays)
    (folder / "archive").mkdir()
    with tarfile.open(folder / "archive" / ARCHIVE, "w:gz", compresslevel=0) as tar:
        tar.add(one, "inception_v1.ckpt")
    return folder


class Trap:
    def __reduce__(self):
        return os.mkdir, ("sprung",)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_checkpoint_gives_the_logits_of_the_second_way(run, arrays, forms, form):
    found = run(GOOGLENET, f"'{forms / form}' --classes top1").arrays()
    expected = forward(arrays, found["googlenet/input"])[1:]  # without the background
    assert error(found["googlenet/logits"], expected) < 1e-4


ARRAY_FILES = {  # what becomes of GoogLeNet's arrays; what the line says
    "one missing": ({f"{FIRST}/weights": None}, f"{FIRST}/weights"),
    "channels swapped": ({f"{FIRST}/weights": np.zeros((7, 7, 64, 3))}, "7, 64, 3"),
    "no background": ({f"{LOGITS}/biases": np.zeros(1000)}, "1000"),
    "not finite": ({f"{FIRST}/BatchNorm/beta": np.full(64, np.nan)}, "not finite"),
    "objects": ({f"{FIRST}/weights": np.full((7, 7, 3, 64), Trap())}, "pickle"),
}


@pytest.mark.parametrize("name", ARRAY_FILES)
def test_arrays_of_another_network_are_refused(run, arrays, name):
    changes, said = ARRAY_FILES[name]
    changed = {key: array for key, array in (arrays | changes).items() if array is not None}
    np.savez("mine.npz", **changed)
    assert said in run(GOOGLENET, "mine.npz").error()
    assert not Path("sprung").exists()
