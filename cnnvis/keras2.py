"""Configs of networks saved by Keras 2, converted to what Keras 3 reads: dictionaries in and out.

Sources: what tf_keras 2.21 writes (`get_config` of its layers; engine/functional.py,
`get_network_config`, which counts calls of a nested network from 1); what Keras 3.15 reads
(models/functional.py, `functional_from_config`, `deserialize_node`; models/sequential.py;
legacy/saving/saving_utils.py); keras issues 19151, 20084; teachablemachine-community issue 403.
Files are read elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

IGNORED_KEYS = ("module", "registered_name", "build_config", "compile_config")
REMOVED_ARGUMENTS = {  # by patterns of class names: what layers of Keras 3 no longer take
    "": "time_major rng_type",
    "Depthwise|Separable|Transpose": "groups",
    "Separable": "kernel_initializer kernel_regularizer kernel_constraint",
    "SpatialDropout": "trainable noise_shape",
    "^MultiHeadAttention$": "query_shape key_shape value_shape softmax_robust_masking",
}
RECURRENT = re.compile("RNN|LSTM|GRU|Bidirectional")  # these take more tensors as initial states
SLASH = ".."  # replaces the / of a layer's name, which Keras 3 does not allow


class RefusedError(ValueError):
    """A config, or a part of one, that is not loaded; the text is the whole cause."""


def config_parts(config: Any) -> Iterator[dict]:
    """Every dictionary in a config, from the outside in."""
    waiting = [config]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield part
            waiting += reversed(list(part.values()))
        elif isinstance(part, list):
            waiting += reversed(part)


def convert_config(config: dict) -> dict:
    """The config of a whole network of Keras 2 as Keras 3 reads it.

    RefusedError: a subclassed network, whose layers are not in its config."""
    network = convert_part(without_slashes(config))
    if "layers" not in network["config"]:
        raise RefusedError(
            "it is a subclassed network, which keeps no layers: build it of inputs and outputs, as "
            "keras.Model(inputs, outputs), load the weights into that, and save it again"
        )
    if network["class_name"] == "Functional":
        network["class_name"] = "Model"  # its public name
    return {"module": "keras", **network}


def without_slashes(config: dict) -> dict:
    """A config with another sign for the / in names, also where calls refer to them."""
    text = json.dumps(config)
    for part in config_parts(config):
        name = part.get("name")
        if isinstance(name, str) and "/" in name:
            text = text.replace(json.dumps(name), json.dumps(name.replace("/", SLASH)))
    return json.loads(text)


def convert_part(part: Any) -> Any:
    """A part of a config, and all that is inside it, as Keras 3 reads it."""
    if isinstance(part, list):
        return [convert_part(each) for each in part]
    if not isinstance(part, dict):
        return part
    converted = {key: convert_part(value) for key, value in part.items() if key not in IGNORED_KEYS}
    kind, config = converted.get("class_name"), converted.get("config")
    if kind in ("Policy", "PolicyV1", "function"):  # mixed precision; an activation: their names
        return config if kind == "function" else config["name"]
    if ">" in (part.get("registered_name") or ""):
        converted["class_name"] = part["registered_name"]  # PACKAGE>NAME, a class of one's own
    if kind == "Sequential":
        converted["config"] = convert_sequential(config, converted.get("name", "sequential"))
    elif isinstance(config, dict) and "input_layers" in config:
        convert_functional(config)
    elif kind and isinstance(config, dict):
        convert_arguments(kind, config)
    return converted


def convert_sequential(config: Any, name: str) -> dict:
    """Keras up to 2.2 wrote a bare list of layers, and no InputLayer."""
    if isinstance(config, list):
        config = {"name": name, "layers": config}
    first = config["layers"][0]
    shape = first["config"].get("batch_input_shape")
    if first["class_name"] != "InputLayer" and shape:
        input_layer = {"class_name": "InputLayer", "config": {"batch_input_shape": shape}}
        config["layers"].insert(0, input_layer)
    for layer in config["layers"][1:]:
        layer["config"].pop("batch_input_shape", None)
    return config


def convert_functional(config: dict) -> None:
    """Count the calls of nested networks from 0, and write a single input or output bare."""
    nested = {
        each["name"]: each["class_name"] for each in config["layers"] if "layers" in each["config"]
    }
    for layer in config["layers"]:
        if layer["name"] in nested:
            layer["inbound_nodes"] = [without_keys(node) for node in layer["inbound_nodes"]]
    calls = references([layer["inbound_nodes"] for layer in config["layers"]])
    calls += references([call[3:] for call in calls])  # passed by keyword
    outputs = references(config["output_layers"])  # Keras 3 counts those of a Functional itself
    calls += [each for each in outputs if nested.get(each[0]) == "Sequential"]
    for call in calls:
        if call[0] in nested:
            call[1] -= 1
    for layer in config["layers"]:
        convert_calls(layer)
    for key in ("input_layers", "output_layers"):
        tensors = without_keys(config[key])
        config[key] = tensors[0] if len(tensors) == 1 else tensors


def convert_calls(layer: dict) -> None:
    """Write the calls of a layer as Keras 3 does: Keras 2 keeps keywords beside each tensor.

    Recurrent layers take initial states by keyword, as Attention takes what was its `causal`."""
    is_attention = layer["class_name"] in ("Attention", "AdditiveAttention")
    causal = is_attention and layer["config"].pop("causal", False)  # up to Keras 2.9
    calls = []
    for node in layer["inbound_nodes"]:
        called_with = references(node)
        keywords = dict(called_with[-1][3]) if len(called_with[-1]) > 3 else {}
        tensors = [with_tensors(each[:3]) for each in called_with]
        if RECURRENT.search(layer["class_name"]) and len(tensors) > 1:
            keywords["initial_state"] = tensors[1:]
            del tensors[1:]
        if causal:
            keywords["use_causal_mask"] = True
        given = {key: with_tensors(each) for key, each in keywords.items() if each is not None}
        calls.append({"args": tensors if len(tensors) == 1 else [tensors], "kwargs": given})
    layer["inbound_nodes"] = calls


def with_tensors(argument: Any) -> Any:
    """An argument of a call, where tensors and constants are as Keras 3 writes them."""
    if not isinstance(argument, list):
        return argument
    if references(argument) != [argument]:
        return [with_tensors(each) for each in argument]
    if argument[0] == "_CONSTANT_VALUE":
        return {"class_name": "__tensor__", "config": {"value": argument[2], "dtype": "float32"}}
    config = {"shape": [], "dtype": "float32", "keras_history": argument}  # the last one counts
    return {"class_name": "__keras_tensor__", "config": config}


def without_keys(tensors: Any) -> Any:
    """References to tensors, where a dict becomes a list in the order in which Keras 2 numbers."""
    return [tensors[key] for key in sorted(tensors)] if isinstance(tensors, dict) else tensors


def references(nodes: Any) -> list[list]:
    """The lists [layer, number of its call, number of its output, ...] among nested lists."""
    if isinstance(nodes, dict):
        nodes = list(nodes.values())
    if not isinstance(nodes, list):
        return []
    if nodes and isinstance(nodes[0], str):
        return [nodes]
    return [reference for node in nodes for reference in references(node)]


def convert_arguments(kind: str, config: dict) -> None:
    """Remove from a layer's config what Keras 3 does not take.

    RefusedError: an activation that Keras 3 computes otherwise."""
    if "hard_sigmoid" in (config.get("activation"), config.get("recurrent_activation")):
        raise RefusedError(
            f"«{config.get('name')}» has the hard_sigmoid of Keras 2, which Keras 3 computes "
            "otherwise: build the network with layers Rescaling(0.2, 0.5) and ReLU(1) instead, "
            "load the weights into that, and save it again"
        )
    for pattern, names in REMOVED_ARGUMENTS.items():
        if re.search(pattern, kind):
            for name in names.split():
                config.pop(name, None)
    if "name" not in config:  # no layer, but an initializer of Keras 2.2
        config.pop("dtype", None)
    if config.get("distribution") == "normal":  # of VarianceScaling, up to Keras 2.2
        config["distribution"] = "truncated_normal"
    inner = [config.get(key) for key in ("layer", "backward_layer", "cell")]
    for layer in inner + config.get("cells", []):  # of a Bidirectional, TimeDistributed, RNN
        if isinstance(layer, dict) and ">" not in layer["class_name"]:
            layer["module"] = "keras.layers"
