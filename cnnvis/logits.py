"""Networks whose output is logits: what a network ends in, and how to take a softmax off.

Grad-CAM starts at the score of a class before the softmax (section 3 of the paper). This module
makes such a network of any other; it does not load files (see saved_models.py)."""

from __future__ import annotations

import functools
import re
from typing import Any

import numpy as np

from cnnvis.graph import (
    SLASH,
    cached_for_model,
    check_channels_last,
    copy_operation,
    flat_view,
    function_name,
    has_weights,
    rebuild,
    unwrap,
)
from cnnvis.runtime import default_keras_settings, keras
from cnnvis.segmentation import add_region_scores, class_logits
from utils import check_size

# Output activations that can be removed, and how logits become probabilities without them
OUTPUT_ACTIVATIONS = {
    "softmax": "softmax",
    "softmax_v2": "softmax",
    "log_softmax": "softmax",  # log p is the logit less a constant of the photograph
    "logsoftmax": "softmax",
    "sigmoid": "sigmoid",
    "hard_sigmoid": "hard_sigmoid",
    "hardsigmoid": "hard_sigmoid",
    "sparsemax": "sparsemax",
}
# Operations that may follow a softmax and leave its values as they are
PASSIVE = ("linear", "identity", "reshape", "flatten", "dropout")
# Operations without weights that may follow it and still give something like probabilities
PASS_THROUGH = re.compile(
    "linear|identity|reshape|flatten|dropout|average|mean|add|concat|cast|clip|divi|minimum|maximum"
)


# --- opening ---


def open_network(
    model: keras.Model, size: tuple | None = None, region: np.ndarray | None = None
) -> keras.Model:
    """A flat functional copy of a Keras network with logits for output, as the methods take it.

    model: functional or Sequential, with one image for input and one vector of class scores for
    output, or one for every pixel, with networks inside, in any precision. The second of two layers
    of one name is `outer/inner`. size: (H, W), where the input size is open. A softmax or sigmoid
    at the end is removed; where it cannot be, the outputs are log p. One unit with logit z becomes
    two classes with the logits -z/2 and z/2. Logits of pixels are summed over the pixels that the
    network assigns to a class, or over region: bool (h, w), of the photograph or of the output.
    ValueError: a network of another kind."""
    return open_with_kind(model, size, region=region)[0]


def open_with_kind(
    model: keras.Model,
    size: tuple | None = None,
    pair: bool = True,
    region: np.ndarray | None = None,
    fit: str = "squeeze",
) -> tuple[keras.Model, str]:
    """`open_network`, and how its logits become probabilities (see `probabilities`).

    pair: one linear unit is two classes, and not a number. fit: how the photograph of the region
    became the network's input."""
    check_signature(model)
    shape = input_shape(model, size)
    with default_keras_settings():
        opened = copy_network(model, shape)
        kind, operation = find_output_activation(opened)
        scores = opened.outputs[0]
        if operation is not None:
            scores = remove_activation(opened, operation)
        if len(scores.shape) == 4:
            scores, kind = add_region_scores(opened.inputs[0], scores, kind, region, fit)
        else:
            check_no_region(region)
            scores, kind = as_scores(scores, kind, pair)
        return keras.Model(opened.inputs[0], scores, name=model.name), kind


def check_no_region(region: np.ndarray | None) -> None:
    """ValueError for a region of a network that gives one score a class."""
    if region is not None:
        text = "a mask is for segmentation networks, and this one gives one score a class"
        raise ValueError(text)


def check_signature(model: keras.Model) -> None:
    """ValueError that names the inputs or outputs by which a network cannot be drawn."""
    drawn = "drawn are networks of one image (height, width, 1 or 3) and one vector of class scores"
    drawn += ", or one a pixel"
    inputs, outputs = getattr(model, "inputs", None), getattr(model, "outputs", None)
    if not inputs or not outputs:
        raise ValueError(f"it is no functional or Sequential network of known sizes: {drawn}")
    shape, scores = inputs[0].shape[1:], outputs[0].shape[1:]
    last = shape[-1] if shape else None
    is_signal = len(shape) == 2 and last is not None and last <= 3
    bare = "has no channels (put an Input and a Reshape before it)"
    faults = {
        f"it has {len(inputs)} inputs": len(inputs) > 1,
        f"it has {len(outputs)} outputs": len(outputs) > 1,
        f"its input {shape} is a signal": is_signal,
        f"its input {shape} {bare}": len(shape) == 2,
        f"its input {shape} is no image": len(shape) != 3,
        f"its image {shape} is channels_first": last not in (1, 3) and shape[:1] in ((1,), (3,)),
        f"its image {shape} has {last} channels": last not in (1, 3),
        f"its output {scores} has {len(scores)} dimensions": len(scores) not in (1, 3),
    }
    for fault, found in faults.items():
        if found:
            raise ValueError(f"{fault}: {drawn}")


def input_shape(model: keras.Model, size: tuple | None) -> list[int]:
    """[height, width, channels] of the input, where size stands in for open sides."""
    _, *sides, channels = model.inputs[0].shape
    if None not in sides:
        return [*sides, channels]
    if size is None:
        raise ValueError("the network takes pictures of any size: give size=(height, width)")
    check_size(size)
    return [*(side or given for side, given in zip(sides, size, strict=True)), channels]


def copy_network(model: keras.Model, shape: list[int]) -> keras.Model:
    """A flat copy of a network in float32, with weights of its own. shape: of the input."""
    copies = []

    def call(operation, name, args, kwargs):
        copy = copy_operation(operation)
        copy.name = name
        copies.append((operation, copy))
        return copy(*args, **kwargs)

    copied = rebuild(model, call, [keras.Input(shape)])
    for operation, copy in copies:
        if hasattr(operation, "weights"):
            copy.set_weights(operation.get_weights())
        if hasattr(operation, "lora_alpha"):
            copy.lora_alpha = operation.lora_alpha  # which Keras's Dense forgets as it is built
        if isinstance(copy, keras.layers.Normalization):
            copy.finalize_state()  # it computes with a copy of its weights
    return copied


# --- the end of a network ---


def find_output_activation(model: keras.Model) -> tuple[str, keras.Operation | None]:
    """(how a flat network ends, the operation whose activation can be removed or None).

    The end is `linear`, a value of OUTPUT_ACTIVATIONS, or `log`, where a softmax or sigmoid cannot
    be removed."""
    sources = tensor_sources(model)
    last = sources[id(model.outputs[0])]
    if isinstance(unwrap(last), log_class()):
        return "linear", None  # as `as_scores` ends where it could not remove a softmax
    while is_passive(last):
        last = sources[id(keras.tree.flatten(last.input)[0])]
    if takes_probabilities(last, sources):  # which may be scaled, or weights of other values
        return ("log" if gives_probabilities(model) else "linear"), None
    kind = output_activation(last)
    return (kind, last) if kind else ("linear", None)


def tensor_sources(model: keras.Model) -> dict[int, keras.Operation]:
    """{id of a tensor: the operation that it is the output of}."""
    sources = {}
    for operation in model.operations:
        for tensor in keras.tree.flatten(operation.output):
            sources[id(tensor)] = operation
    return sources


def is_passive(operation: keras.Operation) -> bool:
    """Whether an operation leaves the values of a softmax before it as they are."""
    return function_name(operation) in PASSIVE and not has_weights(operation)


def output_activation(operation: keras.Operation) -> str:
    """A value of OUTPUT_ACTIVATIONS, empty for an operation that ends in none of them."""
    return OUTPUT_ACTIVATIONS.get(function_name(operation), "")


def takes_probabilities(operation: keras.Operation, sources: dict) -> bool:
    """Whether an operation without weights takes what a softmax or sigmoid returns, directly or
    through other operations without weights."""
    if has_weights(operation):
        return False
    for tensor in keras.tree.flatten(operation.input):
        source = sources.get(id(tensor))
        if source is None:
            continue
        passes = PASS_THROUGH.search(function_name(source))
        if output_activation(source) or (passes and takes_probabilities(source, sources)):
            return True
    return False


def remove_activation(model: keras.Model, operation: keras.Operation) -> Any:
    """The output of a flat copy of a network without the activation of an operation.

    Where that is an argument of a layer, the copy itself is changed."""
    if hasattr(operation, "activation"):
        operation.activation = keras.activations.linear
        return model.outputs[0]
    sources = tensor_sources(model)
    passive = []  # the operations behind it, the last one first
    last = sources[id(model.outputs[0])]
    while last is not operation:
        passive.append(last)
        last = sources[id(keras.tree.flatten(last.input)[0])]
    x = keras.tree.flatten(operation.input)[0]
    for each in reversed(passive):
        x = copy_operation(each)(x)
    return x


def gives_probabilities(model: keras.Model) -> bool:
    """Whether a network returns numbers from 0 to 1 for a black, a grey and a random input."""
    shape = model.inputs[0].shape[1:]
    random = np.random.default_rng(0).uniform(-128, 255, shape)
    batch = np.float32([np.zeros(shape), np.full(shape, 128), random])
    values = [keras.ops.convert_to_numpy(model(x[None], training=False)) for x in batch]
    return -1e-3 <= np.min(values) <= np.max(values) <= 1 + 1e-3


@functools.cache
def log_class() -> type:
    """The class of a layer that returns log p; made here because Keras is imported late."""

    class LogProbabilities(keras.layers.Layer):
        """log p of p. Its name is like no other's, unlike those of bare operations."""

        def call(self, output):
            return class_logits(output, "log")

    return LogProbabilities


def as_scores(output: Any, kind: str, pair: bool) -> tuple[Any, str]:
    """Scores of two classes or more, and their kind; of one linear unit a number, if not a pair."""
    is_single = output.shape[-1] == 1
    if kind == "log":
        return log_class()(name=f"log{SLASH}p", dtype="float32")(output), kind
    if not is_single:
        return output, "softmax" if kind == "linear" else kind
    if kind == "softmax":
        raise ValueError("it ends in a softmax of one unit, which is 1 whatever the image shows")
    if kind == "linear" and not pair:
        return output, "number"
    halves = keras.initializers.Constant([[-0.5, 0.5]])
    name = f"two{SLASH}classes"
    two = keras.layers.Dense(2, use_bias=False, kernel_initializer=halves, name=name)
    return two(output), "hard_pair" if kind == "hard_sigmoid" else "softmax"


def check_logits(flat: keras.Model) -> None:
    """ValueError for a flat network whose output is not logits."""
    if find_output_activation(flat)[0] != "linear":
        text = "ends in a softmax or sigmoid. Expected: logits, see cnnvis.open_network"
        raise ValueError(f"{flat.name} {text}")


def logits_view(model: keras.Model) -> keras.Model:
    """The cached `flat_view` of a network, as of DeconvNet. ValueError: its output is no logits.

    A flat network has one too: what is made of the view leaves no nodes on the network."""

    def make(model):
        flat = cached_for_model(model, "flat_view", flat_view)
        check_channels_last(flat)
        check_logits(flat)
        return flat

    return cached_for_model(model, "logits_view", make)


# --- probabilities ---


def softmax(logits: np.ndarray) -> np.ndarray:
    """Along the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def sparsemax(logits: np.ndarray) -> np.ndarray:
    """Along the last axis (Martins and Astudillo 2016, arXiv 1602.02068)."""
    return keras.ops.convert_to_numpy(keras.activations.sparsemax(logits))


def hard_sigmoid(logits: np.ndarray) -> np.ndarray:
    """As Keras defines it."""
    return np.clip(logits / 6 + 0.5, 0, 1)


PROBABILITIES = {
    "softmax": softmax,
    "sigmoid": lambda logits: 1 / (1 + np.exp(-logits)),
    "hard_sigmoid": hard_sigmoid,
    "hard_pair": lambda logits: hard_sigmoid(2 * logits),  # of the logits -z/2 and z/2
    "sparsemax": sparsemax,
    "log": np.exp,
    "number": lambda logits: logits,  # a regression has none
}


def probabilities(logits: Any, kind: str) -> np.ndarray:
    """float32 of the shape of logits. kind: a key of PROBABILITIES."""
    return PROBABILITIES[kind](np.asarray(logits, np.float32))
