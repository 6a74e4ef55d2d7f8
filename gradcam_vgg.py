"""Grad-CAM on VGG16 and VGG19: what in a photograph speaks for a class, and what against it.

    python gradcam_vgg.py Image/hopper_coffee.jpg
    python gradcam_vgg.py photo.jpg --models vgg16 --classes "Egyptian cat,n02124075,top3" --figures classes,guided

Grad-CAM: Selvaraju et al. 2016, arXiv 1610.02391. VGG: Simonyan and Zisserman 2014, arXiv 1409.1556, as Keras has it.
The figure `layers` shows every convolution layer of both networks, a row a block; the others are drawn for each.
"""
import functools

import utils

IMAGES = ["Image/hopper_coffee.jpg"]  # photographs, or folders of them; paths are relative to this script
MODELS = ["vgg16", "vgg19"]  # one of them, or both
FIGURES = ["layers", "classes", "negative", "one_class", "kernels", "guided"]  # of these and trust; all for all
LAYERS = ["all"]       # block1_conv1 … block5_conv4, see --list-layers. Figures of one layer draw the last
CLASSES = ["top4"]     # indices, WordNet ids, names; top4: the four most probable. Figures of one class draw the first
KERNELS = ["top9"]     # kernel numbers for the figure `kernels`, or top9 for the nine with the strongest response
WEIGHTS = "imagenet"   # imagenet, random, a weights file, or a folder that holds both published ones
SEED = 0               # of random weights
OUTPUT = "results"     # folder for the pictures
ARRAYS = False         # True: also save the numbers behind each figure, as .npz
COLORMAP = "jet"       # any of OpenCV's: jet, turbo, viridis, inferno …


def draw_layers(looks):
    """One class, every convolution layer of every network in one picture, a row a block."""
    first = looks[0]
    index, rows, arrays = first.classes[0], {}, {}
    for look in looks:
        cams = look.seen.grad_cam(look.layers, [index])
        blocks = dict.fromkeys(layer.split("_")[0] for layer in look.layers)
        width = max(sum(layer.startswith(block) for layer in look.layers) for block in blocks)
        before = max(map(len, rows.values()), default=0)
        for block in sorted(blocks | rows):
            tiles = [look.heat(cams[layer][0], f"{look.label} {layer}")
                     for layer in look.layers if layer.startswith(block)]
            row = rows.setdefault(block, [None] * before)  # gaps, so that each network has its columns
            row += [*tiles, *[None] * (width - len(tiles))]
        arrays |= look.arrays({f"{layer}/{index}": cams[layer][0] for layer in look.layers})
    label = first.label if len(looks) == 1 else "VGG"
    note = " · ".join(f"{look.label} p {look.probability(index):.3f}" for look in looks)
    utils.save_figure(first.options, first.photo.stem, label, "layers", utils.beside(first.original, rows.values()),
                      f"{first.photo.path.name} · {utils.class_name(index)} · {note}", arrays)


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
               "trust": lambda look: utils.draw_trust(look, control(look.name))}
    options = utils.read_options(globals(), figures, {name: utils.vgg_network(name) for name in utils.VGG_BLOCKS})
    models = {name: utils.build_vgg(name, options.weights, options.seed) for name in options.models}
    control = functools.cache(lambda name: utils.build_vgg(name, "random", options.seed + 1))
    preprocess = utils.import_keras().applications.vgg16.preprocess_input  # to BGR, less the ImageNet mean
    in_names = {"layers": ["vgg"] if len(models) > 1 else options.models}  # a picture of both networks bears `vgg`
    for photo in utils.photographs(options, options.figures, lambda figure: in_names.get(figure, options.models)):
        x = utils.network_input(photo.pixels, 224, preprocess)
        looks = [utils.Look(name.upper(), model, photo, x, options, "BGR") for name, model in models.items()]
        for figure, names in photo.left.items():
            if figure == "layers":
                draw_layers(looks)
            for look in looks:
                if figure != "layers" and look.name in names:
                    figures[figure](look)
    return 1 if options.skipped else 0


if __name__ == "__main__":
    utils.run(main)
