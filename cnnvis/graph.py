"""A Keras network as a flat graph of operations: its layers by name, its ReLUs, copies of it.

What is made of a network is cached for it here, and arguments of the methods are checked here.
Nothing here knows what a network's output means (see logits.py) or where its cells lie."""

from __future__ import annotations

import functools
import itertools
import re
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from cnnvis.keras2 import SLASH
from cnnvis.runtime import keras
from utils import UserError, suggest

# Quantisations that a copy has too. Keras 3.15 computes no gradient through float8, and does not
# keep among the weights how gptq and awq were calibrated
QUANTISED = ("int8", "int4")


class NoGradientError(UserError, ValueError):
    """A network without a gradient from its logits to a layer, as after keras.ops.stop_gradient."""


# --- flat networks ---


def rebuild(model: keras.Model, call: Callable, inputs: list | None = None) -> keras.Model:
    """A functional copy of a network, in which nested networks are inlined.

    call(operation, name, args, kwargs) returns the output of each operation in the new network.
    Calling an operation of the model itself would leave nodes on it."""
    outputs = []  # in the order of the calls: the last one is the network's
    taken = set()

    def clone(network, tensors):
        def call_operation(operation, *args, **kwargs):
            if is_inlined(operation):
                copy = clone(operation, keras.tree.flatten((args, kwargs))[:1])
                return copy.outputs if len(copy.outputs) > 1 else outputs[-1]
            name = re.sub(r"[^A-Za-z0-9_.-]", "_", operation.name)  # as tf.function requires
            while name in taken:
                name = f"{network.name}{SLASH}{name}"
            taken.add(name)
            outputs.append(call(operation, name, args, kwargs))
            return outputs[-1]

        functional = keras.Model(network.inputs, network.outputs)  # also of a Sequential
        return keras.models.clone_model(functional, tensors, lambda layer: layer, call_operation)

    return clone(model, inputs)


def is_inlined(operation: keras.Operation) -> bool:
    """Whether an operation is a network of one input, whose layers are known."""
    is_network = isinstance(operation, keras.Model) and bool(getattr(operation, "outputs", None))
    return is_network and len(operation.inputs) == 1


@functools.cache
def wrapper_class() -> type:
    """The class of the operations of a flat view; made here because Keras is imported late."""

    class Wrapper(keras.Operation):
        """An operation that calls one of another network, `.operation`."""

        def __init__(self, operation, name):
            super().__init__(name=name)
            self.operation = operation

        def call(self, *args, **kwargs):
            return self.operation(*args, **kwargs)

        def compute_output_spec(self, *args, **kwargs):
            return self.operation.compute_output_spec(*args, **kwargs)

    return Wrapper


def flat_view(model: keras.Model, insert_after: Callable | None = None) -> keras.Model:
    """A flat network whose operations call those of the model, which is not modified.

    Each operation has one call: an operation that the model calls twice appears twice. The weights
    are the model's own. insert_after(operation, output) may return a tensor that replaces
    the output."""

    def call(operation, name, args, kwargs):
        kwargs.pop("training", None)  # some layers train by default: the outer call decides
        output = wrapper_class()(operation, name)(*args, **kwargs)
        return insert_after(operation, output) if insert_after else output

    return rebuild(model, call)


def unwrap(operation: keras.Operation) -> keras.Operation:
    """The model's operation behind one of a flat view; any other operation itself."""
    return getattr(operation, "operation", operation)


def copy_operation(operation: keras.Operation) -> keras.Operation:
    """A copy of a layer or operation in float32, not built; a quantised layer stays quantised."""
    config = in_float32(operation.get_config())
    is_layer = isinstance(operation, keras.layers.Layer)
    if is_layer and "dtype" in config and not is_quantised(operation):
        config["dtype"] = "float32"
    has_activation = "activation" in vars(operation) and "activation" in config
    if has_activation:
        config["activation"] = "linear"
    copy = type(operation).from_config(config)
    if has_activation:
        copy.activation = operation.activation  # Keras may not know it by a name
    return nested_class()(copy) if isinstance(copy, keras.Model) else copy


def is_quantised(operation: keras.Operation) -> bool:
    """Whether an operation is a layer whose weights are integers."""
    return bool(getattr(operation, "quantization_mode", None))


@functools.cache
def nested_class() -> type:
    """The class of a nested network that is not inlined; made here as Keras is imported late."""

    class Nested(keras.layers.Layer):
        """A layer that calls a network. The `output` of the network itself is not of this call."""

        def __init__(self, network, **how):
            super().__init__(**how)
            self.network = network

        def call(self, inputs, training=None, mask=None):
            masked = {} if mask is None else {"mask": mask}
            return self.network(inputs, training=training, **masked)

        def get_config(self):
            return {**super().get_config(), "network": self.network}

        @classmethod
        def from_config(cls, config):
            network = config["network"]
            copy = type(network).from_config(network.get_config())
            return cls(**{**config, "network": copy})

    return Nested


def in_float32(config: Any) -> Any:
    """A config of a layer, and of those inside it, in float32; what is quantised stays so.

    ValueError for a quantisation that is not copied."""
    if isinstance(config, list):
        return [in_float32(part) for part in config]
    if not isinstance(config, dict):
        return config
    copy = {key: in_float32(part) for key, part in config.items()}
    if config.get("class_name") == "DTypePolicy":
        copy["config"] = {"name": "float32"}
    if {"mode", "source_name"} <= config.keys():  # a policy of a quantised layer
        mode = config["mode"].partition("/")[0]
        if mode not in QUANTISED:
            text = f"it is quantised to {mode}, through which no map is computed"
            raise ValueError(f"{text}: save the network before quantize()")
        copy["source_name"] = "float32"
    return copy


# --- layers ---


def named_layers(model: keras.Model, units: bool = False) -> dict[str, keras.Operation]:
    """The operations with maps (h, w, K), by name, from the first one that is trained on.

    units: dense layers too. The second of two layers of one name is `outer/inner`."""
    layers = {}
    started = False
    for operation in model.operations:
        started = started or is_trained(operation)
        shape = getattr(operation.output, "shape", ())  # an operation may have several outputs
        has_map = len(shape) == 4 and shape[1:3] != (1, 1)
        is_dense = len(shape) == 2 and hasattr(operation, "kernel")
        if started and (has_map or (units and is_dense)):
            layers[operation.name.replace(SLASH, "/")] = operation
    return layers


def is_trained(operation: keras.Operation) -> bool:
    """Whether an operation is a convolution, a dense layer, or another with trained weights but a
    normalization."""
    kind = type(unwrap(operation)).__name__
    is_normalization = re.fullmatch(r"(?!Spectral)\w*Normalization", kind)
    is_filter = bool(re.search("Conv|Dense", kind))
    return is_filter or (has_weights(operation) and not is_normalization)


def last_of_resolutions(layers: dict) -> list[str]:
    """Names of the last layer of every resolution."""
    last = {}
    for name, operation in layers.items():
        if not re.search("Pool|Dropout|Padding|Cropping", type(operation).__name__):
            last[operation.output.shape[1:3]] = name  # in the order in which resolutions begin
    return list(last.values())


def get_operation(model: keras.Model, name: str) -> keras.Operation:
    """The operation of that name, with `/` or `..` in it. ValueError, with near names, for none."""
    for operation in model.operations:
        if operation.name == name.replace("/", SLASH):
            return operation
    known = [operation.name.replace(SLASH, "/") for operation in model.operations]
    raise ValueError(f"{model.name} has no layer {name!r}{suggest(name, known)}")


def has_weights(operation: keras.Operation) -> bool:
    """Whether an operation, or the one that it wraps, has weights."""
    return bool(getattr(unwrap(operation), "weights", ()))


def function_name(operation: keras.Operation) -> str:
    """The lower-case name of an operation's activation, or of the operation if it has none."""
    operation = unwrap(operation)
    function = getattr(operation, "activation", None) or operation
    return getattr(function, "__name__", type(function).__name__).lower()


def relu_ceiling(operation: keras.Operation) -> float | None:
    """The upper limit of a ReLU, alone or as activation: 6, infinity …; None: it is no ReLU."""
    name = function_name(operation)
    function = getattr(unwrap(operation), "activation", unwrap(operation))
    sloped = getattr(function, "negative_slope", 0) or getattr(function, "threshold", 0)
    if name == "relu6":
        return 6.0
    if name != "relu" or sloped:
        return None
    return getattr(function, "max_value", None) or np.inf


# --- what is made of a network once ---


CACHE = weakref.WeakKeyDictionary()  # {model: (its layers and activations, {key: value})}


def cached_for_model(model: keras.Model, key: Any, make: Callable) -> Any:
    """make(model), computed once for a key, and again after the model's layers have changed.

    The cache does not keep the model alive."""
    current = list(layers_and_activations(model))
    made_of, values = CACHE.get(model, (None, {}))
    if made_of != current:
        values = {}
        CACHE[model] = current, values
    if key not in values:
        values[key] = make(model)
    return values[key]


def layers_and_activations(model: keras.Model) -> Iterator[Any]:
    """Layers and activations of a network, and of those inside it.

    The objects themselves, since an id may be reused."""
    for operation in getattr(model, "operations", model.layers):
        yield operation
        yield getattr(operation, "activation", None)
        if isinstance(operation, keras.Model):
            yield from layers_and_activations(operation)


# --- arguments of the methods ---


def in_order(flat: keras.Model, layers: Sequence[str]) -> list[str]:
    """Names of layers in the network's own order, each once. ValueError: unknown ones, or none."""
    if isinstance(layers, str) or not len(layers):
        raise ValueError(f"Expected a list of layer names. Received: {layers!r}")
    operations = list(flat.operations)
    positions = {name: operations.index(get_operation(flat, name)) for name in layers}
    return sorted(positions, key=positions.get)


def depends_only_on(flat: keras.Model, tensor: Any, wanted: Sequence[Any]) -> bool:
    """Whether every path from the input to the wanted tensors, and to the network's output, passes
    through one tensor."""
    dependent = {id(tensor)}
    for operation in flat.operations:
        inputs = [id(each) in dependent for each in keras.tree.flatten(operation.input)]
        if any(inputs) and not all(inputs):
            return False
        if any(inputs):
            dependent.update(id(each) for each in keras.tree.flatten(operation.output))
    return all(id(each) in dependent for each in [*wanted, flat.outputs[0]])


def check_input(model: keras.Model, x: Any) -> None:
    """ValueError unless x is the input of one photograph, (1, H, W, channels)."""
    expected, received = (1, *model.inputs[0].shape[1:]), np.shape(x)
    pairs = itertools.zip_longest(expected, received, fillvalue=0)
    if not all(side in (None, count) for side, count in pairs):
        raise ValueError(f"Expected x of one photograph, {expected}. Received: {received}")


def check_classes(model: keras.Model, classes: Sequence[int], top: int = 0) -> None:
    """ValueError unless classes are indices of the network's classes, at least one with `top`."""
    count = model.outputs[0].shape[-1]
    expected = f"Expected classes as a list of indices from 0 to {count - 1}"
    if np.ndim(classes) != 1:
        raise ValueError(f"{expected}. Received: classes={classes!r}")
    unknown = [index for index in classes if index not in range(count)]
    if unknown or len(classes) + top < 1:
        raise ValueError(f"{expected}. Received: {unknown or 'none'}")


def check_kernels(layer: str, kernels: Sequence[int], count: int) -> None:
    """ValueError unless kernels are numbers of some of the `count` kernels of a layer."""
    unknown = [kernel for kernel in kernels if kernel not in range(count)]
    if unknown or not len(kernels):
        raise ValueError(f"{layer} has kernels 0 to {count - 1}. Received: {unknown or 'none'}")


def check_gradient(gradient: Any, name: str) -> None:
    """NoGradientError where no gradient of the logits reaches a layer."""
    if gradient is None:
        reason = "they do not depend on it, or an operation between has no gradient"
        raise NoGradientError(f"no gradient of the logits reaches {name}: {reason}")


def check_channels_last(flat: keras.Model) -> None:
    """ValueError for a flat network with a layer that has its channels first."""
    for layer in map(unwrap, flat.operations):
        if getattr(layer, "data_format", None) == "channels_first":
            raise ValueError(f"{layer.name} is channels_first. Expected: channels_last")


# --- what TensorFlow cannot do with every network ---


BATCHED_MATRICES = re.compile(
    "Attention|Einsum|MatMul|Matmul|Dot|RNN|LSTM|GRU|Bidirectional|TimeDistributed"
)


def needs_single_gradients(flat: keras.Model) -> bool:
    """Whether a vectorised jacobian may be wrong for a network.

    Where batches of matrices are multiplied, TensorFlow's oneDNN broadcasts them wrongly (2.21,
    AVX-512). Layers that are not Keras's own may contain anything."""
    for operation in flat.operations:
        kind = type(unwrap(operation))
        is_deep_dense = kind.__name__ == "Dense" and len(operation.output.shape) > 2
        multiplies = is_deep_dense or BATCHED_MATRICES.search(kind.__name__)
        if multiplies or not is_keras_own(unwrap(operation)):
            return True
    return False


def is_keras_own(operation: keras.Operation) -> bool:
    """Whether the class of an operation is Keras's own."""
    return type(operation).__module__.startswith("keras.")


def breaks_eagerly(flat: keras.Model) -> bool:
    """Whether a gradient computed eagerly may crash the process.

    TensorFlow computes the gradient of the filters too, and oneDNN's kernel for 1 x 1 filters with
    strides and few channels writes past its memory. Layers with others inside may contain it."""
    for operation in flat.operations:
        layer = unwrap(operation)
        if isinstance(layer, keras.layers.Wrapper) or not is_keras_own(layer):
            return True
        is_strided = np.max(getattr(layer, "strides", None) or 1) > 1
        is_pointwise = np.max(getattr(layer, "kernel_size", 3)) == 1
        if is_strided and is_pointwise and operation.input.shape[-1] < 16:
            return True
    return False
