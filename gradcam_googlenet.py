"""Grad-CAM on GoogLeNet (Inception v1): the evidence in a photograph for a class, and against it.

    python gradcam_googlenet.py Image/hopper_coffee.jpg --weights bundled
    python gradcam_googlenet.py photo.jpg --classes "Egyptian cat,n02124075,top3" --arrays
    python gradcam_googlenet.py photos/ --weights mine.keras --labels names.txt

The method of Selvaraju et al. 2016, arXiv 1610.02391, follows the constants; then the network of
Szegedy et al. 2014, arXiv 1409.4842, as the authors of TF-Slim trained it: with batch normalisation
in place of local response normalisation, 3x3 in place of 5x5 convolutions, and no auxiliary
classifiers. Weights: their archive, downloaded once, its inception_v1.ckpt, an .npz with the same
variable names, or `bundled`: those in Image/, of the 81 classes in Image/googlenet_classes.txt."""

if __name__ == "__main__":  # before NumPy and the rest are imported
    from cnnvis.shell import prepare_process

    prepare_process()

import functools
import re
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
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
from utils import IMAGE_FOLDER, UserError, check_choice

# fmt: off
IMAGES = ["Image/hopper_coffee.jpg"]  # photographs, folders, patterns; here relative to this script
FIGURES = ["layers", "classes", "negative", "one_class", "kernels", "guided"]  # or all: see --help
LAYERS = ["all"]      # names, shell wildcards, or all: the stem and the nine modules
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


ARCHIVE = (
    "https://storage.googleapis.com/download.tensorflow.org/models/inception_v1_2016_08_28.tar.gz"
)
SHA256 = "7a620c430fcaba8f8f716241f5148c4c47c035cce4e49ef02cfbe6cd1adf96a6"
CHECKPOINT = "inception_v1.ckpt"  # what the archive holds
MODULES = {  # widths: 1x1 | 1x1 then 3x3 | 1x1 then 3x3 | pool then 1x1
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}


class Branch(NamedTuple):
    """A convolution of a module: its TF-Slim name, its branch's number, its channels and extent."""

    name: str
    number: int
    width: int
    extent: int


def branches(module: str) -> list[Branch]:
    """The six convolutions of a module, in the order of MODULES' widths."""
    names = [
        "Branch_0/Conv2d_0a_1x1",
        "Branch_1/Conv2d_0a_1x1",
        "Branch_1/Conv2d_0b_3x3",
        "Branch_2/Conv2d_0a_1x1",
        "Branch_2/Conv2d_0b_3x3",
        "Branch_3/Conv2d_0b_1x1",
    ]
    if module == "Mixed_5b":  # the one name that breaks the pattern
        names[4] = "Branch_2/Conv2d_0a_3x3"
    found = []
    for name, width in zip(names, MODULES[module], strict=True):
        found.append(Branch(f"{module}/{name}", int(name[7]), width, int(name[-1])))
    return found


def convolution(
    x: "keras.KerasTensor", name: str, width: int, extent: int, strides: int = 1
) -> "keras.KerasTensor":
    """Convolution without bias, batch normalisation without scale, ReLU, which has the name."""
    name = name.replace("/", "_")
    x = keras.layers.Conv2D(width, extent, strides, "same", use_bias=False, name=f"{name}_conv")(x)
    x = keras.layers.BatchNormalization(scale=False, epsilon=1e-3, name=f"{name}_bn")(x)
    return keras.layers.Activation("relu", name=name)(x)


def inception(x: "keras.KerasTensor", module: str) -> "keras.KerasTensor":
    """An inception module: four branches, concatenated."""
    pool = keras.layers.MaxPooling2D(3, 1, "same", name=f"{module}_Branch_3_MaxPool_0a_3x3")
    ends = [x, x, x, pool(x)]
    for branch in branches(module):
        below = ends[branch.number]
        ends[branch.number] = convolution(below, branch.name, branch.width, branch.extent)
    return keras.layers.Concatenate(name=module)(ends)


def googlenet() -> "keras.Model":
    """The network, from a (1, 224, 224, 3) input in [-1, 1] to 1000 logits."""
    layers = keras.layers
    image = keras.Input((224, 224, 3))
    x = convolution(image, "Conv2d_1a_7x7", 64, 7, strides=2)
    x = layers.MaxPooling2D(3, 2, "same", name="MaxPool_2a_3x3")(x)
    x = convolution(x, "Conv2d_2b_1x1", 64, 1)
    x = convolution(x, "Conv2d_2c_3x3", 192, 3)
    pools = {"Mixed_3b": 3, "Mixed_4b": 3, "Mixed_5b": 2}
    for module in MODULES:
        if module in pools:
            name = f"MaxPool_{module[6]}a"
            x = layers.MaxPooling2D(pools[module], 2, "same", name=name)(x)
        x = inception(x, module)
    x = layers.GlobalAveragePooling2D(name="AvgPool_0a_7x7")(x)
    return keras.Model(image, layers.Dense(1000, name="Logits")(x), name="googlenet")


def variables(model: "keras.Model") -> dict:
    """The network's variables by their TF-Slim names."""
    found = {}
    for conv in [layer for layer in model.layers if layer.name.endswith("_conv")]:
        module = conv.name.removesuffix("_conv")
        norm = model.get_layer(f"{module}_bn")
        name = re.sub(r"^(Mixed_..)_(Branch_.)_", r"\1/\2/", module)
        found[f"InceptionV1/{name}/weights"] = conv.kernel
        found[f"InceptionV1/{name}/BatchNorm/beta"] = norm.beta
        found[f"InceptionV1/{name}/BatchNorm/moving_mean"] = norm.moving_mean
        found[f"InceptionV1/{name}/BatchNorm/moving_variance"] = norm.moving_variance
    logits = model.get_layer("Logits")
    found["InceptionV1/Logits/Conv2d_0c_1x1/weights"] = logits.kernel
    found["InceptionV1/Logits/Conv2d_0c_1x1/biases"] = logits.bias
    return found


def load(model: "keras.Model", path: Path) -> "keras.Model":
    """Load weights: a checkpoint of TF-Slim, the archive it comes in, an .npz, or Keras's.

    Nothing is unpickled."""
    if path.suffix == ".h5":
        model.load_weights(path)
    elif path.name.endswith((".tar.gz", ".tgz")):
        with tempfile.TemporaryDirectory() as folder, tarfile.open(path) as archive:
            archive.extract(CHECKPOINT, folder, filter="data")
            load(model, Path(folder) / CHECKPOINT)
    elif path.suffix == ".npz":
        assign(model, np.load(path, allow_pickle=False).__getitem__)
    else:
        checkpoint = tf.train.load_checkpoint(str(path).removesuffix(".index"))
        assign(model, checkpoint.get_tensor)
    return model


def assign(model: "keras.Model", read: Callable) -> None:
    """Assign to each variable what read(its TF-Slim name) returns."""
    for name, variable in variables(model).items():
        array = np.asarray(read(name))
        if array.dtype.kind not in "fiu":
            raise UserError(f"{name} holds no numbers: give TF-Slim's weights of Inception v1")
        array = np.float32(array)
        if "Logits" in name:  # without «background», the first of 1001: class c is index c + 1
            rows = np.reshape(array, (-1, 1001))
            array = np.reshape(rows[:, 1:], variable.shape)
        variable.assign(array)  # which refuses another shape


def build(weights: str | None = None) -> "keras.Model":
    """GoogLeNet with logits. weights: None, imagenet, bundled, or a file (see `load`)."""
    with default_keras_settings():
        model = googlenet()
    if weights is None:
        return model
    if weights == "imagenet":
        weights = keras.utils.get_file(origin=ARCHIVE, file_hash=SHA256, cache_subdir="models")
    return load(model, BUNDLED if weights == "bundled" else Path(weights))


BUNDLED = IMAGE_FOLDER / "googlenet_81_classes.npz"
SPEC = ModelSpec(
    label="GoogLeNet",
    build=build,
    weight_files=(Path(ARCHIVE).name, CHECKPOINT),
    default_layers=("Conv2d_[12]?_?x?", "Mixed_??"),
    preprocess="tf",
    load=load,
    known_classes=IMAGE_FOLDER / "googlenet_classes.txt",
)


def main() -> int:
    options = read_options(globals(), GRADCAM_FIGURES)
    photos = find_photos(options, IMAGES)
    network = open_network_for(options, SPEC, photos)
    if options.list_layers:
        return print_layers(options, network)
    methods = Methods(grad_cam, guided_backprop)
    make_explanation = functools.partial(GradCamExplanation, methods=methods)
    return draw_figures(options, photos, [network], make_explanation)


if __name__ == "__main__":
    sys.exit(run(main))
