"""Files of networks: of other people, of other libraries, with code in them, broken ones; and the
classes that --import makes known."""

import errno
import json
import os
import pickle
import re
import shutil
import sys
import zipfile
from pathlib import Path
from unittest import mock

import h5py
import keras
import numpy as np
import pytest
from helpers import Projector, error, head, noise, shake, small, textbook
from keras import layers as kl
from runs import CAT, refusal
from test_googlenet import GOOGLENET, Trap
from test_keras2 import FILES, assert_as_written, with_config

import cnnvis
import utils
from cnnvis import graph, networks, saved_models
from cnnvis.gradcam_figures import reinitialise
from cnnvis.saved_models import is_saved_network, load_saved_model
from deconvnet_vgg import deconvnet
from gradcam_vgg import grad_cam


def test_code_in_a_file_is_not_run():
    with pytest.raises(utils.UserError, match=r"code of the file.*not run.*--import"):
        load_saved_model(FILES / "lambd.h5")
    with pytest.raises(utils.UserError, match=r"tf.math.truediv.*TensorFlow.*Rescaling") as error:
        load_saved_model(FILES / "tfop.h5")
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
        load_saved_model(FILES / "custom.h5")
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


@pytest.mark.parametrize("beside", ["utils", "gradcam_vgg", "runs", "others"])
@pytest.mark.parametrize("end", ["", "1 / 0"])
def test_an_imported_file_finds_the_modules_beside_it(tmp_path, beside, end):
    (tmp_path / f"{beside}.py").write_text("SCALE = 7")
    (tmp_path / "mine.py").write_text(f"from {beside} import SCALE\nassert SCALE == 7\n{end}")
    ours, path = sys.modules.get(beside), list(sys.path)
    try:
        if end:
            assert "ZeroDivisionError" in refusal(saved_models.import_code, tmp_path / "mine.py")
        else:
            saved_models.import_code(str(tmp_path / "mine.py"))
        assert sys.modules[beside] is ours or beside == "others"
        assert sys.path == [*dict.fromkeys(path), str(tmp_path)]
    finally:
        sys.path[:] = path
        sys.modules.pop("others", None)


def test_a_vgg_of_keras_hub_whose_layers_an_import_makes_known(tmp_path):
    hub = pytest.importorskip("keras_hub")  # its preprocessor is no part of what is drawn
    blocks = {"stackwise_num_repeats": [1, 1], "stackwise_num_filters": [4, 8]}
    backbone = hub.models.VGGBackbone(image_shape=(32, 32, 3), **blocks)
    pool = {"pooling": "avg", "pooling_hidden_dim": 16}
    model = hub.models.VGGImageClassifier(backbone, num_classes=3, activation="softmax", **pool)
    model.save(tmp_path / "hub.keras")
    saved_models.import_code("keras_hub")
    opened, x = (
        cnnvis.open_network(load_saved_model(tmp_path / "hub.keras")),
        noise(1, 32, 32, 3),
    )
    layer = list(graph.named_layers(opened))[-1]
    maps, logits = grad_cam(opened, x, [layer], [0, 2])
    np.testing.assert_allclose(np.exp(logits) / np.exp(logits).sum(), model(x)[0], rtol=1e-4)
    assert error(maps[layer], textbook(opened, x, layer, [0, 2])[0]) < 1e-4


def same(config):
    return config


def altered(path, change=same, version=keras.__version__):
    """A network that this Keras saved, with another config and version."""
    small().save(path)
    if path.suffix == ".h5":
        with h5py.File(path, "r+") as file:
            file.attrs["model_config"] = json.dumps(change(json.loads(file.attrs["model_config"])))
            file.attrs["keras_version"] = version
        return path
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["config.json"] = json.dumps(change(json.loads(parts["config.json"])))
    parts["metadata.json"] = json.dumps({"keras_version": version})
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


DEEP = json.loads("[" * 800 + "]" * 800)
INPUT = {"class_name": "InputLayer", "config": {"name": DEEP}}
BROKEN = {  # what the line says: configs
    "its config describes no network": (
        {},
        None,
        DEEP,
        {"class_name": 3, "config": {}},
        {"class_name": "Functional", "config": None},
        {"class_name": "Functional", "config": {"name": "mine"}},
        {"class_name": "Sequential", "config": {"layers": None}},
        {"class_name": "Sequential", "config": {"layers": [1]}},
    ),
    "without layers": ({"class_name": "Sequential", "config": {"layers": []}},),
    "": ({"class_name": "Sequential", "config": {"layers": [INPUT]}},),
}


@pytest.mark.parametrize("name", ["mine.keras", "mine.h5"])
@pytest.mark.parametrize("version", ["2.15.0", keras.__version__])
@pytest.mark.parametrize("said", BROKEN)
def test_a_config_of_no_network_is_one_line(tmp_path, name, version, said):
    for config in BROKEN[said]:
        path = altered(tmp_path / name, lambda _, broken=config: broken, version)
        line = refusal(load_saved_model, path)
        assert said in line and (not said or "saved by" not in line)


def test_an_empty_sequential_network(tmp_path):
    for name in ("empty.keras", "empty.h5"):
        keras.Sequential().save(tmp_path / name)
        assert "without layers" in refusal(load_saved_model, tmp_path / name)


def test_versions_that_are_none(tmp_path):
    for version in (3, 3.5, "3"):
        load_saved_model(altered(tmp_path / "mine.keras", same, version))
    for version in (None, "nightly", "", [3]):
        line = refusal(load_saved_model, altered(tmp_path / "mine.keras", same, version))
        assert "names no version of Keras" in line
    assert "'odd'" in refusal(load_saved_model, altered(tmp_path / "mine.h5", same, "odd"))


@pytest.mark.parametrize("name", ["config.json", "metadata.json"])
def test_a_zip_bomb_is_not_read(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "bomb.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        for part in ("config.json", "metadata.json"):
            archive.writestr(part, b"{}" + (b" " * (65 << 20) if part == name else b""))
    with mock.patch.object(json, "loads", side_effect=lambda text: {} if len(text) < 9 else 1 / 0):
        assert f"{name} is 65 MB" in refusal(load_saved_model, tmp_path / "bomb.keras")


@pytest.mark.parametrize("name", ["mine.keras", "mine.h5"])
@pytest.mark.parametrize("fault", ["argument", "class"])
def test_a_newer_keras_is_advised_where_loading_fails(tmp_path, name, fault):
    def change(config):
        layer = config["config"]["layers"][1]
        layer["config"]["brand_new"] = 1
        layer["class_name"] = "BrandNew" if fault == "class" else layer["class_name"]
        return config

    load_saved_model(altered(tmp_path / name, same, "99.0"))
    for version, is_newer in (("99.0", True), (keras.__version__, False), ("3.0.0", False)):
        line = refusal(load_saved_model, altered(tmp_path / name, change, version))
        assert ("newer" in line and "upgrade Keras" in line) == is_newer


@pytest.mark.parametrize("version", ["1", "1.2.2"])
def test_keras_1(tmp_path, version):
    layer = {"class_name": "Convolution2D", "config": {"nb_filter": 4, "border_mode": "same"}}
    network = {"class_name": "Sequential", "config": [layer]}
    line = refusal(load_saved_model, altered(tmp_path / "mine.h5", lambda _: network, version))
    assert "Keras 1 saved it: load it with Keras 2" in line and "--import" not in line


OPERATIONS = {
    "true_divide": lambda x: x / 255.0,
    "mean": lambda x: keras.ops.mean(x, axis=-1, keepdims=True),
    "get_item": lambda x: x[..., ::-1],
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_hdf5_does_not_keep_operations(tmp_path, name):
    model = small(before=OPERATIONS[name])
    for ending in (".keras", ".h5"):
        model.save(tmp_path / f"mine{ending}")
    load_saved_model(tmp_path / "mine.keras")
    line = refusal(load_saved_model, tmp_path / "mine.h5")
    assert f"«{name}" in line and "save the network as .keras" in line and "--import" not in line


@pytest.mark.parametrize("ending", [".keras", ".h5"])
def test_attention_by_keyword_and_initial_states(tmp_path, ending):
    inputs = keras.Input((8, 8, 3))
    x = kl.Reshape((16, 12))(kl.Conv2D(12, 3, 2, "same", name="conv")(inputs))
    y = kl.MultiHeadAttention(2, 3)(kl.Attention()([x, x]), key=x, value=x, use_causal_mask=True)
    y = kl.GRU(4)(y, initial_state=kl.Dense(4)(kl.GlobalMaxPooling1D()(x)))
    model, x = shake(keras.Model(inputs, head()(y))), noise(1, 8, 8, 3)
    model.save(tmp_path / f"mine{ending}")
    loaded = load_saved_model(tmp_path / f"mine{ending}")
    for network in (loaded, cnnvis.open_network(loaded)):
        assert error(network(x), model(x)) < 1e-5


def adapted(how, alpha=None, before_head=()):
    """A network with LoRA, quantised, both, or neither."""
    stack = [kl.Conv2D(6, 3, activation="relu", name="conv"), kl.Dense(7, "relu", name="dense")]
    model = keras.Sequential([keras.Input((12, 12, 3)), *stack, *before_head, kl.Flatten(), head()])
    for layer in model.layers:
        if "lora" in how and hasattr(layer, "enable_lora"):
            layer.enable_lora(2, lora_alpha=alpha)
    shake(model)
    for mode in {"int8", "int4", "float8"} & set(how.split()):
        model.quantize(mode)
    return model


@pytest.mark.parametrize("ending", [".keras", ".h5"])
@pytest.mark.parametrize("how", ["int8", "int4", "lora", "lora int8"])
def test_quantised_networks_and_lora_are_drawn_as_loaded(tmp_path, how, ending):
    model = adapted(how)
    model.save(tmp_path / f"mine{ending}")
    loaded = load_saved_model(tmp_path / f"mine{ending}")
    opened, x, layers = cnnvis.open_network(loaded), noise(1, 12, 12, 3), ["conv", "dense"]
    maps, logits = grad_cam(opened, x, layers, [0, 2])
    assert error(logits, loaded(x)[0]) < 1e-5
    for layer in layers:
        assert error(maps[layer], textbook(loaded, x, layer, [0, 2])[0]) < 1e-4
    projected = Projector(loaded, x).project("dense", [1, 2], "all", "deconvnet")
    assert error(deconvnet(opened, x, "dense", [1, 2], "all"), projected) < 1e-4
    control = reinitialise(0, opened)
    assert grad_cam(control, x, ["conv"], [0])[0]["conv"].any()


def test_a_copy_has_the_scale_of_lora():
    model, x = adapted("lora", alpha=16), noise(1, 12, 12, 3)
    assert error(cnnvis.open_network(model)(x), model(x)) < 1e-5


PRECISIONS = ["mixed_float16", "mixed_bfloat16", "float16", "bfloat16", "float64"]


@pytest.mark.parametrize("how", PRECISIONS)
def test_networks_of_other_precisions_are_drawn_in_float32(tmp_path, how):
    policy = keras.DTypePolicy(how)
    deep = kl.TimeDistributed(kl.Dense(5, dtype=policy), dtype=policy, name="deep")
    adapted("", before_head=[deep]).save(tmp_path / "mine.keras")
    loaded, x = load_saved_model(tmp_path / "mine.keras"), noise(1, 12, 12, 3)
    opened = cnnvis.open_network(loaded)
    assert error(opened(x), np.float32(loaded(x))) < 1e-2
    deep = opened.get_layer("deep")
    assert deep.compute_dtype == deep.layer.compute_dtype == "float32"


def quantised_attention():
    inputs = keras.Input((12, 12, 3))
    rows = kl.Reshape((144, 3))(inputs)
    scores = head()(kl.Flatten()(kl.MultiHeadAttention(2, 3)(rows, rows)))
    model = keras.Model(inputs, scores)
    model.quantize("int8")
    return model


LOST = {  # files: the network in them, what the line says
    "float8.keras": (lambda: adapted("float8"), "is quantised to float8.*before quantize"),
    "float8.h5": (lambda: adapted("float8"), "is quantised to float8.*before quantize"),
    "heads.keras": (quantised_attention, "is quantised to int8.*before quantize"),
    "heads.h5": (quantised_attention, "is quantised to int8.*before quantize"),
    "lora.h5": (lambda: adapted("lora", alpha=16), "lora_alpha=16, .*save the network as .keras"),
    "half.h5": (
        lambda: adapted("", before_head=[kl.Dense(4, dtype="bfloat16")]),
        "its numbers are bfloat16: save the network as .keras",
    ),
}


@pytest.mark.parametrize("name", LOST)
def test_what_keras_does_not_read_back_or_differentiate(run, name):
    make, said = LOST[name]
    make().save(name)
    assert re.search(said, run(f"gradcam_vgg {CAT} --preprocess none --weights", name).error())


class Mine(keras.Model):
    def call(self, x):
        return x


def test_a_subclassed_network(tmp_path):
    bare = {"class_name": "Mine", "config": {}}
    model = Mine()
    model(noise(1, 8, 8, 3))
    model.save(tmp_path / "saved.keras")
    for path in (tmp_path / "saved.keras", altered(tmp_path / "mine.h5", lambda _: bare)):
        line = refusal(load_saved_model, path)
        assert "Mine is no class of Keras" in line and "--import" in line
        assert "keras.Model(inputs, outputs)" in line


def test_hdf5_with_nothing_in_it_or_with_no_network(tmp_path):
    for name in ("nothing.h5", "nothing.keras"):
        h5py.File(tmp_path / name, "w").close()
        assert "with nothing in it" in refusal(is_saved_network, tmp_path / name)
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file["kernel"] = 1
    assert not is_saved_network(tmp_path / "weights.h5")


KERNEL = "model_weights/conv2d_1/conv2d_1/kernel:0"


@pytest.mark.parametrize("part", ["model_weights", "model_weights/conv2d_1", KERNEL, "raw"])
def test_parts_in_other_files_are_not_read(tmp_path, part):
    source, path = FILES / "sequential.h5", tmp_path / "mine.h5"
    is_raw = part == "raw"
    shutil.copy(source, path)
    with h5py.File(path, "r+") as file:
        shape = file[KERNEL].shape
        del file[KERNEL if is_raw else part]
        if is_raw:
            file.create_dataset(KERNEL, shape, "f4", external="secret")
        else:
            file[part] = h5py.ExternalLink(source, part)
    assert "in another file, which is not read" in refusal(load_saved_model, path)


def test_networks_of_other_libraries_and_pointers_of_git_lfs(tmp_path):
    for name in ("a.tflite", "a.ONNX", "a.pt", "a.pth", "a.pb"):
        (tmp_path / name).write_bytes(b"something")
        with pytest.raises(utils.UserError, match=r"(Lite|ONNX|PyTorch|graph).*Keras"):
            saved_models.refuse_foreign(tmp_path / name)
    saved_models.refuse_foreign(tmp_path)
    for name, line in {"saved_model.pb": "keeps no layers", "keras_metadata.pb": "mine.h5"}.items():
        (tmp_path / name).touch()
        with pytest.raises(utils.UserError, match=f"SavedModel.*{line}"):
            saved_models.refuse_foreign(tmp_path)
    os.mkfifo(tmp_path / "pipe.keras")
    with pytest.raises(utils.UserError, match="no regular file"):
        saved_models.refuse_foreign(tmp_path / "pipe.keras")
    (tmp_path / "mine.h5").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:58ff")
    with pytest.raises(utils.UserError, match="git lfs pull"):
        saved_models.refuse_foreign(tmp_path / "mine.h5")


def test_errors_are_known_by_type_and_message_not_by_a_path():
    folder = "/data/lambda/zip/errno = 2/allow_pickle"
    full = OSError(errno.ENOSPC, "No space left on device", f"{folder}/a.h5")
    assert saved_models.explain_error(full, folder) == "No space left on device"
    assert saved_models.explain_error(RuntimeError("odd: None")) == "odd: None"
    foreign = ValueError("File format not supported: filepath=a.npz. Keras 3 only supports V3")
    assert saved_models.explain_error(foreign).startswith("it is no file of weights")
    for named in (folder, "/Weight count mismatch/a", "a"):
        assert (
            saved_models.explain_error(ValueError(f"an odd one: {named}"), named)
            == f"an odd one: {named}"
        )
    chained = "config={'shape': 1}. Exception encountered: first. Exception encountered: second"
    assert saved_models.explain_error(TypeError(chained), folder) == "second"
    with pytest.raises(utils.UserError, match="No such"):
        load_saved_model(Path("none.h5"))
    for ours in (NameError("x"), AttributeError("x"), MemoryError(), utils.UserError("x")):
        assert not saved_models.is_loading_error(ours)
    with pytest.raises(ValueError) as caught:
        utils.colorize(np.zeros((1, 1)), "nowhere")  # a mistake in our own code
    assert not saved_models.is_loading_error(caught.value)
    with pytest.raises(utils.UserError, match=r"does not hold a\.h5 or b\.h5"):
        networks.published_file(FILES, ["a.h5", "b.h5"])


MINE = f"gradcam_resnet50 {CAT} --weights mine.keras --preprocess none"


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


def trapped():
    """A network whose code, were it run, would make a folder."""
    trap = kl.Lambda(lambda x: (__import__("os").mkdir("sprung"), x)[1])
    trap.call = lambda x: x  # here; not in the file
    return small(before=trap)


TEXT = b"these are no weights\n" * 99
PICKLE = pickle.dumps(Trap())
CHECKPOINT = "inception_v1.ckpt"
NETWORK_FILES = {  # what is saved, or the bytes; what the line says besides the file's name
    "lambda.keras": (trapped, "Lambda"),
    "lambda.h5": (trapped, "Lambda"),
    "truncated.keras": (small, "is incomplete"),
    "truncated.h5": (small, "truncated"),
    "text.keras": (TEXT, "not a Keras network"),
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


def test_the_traps_of_these_tests_are_set(run):
    trapped().save("trap.keras")
    keras.saving.load_model("trap.keras", safe_mode=False)
    Path("sprung").rmdir()
    pickle.loads(PICKLE)
    Path("sprung").rmdir()
