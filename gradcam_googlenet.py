"""Grad-CAM on GoogLeNet (Inception v1): the evidence in a photograph for a class, and against it.

    python gradcam_googlenet.py Image/hopper_coffee.jpg --weights bundled
    python gradcam_googlenet.py photo.jpg --classes "Egyptian cat,n02124075,top3" --arrays
    python gradcam_googlenet.py photos/ --weights mine.keras --labels names.txt

The method, of Selvaraju et al. 2016, arXiv 1610.02391, stands first, up to `guided_backprop`.
Figures and the network follow: Szegedy et al. 2014, arXiv 1409.4842, as the authors of TF-Slim
trained it, with batch normalisation in place of local response normalisation, 3x3 in place of 5x5
convolutions and no auxiliary classifiers. Weights: their archive, fetched once, its
inception_v1.ckpt, an .npz with the same variable names, or `bundled`: those in Image/, of the 81
classes that Image/googlenet_classes.txt lists."""

import functools
import re
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

import utils
from utils import Bar, Tile, keras, tf

# fmt: off
IMAGES = ["Image/hopper_coffee.jpg"]  # photographs, folders, patterns; here relative to this script
FIGURES = ["layers", "classes", "negative", "one_class", "kernels", "guided"]  # or all; see below
LAYERS = ["all"]      # names, shell wildcards, or all: the stem and the nine modules
CLASSES = ["top4"]    # indices, WordNet ids, names, or top4: the four most probable
KERNELS = ["top9"]    # numbers from 0, ranges (0-8), or top9: the nine with the strongest response
METHOD = "gradcam"    # gradcam, gradcam++, hirescam or layercam: how gradients weigh the maps
WEIGHTS = "imagenet"  # imagenet, bundled, random, a weights file or folder, a saved network
LABELS = ""           # of a saved network: a file with a class a line, or a folder with sub-folders
IMPORT = ""           # of a saved network: a file or module that registers its custom layers
PREPROCESS = "auto"   # auto; caffe, tf or torch, as Keras calls them; unit: 0 to 1; none: 0 to 255
FIT = "squeeze"       # squeeze, crop or pad: how a photograph becomes the network's rectangle
RESIZE = "area"       # area; bilinear and nearest as Keras's loaders do
PLACE = "field"       # field: maps lie where the network looked; stretch: over the whole photograph
THRESHOLD = 15        # of boxes and table: percent of a map's maximum, over which it is hot
BOXES = ""            # of boxes: a CSV file of true ones, photo,class,x0,y0,x1,y1
PAGES = 5             # of failures: at most so many pages
SCALE = 1             # pages so many times as large, for print
SEED = 0              # of random weights
OUTPUT = "results"    # folder of the results
FORMAT = "jpg"        # jpg, png or pdf
ARRAYS = False        # True: save the numbers behind each figure too, as .npz
COLORMAP = "jet"      # an OpenCV colour map: jet, turbo, viridis, inferno …
# fmt: on
WEIGHTS_WORDS = ["imagenet", "bundled", "random"]

CAM_WEIGHTS = {  # how to weigh feature maps A, (1, h, w, K), given g = dy/dA, (classes, h, w, K)
    # Equation 1: alpha = 1/Z sum of dy/dA
    "gradcam": lambda g, A: tf.reduce_mean(g, axis=(1, 2), keepdims=True),
    # Chattopadhyay et al. 2017, arXiv 1710.11063, equations 5 and 19, divided by g^2; their factor
    # exp(y) is left out
    "gradcam++": lambda g, A: tf.reduce_sum(
        tf.math.divide_no_nan(tf.nn.relu(g), 2 + g * tf.reduce_sum(A, axis=(1, 2), keepdims=True)),
        axis=(1, 2),
        keepdims=True,
    ),
    # Draelos and Carin 2020, arXiv 2011.08891: nothing is averaged
    "hirescam": lambda g, A: g,
    # Jiang et al. 2021, LayerCAM: a weight for every position
    "layercam": lambda g, A: tf.nn.relu(g),
}


class Derivatives(NamedTuple):
    """What one forward pass and the way back give, as TensorFlow's tensors."""

    maps: list  # feature maps A, (1, h, w, K) each
    logits: object  # (n_classes,)
    gradients: list  # dy/dA of each map, (classes, 1, h, w, K); None where y does not depend on it


class Halves:
    """A network in two, up to its first map, below which no tape need record, and on. Eager at the
    first call, which is quicker than tracing; traced from the second call on."""

    def __init__(self, below, above, cut_at_map):
        self.below, self.above, self.cut_at_map = below, above, cut_at_map
        self.one_by_one = utils.needs_single_gradients(above)
        self.traced = tf.function(self.differentiate)
        self.eager = not utils.breaks_eagerly(above)

    def __call__(self, x, classes, top=0):
        """The Derivatives of scores y of the most probable classes, so many, and of others."""
        differentiate = self.differentiate if self.eager else self.traced
        self.eager = False
        return differentiate(tf.constant(x, tf.float32), tf.constant(classes, tf.int32), top)

    def differentiate(self, x, classes, top):
        first = self.below(x, training=False)
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch(first)
            *maps, logits = keras.tree.flatten(self.above(first, training=False))
            maps = [first, *maps] if self.cut_at_map else maps
            strongest = tf.math.top_k(logits[0], top).indices
            y = tf.gather(logits[0], tf.concat([strongest, classes], axis=0))  # before softmax
            scores = tf.unstack(y)
        if len(scores) > 1 and not self.one_by_one and not tf.executing_eagerly():
            return Derivatives(maps, logits[0], tape.jacobian(y, maps))
        gradients = [tape.gradient(score, maps) for score in scores]
        of_maps = [stacked(each) for each in zip(*gradients, strict=True)]
        return Derivatives(maps, logits[0], of_maps)


def stacked(gradients):
    """The gradients of several classes at one map as one tensor; None where there is none."""
    return None if gradients[0] is None else tf.stack(gradients)


def split(flat, maps):
    """The Halves of a network, cut at the first of its maps, where everything passes through it."""
    image, logits = flat.inputs[0], flat.outputs[0]
    if utils.all_passes(flat, maps[0], maps):
        above = keras.Model(maps[0], [*maps[1:], logits])
        return Halves(keras.Model(image, maps[0]), above, cut_at_map=True)
    return Halves(keras.Model(image, image), keras.Model(image, [*maps, logits]), cut_at_map=False)


def with_guided_relus(model):
    """The same network, whose ReLUs pass a signal R back only where R > 0 and their value f > 0."""
    # Forward: f; backward: R where R > 0. It stands behind each ReLU, which itself checks f > 0.
    rectify_back = tf.custom_gradient(lambda f: (tf.identity(f), tf.nn.relu))
    gate = keras.layers.Activation(rectify_back, dtype="float32", name="guided..gate")

    def follow(operation, output):
        return gate(output) if utils.relu_ceiling(operation) else output

    return utils.mirror(model, follow)


def checked_mirror(model, x, classes, top=0):
    """A mirror of the network, kept with it; ValueError for arguments that a method cannot take."""
    utils.check_photograph(model, x)
    utils.check_classes(model, classes, top)
    flat = utils.kept(model, "mirror", utils.mirror)
    utils.check_channels(flat)
    utils.check_logits(flat)
    return flat


def maps_of(flat, layers):
    """{name: symbolic feature map} of layers, as the network calls them. ValueError: no map."""
    maps = {}
    for name in utils.in_order(flat, layers):
        output = utils.get_operation(flat, name).output
        if len(getattr(output, "shape", ())) != 4:
            raise ValueError(f"{name} gives no map")
        maps[name] = output
    return maps


def grad_cam(model, x, layers, classes, method="gradcam", top=0):
    """Grad-CAM of several classes at several layers, all from one forward pass (section 3).

    model: functional Keras network with logits for output (utils.open_network makes one of any
    other); it is left as it was. x: float32 (1, H, W, channels), as the network wants it. layers:
    names. classes: indices. method: a key of CAM_WEIGHTS. top: so many of the most probable classes
    come before the others. Returns (maps, logits): maps[layer] float32 (top + len(classes), h, w),
    signed, before the last ReLU: positive values are evidence for the class, negative ones against
    it; logits float32 (n_classes,). ValueError: unknown method, layer or class, or none."""
    if method not in CAM_WEIGHTS or not len(layers):
        raise ValueError(f"{method!r}, {layers}: one of {', '.join(CAM_WEIGHTS)}, and some layers")
    flat = checked_mirror(model, x, classes, top)
    outputs = maps_of(flat, layers)
    halves = utils.kept(model, tuple(outputs), lambda _: split(flat, list(outputs.values())))
    found = halves(x, classes, top)
    cams = {}
    for layer, A, dy_dA in zip(outputs, found.maps, found.gradients, strict=True):
        utils.check_reached(dy_dA, layer)
        alpha = CAM_WEIGHTS[method](dy_dA[:, 0], A)  # equation 1; the 0 is the photograph
        cams[layer] = tf.reduce_sum(alpha * A, axis=-1).numpy()  # equation 2; ReLU when drawn
    return cams, found.logits.numpy()


def guided_backprop(model, x, classes):
    """Guided backpropagation of class scores (Springenberg et al. 2014, arXiv 1412.6806, 3.4).

    Returns float32 (len(classes), H, W, channels). Arguments and errors as of `grad_cam`."""
    checked_mirror(model, x, classes)

    def make(model):
        guided = with_guided_relus(model)
        return split(guided, [guided.inputs[0]])

    found = utils.kept(model, "guided", make)(x, classes)
    utils.check_reached(found.gradients[0], "the photograph")
    return found.gradients[0][:, 0].numpy()


class GradCam(utils.Explanation):
    """One photograph before one network: its class maps, which several figures draw."""

    def class_maps(self, layers, selection):
        """{layer: {class: map}} of a Selection of classes."""
        model, method = self.network.model, self.options.method
        indices, top = selection.indices, selection.top
        cams, logits = grad_cam(model, self.x, layers, indices, method, top)
        self.keep(logits)
        order = [*utils.Selection(top=top).among(logits), *indices]
        return {layer: dict(zip(order, maps, strict=True)) for layer, maps in cams.items()}

    @functools.cached_property
    def maps(self):
        """{class: map} of the layer that figures of one layer draw."""
        layer = self.network.layer
        return self.class_maps([layer], self.wanted())[layer]

    @functools.cached_property
    def cams(self):
        """Those of the classes asked for, in that order."""
        maps = self.maps  # which also ranks the classes
        return {index: maps[index] for index in self.classes}

    def cam_arrays(self):
        """The maps of that layer as arrays to be saved."""
        return {f"{self.network.layer}/{index}": cam for index, cam in self.cams.items()}

    def overlaid(self, photo, index, **how):
        """The Tile of a class over the photograph."""
        title = self.class_title(index)
        return self.heat(photo, self.cams[index], self.network.layer, title, **how)


def draw_layers(view):
    """One class at every layer."""
    maps = view.class_maps(view.network.layers, view.network.selection.first())
    index = view.classes[0]
    cams = {layer: classes[index] for layer, classes in maps.items()}
    photo = view.grid_tile(len(cams) + 1)
    tiles = [Tile(photo, "photograph")]
    tiles += [view.heat(photo, cam, layer, layer) for layer, cam in cams.items()]
    arrays = {f"{layer}/{index}": cam for layer, cam in cams.items()}
    view.save("layers", utils.in_grid(tiles), view.class_title(index, " · "), arrays)


def draw_classes(view):
    """One layer, a tile a class."""
    photo = view.grid_tile(len(view.cams) + 1)
    tiles = [Tile(photo, "photograph")]
    tiles += [view.overlaid(photo, index) for index in view.cams]
    view.save("classes", utils.in_grid(tiles), view.network.layer, view.cam_arrays())


def draw_negative(view):
    """Positive evidence and, below, negative: the last ReLU keeps the negative pixels instead."""
    photo, layer = view.tile(5), view.network.layer
    lacking = {"lack": "no negative evidence", "word": "against: max", "colormap": "viridis"}
    rows = []
    for classes in utils.in_rows(list(view.cams), 4):
        positive = [view.overlaid(photo, index, word="for: max") for index in classes]
        negative = [view.heat(photo, -view.cams[index], layer, "", **lacking) for index in classes]
        rows.append([Tile(photo, "for"), *positive])
        rows.append([Tile(photo, "against"), *negative])
    bars = [Bar(lacking["colormap"], "most against"), Bar(view.options.colormap, "most for")]
    view.save("negative", rows, layer, view.cam_arrays(), bars)


def draw_one_class(view):
    """One class, large: photograph, heat map, overlay."""
    layer, photo, cams = view.network.layer, view.tile(3), view.cams
    index = view.classes[0]  # known by now
    cam = cams[index]
    heat = utils.heat_map(cam, *photo.shape[:2], at=view.at(layer, cam.shape))
    colours = utils.colorize(heat, view.options.colormap)
    row = [Tile(photo, "photograph"), Tile(colours, "heat map"), view.overlaid(photo, index)]
    view.save("one_class", [row], layer, {f"{layer}/{index}": cam})


def draw_kernels(view):
    """Feature maps of one layer over the photograph."""
    layer = view.network.layer
    maps = view.network.maps(layer, view.x)
    kernels = view.options.kernels.among(maps.max(axis=(0, 1)))
    photo = view.grid_tile(len(kernels) + 1)
    tiles = [Tile(photo, "photograph")]
    for kernel in kernels:
        title = f"kernel {kernel}"
        tiles += [view.heat(photo, maps[..., kernel], layer, title, lack="silent")]
    arrays = {f"{layer}/kernels": maps[..., kernels], f"{layer}/kernel_numbers": kernels}
    view.save("kernels", utils.in_grid(tiles), f"{layer} · feature maps", arrays)


def draw_guided(view):
    """Guided backpropagation and its product with the heat map, Guided Grad-CAM, a row a class."""
    photo, layer = view.tile(3, len(view.cams)), view.network.layer
    rows, arrays = [], view.cam_arrays()
    values = guided_backprop(view.network.model, view.x, list(view.cams))
    for (index, cam), saliency in zip(view.cams.items(), values, strict=True):
        heat = utils.heat_map(cam, *saliency.shape[:2], at=view.at_input(layer, cam.shape))
        names = ["", ""] if rows else ["guided backpropagation", "Guided Grad-CAM: their product"]
        product = saliency * heat[..., None]
        pictures = [view.grey_over(values, photo) for values in (saliency, product)]
        rows.append([view.overlaid(photo, index), *map(Tile, pictures, names)])
        arrays[f"guided/{index}"] = saliency
    view.save("guided", rows, f"{layer} · in grey pictures zero is grey", arrays)


def draw_overlay(view):
    """A file a class: the overlay at the photograph's own size, without a word on it."""
    layer, result = view.network.layer, view.result("overlay")
    for index, cam in view.cams.items():
        if not cam.max() > 0:
            name = view.network.classes.title(index)
            utils.warn(f"{view.photo.path}: no positive evidence for {name}: its overlay is cold")
        at = view.at(layer, cam.shape)
        picture = utils.overlay(view.photo.pixels, cam, at, view.options.colormap)
        arrays = view.arrays({f"{layer}/{index}": cam})
        result.write(picture, arrays, f"_{index}", count=len(view.cams))


def draw_trust(view):
    """Can the map be believed: deletion, insertion and occlusion, and untrained weights."""
    layer, photo = view.network.layer, view.tile(6)
    tests = utils.put_to_test(view, view.cams)
    rows, arrays = [], view.cam_arrays()
    for index, other in untrained_maps(view).items():
        likeness = utils.rank_correlation(view.cams[index], other)
        title = f"weights re-initialised\nrank correlation {likeness:.2f}"
        tested = tests[index].tiles(view, view.overlaid(photo, index))
        rows.append([*tested, view.heat(photo, other, layer, title)])
        arrays[f"{layer}/{index}/control"] = other
        arrays |= tests[index].arrays(f"{layer}/{index}")
    note = f"{layer} · red: warmest first; grey: random orders, ± two standard deviations"
    view.save("trust", rows, note, arrays)


def untrained_maps(view):
    """{class: map} of the same network untrained (Adebayo et al. 2018, arXiv 1810.03292)."""
    make = functools.partial(reinitialised, view.options)
    control = utils.kept(view.network.model, "control", make)
    layer, classes = view.network.layer, list(view.cams)
    maps = grad_cam(control, view.x, [layer], classes, view.options.method)[0][layer]
    return dict(zip(classes, maps, strict=True))


def reinitialised(options, model):
    """The same network with weights drawn anew; statistics of data (Normalization) stay."""

    def clone(layer):
        if isinstance(layer, keras.layers.Normalization):
            return layer
        return type(layer).from_config(layer.get_config())

    keras.utils.set_random_seed((options.seed + 181003292) % 2**32)  # not one that built it
    return keras.models.clone_model(model, clone_function=clone)


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


def branches(module):
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


def convolution(x, name, width, extent, strides=1):
    """Convolution without bias, batch normalisation without scale, ReLU, which bears the name."""
    name = name.replace("/", "_")
    x = keras.layers.Conv2D(width, extent, strides, "same", use_bias=False, name=f"{name}_conv")(x)
    x = keras.layers.BatchNormalization(scale=False, epsilon=1e-3, name=f"{name}_bn")(x)
    return keras.layers.Activation("relu", name=name)(x)


def inception(x, module):
    """An inception module: four branches, concatenated."""
    pool = keras.layers.MaxPooling2D(3, 1, "same", name=f"{module}_Branch_3_MaxPool_0a_3x3")
    ends = [x, x, x, pool(x)]
    for branch in branches(module):
        below = ends[branch.number]
        ends[branch.number] = convolution(below, branch.name, branch.width, branch.extent)
    return keras.layers.Concatenate(name=module)(ends)


def googlenet():
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


def variables(model):
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


def load(model, path):
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


def assign(model, read):
    """Give the variables what read(TF-Slim name) gives."""
    for name, variable in variables(model).items():
        array = np.asarray(read(name), np.float32)
        if "Logits" in name:  # without «background», the first of 1001: class c is index c + 1
            rows = np.reshape(array, (-1, 1001))
            array = np.reshape(rows[:, 1:], variable.shape)
        variable.assign(array)  # which refuses another shape


def build(weights=None):
    """GoogLeNet with logits. weights: None, imagenet, bundled, or a file (see `load`)."""
    with utils.plain_keras():
        model = googlenet()
    if weights is None:
        return model
    if weights == "imagenet":
        weights = keras.utils.get_file(origin=ARCHIVE, file_hash=SHA256, cache_subdir="models")
    return load(model, BUNDLED if weights == "bundled" else Path(weights))


BUNDLED = utils.HERE / "Image" / "googlenet_81_classes.npz"
RECIPE = utils.Recipe(
    label="GoogLeNet",
    build=build,
    files=(Path(ARCHIVE).name, CHECKPOINT),
    shown=("Conv2d_[12]?_?x?", "Mixed_??"),
    preprocess="tf",
    load=load,
    known=utils.HERE / "Image" / "googlenet_classes.txt",
)
FIGURES_DRAWN = {
    "layers": draw_layers,
    "classes": draw_classes,
    "negative": draw_negative,
    "one_class": draw_one_class,
    "kernels": draw_kernels,
    "guided": draw_guided,
    "overlay": draw_overlay,
    "trust": draw_trust,
    **utils.SURVEYED,  # boxes, failures, table
}


def main():
    options = utils.read_options(globals())
    album = utils.open_album(options, IMAGES)
    network = utils.open_weights(options, RECIPE, album.folders)
    if options.list_layers:
        return utils.print_layers(options, network)
    survey = utils.Survey(options, network, album)
    targets = [(figure, network) for figure in survey.figures]
    for photo, left in utils.photographs(options, album, targets):
        view = GradCam(options, network, photo, survey)
        for figure, _ in left:
            FIGURES_DRAWN[figure](view)
    survey.finish()
    return album.exit_code()


if __name__ == "__main__":
    sys.exit(utils.run(main))
