"""The network of a run: its weights, and which layers, kernels and classes of it are drawn.

A script describes its own network by a ModelSpec; a saved network replaces it. Reading files is
in saved_models.py, drawing is not in here."""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import functools
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cnnvis.geometry import Geometry, layer_geometries
from cnnvis.graph import SLASH, get_operation, last_of_resolutions, named_layers
from cnnvis.logits import open_with_kind, probabilities
from cnnvis.runtime import abbreviate, keras, log, quiet
from cnnvis.saved_models import explain_error, import_code, is_loading_error, load_saved_model
from cnnvis.segmentation import PixelNetwork, is_segmentation, layers_down_and_up, pixel_network
from cnnvis.shell import write_stdout
from utils import (
    ClassNames,
    Selection,
    UserError,
    preprocess_input,
    read_classes,
    suggest,
)


@dataclass(frozen=True)
class ModelSpec:
    """How a script's own network is built and drawn."""

    label: str  # in titles
    build: Callable  # build(weights) -> Keras model with logits; None: untrained
    weight_files: tuple  # published names of its weights
    default_layers: tuple  # wildcards: what --layers all draws
    main_layer: str | None = None  # of figures of one layer; None: the last of default_layers
    size: tuple = (224, 224)
    preprocess: str = "caffe"
    load: Callable = lambda model, path: model.load_weights(path)
    known_classes: Path | None = None  # a text file of the classes that bundled weights know
    row_of: Callable | None = None  # row_of(layer): its row on the page of layers; None: a grid


@dataclass(frozen=True)
class Network:
    """A network, which of its layers and classes are drawn, and how it is fed."""

    model: Any  # flat Keras model with logits for output
    label: str  # in titles
    layers: list  # names, of figures of several layers
    main_layer: str  # of figures of one layer
    classes: ClassNames
    selection: Selection  # of classes
    kind: str  # how logits become probabilities, see logits.probabilities; or `segmentation`
    preprocess: str
    fitting: dict  # fit, interpolation and pad, see utils.preprocess_input
    geometries: dict = field(repr=False, default_factory=dict)  # {operation: Geometry or None}
    heading: str = ""  # in headings, where it differs from the label
    row_of: Callable | None = None
    pixel_network: PixelNetwork | None = None  # of a segmentation network

    @property
    def name(self) -> str:
        """Its name in file names and array keys."""
        return self.label.lower()

    def keyed(self, arrays: dict) -> dict:
        """Arrays to save, under the network's name."""
        return {f"{self.name}/{key}": array for key, array in arrays.items()}

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """The network's input of an image, float32 (1, H, W, channels)."""
        _, *size, channels = self.model.inputs[0].shape
        return preprocess_input(image, tuple(size), self.preprocess, channels, **self.fitting)

    def logits(self, x: np.ndarray) -> np.ndarray:
        """float32 (N, n_classes) of inputs (N, H, W, channels)."""
        return self.model(x, training=False).numpy()

    @property
    def unit(self) -> str:
        """What its output is called in titles: «p», or «number» of a regression."""
        return "number" if self.kind == "number" else "p"

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """float32 of the shape of logits; of a regression the number itself."""
        return probabilities(logits, self.kind)

    def activations(self, layer: str, x: np.ndarray) -> np.ndarray:
        """Feature maps of a layer, float32 (h, w, K), of one input; (1, 1, K) of a dense layer."""
        output = get_operation(self.model, layer).output
        values = keras.Model(self.model.inputs[0], output)(x, training=False)[0].numpy()
        return values.reshape((1, 1, -1)) if values.ndim == 1 else values

    def geometry(self, layer: str) -> Geometry | None:
        """Where the cells of a layer are; None where that is unknown, as for dense layers."""
        return self.geometries.get(get_operation(self.model, layer).name.replace(SLASH, "/"))

    def inner_cells(self, layer: str) -> np.ndarray:
        """The cells of a layer, bool (h, w), whose receptive fields stay inside the photograph.

        All cells where positions are unknown."""
        shape = get_operation(self.model, layer).output.shape
        size = shape[1:3] if len(shape) == 4 else (1, 1)
        geometry = self.geometry(layer)
        return geometry.inner_cells(*size) if geometry else np.ones(size, bool)


# --- opening ---


def open_network_for(options: argparse.Namespace, spec: ModelSpec, photos: Any) -> Network:
    """The Network that the options ask for: the script's own, or a saved one.

    photos: the PhotoSet of the run, whose sub-folders may name a saved network's classes.
    UserError: unknown weights, layers, kernels or classes."""
    photos.join_cluster(options)
    with quiet():
        keras.utils.set_random_seed(options.seed)  # the first operation starts the devices
    if options.weights.saved:
        return open_saved(options, spec, photos)
    has_names = options.layers != ["all"] or options.kernels.indices
    if has_names or options.list_layers:  # wrong names are reported before weights are fetched
        untrained = own_network(options, spec, spec.build(None))
        if options.list_layers:
            return untrained
    return own_network(options, spec, load_weights(options, spec))


def open_smallest(
    options: argparse.Namespace,
    photos: Any,
    without_top: ModelSpec,
    with_top: ModelSpec,
    classifier: tuple,
) -> Network:
    """The Network without its classifier, which is a smaller download, unless a figure, a layer or
    the weights need it. classifier: names of its layers, for wildcards."""
    needs_top = options.list_layers or any(figure.needs_classifier for figure in options.chosen)
    needs_top = needs_top or any(
        fnmatch.filter(classifier, word.lower()) for word in options.layers
    )
    if options.weights.path:
        file = published_file(
            options.weights.path, without_top.weight_files + with_top.weight_files
        )
        with contextlib.suppress(OSError), h5py.File(file) as weights:
            needs_top = needs_top or any(name in weights for name in classifier)
    return open_network_for(options, with_top if needs_top else without_top, photos)


def load_weights(options: argparse.Namespace, spec: ModelSpec) -> Any:
    """The script's own model with the weights that the options name."""
    word, path = options.weights.word, options.weights.path
    if word == "random":
        return spec.build(None)
    try:
        if word:
            return spec.build(word)
        model = spec.build(None)
        spec.load(model, published_file(path, spec.weight_files))
        return model
    except Exception as error:
        if not is_loading_error(error):
            raise
        home = os.environ.get("KERAS_HOME", "~/.keras")
        others = "bundled, random or a file" if spec.known_classes else "random or a file"
        hint = f"put {spec.weight_files[0]} into {home}/models, or give --weights {others}"
        if path:
            hint = f"give a file of {spec.label}'s weights, or a saved network such as mine.keras"
        what = f"{path or f'{word} weights'} into {spec.label}"
        raise UserError(f"cannot load {what}: {explain_error(error, path)} ({hint})") from error


def published_file(path: Path, names: tuple) -> Path:
    """The path itself; of a folder, its first file with a published name. UserError: none."""
    if not path.is_dir():
        return path
    files = [path / name for name in names if (path / name).exists()]
    if not files:
        raise UserError(f"the folder {path} does not hold {' or '.join(names)}")
    return files[0]


def own_network(options: argparse.Namespace, spec: ModelSpec, model: Any) -> Network:
    """The Network of the script's own model."""
    has_classifier = len(model.output.shape) == 2
    without = [figure.name for figure in options.chosen if figure.needs_classifier]
    if without and not has_classifier and not options.list_layers:
        lack = f"{options.weights.title} weights of {spec.label} have no classifier"
        raise UserError(f"{lack}, which {without[0]} needs: choose other --weights or --figures")
    classes = read_classes() if has_classifier else ClassNames([], [])
    network = select_parts(options, spec, model, spec.label, classes, "softmax")
    network = replace(network, row_of=spec.row_of)
    if options.weights.word != "bundled" or not spec.known_classes:
        return network
    lines = spec.known_classes.read_text(encoding="utf-8").splitlines()
    known = {int(line.split()[0]) for line in lines if line[:1].isdigit()}
    for index in set(network.selection.indices) - known:
        what = f"{classes.title(index)}: the known classes are in Image/{spec.known_classes.name}"
        raise UserError(f"bundled weights do not know {what}")
    return replace(network, heading=f"{spec.label}, {len(known)} classes")


def open_saved(options: argparse.Namespace, spec: ModelSpec, photos: Any) -> Network:
    """The Network that is read from a saved network's file."""
    path = options.weights.path
    if options.import_:
        import_code(options.import_)
    model = load_saved_model(path)
    is_open = None in model.inputs[0].shape[1:] if getattr(model, "inputs", None) else False
    size = options.size or spec.size
    try:
        how = {"pair": bool(options.labels), "region": options.region, "fit": options.fit}
        opened, kind = open_with_kind(model, size, **how)
        check_shapes(opened)
    except ValueError as error:
        raise UserError(f"cannot draw the network {path}: {error}") from error
    if is_open:
        chosen = "--size" if options.size else f"{spec.label}'s; --size H,W gives another"
        log(f"{path.name} accepts any image size: {size[0]},{size[1]} is used ({chosen})")
    elif options.size:
        fixed = opened.inputs[0].shape[1:3]
        log(f"--size is not used: {path.name} has the fixed input size {fixed}")
    if kind == "log":
        log(f"{path.name}: its softmax or sigmoid cannot be removed: the maps explain log p")
    if is_segmentation(opened):
        leave_out_figures(options)
    classes = name_classes(options, photos, opened)
    return select_parts(options, spec, opened, options.name or path.stem, classes, kind)


def name_classes(options: argparse.Namespace, photos: Any, model: Any) -> ClassNames:
    """The ClassNames of a saved network: by --labels, or by the sub-folders of the photographs."""
    labels, count = options.labels, model.outputs[0].shape[-1]
    by_photos = not labels and count != 1000 and not is_segmentation(model)
    folders = []
    if by_photos or os.path.isdir(labels):
        folders = photos.class_folders(count, labels)
    if len(folders) != count:
        return read_classes(labels, count)
    if by_photos:
        named = abbreviate(folders)
        log(f"its classes are the sub-folders in sorted order: {named}; --labels names others")
    return ClassNames([""] * count, folders)


def leave_out_figures(options: argparse.Namespace) -> None:
    """Leave out figures that a segmentation network does not have. UserError: no other is left."""
    refused = [figure for figure in options.chosen if figure.lacks_pixels]
    options.chosen = [figure for figure in options.chosen if not figure.lacks_pixels]
    lines = [f"{figure.name} is left out: {figure.lacks_pixels}" for figure in refused]
    if refused and not options.chosen:
        what = f"{options.weights.title} is a segmentation network"
        raise UserError(f"{what}; {'; '.join(lines)}")
    for line in lines:
        log(line)


def check_shapes(model: Any) -> None:
    """ValueError where an operation returns another shape than it declares, as RandomCrop may."""
    operations = [each for each in model.operations if hasattr(each.output, "shape")]
    zeros = np.zeros((1, *model.inputs[0].shape[1:]), np.float32)
    part = keras.Model(model.inputs[0], [operation.output for operation in operations])
    for operation, value in zip(operations, part(zeros, training=False), strict=True):
        declared, received = tuple(operation.output.shape[1:]), tuple(value.shape[1:])
        sides = itertools.zip_longest(declared, received)
        if not all(side in (None, count) for side, count in sides):  # None: not declared
            what = f"{operation.name} declares maps of {declared} and returns {received}"
            raise ValueError(f"{what}, as RandomCrop does of pictures that are larger")


# --- layers, kernels, preprocessing ---


def select_parts(
    options: argparse.Namespace,
    spec: ModelSpec,
    model: Any,
    label: str,
    classes: ClassNames,
    kind: str,
) -> Network:
    """A Network with the layers, kernels and classes that the options choose. UserError: unknown
    ones."""
    geometries = layer_geometries(model)
    layers, main_layer = choose_layers(options, spec, model, label)
    check_kernels(options, model, layers, main_layer)
    selection = classes.select(options.classes) if len(classes) else Selection()
    pixels = pixel_network(model, functools.partial(probabilities, kind=kind))
    network = Network(
        model=model,
        label=label,
        layers=layers,
        main_layer=main_layer,
        classes=classes,
        selection=selection,
        kind="segmentation" if pixels else kind,
        preprocess=choose_preprocessing(options, spec, model),
        fitting={"fit": options.fit, "interpolation": options.resize, "pad": options.pad},
        geometries=geometries,
        pixel_network=pixels,
    )
    for name in dict.fromkeys([*layers, main_layer]):
        has_map = len(get_operation(model, name).output.shape) == 4
        if has_map and options.place == "field" and not network.geometry(name):
            log(f"{name}: the positions of its cells are unknown, its maps are stretched")
    return network


def choose_layers(
    options: argparse.Namespace, spec: ModelSpec, model: Any, label: str
) -> tuple[list[str], str]:
    """Names of the layers drawn, and the one of figures of one layer. UserError: unknown ones."""
    known = named_layers(model, units=options.draws_units)
    with_maps = {name: each for name, each in known.items() if len(each.output.shape) == 4}
    words, main_layer = options.layers, None
    if words == ["all"] and is_segmentation(model):
        words, main_layer = layers_down_and_up(model, with_maps)
    elif words == ["all"] and options.weights.saved:
        words = last_of_resolutions(with_maps)
    elif words == ["all"]:
        words, main_layer = spec.default_layers, spec.main_layer
    chosen = []
    for word in words:
        matches = [name for name in known if fnmatch.fnmatchcase(name.lower(), word.lower())]
        if not matches:
            hint = suggest(word, list(known)) or ": see --list-layers"
            raise UserError(f"{label} has no layer {word}{hint}")
        chosen += matches
    if not chosen:
        raise UserError(f"{label} has no layer with weights whose output is a map, (h, w, K)")
    return list(dict.fromkeys(chosen)), main_layer or chosen[-1]


def check_kernels(
    options: argparse.Namespace, model: Any, layers: list[str], main_layer: str
) -> None:
    """UserError for kernels that a layer drawn does not have."""
    layer_of = {"main": main_layer, "last": layers[-1]}
    for name in {layer_of[figure.kernels_of] for figure in options.chosen if figure.kernels_of}:
        count = get_operation(model, name).output.shape[-1]
        unknown = [kernel for kernel in options.kernels.indices if kernel >= count]
        if unknown:
            raise UserError(f"{name} has kernels 0 to {count - 1}, not {unknown[0]}")


def choose_preprocessing(options: argparse.Namespace, spec: ModelSpec, model: Any) -> str:
    """How pixels are prepared: as the options say; by default as the script's own network wants
    it, and not at all for a saved network that begins with preprocessing of its own."""
    asked = options.preprocess
    if not options.weights.saved:
        return spec.preprocess if asked == "auto" else asked
    file = options.weights.path.name
    own = own_preprocessing(model)
    if own and asked == "auto":
        log(f"{file} begins with preprocessing of its own, {own}: --preprocess none")
        return "none"
    if asked == "auto":
        assumed = f"pixels are prepared as for {spec.label}, --preprocess {spec.preprocess}"
        log(f"{file} has no preprocessing of its own: {assumed}")
        return spec.preprocess
    if own and asked != "none":
        log(f"{file} begins with {own}, and --preprocess {asked} comes before it: give none?")
    return asked


def own_preprocessing(model: Any) -> str:
    """The name of an operation before the first convolution that changes values, else empty."""
    for operation in model.operations[1:]:
        kind = type(operation).__name__
        if "Conv" in kind:
            return ""
        if not isinstance(operation, keras.layers.Layer) or kind in ("Rescaling", "Normalization"):
            return operation.name
    return ""


def print_layers(options: argparse.Namespace, network: Network) -> int:
    """Print the names that --layers accepts on stdout; return the exit code."""
    names = named_layers(network.model, units=options.draws_units)
    text = "".join(f"{name}\n" for name in names)
    reason = write_stdout(text.encode("utf-8", "backslashreplace"))
    if reason:
        log(f"the names of layers cannot be written to stdout ({reason})")
    return 0
