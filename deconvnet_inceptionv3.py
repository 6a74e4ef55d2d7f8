"""DeconvNet on InceptionV3: what in a photograph kernels answer to, projected back to pixels.

    python deconvnet_inceptionv3.py Image/cat.jpg
    python deconvnet_inceptionv3.py photo.jpg --figures projections --layers mixed3 --kernels 12,77
    python deconvnet_inceptionv3.py my_photographs/ --figures top9

The method, of Zeiler and Fergus 2013, arXiv 1311.2901, stands first: `deconvnet` and what it calls.
Figures follow. InceptionV3: Szegedy et al. 2015, arXiv 1512.00567, as Keras has it. Behind strided
convolutions the DeconvNet rule ends in a chequerboard: guided backpropagation stands beside it."""

import fnmatch
import functools
import itertools
import math
import os
import sys
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

import utils
from utils import Tile, keras, tf

# fmt: off
IMAGES = ["Image/cat_coffee.jpg"]  # photographs, folders, patterns; here relative to this script
FIGURES = ["projections", "blocks", "comparison", "top9"]  # of these and occlusion; or all
LAYERS = ["all"]      # names, shell wildcards, or all: mixed2, and for blocks mixed0 to mixed10
KERNELS = ["top9"]    # numbers from 0, ranges (0-8), or top9: the strongest; blocks has its own
CLASSES = ["top1"]    # of occlusion: an index, WordNet id or name, or top1: the most probable
MODE = "all"          # all: a kernel's whole map is projected; max: its strongest position
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
    # The derivative
    "gradient": lambda R, active: tf.where(active, R, 0.0),
    # Zeiler and Fergus, section 2.1, «Rectification»: the forward pass has no say
    "deconvnet": lambda R, active: tf.nn.relu(R),
    # Both: Springenberg et al. 2014, arXiv 1412.6806, section 3.4
    "guided": lambda R, active: tf.where(active, tf.nn.relu(R), 0.0),
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
    if len(x) != 1:
        raise ValueError(f"x is one photograph, (1, H, W, channels), not {len(x)}")
    if mode not in ("max", "all"):
        raise ValueError(f"unknown mode {mode!r}: max or all")
    if rule not in RELU_RULES:
        raise ValueError(f"unknown rule {rule!r}: one of {', '.join(RELU_RULES)}")
    trace = Trace(model, x, layer)
    maps = trace.values[trace.top]
    unknown = [kernel for kernel in kernels if not 0 <= kernel < maps.shape[-1]]
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
    photograph, top = mirror.inputs[0], utils.get_operation(mirror, layer)
    between = keras.Model(photograph, mirror.outputs[0]).operations[1:]
    if top not in between or isinstance(top.output, list):
        raise ValueError(f"{layer} is no layer with one output between photograph and logits")
    operations = keras.Model(photograph, top.output).operations
    for operation in operations[1:]:
        if getattr(operation.operation, "data_format", None) == "channels_first":
            raise ValueError(f"{operation.name} is channels_first: channels_last is wanted")
    tensors = [operation.output for operation in operations]
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
    """Signals at the layer of a trace, (N, h, w, K), back at the photograph, (N, H, W, channels)."""
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
    """The signals at an operation's inputs, from those at its outputs, (N, …): pairs (input, signal).

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
    rows, columns = lit_span(lit.any(axis=1), reach), lit_span(lit.any(axis=0), reach)
    window = signal[None, rows, columns]
    shape = (*window.shape[:3], channels)
    filtered = tf.nn.conv2d_transpose(window, layer.kernel, shape, strides=1, padding="SAME")
    height, width = lit.shape
    around = [(rows.start, height - rows.stop), (columns.start, width - columns.stop), (0, 0)]
    return tf.pad(filtered[0], around)


def lit_span(lit, reach):
    """The slice from the first that is lit to the last, bool (n,), widened by a kernel's reach."""
    places = np.flatnonzero(lit) if lit.any() else np.zeros(1, int)
    return slice(max(places[0] - reach, 0), min(places[-1] + reach + 1, len(lit)))


def rescale(layer, signal):
    """Batch normalisation: the factor that it gives each channel."""
    factor = tf.math.rsqrt(layer.moving_variance + layer.epsilon)
    if layer.gamma is not None:
        factor *= layer.gamma
    return signal * factor


def derivative(operation, signals, trace):
    """Any other operation, less its ReLU: its derivative. Pairs (input, signal)."""
    forward = utils.kept(trace.mirror, operation, lambda _: alone(operation))
    if utils.relu_ceiling(operation):  # a copy, which gets the weights of now
        forward.set_weights(operation.operation.get_weights())
    inputs = distinct_inputs(operation)
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


def distinct_inputs(operation):
    """The tensors that an operation takes: of x * x there is one."""
    return list(dict.fromkeys(keras.tree.flatten(operation.input)))


def alone(operation):
    """The model of one operation; of a layer with a ReLU inside a copy without it."""
    if not utils.relu_ceiling(operation):
        return keras.Model(distinct_inputs(operation), operation.output)
    layer = operation.operation
    linear = type(layer).from_config(layer.get_config() | {"activation": "linear"})
    x = keras.Input(batch_shape=operation.input.shape)
    return keras.Model([x], linear(x))


class Way(NamedTuple):
    """How a kernel is projected: a mode and a rule of `deconvnet`."""

    mode: str
    rule: str


@dataclass
class Projected:
    """A kernel before a photograph, and the patch that its projection is cut to."""

    kernel: int
    cam: np.ndarray  # its map, (h, w)
    back: dict  # its projections, {Way: float32 (H, W, channels)}
    cut: tuple = (slice(None), slice(None))


@dataclass
class TopPatch:
    """One of the nine photographs that excite a kernel most."""

    kernel: int
    stem: str  # what the photograph's results are called
    seen: np.ndarray  # uint8 (H, W, 3), what the network was fed of it
    back: dict
    cut: tuple = (slice(None), slice(None))


class Projections(utils.Explanation):
    """One photograph before one network: its maps and projections, which several figures draw."""

    def maps(self, layer):
        """What a layer gives: float32 (h, w, K), or (1, 1, K) of a dense layer."""
        return self.network.maps(layer, self.x)

    def back(self, layer, kernels, ways):
        """Of each kernel its projections, {Way: float32 (H, W, channels)}."""
        found = [{} for _ in kernels]
        for way in ways:
            values = deconvnet(self.network.model, self.x, layer, kernels, way.mode, way.rule)
            for of_kernel, projection in zip(found, values, strict=True):
                of_kernel[way] = projection
        return found

    def project(self, layer, maps, kernels, ways):
        """A Projected of each kernel."""
        back = self.back(layer, kernels, ways)
        return [
            Projected(kernel, maps[..., kernel], of_kernel)
            for kernel, of_kernel in zip(kernels, back, strict=True)
        ]

    def seen(self):
        """What the network was fed of the photograph, uint8 (H, W, 3), RGB."""
        size, options = self.x.shape[1:3], self.options
        return np.uint8(utils.fit_to(self.photo.pixels, size, options.fit, options.resize))

    def feature(self, photo, cam, layer, title="", scale=None):
        """The Tile of a kernel's map over the photograph."""
        return self.heat(photo, cam, layer, title, lack="silent", scale=scale)

    def whole(self, projected, way, photo, title=""):
        """The Tile of a projection that lies where the photograph lies."""
        return Tile(self.grey_over(projected.back[way], photo), title)

    def patch(self, projected, way, side, title=""):
        """The Tile of a projection's patch, so many pixels wide."""
        values = projected.back[way][projected.cut]
        return Tile(self.grey(values, np.empty((side, side))), title)

    def patch_side(self, photo):
        """How wide a patch is beside a tile of the photograph: as high as that, at least 100."""
        return max(min(photo.shape[:2]), 100 * self.options.scale)

    def projection_arrays(self, layer, projected):
        """Projections as arrays to be saved."""
        arrays = {}
        for each in projected:
            for way, values in each.back.items():
                arrays[array_key(self.options, layer, each.kernel, way)] = values
        return arrays


def array_key(options, layer, kernel, way):
    """LAYER/KERNEL of the options' mode and first rule; behind it stands what is another."""
    words = [layer, str(kernel)]
    if way.mode != options.mode:
        words.append(way.mode)
    if way.rule != options.rules[0]:
        words.append(way.rule)
    return "/".join(words)


def cut_patches(found, way):
    """Cut patches of one size, for a figure, out of projections in a Way of mode max."""
    cuts = utils.patches(np.stack([each.back[way] for each in found]))
    for each, cut in zip(found, cuts, strict=True):
        each.cut = cut


def draw_projections(view):
    """Kernels of one layer: map, whole map projected, strongest position projected, its patch."""
    layer, rules = view.network.layer, view.options.rules
    maps, photo = view.maps(layer), view.tile(2 + 3 * len(rules))
    kernels = utils.top_kernels(maps, view.network.inside(layer), view.options.kernels)
    utils.check_height(view.options, len(kernels), photo.shape[0])
    ways = [Way(mode, rule) for rule in rules for mode in ("all", "max")]
    found = view.project(layer, maps, kernels, ways)
    cut_patches(found, Way("max", rules[0]))
    rows = []
    for each in found:
        row = projection_row(view, each, photo)
        if rows:  # titles of columns stand once
            row[1:] = [Tile(tile.picture) for tile in row[1:]]
        rows.append(row)
    note = f"{layer} · in grey pictures zero is grey"
    view.save("projections", rows, note, view.projection_arrays(layer, found))


def projection_row(view, each, photo):
    """The tiles of one kernel."""
    side = view.patch_side(photo)
    tiles = [view.feature(photo, each.cam, view.network.layer, f"kernel {each.kernel}")]
    for rule in view.options.rules:
        strongest = Way("max", rule)
        tiles.append(view.whole(each, Way("all", rule), photo, f"{rule}: whole map"))
        tiles.append(view.whole(each, strongest, photo, "strongest position"))
        tiles.append(view.patch(each, strongest, side, "its patch"))
    tiles.append(Tile(utils.resize(view.seen()[each.cut], side, side), "of the photograph"))
    return tiles


def draw_blocks(view):
    """Nine unlike kernels of the last layer of every block: maps, and whole maps projected."""
    layers, rules = view.network.layers, view.options.rules
    photo = view.tile(3 + 3 * len(rules))
    utils.check_height(view.options, len(layers), 3 * photo.shape[0])
    rows, arrays = [], {}
    for layer in layers:
        maps = view.maps(layer)
        kernels = utils.diverse_kernels(maps, view.network.inside(layer))
        found = view.project(layer, maps, kernels, [Way("all", rule) for rule in rules])
        features = [view.feature(photo, each.cam, layer).picture for each in found]
        row = [Tile(utils.mosaic(features), f"{layer}: kernels {' '.join(map(str, kernels))}")]
        for rule in rules:
            pictures = [view.whole(each, Way("all", rule), photo).picture for each in found]
            row.append(Tile(utils.mosaic(pictures), "" if rows else rule))
        rows.append(row)
        arrays |= view.projection_arrays(layer, found)
    view.save("blocks", rows, "whole maps, the strongest kernel first · zero is grey", arrays)


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
    options, network, layer = view.options, view.network, view.network.layer
    maps = view.maps(layer)
    kernels = utils.top_kernels(maps, network.inside(layer), options.kernels)
    columns = min(len(kernels), 9)
    photo = view.tile(columns)
    utils.check_height(options, 5 * math.ceil(len(kernels) / columns), photo.shape[0])
    strongest = Way("max", "deconvnet")
    ways = [Way("all", "deconvnet"), strongest, Way("all", "guided"), Way("all", "gradient")]
    found = view.project(layer, maps, kernels, ways)
    cut_patches(found, strongest)
    rows = []
    for some in utils.in_rows(found, columns):
        rows.append([view.feature(photo, one.cam, layer, f"kernel {one.kernel}") for one in some])
        for way in ways:
            if way == strongest:
                tiles = [view.patch(one, way, view.patch_side(photo)) for one in some]
            else:
                tiles = [view.whole(one, way, photo) for one in some]
            what = "strongest patch" if way == strongest else "whole map"
            rows.append([Tile(tiles[0].picture, f"{way.rule}: {what}"), *tiles[1:]])
    arrays = {"input": view.x, **view.projection_arrays(layer, found)}
    note = f"{view.photo.path.name} · {layer} · zero is grey"
    utils.save_page(options, network, album, "comparison", rows, note, arrays)


def compare_photographs(album, views):
    """Several photographs: a row a kernel, a column a photograph, maps on one scale."""
    options, network = views[0].options, views[0].network
    layer = network.layer
    ways = [Way(options.mode, rule) for rule in options.rules]
    photos = tiles_of_one_height(views, 1 + len(ways))
    maps = [view.maps(layer) for view in views]
    kernels = utils.top_kernels(maps[0], network.inside(layer), options.kernels)
    utils.check_height(options, len(kernels), photos[0].shape[0])
    found, arrays = [], {}
    for view, of_view in zip(views, maps, strict=True):
        projected = view.project(layer, of_view, kernels, ways)
        of_photo = {"input": view.x, **view.projection_arrays(layer, projected)}
        arrays |= {f"{key}/{view.photo.stem}": values for key, values in of_photo.items()}
        found.append(projected)
    if options.mode == "max":
        cut_patches(list(itertools.chain(*found)), ways[0])
    rows = []
    for same in zip(*found, strict=True):
        names = [""] * len(views) if rows else [view.photo.path.name for view in views]
        rows.append(compared_row(views, same, photos, names))
    note = f"{layer} · {len(views)} of {len(album.paths)} photographs · zero is grey"
    utils.save_page(options, network, album, "comparison", rows, note, arrays)


def tiles_of_one_height(views, times):
    """The photographs as tiles of a page that has each so many times side by side."""
    pixels = [view.photo.pixels for view in views]
    shapes = [photo.shape[1] / photo.shape[0] for photo in pixels]  # width by height
    height = min(max((utils.PAGE - 100) / sum(shapes) / times, 100), 280)
    height = int(height * views[0].options.scale)
    sizes = [(max(round(height * shape), 1), height) for shape in shapes]
    return [utils.resize(photo, *size) for photo, size in zip(pixels, sizes, strict=True)]


def compared_row(views, same, photos, names):
    """The tiles of one kernel before several photographs; names: of these, in the first row."""
    scale = max(each.cam.max() for each in same)
    tiles = []
    for view, each, photo, name in zip(views, same, photos, names, strict=True):
        title = f"{name}\nkernel {each.kernel}" if name else f"kernel {each.kernel}"
        tiles.append(view.feature(photo, each.cam, view.network.layer, title, scale))
        for way in each.back:
            what = "whole map" if way.mode == "all" else "strongest patch"
            title = f"{way.rule}: {what}" if name else ""
            if way.mode == "all":
                tiles.append(view.whole(each, way, photo, title))
            else:
                tiles.append(view.patch(each, way, photo.shape[0], title))
    return tiles


def scan(network, album, cluster=None):
    """The utils.Best of a layer's kernels over all photographs, by their response in inner cells.

    All GPUs of a machine take part; of a cluster each worker scans its share, and all know what all
    have found."""
    width = utils.get_operation(network.model, network.layer).output.shape[-1]
    best = utils.Best(np.zeros((0, width), np.float32), np.zeros((0, width), int))
    respond = responder(network, devices_of(cluster))
    for batch in utils.read_ahead(album, share_of(cluster, len(album.paths)), network.prepare):
        if batch:
            numbers = np.array([[number] for number, _ in batch])
            activations = respond(np.concatenate([x for _, x in batch]))
            best = best.merge(activations.numpy(), numbers)
    return gather(best, cluster) if cluster else best


def responder(network, devices):
    """A traced function of inputs (N, H, W, channels): each kernel's strongest response, (N, K)."""
    photograph = network.model.inputs[0]
    top = keras.Model(photograph, utils.get_operation(network.model, network.layer).output)
    inside = network.inside(network.layer)
    rows, columns = lit_span(inside.any(axis=1), 0), lit_span(inside.any(axis=0), 0)

    def respond(x):
        share = -(-tf.shape(x)[0] // len(devices))
        parts = []
        for number, device in enumerate(devices):
            with tf.device(device):
                maps = top(x[number * share : (number + 1) * share], training=False)
                if len(maps.shape) == 4:
                    maps = tf.reduce_max(maps[:, rows, columns], axis=(1, 2))
                parts.append(maps)
        return tf.concat(parts, axis=0)

    return tf.function(respond, [tf.TensorSpec((None, *photograph.shape[1:]), tf.float32)])


def draws(cluster):
    """Whether this is the worker that draws: of a cluster the first one."""
    return not cluster or cluster.cluster_resolver.task_id == 0


def workers_of(cluster):
    """How many workers a cluster has."""
    return len(cluster.cluster_resolver.cluster_spec().as_dict()["worker"])


def share_of(cluster, count):
    """The numbers of the photographs that this worker scans."""
    if not cluster:
        return range(count)
    return range(cluster.cluster_resolver.task_id, count, workers_of(cluster))


def devices_of(cluster):
    """The names of this worker's GPUs, or of its processor."""
    names = [device.name for device in tf.config.list_logical_devices()]
    if cluster:
        task = f"task:{cluster.cluster_resolver.task_id}/"
        names = [name for name in names if task in name]
    return [name for name in names if "GPU" in name] or names


def gather(best, cluster):
    """The Best of what all workers found. Where a worker has several GPUs, one of them speaks."""
    gpus = cluster.num_replicas_in_sync // workers_of(cluster)

    def share(context, part):
        speaks = context.replica_id_in_sync_group % gpus == 0
        return tf.constant(part if speaks else part[:0])

    found = []
    for part in best:
        of_replica = functools.partial(share, part=part)
        shares = cluster.experimental_distribute_values_from_function(of_replica)
        found.append(cluster.gather(shares, axis=0).numpy())
    return utils.Best(*[part[:0] for part in found]).merge(*found)


class Mosaics(NamedTuple):
    """How the nine photographs of a kernel are laid out."""

    across: int  # patches side by side
    side: int  # pixels of a patch
    kernels: int  # side by side


def mosaics_for(options, count):
    """Mosaics of so many photographs a kernel, of patches at least 100 pixels wide."""
    across = min(count, 3)
    side = 150 if across < 3 else 100
    width = (1 + len(options.rules)) * (across * (side + 2) + utils.GAP)
    return Mosaics(across, side * options.scale, max(1, round(utils.PAGE / width)))


def draw_top9(options, network, album, cluster=None):
    """A folder: for each kernel the nine patches that excite it most, and their projections."""
    layout = mosaics_for(options, min(9, len(album.paths)))
    asked = len(options.kernels.indices) or options.kernels.top
    utils.check_height(options, math.ceil(asked / layout.kernels), 3 * layout.side)
    best = scan(network, album, cluster)
    if not draws(cluster) or not len(best.numbers):
        return
    kernels = options.kernels.among(best.activations[0])
    patches, arrays = top_patches(options, network, album, best, kernels)
    cut_patches(patches, Way("max", options.rules[0]))
    tiles = []
    for kernel, of_kernel in itertools.groupby(patches, lambda each: each.kernel):
        activations = best.activations[:, kernel]
        tiles += top_tiles(network, list(of_kernel), activations, layout)
        arrays[f"{network.layer}/{kernel}/activations"] = activations
    for each in patches:
        for way, values in each.back.items():
            key = array_key(options, network.layer, each.kernel, way)
            arrays[f"{key}/{each.stem}"] = values
    rows = utils.in_rows(tiles, layout.kernels * (1 + len(options.rules)))
    note = f"{network.layer} · of {len(album.paths)} files · zero is grey"
    utils.save_page(options, network, album, "top9", rows, note, arrays)


def top_patches(options, network, album, best, kernels):
    """TopPatches, kernel by kernel, the strongest first; the photographs' inputs as arrays."""
    ways = [Way("max", rule) for rule in options.rules]
    found, inputs = {}, {}
    for number in np.unique(best.numbers[:, kernels]):  # a photograph serves all its kernels
        view = Projections(options, network, album.read(album.paths[number]))
        stem, seen = view.photo.stem, view.seen()
        inputs[f"input/{stem}"] = view.x
        here = [kernel for kernel in kernels if number in best.numbers[:, kernel]]
        projections = view.back(network.layer, here, ways)
        for kernel, back in zip(here, projections, strict=True):
            found[kernel, number] = TopPatch(kernel, stem, seen, back)
    order = [(kernel, number) for kernel in kernels for number in best.numbers[:, kernel]]
    return [found[pair] for pair in order], inputs


def top_tiles(network, patches, activations, layout):
    """The Tiles of one kernel: its patches of photographs, and those projected by each rule."""
    title = f"kernel {patches[0].kernel}"
    across, side = layout.across, layout.side
    seen = [utils.resize(each.seen[each.cut], side, side) for each in patches]
    span = f"{title}: {activations[0]:.3g} to {activations[-1]:.3g}"
    tiles = [Tile(utils.mosaic(seen, across), span)]
    for way in patches[0].back:
        pictures = []
        for each in patches:
            values, square = each.back[way][each.cut], np.empty((side, side))
            pictures.append(utils.signed_grey(values, square, network.preprocess))
        tiles.append(Tile(utils.mosaic(pictures, across), f"{title}: {way.rule}"))
    return tiles


COLOURS = {  # of the most frequent classes; grey of all the rest
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "yellow": (240, 220, 60),
    "blue": (31, 119, 180),
    "violet": (148, 103, 189),
}
GREY = (128, 128, 128)


class Hidden(NamedTuple):
    """What a class and a kernel lose where a grey square hides a part: arrays (rows, columns)."""

    kernel: int
    p: float  # of the class, before the whole photograph
    response: float  # sum of the kernel's map, likewise
    probabilities: np.ndarray
    responses: np.ndarray
    winners: np.ndarray  # the most probable class


def hide_parts(view, layer):
    """The Hidden of the first class and kernel asked for."""
    options, network = view.options, view.network
    view.keep(network.logits(view.x)[0])
    index = view.classes[0]
    maps = view.maps(layer)
    kernel = utils.top_kernels(maps, network.inside(layer), options.kernels)[0]
    outputs = [network.model.outputs[0], utils.get_operation(network.model, layer).output]
    model = keras.Model(network.model.inputs[0], outputs)

    def evaluate(batch):
        logits, responses = model(batch, training=False)
        of_kernel = responses.numpy()[..., kernel].reshape(len(batch), -1)
        return network.probabilities(logits), of_kernel.sum(axis=1)

    grey = view.grey_input()
    likely, responses = utils.occlude(view.x, grey, evaluate, options.patch, options.stride).values
    p, response = network.probabilities(view.logits)[index], maps[..., kernel].sum()
    return Hidden(kernel, p, response, likely[..., index], responses, likely.argmax(axis=-1))


def draw_occlusion(view):
    """What a class and a kernel need: how far they fall where a grey square hides a part."""
    layer, photo = view.network.layers[-1], view.tile(5)
    hidden = hide_parts(view, layer)
    index, kernel = view.classes[0], hidden.kernel
    least, most = hidden.probabilities.min(), hidden.probabilities.max()
    p = f"p {hidden.p:.3g}, hidden {least:.3g} to {most:.3g}"
    least, most = hidden.responses.min(), hidden.responses.max()
    response = f"sum of its map {hidden.response:.3g}, hidden {least:.3g} to {most:.3g}"
    whole = Way("all", view.options.rules[0])
    projected = Projected(kernel, None, view.back(layer, [kernel], [whole])[0])
    row = [
        Tile(photo, "photograph"),
        view.feature(photo, hidden.p - hidden.probabilities, None, p),
        winners_tile(view, hidden.winners, photo),
        view.feature(
            photo, hidden.response - hidden.responses, None, f"kernel {kernel}: {response}"
        ),
        view.whole(projected, whole, photo, f"kernel {kernel}, projected"),
    ]
    name = view.network.classes.title(index)
    note = f"{name} · {layer} · a grey square on each point; hot is what is needed"
    arrays = {
        f"{layer}/{index}/probability": hidden.probabilities,
        f"{layer}/{kernel}/response": hidden.responses,
        "most_probable": hidden.winners,
    }
    view.save("occlusion", [row], note, arrays)


def winners_tile(view, winners, photo):
    """The most probable class at each position, (rows, columns), in colours over the photograph."""
    classes, counts = np.unique(winners, return_counts=True)
    frequent = classes[np.argsort(-counts, kind="stable")].tolist()
    named = dict(zip(frequent, COLOURS, strict=False))
    painted = np.full((*winners.shape, 3), GREY, np.uint8)
    for index, colour in named.items():
        painted[winners == index] = COLOURS[colour]
    height, width = view.x.shape[1:3]
    painted = cv2.resize(painted, (width, height), interpolation=cv2.INTER_NEAREST)
    laid = utils.unfit(painted, *photo.shape[:2], view.options.fit)
    titles = view.network.classes
    legend = "; ".join(f"{colour}: {titles.title(index)}" for index, colour in named.items())
    return Tile(cv2.addWeighted(np.uint8(laid), 0.5, photo, 0.5, 0), f"most probable: {legend}")


CLASSIFIER = ("avg_pool", "predictions")  # layers behind the convolutions


def build(top, weights=None):
    """InceptionV3, with or without its classifier: its output is logits.

    weights: None, imagenet, or a file's path."""
    keras.utils.clear_session()  # so that Keras numbers the layers from the start
    with utils.plain_keras():
        how = {"include_top": top, "input_shape": (299, 299, 3), "classifier_activation": None}
        return keras.applications.InceptionV3(weights=weights, **how)


def recipe(top):
    """What utils.open_weights needs to know of InceptionV3."""
    kernels = "inception_v3_weights_tf_dim_ordering_tf_kernels"
    files = (f"{kernels}.h5",) if top else (f"{kernels}_notop.h5", f"{kernels}.h5")
    shown, size = ("mixed[0-9]", "mixed10"), (299, 299)
    build_it = functools.partial(build, top)
    return utils.Recipe("InceptionV3", build_it, files, shown, "mixed2", size, "tf")


def open_networks(options):
    """The network, without its classifier, a smaller download, where that is not drawn."""
    light = recipe(top=False)
    whole = needs_classifier(options, light.files)
    return [utils.open_weights(options, recipe(top=True) if whole else light)]


def needs_classifier(options, files):
    """Whether figures, layers or a weights file ask for the classifier, most of a network's weights.

    files: names of the weights without it, and with it."""
    if options.list_layers or "occlusion" in options.figures:
        return True
    if any(fnmatch.filter(CLASSIFIER, word.lower()) for word in options.layers):
        return True
    path = options.weights.path
    return bool(path) and utils.holds_classifier(utils.published_file(path, files))


FIGURES_DRAWN = {
    "projections": draw_projections,
    "blocks": draw_blocks,
    "comparison": draw_comparison,
    "top9": draw_top9,
    "occlusion": draw_occlusion,
}
OVER_ALL = ("comparison", "top9")  # figures over all photographs


def start_cluster():
    """The cluster of TensorFlow that TF_CONFIG describes, or None; before any other operation."""
    if "TF_CONFIG" not in os.environ:
        return None
    with utils.quiet():
        return tf.distribute.MultiWorkerMirroredStrategy()


def draw_single(options, album, network):
    """Draw the figures of one photograph, of each photograph."""
    targets = [(figure, network.name) for figure in options.figures if figure not in OVER_ALL]
    for photo, left in utils.photographs(options, album, targets):
        view = Projections(options, network, photo)
        for figure, _ in left:
            FIGURES_DRAWN[figure](view)


def draw_over_all(options, album, network, cluster):
    """Draw the figures over all photographs that are not there yet."""
    figures = [figure for figure in options.figures if figure in OVER_ALL]
    if not cluster:  # its workers have to agree on what they do
        figures = [each for each in figures if not is_there(options, album, network, each)]
    if "comparison" in figures and draws(cluster):
        draw_comparison(options, network, album)
    if "top9" in figures:
        draw_top9(options, network, album, cluster)


def is_there(options, album, network, figure):
    """Whether a figure over all photographs is left out, which is said."""
    there = utils.album_result(options, network, album, figure).is_drawn()
    if there:
        utils.warn(f"{figure}: there already")
    return there


def main():
    options = utils.read_options(globals())
    album = utils.open_album(options, IMAGES)
    cluster = start_cluster()
    networks = open_networks(options)
    if options.list_layers:
        return utils.print_layers(networks[0])
    for network in networks:
        if draws(cluster):
            draw_single(options, album, network)
        draw_over_all(options, album, network, cluster)
    return album.exit_code()


if __name__ == "__main__":
    sys.exit(utils.run(main))
