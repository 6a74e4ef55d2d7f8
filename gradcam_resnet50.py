"""Grad-CAM on ResNet50: what in a photograph speaks for a class, and what against it.

    python gradcam_resnet50.py Image/hopper_coffee.jpg
    python gradcam_resnet50.py photo.jpg --classes "Egyptian cat,n02124075,top3" --figures classes,guided --arrays

Grad-CAM: Selvaraju et al. 2016, arXiv 1610.02391. ResNet50: He et al. 2015, arXiv 1512.03385, as Keras has it. The
figure `layers` shows the stem and the 16 residual blocks, each after its addition and ReLU.
"""
import functools

import utils

IMAGES = ["Image/hopper_coffee.jpg"]  # photographs, or folders of them; paths are relative to this script
FIGURES = ["layers", "classes", "negative", "one_class", "kernels", "guided"]  # of these and trust; all for all
LAYERS = ["all"]       # all: the stem and the 16 blocks; any other of --list-layers. Figures of one layer draw the last
CLASSES = ["top4"]     # indices, WordNet ids, names; top4: the four most probable. Figures of one class draw the first
KERNELS = ["top9"]     # kernel numbers for the figure `kernels`, or top9 for the nine with the strongest response
WEIGHTS = "imagenet"   # imagenet, random, a weights file, or a folder that holds the published one
SEED = 0               # of random weights
OUTPUT = "results"     # folder for the pictures
ARRAYS = False         # True: also save the numbers behind each figure, as .npz
COLORMAP = "jet"       # any of OpenCV's: jet, turbo, viridis, inferno …

PUBLISHED = utils.Published(
    f"{utils.KERAS_APPLICATIONS}/resnet/resnet50_weights_tf_dim_ordering_tf_kernels.h5",
    "2cb95161c43110f7111970584f804107")
STAGES = {"conv2": (3, 64), "conv3": (4, 128), "conv4": (6, 256), "conv5": (3, 512)}  # stage: blocks, width


def network():
    """The layers that the command line knows: the stem, and every convolution, batch norm and ReLU of each block."""
    widths, ends = {"conv1_conv": 64, "conv1_bn": 64, "conv1_relu": 64, "pool1_pool": 64}, ["conv1_relu"]
    for stage, (blocks, width) in STAGES.items():
        for block in (f"{stage}_block{number}" for number in range(1, blocks + 1)):
            if block.endswith("block1"):
                widths |= {f"{block}_0_{part}": 4 * width for part in ("conv", "bn")}  # the shortcut
            for number, wide in ((1, width), (2, width), (3, 4 * width)):
                parts = ("conv", "bn", "relu")[:2 if number == 3 else 3]
                widths |= {f"{block}_{number}_{part}": wide for part in parts}
            widths |= {f"{block}_add": 4 * width, f"{block}_out": 4 * width}
            ends.append(f"{block}_out")
    return utils.Network(widths, ends)


def build(weights, seed):
    """ResNet50 with logits for output, and its weights."""
    keras = utils.import_keras()
    path = utils.weights_file(weights, [PUBLISHED])
    keras.utils.set_random_seed(seed)
    model = keras.applications.ResNet50(weights=None, classifier_activation=None)
    if path is not None:
        utils.load_weights(model, path)
    return model


def draw_layers(look):
    """One class, the stem and every block: all maps from one way down, a row a stage."""
    index, rows = look.classes[0], {}
    cams = look.seen.grad_cam(look.layers, [index])
    for layer in look.layers:
        rows.setdefault(layer[:5], []).append(look.heat(cams[layer][0], layer))
    arrays = {f"{layer}/{index}": cams[layer][0] for layer in look.layers}
    look.save("layers", utils.beside(look.original, rows.values()), look.title(index), arrays)


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
    options = utils.read_options(globals(), figures, {"resnet50": network()})
    model = build(options.weights, options.seed)
    control = functools.cache(lambda: build("random", options.seed + 1))
    preprocess = utils.import_keras().applications.resnet50.preprocess_input  # to BGR, less the ImageNet mean
    for photo in utils.photographs(options, options.figures):
        look = utils.Look("ResNet50", model, photo, utils.network_input(photo.pixels, 224, preprocess), options, "BGR")
        for figure in photo.left:
            figures[figure](look)
    return 1 if options.skipped else 0


if __name__ == "__main__":
    utils.run(main)
