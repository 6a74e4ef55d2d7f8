"""What the scripts share: the command line, photographs, classes, networks from files, overlays and pages.

For a notebook: `read_photo`, `network_input`, `open_network`, `overlay`. Importing this module costs no TensorFlow."""
import argparse
import contextlib
import difflib
import fnmatch
import functools
import glob
import hashlib
import io
import itertools
import json
import logging
import os
import re
import sys
import textwrap
import warnings
from pathlib import Path

import cv2
import h5py
import numpy as np
from PIL import Image, ImageOps

HERE = Path(__file__).resolve().parent
RESULT = re.compile(r"_.+_\w+\.(jpg|png)$")  # what our own pictures are called: STEM_MODEL_FIGURE
PHOTO_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")  # none of Pillow's that start other programs
PHOTO_ENDINGS = ".jpg .jpeg .jpe .jfif .png .gif .bmp .webp .tif .tiff .heic .heif .avif .dng .cr2 .nef .arw".split()
COLORMAPS = {key[9:].lower(): value for key, value in vars(cv2).items() if key.startswith("COLORMAP_")}
MESSAGES = {  # what Keras, HDF5, NumPy and TensorFlow say of a file, in other words
    r"variable\.shape=\(\d+, 1000\), Received: value\.shape=\(\d+, (\d+)\)": r"it is for \1 classes, not for 1000",
    r"variable\.shape=(\(.*?\)), Received: value\.shape=(\(.*?\))": r"an array \2 stands where \1 belongs",
    "objects could not be loaded|ayer count mismatch": "its layers are others, or it lacks the classifier",
    "errno = 2": "there is no such file", "DATA_LOSS": "it is no checkpoint, or not a whole one",
    "ambda": "it holds a Lambda layer, whose code is not run: build it of layers of Keras",
    r"(?:Could not locate class|Unknown layer:) '([\w>]+)'": r"\1 is no class of Keras, and no code of a file is run",
    "allow_pickle": "it holds no arrays, or pickled ones", r"\bzip\b": "it is no .keras file, or not a whole one"}
SLASH = ".."  # stands for the / of `outer/inner`, which Keras does not allow in the name of a layer
PAGE, GAP, MARGIN = 1200, 10, 14  # pixels: width of a page, between tiles, around it all

os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever keras.json says: the methods differentiate TensorFlow
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


class UserError(Exception):
    """Something expected to go wrong; its text is the one line that the person at the shell reads."""


@functools.cache
def tell(text):
    """Say something on stderr, on one line of bearable length, once."""
    print(textwrap.shorten(text, 600, placeholder=" …"), file=sys.stderr)


def run(step, *arguments):
    """Call a step of a program; end it with one line and code 2 for what was expected to go wrong, 130 for Ctrl-C."""
    logging.disable(logging.WARNING)  # what libraries have to say to programmers
    warnings.simplefilter("ignore")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is the list of files written
            return step(*arguments)
    except (UserError, OSError) as error:  # OSError: a file or folder that cannot be read or written
        tell(f"error: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        tell("stopped")
        sys.exit(130)


@contextlib.contextmanager
def quiet():
    """Keep from the terminal what TensorFlow's C++ says on stderr while it is imported and started."""
    with open(os.devnull, "w") as nowhere, os.fdopen(os.dup(2), "w") as terminal:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal.fileno(), 2)


def suggest(word, known):
    """A clause that names what is nearest to a mistyped word, or what there is."""
    found = [name for name in known if word.lower() in name.lower()][-3:]
    found = found or difflib.get_close_matches(word, known, 3, 0.5)
    return f": did you mean {', '.join(found)}?" if found else f": one of {', '.join(known)}" * (0 < len(known) < 30)


def reader(*known, many=False):
    """What reads an option: one word, or many with commas in between; of those known, `all` for every one, or any."""
    def read(text):
        names = {name.lower(): name for name in known}
        found = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
        if known and many and "all" in found:
            return list(known)
        wrong = [word for word in found if known and word.lower() not in names]
        if wrong or not found or len(found) > 1 and not many:
            raise argparse.ArgumentTypeError(f"unknown {wrong[0]!r}{suggest(wrong[0], known)}" if wrong else
                                             f"it takes {'names' if many else 'one name'}, not {text!r}")
        found = [names.get(word.lower(), word) for word in found]
        return found if many else found[0]
    return read


def kernel_numbers(text):
    """Kernel numbers and ranges of them as a list; the N of `topN`."""
    if re.fullmatch(r"top[1-9]\d{0,3}", text):
        return int(text[3:])
    ends = [re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", word.strip()) for word in text.split(",")]
    if not all(ends):
        raise argparse.ArgumentTypeError(f"{text!r}: numbers from 0, ranges like 0-8, or top9 alone")
    ends = [sorted((int(end[1]), int(end[2] or end[1]))) for end in ends]
    return list(dict.fromkeys(number for first, last in ends for number in range(first, last + 1)))


READERS = {
    "MODELS": reader("vgg16", "vgg19", many=True), "LAYERS": reader(many=True), "CLASSES": reader(many=True),
    "KERNELS": kernel_numbers, "METHOD": reader("gradcam", "gradcam++", "hirescam", "layercam"), "OUTPUT": Path,
    "MODE": reader("max", "all"), "RULES": reader("deconvnet", "guided", "gradient", many=True), "LABELS": str,
    "PATCH": int, "STRIDE": int, "COMPARED": int, "SEED": int, "WEIGHTS": str, "COLORMAP": reader(*COLORMAPS),
    "PREPROCESS": reader("caffe", "tf", "torch", "unit", "none"), "FORMAT": reader("jpg", "png", "pdf")}


def read_options(script):
    """The constants of a script, its globals(), overridden by its command line, as a namespace. --help shows their
    comments, and what the figures say of themselves. UserError for all that is wrong without asking TensorFlow."""
    def fail(message):
        raise UserError(f"{message} (see --help)")

    source = Path(script["__file__"]).read_text(encoding="utf-8")
    figures = dict(re.findall(r'^def draw_(\w+)\(.*\n    """(.*?)"*$', source, re.MULTILINE))
    parser = argparse.ArgumentParser(description=script["__doc__"], allow_abbrev=False,
                                     formatter_class=argparse.RawTextHelpFormatter,
                                     epilog="\n".join(f"{name:12} {shows}" for name, shows in figures.items()))
    parser.error, parser.print_help = fail, functools.partial(parser.print_help, sys.__stdout__)
    parser.add_argument("images", nargs="*", help="photographs, folders of them, or patterns")
    readers = READERS | {"FIGURES": reader(*figures, many=True)}
    comments = dict(re.findall(r"^([A-Z]+) = .*?  # (.*)$", source, re.MULTILINE))
    for name in [name for name in script if name in readers]:
        value = ",".join(map(str, np.ravel(script[name])))  # of a list, a range, a single word or number
        parser.add_argument(f"--{name.lower()}", type=readers[name], default=value, metavar=name,
                            help=f"{comments.get(name, '')} (default: {value or 'none'})".replace("%", "%%"))
    parser.add_argument("--arrays", action="store_true", default=script["ARRAYS"], help="save the numbers, as .npz")
    parser.add_argument("--skip-existing", action="store_true", help="leave out what was drawn with the same settings")
    parser.add_argument("--list-layers", action="store_true", help="print the names of layers, and stop")
    options = parser.parse_intermixed_args()
    keywords = {"imagenet": None, "random": None} | ({"tiny": script["TINY"]} if "TINY" in script else {})
    options.script, options.path = Path(script["__file__"]).stem, keywords.get(options.weights, Path(options.weights))
    if options.path and not (options.weights and options.path.exists() or Path(f"{options.path}.index").exists()):
        raise UserError(f"no weights {options.weights!r}: give a file, a folder, or {' or '.join(keywords)}")
    options.saved = bool(options.path) and is_saved_network(options.path)
    if options.labels and not (options.saved and os.path.exists(options.labels)):
        raise UserError(f"--labels {options.labels}: give a text file or a folder, and a saved network by --weights")
    if not options.saved:
        options.classes = [find_class(word, read_classes()) for word in options.classes]
    find_photos(options, options.images or [HERE / image for image in np.ravel(script["IMAGES"])])
    with contextlib.suppress(OSError):
        options.output.mkdir(parents=True, exist_ok=True)
    if not (options.output.is_dir() and os.access(options.output, os.W_OK)):
        raise UserError(f"cannot write into the folder {options.output}: choose another with --output")
    return options


def find_photos(options, given):
    """Find the photographs among files, patterns and folders (walked, in order, without our own results).
    options.images: their paths; .stems: what results of each are called, no two the same; .group: of several."""
    found, taken, options.stems, options.skipped = [], set(), {}, set()
    for word in map(str, given):
        if re.match(r"[a-zA-Z]+://|$", word):
            raise UserError(f"{word or 'an empty word'} is no file: give one; what an address names, fetch first")
        for path in map(Path, [word] if os.path.exists(word) else sorted(glob.glob(word, recursive=True)) or [word]):
            found += [path] if not path.is_dir() else [
                inside for inside in sorted(path.rglob("*")) if inside.suffix.lower() in PHOTO_ENDINGS
                and "/." not in f"/{inside.relative_to(path).as_posix()}" and inside.is_file()
                and not (RESULT.search(inside.name) and b'"photographs": [' in inside.read_bytes())]
    if not found:
        raise UserError(f"no photographs in {', '.join(map(str, given))} (endings: {' '.join(PHOTO_ENDINGS)})")
    options.images = list(dict.fromkeys(found))
    for path in options.images:
        stem = path.stem.lower()
        if stem in taken:
            stem = f"{path.resolve().parent.name}_{path.name.replace('.', '_')}".lower()
        while stem in taken:
            stem += "_"
        options.stems[path] = stem
        taken.add(stem)
    options.group = options.stems[found[0]] + f"_and_{len(options.images) - 1}_more" * (len(options.images) > 1)
    if len(given) == 1 and os.path.isdir(given[0]):
        options.group = Path(given[0]).resolve().name.lower()
    if len(options.images) == 1:
        read_photo(found[0])  # a broken one is told at once


def read_photo(path):
    """The pixels of a photograph, uint8 (H, W, 3), RGB, upright, transparency laid over white, scaled to 8 bits.
    UserError for anything that cannot be read. Pillow reads: unlike OpenCV it refuses a file that ends early."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # more than 89 million pixels
            with Image.open(path, formats=PHOTO_FORMATS) as image:
                image = ImageOps.exif_transpose(image)
                if image.mode[0] in "IF":  # 16 bits, or numbers from 0 to 1
                    pixels = np.asarray(image, np.float32) * (255 if image.mode == "F" else 1 / 257)
                    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                if image.has_transparency_data:
                    image = image.convert("RGBA")
                    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
                return np.asarray(image.convert("RGB"))
    except Exception as error:  # a decoder fails in many ways on a broken file
        raise UserError(f"cannot read the photograph {path} ({', '.join(PHOTO_FORMATS)}): {error}") from error


def resize(image, width, height):
    """cv2.resize: area averages where it shrinks, cubic where it grows."""
    shrinks = width < image.shape[1] or height < image.shape[0]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def network_input(pixels, size=(224, 224), preprocess="caffe", channels=3):
    """What a network is fed: float32 (1, H, W, channels). The whole photograph is squeezed to size, nothing is cropped.
    preprocess: caffe (BGR less the ImageNet mean), tf (-1 to 1), torch (ImageNet mean and deviation), as Keras calls
    them; unit (0 to 1), none (0 to 255). channels: 3, or 1 for a grey photograph."""
    import keras
    pixels = resize(pixels, size[1], size[0])
    if channels == 1:
        pixels = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    x = pixels[None].astype(np.float32) / (255 if preprocess == "unit" else 1)
    if preprocess in ("caffe", "tf", "torch"):
        x = keras.applications.imagenet_utils.preprocess_input(x, data_format="channels_last", mode=preprocess)
    return x if channels == 3 else x.mean(axis=-1, keepdims=True)


def readable(options, paths):
    """(path, pixels) of the photographs that can be read; the others are named once, and kept in options.skipped."""
    for path in paths:
        try:
            yield path, read_photo(path)
        except UserError as error:
            tell(f"skipped: {error}")
            options.skipped.add(path)


def photographs(options, targets):
    """Each photograph of which targets (figure, network name) are left to be drawn: (path, pixels, targets left)."""
    drawn = there = 0
    for path in options.images if targets else ():
        left = [target for target in targets if not is_drawn(options, *target, options.stems[path], [path])]
        there += not left
        for _, pixels in readable(options, [path] if left else []):
            yield path, pixels, left
            drawn += 1
    if there or targets and len(options.images) > 1:
        tell(f"photographs: {drawn} drawn, {there} there already, {len(options.skipped)} unreadable")


def read_classes(path="", count=1000):
    """(WordNet id, name) of each class: lines of a file, sorted sub-folders of a folder, ImageNet's, or numbers."""
    if not path and count != 1000:
        return [("", f"class {index}") for index in range(count)]
    if not path:
        lines = (HERE / "Image" / "imagenet_classes.csv").read_text(encoding="utf-8").splitlines()[1:]
        return [(synset, name.replace("_", " ")) for _, synset, name in (line.split(",") for line in lines)]
    names = sorted(folder.name for folder in Path(path).glob("[!.]*/")) if os.path.isdir(path) else \
        Path(path).read_text(encoding="utf-8-sig", errors="replace").strip().splitlines()
    if len(names) != count:
        raise UserError(f"{path} names {len(names)} classes, the network has {count}")
    return [("", name.strip()) for name in names]


def find_class(word, classes):
    """The index of a class given as an index, a WordNet id or a name; `top4` stays as it is."""
    key = word.lower().replace("_", " ")
    if re.fullmatch(r"top[1-9]\d?", key):
        return key
    found = [index for index, names in enumerate(classes) if key in [name.lower().replace("_", " ") for name in names]]
    if key.isdecimal() and int(key) < len(classes):
        found = [int(key)]  # whatever classes are called
    if len(found) > 1:
        raise UserError(f"{len(found)} classes are called {word!r}: give an index, {' or '.join(map(str, found))}")
    if not found:
        names = [f"0 … {len(classes) - 1}", "top1 … top99"] if re.fullmatch(r"(top|-)?\d+", key) else \
            [name.lower() for _, name in classes]
        raise UserError(f"unknown class {word!r}{suggest(key, names)}")
    return found[0]


def explain(error):
    """What a library said of a file, on one line, in plain words where they are known."""
    text = " ".join(str(error).split())
    found = [match.expand(words) for pattern, words in MESSAGES.items() for match in re.finditer(pattern, text)]
    return (found or [text])[0][:250]


def is_saved_network(path):
    """Whether a file is a whole Keras network, .keras or .h5, and not weights alone."""
    with contextlib.suppress(OSError), h5py.File(path, "r") as file:
        return "model_config" in file.attrs
    return path.suffix == ".keras"


def open_weights(options, label, build, files, shown, layer=None, size=(224, 224), load=None):
    """The network that the options ask for, or UserError. build(weights): the script's own, untrained (None) or with
    `imagenet`; load(model, path), if not by Keras; files: published names; shown: wildcards of `--layers all`, layer:
    what figures of one layer draw then. Returns a namespace: label, in titles, and name, in files; model, flat, with
    logits; layers, layer; titles of classes; functions prepare(pixels), predict(x), probabilities(logits)."""
    import keras
    with quiet():
        keras.utils.set_random_seed(options.seed % 2**32)  # the first operation: it starts the devices
    path, sigmoid = options.path, False
    if path and path.is_dir():
        path = next((path / name for name in files if (path / name).exists()), path / files[0])
    if options.saved:
        model, sigmoid = load_network(options, size)
        label, shown, layer = path.stem, None, None
    elif path or options.weights == "random" or options.list_layers or [*options.layers, options.kernels] != ["all", 9]:
        model = build(None)
        choose_layers(options, model, shown, layer)  # names that may be wrong are told before weights are fetched
    try:
        if options.weights == "imagenet":
            model = build("imagenet")
        elif path and not options.saved:
            (load or keras.Model.load_weights)(model, path)
    except Exception as error:  # no connection, a wrong hash, a broken file: Keras and HDF5 fail in many ways
        hint = f"give {label}'s weights, or a whole network as model.save('mine.keras') writes it" if path else \
            f"put {files[0]} into {os.environ.get('KERAS_HOME', '~/.keras')}/models, or give --weights random or a file"
        raise UserError(f"cannot load {path or 'published weights'} into {label}: {explain(error)} ({hint})") from error
    layers, layer = choose_layers(options, model, shown, layer)
    classes = read_classes(options.labels, model.output.shape[-1]) if len(model.output.shape) == 2 else []
    options.classes = [find_class(str(word), classes) for word in options.classes] if classes else []
    (_, *size, channels), preprocess = model.inputs[0].shape, options.preprocess
    return argparse.Namespace(
        label=label, name=label.lower(), model=model, layers=layers, layer=layer,
        prepare=functools.partial(network_input, size=size, preprocess=preprocess, channels=channels),
        titles=[name if name == f"class {index}" else f"{name} ({', '.join(filter(None, (str(index), synset)))})"
                for index, (synset, name) in enumerate(classes)],
        predict=functools.partial(model, training=False),
        probabilities=keras.ops.sigmoid if sigmoid else keras.ops.softmax)


def load_network(options, size):
    """A saved network as `open_network` makes it, and whether each of its classes had a sigmoid of its own."""
    import keras
    try:
        model = keras.saving.load_model(options.path, compile=False)  # in its safe mode: no code of the file is run
        opened = open_network(model, size)
    except Exception as error:
        raise UserError(f"cannot open the network {options.path}: {explain(error)}") from error
    own = [op.name for op in itertools.takewhile(lambda op: "Conv" not in type(op).__name__, opened.operations[1:])
           if not isinstance(op, keras.layers.Layer) or type(op).__name__ in ("Rescaling", "Normalization")]
    if own and options.preprocess != "none":
        tell(f"{options.path} begins with preprocessing of its own, {own[0]}, after --preprocess "
             f"{options.preprocess}: if that is once too often, give --preprocess none")
    return opened, model.outputs[0].shape[-1] > 1 and ending(model)[1] == "sigmoid"


def open_network(model, size=None):
    """A flat functional copy of a Keras classifier with logits for output, which the methods of the scripts take.
    model: functional or Sequential, one image in, one vector of class scores out. Of two layers of one name in networks
    inside it the second is called `outer/inner`. A softmax or sigmoid at the end is taken off; one unit with logit z
    becomes two classes, -z/2 and z/2. size: (H, W), where the input is open. Raises ValueError for anything else."""
    import keras
    shapes = [tensor.shape for tensor in (*getattr(model, "inputs", ()), *getattr(model, "outputs", ()))]
    if [*map(len, shapes)] != [4, 2] or shapes[0][-1] not in (1, 3):
        raise ValueError(f"no functional or Sequential network of one image and one vector of class scores: {shapes}")
    image, copies = keras.Input([side or given for side, given in zip(shapes[0][1:], (*(size or (0, 0)), 0))]), {}
    scores = flatten_into(model, image, copies, ending(model)[0])
    for layer, twin in copies.values():
        if hasattr(layer, "weights"):
            twin.set_weights(layer.get_weights())
        if isinstance(twin, keras.layers.Normalization):
            twin.finalize_state()  # it works with a copy of its weights
    if scores.shape[-1] == 1:
        scores = keras.layers.Dense(2, use_bias=False, name=f"two{SLASH}classes", trainable=False,
                                    kernel_initializer=keras.initializers.Constant([[-0.5, 0.5]]))(scores)
    return keras.Model(image, scores, name=model.name)


def flatten_into(network, tensor, copies, end):
    """Call copies of a network's operations, and of those of networks inside it, on a tensor: what the last one gives.
    copies: {name: (operation, its copy)}, to be filled. end: the operation whose softmax or sigmoid is left out."""
    import keras

    def call(layer, *args, **kwargs):
        nonlocal tensor
        if isinstance(layer, keras.Model):
            inputs = [t for t in keras.tree.flatten((args, kwargs)) if isinstance(t, keras.KerasTensor)]
            tensor = flatten_into(layer, inputs[0], copies, end)
        elif layer is end and not hasattr(layer, "activation"):
            tensor = keras.tree.flatten((args, kwargs))[0]
        else:
            config = layer.get_config() | ({"dtype": "float32"} if isinstance(layer, keras.Layer) else {})
            twin = type(layer).from_config(config | ({"activation": "linear"} if "activation" in config else {}))
            if "activation" in config and layer is not end:
                twin.activation = layer.activation  # also one that Keras could not look up by its name
            twin.name = re.sub(r"[^A-Za-z0-9_.-]", "_", layer.name)  # what a trace allows
            while twin.name in copies:
                twin.name = f"{network.name}{SLASH}{twin.name}"
            copies[twin.name] = layer, twin
            tensor = twin(*args, **kwargs)
        return tensor

    flat = keras.Model(network.inputs, network.outputs)  # also of a Sequential
    keras.models.clone_model(flat, [tensor], clone_function=lambda layer: layer, call_function=call)
    return tensor


def ending(model):
    """The operation with the softmax or sigmoid at a network's end, and which of them it is; (None, "") without."""
    import keras
    for operation in reversed(model.layers if isinstance(model, keras.Sequential) else model.operations):
        if isinstance(operation, keras.Model):
            return ending(operation)
        function = getattr(operation, "activation", operation)
        name = getattr(function, "__name__", type(function).__name__).lower()
        if found := re.search("softmax|sigmoid", name):
            return operation, found[0]
        if name not in ("linear", "identity", "reshape", "flatten", "dropout") or getattr(operation, "weights", ()):
            break
    return None, ""


def relu_ceiling(operation):
    """Where a ReLU, alone or as a layer's activation, stops growing: infinity, or 6 of ReLU6; None: it is no ReLU."""
    function = getattr(operation, "activation", operation)
    name = getattr(function, "__name__", type(function).__name__).lower()
    if name not in ("relu", "relu6") or getattr(function, "negative_slope", 0) or getattr(function, "threshold", 0):
        return None
    return 6.0 if name == "relu6" else getattr(function, "max_value", None) or np.inf


def named_layers(model, units=False):
    """{name: operation}, from the first convolution on, of those that give a map, (h, w, K); with units dense ones."""
    operations = itertools.dropwhile(lambda each: not re.search("Conv|Dense", type(each).__name__), model.operations)
    shapes = {each: getattr(each.output, "shape", ()) for each in operations}  # none of several outputs
    return {each.name.replace(SLASH, "/"): each for each, shape in shapes.items() if len(shape) == 4 and
            shape[1:3] != (1, 1) or units and len(shape) == 2 and hasattr(each, "kernel")}


def get_layer(model, name):
    """A layer or other operation by the name that people give it. ValueError where there is none."""
    for operation in getattr(model, "operations", model.layers):  # a Sequential has none
        if operation.name == name.replace("/", SLASH):
            return operation
    raise ValueError(f"{model.name} has no layer {name!r}")


def choose_layers(options, model, shown, layer):
    """Which layers are drawn, and which one by figures of one layer: (names, name). UserError for unknown ones. Where
    shown is None, `all` is the last layer of every resolution that is no pooling, dropout, padding or preprocessing."""
    known, every = named_layers(model, units="mode" in options), options.layers == ["all"]  # DeconvNet has a mode
    if options.list_layers:
        print(*known, sep="\n", file=sys.__stdout__)
        sys.exit(0)
    last, chosen = {layer.output.shape[1:3]: name for name, layer in named_layers(model).items()
                    if not re.search("Pool|Dropout|Padding|Cropping", type(layer).__name__)}, []
    for word in (shown or [*last.values()] or ["with a feature map"]) if every else options.layers:
        chosen += [name for name in known if fnmatch.fnmatchcase(name.lower(), word.lower())] or [None]
        if chosen[-1] is None:
            raise UserError(f"{model.name} has no layer {word}{suggest(word, known) or ': see --list-layers'}")
    layer = layer if every and layer else chosen[-1]
    if not isinstance(options.kernels, int) and max(options.kernels) >= known[layer].output.shape[-1]:
        raise UserError(f"{layer} has kernels 0 to {known[layer].output.shape[-1] - 1}, not {max(options.kernels)}")
    return list(dict.fromkeys(chosen)), layer


def colorize(values, colormap):
    """Numbers from 0 to 1, (h, w), as colours of an OpenCV map by its name: uint8 (h, w, 3), RGB."""
    return cv2.applyColorMap(np.uint8(np.clip(values, 0, 1) * 255 + 0.5), COLORMAPS[colormap])[..., ::-1]


def heat_map(cam, height, width, scale=None):
    """A signed map after Grad-CAM's last ReLU (equation 2), enlarged; 1 is scale, its maximum by default, or all 0."""
    cam = np.maximum(np.asarray(cam, np.float32), 0)
    return np.clip(cv2.resize(cam / (scale or cam.max() or 1), (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)


def overlay(photo, cam, colormap="jet", alpha=0.5, scale=None):
    """A signed map of any size over a photograph, in colours (see `heat_map`): uint8 (H, W, 3), RGB."""
    colours = colorize(heat_map(cam, *photo.shape[:2], scale), colormap)
    return cv2.addWeighted(np.ascontiguousarray(colours), alpha, photo, 1 - alpha, 0)


def signed_grey(values, like, preprocess="none"):
    """A projection or gradient (h, w, channels) as a picture, uint8, of the size of another: zero is grey, signs stay,
    the 99th percentile of the absolute values is white. preprocess: caffe has channels in the order BGR."""
    height, width = like.shape[:2]
    values = resize(np.asarray(values, np.float32), width, height).reshape(height, width, -1)  # scaled when shrunk
    scale = np.percentile(np.abs(values[values != 0]), 99) if values.any() else 1
    picture = np.repeat(np.uint8(np.clip(128.5 + 127 * values / scale, 1, 255)), 3 // values.shape[-1], axis=-1)
    return picture[..., ::-1] if preprocess == "caffe" else picture


def fit(image, columns):
    """A picture at its own proportions, as large as a tile on a page of so many columns."""
    height, width = image.shape[:2]
    scale = min(580, (PAGE - 2 * MARGIN + GAP) // columns - GAP) / max(width, height / 1.2)
    return resize(image, max(1, round(width * scale)), max(1, round(height * scale)))


def lay_out(rows, heading, note, bars):
    """A page as a matplotlib figure. rows: lists of (picture, title); bars: (colour map, what its end means)."""
    from matplotlib.figure import Figure
    widths = [max([100, *(row[column][0].shape[1] for row in rows if column < len(row))])
              for column in range(max(map(len, rows)))]
    texts, images, width, y = [], [], max(2 * MARGIN - GAP + sum(widths) + GAP * len(widths), 700), MARGIN

    def write(x, y, text, wide, size=8.5, weight="normal"):
        text = text.encode("utf-8", "replace").decode()  # a file name may be no text at all
        lines = [line for part in text.split("\n") for line in textwrap.wrap(part, int(wide / size / 0.84))]
        texts.append((x, y, "\n".join(lines), size, weight))
        return y + round(1.85 * size * len(lines))

    for place, (colormap, end) in enumerate(bars, 1):
        x = width - MARGIN - 180 * place + 20
        images.append((x, y, np.repeat(colorize(np.linspace(0, 1, 160)[None], colormap), 12, axis=0)))
        write(x, y + 12, f"0 … {end}", 160)
    y = write(MARGIN, y, heading, width - 2 * MARGIN - 180 * len(bars), 11, "bold")
    y = write(MARGIN, y, note, width - 2 * MARGIN - 180 * len(bars)) + GAP
    for row in rows:
        xs = [MARGIN + sum(widths[:column]) + GAP * column for column in range(len(row))]
        below = max(write(x, y, title, wide) for x, (_, title), wide in zip(xs, row, widths))
        images += [(x, below, picture) for x, (picture, _) in zip(xs, row)]
        y = below + max(picture.shape[0] for picture, _ in row) + GAP
    height = y + MARGIN - GAP
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    for x, y, picture in images:
        figure.figimage(picture, x, height - y - picture.shape[0])
    for x, y, text, size, weight in texts:
        figure.text(x / width, 1 - y / height, text, size=size, weight=weight, family="monospace", va="top",
                    linespacing=1.27, parse_math=False)
    return figure


class View:
    """One photograph before one network: what figures are drawn from, and how they are saved."""

    def __init__(self, options, network, path, pixels):
        self.options, self.network, self.path, self.pixels, self.layer = options, network, path, pixels, network.layer
        self.x, self.logits = network.prepare(pixels), None

    def keep(self, logits):
        """Keep logits, float32 (n_classes,), as self.logits, the indices of the classes asked for as self.classes."""
        if not np.isfinite(logits).all():
            raise UserError(f"{self.network.label} answers with numbers that are not finite: are its weights whole?")
        if self.network.probabilities(logits).numpy().max() > 0.999999:
            tell(f"{self.network.label} has no doubt (p > 0.999999): is --preprocess {self.options.preprocess} right?")
        self.logits, ranked = logits, np.argsort(-logits, kind="stable").tolist()
        asked = [[word] if isinstance(word, int) else ranked[:int(word[3:])] for word in self.options.classes]
        self.classes = list(dict.fromkeys(sum(asked, [])))

    def save(self, figure, rows, note, arrays, bars=None, photos=None, label=None):
        """Write a page. photos: paths, of a page over several; label: of one over networks, whose names arrays bear."""
        options, whose = self.options, label or self.network.label
        method = f" · {options.method}" if "method" in options and figure != "kernels" else ""
        note, stem = (note, options.group) if photos else (f"{self.path.name} · {note}", options.stems[self.path])
        heading = f"{whose} · {figure.replace('_', ' ')}{method} · weights: {Path(options.weights).name}"
        page = lay_out(rows, heading, note, [(options.colormap, "max")] if bars is None else bars)
        self.write(figure, f"{stem}_{whose.lower()}_{figure}", page, arrays, photos, label)

    def write(self, figure, stem, page, arrays, photos=None, label=None):
        """Write a matplotlib figure, with its settings in its metadata, after the numbers behind it."""
        options, kind, name = self.options, self.options.format, (label or self.network.label).lower()
        if options.arrays:
            own = {} if photos else {"input": self.x} | ({} if self.logits is None else {"logits": self.logits})
            arrays = arrays if label else {f"{name}/{key}": value for key, value in {**own, **arrays}.items()}
            write_whole(options.output / f"{stem}.npz", lambda file: np.savez(file, **arrays))
        about = drawn_with(options, figure, name, photos or [self.path])
        how = {"pil_kwargs": {"quality": 92, "comment": about}} if kind == "jpg" else {"metadata": {"Subject": about}}
        write_whole(options.output / f"{stem}.{kind}", lambda file: page.savefig(file, format=kind, **how))


def write_whole(path, fill):
    """Write a file beside its place and rename it, so that it appears whole or not at all; list it on stdout."""
    file, part = io.BytesIO(), path.with_name(f".{path.name}.{os.getpid()}.part")
    fill(file)
    try:
        part.write_bytes(file.getbuffer())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    os.write(1, os.fsencode(path) + b"\n")  # at once: whoever has read enough may close the pipe


def drawn_with(options, figure, network, photos):
    """What a picture is drawn with, for its metadata, and a digest by which that is known again."""
    files = [path for path in (*photos, options.path, options.labels) if path and os.path.exists(path)]
    stamps = [(str(path), os.stat(path).st_mtime_ns) for path in files]
    about = {key: value for key, value in vars(options).items() if key.upper() in (*READERS, "SCRIPT", "ARRAYS")}
    text = json.dumps({"figure": figure, "network": network, "photographs": [path.name for path in photos[:9]],
                       **about}, default=str)
    return f"{text} {hashlib.sha1(f'{text}{stamps}'.encode()).hexdigest()}"


def is_drawn(options, figure, network, stem, photos):
    """Whether a figure is to be left out, since it is there, drawn with the same settings."""
    digest = drawn_with(options, figure, network, photos)[-40:].encode()
    paths = options.output.glob(f"{glob.escape(f'{stem}_{network}_{figure}')}*.{options.format}")
    count = sum(isinstance(word, int) or int(word[3:]) for word in {*options.classes}) if figure == "overlay" else 1
    return options.skip_existing and sum(digest in path.read_bytes() for path in paths) >= count
