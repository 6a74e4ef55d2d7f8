"""Files that Keras 2 saved, written once with tf_keras 2.21 (numbered.keras: Keras 2.13.1), outputs
beside them; and the same files with configs as other versions and other networks have them."""

import json
import re
import shutil
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from runs import refusal

import cnnvis
from cnnvis import graph
from cnnvis.keras2 import config_parts
from cnnvis.saved_models import is_saved_network, load_saved_model

FILES = Path(__file__).parent / "files"
OUTPUTS = np.load(FILES / "outputs.npz")


def assert_as_written(path, name):
    model = load_saved_model(path)
    np.testing.assert_allclose(model(OUTPUTS["x"], training=False), OUTPUTS[name], 0, 3e-6)
    return model


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
    "numbered.keras",  # Keras 2.13 numbers its layers conv2d, conv2d_2, conv2d_4
    "attention.h5",  # tensors by keyword, initial states, a constant, cells, two calls of a network
    "attention.keras",
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
    assert is_saved_network(tmp_path / name)
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


@pytest.mark.parametrize("name", ["mobile", "nested_in_functional", "teachable"])
def test_layers_with_a_slash_in_their_names(name, tmp_path):
    names = set()

    def rename(config):
        text = json.dumps(config)
        names.update(part["name"] for part in config_parts(config) if "name" in part)
        for layer in names:
            text = text.replace(f'"{layer}"', f'"a/{layer}"')
        return json.loads(text)

    model = assert_as_written(with_config(tmp_path / "slashes.h5", name, rename), name)
    listed = graph.named_layers(cnnvis.open_network(model))
    assert listed and all(layer.startswith("a/") and layer[2:] in names for layer in listed)


@pytest.mark.parametrize("keys", [["input_layers"], ["output_layers"], []])
@pytest.mark.parametrize("name", ["mobile", "nested_in_functional"])
def test_inputs_and_outputs_in_a_dict_of_one(name, keys, tmp_path):
    def with_dicts(config):
        networks = [part for part in config_parts(config) if "input_layers" in part]
        for network in networks if keys else networks[-1:]:  # the last one: the inner one alone
            for key in keys or ["input_layers", "output_layers"]:
                network[key] = {"a picture": network[key][0]}
        for layer in config["config"]["layers"]:
            if layer["name"] == "inner" and keys != ["output_layers"]:
                layer["inbound_nodes"] = [{"a picture": layer["inbound_nodes"][0][0]}]
        return config

    model = assert_as_written(with_config(tmp_path / "dicts.h5", name, with_dicts), name)
    cnnvis.open_network(model)


POLICIES = ["float32", {"class_name": "Policy", "config": {"name": "float32"}}]
POLICIES.append({"class_name": "PolicyV1", "config": {"name": "float32", "loss_scale": None}})


@pytest.mark.parametrize("policy", POLICIES, ids=["name", "Policy", "PolicyV1"])
@pytest.mark.parametrize("name", ["mobile", "separable", "nested_in_sequential"])
def test_configs_of_keras_2_2_4_tf(name, policy, tmp_path):
    def earlier(config):
        config = plainer(config)
        for part in list(config_parts(config)):
            for key in part:
                if key.endswith("_initializer") and part[key]:
                    part[key]["config"]["dtype"] = "float32"
            if "trainable" in part and "layers" not in part:
                part["dtype"] = policy
        return config

    path = with_config(tmp_path / "old.h5", name, earlier)
    with h5py.File(path, "r+") as file:
        file.attrs["keras_version"] = "2.2.4-tf"
    assert_as_written(path, name)


def test_attention_that_is_causal_by_its_config(tmp_path):
    def up_to_2_9(config):
        layer = next(each for each in config["config"]["layers"] if each["name"] == "dot_product")
        for tensor in layer["inbound_nodes"][0]:
            layer["config"]["causal"] = tensor[3].pop("use_causal_mask")
        return config

    assert_as_written(with_config(tmp_path / "old.h5", "attention", up_to_2_9), "attention")


@pytest.mark.parametrize("name", ["attention", "sequential"])
def test_what_keras_3_computes_otherwise_is_refused(name, tmp_path):
    def harder(config):
        activation = r'(activation": ")(sigmoid|relu)'
        return json.loads(re.sub(activation, r"\1hard_sigmoid", json.dumps(config)))

    line = refusal(load_saved_model, with_config(tmp_path / "old.h5", name, harder))
    assert re.search(r"has the hard_sigmoid of Keras 2.*Rescaling\(0.2, 0.5\) and ReLU", line)


GONE = {"Conv2D": "LocallyConnected2D", "MaxPooling2D": "RandomHeight"}
GONE["Flatten"] = "ThresholdedReLU"


@pytest.mark.parametrize("kind", GONE)
def test_layers_that_keras_3_no_longer_has(kind, tmp_path):
    def replace(config):
        return json.loads(json.dumps(config).replace(f'"{kind}"', f'"{GONE[kind]}"'))

    line = refusal(load_saved_model, with_config(tmp_path / "old.h5", "sequential", replace))
    assert "is a layer that Keras 3 no longer has" in line and "saved by" not in line


@pytest.mark.parametrize("name", ["Mine", "Dense"])
def test_a_subclassed_network_keeps_no_layers(name, tmp_path):
    bare = {"class_name": name, "config": {"name": "mine"}}
    path = with_config(tmp_path / "old.h5", "sequential", lambda config: bare)
    assert re.search(r"subclassed.*keras\.Model\(inputs, out", refusal(load_saved_model, path))


def test_an_old_file_that_stays_closed_says_what_to_do(tmp_path):
    def unknown(config):
        config["config"]["layers"][1]["config"]["border_mode"] = "same"
        return config

    path = with_config(tmp_path / "old.h5", "sequential", unknown)
    line = refusal(load_saved_model, path)
    assert re.search(r"no 'border_mode'.*saved by Keras 2.*save the wei", line)
