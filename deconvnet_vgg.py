"""DeconvNet on VGG16 and VGG19: what in a photograph the kernels of a layer respond to, brought back to pixels.

    python deconvnet_vgg.py Image/cat.jpg
    python deconvnet_vgg.py photo.jpg --models vgg16 --figures kernels --layers block3_conv3 --kernels 12,77 --mode all
    python deconvnet_vgg.py my_photographs/ --figures top9 --layers block4_conv3

Zeiler and Fergus 2013, arXiv 1311.2901. VGG: Simonyan and Zisserman 2014, arXiv 1409.1556, as Keras has it. The figure
`blocks` shows the last convolution layer of every block; the others one layer, and dense layers (fc1, fc2, predictions)
too, with a unit in place of a kernel.
"""
import functools

import utils

IMAGES = ["Image/hopper_coffee.jpg"]  # photographs, or folders of them; paths are relative to this script
MODELS = ["vgg16", "vgg19"]  # one of them, or both
FIGURES = ["kernels", "blocks", "comparison", "top9"]  # of these and occlusion; all for all
LAYERS = ["all"]       # all: the last layer of every block; any of --list-layers. Figures of one layer draw the last
KERNELS = ["top9"]     # kernel numbers, or top9 for the nine with the strongest response; `blocks` always the strongest
CLASSES = ["top1"]     # the class of `occlusion`: an index, WordNet id or name, top1 for the most probable
PATCH, STRIDE = 56, 16  # of `occlusion`: width of the grey square and its steps, in pixels of the network's input
MODE = "max"           # max: the strongest position of a kernel's map, as in the paper; all: the whole map
WEIGHTS = "imagenet"   # imagenet, random, a weights file, or a folder that holds both published ones
SEED = 0               # of random weights
OUTPUT = "results"     # folder for the pictures
ARRAYS = False         # True: also save the numbers behind each figure, as .npz
COLORMAP = "jet"       # any of OpenCV's: jet, turbo, viridis, inferno …
COMPARED = 4           # how many photographs `comparison` sets side by side at most

LABELS = {"vgg16": "VGG16", "vgg19": "VGG19"}


def networks():
    """The layers that the command line knows; of them all, `all` are the last of every block."""
    known = {name: utils.vgg_network(name, dense=True) for name in LABELS}
    return {name: utils.Network(network.widths, [f"block{block}_conv{count}" for block, count in enumerate(
        utils.VGG_BLOCKS[name], 1)]) for name, network in known.items()}


def draw_kernels(look):
    """Kernels of one layer: feature map, projection, and the receptive field of the strongest position."""
    layer, options, rows = look.last, look.options, []
    projections = look.seen.deconvnet(layer, look.kernels, options.mode)
    for kernel, projection in zip(look.kernels, projections):
        row = [look.response(layer, kernel), look.grey(projection, "projection")]
        if options.mode == "max":
            field = look.seen.receptive_field(layer, kernel)
            row += [look.grey(projection, f"receptive field, {field.width} x {field.height}", field),
                    utils.Tile(look.cut(field), "the same of the photograph")]
        rows.append(row)
    arrays = {f"{layer}/{kernel}": projection for kernel, projection in zip(look.kernels, projections)}
    look.save("kernels", utils.beside(look.original, rows), f"{layer} · mode {options.mode} · zero is grey", arrays)


def draw_blocks(look):
    """The nine strongest kernels of the last layer of every block: projections beside what they see."""
    panels, arrays = [], {}
    for layer in utils.progress(look.layers, len(look.layers)):
        kernels = look.seen.strongest(layer, 9)
        projections = look.seen.deconvnet(layer, kernels, look.options.mode)
        panels += look.patches(layer, kernels, projections)
        arrays |= {f"{layer}/{kernel}": projection for kernel, projection in zip(kernels, projections)}
    look.save("blocks", utils.beside(look.original, utils.wrap(panels, 6)),
              f"mode {look.options.mode} · kernels in row order, the strongest first · zero is grey", arrays, False)


def main():
    names = ("kernels", "blocks", "comparison", "top9", "occlusion")
    options = utils.read_options(globals(), names, networks())
    classifier = {name: bool({"occlusion", *utils.VGG_DENSE} & {*options.figures, *layers})
                  for name, layers in options.layers.items()}  # the rest needs no dense layers: a smaller download
    models = {name: utils.build_vgg(name, options.weights, options.seed, classifier[name]) for name in options.models}
    preprocess = utils.import_keras().applications.vgg16.preprocess_input  # to BGR, less the ImageNet mean
    single = {"kernels": draw_kernels, "blocks": draw_blocks, "occlusion": utils.draw_occlusion}

    def prepare(pixels):
        return utils.network_input(pixels, 224, preprocess)

    def see(photo, name):
        return utils.Look(LABELS[name], models[name], photo, prepare(photo.pixels), options, "BGR")

    def see_path(name, path):
        return see(utils.Photo(path, options.stems[path], utils.read_photo(path), {}), name)

    wanted = [figure for figure in options.figures if figure in single]
    compare = [name for name in models if "comparison" in options.figures
               and not utils.is_done(options, options.group, name, "comparison")]
    looks, interrupted = {name: [] for name in compare}, False
    if wanted or compare:
        for photo in utils.photographs(options, wanted, first=options.compared if compare else 0):
            for name in models:
                figures = [figure for figure, names in photo.left.items() if name in names]
                kept = name in compare and len(looks[name]) < options.compared
                if figures or kept:
                    look = see(photo, name)
                    if kept:
                        looks[name].append(look)
                    for figure in figures:
                        single[figure](look)
    for name in compare:
        if len(looks[name]) > 1:
            utils.compare_photos(looks[name], len(options.images))
        elif looks[name]:
            utils.compare_ways(looks[name][0])
    for name, model in models.items():
        if "top9" in options.figures and not utils.is_done(options, options.group, name, "top9"):
            paths = [path for path in options.images if path not in options.skipped]
            found = utils.strongest_photos(model, options.layers[name][-1], paths, prepare)
            utils.draw_top9(found, paths, functools.partial(see_path, name), options)
            options.skipped += found.unreadable
            interrupted |= found.interrupted
    return 130 if interrupted else 1 if options.skipped else 0


if __name__ == "__main__":
    utils.run(main)
