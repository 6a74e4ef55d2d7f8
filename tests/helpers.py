"""Each method a second time, which reads none of the code under test; small networks; comparisons.

Papers: Selvaraju et al. 2016 (Grad-CAM), equations 1 and 2; Chattopadhyay et al. 2017 (Grad-CAM++),
equation 19; Draelos and Carin 2020 (HiResCAM); Jiang et al. 2021 (LayerCAM), equation 6;
Springenberg et al. 2014 (guided), figure 1; Zeiler and Fergus 2013 (DeconvNet), section 2.1.
"""

import math
import os
import subprocess
import sys

import keras
import numpy as np
import tensorflow as tf
from keras import layers as kl


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def random_map(seed, shape=(13, 17)):
    """Smooth noise with zeros, ties and negative values."""
    noise = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    smooth = sum(np.roll(noise, shift, axis) for shift in (0, 1, 2) for axis in (0, 1))
    return np.round(smooth, 1)


def error(found, expected):
    """The largest difference, as a share of the largest expected value, which must not be zero."""
    found = np.asarray(found, np.float64)
    expected = np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    assert np.abs(expected).max() > 0
    return np.abs(found - expected).max() / np.abs(expected).max()


def shake(model, seed=0):
    """Random weights everywhere: Keras's biases of 0 and variances of 1 would hide mistakes."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        values = rng.normal(size=variable.shape)
        if "variance" in variable.name:
            variable.assign(np.abs(values) + 0.5)
        elif variable.name == "bias":  # signals stay alive
            variable.assign(np.abs(values) * 0.2)
        else:
            inputs = math.prod(variable.shape[:-1] or [8])
            variable.assign(values * math.sqrt(2 / inputs))
    for operation in operations(model):
        if isinstance(operation, kl.Normalization):
            operation.finalize_state()
    return model


def operations(model):
    """All layers and other operations, those of networks inside it too."""
    for operation in getattr(model, "operations", model.layers):
        yield operation
        if isinstance(operation, keras.Model):
            yield from operations(operation)


def nodes(model):
    """How many calls are written down on the operations of a network: Keras calls them nodes."""
    lists = [(each._inbound_nodes, each._outbound_nodes) for each in operations(model)]
    return [(len(inbound), len(outbound)) for inbound, outbound in lists]


def state(model):
    """All that a caller could find changed: connections, names, activations, weights, nodes."""
    activations = [getattr(each, "activation", None) for each in operations(model)]
    return model.to_json(), activations, [w.tobytes() for w in model.get_weights()], nodes(model)


def graph(model):
    """The calls that a functional network consists of, in order. A layer that other networks share
    or that is called twice has several nodes; its own `output` is that of the first."""
    depths = getattr(model, "_functional", model)._nodes_by_depth
    return [node for depth in sorted(depths, reverse=True) for node in depths[depth]]


def output_of(model, layer):
    return next(node.outputs[0] for node in graph(model) if node.operation.name == layer)


def head(activation=None, units=3):
    return kl.Dense(units, activation=activation, name="head")


def classify(x, classes=3):
    return head(units=classes)(kl.GlobalAveragePooling2D()(x))


def channels_first():
    inputs = keras.Input((3, 12, 10))
    x = kl.Conv2D(4, 3, data_format="channels_first", name="conv")(inputs)
    return keras.Model(inputs, head()(kl.GlobalMaxPooling2D(data_format="channels_first")(x)))


def small(activation="softmax", units=4, shape=(64, 64, 3), before=lambda x: x):
    inputs = keras.Input(shape)
    x = kl.MaxPooling2D()(kl.Conv2D(6, 3, activation="relu", name="conv1")(before(inputs)))
    x = kl.Dropout(0.5)(kl.MaxPooling2D()(kl.Conv2D(8, 3, activation="relu", name="conv2")(x)))
    return keras.Model(inputs, head(activation, units)(kl.GlobalAveragePooling2D()(x)))


def recurring():
    """Two networks of the same layers, some called twice; `later` lies above both calls. What a
    layer gives as its own output belongs to the first network, and there to the first call."""
    again = [kl.Conv2D(3, 3, padding="same", name="again"), kl.ReLU(), kl.MaxPooling2D(3, 2)]
    later = [kl.Conv2D(4, 3, activation="relu", name="later"), kl.GlobalAveragePooling2D(), head()]
    networks = []
    for size in (24, 20):
        inputs = keras.Input((size, size, 3))
        x = inputs
        for layer in [*again, *again, *later]:
            x = layer(x)
        networks.append(keras.Model(inputs, x))
    shake(networks[0])
    return networks


# --- Grad-CAM and guided backpropagation ----------------------------------------------------------


def gradcam_plus_plus(g, A):
    """Equation 19 with Y = exp(S), whose derivatives are exp(S) times g, g², g³; exp(S) cancels.

    The A of the paper are outputs of ReLUs; of a layer before its ReLU the sum is over those."""
    below = 2 * g**2 + np.maximum(A, 0).sum((0, 1)) * g**3
    alpha = np.divide(g**2, below, out=np.zeros_like(g), where=g != 0)
    return (np.maximum(g, 0) * alpha).sum((0, 1)) * A


METHODS = {
    "gradcam": lambda g, A: g.mean((0, 1)) * A,
    "gradcam++": gradcam_plus_plus,
    "hirescam": lambda g, A: g * A,
    "layercam": lambda g, A: np.maximum(g, 0) * A,
}


def textbook(model, x, layer, classes, method="gradcam", score=tf.identity):
    """The recipe that everybody knows: a model of two outputs and a plain tape. (maps, scores);
    score: what is explained, as a function of the network's output."""
    both = keras.Model(model.inputs[0], [output_of(model, layer), model.outputs[0]])
    with tf.GradientTape(persistent=True) as tape:
        A, output = both(x, training=False)
        scores = score(output)
        chosen = [scores[0, index] for index in classes]
    gradients = [tape.gradient(one, A)[0].numpy().astype(np.float64) for one in chosen]
    return [METHODS[method](g, A[0].numpy()).sum(-1) for g in gradients], scores[0].numpy()


def two_logits(z):
    """One unit is two classes."""
    return tf.concat([-z / 2, z / 2], axis=-1)


@tf.custom_gradient
def guided_relu(x):
    """A signal goes on where both the forward value and the signal itself are positive."""
    y = tf.nn.relu(x)
    return y, lambda signal: tf.where((y > 0) & (signal > 0), signal, tf.zeros_like(signal))


def guided_tape(model, x, score=tf.identity):
    """Of every class. model: a network whose ReLUs are `guided_relu`."""
    with tf.GradientTape(persistent=True) as tape:
        pixels = tf.Variable(x)
        scores = tf.unstack(score(model(pixels, training=False))[0])
    return [tape.gradient(one, pixels)[0] for one in scores]


# --- DeconvNet ------------------------------------------------------------------------------------

RECTIFY = {  # what a ReLU sends down of a signal s; active: where it let the forward pass through
    "deconvnet": lambda s, active: tf.nn.relu(s),
    "guided": lambda s, active: tf.where(active, tf.nn.relu(s), 0),
    "gradient": lambda s, active: tf.where(active, s, 0),
}


def ceiling_of_relu(operation):
    """Where it stops growing; None: it does not end in a ReLU."""
    function = getattr(operation, "activation", operation)
    name = getattr(function, "__name__", type(function).__name__).lower()
    if name == "relu6":
        return 6
    return (getattr(function, "max_value", None) or np.inf) if name == "relu" else None


def unpool(layer, x, signals):
    """To the first maximum of each window of x, (H, W, C), in row order; the padding never wins."""
    sizes = [*zip(x.shape[:2], layer.pool_size, layer.strides, strict=True)]
    pads = [(0, 0), (0, 0)]
    if layer.padding == "same":
        need = [max((-(-n // stride) - 1) * stride + size - n, 0) for n, size, stride in sizes]
        pads = [(n // 2, n - n // 2) for n in need]
    padded = np.pad(x, [*pads, (0, 0)], constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, layer.pool_size, axis=(0, 1))
    windows = windows[:: layer.strides[0], :: layer.strides[1]]
    best = windows.reshape(*windows.shape[:3], -1).argmax(-1)
    rows, columns, channels = np.indices(best.shape)
    rows = rows * layer.strides[0] + best // layer.pool_size[1] - pads[0][0]
    columns = columns * layer.strides[1] + best % layer.pool_size[1] - pads[1][0]
    below = np.zeros((len(signals), *x.shape), np.float32)
    for one, signal in zip(below, signals, strict=True):
        np.add.at(one, (rows, columns, channels), signal)  # windows may share a maximum: add
    return below


class Projector:
    """Up once through a flat model by Keras, then down, one operation after the other: switches in
    NumPy, ReLUs by their rule, all else by TensorFlow's derivative of that one operation."""

    def __init__(self, model, x):
        self.nodes = [node for node in graph(model) if not node.is_input]
        self.input = id(model.inputs[0])
        tensors = [model.inputs[0], *(tensor for node in self.nodes for tensor in node.outputs)]
        values = keras.Model(model.inputs[0], tensors)(x, training=False)
        self.values = {id(t): value for t, value in zip(tensors, values, strict=True)}
        self.layers = {node.operation.name: id(node.outputs[0]) for node in self.nodes}

    def best(self, layer, count=2):
        """The kernels with the strongest responses: a silent one has nothing to compare."""
        maps = self.values[self.layers[layer]].numpy()
        return np.argsort(-maps.reshape(-1, maps.shape[-1]).max(0))[:count].tolist()

    def project(self, layer, kernels, mode, rule):
        """What is kept is left as it is by the rule deconvnet, else one; the rest is zero."""
        maps = self.values[self.layers[layer]].numpy()
        seeds = np.zeros((len(kernels), *maps.shape[1:]), np.float32)
        for seed, kernel in zip(seeds, kernels, strict=True):
            first = np.unravel_index(maps[0, ..., kernel].argmax(), maps.shape[1:-1])
            kept = (*first, kernel) if mode == "max" else (..., kernel)
            seed[kept] = maps[0][kept] if rule == "deconvnet" else 1
        signals = {self.layers[layer]: seeds}
        for node in reversed(self.nodes):
            arriving = [signals.pop(id(tensor), None) for tensor in node.outputs]
            if any(signal is not None for signal in arriving):
                for i, signal in self.down(node, rule, arriving).items():
                    signals[i] = signals.get(i, 0) + signal  # branches meet before the next ReLU
        return np.asarray(signals[self.input])

    def down(self, node, rule, signals):
        """The signals at the inputs of an operation, {id of the tensor: signal}."""
        operation = node.operation
        read = [id(tensor) for tensor in node.arguments.keras_tensors]
        ceiling = ceiling_of_relu(operation)
        if ceiling:
            value = self.values[id(node.outputs[0])]
            signals = [RECTIFY[rule](signals[0], (value > 0) & (value < ceiling))]
            if not getattr(operation, "weights", ()):
                return {read[0]: signals[0]}
        if isinstance(operation, kl.MaxPooling2D):
            return {read[0]: unpool(operation, self.values[read[0]][0].numpy(), signals[0])}
        count = next(len(signal) for signal in signals if signal is not None)
        inputs = {i: tf.repeat(self.values[i], count, axis=0) for i in read}
        activation = getattr(operation, "activation", None)
        if ceiling:
            operation.activation = keras.activations.linear
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(inputs)
            args, kwargs = node.arguments.fill_in(inputs)
            outputs = keras.tree.flatten(operation(*args, **kwargs))
        if ceiling:
            operation.activation = activation
        pairs = [pair for pair in zip(outputs, signals, strict=True) if pair[1] is not None]
        return tape.gradient([pair[0] for pair in pairs], inputs, [pair[1] for pair in pairs])


def run_apart(module, function):
    """Call a function of a test module where a dying process does no harm, with TensorFlow as it is
    by default: conftest.py switches oneDNN off."""
    code = f"import sys; sys.path[:0] = {sys.path!r}; import {module}; {module}.{function}()"
    environment = {key: value for key, value in os.environ.items() if "ONEDNN" not in key}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-1500:]}"
