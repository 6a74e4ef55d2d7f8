"""Networks of other people: files of Keras 2 (written once with tf_keras 2.21,
outputs beside them), of other libraries, with code in them, and of other shapes."""

import errno
import json
import shutil
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

import utils

FILES = Path(__file__).parent / "files"
OUTPUTS = np.load(FILES / "outputs.npz")


def assert_as_written(path, name):
    scores = utils.load_saved(path)(OUTPUTS["x"], training=False)
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
    assert utils.is_saved_network(tmp_path / name)
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
        utils.load_saved(FILES / "lambd.h5")
    with pytest.raises(utils.UserError, match=r"tf.math.truediv.*TensorFlow.*Rescaling") as error:
        utils.load_saved(FILES / "tfop.h5")
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
        utils.load_saved(FILES / "custom.h5")
    assert "saved by" not in str(error.value)
    before = dict(keras.saving.get_custom_objects())
    code = tmp_path / "my_layers.py"
    code.write_text(TWICE)
    try:
        utils.import_code(str(code))
        assert_as_written(FILES / "custom.h5", "custom")

        def unregistered(config):  # saved before the class was registered
            return json.loads(json.dumps(config).replace("mine>Twice", "Twice"))

        assert_as_written(with_config(tmp_path / "un.h5", "custom", unregistered), "custom")
    finally:
        keras.saving.get_custom_objects().clear()
        keras.saving.get_custom_objects().update(before)


def test_what_cannot_be_imported_is_one_line(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("import numpy\nnumpy.nothing_like_that()\n")
    none = r"give a \.py file or an installed module"
    wrong = {broken: r"broken.py: AttributeError: .*nothing_like_that", "no_such_module": none}
    for name, said in {**wrong, tmp_path / "none.py": none}.items():
        with pytest.raises(utils.UserError, match=said):
            utils.import_code(str(name))


def test_an_old_file_that_stays_closed_says_what_to_do(tmp_path):
    def unknown(config):
        config["config"]["layers"][1]["config"]["border_mode"] = "same"
        return config

    path = with_config(tmp_path / "old.h5", "sequential", unknown)
    with pytest.raises(utils.UserError, match=r"no 'border_mode'.*saved by Keras 2.*save the wei"):
        utils.load_saved(path)


def test_networks_of_other_libraries_and_pointers_of_git_lfs(tmp_path):
    for name in ("a.tflite", "a.ONNX", "a.pt", "a.pth", "a.pb"):
        (tmp_path / name).write_bytes(b"something")
        with pytest.raises(utils.UserError, match=r"(Lite|ONNX|PyTorch|graph).*Keras"):
            utils.refuse_foreign(tmp_path / name)
    utils.refuse_foreign(tmp_path)
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(utils.UserError, match=r"SavedModel.*mine\.h5"):
        utils.refuse_foreign(tmp_path)
    (tmp_path / "mine.h5").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:58ff")
    with pytest.raises(utils.UserError, match="git lfs pull"):
        utils.refuse_foreign(tmp_path / "mine.h5")


def test_errors_are_known_by_type_and_message_not_by_a_path(tmp_path):
    folder = "/data/lambda/zip/errno = 2/allow_pickle"
    full = OSError(errno.ENOSPC, "No space left on device", f"{folder}/a.h5")
    assert utils.explain(full) == "No space left on device"
    assert utils.explain(RuntimeError(f"{folder}: odd")) == f"{folder}: odd"
    chained = "config={'shape': 1}. Exception encountered: first. Exception encountered: second"
    assert utils.explain(TypeError(chained)) == "second"
    (tmp_path / "half.keras").write_bytes(b"half of a file")
    for name, said in (("half.keras", "no network"), ("none.h5", "No such")):
        with pytest.raises(utils.UserError, match=said):
            utils.load_saved(tmp_path / name)
    for error in (NameError("x"), AttributeError("x"), MemoryError(), utils.UserError("x")):
        assert not utils.is_of_loading(error)


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
            utils.check_signature(model)


def test_copies_keep_activations():
    layers = keras.layers
    x = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)
    kinds = [
        layers.LSTM(3, activation="relu"),
        layers.Bidirectional(layers.GRU(3, recurrent_activation="hard_sigmoid")),
        layers.Dense(3, activation=lambda x: x * (x > 0.1)),  # Keras knows no name of it
        layers.Dense(3, activation="softmax", dtype="mixed_float16"),
    ]
    for layer in kinds:
        expected = layer(x)
        copy = utils.copy_operation(layer)
        copy.build(x.shape)
        copy.set_weights(layer.get_weights())
        assert copy is not layer and copy.compute_dtype == "float32"
        atol = 2e-3 if layer is kinds[-1] else 1e-6
        np.testing.assert_allclose(copy(x), expected, atol=atol)
    bare = utils.copy_operation(kinds[-1], linear=True)
    assert bare.activation is keras.activations.linear
