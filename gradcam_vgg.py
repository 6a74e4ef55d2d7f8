"""Grad-CAM on VGG16 and VGG19: the evidence in a photograph for a class, and against it.

    python gradcam_vgg.py Image/cat_coffee.jpg --weights bundled
    python gradcam_vgg.py photo.jpg --classes "Egyptian cat,n02124075,top3"
    python gradcam_vgg.py photos/ --weights mine.keras --labels names.txt

The method of Selvaraju et al. 2016, arXiv 1610.02391, follows the constants. `bundled` weights:
VGG16's convolutions as published (Simonyan and Zisserman 2014, arXiv 1409.1556), with a classifier
of the 200 classes in Image/vgg16_classes.txt."""

if __name__ == "__main__":  # before NumPy and the rest are imported
    from cnnvis.shell import prepare_process

    prepare_process()

import functools
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cnnvis import graph
from cnnvis.cli import read_options
from cnnvis.drawing import draw_figures
from cnnvis.explanation import GradCamExplanation, Methods
from cnnvis.gradcam_figures import GRADCAM_FIGURES
from cnnvis.logits import logits_view
from cnnvis.networks import ModelSpec, open_network_for, print_layers
from cnnvis.photos import find_photos
from cnnvis.runtime import default_keras_settings, keras, run, tf
from cnnvis.vgg import KNOWN_CLASSES, bundled_vgg16, vgg_models
from utils import check_choice

# fmt: off
IMAGES = ["Image/cat_coffee.jpg"]  # photographs, folders, patterns; here relative to this script
MODELS = ["vgg16"]    # vgg16, vgg19, or both
FIGURES = ["layers", "classes", "negative", "one_class", "kernels", "guided"]  # or all: see --help
LAYERS = ["all"]      # names, shell wildcards, or all: every convolution; some figures draw one
CLASSES = ["top4"]    # indices, WordNet ids, names, or top4: the four most probable
KERNELS = ["top9"]    # numbers from 0, ranges (0-8), or top9: the nine with the strongest response
METHOD = "gradcam"    # gradcam, gradcam++, hirescam or layercam: see CAM_WEIGHTS
WEIGHTS = "imagenet"  # imagenet, bundled, random, a weights file or folder, a saved network
LABELS = ""           # of a saved network: a file with a class a line, or a folder of sub-folders
IMPORT = ""           # of a saved network: a file or module that registers its custom layers
NAME = ""             # of a saved network: its name in file names, if not that of its file
SIZE = ""             # of a saved network of open input size: height,width, such as 224,224
MASK = ""             # of a segmentation network: a picture, white where it is asked about
PREPROCESS = "auto"   # auto; caffe, tf or torch, as Keras calls them; unit: 0 to 1; none: 0 to 255
FIT = "squeeze"       # squeeze, crop or pad: how a photograph becomes the network's rectangle
PAD = 0               # of --fit pad: the grey of its borders, 0 (black, as Keras pads) to 255
RESIZE = "area"       # area; bilinear and nearest as Keras's loaders do
AS_STORED = False     # True: photographs are not turned upright by their EXIF orientation
PLACE = "field"       # field: maps are placed where the network looks; stretch: over everything
THRESHOLD = 15        # of boxes and table: percent of a map's maximum above which it is hot
BOXES = ""            # of boxes: a CSV file of true ones, photo,class,x0,y0,x1,y1
PAGES = 5             # of failures: number of pages at most
SCALE = 1             # factor by which pages are enlarged, for print
SEED = 0              # of random weights
OUTPUT = "results"    # folder of the results
FORMAT = "jpg"        # jpg, png or pdf
ARRAYS = False        # True: save the numbers behind each figure too, as .npz
COLORMAP = "jet"      # an OpenCV colour map: jet, turbo, viridis, inferno …
# fmt: on
WEIGHTS_WORDS = ["imagenet", "bundled", "random"]

# Each returns weights of the feature maps A, (1, h, w, K), given g = dy/dA, (classes, h, w, K): one
# a position, of g's shape, or one a map, with h = w = 1. The three scripts have the same methods
CAM_WEIGHTS = {
    # Equation 1: alpha = 1/Z sum of dy/dA
    "gradcam": lambda g, A: tf.reduce_mean(g, axis=(1, 2), keepdims=True),
    # Chattopadhyay et al. 2017, arXiv 1710.11063, equations 5 and 19, divided by g^2; their factor
    # exp(y) is left out. Their A are outputs of ReLUs, hence relu(A)
    "gradcam++": lambda g, A: tf.reduce_sum(
        tf.math.divide_no_nan(
            tf.nn.relu(g), 2 + g * tf.reduce_sum(tf.nn.relu(A), axis=(1, 2), keepdims=True)
        ),
        axis=(1, 2),
        keepdims=True,
    ),
    # Draelos and Carin 2020, arXiv 2011.08891: nothing is averaged
    "hirescam": lambda g, A: g,
    # Jiang et al. 2021, LayerCAM: a weight for every position
    "layercam": lambda g, A: tf.nn.relu(g),
}


def grad_cam(
    model: "keras.Model",
    x: np.ndarray,
    layers: Sequence[str],
    classes: Sequence[int],
    method: str = "gradcam",
    top: int = 0,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Grad-CAM of several classes at several layers, from one forward pass (section 3).

    model: functional Keras network with logits for output (cnnvis.open_network makes one of any
    other); it is not modified. x: float32 (1, H, W, channels), preprocessed as the network expects.
    layers: names of layers with feature maps. classes: class indices. method: a key of CAM_WEIGHTS.
    top: the `top` most probable classes are explained too; their maps come first.

    Returns (maps, logits). maps[layer]: float32 (top + len(classes), h, w), signed, before the last
    ReLU: positive values are evidence for the class, negative ones against it. logits: float32
    (n_classes,). ValueError: unknown method, layer or class, or none; x of another shape; a softmax
    at the end of the network."""
    check_choice("method", method, CAM_WEIGHTS)
    graph.check_input(model, x)
    graph.check_classes(model, classes, top)
    flat = logits_view(model)
    outputs = layer_outputs(flat, layers)

    def make(_):
        return split_at(flat, list(outputs.values()))

    found = graph.cached_for_model(model, tuple(outputs), make)(x, classes, top)
    cams = {}
    for layer, A, dy_dA in zip(outputs, found.activations, found.gradients, strict=True):
        graph.check_gradient(dy_dA, layer)
        alpha = CAM_WEIGHTS[method](dy_dA[:, 0], A)  # equation 1; axis 1 is a batch of one
        cams[layer] = tf.reduce_sum(alpha * A, axis=-1).numpy()  # equation 2, without its ReLU
    return cams, found.logits.numpy()


def layer_outputs(flat: "keras.Model", layers: Sequence[str]) -> dict:
    """{name: symbolic feature map} of layers, in the network's order. ValueError: no map."""
    outputs = {}
    for name in graph.in_order(flat, layers):
        output = graph.get_operation(flat, name).output
        if len(getattr(output, "shape", ())) != 4:
            raise ValueError(f"{name} has no feature map, (h, w, K)")
        outputs[name] = output
    return outputs


def split_at(flat: "keras.Model", outputs: list) -> "SplitModel":
    """A flat network split at the first of some tensors.

    Where the rest depends on the photograph in another way too, the lower part is empty."""
    image, logits = flat.inputs[0], flat.outputs[0]
    if graph.depends_only_on(flat, outputs[0], outputs):
        upper = keras.Model(outputs[0], [*outputs[1:], logits])
        return SplitModel(keras.Model(image, outputs[0]), upper, starts_at_map=True)
    upper = keras.Model(image, [*outputs, logits])
    return SplitModel(keras.Model(image, image), upper, starts_at_map=False)


class Derivatives(NamedTuple):
    """What a forward pass and the way back give, as TensorFlow tensors."""

    activations: list  # feature maps A, (1, h, w, K) each
    logits: "tf.Tensor"  # (n_classes,)
    gradients: list  # dy/dA of each map, (classes, 1, h, w, K); None where y does not depend on it


class SplitModel:
    """A network in two parts: `lower` up to its first feature map, and `upper` from there on.

    The tape records the upper part only. The first call runs eagerly, which is faster than tracing
    it; later calls are traced."""

    def __init__(self, lower: "keras.Model", upper: "keras.Model", starts_at_map: bool):
        self.lower, self.upper = lower, upper
        self.starts_at_map = starts_at_map  # whether the output of `lower` is one of the maps
        self.one_by_one = graph.needs_single_gradients(upper)
        self.traced = tf.function(self.differentiate)
        self.runs_eagerly = not graph.breaks_eagerly(upper)

    def __call__(self, x: np.ndarray, classes: Sequence[int], top: int = 0) -> Derivatives:
        """The Derivatives of the scores y of the `top` most probable classes and of `classes`."""
        differentiate = self.differentiate if self.runs_eagerly else self.traced
        self.runs_eagerly = False
        return differentiate(tf.constant(x, tf.float32), tf.constant(classes, tf.int32), top)

    def differentiate(self, x: "tf.Tensor", classes: "tf.Tensor", top: int) -> Derivatives:
        first = self.lower(x, training=False)
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch(first)
            *activations, logits = keras.tree.flatten(self.upper(first, training=False))
            if self.starts_at_map:
                activations = [first, *activations]
            strongest = tf.math.top_k(logits[0], top).indices
            y = tf.gather(logits[0], tf.concat([strongest, classes], axis=0))  # before softmax
            scores = tf.unstack(y)
        if len(scores) > 1 and not self.one_by_one and not tf.executing_eagerly():
            return Derivatives(activations, logits[0], tape.jacobian(y, activations))
        by_score = [tape.gradient(score, activations) for score in scores]
        gradients = [stack_classes(by_class) for by_class in zip(*by_score, strict=True)]
        return Derivatives(activations, logits[0], gradients)


def stack_classes(by_class: tuple) -> "tf.Tensor | None":
    """The gradients of several classes at one map as one tensor; None where there is none."""
    return None if by_class[0] is None else tf.stack(by_class)


def guided_backprop(model: "keras.Model", x: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """Guided backpropagation of class scores (Springenberg et al. 2014, arXiv 1412.6806, 3.4).

    Arguments and errors as of `grad_cam`. Returns float32 (len(classes), H, W, channels)."""
    graph.check_input(model, x)
    graph.check_classes(model, classes)
    logits_view(model)  # raises ValueError unless the output is logits

    def make(model):
        guided = with_guided_relus(model)
        return split_at(guided, [guided.inputs[0]])

    found = graph.cached_for_model(model, "guided", make)(x, classes)
    graph.check_gradient(found.gradients[0], "the photograph")
    return found.gradients[0][:, 0].numpy()


def with_guided_relus(model: "keras.Model") -> "keras.Model":
    """A flat view whose ReLUs pass a signal R back only where R > 0 and their value f > 0."""
    # Forward: f; backward: R where R > 0. It follows each ReLU, which itself checks f > 0
    rectify_back = tf.custom_gradient(lambda f: (tf.identity(f), tf.nn.relu))
    gate = keras.layers.Activation(rectify_back, dtype="float32", name="guided..gate")

    def insert_gate(operation, output):
        return gate(output) if graph.relu_ceiling(operation) else output

    return graph.flat_view(model, insert_gate)


def build(name: str, weights: str | None = None) -> "keras.Model":
    """VGG16 or VGG19 (arXiv 1409.1556) with logits. weights: None, imagenet, bundled, a file."""
    with default_keras_settings():
        if weights == "bundled":
            return bundled_vgg16()
        network = getattr(keras.applications, name.upper())
        return network(weights=weights, classifier_activation=None)


def vgg_spec(name: str) -> ModelSpec:
    """How VGG16 or VGG19 is built and drawn."""
    return ModelSpec(
        label=name.upper(),
        build=functools.partial(build, name),
        weight_files=(f"{name}_weights_tf_dim_ordering_tf_kernels.h5",),
        default_layers=("block?_conv?",),
        known_classes=KNOWN_CLASSES,
        row_of=lambda layer: layer.partition("_")[0],  # the layers of a block are a row
    )


def main() -> int:
    options = read_options(globals(), GRADCAM_FIGURES)
    photos = find_photos(options, IMAGES)
    names = vgg_models(options)
    networks = [open_network_for(options, vgg_spec(name), photos) for name in names]
    if options.list_layers:
        return print_layers(options, networks[0])
    methods = Methods(grad_cam, guided_backprop)
    make_explanation = functools.partial(GradCamExplanation, methods=methods)
    return draw_figures(options, photos, networks, make_explanation)


if __name__ == "__main__":
    sys.exit(run(main))
