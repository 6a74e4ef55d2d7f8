"""DeconvNet on VGG16 and VGG19: what in a photograph the kernels of a layer respond to, brought back to pixels.

    python deconvnet_vgg.py Image/cat.jpg
    python deconvnet_vgg.py photo.jpg --models vgg16 --figures kernels --layers block3_conv3 --kernels 12,77 --mode all
    python deconvnet_vgg.py my_photographs/ --figures top9 --layers block4_conv3

Zeiler and Fergus 2013, arXiv 1311.2901. VGG: Simonyan and Zisserman 2014, arXiv 1409.1556, as Keras has it. The figure
`blocks` shows the last convolution layer of every block; the others one layer, and dense layers (fc1, fc2, predictions)
too, with a unit in place of a kernel.
"""
import functools

import numpy as np

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
WAYS = {  # of bringing a kernel down: mode, rule (see utils.ForwardPass)
    "DeconvNet, max": ("max", "deconvnet"), "DeconvNet, all": ("all", "deconvnet"),
    "guided backpropagation": ("max", "guided"), "plain gradient": ("max", "gradient")}


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


def compare_ways(look):
    """The same kernels of one photograph, brought down in four ways."""
    layer, rows, arrays = look.last, [], {}
    ways = {way: look.seen.deconvnet(layer, look.kernels, mode, rule) for way, (mode, rule) in WAYS.items()}
    for place, kernel in enumerate(look.kernels):
        rows.append([look.response(layer, kernel), *(look.grey(ways[way][place], way) for way in ways)])
        arrays[f"{layer}/{kernel}"] = ways["DeconvNet, max"][place]
        arrays |= {f"{layer}/{kernel}/{way}": ways[way][place] for way in ways}
    look.save("comparison", utils.beside(look.original, rows), f"{layer} · each picture on its own scale",
              arrays)


def compare_photos(looks, total):
    """The same kernels under the same weights on several photographs: a row a kernel, one colour scale a row."""
    first, rows, arrays = looks[0], [], {f"input/{look.photo.stem}": look.x for look in looks}
    layer, kernels, options = first.last, first.kernels, first.options
    projections = [look.seen.deconvnet(layer, kernels, options.mode) for look in utils.progress(looks, len(looks))]
    for kernel, ours in zip(kernels, zip(*projections)):
        heat = max(np.max(look.seen.feature_map(layer)[..., kernel]) for look in looks)
        grey, row = utils.grey_scale(ours), []
        for look, projection in zip(looks, ours):
            field = look.seen.receptive_field(layer, kernel) if options.mode == "max" else None
            row += [look.response(layer, kernel, heat), look.grey(projection, look.photo.path.name, field, grey)]
            arrays[f"{layer}/{kernel}/{look.photo.stem}"] = projection
        rows.append(row)
    utils.save_figure(options, options.group, first.label, "comparison", rows,
                      f"{layer} · mode {options.mode} · {len(looks)} of {total} photographs · a scale a row",
                      utils.prefix(first.name, arrays))


def draw_top9(found, paths, see, options):
    """For each kernel the nine photographs that excite it most, cut to its receptive field, beside the projections.

    found: utils.Strongest of the photographs `paths`. see: path -> Look.
    """
    layer, kernels = found.layer, options.kernels
    if not isinstance(kernels, list):
        kernels = np.argsort(-found.activations[0], kind="stable")[:kernels].tolist()
    owners, pairs, arrays = found.photos[:, kernels], {}, {}
    chosen = np.unique(owners[owners >= 0])
    for index in utils.progress(chosen, len(chosen)):  # a photograph serves all its kernels at once
        look, mine = see(paths[index]), [kernel for kernel in kernels if index in found.photos[:, kernel]]
        for kernel, projection in zip(mine, look.seen.deconvnet(layer, mine, options.mode)):
            pairs[kernel, index] = look.patch(layer, kernel, projection)
            arrays[f"{layer}/{kernel}/{look.photo.stem}"] = projection
        arrays[f"input/{look.photo.stem}"] = look.x
    tiles = []
    for kernel, indices, strengths in zip(kernels, owners.T, found.activations[:, kernels].T):
        indices, strengths = indices[indices >= 0], strengths[indices >= 0]
        left, right = (utils.mosaic(images) for images in zip(*(pairs[kernel, index] for index in indices)))
        tiles += [utils.Tile(left, f"{layer} kernel {kernel}"),
                  utils.Tile(right, f"activation {strengths[0]:.3g} to {strengths[-1]:.3g}")]
        arrays |= {f"{layer}/{kernel}/photographs": [str(paths[index]) for index in indices],
                   f"{layer}/{kernel}/stems": [options.stems[paths[index]] for index in indices],
                   f"{layer}/{kernel}/activations": strengths}
    utils.save_figure(options, options.group, look.label, "top9", utils.wrap(tiles, 6),
                      f"{found.seen} of {len(options.images)} photographs seen · strongest first · zero is grey",
                      utils.prefix(look.name, arrays), False)


def draw_occlusion(look):
    """Zeiler and Fergus, figure 7: class and strongest kernel where a grey square hides a part."""
    layer, index, kernel = look.last, look.classes[0], look.seen.strongest(look.last, 1)[0]
    probabilities, responses = utils.occlusion(look.model, look.x, layer, look.options.patch, look.options.stride)
    ours, response = probabilities[..., index], responses[..., kernel]
    tiles = [look.original,
             look.feature(ours, f"{utils.class_name(index)}\nprobability, min {ours.min():.3g}", over=True),
             *utils.class_map(probabilities.argmax(axis=-1), look.image),
             look.feature(response, f"{layer} kernel {kernel}\nsummed response, min {response.min():.3g}", over=True),
             look.grey(look.seen.deconvnet(layer, [kernel], look.options.mode)[0], f"kernel {kernel}, projection")]
    look.save("occlusion", utils.wrap(tiles, 3), 
              f"a grey square of {look.options.patch} pixels is centred on each point of the maps: cold is needed",
              {f"{layer}/{index}/probability": ours, f"{layer}/{kernel}/response": response,
               "most_probable": probabilities.argmax(axis=-1)})


def main():
    names = ("kernels", "blocks", "comparison", "top9", "occlusion")
    options = utils.read_options(globals(), names, networks())
    classifier = {name: bool({"occlusion", *utils.VGG_DENSE} & {*options.figures, *layers})
                  for name, layers in options.layers.items()}  # the rest needs no dense layers: a smaller download
    models = {name: utils.build_vgg(name, options.weights, options.seed, classifier[name]) for name in options.models}
    preprocess = utils.import_keras().applications.vgg16.preprocess_input  # to BGR, less the ImageNet mean
    single = {"kernels": draw_kernels, "blocks": draw_blocks, "occlusion": draw_occlusion}

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
        for photo in utils.photographs(options, wanted):
            for name in models:
                figures = [figure for figure, names in photo.left.items() if name in names]
                kept = name in compare and len(looks[name]) < COMPARED
                if figures or kept:
                    look = see(photo, name)
                    if kept:
                        looks[name].append(look)
                    for figure in figures:
                        single[figure](look)
    for name in compare:
        if len(looks[name]) > 1:
            compare_photos(looks[name], len(options.images))
        elif looks[name]:
            compare_ways(looks[name][0])
    for name, model in models.items():
        if "top9" in options.figures and not utils.is_done(options, options.group, name, "top9"):
            paths = [path for path in options.images if path not in options.skipped]
            found = utils.strongest_photos(model, options.layers[name][-1], paths, prepare)
            draw_top9(found, paths, functools.partial(see_path, name), options)
            options.skipped += found.unreadable
            interrupted |= found.interrupted
    return 130 if interrupted else 1 if options.skipped else 0


if __name__ == "__main__":
    utils.run(main)
