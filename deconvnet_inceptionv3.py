"""DeconvNet on InceptionV3: what in a photograph kernels answer to, projected back to pixels.

    python deconvnet_inceptionv3.py Image/cat.jpg
    python deconvnet_inceptionv3.py photo.jpg --figures projections --layers mixed3 --kernels 12,77
    python deconvnet_inceptionv3.py my_photographs/ --figures top9

The method, of Zeiler and Fergus 2013, arXiv 1311.2901, stands first: `deconvnet` and what it calls.
Figures follow. InceptionV3: Szegedy et al. 2015, arXiv 1512.00567, as Keras has it. Behind strided
convolutions the DeconvNet rule ends in a chequerboard: guided backpropagation stands beside it."""

import functools
import itertools
import math
import sys

import numpy as np

import utils
from utils import Projected, Tile, Way, keras, tf

# fmt: off
IMAGES = ["Image/cat_coffee.jpg"]  # photographs, folders, patterns; here relative to this script
FIGURES = ["projections", "blocks", "comparison", "top9"]  # of these and occlusion; or all
LAYERS = ["all"]      # names, shell wildcards, or all: mixed2; of blocks mixed0 to mixed10
KERNELS = ["top9"]    # numbers from 0, ranges (0-8), or top9: the strongest; blocks has its own
CLASSES = ["top1"]    # of occlusion: an index, WordNet id or name, or top1: the most probable
MODE = "all"          # all: whole maps; max: strongest positions: of comparison of photographs
RULES = ["deconvnet", "guided"]  # what a ReLU sends back: these or gradient, or several of them
PATCH = 25            # of occlusion: width of the grey square, percent of the shorter side
STRIDE = 7            # of occlusion: its steps, percent of the shorter side
COMPARED = 3          # how many photographs comparison sets side by side at most
WEIGHTS = "imagenet"  # imagenet, random, a weights file or folder, a saved network
LABELS = ""           # of a saved network: a file with a class a line, or a folder with sub-folders
IMPORT = ""           # of a saved network: a file or module that registers its custom layers
PREPROCESS = "auto"   # auto; caffe, tf or torch, as Keras calls them; unit: 0 to 1; none: 0 to 255
FIT = "squeeze"       # squeeze, crop or pad: how a photograph becomes the network's rectangle
RESIZE = "area"       # area; bilinear and nearest as Keras's loaders do
PLACE = "field"       # field: maps lie where the network looked; stretch: over the whole photograph
SCALE = 1             # pages so many times as large, for print
SEED = 0              # of random weights
OUTPUT = "results"    # folder of the results
FORMAT = "jpg"        # jpg, png or pdf
ARRAYS = False        # True: save the numbers behind each figure too, as .npz
COLORMAP = "jet"      # an OpenCV colour map: jet, turbo, viridis, inferno …
# fmt: on
WEIGHTS_WORDS = ["imagenet", "random"]

RELU_RULES = {  # what a ReLU sends back of a signal R; active: where its f is neither 0 nor cut off
    # Zeiler and Fergus, section 2.1, «Rectification»: the forward pass has no say
    "deconvnet": lambda R, active: tf.nn.relu(R),
    # Springenberg et al. 2014, arXiv 1412.6806, section 3.4: both that and the derivative
    "guided": lambda R, active: tf.where(active, tf.nn.relu(R), 0.0),
    # The derivative
    "gradient": lambda R, active: tf.where(active, R, 0.0),
}
TOGETHER = 9  # signals that go back at a time: more of them need more memory and are no faster


def deconvnet(model, x, layer, kernels, mode="max", rule="deconvnet"):
    """Project kernels of a layer back to pixels (section 2.1), all from one forward pass.

    model: functional Keras network (utils.open_network makes one of any other); it is left as it
    was. x: float32 (1, H, W, channels), as the network wants it. layer: a name. kernels: numbers.
    mode: `max` keeps the strongest position of a kernel's map (of equals the first in row order),
    `all` the whole map; the rest of the layer is set to zero. rule: a key of RELU_RULES. The rule
    deconvnet sends back the activations kept, the others ones: the derivative of their sum.

    Returns float32 (len(kernels), H, W, channels). ValueError: unknown layer, kernel, mode or rule,
    no kernels, not one x, a layer not between photograph and logits, channels_first."""
    utils.check_photograph(model, x)
    if mode not in ("max", "all"):
        raise ValueError(f"unknown mode {mode!r}: max or all")
    if rule not in RELU_RULES:
        raise ValueError(f"unknown rule {rule!r}: one of {', '.join(RELU_RULES)}")
    trace = Trace(model, x, layer)
    maps = trace.values[trace.top]
    unknown = [kernel for kernel in kernels if kernel not in range(maps.shape[-1])]
    if unknown or not len(kernels):
        raise ValueError(
            f"{layer} has kernels 0 to {maps.shape[-1] - 1}: {unknown or 'none given'}"
        )
    projections = []
    for first in range(0, len(kernels), TOGETHER):
        signals = kept_alone(maps, kernels[first : first + TOGETHER], mode, rule)
        projections.append(project(trace, signals, mode, rule).numpy())
    return np.concatenate(projections)


class Trace:
    """What the forward pass of a photograph gave at each tensor of a network, up to a layer.

    operations: of the network's mirror, in the order of the forward pass. photograph, top: the
    first tensor and the layer's. values: {tensor: (1, …)}."""

    def __init__(self, model, x, layer):
        self.mirror = utils.kept(model, "mirror", utils.mirror)
        part = utils.kept(self.mirror, layer, lambda mirror: up_to(mirror, layer))
        self.operations = part.operations[1:]
        self.photograph = part.inputs[0]
        self.top = self.operations[-1].output
        values = part(tf.constant(x, tf.float32), training=False)
        self.values = dict(zip(part.outputs, values, strict=True))
        self._switches = {}

    def switches(self, pooling):
        """Where a pooling found its maxima, of equals the first; looked for once."""
        if pooling not in self._switches:
            layer = pooling.operation
            below, padding = self.values[pooling.input], layer.padding.upper()
            found = tf.nn.max_pool_with_argmax(below, layer.pool_size, layer.strides, padding)
            self._switches[pooling] = found.argmax
        return self._switches[pooling]


def up_to(mirror, layer):
    """The model from the photograph to every tensor up to that of a layer, by its name."""
    utils.check_channels(mirror)
    photograph, top = mirror.inputs[0], utils.get_operation(mirror, layer)
    between = keras.Model(photograph, mirror.outputs[0]).operations[1:]
    if top not in between or isinstance(top.output, list):
        raise ValueError(f"{layer} is no layer with one output between photograph and logits")
    tensors = [each.output for each in keras.Model(photograph, top.output).operations]
    return keras.Model(photograph, keras.tree.flatten(tensors))


def kept_alone(maps, kernels, mode, rule):
    """What a layer sends back, (N, h, w, K): of each kernel what the mode keeps, the rest zero.

    maps: float32 (1, h, w, K), or (1, K) of a dense layer."""
    flat = tf.reshape(maps, (-1, maps.shape[-1]))  # (positions, K)
    chosen = tf.transpose(tf.gather(flat, kernels, axis=1))  # (N, positions)
    kept = tf.ones_like(chosen)
    if mode == "max":
        kept = tf.one_hot(tf.argmax(chosen, axis=1), flat.shape[0])
    if rule == "deconvnet":
        kept *= chosen
    channels = tf.one_hot(kernels, flat.shape[1])  # (N, K)
    return tf.reshape(kept[:, :, None] * channels[:, None, :], (-1, *maps.shape[1:]))


def project(trace, signals, mode, rule):
    """Signals at the layer of a trace, (N, h, w, K), sent back to the photograph, (N, H, W, C)."""
    arrived = {trace.top: signals}
    for operation in reversed(trace.operations):
        outputs = keras.tree.flatten(operation.output)
        signals = [arrived.pop(output, None) for output in outputs]  # None: it leads elsewhere
        for tensor, signal in send_back(operation, signals, trace, mode, rule):
            if tensor in arrived:  # branches meet
                signal = arrived[tensor] + signal
            arrived[tensor] = signal
    return arrived[trace.photograph]


def send_back(operation, signals, trace, mode, rule):
    """Pairs (input, signal) of an operation, from the signals at its outputs, (N, …).

    A layer with a ReLU inside is two operations, of which the ReLU comes first on the way back."""
    layers, layer = keras.layers, operation.operation
    below, signal = operation.input, signals[0]
    if utils.relu_ceiling(operation):
        signal = rectify(operation, signal, trace, rule)
        if isinstance(layer, layers.Activation) or not hasattr(layer, "activation"):
            return [(below, signal)]
    if is_filter(operation):
        return [(below, filter_back(layer, signal, trace.values[below].shape, mode))]
    if type(layer) is layers.MaxPooling2D:
        return [(below, unpool(operation, signal, trace))]
    if type(layer) is layers.BatchNormalization and layer.axis in (-1, 3):
        return [(below, rescale(layer, signal))]
    if type(layer) is layers.Concatenate and layer.axis in (-1, 3):
        widths = [tensor.shape[-1] for tensor in below]
        return zip(below, tf.split(signal, widths, axis=-1), strict=True)
    return derivative(operation, [signal, *signals[1:]], trace)


def unpool(pooling, signal, trace):
    """«Unpooling»: each value goes back to where its maximum was found, its switch."""
    layer, count = pooling.operation, len(signal)
    return tf.raw_ops.MaxPoolGradWithArgmax(
        input=tf.zeros((count, *trace.values[pooling.input].shape[1:])),
        grad=signal,
        argmax=tf.repeat(trace.switches(pooling), count, axis=0),
        ksize=(1, *layer.pool_size, 1),
        strides=(1, *layer.strides, 1),
        padding=layer.padding.upper(),
    )


def rectify(operation, signal, trace, rule):
    """«Rectification»: a signal behind a ReLU, brought before it."""
    f = trace.values[operation.output]
    return RELU_RULES[rule](signal, (f > 0) & (f < utils.relu_ceiling(operation)))


def is_filter(operation):
    """Whether an operation, less its ReLU, is a plain convolution or a dense layer."""
    layer = operation.operation
    if type(layer) not in (keras.layers.Conv2D, keras.layers.Dense):
        return False
    if layer.activation is not keras.activations.linear and not utils.relu_ceiling(operation):
        return False
    return type(layer) is keras.layers.Dense or layer.groups == max(layer.dilation_rate) == 1


def filter_back(layer, signal, below, mode):
    """«Filtering»: by the transposed kernels; biases take no part. below: the input's shape."""
    if type(layer) is keras.layers.Dense:
        return tf.matmul(signal, layer.kernel, transpose_b=True)
    if mode == "max" and layer.strides == (1, 1) and layer.padding == "same":
        return tf.stack([filter_window(layer, one, below[-1]) for one in signal])
    shape, padding = (len(signal), *below[1:]), layer.padding.upper()
    return tf.nn.conv2d_transpose(signal, layer.kernel, shape, layer.strides, padding)


def filter_window(layer, signal, channels):
    """«Filtering» of what comes from a strongest position, (H, W, K): all but a window is zero."""
    lit = tf.reduce_any(signal != 0, axis=-1).numpy()
    reach = max(layer.kernel_size) // 2
    rows = utils.lit_span(lit.any(axis=1), reach)
    columns = utils.lit_span(lit.any(axis=0), reach)
    window = signal[None, rows, columns]
    shape = (*window.shape[:3], channels)
    filtered = tf.nn.conv2d_transpose(window, layer.kernel, shape, strides=1, padding="SAME")
    height, width = lit.shape
    around = [(rows.start, height - rows.stop), (columns.start, width - columns.stop), (0, 0)]
    return tf.pad(filtered[0], around)


def rescale(layer, signal):
    """Batch normalisation: the factor that it gives each channel."""
    factor = tf.math.rsqrt(layer.moving_variance + layer.epsilon)
    if layer.gamma is not None:
        factor *= layer.gamma
    return signal * factor


def derivative(operation, signals, trace):
    """Any other operation, less its ReLU: its derivative. Pairs (input, signal)."""
    inputs = list(dict.fromkeys(keras.tree.flatten(operation.input)))  # of x * x there is one
    forward = utils.kept(trace.mirror, operation, lambda _: alone(operation, inputs))
    if utils.relu_ceiling(operation):  # a copy, which gets the weights of now
        forward.set_weights(operation.operation.get_weights())
    count = next(len(signal) for signal in signals if signal is not None)
    values = [tf.repeat(trace.values[tensor], count, axis=0) for tensor in inputs]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(values)
        outputs = keras.tree.flatten(forward(values, training=False))
    arriving = []
    for output, signal in zip(outputs, signals, strict=True):
        arriving.append(tf.zeros_like(output) if signal is None else signal)
    gradients = tape.gradient(outputs, values, arriving, unconnected_gradients="zero")
    return zip(inputs, gradients, strict=True)


def alone(operation, inputs):
    """The model of one operation; of a layer with a ReLU inside a copy without it."""
    if not utils.relu_ceiling(operation):
        return keras.Model(inputs, operation.output)
    layer = operation.operation
    linear = type(layer).from_config(layer.get_config() | {"activation": "linear"})
    x = keras.Input(batch_shape=operation.input.shape, dtype=operation.input.dtype)
    return keras.Model([x], linear(x))


class Projections(utils.Explanation):
    """One photograph before one network: its maps and projections, which several figures draw."""

    def top_maps(self, layer):
        """What a layer gives, float32 (h, w, K), and the kernels asked for."""
        maps = self.network.maps(layer, self.x)
        scores = utils.inner_responses(maps, self.network.inside(layer))
        return maps, self.options.kernels.among(scores)

    def project_kernels(self, layer, kernels, ways, maps=None):
        """A Projected of each kernel, with its map where maps, (h, w, K), are given."""
        model, options = self.network.model, self.options
        seen = utils.fit_to(self.photo.pixels, self.x.shape[1:3], options.fit, options.resize)
        found = []
        for kernel in kernels:
            cam = None if maps is None else maps[..., kernel]
            found.append(Projected(kernel, self.photo.stem, np.uint8(seen), cam))
        for way in ways:
            projections = deconvnet(model, self.x, layer, kernels, *way)
            for each, values in zip(found, projections, strict=True):
                each.values[way] = values
        return found

    def feature(self, photo, each, layer, name="", scale=None):
        """The Tile of a kernel's map over the photograph, perhaps with its name."""
        title = f"{name}\nkernel {each.kernel}".strip()
        return self.heat(photo, each.cam, layer, title, lack="silent", scale=scale)

    def whole(self, each, way, photo, title=""):
        """The Tile of a projection that lies where the photograph lies."""
        return Tile(self.grey_over(each.values[way], photo), title)

    def patch(self, each, way, photo, title=""):
        """The Tile of a projection's patch, as high as the photograph's, at least 100 pixels."""
        side = utils.patch_side(photo, self.options.scale)
        return Tile(self.grey(each.values[way][each.cut], np.empty((side, side))), title)

    def projected(self, each, way, photo, title=""):
        """The Tile of a projection: of a whole map, or the patch of a strongest position."""
        draw = self.whole if way.mode == "all" else self.patch
        return draw(each, way, photo, title)


def draw_projections(view):
    """Kernels of one layer: map, whole map projected, strongest position projected, its patch."""
    layer, rules = view.network.layer, view.options.rules
    photo = view.tile(2 + 3 * len(rules))
    maps, kernels = view.top_maps(layer)
    utils.check_height(view.options, len(kernels), photo.shape[0])
    ways = [Way(mode, rule) for rule in rules for mode in ("all", "max")]
    found = view.project_kernels(layer, kernels, ways, maps)
    utils.cut_patches(found, Way("max", rules[0]))
    rows = []
    for each in found:
        feature, *tiles = projection_tiles(view, each, photo)
        if rows:  # titles of columns stand once
            tiles = [Tile(tile.picture) for tile in tiles]
        rows.append([feature, *tiles])
    arrays = utils.projection_arrays(view.options, layer, found)
    view.save("projections", rows, f"{layer} · in grey pictures zero is grey", arrays)


def projection_tiles(view, each, photo):
    """A kernel's map, its projections, and its patches."""
    tiles = [view.feature(photo, each, view.network.layer)]
    for rule in view.options.rules:
        strongest = Way("max", rule)
        tiles.append(view.whole(each, Way("all", rule), photo, f"{rule}: whole map"))
        tiles.append(view.whole(each, strongest, photo, "strongest position"))
        tiles.append(view.patch(each, strongest, photo, "its patch"))
    side = utils.patch_side(photo, view.options.scale)
    seen = utils.resize(each.seen[each.cut], side, side)
    return [*tiles, Tile(seen, "of the photograph")]


def draw_blocks(view):
    """Nine unlike kernels of the last layer of every block: maps, and whole maps projected."""
    layers, ways = view.network.layers, [Way("all", rule) for rule in view.options.rules]
    photo = view.tile(3 + 3 * len(ways))
    utils.check_height(view.options, len(layers), 3 * photo.shape[0])
    rows, arrays = [], {}
    for layer in layers:
        maps = view.network.maps(layer, view.x)
        kernels = utils.diverse_kernels(maps, view.network.inside(layer))
        found = view.project_kernels(layer, kernels, ways, maps)
        features = [view.feature(photo, each, layer).picture for each in found]
        numbers = " ".join(map(str, kernels))
        row = [Tile(utils.mosaic(features), f"{layer}: kernels {numbers}")]
        for way in ways:
            pictures = [view.whole(each, way, photo).picture for each in found]
            row.append(Tile(utils.mosaic(pictures), "" if rows else way.rule))
        rows.append(row)
        arrays |= utils.projection_arrays(view.options, layer, found)
    view.save("blocks", rows, "unlike kernels' whole maps, strongest first · zero is grey", arrays)


def draw_comparison(options, network, album):
    """The same kernels of several photographs side by side; of one photograph in four ways."""
    photos = itertools.islice(album.readable(), options.compared)
    views = [Projections(options, network, photo) for photo in photos]
    if len(views) > 1:
        compare_photographs(album, views)
    elif views:
        compare_ways(album, views[0])


def compare_ways(album, view):
    """One photograph: a column a kernel, its map above and its projections below."""
    layer, strongest = view.network.layer, Way("max", "deconvnet")
    ways = [Way("all", "deconvnet"), strongest, Way("all", "guided"), Way("all", "gradient")]
    maps, kernels = view.top_maps(layer)
    columns = min(len(kernels), 9)
    photo = view.tile(columns)
    utils.check_height(view.options, 5 * math.ceil(len(kernels) / columns), photo.shape[0])
    found = view.project_kernels(layer, kernels, ways, maps)
    utils.cut_patches(found, strongest)
    rows = []
    for some in utils.in_rows(found, columns):
        rows.append([view.feature(photo, each, layer) for each in some])
        for way in ways:
            first, *others = [view.projected(each, way, photo) for each in some]
            rows.append([Tile(first.picture, way.words()), *others])
    save_comparison(album, [view], rows, found)


def compare_photographs(album, views):
    """Several photographs: a row a kernel, a column a photograph, maps on one scale."""
    options, network = views[0].options, views[0].network
    layer, ways = network.layer, [Way(options.mode, rule) for rule in options.rules]
    kernels = views[0].top_maps(layer)[1]
    photos = utils.tiles_of_one_height(views, 1 + len(ways))
    utils.check_height(options, len(kernels), photos[0].shape[0])
    maps = [network.maps(layer, view.x) for view in views]
    pairs = zip(views, maps, strict=True)
    found = [view.project_kernels(layer, kernels, ways, of_view) for view, of_view in pairs]
    everything = list(itertools.chain(*found))
    if options.mode == "max":
        utils.cut_patches(everything, ways[0])
    rows = []
    for same in zip(*found, strict=True):
        rows.append(compared_tiles(views, same, photos, named=not rows))
    save_comparison(album, views, rows, everything)


def compared_tiles(views, same, photos, named):
    """One kernel before several photographs, with titles of the columns where they are named."""
    scale = max(each.cam.max() for each in same)
    tiles = []
    for view, each, photo in zip(views, same, photos, strict=True):
        name = view.photo.path.name if named else ""
        tiles.append(view.feature(photo, each, view.network.layer, name, scale))
        for way in each.values:
            words = way.words() if named else ""
            tiles.append(view.projected(each, way, photo, words))
    return tiles


def save_comparison(album, views, rows, found):
    """Write the page."""
    options, network, several = views[0].options, views[0].network, len(views) > 1
    arrays = utils.projection_arrays(options, network.layer, found, several)
    for view in views:
        arrays[f"input/{view.photo.stem}" if several else "input"] = view.x
    what = (
        f"{len(views)} of {len(album.paths)} photographs" if several else views[0].photo.path.name
    )
    note = f"{network.layer} · {what} · zero is grey"
    album.result(options, "comparison", network).draw(rows, note, network.keyed(arrays))


def draw_top9(options, network, album):
    """A folder: for each kernel the nine patches that excite it most, and their projections."""
    across, side, a_row = utils.mosaic_layout(options, min(utils.BEST, len(album.paths)))
    best = utils.scan(network, album)
    if not len(best.numbers):
        return
    kernels = options.kernels.among(best.activations[0])
    found, arrays = project_best(options, network, album, best, kernels)
    everything = list(itertools.chain(*found))
    utils.cut_patches(everything, Way("max", options.rules[0]))
    tiles = []
    for of_kernel in found:
        tiles += utils.kernel_mosaics(of_kernel, best, across, side, network.preprocess)
    arrays |= utils.projection_arrays(options, network.layer, everything, several=True)
    note = f"{network.layer} · of {len(album.paths)} files · zero is grey"
    rows = utils.in_rows(tiles, a_row)
    album.result(options, "top9", network).draw(rows, note, network.keyed(arrays), bars=[])


def project_best(options, network, album, best, kernels):
    """Of each kernel the Projected of its best photographs; arrays of these and of activations."""
    layer, ways = network.layer, [Way("max", rule) for rule in options.rules]
    found, arrays = {}, {}
    numbers = np.concatenate([best.of(kernel) for kernel in kernels])
    for number in np.unique(numbers):  # a photograph serves all its kernels
        view = Projections(options, network, album.read(album.paths[number]))
        arrays[f"input/{view.photo.stem}"] = view.x
        here = [kernel for kernel in kernels if number in best.of(kernel)]
        for each in view.project_kernels(layer, here, ways):
            found[each.kernel, number] = each
    ordered = []
    for kernel in kernels:
        arrays[f"{layer}/{kernel}/activations"] = best.activations[:, kernel]
        ordered.append([found[kernel, number] for number in best.of(kernel)])
    return ordered, arrays


def draw_occlusion(view):
    """What a class and a kernel need: how far they fall where a grey square hides a part."""
    layer, photo, classes = view.network.layers[-1], view.tile(5), view.network.classes
    kernel = view.top_maps(layer)[1][0]
    probability, response, winners = utils.hide_parts(view, layer, kernel)
    way = Way("all", view.options.rules[0])
    projected = view.project_kernels(layer, [kernel], [way])[0]
    title = f"kernel {kernel}"
    row = [
        Tile(photo, "photograph"),
        view.heat(photo, probability.map(), None, f"p {probability.words()}"),
        utils.winners_tile(winners, photo, view.at(None, winners.shape), classes),
        view.heat(photo, response.map(), None, f"{title}: sum of its map {response.words()}"),
        view.whole(projected, way, photo, f"{title}, projected"),
    ]
    index = view.classes[0]
    note = f"{classes.title(index)} · {layer} · a grey square on each point; hot is what is needed"
    arrays = {
        f"{layer}/{index}/probability": probability.hidden,
        f"{layer}/{kernel}/response": response.hidden,
        "most_probable": winners,
    }
    view.save("occlusion", [row], note, arrays)


def build(top, weights=None):
    """InceptionV3, with or without its classifier: its output is logits.

    weights: None, imagenet, or a file's path."""
    keras.utils.clear_session()  # so that Keras numbers the layers from the start
    with utils.plain_keras():
        how = {"include_top": top, "input_shape": (299, 299, 3), "classifier_activation": None}
        return keras.applications.InceptionV3(weights=weights, **how)


def recipe(top):
    """What utils.open_weights needs to know of InceptionV3."""
    files = (f"inception_v3_weights_tf_dim_ordering_tf_kernels{'' if top else '_notop'}.h5",)
    shown, size = ("mixed[0-9]", "mixed10"), (299, 299)
    build_it = functools.partial(build, top)
    return utils.Recipe("InceptionV3", build_it, files, shown, "mixed2", size, "tf")


def open_networks(options):
    """The network, without its classifier, a smaller download, if that will do."""
    light, whole = recipe(top=False), recipe(top=True)
    return [utils.open_lighter(options, light, whole, ("avg_pool", "predictions"))]


FIGURES_DRAWN = {
    "projections": draw_projections,
    "blocks": draw_blocks,
    "comparison": draw_comparison,
    "top9": draw_top9,
    "occlusion": draw_occlusion,
}
OVER_ALL = ("comparison", "top9")  # figures over all photographs


def main():
    options = utils.read_options(globals())
    album = utils.open_album(options, IMAGES)
    networks = open_networks(options)
    if options.list_layers:
        return utils.print_layers(options, networks[0])
    for network in networks:
        single = [figure for figure in options.figures if figure not in OVER_ALL]
        targets = [(figure, network) for figure in single]
        for photo, left in utils.photographs(options, album, targets):
            view = Projections(options, network, photo)
            for figure, _ in left:
                FIGURES_DRAWN[figure](view)
        for figure in utils.left_over_all(options, album, network, OVER_ALL):
            FIGURES_DRAWN[figure](options, network, album)
    return album.exit_code()


if __name__ == "__main__":
    sys.exit(utils.run(main))
