"""Weights: what fits is loaded as it was stored, what does not fit is refused with the reason, nothing is unpickled."""
import csv
import json
import os
import pickle
import subprocess
import sys
import tarfile
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest

import gradcam_googlenet
import gradcam_resnet50
import utils

keras = utils.import_keras()
import tensorflow as tf  # noqa: E402  utils imports it without its greeting

with open(Path(__file__).with_name("inception_v1_checkpoint.tsv"), newline="") as table:
    SHAPES = {row["variable"]: tuple(map(int, row["shape"].split("x"))) for row in csv.DictReader(table, delimiter="\t")}
FIRST, LOGITS = "InceptionV1/Conv2d_1a_7x7", "InceptionV1/Logits/Conv2d_0c_1x1"


def refusal(call, *arguments):
    """The one line of the UserError that a call ends with."""
    with pytest.raises(utils.UserError) as caught:
        call(*arguments)
    line = str(caught.value)
    assert line.strip() and "\n" not in line
    return line


# ---------------------------------------------------------------------------------------------------------------------
# GoogLeNet a second way: straight from the arrays of the checkpoint and ../shared/facts/googlenet.md


def forward(arrays, x):
    """The 1001 logits."""
    arrays = {name: tf.constant(array, tf.float32) for name, array in arrays.items() if name != "global_step"}

    def convolve(x, name, stride=1):
        name = f"InceptionV1/{name}"
        x = tf.nn.conv2d(x, arrays[f"{name}/weights"], stride, "SAME")
        norm = [arrays[f"{name}/BatchNorm/{part}"] for part in ("moving_mean", "moving_variance", "beta")]
        return tf.nn.relu((x - norm[0]) / tf.sqrt(norm[1] + 0.001) + norm[2])

    def pool(x, extent, stride):
        return tf.nn.max_pool2d(x, extent, stride, "SAME")

    def mixed(x, name):
        last = "Conv2d_0a_3x3" if name == "Mixed_5b" else "Conv2d_0b_3x3"
        return tf.concat([
            convolve(x, f"{name}/Branch_0/Conv2d_0a_1x1"),
            convolve(convolve(x, f"{name}/Branch_1/Conv2d_0a_1x1"), f"{name}/Branch_1/Conv2d_0b_3x3"),
            convolve(convolve(x, f"{name}/Branch_2/Conv2d_0a_1x1"), f"{name}/Branch_2/{last}"),
            convolve(pool(x, 3, 1), f"{name}/Branch_3/Conv2d_0b_1x1")], axis=3)

    x = pool(convolve(x, "Conv2d_1a_7x7", 2), 3, 2)
    x = pool(convolve(convolve(x, "Conv2d_2b_1x1"), "Conv2d_2c_3x3"), 3, 2)
    for name in ("Mixed_3b", "Mixed_3c"):
        x = mixed(x, name)
    x = pool(x, 3, 2)
    for name in ("Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e", "Mixed_4f"):
        x = mixed(x, name)
    x = pool(x, 2, 2)
    for name in ("Mixed_5b", "Mixed_5c"):
        x = mixed(x, name)
    x = tf.nn.avg_pool2d(x, 7, 1, "VALID")
    return (tf.nn.conv2d(x, arrays[f"{LOGITS}/weights"], 1, "SAME") + arrays[f"{LOGITS}/biases"])[0, 0, 0].numpy()


def draw(shape, name, rng):
    """Random values of a variable such that signals neither die nor explode."""
    if name.endswith("moving_variance"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    spread = np.sqrt(2 / np.prod(shape[:-1])) if len(shape) > 1 else 0.3
    return rng.normal(0, spread, shape).astype(np.float32)


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    return {name: draw(shape, name, rng) for name, shape in SHAPES.items()} | {"global_step": np.int64(4242)}


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(1).uniform(-1, 1, (1, 224, 224, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def expected(arrays, x):
    return forward(arrays, x)[1:]  # without «background»


@pytest.fixture(scope="module")
def forms(arrays, tmp_path_factory):
    """The same values in every form that --weights takes: {form: path as it is typed}."""
    folder = tmp_path_factory.mktemp("Gewichte für GoogLeNet")
    v1, v2, npz = folder / "v1" / "inception_v1.ckpt", folder / "v2" / "model.ckpt-4242", folder / "weights.npz"
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variables = [tf.compat.v1.get_variable(name, initializer=array) for name, array in arrays.items()]
        session.run([variable.initializer for variable in variables])
        for path, version in ((v1, tf.compat.v1.train.SaverDef.V1), (v2, tf.compat.v1.train.SaverDef.V2)):
            path.parent.mkdir()
            tf.compat.v1.train.Saver(variables, write_version=version).save(
                session, str(path), write_meta_graph=False, write_state=False)
    np.savez(npz, **arrays)
    archive = folder / "archive" / gradcam_googlenet.PUBLISHED.name
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz", compresslevel=0) as tar:
        tar.add(v1, "inception_v1.ckpt")
    return {"V1 file": v1, "V2 prefix": v2, "V2 index": v2.with_name(f"{v2.name}.index"), "npz": npz, "archive": archive,
            "folder of the archive": archive.parent}


def same(logits, expected):
    return np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.fixture(scope="module")
def network():
    return gradcam_googlenet.googlenet()


@pytest.fixture
def quick(monkeypatch, network):
    """`build` fills one network again and again: building takes longer than loading."""
    monkeypatch.setattr(gradcam_googlenet, "googlenet", lambda: network)


@pytest.fixture
def blank(quick, network):
    """The same, full of NaN, which shows what a load leaves unset."""
    for variable in network.weights:
        variable.assign(tf.fill(variable.shape, np.nan))


def test_every_variable_of_the_published_checkpoint_is_used_once(network):
    found = gradcam_googlenet.variables(network)
    assert {name: shape for name, (_, shape) in found.items()} == SHAPES and len(SHAPES) == 230
    used = [id(variable) for variable, _ in found.values()]
    assert len(set(used)) == len(used) and set(used) == {id(variable) for variable in network.weights}


@pytest.mark.parametrize("form", ["V1 file", "V2 prefix", "V2 index", "npz", "archive", "folder of the archive"])
def test_every_form_gives_the_logits_that_the_facts_give(blank, forms, form, x, expected, capfd):
    model = gradcam_googlenet.build(str(forms[form]), 0)
    assert capfd.readouterr() == ("", "")  # a run that goes well prints no framework chatter
    logits = model(x)[0].numpy()
    assert logits.shape == (1000,) and same(logits, expected)


def test_the_bundled_weights_give_the_logits_that_the_facts_give(x):
    with np.load(gradcam_googlenet.TINY, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    assert {name: array.shape for name, array in arrays.items()} == SHAPES
    assert np.abs(gradcam_googlenet.build("tiny", 0)(x)[0].numpy() - forward(arrays, x)[1:]).max() < 1e-4


def test_the_background_is_dropped_so_that_class_c_is_stored_at_c_plus_1(blank, arrays, x, tmp_path):
    np.savez(tmp_path / "flat.npz", **arrays | {f"{LOGITS}/weights": np.zeros((1, 1, 1024, 1001), np.float32),
                                                f"{LOGITS}/biases": np.arange(1001, dtype=np.float32)})
    assert np.array_equal(gradcam_googlenet.build(str(tmp_path / "flat.npz"), 0)(x)[0].numpy(), np.arange(1, 1001))


def test_random_weights_come_from_the_seed():
    one, same, other = (gradcam_googlenet.build("random", seed).get_layer("Logits").kernel.numpy() for seed in (3, 3, 4))
    assert np.array_equal(one, same) and not np.array_equal(one, other)


def without(arrays, name):
    return {key: array for key, array in arrays.items() if key != name}


BAD = {  # what is wrong with the variables: (what becomes of them, what the line must name)
    "a convolution is missing": (lambda a: without(a, f"{FIRST}/weights"), f"{FIRST}/weights"),
    "the last of all is missing": (lambda a: without(a, f"{LOGITS}/biases"), f"{LOGITS}/biases"),
    "a moving variance is missing": (lambda a: without(a, f"{FIRST}/BatchNorm/moving_variance"), "moving_variance"),
    "channels are swapped": (lambda a: a | {f"{FIRST}/weights": a[f"{FIRST}/weights"].swapaxes(2, 3)}, f"{FIRST}/weights"),
    "a vector is a number": (lambda a: a | {f"{FIRST}/BatchNorm/beta": np.float32(0)}, f"{FIRST}/BatchNorm/beta"),
    "a kernel is a matrix": (lambda a: a | {f"{LOGITS}/weights": a[f"{LOGITS}/weights"][0, 0]}, f"{LOGITS}/weights"),
    "no background": (lambda a: a | {f"{LOGITS}/biases": a[f"{LOGITS}/biases"][1:]}, f"{LOGITS}/biases"),
    "a NaN": (lambda a: a | {f"{FIRST}/BatchNorm/beta": np.full(64, np.nan, "f4")}, f"{FIRST}/BatchNorm/beta"),
    "an infinity": (lambda a: a | {f"{LOGITS}/biases": np.full(1001, np.inf, "f4")}, f"{LOGITS}/biases"),
    "words": (lambda a: a | {f"{FIRST}/BatchNorm/beta": np.full(64, "zero")}, ""),
    "another network": (lambda a: {"InceptionV3/Logits/biases": np.zeros(1001)}, FIRST),
    "nothing": (lambda a: {}, FIRST),
}


@pytest.mark.parametrize("wrong", BAD)
def test_variables_that_do_not_fit_are_refused(quick, arrays, tmp_path, wrong):
    change, named = BAD[wrong]
    path = tmp_path / "bad.npz"
    np.savez(path, **change(arrays))
    line = refusal(gradcam_googlenet.build, str(path), 0)
    assert str(path) in line and named in line


def cut(source, path, share):
    data = source.read_bytes()
    path.write_bytes(data[:int(len(data) * share)])


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.9999])
@pytest.mark.parametrize("form", ["V1 file", "npz", "archive"])
def test_truncated_files_are_refused_and_leave_no_litter(quick, forms, tmp_path, form, share):
    path = tmp_path / forms[form].name
    cut(forms[form], path, share)
    assert str(path) in refusal(gradcam_googlenet.build, str(path), 0)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("share", [None, 0, 0.5, 0.9999])
def test_a_checkpoint_without_its_data_is_refused(quick, forms, tmp_path, share):
    index = forms["V2 index"]
    data = next(index.parent.glob("*.data-*"))
    (tmp_path / index.name).write_bytes(index.read_bytes())
    if share is not None:
        cut(data, tmp_path / data.name, share)
    assert index.stem in refusal(gradcam_googlenet.build, str(tmp_path / index.stem), 0)


@pytest.mark.parametrize("name", ["inception_v1.ckpt", "weights.npz", "weights.tar.gz", "weights.h5", "weights"])
@pytest.mark.parametrize("data", [b"", b"these are no weights\n" * 99, bytes(range(256)) * 99], ids=["empty", "text", "noise"])
def test_what_is_no_weights_file_is_refused(quick, tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    assert str(tmp_path / name) in refusal(gradcam_googlenet.build, str(tmp_path / name), 0)


def test_a_file_that_is_not_there_is_named(quick, tmp_path):
    assert "gone.ckpt" in refusal(gradcam_googlenet.build, str(tmp_path / "gone.ckpt"), 0)


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("name", ["weights.npz", "raw.npz", "weights.ckpt", "weights.h5"])
def test_nothing_is_unpickled(quick, tmp_path, name):
    path, marker, trap = tmp_path / name, tmp_path / "sprung", np.empty(1, object)
    trap[0] = Trap(marker)
    if name == "weights.npz":
        np.savez(path, **dict.fromkeys(SHAPES, trap))
    else:
        path.write_bytes(pickle.dumps(trap[0]))
    assert str(path) in refusal(gradcam_googlenet.build, str(path), 0)
    assert not marker.exists()
    np.load(path, allow_pickle=True)[f"{FIRST}/weights"] if name == "weights.npz" else pickle.loads(path.read_bytes())
    assert marker.exists()  # the trap was set


def test_an_archive_is_unpacked_without_what_else_it_holds(quick, forms, tmp_path):
    path = tmp_path / "inner" / "archive.tar.gz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz", compresslevel=0) as tar:
        for name in ("../outside.txt", "beside.txt", "inception_v1.ckpt"):
            tar.add(forms["V1 file"] if "ckpt" in name else __file__, name)
    gradcam_googlenet.build(str(path), 0)
    assert os.listdir(tmp_path) == ["inner"] and set(os.listdir(path.parent)) <= {path.name, "inception_v1.ckpt"}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, None])
def test_an_archive_without_the_checkpoint_is_refused(quick, tmp_path, kind):
    path = tmp_path / "archive.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        member = tarfile.TarInfo("inception_v1.ckpt" if kind else "other.ckpt")
        member.type, member.linkname = kind or tarfile.REGTYPE, "/etc/hostname"
        tar.addfile(member)
    assert str(path) in refusal(gradcam_googlenet.build, str(path), 0)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("age", [-1000, 1000], ids=["older", "newer"])
def test_a_checkpoint_beside_an_archive_is_neither_read_for_it_nor_overwritten(
        blank, forms, x, expected, tmp_path, age):
    archive, beside = tmp_path / forms["archive"].name, tmp_path / "inception_v1.ckpt"
    archive.write_bytes(forms["archive"].read_bytes())
    beside.write_bytes(b"somebody's own work")
    when = archive.stat().st_mtime + age
    os.utime(beside, (when, when))
    assert same(gradcam_googlenet.build(str(archive), 0)(x)[0].numpy(), expected)
    assert beside.read_bytes() == b"somebody's own work"


# ---------------------------------------------------------------------------------------------------------------------
# Keras files


def save_published(model, path, group=None):
    """The layout of the published files (Keras 1 and 2): a group a layer, names and order in attributes."""
    with h5py.File(path, "w") as file:
        root = file.create_group(group) if group else file
        root.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
        root.attrs["backend"], root.attrs["keras_version"] = b"tensorflow", b"2.1.6"
        for layer in model.layers:
            folder = root.create_group(layer.name)
            names = [f"{layer.name}/{weight.name}:0" for weight in layer.weights]
            folder.attrs["weight_names"] = [name.encode() for name in names]
            for name, weight in zip(names, layer.weights):
                folder[name] = weight.numpy()


@pytest.fixture(scope="module")
def resnet():
    """ResNet50 in which no two arrays are alike, so that none can take another's place unseen."""
    model, rng = gradcam_resnet50.build("random", 7), np.random.default_rng(7)
    model.set_weights([rng.random(w.shape, np.float32) for w in model.weights])
    return model


@pytest.mark.parametrize("form", [".weights.h5", "folder of the published file"])
def test_resnet50_is_loaded_bit_for_bit(resnet, tmp_path, form):
    if form == ".weights.h5":
        given = path = tmp_path / "mine.weights.h5"
        resnet.save_weights(path)
    else:
        given, path = tmp_path, tmp_path / gradcam_resnet50.PUBLISHED.name
        save_published(resnet, path)
    loaded = gradcam_resnet50.build(str(given), 0)
    assert loaded.get_layer("predictions").activation is keras.activations.linear  # logits, never probabilities
    for stored, weight in zip(resnet.weights, loaded.weights, strict=True):
        assert stored.path == weight.path and np.array_equal(stored.numpy(), weight.numpy())
    path.unlink()  # a hundred megabytes


VGG19 = [shape for channels in ((3, 64), (64, 64), (64, 128), (128, 128), (128, 256), *[(256, 256)] * 3, (256, 512),
                                *[(512, 512)] * 7) for shape in ((3, 3, *channels), channels[1:])]
VGG19_DENSE = [(25088, 4096), (4096,), (4096, 4096), (4096,), (4096, 1000), (1000,)]


def vgg19(folder, shapes):
    """A file with the shapes of VGG19 alone: nothing is allocated for numbers that nobody writes."""
    path = folder / "vgg19.h5"
    with h5py.File(path, "w") as file:
        for number, shape in enumerate(shapes):
            file.create_dataset(f"layer_{number // 2}/{number}", shape, "f4")
    return path


@pytest.mark.parametrize("name, build, shapes", [
    ("resnet50", lambda path: gradcam_resnet50.build(path, 0), VGG19 + VGG19_DENSE),
    ("vgg16", lambda path: utils.build_vgg("vgg16", path, 0, classifier=False), VGG19)], ids=["resnet50", "vgg16"])
def test_the_file_of_another_network_is_refused(tmp_path, name, build, shapes):
    path = vgg19(tmp_path, shapes)
    line = refusal(build, str(path))
    assert str(path) in line and name in line


def test_a_file_without_the_classifier_is_refused_where_classes_are_asked_for(tmp_path):
    assert "classifier" in refusal(utils.build_vgg, "vgg19", str(vgg19(tmp_path, VGG19)), 0)


def small(width=4):
    keras.utils.set_random_seed(0)
    layers, x = keras.layers, keras.Input((8, 8, 3))
    y = layers.BatchNormalization(name="bn")(layers.Conv2D(4, 3, name="conv")(x))
    y = layers.GlobalAveragePooling2D()(layers.ReLU()(y))
    model = keras.Model(x, layers.Dense(width, name="logits")(y), name="small")
    rng = np.random.default_rng(0)
    model.set_weights([rng.random(w.shape, np.float32) for w in model.weights])
    return model


def write(model, path):
    save_published(model, path) if path.name == "a.h5" else model.save_weights(path)
    return path


@pytest.mark.parametrize("name", ["a.weights.h5", "a.h5"])
def test_a_small_network_is_loaded_bit_for_bit(tmp_path, name):
    stored, fresh = small(), keras.models.clone_model(small())
    utils.load_weights(fresh, write(stored, tmp_path / name))
    assert all(map(np.array_equal, stored.get_weights(), fresh.get_weights()))


@pytest.mark.parametrize("name", ["a.weights.h5", "a.h5"])
def test_a_file_whose_arrays_have_other_shapes_is_refused(tmp_path, name):
    line = refusal(utils.load_weights, small(5), write(small(), tmp_path / name))
    assert str(tmp_path / name) in line and "small" in line and "5" in line


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.6, 0.9, 0.999])
@pytest.mark.parametrize("name", ["a.weights.h5", "a.h5"])
def test_a_truncated_keras_file_is_refused(tmp_path, name, share):
    path = write(small(), tmp_path / name)
    cut(path, path, share)
    assert str(path) in refusal(utils.load_weights, small(), path)


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["a.weights.h5", "a.h5"])
def test_numbers_that_are_not_finite_are_refused(tmp_path, name, number):
    model = small()
    model.get_layer("bn").moving_mean.assign([0, 0, number, 0])
    assert "finite" in refusal(utils.load_weights, small(), write(model, tmp_path / name))


@pytest.mark.parametrize("right, wrong", [
    ("a.h5", "b.weights.h5"), ("a.weights.h5", "b.h5"), ("a.weights.h5", "weights"), ("a.h5", "b.hdf5")])
def test_a_layout_under_the_other_ending_is_loaded_right_or_refused(tmp_path, right, wrong):
    """Never half of it: Keras tells the layouts by their endings."""
    stored, fresh = small(), keras.models.clone_model(small())
    path = write(stored, tmp_path / right).rename(tmp_path / wrong)
    with warnings.catch_warnings(record=True) as warned:
        try:
            utils.load_weights(fresh, path)
        except utils.UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
        else:
            assert all(map(np.array_equal, stored.get_weights(), fresh.get_weights()))
    assert not [warning for warning in warned if warning.category is UserWarning]  # the error is the one line on stderr


def test_a_whole_model_in_the_older_layout_is_as_good_as_its_weights(tmp_path):
    stored, fresh = small(), keras.models.clone_model(small())
    save_published(stored, tmp_path / "model.h5", "model_weights")
    utils.load_weights(fresh, tmp_path / "model.h5")
    assert all(map(np.array_equal, stored.get_weights(), fresh.get_weights()))


@pytest.mark.parametrize("data", [b"", b"these are no weights\n" * 99, b"\x89HDF\r\n\x1a\n" + b"\0" * 999],
                         ids=["empty", "text", "header"])
def test_what_is_no_keras_file_is_refused(tmp_path, data):
    (tmp_path / "a.h5").write_bytes(data)
    assert str(tmp_path / "a.h5") in refusal(utils.load_weights, small(), tmp_path / "a.h5")


@pytest.mark.parametrize("script", [gradcam_googlenet, gradcam_resnet50])
def test_a_folder_without_the_published_file_names_it(quick, tmp_path, script):
    (tmp_path / "other.h5").touch()
    line = refusal(script.build, str(tmp_path), 0)
    assert str(tmp_path) in line and script.PUBLISHED.name in line


@pytest.mark.parametrize("name", ["vgg16", "vgg19"])
def test_one_folder_serves_both_vggs(tmp_path, name):
    for vgg in ("vgg16", "vgg19"):
        (tmp_path / f"{vgg}_weights_tf_dim_ordering_tf_kernels.h5").touch()
    assert str(tmp_path / f"{name}_weights_tf_dim_ordering_tf_kernels.h5") in refusal(utils.build_vgg, name, str(tmp_path), 0)


# ---------------------------------------------------------------------------------------------------------------------
# Published weights without a network

OFFLINE = """
import functools, hashlib, json, sys
from pathlib import Path
import gradcam_googlenet, gradcam_resnet50, utils
archive, cache = Path(sys.argv[1]), Path(sys.argv[2])
answers, gradcam_googlenet.googlenet = {}, functools.cache(gradcam_googlenet.googlenet)
def ask(name, build, *arguments):
    try:
        build(*arguments)
        answers[name] = "loaded"
    except utils.UserError as error:
        answers[name] = str(error)
ask("googlenet", gradcam_googlenet.build, "imagenet", 0)
ask("resnet50", gradcam_resnet50.build, "imagenet", 0)
ask("vgg16", utils.build_vgg, "vgg16", "imagenet", 0)
ask("vgg19", utils.build_vgg, "vgg19", "imagenet", 0)
cache.mkdir(exist_ok=True)
(cache / gradcam_resnet50.PUBLISHED.name).write_bytes(b"no weights")
ask("broken", gradcam_resnet50.build, "imagenet", 0)
(cache / gradcam_googlenet.PUBLISHED.name).write_bytes(archive.read_bytes())
ask("foreign", gradcam_googlenet.build, "imagenet", 0)
(cache / gradcam_googlenet.PUBLISHED.name).write_bytes(archive.read_bytes())  # as if it were the published one
gradcam_googlenet.PUBLISHED = gradcam_googlenet.PUBLISHED._replace(hash=hashlib.sha256(archive.read_bytes()).hexdigest())
ask("by hand", gradcam_googlenet.build, "imagenet", 0)
print("answers", json.dumps(answers))
"""


@pytest.fixture(scope="module")
def offline(forms, tmp_path_factory):
    """What `imagenet` answers on a machine without a network, and the folder where Keras keeps its files."""
    home = tmp_path_factory.mktemp("keras home")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")  # shut
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, forms["archive"], home / "models"], cwd=utils.HERE, capture_output=True, text=True,
        env={**os.environ, **nowhere, "no_proxy": "", "NO_PROXY": "", "KERAS_HOME": str(home)})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.rpartition("answers ")[2]), home / "models"


STORAGE = "https://storage.googleapis.com"
PUBLISHED = {
    "googlenet": f"{STORAGE}/download.tensorflow.org/models/inception_v1_2016_08_28.tar.gz",
    "resnet50": f"{STORAGE}/tensorflow/keras-applications/resnet/resnet50_weights_tf_dim_ordering_tf_kernels.h5",
    "vgg16": f"{STORAGE}/tensorflow/keras-applications/vgg16/vgg16_weights_tf_dim_ordering_tf_kernels.h5",
    "vgg19": f"{STORAGE}/tensorflow/keras-applications/vgg19/vgg19_weights_tf_dim_ordering_tf_kernels.h5",
}


@pytest.mark.parametrize("network", PUBLISHED)
def test_without_a_network_the_error_names_file_address_folder_and_two_ways_on(offline, network):
    answers, folder = offline
    line, address = answers[network], PUBLISHED[network]
    assert "\n" not in line and address in line and str(folder) in line
    assert address.rpartition("/")[2] in line.replace(address, "")
    assert "random" in line and "PATH" in line and ("tiny" in line) == (network == "googlenet")


@pytest.mark.parametrize("case", ["broken", "foreign"])
def test_a_cached_file_with_another_hash_is_never_loaded(offline, case):
    line = offline[0][case]
    assert line != "loaded" and "\n" not in line


def test_the_file_put_into_that_folder_by_hand_is_taken(offline):
    assert offline[0]["by hand"] == "loaded"


def test_the_archive_is_checked_against_the_published_hash():
    assert gradcam_googlenet.PUBLISHED.hash == "7a620c430fcaba8f8f716241f5148c4c47c035cce4e49ef02cfbe6cd1adf96a6"
