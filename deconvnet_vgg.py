"""DeconvNet on VGG16 and VGG19: what kernels respond to in a photograph, projected back to pixels.

    python deconvnet_vgg.py Image/cat.jpg
    python deconvnet_vgg.py photo.jpg --figures projections --layers block4_conv3 --kernels 12,77
    python deconvnet_vgg.py my_photographs/ --figures top9

The method of Zeiler and Fergus 2013, arXiv 1311.2901, follows the constants. VGG16's convolutions
as published (Simonyan and Zisserman 2014, arXiv 1409.1556) are in Image/; `bundled` adds a
classifier of the 200 classes in Image/vgg16_classes.txt."""

if __name__ == "__main__":  # before NumPy and the rest are imported
    from cnnvis.shell import prepare_process

    prepare_process()

import functools
import sys
from collections.abc import Iterable, Sequence

import numpy as np

from cnnvis import graph
from cnnvis.cli import read_options
from cnnvis.deconvnet_figures import DECONVNET_FIGURES, DeconvNetExplanation
from cnnvis.drawing import draw_figures
from cnnvis.geometry import true_span
from cnnvis.networks import ModelSpec, open_smallest, print_layers
from cnnvis.photos import find_photos
from cnnvis.runtime import default_keras_settings, keras, run, tf
from cnnvis.vgg import CONVOLUTIONS, KNOWN_CLASSES, bundled_vgg16, vgg_models
from utils import check_choice

# fmt: off
IMAGES = ["Image/cat_coffee.jpg"]  # photographs, folders, patterns; here relative to this script
MODELS = ["vgg16"]    # vgg16, vgg19, or both
FIGURES = ["projections", "blocks", "comparison", "top9"]  # of these and occlusion; or all
LAYERS = ["all"]      # names, shell wildcards, or all: block3_conv3; of blocks the last of each
KERNELS = ["top9"]    # numbers from 0, ranges (0-8), or top9: the strongest; blocks has its own
CLASSES = ["top1"]    # of occlusion: an index, WordNet id or name, or top1: the most probable
MODE = "all"          # all: whole maps; max: strongest positions: of comparison of photographs
RULES = ["deconvnet"]  # what a ReLU passes back: deconvnet, guided, gradient, or several of them
PATCH = 25            # of occlusion: width of the grey square, percent of the shorter side
STRIDE = 7            # of occlusion: its steps, percent of the shorter side
COMPARED = 4          # how many photographs comparison sets side by side at most
WEIGHTS = "imagenet"  # imagenet, bundled, random, a weights file or folder, a saved network
LABELS = ""           # of a saved network: a file with a class a line, or a folder of sub-folders
IMPORT = ""           # of a saved network: a file or module that registers its custom layers
NAME = ""             # of a saved network: its name in file names, if not that of its file
SIZE = ""             # of a saved network of open input size: height,width, such as 224,224
PREPROCESS = "auto"   # auto; caffe, tf or torch, as Keras calls them; unit: 0 to 1; none: 0 to 255
FIT = "squeeze"       # squeeze, crop or pad: how a photograph becomes the network's rectangle
PAD = 0               # of --fit pad: the grey of its borders, 0 (black, as Keras pads) to 255
RESIZE = "area"       # area; bilinear and nearest as Keras's loaders do
AS_STORED = False     # True: photographs are not turned upright by their EXIF orientation
PLACE = "field"       # field: maps are placed where the network looks; stretch: over everything
SCALE = 1             # factor by which pages are enlarged, for print
SEED = 0              # of random weights
OUTPUT = "results"    # folder of the results
FORMAT = "jpg"        # jpg, png or pdf
ARRAYS = False        # True: save the numbers behind each figure too, as .npz
COLORMAP = "jet"      # an OpenCV colour map: jet, turbo, viridis, inferno …
# fmt: on
WEIGHTS_WORDS = ["imagenet", "bundled", "random"]

RELU_RULES = {  # what a ReLU passes back of a signal R; active: where 0 < f < its ceiling
    # Zeiler and Fergus, section 2.1, «Rectification»: independent of the forward pass
    "deconvnet": lambda R, active: tf.nn.relu(R),
    # Springenberg et al. 2014, arXiv 1412.6806, section 3.4: both that and the derivative
    "guided": lambda R, active: tf.where(active, tf.nn.relu(R), 0.0),
    # The derivative
    "gradient": lambda R, active: tf.where(active, R, 0.0),
}
BATCH = 9  # signals that go back at a time: more of them need more memory and are no faster


def deconvnet(
    model: "keras.Model",
    x: np.ndarray,
    layer: str,
    kernels: Sequence[int],
    mode: str = "max",
    rule: str = "deconvnet",
) -> np.ndarray:
    """Project kernels of a layer back to pixels (section 2.1), all from one forward pass.

    model: functional Keras network (cnnvis.open_network makes one of any other); it is not
    modified. x: float32 (1, H, W, channels), preprocessed as the network expects. layer: a name.
    kernels: channel numbers. mode: `max` keeps the strongest position of a kernel's map (of equal
    ones the first in row order), `all` the whole map; the rest of the layer is set to zero. rule: a
    key of RELU_RULES. The rule deconvnet passes back the activations kept, the others pass back
    ones, which gives the derivative of their sum.

    Returns float32 (len(kernels), H, W, channels). ValueError: unknown layer, kernel, mode or rule,
    no kernels, x of another shape, a layer not between photograph and logits, channels_first."""
    graph.check_input(model, x)
    check_choice("mode", mode, ("max", "all"))
    check_choice("rule", rule, RELU_RULES)
    forward = ForwardPass(model, x, layer)
    activations = forward.values[forward.top]
    graph.check_kernels(layer, kernels, activations.shape[-1])
    projections = []
    for first in range(0, len(kernels), BATCH):
        signals = initial_signals(activations, kernels[first : first + BATCH], mode, rule)
        projections.append(project(forward, signals, mode, rule).numpy())
    return np.concatenate(projections)


class ForwardPass:
    """The values of every tensor of a network up to a layer, for one photograph.

    operations: of the network's flat view, in the order of the forward pass. image, top: the first
    tensor and the layer's. values: {tensor: (1, …)}."""

    def __init__(self, model: "keras.Model", x: np.ndarray, layer: str):
        self.flat = graph.cached_for_model(model, "flat_view", graph.flat_view)
        part = graph.cached_for_model(self.flat, layer, lambda flat: model_up_to(flat, layer))
        self.operations = part.operations[1:]
        self.image = part.inputs[0]
        self.top = self.operations[-1].output
        values = part(tf.constant(x, tf.float32), training=False)
        self.values = dict(zip(part.outputs, values, strict=True))
        self._switches = {}

    def switches(self, pooling: "keras.Operation") -> "tf.Tensor":
        """Where a pooling found its maxima, of equal ones the first; computed once."""
        if pooling not in self._switches:
            layer = pooling.operation
            values, padding = self.values[pooling.input], layer.padding.upper()
            found = tf.nn.max_pool_with_argmax(values, layer.pool_size, layer.strides, padding)
            self._switches[pooling] = found.argmax
        return self._switches[pooling]


def model_up_to(flat: "keras.Model", layer: str) -> "keras.Model":
    """The model from the photograph to every tensor up to that of a layer, by its name."""
    graph.check_channels_last(flat)
    image, top = flat.inputs[0], graph.get_operation(flat, layer)
    between = keras.Model(image, flat.outputs[0]).operations[1:]
    if top not in between or isinstance(top.output, list):
        raise ValueError(f"{layer} is no layer with one output between photograph and logits")
    tensors = [each.output for each in keras.Model(image, top.output).operations]
    return keras.Model(image, keras.tree.flatten(tensors))


def initial_signals(
    activations: "tf.Tensor", kernels: Sequence[int], mode: str, rule: str
) -> "tf.Tensor":
    """What a layer passes back, (N, h, w, K): of each kernel what the mode keeps, the rest zero.

    activations: float32 (1, h, w, K), or (1, K) of a dense layer."""
    flat = tf.reshape(activations, (-1, activations.shape[-1]))  # (positions, K)
    chosen = tf.transpose(tf.gather(flat, kernels, axis=1))  # (N, positions)
    signals = tf.ones_like(chosen)
    if mode == "max":
        signals = tf.one_hot(tf.argmax(chosen, axis=1), flat.shape[0])
    if rule == "deconvnet":
        signals *= chosen
    channels = tf.one_hot(kernels, flat.shape[1])  # (N, K)
    signals = signals[:, :, None] * channels[:, None, :]
    return tf.reshape(signals, (-1, *activations.shape[1:]))


def project(forward: ForwardPass, signals: "tf.Tensor", mode: str, rule: str) -> "tf.Tensor":
    """Signals at the layer, (N, h, w, K), passed back to the photograph, (N, H, W, channels)."""
    arrived = {forward.top: signals}
    for operation in reversed(forward.operations):
        outputs = keras.tree.flatten(operation.output)
        at_outputs = [arrived.pop(output, None) for output in outputs]  # None: it leads elsewhere
        for tensor, signal in backward(operation, at_outputs, forward, mode, rule):
            if tensor in arrived:  # branches meet
                signal = arrived[tensor] + signal
            arrived[tensor] = signal
    return arrived[forward.image]


def backward(
    operation: "keras.Operation", signals: list, forward: ForwardPass, mode: str, rule: str
) -> Iterable[tuple]:
    """Pairs (input, signal) of an operation, from the signals at its outputs, (N, …).

    A layer with a ReLU inside is two operations, of which the ReLU comes first on the way back."""
    layers, layer = keras.layers, operation.operation
    source, signal = operation.input, signals[0]
    if graph.relu_ceiling(operation):
        signal = rectify(operation, signal, forward, rule)
        if isinstance(layer, layers.Activation) or not hasattr(layer, "activation"):
            return [(source, signal)]
    if is_filter(operation):
        return [(source, filter_back(layer, signal, forward.values[source].shape, mode))]
    if type(layer) is layers.MaxPooling2D:
        return [(source, unpool(operation, signal, forward))]
    if type(layer) is layers.BatchNormalization and layer.axis in (-1, 3):
        return [(source, rescale(layer, signal))]
    if type(layer) is layers.Concatenate and layer.axis in (-1, 3):
        widths = [tensor.shape[-1] for tensor in source]
        return zip(source, tf.split(signal, widths, axis=-1), strict=True)
    return derivative(operation, [signal, *signals[1:]], forward)


def rectify(
    operation: "keras.Operation", signal: "tf.Tensor", forward: ForwardPass, rule: str
) -> "tf.Tensor":
    """«Rectification»: a signal at the output of a ReLU, passed to its input."""
    f = forward.values[operation.output]
    return RELU_RULES[rule](signal, (f > 0) & (f < graph.relu_ceiling(operation)))


def is_filter(operation: "keras.Operation") -> bool:
    """Whether an operation, less its ReLU, is a plain convolution or a dense layer."""
    layer = operation.operation
    if type(layer) not in (keras.layers.Conv2D, keras.layers.Dense) or layer.quantization_mode:
        return False
    if layer.activation is not keras.activations.linear and not graph.relu_ceiling(operation):
        return False
    return type(layer) is keras.layers.Dense or layer.groups == max(layer.dilation_rate) == 1


def filter_back(
    layer: "keras.Layer", signal: "tf.Tensor", shape: Sequence[int], mode: str
) -> "tf.Tensor":
    """«Filtering»: by the transposed kernels; biases take no part. shape: of the layer's input."""
    if type(layer) is keras.layers.Dense:
        return tf.matmul(signal, layer.kernel, transpose_b=True)
    if mode == "max" and layer.strides == (1, 1) and layer.padding == "same":
        return tf.stack([filter_window(layer, one, shape[-1]) for one in signal])
    shape, padding = (len(signal), *shape[1:]), layer.padding.upper()
    return tf.nn.conv2d_transpose(signal, layer.kernel, shape, layer.strides, padding)


def filter_window(layer: "keras.Layer", signal: "tf.Tensor", channels: int) -> "tf.Tensor":
    """«Filtering» of what comes from a strongest position, (H, W, K): zero outside a window."""
    nonzero = tf.reduce_any(signal != 0, axis=-1).numpy()
    reach = max(layer.kernel_size) // 2
    rows, columns = (true_span(nonzero.any(axis=axis), reach) for axis in (1, 0))
    window = signal[None, rows, columns]
    shape = (*window.shape[:3], channels)
    filtered = tf.nn.conv2d_transpose(window, layer.kernel, shape, strides=1, padding="SAME")
    height, width = nonzero.shape
    around = [(rows.start, height - rows.stop), (columns.start, width - columns.stop), (0, 0)]
    return tf.pad(filtered[0], around)


def unpool(pooling: "keras.Operation", signal: "tf.Tensor", forward: ForwardPass) -> "tf.Tensor":
    """«Unpooling»: each value goes back to where its maximum was found, its switch."""
    layer, count = pooling.operation, len(signal)
    return tf.raw_ops.MaxPoolGradWithArgmax(
        input=tf.zeros((count, *forward.values[pooling.input].shape[1:])),
        grad=signal,
        argmax=tf.repeat(forward.switches(pooling), count, axis=0),
        ksize=(1, *layer.pool_size, 1),
        strides=(1, *layer.strides, 1),
        padding=layer.padding.upper(),
    )


def rescale(layer: "keras.Layer", signal: "tf.Tensor") -> "tf.Tensor":
    """Batch normalisation: the factor of each channel."""
    factor = tf.math.rsqrt(layer.moving_variance + layer.epsilon)
    if layer.gamma is not None:
        factor *= layer.gamma
    return signal * factor


def derivative(
    operation: "keras.Operation", signals: list, forward: ForwardPass
) -> Iterable[tuple]:
    """Any other operation, less its ReLU: its derivative. Pairs (input, signal)."""
    inputs = list(dict.fromkeys(keras.tree.flatten(operation.input)))  # of x * x there is one
    model = graph.cached_for_model(
        forward.flat, operation, lambda _: single_operation_model(operation, inputs)
    )
    if graph.relu_ceiling(operation):  # a copy, which gets the current weights
        model.set_weights(operation.operation.get_weights())
    count = next(len(signal) for signal in signals if signal is not None)
    tensors = [*inputs, *keras.tree.flatten(operation.output)]
    if all(tensor.shape[:1] == (None,) for tensor in tensors):
        values = [tf.repeat(forward.values[tensor], count, axis=0) for tensor in inputs]
        return zip(inputs, gradients_of(model, values, signals), strict=True)
    values = [forward.values[tensor] for tensor in inputs]  # of x / max(x) one has no batch axis
    found = []
    for number in range(count):
        one = [signal if signal is None else signal[number : number + 1] for signal in signals]
        found.append(gradients_of(model, values, one))
    stacked = [tf.reshape(each, (count, *each[0].shape[1:])) for each in zip(*found, strict=True)]
    return zip(inputs, stacked, strict=True)


def gradients_of(model: "keras.Model", values: list, signals: list) -> list:
    """The signals at the inputs of a model of one operation, from those at its outputs."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(values)
        outputs = keras.tree.flatten(model(values, training=False))
    arriving = []
    for output, R in zip(outputs, signals, strict=True):
        arriving.append(tf.zeros_like(output) if R is None else tf.reshape(R, output.shape))
    return tape.gradient(outputs, values, arriving, unconnected_gradients="zero")


def single_operation_model(operation: "keras.Operation", inputs: list) -> "keras.Model":
    """The model of one operation; of a layer with a ReLU inside a copy without the ReLU."""
    if not graph.relu_ceiling(operation):
        return keras.Model(inputs, operation.output)
    layer = operation.operation
    linear = type(layer).from_config(layer.get_config() | {"activation": "linear"})
    x = keras.Input(batch_shape=operation.input.shape, dtype=operation.input.dtype)
    return keras.Model([x], linear(x))


def build(name: str, include_top: bool, weights: str | None = None) -> "keras.Model":
    """VGG16 or VGG19 (arXiv 1409.1556) with logits, or without its classifier.

    weights: None, imagenet, bundled, or a file's path."""
    with default_keras_settings():
        if weights == "bundled":
            return bundled_vgg16()
        if weights == "imagenet" and name == "vgg16" and not include_top:
            weights = CONVOLUTIONS  # the published ones
        network = getattr(keras.applications, name.upper())
        how = {"input_shape": (224, 224, 3), "classifier_activation": None}
        return network(weights=weights, include_top=include_top, **how)


def vgg_spec(name: str, include_top: bool) -> ModelSpec:
    """How VGG16 or VGG19 is built and drawn."""
    suffix = "" if include_top else "_notop"
    last = 3 if name == "vgg16" else 4
    return ModelSpec(
        label=name.upper(),
        build=functools.partial(build, name, include_top),
        weight_files=(f"{name}_weights_tf_dim_ordering_tf_kernels{suffix}.h5",),
        default_layers=("block[12]_conv2", f"block[345]_conv{last}"),
        main_layer="block3_conv3",
        known_classes=KNOWN_CLASSES,
    )


def main() -> int:
    options = read_options(globals(), DECONVNET_FIGURES)
    photos = find_photos(options, IMAGES)
    classifier = ("fc1", "fc2", "predictions")
    networks = []
    for name in vgg_models(options):
        without_top, with_top = vgg_spec(name, False), vgg_spec(name, True)
        networks.append(open_smallest(options, photos, without_top, with_top, classifier))
    if options.list_layers:
        return print_layers(options, networks[0])
    make_explanation = functools.partial(DeconvNetExplanation, deconvnet=deconvnet)
    return draw_figures(options, photos, networks, make_explanation)


if __name__ == "__main__":
    sys.exit(run(main))
