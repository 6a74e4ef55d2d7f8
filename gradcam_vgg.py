"""Grad-CAM on VGG16 and VGG19: what in a photograph speaks for a class, and what against it.

    python gradcam_vgg.py Image/hopper_coffee.jpg
    python gradcam_vgg.py photo.jpg --models vgg16 --classes "Egyptian cat,n02124075,top3" --figures classes,guided
    python gradcam_vgg.py photos/ --weights mine.keras --labels names.txt

The method, of Selvaraju et al. 2016, arXiv 1610.02391: `grad_cam` and what stands above it; below are figures."""
import functools
import sys

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import utils

IMAGES = ["Image/hopper_coffee.jpg"]  # photographs, folders, patterns; those named here are relative to this script
MODELS = ["vgg16", "vgg19"]  # one of them, or both
FIGURES = ["layers", "classes", "negative", "one_class", "kernels", "guided"]  # of these, overlay and trust; or all
LAYERS = ["all"]      # names, shell wildcards, or all: every convolution; figures of one layer draw the last
CLASSES = ["top4"]    # indices, WordNet ids, names, or top4: the four most probable; some figures draw the first
KERNELS = ["top9"]    # numbers from 0, ranges (0-8), or top9: the nine with the strongest response
METHOD = "gradcam"    # gradcam, gradcam++, hirescam or layercam: how gradients weigh the feature maps
WEIGHTS = "imagenet"  # imagenet, random, a weights file, a folder of published ones, a saved network (.keras, .h5)
LABELS = ""           # of a saved network: a file with a class name a line, or a folder with a sub-folder a class
PREPROCESS = "caffe"  # caffe, tf or torch, as Keras calls them; unit: 0 to 1; none: 0 to 255
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

CAM_WEIGHTS = {  # how to weigh feature maps A, (1, h, w, K), given the gradients g = dy/dA, (classes, h, w, K)
    "gradcam": lambda g, A: tf.reduce_mean(g, axis=(1, 2), keepdims=True),  # equation 1: alpha = 1/Z sum of dy/dA
    # Chattopadhyay et al. 2017, arXiv 1710.11063, equations 5 and 19, divided by g^2; their factor exp(y) is left out
    "gradcam++": lambda g, A: tf.reduce_sum(tf.math.divide_no_nan(
        tf.nn.relu(g), 2 + g * tf.reduce_sum(A, axis=(1, 2), keepdims=True)), axis=(1, 2), keepdims=True),
    "hirescam": lambda g, A: g,  # Draelos and Carin 2020, arXiv 2011.08891: nothing is averaged
    "layercam": lambda g, A: tf.nn.relu(g)}  # Jiang et al. 2021, LayerCAM: a weight for every position


@functools.lru_cache(maxsize=8)
def with_maps(model, layers=()):
    """The network in two: up to the first map (no tape need record that), and on to the other maps and the logits."""
    maps = [utils.get_layer(model, name).output for name in layers]
    inner = any(isinstance(layer, keras.Model) for layer in model.layers)
    if utils.ending(model)[1] or inner or not all(len(A.shape) == 4 for A in maps):
        raise ValueError(f"softmax at the end, a network inside, or no maps at {layers}: see utils.open_network")
    try:
        return keras.Model(model.inputs[0], maps[0]), keras.Model(maps[0], [*maps[1:], model.outputs[0]])
    except (IndexError, ValueError):  # there is none, or not everything passes through it: the first part does nothing
        return keras.Model(model.inputs[0], model.inputs[0]), keras.Model(model.inputs[0], [*maps, model.outputs[0]])


@functools.lru_cache(maxsize=8)
def with_guided_relus(model):
    """A copy that shares the weights; its ReLUs pass a signal R back only where R > 0 and their forward value f > 0."""
    rectify_back = tf.custom_gradient(lambda f: (tf.identity(f), tf.nn.relu))  # forward: f; backward: R where R > 0
    gate = keras.layers.Activation(rectify_back, name="guided..gate")  # behind each ReLU, which itself checks f > 0

    def call(layer, *args, **kwargs):
        return gate(layer(*args, **kwargs)) if utils.relu_ceiling(layer) else layer(*args, **kwargs)

    below, above = with_maps(model)
    return below, keras.models.clone_model(above, clone_function=lambda layer: layer, call_function=call)


@tf.function  # traced once for a network and a number of classes; main has it run eagerly for a single photograph
def class_gradients(below, above, x, classes, top=0):
    """One forward pass of a network in two parts, then the derivatives of class scores y: (A, what the first part
    returned and the feature maps of the second; logits; dy/dA of each, (classes, 1, h, w, K))."""
    start = below(x, training=False)
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch(start)
        *maps, logits = start, *keras.tree.flatten(above(start, training=False))
        y = tf.gather(logits[0], tf.concat([tf.math.top_k(logits[0], top).indices, classes], axis=0))  # before softmax
    if y.shape[0] == 1:
        return maps, logits[0], [g[None] for g in tape.gradient(y, maps)]
    return maps, logits[0], tape.jacobian(y, maps, experimental_use_pfor=not tf.executing_eagerly())


def as_tensors(model, x, classes):
    """x and classes as TensorFlow wants them, or ValueError."""
    if len(x) != 1 or not all(0 <= index < model.outputs[0].shape[-1] for index in classes):
        raise ValueError(f"one x, classes below {model.outputs[0].shape[-1]} are wanted: {len(x)}, {list(classes)}")
    return tf.constant(x, tf.float32), tf.constant(classes, tf.int32)


def grad_cam(model, x, layers, classes, method="gradcam", top=0):
    """Grad-CAM of several classes at several layers (section 3 of the paper), all from one forward pass.

    model: flat functional Keras network with logits for output; utils.open_network makes one of any other. x: float32
    (1, H, W, channels), as the network wants it. layers: names. classes: indices; top: so many of the most probable
    ones come before them, at least one in all. method: a key of CAM_WEIGHTS. The model is left as it was. Returns
    (maps, logits): maps[layer] float32 (top + len(classes), h, w), signed, before the last ReLU: positive values speak
    for the class, negative ones against it; logits float32 (n_classes,). ValueError: unknown layer or class."""
    network, weigh, cams = with_maps(model, tuple(layers)), CAM_WEIGHTS[method], {}
    features, logits, gradients = class_gradients(*network, *as_tensors(model, x, classes), top)
    for layer, A, dy_dA in zip(layers, features[-len(layers):], gradients[-len(layers):]):
        alpha = weigh(dy_dA[:, 0], A)  # equation 1; 0: the photograph
        cams[layer] = tf.reduce_sum(alpha * A, axis=-1).numpy()  # equation 2; its ReLU is applied where it is drawn
    return cams, logits.numpy()


def guided_backprop(model, x, classes):
    """Guided backpropagation of class scores (Springenberg et al. 2014, arXiv 1412.6806, section 3.4): float32
    (len(classes), H, W, channels). Arguments and errors as of `grad_cam`."""
    return class_gradients(*with_guided_relus(model), *as_tensors(model, x, classes))[2][0][:, 0].numpy()


class Evidence(utils.View):
    """One photograph before one network: its class maps, which several figures draw, and how they are drawn."""

    def class_maps(self, layers, asked):
        """{layer: {class: map}} of the classes asked for, indices or topN."""
        fixed = [word for word in asked if isinstance(word, int)]
        top = min(len(self.network.titles), max([int(word[3:]) for word in asked if isinstance(word, str)] or [0]))
        cams, logits = grad_cam(self.network.model, self.x, layers, fixed, self.options.method, top)
        self.keep(logits)
        indices = [*np.argsort(-logits, kind="stable")[:top].tolist(), *fixed]
        return {layer: dict(zip(indices, maps)) for layer, maps in cams.items()}

    @functools.cached_property
    def cams(self):
        """{class: map} of the layer that figures of one layer draw."""
        cams = self.class_maps([self.layer], self.options.classes)[self.layer]
        return {index: cams[index] for index in self.classes}

    def title(self, index, between="\n"):
        return f"{self.network.titles[index]}{between}p {self.network.probabilities(self.logits)[index]:.3f}"

    def heat(self, photo, cam, title, word="max", colormap=None, lack="no positive evidence"):
        """A map over the photograph, its maximum in the title; where nothing is positive, the photograph in grey."""
        if cam.max() > 0:
            return utils.overlay(photo, cam, colormap or self.options.colormap), f"{title}\n{word} {cam.max():.3g}"
        return np.repeat(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)[..., None] // 2 + 64, 3, axis=2), f"{title}\n{lack}"

    def grid(self, cams, lack="no positive evidence"):
        """The photograph and maps over it, [(map, title)], in rows of four to seven with the fewest gaps."""
        count = len(cams) + 1
        columns = min(range(min(4, count), 8), key=lambda columns: (-count % columns, columns))
        photo = utils.fit(self.pixels, columns)
        tiles = [(photo, "photograph"), *(self.heat(photo, cam, title, lack=lack) for cam, title in cams)]
        return [tiles[start:start + columns] for start in range(0, count, columns)]


def draw_layers(views):
    """One class, every layer of every network, one row per block."""
    first, several, asked, rows, arrays = views[0], len(views) > 1, views[0].options.classes[0], {}, {}
    photo = utils.fit(first.pixels, 7 if several else 4)
    for view in views:
        maps = view.class_maps(view.network.layers, [asked if isinstance(asked, int) else "top1"])
        asked = index = first.classes[0]  # of the second network the same class
        arrays |= {f"{view.network.name}/input": view.x, f"{view.network.name}/logits": view.logits}
        for layer, cams in maps.items():
            tile = view.heat(photo, cams[index], f"{view.network.label} {layer}" if several else layer)
            rows.setdefault(layer.partition("_")[0], []).append(tile)
            arrays[f"{view.network.name}/{layer}/{index}"] = cams[index]
    rows[[*rows][0]].append((photo, "photograph"))
    rows = first.grid([(cams[index], name) for name, cams in maps.items()]) if first.options.saved else [*rows.values()]
    note = " · ".join(f"{view.network.label}: {view.title(index, ', ')}" for view in views)
    first.save("layers", rows, note, arrays, label="VGG" if several else first.network.label)


def draw_classes(view):
    """One layer, one tile per class."""
    layer, rows = view.layer, view.grid([(cam, view.title(index)) for index, cam in view.cams.items()])
    view.save("classes", rows, layer, {f"{layer}/{index}": cam for index, cam in view.cams.items()})


def draw_negative(view):
    """What speaks for a class and, below, what speaks against it: the last ReLU keeps the negative pixels instead."""
    photo, cold, cams, rows = utils.fit(view.pixels, 5), "viridis", [*view.cams.items()], []
    for some in (cams[start:start + 4] for start in range(0, len(cams), 4)):
        rows.append([(photo, "for"), *(view.heat(photo, cam, view.title(index), "for: max") for index, cam in some)])
        rows.append([(photo, "against"), *(view.heat(photo, -cam, "", "against: max", cold, "no negative evidence")
                                           for _, cam in some)])
    view.save("negative", rows, view.layer, {f"{view.layer}/{index}": cam for index, cam in cams},
              [(cold, "most against"), (view.options.colormap, "most for")])


def draw_one_class(view):
    """One class, large: photograph, heat map, overlay."""
    (index, _), photo, layer = [*view.cams.items()][0], utils.fit(view.pixels, 3), view.layer
    heat = utils.colorize(utils.heat_map(view.cams[index], *photo.shape[:2]), view.options.colormap)
    row = [(photo, "photograph"), (heat, "heat map"), view.heat(photo, view.cams[index], view.title(index))]
    view.save("one_class", [row], layer, {f"{layer}/{index}": view.cams[index]})


def draw_kernels(view):
    """Feature maps of one layer, over the photograph."""
    layer, model, kernels = view.layer, view.network.model, view.options.kernels
    maps = keras.Model(model.inputs[0], utils.get_layer(model, layer).output)(view.x, training=False)[0].numpy()
    kernels = np.argsort(-maps.max(axis=(0, 1)), kind="stable")[:kernels] if isinstance(kernels, int) else kernels
    rows = view.grid([(maps[..., kernel], f"kernel {kernel}") for kernel in kernels], lack="silent")
    view.save("kernels", rows, f"{layer} · feature maps",
              {f"{layer}/kernels": maps[..., kernels], f"{layer}/kernel_numbers": kernels})


def draw_guided(view):
    """Guided backpropagation, and its product with the heat map (Guided Grad-CAM), one row per class."""
    photo, layer, rows = utils.fit(view.pixels, 3), view.layer, []
    guided = dict(zip(view.cams, guided_backprop(view.network.model, view.x, [*view.cams])))
    for index, saliency in guided.items():
        titles = ["", ""] if rows else ["guided backpropagation", "Guided Grad-CAM: their product"]
        product = saliency * utils.heat_map(view.cams[index], *saliency.shape[:2])[..., None]
        greys = [utils.signed_grey(values, photo, view.options.preprocess) for values in (saliency, product)]
        rows.append([view.heat(photo, view.cams[index], view.title(index)), *zip(greys, titles)])
    view.save("guided", rows, f"{layer} · in grey pictures zero is grey", {
        **{f"{layer}/{index}": cam for index, cam in view.cams.items()},
        **{f"guided/{index}": saliency for index, saliency in guided.items()}})


def draw_overlay(view):
    """One file per class: the overlay at the photograph's own size, without a word on it."""
    for index, cam in view.cams.items():
        if not cam.max() > 0:
            utils.tell(f"{view.path}: nothing speaks for {view.network.titles[index]}: its overlay is cold")
        page = Figure(figsize=np.array(view.pixels.shape[1::-1]) / 100, dpi=100)
        page.figimage(utils.overlay(view.pixels, cam, view.options.colormap))
        stem = f"{view.options.stems[view.path]}_{view.network.name}_overlay_{index}"
        view.write("overlay", stem, page, {f"{view.layer}/{index}": cam})


def deletion_and_insertion(view, maps, count=10):
    """Petsiuk et al. 2018, arXiv 1806.07421, section 4: in steps of 10 % of the pixels, the warmest first, the
    photograph gives way to grey (deletion), or a blurred copy to the photograph (insertion); after the maps in count
    random orders of 7 x 7 patches. Returns {name: probabilities (len(maps) + count, 11, n_classes)}."""
    x, (height, width), generator, curves = view.x[0], view.x.shape[1:3], np.random.default_rng(0), {}
    ties, *chance = [cv2.resize(generator.random((7, 7)), (width, height), interpolation=cv2.INTER_NEAREST)
                     for _ in range(count + 1)]
    heats = [cv2.resize(cam, (width, height), interpolation=cv2.INTER_CUBIC) for cam in maps] + chance
    orders = [np.lexsort((ties.ravel(), -heat.ravel())) for heat in heats]  # equally warm pixels leave in patches, too
    grey = view.network.prepare(np.full((8, 8, 3), 128, np.uint8))[0]
    blurred = cv2.GaussianBlur(x, (11, 11), 5).reshape(x.shape)
    for name, start, end in (("deletion", x, grey), ("insertion", blurred, x)):
        for order in orders:
            rank = np.argsort(order).reshape(height, width, 1)
            steps = np.stack([np.where(rank < gone, end, start) for gone in np.linspace(0, order.size, 11).round()])
            curves.setdefault(name, []).append(view.network.probabilities(view.network.predict(steps)).numpy())
    return {name: np.stack(values) for name, values in curves.items()}


def curve_tile(name, curves, height=220):
    """The first curve, a map's, over chance's, two sample standard deviations wide: (picture, title, verdict)."""
    figure, shares = Figure(figsize=(2.8, height / 100), dpi=100), np.linspace(0, 100, 11)
    axes = figure.add_axes((0.27, 48 / height, 0.67, 1 - 58 / height))
    mean, spread = curves[1:].mean(axis=0), 2 * curves[1:].std(axis=0, ddof=1)
    axes.fill_between(shares, np.maximum(mean - spread, 0), np.minimum(mean + spread, 1), color="0.85")
    axes.plot(shares, mean, "grey", shares, curves[0], "C3")
    top = 1.1 * np.minimum([mean + spread, curves[0]], 1).max() or 1
    axes.set(xlim=(0, 100), ylim=(0, top), xlabel=f"% of pixels, {name}", ylabel="probability")
    axes.yaxis.set_major_formatter("{x:.2g}")
    FigureCanvasAgg(figure).draw()
    areas = (curves[:, 1:] + curves[:, :-1]).mean(axis=1) / 2
    chance, width = areas[1:].mean(), 2 * areas[1:].std(ddof=1)
    gain = (areas[0] - chance) * (-1 if name == "deletion" else 1)  # of deletion a small area is good
    verdict = "better than" if gain > width else "worse than" if gain < -width else "like"
    title = f"{name}: area {areas[0]:.4g}\n{verdict} chance, {chance:.4g} ± {width:.2g}"
    return np.asarray(figure.canvas.buffer_rgba())[..., :3], title, verdict


def rank_correlation(first, second):
    """Spearman's, of two maps; equal values share their mean rank; NaN where one is constant."""
    ranks = [sum(np.searchsorted(np.sort(values, axis=None), values.ravel(), side) for side in ("left", "right"))
             for values in (first, second)]
    return np.corrcoef(*ranks)[0, 1]


def draw_trust(view):
    """Deletion and insertion against chance, and the same network untrained (Adebayo et al. 2018, arXiv 1810.03292)."""
    photo, layer, rows, arrays, network = utils.fit(view.pixels, 4), view.layer, [], {}, view.network
    if "control" not in network:
        keras.utils.set_random_seed((view.options.seed + 181003292) % 2**32)  # not one that built it
        network.control = keras.models.clone_model(network.model, clone_function=lambda each: each if isinstance(
            each, keras.layers.Normalization) else type(each).from_config(each.get_config()))
    controls = grad_cam(network.control, view.x, [layer], [*view.cams], view.options.method)[0][layer]
    trials = deletion_and_insertion(view, view.cams.values())
    for place, (index, cam) in enumerate(view.cams.items()):
        curves = {name: np.append(values[[place], :, index], values[len(view.cams):, :, index], axis=0)
                  for name, values in trials.items()}
        tiles = [curve_tile(name, values, max(photo.shape[0], 180)) for name, values in curves.items()]
        beats = " and ".join(name for name, tile in zip(curves, tiles) if tile[2] == "better than") or "neither"
        correlation = rank_correlation(cam, controls[place])
        rows.append([view.heat(photo, cam, f"{view.title(index)}\nbeats chance: {beats}"),
                     *((picture, title) for picture, title, _ in tiles),
                     view.heat(photo, controls[place], f"weights re-initialised\nrank correlation {correlation:.2f}")])
        arrays |= {f"{layer}/{index}": cam, f"{layer}/{index}/control": controls[place],
                   **{f"{layer}/{index}/{name}": values for name, values in curves.items()}}
    view.save("trust", rows, f"{layer} · red: warmest first; grey: random orders, ± two standard deviations", arrays)


def build(name, weights=None):
    """VGG16 or VGG19 (arXiv 1409.1556) with logits for output. weights: None, imagenet, or a file's path."""
    return getattr(keras.applications, name.upper())(weights=weights, classifier_activation=None)


def main(options):
    tf.config.run_functions_eagerly(len(options.images) == 1)  # to trace a network takes longer than to run it once
    networks = [utils.open_weights(options, name.upper(), functools.partial(build, name),
                                   [f"{name}_weights_tf_dim_ordering_tf_kernels.h5"], ["block?_conv?"])
                for name in (options.models[-1:] if options.saved or options.list_layers else options.models)]
    targets = [(figure, name) for figure in options.figures for name in (
        ["vgg"] if figure == "layers" and len(networks) > 1 else [network.name for network in networks])]
    for path, pixels, figures in utils.photographs(options, targets):
        views = {network.name: Evidence(options, network, path, pixels) for network in networks}
        for figure, name in figures:
            globals()[f"draw_{figure}"]([*views.values()] if figure == "layers" else views[name])
    return bool(options.skipped) + (len(options.skipped) == len(options.images))  # 1: some unreadable, 2: all


if __name__ == "__main__":
    sys.exit(utils.run(main, OPTIONS))
