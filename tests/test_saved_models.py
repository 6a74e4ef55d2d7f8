"""Files of networks: of other people (of Keras 2, written once with tf_keras 2.21, outputs beside
them; of other libraries; with code in them), GoogLeNet's checkpoint, and what is refused.

Maps of what is saved and opened are those of a plain tape on the network built flat, without its
last activation, or on log p where that cannot be taken off; GoogLeNet's logits those of a second
forward pass in tf.nn, from the checkpoint alone."""

import errno
import functools
import json
import os
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path
from unittest import mock

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import channels_first, error, head, noise, shake, small, textbook, two_logits
from keras import layers as kl
from runs import CAT, program

import cnnvis
import utils
from cnnvis import graph, logits, networks, saved_models
from deconvnet_vgg import deconvnet
from gradcam_vgg import grad_cam, guided_backprop

FILES = Path(__file__).parent / "files"
OUTPUTS = np.load(FILES / "outputs.npz")


def assert_as_written(path, name):
    scores = saved_models.load_saved_model(path)(OUTPUTS["x"], training=False)
    np.testing.assert_allclose(scores, OUTPUTS[name], rtol=0, atol=3e-6)


def with_config(path, name, change):
    """A copy of one of the files, with another config in it."""
    shutil.copy(FILES / f"{name}.h5", path)
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        file.attrs["model_config"] = json.dumps(change(config))
    return path


def plainer(config):
    """A config as Keras up to 2.11 wrote it."""

    def without(part):
        newer = ("module", "registered_name", "build_config")
        return {key: part[key] for key in part if key not in newer}

    return json.loads(json.dumps(config), object_hook=without)


KERAS_2 = [
    "mobile.h5",  # DepthwiseConv2D with groups, as in every MobileNet
    "separable.h5",  # SeparableConv2D, Conv2DTranspose, SpatialDropout2D
    "sequential.h5",
    "mixed.h5",  # mixed_float16
    "nested_in_sequential.h5",  # «received 2 input tensors», BatchNormalization's axis [3]
    "nested_in_functional.h5",  # «loops or disconnected nodes»; frozen; a Sequential at the end
    "nested_in_functional.keras",  # the zip of Keras 2.12 to 2.15
    "teachable.h5",  # Sequentials in a Sequential, as Teachable Machine exports them
]


@pytest.mark.parametrize("name", KERAS_2)
def test_files_of_keras_2_open_and_give_the_same_scores(name, tmp_path):
    assert_as_written(FILES / name, Path(name).stem)
    if name.endswith(".h5"):
        earlier = with_config(tmp_path / "old.h5", Path(name).stem, plainer)
        assert_as_written(earlier, Path(name).stem)


def test_a_sequential_without_input_layer_and_as_a_bare_list(tmp_path):
    def begin_with_shape(config):
        del config["config"]["layers"][0]
        return config

    def bare(config):
        return {"class_name": "Sequential", "config": begin_with_shape(config)["config"]["layers"]}

    for change in (begin_with_shape, bare):
        assert_as_written(with_config(tmp_path / "old.h5", "sequential", change), "sequential")


@pytest.mark.parametrize("name", ["mine.keras", "mine.hdf5", "MINE.H5", "mine.weights.h5"])
def test_hdf5_opens_under_any_name(name, tmp_path):
    shutil.copy(FILES / "mobile.h5", tmp_path / name)
    assert saved_models.is_saved_network(tmp_path / name)
    assert_as_written(tmp_path / name, "mobile")


def test_weights_named_with_backslashes(tmp_path):
    with zipfile.ZipFile(FILES / "nested_in_functional.keras") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    weights = tmp_path / "weights.h5"
    weights.write_bytes(parts["model.weights.h5"])
    with h5py.File(weights, "r+") as file:
        holders = []
        file.visit(lambda name: holders.append(name) if name.endswith("/vars") else None)
        for name in holders:
            group = file.create_group(name.removesuffix("/vars").replace("/", "\\"))
            file.copy(name, group, "vars")
        del file["layers"]
    parts["model.weights.h5"] = weights.read_bytes()
    with zipfile.ZipFile(tmp_path / "windows.keras", "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    assert_as_written(tmp_path / "windows.keras", "nested_in_functional")


def test_code_in_a_file_is_not_run():
    with pytest.raises(utils.UserError, match=r"code of the file.*not run.*--import"):
        saved_models.load_saved_model(FILES / "lambd.h5")
    with pytest.raises(utils.UserError, match=r"tf.math.truediv.*TensorFlow.*Rescaling") as error:
        saved_models.load_saved_model(FILES / "tfop.h5")
    assert "Lambda" not in str(error.value)


TWICE = """
import keras

@keras.saving.register_keras_serializable("mine")
class Twice(keras.layers.Layer):
    def call(self, x):
        return 2 * x
"""


def test_a_custom_class_opens_once_its_code_is_imported(tmp_path):
    with pytest.raises(utils.UserError, match=r"Twice is no class of Keras.*--import") as error:
        saved_models.load_saved_model(FILES / "custom.h5")
    assert "saved by" not in str(error.value)
    code = tmp_path / "my_layers.py"
    code.write_text(TWICE)
    with mock.patch.dict(keras.saving.get_custom_objects()):
        saved_models.import_code(str(code))
        assert_as_written(FILES / "custom.h5", "custom")

        def unregistered(config):  # saved before the class was registered
            return json.loads(json.dumps(config).replace("mine>Twice", "Twice"))

        assert_as_written(with_config(tmp_path / "un.h5", "custom", unregistered), "custom")


def test_what_cannot_be_imported_is_one_line(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("import numpy\nnumpy.nothing_like_that()\n")
    none = r"give a \.py file or an installed module"
    wrong = {broken: r"broken.py: AttributeError: .*nothing_like_that", "no_such_module": none}
    for name, said in {**wrong, tmp_path / "none.py": none}.items():
        with pytest.raises(utils.UserError, match=said):
            saved_models.import_code(str(name))


def test_an_old_file_that_stays_closed_says_what_to_do(tmp_path):
    def unknown(config):
        config["config"]["layers"][1]["config"]["border_mode"] = "same"
        return config

    path = with_config(tmp_path / "old.h5", "sequential", unknown)
    with pytest.raises(utils.UserError, match=r"no 'border_mode'.*saved by Keras 2.*save the wei"):
        saved_models.load_saved_model(path)


def test_networks_of_other_libraries_and_pointers_of_git_lfs(tmp_path):
    for name in ("a.tflite", "a.ONNX", "a.pt", "a.pth", "a.pb"):
        (tmp_path / name).write_bytes(b"something")
        with pytest.raises(utils.UserError, match=r"(Lite|ONNX|PyTorch|graph).*Keras"):
            saved_models.refuse_foreign(tmp_path / name)
    saved_models.refuse_foreign(tmp_path)
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(utils.UserError, match=r"SavedModel.*mine\.h5"):
        saved_models.refuse_foreign(tmp_path)
    (tmp_path / "mine.h5").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:58ff")
    with pytest.raises(utils.UserError, match="git lfs pull"):
        saved_models.refuse_foreign(tmp_path / "mine.h5")


def test_errors_are_known_by_type_and_message_not_by_a_path():
    folder = "/data/lambda/zip/errno = 2/allow_pickle"
    full = OSError(errno.ENOSPC, "No space left on device", f"{folder}/a.h5")
    assert saved_models.explain_error(full, folder) == "No space left on device"
    assert saved_models.explain_error(RuntimeError("odd: None")) == "odd: None"
    for named in (folder, "/Weight count mismatch/a", "a"):
        assert (
            saved_models.explain_error(ValueError(f"an odd one: {named}"), named)
            == f"an odd one: {named}"
        )
    chained = "config={'shape': 1}. Exception encountered: first. Exception encountered: second"
    assert saved_models.explain_error(TypeError(chained), folder) == "second"
    with pytest.raises(utils.UserError, match="No such"):
        saved_models.load_saved_model(Path("none.h5"))
    for ours in (NameError("x"), AttributeError("x"), MemoryError(), utils.UserError("x")):
        assert not saved_models.is_loading_error(ours)
    with pytest.raises(ValueError) as caught:
        utils.colorize(np.zeros((1, 1)), "nowhere")  # a mistake in our own code
    assert not saved_models.is_loading_error(caught.value)
    with pytest.raises(utils.UserError, match=r"does not hold a\.h5 or b\.h5"):
        networks.published_file(FILES, ["a.h5", "b.h5"])


def test_what_cannot_be_drawn_is_said():
    def network(shape, inputs=1, outputs=1, flat=True):
        xs = [keras.Input(shape) for _ in range(inputs)]
        scores = [keras.layers.Flatten()(xs[0]) if flat else xs[0] for _ in range(outputs)]
        return keras.Model(xs, scores)

    wrong = {
        "no channels.*Reshape": network((28, 28)),
        "is no image": network((784,)),
        "4 channels": network((8, 8, 4)),
        "channels_first": network((3, 8, 8)),
        "2 inputs": network((8, 8, 3), inputs=2),
        "2 outputs": network((8, 8, 3), outputs=2),
        "has 3 dimensions": network((8, 8, 3), flat=False),
        "known sizes": keras.Sequential([keras.layers.Flatten()]),
    }
    for said, model in wrong.items():
        with pytest.raises(ValueError, match=f"{said}.*drawn are networks of one image"):
            logits.check_signature(model)


def on_vgg16(activation="softmax"):
    base = keras.applications.VGG16(include_top=False, weights=None, input_shape=(32, 48, 3))
    if activation is None:
        return keras.Model(base.input, head(None, 5)(kl.Flatten()(base.output)))
    layers = [kl.Dropout(0.2), base, kl.Flatten(), head(activation, 5)]
    return keras.Sequential([keras.Input((32, 48, 3)), *layers])


def mobilenet_v2(activation):
    options = {"weights": None, "input_shape": (64, 32, 3), "classes": 7}
    return keras.applications.MobileNetV2(**options, classifier_activation=activation)


def recurrent(layer, activation="softmax"):
    inputs = keras.Input((12, 10, 3))
    x = kl.Conv2D(4, 3, activation="relu", name="conv")(inputs)
    return keras.Model(inputs, head(activation)(layer(kl.Reshape((10, 32))(x))))


def hard_gru():
    return kl.GRU(3, recurrent_activation="hard_sigmoid")


imagenet = keras.applications.vgg16.preprocess_input
SAVED = {  # how it is built, given the activation; a layer
    "on VGG16.keras": (on_vgg16, "block5_conv3"),
    "MobileNetV2.h5": (mobilenet_v2, "out_relu"),
    "one sigmoid.keras": (functools.partial(small, units=1, before=imagenet), "conv2"),
    "six sigmoids.h5": (functools.partial(small, units=6, before=kl.Rescaling(1 / 255)), "conv1"),
    "softmax.h5": (small, "conv2"),
    "LSTM.keras": (lambda end: recurrent(kl.LSTM(5, activation="relu"), end), "conv"),
    "GRU.keras": (lambda end: recurrent(kl.GRU(5), end), "conv"),
    "Bidirectional.h5": (lambda end: recurrent(kl.Bidirectional(hard_gru()), end), "conv"),
}


@pytest.mark.parametrize("name", SAVED)
def test_maps_of_a_saved_network_are_those_of_a_plain_tape(tmp_path, name):
    build, layer = SAVED[name]
    saved = shake(build("sigmoid" if "sigmoid" in name else "softmax"))
    plain = build(None)
    plain.set_weights(saved.get_weights())
    saved.save(tmp_path / name)
    opened = cnnvis.open_network(keras.saving.load_model(tmp_path / name, compile=False))
    tf.config.run_functions_eagerly("RNN" not in name)  # to trace each takes long
    score = two_logits if "one sigmoid" in name else tf.identity
    for seed in range(2):
        x = noise(1, *saved.input_shape[1:], seed=seed)
        maps, logits = grad_cam(opened, x, [layer], [1, 0])
        expected, expected_logits = textbook(plain, x, layer, [1, 0], score=score)
        assert error(maps[layer], expected) < 1e-4
        assert error(logits, expected_logits) < 1e-4
    tf.config.run_functions_eagerly(False)


def average(activation, units):
    return lambda x: kl.Average()([kl.Dense(units, activation)(x) for _ in range(2)])


def renormalised(x):
    x = keras.ops.clip(head("softmax")(x), 0.05, 0.8)
    return x / keras.ops.sum(x, axis=-1, keepdims=True)


def yes_or_no(p):
    return tf.math.log(tf.concat([1 - p, p], axis=-1))


NO_LOGITS = {  # how it ends; what is explained
    "average_of_two_softmax_heads": (average("softmax", 3), tf.math.log),
    "softmax_twice": (lambda x: kl.Softmax()(head("softmax")(x)), tf.math.log),
    "clip_and_division": (renormalised, tf.math.log),
    "cast": (lambda x: keras.ops.cast(head("softmax")(x), "float64"), tf.math.log),
    "averaged_sigmoids": (average("sigmoid", 3), tf.math.log),
    "average_of_one_sigmoid": (average("sigmoid", 1), yes_or_no),
}


@pytest.mark.parametrize("end", NO_LOGITS)
def test_where_an_end_cannot_be_taken_off_log_p_is_explained(end):
    build, score = NO_LOGITS[end]
    inputs = keras.Input((9, 8, 3))
    x = kl.Conv2D(6, 3, activation="relu", name="conv")(inputs)
    model = shake(keras.Model(inputs, build(kl.GlobalAveragePooling2D()(x))))
    x = noise(1, 9, 8, 3)
    maps, outputs = grad_cam(cnnvis.open_network(model), x, ["conv"], [1, 0])
    expected, log_p = textbook(model, x, "conv", [1, 0], score=score)
    assert error(maps["conv"], expected) < 1e-4
    np.testing.assert_allclose(tf.nn.softmax(outputs), tf.nn.softmax(log_p), rtol=1e-4)


def test_an_open_input_size_is_asked_for():
    model = shake(small(shape=(None, None, 3)))
    for size in (None, 40, (40, 50, 3), (0, 50)):
        with pytest.raises(ValueError, match=r"size=\(height, width\)"):
            cnnvis.open_network(model, size)
    opened = cnnvis.open_network(model, size=(40, 50))
    x = noise(1, 40, 50, 3)
    assert opened.input_shape == (None, 40, 50, 3)
    np.testing.assert_allclose(tf.nn.softmax(opened(x)), model(x), rtol=1e-4)


class Unknown(kl.Layer):
    """A custom layer, which is not registered."""

    def call(self, x):
        return 2 * x


class Subclassed(keras.Model):
    def call(self, x):
        return x[:, 0, 0]


def test_custom_layers_are_opened_and_subclassed_or_channels_first_networks_refused():
    model = shake(small(None, before=Unknown()))
    x = noise(1, 64, 64, 3)
    np.testing.assert_array_equal(cnnvis.open_network(model)(x), model(x))
    with pytest.raises(ValueError, match="functional"):
        cnnvis.open_network(Subclassed())
    with pytest.raises(ValueError, match="channels_first"):
        cnnvis.open_network(channels_first())


def test_a_strided_pointwise_convolution_of_few_channels_does_not_end_the_process(tmp_path):
    """oneDNN's kernel for its filters' gradient, which nobody asked for, writes past its memory."""
    conv = kl.Conv2D(8, 3, padding="same", name="conv")
    above = [kl.Conv2D(16, 1, strides=2), kl.GlobalAveragePooling2D(), head("softmax")]
    keras.Sequential([keras.Input((64, 64, 1)), conv, *above]).save(tmp_path / "narrow.keras")
    words = "--weights narrow.keras --preprocess unit --layers conv --figures layers,guided"
    done = program("gradcam_vgg", CAT, words, cwd=tmp_path)
    assert (done.code, len(done.out)) == (0, 2), done.err


MINE = f"gradcam_resnet50 {CAT} --weights mine.keras --preprocess none"
GOOGLENET = f"gradcam_googlenet {CAT} --figures classes --arrays --weights"


def test_layers_of_inner_networks_are_listed_drawn_and_asked_for(run):
    layers = [keras.Input((32, 32, 3))]
    for name in ("left", "right"):
        inner = [kl.Conv2D(4, 3, name="conv"), kl.BatchNormalization(name="norm"), kl.ReLU()]
        inner[2].name = "relu"
        layers += [keras.Sequential(inner, name=name), kl.MaxPooling2D(name=f"pool_{name}")]
    shake(keras.Sequential([*layers, kl.Flatten(), head("softmax")])).save("mine.keras")
    right = ["right/conv", "right/norm", "right/relu", "pool_right"]
    listed = run(MINE, "--list-layers")
    assert (listed.code, listed.out) == (0, ["conv", "norm", "relu", "pool_left", *right])
    units = run("deconvnet_vgg --weights mine.keras --list-layers").out
    assert units == [*listed.out, "head"]
    assert "right/conv" in run(MINE, "--layers left/conv").error()
    found = run(MINE, "--figures layers --arrays --classes 0").arrays()
    drawn = {key for key in found if key.endswith("/0")}
    assert drawn == {"mine/relu/0", "mine/right/relu/0"}  # one a resolution
    words = "--figures layers --arrays --classes 2 --layers 'relu,right/n*'"
    found = run(MINE, words).arrays()
    opened = cnnvis.open_network(keras.saving.load_model("mine.keras"))
    layers = ["relu", "right/norm"]
    maps, logits = grad_cam(opened, found["mine/input"], layers, [2])
    assert error(found["mine/logits"], logits) < 1e-4
    for layer in layers:
        assert error(found[f"mine/{layer}/2"], maps[layer][0]) < 1e-4


TABLE = Path(__file__).with_name("inception_v1_checkpoint.tsv").read_text().splitlines()[1:]
SHAPES = {name: tuple(map(int, shape.split("x"))) for name, shape in map(str.split, TABLE)}
FIRST, LOGITS = "InceptionV1/Conv2d_1a_7x7", "InceptionV1/Logits/Conv2d_0c_1x1"
ARCHIVE = "inception_v1_2016_08_28.tar.gz"
pool = functools.partial(tf.nn.max_pool2d, strides=2, padding="SAME")


def explained(saved, x):
    """Maps, logits, guided backpropagation and projections of a network as it is opened now."""
    model = cnnvis.open_network(saved)
    layer = list(graph.named_layers(model))[-1]
    maps, logits = grad_cam(model, x, [layer], [0, 1])
    guided = guided_backprop(model, x, [1])
    return [maps[layer], logits, guided, deconvnet(model, x, layer, [0, 1], rule="guided")]


def test_half_precision_and_channels_first_do_not_leak_in():
    saved, x = small(), noise(1, 64, 64, 3)
    expected = explained(saved, x)
    keras.config.set_floatx("float16")
    keras.config.set_image_data_format("channels_first")
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:
        found = explained(saved, x)
        assert keras.config.floatx() == "float16"  # what the person chose stays
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_image_data_format("channels_last")
        keras.mixed_precision.set_dtype_policy("float32")
    for got, wanted in zip(found, expected, strict=True):
        assert got.dtype == np.float32 and error(got, wanted) < 1e-6


def test_a_layer_that_gives_another_shape_than_it_declares_is_named():
    stack = [keras.Input((64, 64, 3)), kl.RandomCrop(32, 32), kl.Conv2D(4, 3, name="conv")]
    model = keras.Sequential([*stack, kl.GlobalAveragePooling2D(), kl.Dense(2)])
    with pytest.raises(ValueError, match=r"conv declares maps of \(30, 30, 4\)"):
        networks.check_shapes(cnnvis.open_network(model))


def test_a_vgg_of_keras_hub_whose_layers_an_import_makes_known(tmp_path):
    hub = pytest.importorskip("keras_hub")  # its preprocessor is no part of what is drawn
    blocks = {"stackwise_num_repeats": [1, 1], "stackwise_num_filters": [4, 8]}
    backbone = hub.models.VGGBackbone(image_shape=(32, 32, 3), **blocks)
    pool = {"pooling": "avg", "pooling_hidden_dim": 16}
    model = hub.models.VGGImageClassifier(backbone, num_classes=3, activation="softmax", **pool)
    model.save(tmp_path / "hub.keras")
    saved_models.import_code("keras_hub")
    opened, x = (
        cnnvis.open_network(saved_models.load_saved_model(tmp_path / "hub.keras")),
        noise(1, 32, 32, 3),
    )
    layer = list(graph.named_layers(opened))[-1]
    maps, logits = grad_cam(opened, x, [layer], [0, 2])
    np.testing.assert_allclose(np.exp(logits) / np.exp(logits).sum(), model(x)[0], rtol=1e-4)
    assert error(maps[layer], textbook(opened, x, layer, [0, 2])[0]) < 1e-4


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


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_checkpoint_gives_the_logits_of_the_second_way(run, arrays, forms, form):
    found = run(GOOGLENET, f"'{forms / form}' --classes top1").arrays()
    expected = forward(arrays, found["googlenet/input"])[1:]  # without the background
    assert error(found["googlenet/logits"], expected) < 1e-4


def trapped():
    """A network whose code, were it run, would make a folder."""
    trap = kl.Lambda(lambda x: (__import__("os").mkdir("sprung"), x)[1])
    trap.call = lambda x: x  # here; not in the file
    return small(before=trap)


class Trap:
    def __reduce__(self):
        return os.mkdir, ("sprung",)


TEXT = b"these are no weights\n" * 99
PICKLE = pickle.dumps(Trap())
CHECKPOINT = "inception_v1.ckpt"
NETWORK_FILES = {  # what is saved, or the bytes; what the line says besides the file's name
    "lambda.keras": (trapped, "Lambda"),
    "lambda.h5": (trapped, "Lambda"),
    "truncated.keras": (small, "not a whole one"),
    "truncated.h5": (small, "truncated"),
    "text.keras": (TEXT, "no network"),
    "pickle.keras": (PICKLE, ""),
    "pickle.h5": (PICKLE, ""),
    "text.tar.gz": (TEXT, ""),
    "pickle.ckpt": (PICKLE, ""),
    "text.npz": (TEXT, "no arrays"),
}


@pytest.mark.parametrize("name", NETWORK_FILES)
def test_files_that_are_no_networks_are_refused(run, name):
    content, said = NETWORK_FILES[name]
    if callable(content):
        content().save(name)
        content = Path(name).read_bytes()
    Path(name).write_bytes(content[: int(len(content) * 0.6)] if "truncated" in name else content)
    line = run(GOOGLENET, name).error()
    assert name in line and said in line.replace(name, "")
    assert not Path("sprung").exists()


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


def test_the_traps_of_these_tests_are_set(run):
    trapped().save("trap.keras")
    keras.saving.load_model("trap.keras", safe_mode=False)
    Path("sprung").rmdir()
    pickle.loads(PICKLE)
    Path("sprung").rmdir()
