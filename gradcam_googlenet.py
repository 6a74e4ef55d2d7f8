"""Grad-CAM on GoogLeNet (Inception v1): what in a photograph speaks for a class, and what against it.

    python gradcam_googlenet.py Image/hopper_coffee.jpg --weights tiny
    python gradcam_googlenet.py photo.jpg --classes "Egyptian cat,n02124075,top3" --figures classes,guided --arrays

Grad-CAM: Selvaraju et al. 2016, arXiv 1610.02391. GoogLeNet: Szegedy et al. 2014, arXiv 1409.4842, as the authors of
TF-Slim trained it: batch normalisation in place of local response normalisation, 3x3 in place of 5x5 convolutions, no
auxiliary classifiers; ImageNet top-1 69.8 %. `--weights` also takes their inception_v1.ckpt (or the prefix of a newer
checkpoint), the archive that it comes in, an .npz with the same variable names, or `tiny`: the weights bundled in
Image/, which know 81 of the 1000 classes and need no download.
"""
import functools
import gzip
import io
import shutil
import tarfile
import tempfile
import warnings
import zipfile
from pathlib import Path

import utils  # first, since it answers to Ctrl-C while the rest is imported

import numpy as np

IMAGES = ["Image/hopper_coffee.jpg"]  # photographs, or folders of them; paths are relative to this script
FIGURES = ["layers", "classes", "negative", "one_class", "kernels", "guided"]  # of these and trust; all for all
LAYERS = ["all"]       # all: the 3 stem convolutions and the 9 modules; see --list-layers. One-layer figures: the last
CLASSES = ["top4"]     # indices, WordNet ids, names; top4: the four most probable. Figures of one class draw the first
KERNELS = ["top9"]     # kernel numbers for the figure `kernels`, or top9 for the nine with the strongest response
WEIGHTS = "imagenet"   # imagenet, tiny, random, a weights file, or a folder that holds the published one
SEED = 0               # of random weights
OUTPUT = "results"     # folder for the pictures
ARRAYS = False         # True: also save the numbers behind each figure, as .npz
COLORMAP = "jet"       # any of OpenCV's: jet, turbo, viridis, inferno …

PUBLISHED = utils.Published(
    "https://storage.googleapis.com/download.tensorflow.org/models/inception_v1_2016_08_28.tar.gz",
    "7a620c430fcaba8f8f716241f5148c4c47c035cce4e49ef02cfbe6cd1adf96a6")
CHECKPOINT = "inception_v1.ckpt"  # what the archive holds
LIMIT = 2**27  # bytes that an archive of these weights, 27 MB, may unpack to
TINY = utils.HERE / "Image" / "googlenet_tiny_imagenet.npz"
STEM = {"Conv2d_1a_7x7": 64, "Conv2d_2b_1x1": 64, "Conv2d_2c_3x3": 192}
MODULES = {  # 1x1 | 1x1 then 3x3 | 1x1 then 3x3 | pool then 1x1
    "Mixed_3b": (64, 96, 128, 16, 32, 32), "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64), "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64), "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128), "Mixed_5c": (384, 192, 384, 48, 128, 128)}


def branches(module):
    """The six convolutions of a module by their TF-Slim names: {name: (branch, width, extent)}."""
    last = "Conv2d_0a_3x3" if module == "Mixed_5b" else "Conv2d_0b_3x3"  # the one name that breaks the pattern
    names = ("Branch_0/Conv2d_0a_1x1", "Branch_1/Conv2d_0a_1x1", "Branch_1/Conv2d_0b_3x3", "Branch_2/Conv2d_0a_1x1",
             f"Branch_2/{last}", "Branch_3/Conv2d_0b_1x1")
    return {f"{module}/{name}": (int(name[7]), width, int(name[-1])) for name, width in zip(names, MODULES[module])}


def network():
    """The layers that the command line knows: every convolution after its ReLU, every module."""
    widths = dict(STEM)
    for module, (a, _, b, _, c, d) in MODULES.items():
        widths |= {name.replace("/", "_"): width for name, (_, width, _) in branches(module).items()}
        widths[module] = a + b + c + d
    return utils.Network(widths, [*STEM, *MODULES])


def convolution(x, name, width, extent, strides=1):
    """Convolution without bias, batch normalisation without scale, ReLU; the ReLU bears the name."""
    layers, name = utils.import_keras().layers, name.replace("/", "_")
    x = layers.Conv2D(width, extent, strides=strides, padding="same", use_bias=False, name=f"{name}_conv")(x)
    x = layers.BatchNormalization(scale=False, epsilon=1e-3, name=f"{name}_bn")(x)
    return layers.Activation("relu", name=name)(x)


def googlenet():
    """The network, from a (1, 224, 224, 3) input in [-1, 1] to 1000 logits."""
    keras = utils.import_keras()
    layers = keras.layers
    image = keras.Input((224, 224, 3))
    x = convolution(image, "Conv2d_1a_7x7", 64, 7, strides=2)
    x = layers.MaxPooling2D(3, 2, "same", name="MaxPool_2a_3x3")(x)
    x = convolution(x, "Conv2d_2b_1x1", 64, 1)
    x = convolution(x, "Conv2d_2c_3x3", 192, 3)
    for module in MODULES:
        if module in ("Mixed_3b", "Mixed_4b", "Mixed_5b"):
            x = layers.MaxPooling2D(2 if module == "Mixed_5b" else 3, 2, "same", name=f"MaxPool_{module[6]}a")(x)
        ends = [x, x, x, layers.MaxPooling2D(3, 1, "same", name=f"{module}_Branch_3_MaxPool_0a_3x3")(x)]
        for name, (branch, width, extent) in branches(module).items():
            ends[branch] = convolution(ends[branch], name, width, extent)
        x = layers.Concatenate(name=module)(ends)
    x = layers.GlobalAveragePooling2D(name="AvgPool_0a_7x7")(x)
    return keras.Model(image, layers.Dense(1000, name="Logits")(x), name="googlenet")


def variables(model):
    """The network's variables by their TF-Slim names: {name: (Keras variable, shape in the checkpoint)}."""
    found = {}
    for name in [*STEM, *(name for module in MODULES for name in branches(module))]:
        layer = name.replace("/", "_")
        norm = model.get_layer(f"{layer}_bn")
        found[f"{name}/weights"] = model.get_layer(f"{layer}_conv").kernel
        found |= {f"{name}/BatchNorm/beta": norm.beta, f"{name}/BatchNorm/moving_mean": norm.moving_mean,
                  f"{name}/BatchNorm/moving_variance": norm.moving_variance}
    found = {f"InceptionV1/{name}": (variable, tuple(variable.shape)) for name, variable in found.items()}
    logits = model.get_layer("Logits")
    return found | {"InceptionV1/Logits/Conv2d_0c_1x1/weights": (logits.kernel, (1, 1, 1024, 1001)),
                    "InceptionV1/Logits/Conv2d_0c_1x1/biases": (logits.bias, (1001,))}


def stored_variables(path, names):
    """The variables of those names in a file of TF-Slim's weights: {name: array}. Nothing is unpickled or run."""
    import tensorflow as tf
    if path.suffix == ".npz":
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > LIMIT:
                raise ValueError("it unpacks to more than a GoogLeNet")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names if name in arrays.files}
    if path.name.endswith((".tar.gz", ".tgz")):
        with gzip.open(path) as packed:
            whole = packed.read(LIMIT + 1)
        if len(whole) > LIMIT:
            raise ValueError("it unpacks to more than a GoogLeNet")
        with tempfile.TemporaryDirectory() as folder, tarfile.open(fileobj=io.BytesIO(whole), mode="r:") as archive:
            member, unpacked = archive.getmember(CHECKPOINT), Path(folder) / CHECKPOINT
            if not member.isfile():
                raise ValueError(f"its {CHECKPOINT} is no file")
            with archive.extractfile(member) as packed, open(unpacked, "wb") as file:
                shutil.copyfileobj(packed, file)
            return stored_variables(unpacked, names)
    checkpoint = tf.train.load_checkpoint(str(path).removesuffix(".index"))
    return {name: checkpoint.get_tensor(name) for name in names if checkpoint.has_tensor(name)}


def build(weights, seed):
    """GoogLeNet with its weights. UserError where they cannot be had or do not fit."""
    utils.import_keras().utils.set_random_seed(seed)
    model = googlenet()
    unpacked = Path(weights) / CHECKPOINT
    path = TINY if weights == "tiny" else unpacked if unpacked.is_file() else \
        utils.weights_file(weights, [PUBLISHED], hints=("tiny", "random"))
    if path is None:
        return model
    if path.suffix == ".h5":
        utils.load_weights(model, path)
        return model
    try:
        wanted = variables(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong is told in one line
            stored = stored_variables(path, wanted)
        for name, (variable, shape) in wanted.items():
            if name not in stored or stored[name].shape != shape:
                raise ValueError(f"{name} should be {shape}, is {stored[name].shape if name in stored else 'missing'}")
            with np.errstate(over="ignore"):
                array = stored[name].astype(np.float32, casting="same_kind")
            if not np.isfinite(array).all():
                raise ValueError(f"{name} holds numbers that are not finite")
            if "Logits" in name:  # drop «background», the first of 1001: class c is index c + 1
                array = array[..., 1:].reshape(variable.shape)
            variable.assign(array)
    except Exception as error:  # zip, tar and checkpoint readers fail in many ways on a broken file
        raise utils.UserError(f"{path} does not hold GoogLeNet's weights: {utils.reason(error)}") from error
    return model


def draw_layers(look):
    """One class, every layer: all maps from one way down."""
    index = look.classes[0]
    cams = look.seen.grad_cam(look.layers, [index])
    tiles = [look.heat(cams[layer][0], layer) for layer in look.layers]
    arrays = {f"{layer}/{index}": cams[layer][0] for layer in look.layers}
    look.save("layers", utils.wrap([look.original, *tiles], 5), look.title(index), arrays)


def draw_classes(look):
    """The last layer, a tile a class."""
    tiles = [look.heat(cam, look.title(index)) for index, cam in look.cams.items()]
    look.save("classes", utils.wrap([look.original, *tiles], 5), look.last, look.evidence)


def draw_negative(look):
    """What speaks for a class beside what speaks against it: the last ReLU keeps the negative pixels instead."""
    rows = [[look.heat(cam, look.title(index), sign) for sign in (1, -1)] for index, cam in look.cams.items()]
    look.save("negative", utils.beside(look.original, rows), f"{look.last} · left: for the class, right: against it",
              look.evidence)


def draw_one_class(look):
    """One class, large: photograph, heat map, overlay."""
    index, large = look.classes[0], utils.fit(look.photo.pixels, 2 * utils.TILE)
    heat, strength = utils.heat_map(look.cams[index], *large.shape[:2])
    tiles = [utils.Tile(large, look.original.title),
             utils.Tile(utils.colorize(heat, look.options.colormap), "heat map" if strength else "heat map · empty"),
             look.heat(look.cams[index], look.title(index), image=large)]
    look.save("one_class", [tiles], look.last, {f"{look.last}/{index}": look.cams[index]})


def draw_kernels(look):
    """The feature maps of the last layer."""
    kernels = look.kernels
    maps = look.seen.feature_map(look.last)[0].numpy()[..., kernels]
    tiles = [look.feature(maps[..., place], f"kernel {kernel}") for place, kernel in enumerate(kernels)]
    look.save("kernels", utils.wrap([look.original, *tiles], 5), f"{look.last} · feature maps",
              {f"{look.last}/kernels": maps, f"{look.last}/kernel_numbers": kernels})


def draw_guided(look):
    """Guided backpropagation, and its product with the heat map (Guided Grad-CAM), a row a class."""
    guided, rows = look.seen.guided_backprop(look.classes).numpy(), []
    for saliency, (index, cam) in zip(guided, look.cams.items()):
        heat, _ = utils.heat_map(cam, *saliency.shape[:2])
        rows.append([look.heat(cam, look.title(index)), look.grey(saliency, "guided backpropagation"),
                     look.grey(saliency * heat[..., None], "Guided Grad-CAM")])
    look.save("guided", utils.beside(look.original, rows), f"{look.last} · grey pictures: zero is grey",
              look.evidence | {f"guided/{index}": saliency for index, saliency in zip(look.classes, guided)})


def main():
    figures = {"layers": draw_layers, "classes": draw_classes, "negative": draw_negative,
               "one_class": draw_one_class, "kernels": draw_kernels, "guided": draw_guided,
               "trust": lambda look: utils.draw_trust(look, control())}
    options = utils.read_options(globals(), figures, {"googlenet": network()}, builtin_weights=("tiny",))
    model = build(options.weights, options.seed)
    control = functools.cache(lambda: build("random", options.seed + 1))
    preprocess = utils.import_keras().applications.inception_v3.preprocess_input  # to [-1, 1], RGB
    for photo in utils.photographs(options, options.figures):
        look = utils.Look("GoogLeNet", model, photo, utils.network_input(photo.pixels, 224, preprocess), options)
        for figure in photo.left:
            figures[figure](look)
    return 1 if options.skipped else 0


if __name__ == "__main__":
    utils.run(main)
