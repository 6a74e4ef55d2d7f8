"""DeconvNet on InceptionV3: what in a photograph the kernels of a layer respond to, brought back to pixels.

    python deconvnet_inceptionv3.py Image/cat.jpg
    python deconvnet_inceptionv3.py photo.jpg --figures kernels --layers mixed3 --kernels 12,77 --mode all
    python deconvnet_inceptionv3.py my_photographs/ --figures top9 --layers mixed5

Zeiler and Fergus 2013, arXiv 1311.2901. InceptionV3: Szegedy et al. 2015, arXiv 1512.00567, as Keras has it. The figure
`blocks` shows the eleven modules; the others one layer: a convolution, a ReLU (activation_5), a module, or
`predictions`, with a class in place of a kernel.
"""
import functools

import utils

IMAGES = ["Image/hopper_coffee.jpg"]  # photographs, or folders of them; paths are relative to this script
FIGURES = ["kernels", "blocks", "comparison", "top9"]  # of these and occlusion; all for all
LAYERS = ["all"]       # all: the modules mixed0 … mixed10; any of --list-layers. Figures of one layer draw the last
KERNELS = ["top9"]     # kernel numbers, or top9 for the nine with the strongest response; `blocks` always the strongest
CLASSES = ["top1"]     # the class of `occlusion`: an index, WordNet id or name, top1 for the most probable
PATCH, STRIDE = 56, 16  # of `occlusion`: width of the grey square and its steps, in pixels of the network's input
MODE = "max"           # max: the strongest position of a kernel's map, as in the paper; all: the whole map
WEIGHTS = "imagenet"   # imagenet, random, a weights file, or a folder that holds a published one
SEED = 0               # of random weights
OUTPUT = "results"     # folder for the pictures
ARRAYS = False         # True: also save the numbers behind each figure, as .npz
COLORMAP = "jet"       # any of OpenCV's: jet, turbo, viridis, inferno …
COMPARED = 4           # how many photographs `comparison` sets side by side at most

LABELS = {"inceptionv3": "InceptionV3"}
BASE = f"{utils.KERAS_APPLICATIONS}/inception_v3/inception_v3_weights_tf_dim_ordering_tf_kernels"
PUBLISHED = [utils.Published(f"{BASE}.h5", "9a0d58056eeedaa3f26cb7ebd46da564"),  # with the classifier, and without
             utils.Published(f"{BASE}_notop.h5", "bcbd6486424b2319ff4ef7d526e38f63")]
CONVOLUTIONS = (  # the kernels of conv2d, conv2d_1 … conv2d_93 in Keras's order; a batch norm and a ReLU follow each
    [32, 32, 64, 80, 192] + [64, 48, 64, 64, 96, 96, 32] + 2 * [64, 48, 64, 64, 96, 96, 64] + [384, 64, 96, 96]
    + [192, 128, 128, 192] + 4 * [128] + [192, 192] + 2 * ([192, 160, 160, 192] + 4 * [160] + [192, 192])
    + 10 * [192] + [192, 320] + 4 * [192] + 2 * [320, 384, 384, 384, 448, 384, 384, 384, 192])
MODULES = dict(zip((f"mixed{number}" for number in range(11)), [256, 288, 288] + 5 * [768] + [1280, 2048, 2048]))


def network():
    """The layers that the command line knows; of them all, `all` are the modules."""
    widths = {}
    for kind in ("conv2d", "batch_normalization", "activation"):
        widths |= {f"{kind}_{number}" if number else kind: width for number, width in enumerate(CONVOLUTIONS)}
    return utils.Network(widths | MODULES | {"predictions": 1000}, list(MODULES))


def build(weights, seed, classifier):
    """InceptionV3 and its weights; without its classifier where that is not needed and not at hand."""
    keras = utils.import_keras()
    path = utils.weights_file(weights, PUBLISHED[:1] if classifier else PUBLISHED)
    top = utils.has_classifier(path) if path else classifier
    if classifier and not top:
        raise utils.UserError(f"{path} holds no classifier, which the layer predictions needs")
    keras.utils.set_random_seed(seed)
    keras.utils.clear_session()  # so that Keras numbers the layers from the start
    model = keras.applications.InceptionV3(
        weights=None, include_top=top, input_shape=(299, 299, 3), classifier_activation=None, name="inceptionv3")
    if path is not None:
        utils.load_weights(model, path)
    return model


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
    options = utils.read_options(globals(), names, {"inceptionv3": network()})
    classifier = bool({"predictions", "occlusion"} & {*options.layers["inceptionv3"], *options.figures})
    models = {"inceptionv3": build(options.weights, options.seed, classifier)}
    preprocess = utils.import_keras().applications.inception_v3.preprocess_input  # to [-1, 1], RGB
    single = {"kernels": draw_kernels, "blocks": draw_blocks, "occlusion": utils.draw_occlusion}

    def prepare(pixels):
        return utils.network_input(pixels, 299, preprocess)

    def see(photo, name):
        return utils.Look(LABELS[name], models[name], photo, prepare(photo.pixels), options)

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
