"""DeconvNet on InceptionV3: what in a photograph the kernels of a layer answer to, brought back to pixels.

    python deconvnet_inceptionv3.py Image/cat.jpg
    python deconvnet_inceptionv3.py photo.jpg --figures projections --layers mixed3 --kernels 12,77 --rules guided
    python deconvnet_inceptionv3.py my_photographs/ --figures top9

The method, of Zeiler and Fergus 2013, arXiv 1311.2901: `deconvnet` and the functions that it calls; below are figures.
InceptionV3: Szegedy et al. 2015, arXiv 1512.00567, as Keras has it. Behind strided convolutions the DeconvNet rule ends
in a chequerboard: beside it stands guided backpropagation."""
import collections
import concurrent.futures
import functools
import os
import sys

import cv2
import numpy as np

import utils

IMAGES = ["Image/hopper_coffee.jpg"]  # photographs, folders, patterns; those named here are relative to this script
FIGURES = ["projections", "blocks", "comparison", "top9"]  # of these and occlusion; or all
LAYERS = ["all"]      # names, shell wildcards, or all: for blocks mixed0 to mixed10, for the others mixed2
KERNELS = ["top9"]    # numbers from 0, ranges (0-8), or top9: the nine with the strongest response; blocks has its own
CLASSES = ["top1"]    # of occlusion: an index, WordNet id or name, or top1: the most probable
MODE = "all"          # all: a kernel's whole map is brought back; max: its strongest position
RULES = ["deconvnet", "guided"]  # what a ReLU lets down: deconvnet, guided, gradient, or several of them
PATCH = 25            # of occlusion: width of the grey square, percent of the shorter side
STRIDE = 7            # of occlusion: its steps, percent of the shorter side
COMPARED = 3          # how many photographs comparison sets side by side at most
WEIGHTS = "imagenet"  # imagenet, random, a weights file, a folder of published ones, a saved network
LABELS = ""           # of a saved network: a file with a class name a line, or a folder with a sub-folder a class
PREPROCESS = "tf"     # caffe, tf or torch, as Keras calls them; unit: 0 to 1; none: 0 to 255
SEED = 0              # of random weights
OUTPUT = "results"    # folder of the results
FORMAT = "jpg"        # jpg, png or pdf
ARRAYS = False        # True: save the numbers behind each figure too, as .npz
COLORMAP = "jet"      # an OpenCV colour map: jet, turbo, viridis, inferno …

if __name__ == "__main__":
    OPTIONS = utils.run(utils.read_options, globals())  # typing errors are told before the slow import of TensorFlow
with utils.quiet():
    import keras
    import tensorflow as tf

RELU_RULES = {  # what a ReLU passes back of a signal R; active: where f, its forward value, is neither 0 nor cut off
    "gradient": lambda R, active: tf.where(active, R, 0.0),  # the derivative
    "deconvnet": lambda R, active: tf.nn.relu(R),  # Zeiler and Fergus, section 2.1, «Rectification»: f has no say
    "guided": lambda R, active: tf.where(active, tf.nn.relu(R), 0.0)}  # both: Springenberg et al. 2014, arXiv 1412.6806


def deconvnet(model, x, layer, kernels, mode="max", rule="deconvnet"):
    """Kernels of a layer projected back to pixels (Zeiler and Fergus, section 2.1), all from one forward pass.

    model: flat functional Keras network (utils.open_network makes one of any other); it is left as it was. x: float32
    (1, H, W, channels), as the network wants it. layer: a name. kernels: numbers. rule: a key of RELU_RULES.
    mode: `max` keeps the strongest position of a kernel's map (of equals the first in row order), `all` the whole map;
    the rest of the layer is set to zero. The rule deconvnet sends down the activations kept, the others send ones: the
    derivative of their sum. Returns float32 (len(kernels), H, W, channels). ValueError: unknown names."""
    top, projections = utils.get_layer(model, layer).output, []
    if len(x) != 1 or mode not in ("max", "all") or rule not in RELU_RULES or {*kernels} - {*range(top.shape[-1])}:
        raise ValueError(f"one x, kernels below {top.shape[-1]} and known words: {len(x)}, {kernels}, {mode}, {rule}")
    operations = keras.Model(model.inputs[0], top).operations
    tensors = keras.tree.flatten([operation.output for operation in operations])
    if {*map(id, keras.tree.flatten([operation.input for operation in operations[1:]]))} - {*map(id, tensors)}:
        raise ValueError("a layer is called more than once: see utils.open_network")
    values = keras.Model(model.inputs[0], tensors)(tf.constant(x, tf.float32), training=False)
    values = dict(zip(map(id, tensors), values))  # of each symbolic tensor what the forward pass gave; later switches
    maps = tf.reshape(values[id(top)], (-1, top.shape[-1]))  # (positions, K)
    for start in range(0, len(kernels), 9):  # nine signals go down at a time
        channels = tf.one_hot(kernels[start:start + 9], top.shape[-1])
        chosen = tf.matmul(channels, maps, transpose_b=True)  # the maps of these kernels, (9, positions)
        mask = tf.one_hot(tf.argmax(chosen, axis=1), maps.shape[0]) if mode == "max" else tf.ones_like(chosen)
        seeds = (mask * chosen if rule == "deconvnet" else mask)[..., None] * channels[:, None]
        signals = {id(top): tf.reshape(seeds, (-1, *values[id(top)].shape[1:]))}
        for operation in reversed(operations[1:]):
            arriving = [signals.pop(id(tensor), 0.0) for tensor in keras.tree.flatten(operation.output)]
            for tensor, part in zip(keras.tree.flatten(operation.input), down(operation, arriving, values, mode, rule)):
                signals[id(tensor)] = signals[id(tensor)] + part if id(tensor) in signals else part
        projections.append(signals[id(operations[0].output)].numpy())
    return np.concatenate(projections)


def down(operation, signals, values, mode, rule):
    """The signals at the inputs of an operation, from those at its outputs, (N, …). Biases take no part."""
    layers, inputs, signal = keras.layers, keras.tree.flatten(operation.input), signals[0]
    ceiling = utils.relu_ceiling(operation)  # infinity, 6 of a ReLU6, None where there is no ReLU
    if ceiling:
        f = values[id(operation.output)]
        signal = RELU_RULES[rule](signal, (f > 0) & (f < ceiling))
        if not getattr(operation, "weights", ()):
            return [signal]
    linear = bool(ceiling) or getattr(operation, "activation", None) is keras.activations.linear  # what remains of it
    if type(operation) is layers.Conv2D and linear and operation.groups == 1 and max(operation.dilation_rate) == 1:
        return [filter_down(operation, signal, values[id(operation.input)].shape, mode)]
    if type(operation) is layers.MaxPooling2D:
        return [unpool(operation, signal, values)]
    if type(operation) is layers.BatchNormalization and operation.axis in (-1, 3):
        scale = tf.math.rsqrt(operation.moving_variance + operation.epsilon)
        return [signal * (scale if operation.gamma is None else scale * operation.gamma)]
    if type(operation) is layers.Concatenate and operation.axis in (-1, 3):
        return tf.split(signal, [tensor.shape[-1] for tensor in inputs], axis=-1)
    return derivative(operation, [signal, *signals[1:]], values, ceiling)


def filter_down(layer, signal, below, mode):
    """«Filtering»: convolution with the transposed kernels. below: the shape of the layer's input."""
    if mode == "all" or layer.strides != (1, 1) or layer.padding != "same":
        shape = (len(signal), *below[1:])
        return tf.nn.conv2d_transpose(signal, layer.kernel, shape, layer.strides, layer.padding.upper())
    parts, reach, (_, height, width, channels) = [], max(layer.kernel_size) // 2, below
    for one in signal:  # what comes of a strongest position is zero but for a window: only that is filtered
        lit = tf.reduce_any(one != 0, axis=-1).numpy()
        rows, columns = np.nonzero(lit) if lit.any() else ([0], [0])
        top, left = max(np.min(rows) - reach, 0), max(np.min(columns) - reach, 0)
        window = one[None, top:np.max(rows) + reach + 1, left:np.max(columns) + reach + 1]
        part = tf.nn.conv2d_transpose(window, layer.kernel, (*window.shape[:3], channels), 1, "SAME")[0]
        bottom, right = height - top - part.shape[0], width - left - part.shape[1]
        parts.append(tf.pad(part, [(top, bottom), (left, right), (0, 0)]))
    return tf.stack(parts)


def unpool(layer, signal, values):
    """«Unpooling»: each value goes back to where its maximum was found, its switch; of equals to the first."""
    below, count, padding = values[id(layer.input)], signal.shape[0], layer.padding.upper()
    if ("switches", id(layer)) not in values:
        values["switches", id(layer)] = tf.nn.max_pool_with_argmax(below, layer.pool_size, layer.strides, padding)[1]
    return tf.raw_ops.MaxPoolGradWithArgmax(
        input=tf.zeros((count, *below.shape[1:])), grad=signal, padding=padding, ksize=(1, *layer.pool_size, 1),
        argmax=tf.repeat(values["switches", id(layer)], count, axis=0), strides=(1, *layer.strides, 1))


def derivative(operation, signals, values, ceiling):
    """Any other operation: its derivative, without the ReLU that it may end in, which `down` has applied."""
    tensors, count = keras.tree.flatten(operation.input), next(len(each) for each in signals if tf.is_tensor(each))
    inputs = {id(tensor): tf.repeat(values[id(tensor)], count, axis=0) for tensor in tensors}
    part = keras.Model([*{id(tensor): tensor for tensor in tensors}.values()], operation.output)
    if ceiling:  # a copy, with an input of its own: the network would keep what is called on its tensors
        twin = type(operation).from_config(operation.get_config() | {"activation": "linear"})
        start = [keras.Input(batch_shape=operation.input.shape)]
        part = keras.Model(start, twin(*start))
        twin.set_weights(operation.get_weights())
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(inputs)
        outputs = keras.tree.flatten(part([*inputs.values()], training=False))
    signals = [tf.zeros_like(output) + signal for output, signal in zip(outputs, signals)]
    gradients = tape.gradient(outputs, inputs, signals, unconnected_gradients="zero")
    return [gradients.pop(id(tensor), 0.0) for tensor in tensors]  # a tensor used twice, x * x, gets its gradient once


class View(utils.View):
    """One photograph before one network, and how its maps and projections are drawn."""

    def maps(self, layer):
        """What a layer gives: float32 (h, w, K), or (1, 1, K) of a dense layer."""
        model = keras.Model(self.network.model.inputs[0], utils.get_layer(self.network.model, layer).output)
        maps = model(self.x, training=False)[0].numpy()
        return maps.reshape((1, 1, -1)) if maps.ndim == 1 else maps

    def project(self, layer, kernels, mode, rule):
        return deconvnet(self.network.model, self.x, layer, kernels, mode, rule)

    def feature(self, photo, map_, title="", scale=None):
        """A kernel's map over the photograph, its maximum in the title."""
        if not map_.max() > 0:
            return photo, f"{title}\nsilent"
        return utils.overlay(photo, map_, self.options.colormap, scale=scale), f"{title}\nmax {map_.max():.3g}"

    def grey(self, values, like):
        return utils.signed_grey(values, like, self.options.preprocess)

    def key(self, layer, kernel, mode, rule):
        """LAYER/KERNEL of the mode and first rule of the options; another mode or rule stands behind it."""
        asked = {mode: self.options.mode, rule: self.options.rules[0]}
        return "/".join([layer, str(kernel), *(got for got, wanted in asked.items() if got != wanted)])


def strongest(maps, chosen):
    """The kernels asked for, or the N with the strongest response anywhere in their maps, (h, w, K)."""
    return np.argsort(-maps.max(axis=(0, 1)), kind="stable")[:chosen].tolist() if isinstance(chosen, int) else chosen


def different(maps, count=9, limit=0.8):
    """The strongest kernel, then the strongest of those whose maps correlate less than limit with all chosen ones."""
    flat, chosen = maps.reshape(-1, maps.shape[-1]).T, []
    ranked = [kernel for kernel in strongest(maps, maps.shape[-1]) if np.ptp(flat[kernel])]
    for kernel in ranked:
        if len(chosen) < count and all(np.corrcoef(flat[kernel], flat[other])[0, 1] < limit for other in chosen):
            chosen.append(kernel)
    return (chosen + [kernel for kernel in ranked if kernel not in chosen])[:count] or strongest(maps, count)


def patches(projections):
    """Where projections of strongest positions, (N, H, W, channels), are not zero, as slices: squares of one size,
    moved inside at the borders; None where that is most of the photograph."""
    sides = np.array(projections.shape[1:3])
    lit = [np.nonzero(one.any(axis=-1)) for one in projections]
    boxes = np.array([[(at.min(), at.max() + 1) if at.size else (0, 1) for at in places] for places in lit])
    size = np.minimum((boxes[..., 1] - boxes[..., 0]).max(), sides)
    if size.prod() > sides.prod() / 2:
        return None
    corners = np.clip((boxes.sum(axis=-1) - size) // 2, 0, sides - size)
    return [tuple(slice(start, start + length) for start, length in zip(corner, size)) for corner in corners]


def mosaic(pictures, columns=3):
    """Pictures of one size side by side, with white lines in between."""
    framed = [np.pad(picture, ((1, 1), (1, 1), (0, 0)), constant_values=255) for picture in pictures]
    framed += [np.full_like(framed[0], 255)] * (-len(framed) % columns)
    return np.vstack([np.hstack(framed[start:start + columns]) for start in range(0, len(framed), columns)])


def draw_projections(view):
    """Kernels of one layer: map, whole map brought back, strongest position, its patch, that of the photograph."""
    layer, rules, maps, rows, arrays = view.layer, view.options.rules, view.maps(view.layer), [], {}
    kernels = strongest(maps, view.options.kernels)
    back = {(mode, rule): view.project(layer, kernels, mode, rule) for rule in rules for mode in ("all", "max")}
    cuts = patches(back["max", rules[0]])
    photo = utils.fit(view.pixels, 1 + (3 if cuts else 2) * len(rules) + bool(cuts))
    fed, square = utils.resize(view.pixels, *view.x.shape[2:0:-1]), photo[:min(photo.shape[:2]), :min(photo.shape[:2])]
    for place, kernel in enumerate(kernels):
        row = [view.feature(photo, maps[..., kernel], f"kernel {kernel}")]
        for rule in rules:
            whole, strong = back["all", rule][place], back["max", rule][place]
            row += [(view.grey(whole, photo), f"{rule}: whole map"), (view.grey(strong, photo), "strongest position")]
            row += [(view.grey(strong[cuts[place]], square), "its patch")] if cuts else []
        row += [(utils.resize(fed[cuts[place]], *square.shape[:2]), "of the photograph")] if cuts else []
        rows.append([row[0], *((picture, "" if place else title) for picture, title in row[1:])])
        arrays |= {view.key(layer, kernel, *way): values[place] for way, values in back.items()}
    view.save("projections", rows, f"{layer} · in grey pictures zero is grey", arrays)


def draw_blocks(view):
    """Nine kernels that differ of the last layer of every block: their maps over the photograph, and brought back."""
    rows, arrays, photo = [], {}, utils.fit(view.pixels, 3 * (1 + len(view.options.rules)))
    for layer in view.network.layers:
        maps = view.maps(layer)
        kernels = different(maps)
        shown = mosaic([view.feature(photo, maps[..., kernel])[0] for kernel in kernels])
        rows.append([(shown, f"{layer}: kernels {' '.join(map(str, kernels))}")])
        for rule in view.options.rules:
            back = view.project(layer, kernels, "all", rule)
            rows[-1].append((mosaic([view.grey(values, photo) for values in back]), "" if rows[1:] else rule))
            arrays |= {view.key(layer, kernel, "all", rule): values for kernel, values in zip(kernels, back)}
    view.save("blocks", rows, "whole maps, the strongest kernel first · zero is grey", arrays)


def draw_comparison(options, network, _):
    """The same kernels, a row each: of several photographs side by side, maps on one scale; of one, four ways back."""
    layer, rows, arrays, readable = network.layer, [], {}, utils.readable(options, options.images)
    views = [View(options, network, *photo) for _, photo in zip(range(max(options.compared, 1)), readable)]
    if not views:
        return
    several = len(views) > 1
    ways = [(options.mode, rule) for rule in options.rules] if several else [
        ("max", "deconvnet"), ("all", "deconvnet"), ("all", "guided"), ("all", "gradient")]
    maps = np.stack([view.maps(layer) for view in views])
    kernels = strongest(maps[0], options.kernels)
    back = {way: np.stack([view.project(layer, kernels, *way) for view in views]) for way in ways}  # (views, K, …)
    cuts = {way: patches(values.reshape(-1, *values.shape[2:])) for way, values in back.items() if way[0] == "max"}
    shapes = [view.pixels.shape[1] / view.pixels.shape[0] for view in views]  # width by height
    height = int(min(max((utils.PAGE - 100) / sum(shapes) / (1 + len(ways)), 60), 280))  # one for all
    for place, kernel in enumerate(kernels):
        rows.append([])
        for number, view in enumerate(views):
            photo = utils.resize(view.pixels, max(round(height * shapes[number]), 1), height)
            title, behind = f"kernel {kernel}", f"/{options.stems[view.path]}" * several
            title = title if place else f"{view.path.name}\n{title}"
            rows[-1].append(view.feature(photo, maps[number, ..., kernel], title, maps[..., kernel].max()))
            for way, values in back.items():
                cut = cuts[way][number * len(kernels) + place] if cuts.get(way) else ...
                picture = view.grey(values[number, place][cut], photo if cut is ... else np.empty((height, height)))
                what = "whole map" if way[0] == "all" else "strongest position" if cut is ... else "strongest patch"
                rows[-1].append((picture, "" if place else f"{way[1]}: {what}"))
                arrays[view.key(layer, kernel, *way) + behind] = values[number, place]
            arrays["input" + behind] = view.x
    views[0].save("comparison", rows, f"{layer} · {len(views)} of {len(options.images)} photographs · zero is grey",
                  arrays, photos=options.images)


def read_ahead(options, network, numbers, size=8):
    """Lists of (number, input) of the photographs that can be read, one list ahead of its use."""
    def read(number):
        return [(number, network.prepare(pixels)[0]) for _, pixels in utils.readable(options, [options.images[number]])]

    with concurrent.futures.ThreadPoolExecutor() as pool:
        ahead = []
        for start in range(0, len(numbers) + size, size):
            ready, ahead = ahead, [pool.submit(read, number) for number in numbers[start:start + size]]
            yield [found for done in ready for found in done.result()]


def scan(options, network, cluster):
    """Which photographs excite each kernel of a layer most, by the maximum of its map: (activations, numbers), (9, K).
    All GPUs of a machine take part; of a cluster each worker scans its share, and all know what all have found."""
    top = keras.Model(network.model.inputs[0], utils.get_layer(network.model, network.layer).output)
    best = np.full((9, top.output.shape[-1]), -np.inf, np.float32), np.full((9, top.output.shape[-1]), -1)
    worker = cluster.cluster_resolver.task_id if cluster else 0
    workers = len(cluster.cluster_resolver.cluster_spec().as_dict()["worker"]) if cluster else 1
    devices = [d.name for d in tf.config.list_logical_devices() if not cluster or f"task:{worker}/" in d.name]
    devices = [name for name in devices if "GPU" in name] or devices

    @tf.function(input_signature=[tf.TensorSpec((None, *network.model.inputs[0].shape[1:]), tf.float32)])
    def respond(x):
        parts = []
        for number, device in enumerate(devices):
            with tf.device(device):
                maps = top(x[number::len(devices)], training=False)
                parts.append(tf.reduce_max(maps, axis=tuple(range(1, len(maps.shape) - 1))))
        return tf.concat(parts, axis=0)

    def nine(activations, numbers):  # the strongest of each kernel, of equals the first
        order = np.lexsort((numbers, -activations), axis=0)[:9]
        return np.take_along_axis(activations, order, axis=0), np.take_along_axis(numbers, order, axis=0)

    for batch in read_ahead(options, network, range(worker, len(options.images), workers)):
        if batch:
            numbers = [[number] for first in range(len(devices)) for number, _ in batch[first::len(devices)]]
            found = respond(np.stack([x for _, x in batch])).numpy(), np.repeat(numbers, top.output.shape[-1], axis=1)
            best = nine(*(np.concatenate(pair) for pair in zip(best, found)))
    if cluster:  # where a worker has several GPUs, one of them speaks
        shares = [cluster.experimental_distribute_values_from_function(lambda context, part=part: tf.constant(
            part[:0 if context.replica_id_in_sync_group * workers % cluster.num_replicas_in_sync else 9]))
            for part in best]
        best = nine(*(cluster.gather(part, axis=0).numpy() for part in shares))
    return best


def draw_top9(options, network, cluster):
    """For each kernel the nine patches that excite it most, beside their projections (the paper's figure 2)."""
    activations, numbers = scan(options, network, cluster)
    layer, rules, back, fed, arrays = network.layer, options.rules, {}, {}, {}
    kernels = strongest(activations[:1, None], options.kernels)
    pairs = [(kernel, number) for kernel in kernels for number in numbers[:, kernel] if number >= 0]
    if cluster and cluster.cluster_resolver.task_id or not pairs:
        return
    for number in dict.fromkeys(number for _, number in pairs):  # a photograph serves all its kernels at once
        view = View(options, network, options.images[number], utils.read_photo(options.images[number]))
        kernels_here = [kernel for kernel, other in pairs if other == number]
        back |= {(kernel, number, rule): values for rule in rules
                 for kernel, values in zip(kernels_here, view.project(layer, kernels_here, "max", rule))}
        fed[number] = utils.resize(view.pixels, *view.x.shape[2:0:-1])
        arrays[f"input/{options.stems[view.path]}"] = view.x
    cuts = patches(np.stack([back[kernel, number, rules[0]] for kernel, number in pairs])) or [...] * len(pairs)
    many, tiles = min(9, len(fed)), collections.defaultdict(list)
    across, side = (3, 60) if many == 9 else (many, 540 // max(many, 4))
    for (kernel, number), cut in zip(pairs, cuts):
        span = f"{activations[0, kernel]:.3g} to {activations[many - 1, kernel]:.3g}"
        arrays[f"{layer}/{kernel}/activations"] = activations[:many, kernel]
        tiles[kernel, span].append(utils.resize(fed[number][cut], side, side))
        for rule in rules:
            values = back[kernel, number, rule]
            tiles[kernel, rule].append(view.grey(values[cut], np.empty((side, side))))
            arrays[f"{view.key(layer, kernel, 'max', rule)}/{options.stems[options.images[number]]}"] = values
    tiles = [(mosaic(pictures, across), f"kernel {kernel}: {what}") for (kernel, what), pictures in tiles.items()]
    wide = max(1, utils.PAGE // (across * (side + 2) + utils.GAP) // (1 + len(rules))) * (1 + len(rules))
    view.save("top9", [tiles[start:start + wide] for start in range(0, len(tiles), wide)],
              f"{layer} · of {len(options.images)} files · zero is grey", arrays, [], options.images)


COLOURS = {"red": (214, 39, 40), "green": (44, 160, 44), "yellow": (240, 220, 60), "blue": (31, 119, 180),
           "violet": (148, 103, 189), "grey": (128, 128, 128)}  # of the most frequent classes; grey of all the rest


def draw_occlusion(view):
    """What a class and a kernel need: how far they fall where a grey square hides a part (the paper's figure 7)."""
    options, network, layer = view.options, view.network, view.network.layers[-1]
    view.keep(network.predict(view.x)[0].numpy())
    patch, step = (max(round(min(view.x.shape[1:3]) * share / 100), 1) for share in (options.patch, options.stride))
    before, photo = view.maps(layer), utils.fit(view.pixels, 5)
    kernel, grey = strongest(before, options.kernels)[0], network.prepare(np.full((9, 9, 3), 128, np.uint8))[0, 0, 0]
    model = keras.Model(network.model.inputs[0], [*network.model.outputs, utils.get_layer(network.model, layer).output])
    ys, xs = (np.arange(step // 2, side, step) - patch // 2 for side in view.x.shape[1:3])
    logits, responses = [], []
    for y in ys:
        batch = np.repeat(view.x, len(xs), axis=0)
        for picture, x in zip(batch, xs):
            picture[max(y, 0):y + patch, max(x, 0):x + patch] = grey
        scores, maps = model(batch, training=False)
        logits.append(scores)
        responses.append(maps.numpy()[..., kernel].reshape(len(xs), -1).sum(axis=1))
    index, response = view.classes[0], before[..., kernel].sum()
    p = network.probabilities(view.logits)[index].numpy()
    likely, responses = network.probabilities(np.stack(logits)).numpy(), np.stack(responses)
    ours, winners = likely[..., index], likely.argmax(axis=-1)
    frequent = sorted(set(winners.flat), key=lambda each: -(winners == each).sum())
    colours = dict(zip(frequent, [*COLOURS.values()][:5]))
    painted = np.uint8([[colours.get(each, COLOURS["grey"]) for each in row] for row in winners])
    painted = cv2.resize(painted, photo.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    named = "; ".join(f"{colour}: {network.titles[each]}" for colour, each in zip([*COLOURS][:5], frequent))
    back = view.project(layer, [kernel], "all", options.rules[0])[0]
    row = [(photo, "photograph"),
           view.feature(photo, p - ours, f"p {p:.3g}, hidden {ours.min():.3g} to {ours.max():.3g}"),
           (cv2.addWeighted(painted, 0.5, photo, 0.5, 0), f"most probable: {named}"),
           view.feature(photo, response - responses, f"kernel {kernel}: sum of its map {response:.3g}, hidden "
                                                     f"{responses.min():.3g} to {responses.max():.3g}"),
           (view.grey(back, photo), f"kernel {kernel}, projected")]
    note = f"{network.titles[index]} · {layer} · a grey square on each point; hot is what is needed"
    view.save("occlusion", [row], note, {f"{layer}/{index}/probability": ours, "most_probable": winners,
                                         f"{layer}/{kernel}/response": responses})


def build(top, weights=None):
    """InceptionV3, with or without its classifier. weights: None, imagenet, or a file's path."""
    keras.utils.clear_session()  # so that Keras numbers the layers from the start
    return keras.applications.InceptionV3(
        weights=weights, include_top=top, input_shape=(299, 299, 3), classifier_activation=None)


def open_networks(options, top=False):
    """The network, without its classifier, a smaller download, where figures, layers and weights do without."""
    top = top or "occlusion" in options.figures or options.list_layers
    files = [f"inception_v3_weights_tf_dim_ordering_tf_kernels{end}.h5" for end in ("_notop", "")[top:]]
    try:
        return [utils.open_weights(options, "InceptionV3", functools.partial(build, top), files,
                                   ["mixed[0-9]", "mixed10"], "mixed2", (299, 299))]
    except utils.UserError:
        if top or options.saved or not options.path and options.layers == ["all"]:
            raise
    return open_networks(options, True)  # a layer of the classifier, or a file that holds one


def main(options):
    with utils.quiet():  # before any other operation
        cluster = tf.distribute.MultiWorkerMirroredStrategy() if "TF_CONFIG" in os.environ else None
    drawing, over_all = not cluster or cluster.cluster_resolver.task_id == 0, ("comparison", "top9")
    for network in open_networks(options):
        single = [(figure, network.name) for figure in options.figures if drawing and figure not in over_all]
        for path, pixels, figures in utils.photographs(options, single):
            view = View(options, network, path, pixels)
            for figure, _ in figures:
                globals()[f"draw_{figure}"](view)
        for figure in [each for each in over_all if each in options.figures and (drawing or each == "top9")]:
            if not cluster and utils.is_drawn(options, figure, network.name, options.group, options.images):
                utils.tell(f"{figure}: there already")
            else:
                globals()[f"draw_{figure}"](options, network, cluster)
    return bool(options.skipped) + (len(options.skipped) == len(options.images))  # 1: some unreadable, 2: all


if __name__ == "__main__":
    sys.exit(utils.run(main, OPTIONS))
