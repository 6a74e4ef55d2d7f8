"""What the scripts share: command line, photographs, ImageNet classes, weights, the methods, pictures.

In a notebook, on any functional Keras CNN with ReLUs whose last layer gives logits:

    maps, logits = utils.grad_cam(model, x, ["block4_conv3", "block5_conv3"], [285, 967])
    saliency = utils.guided_backprop(model, x, [285])
    projections = utils.deconvnet(model, x, "block5_conv3", [12, 77])

Importing this module costs no TensorFlow: it is imported when a network is first needed.
"""
from __future__ import annotations

import argparse
import collections
import concurrent.futures
import contextlib
import csv
import difflib
import fnmatch
import functools
import hashlib
import inspect
import io
import itertools
import json
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import warnings
from pathlib import Path
from typing import NamedTuple


@contextlib.contextmanager
def _on_interrupt(handler):
    """What Ctrl-C does to a program while the block runs, in place of an exception that libraries turn into others.

    A notebook, which has no file, and whoever handles or ignores Ctrl-C already, are left alone.
    """
    ours = threading.current_thread() is threading.main_thread() and hasattr(sys.modules["__main__"], "__file__") \
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


with _on_interrupt(lambda *_: os._exit(130)):
    import cv2
    import numpy as np
    from PIL import Image, UnidentifiedImageError

HERE = Path(__file__).resolve().parent
PHOTO_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
RESULT = re.compile(r"_(vgg(16|19)?|resnet50|googlenet|inceptionv3)_(layers|classes|negative|one_class|kernels|guided"
                    r"|trust|blocks|comparison|top9|occlusion)\.jpg$")  # what the five scripts call their pictures
TILE = 300  # pixels of the longer side of a tile
LONGEST_SIDE = 2048  # pixels kept of a photograph: more than any network or picture here uses
JPEG = ("JPEG", "MPO")  # MPO: a JPEG that holds further pictures, as telephones write it
MOST_PIXELS = 10**8  # of a photograph that is decoded whole: 10,000 by 10,000
INSPECTION = 8  # seconds that it may take to look into a weights file
PATIENCE = 30  # seconds without a byte after which a download is given up
SILENCE, RUNNING = threading.Lock(), threading.Lock()  # of what C libraries say; of the progress bar that is shown
logging.getLogger("PIL").addHandler(logging.NullHandler())  # what it logs of a broken file, its error says as well
os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever keras.json says: the methods differentiate TensorFlow


def tell(text):
    """Say something on stderr, on a line of its own; what file names hold beyond letters does not reach a terminal."""
    line = "".join(letter if letter.isprintable() else "?" for letter in " ".join(str(text).split()))
    print("\n" * RUNNING.locked() + line, file=sys.stderr)  # below the progress bar


class UserError(Exception):
    """Something expected to go wrong; its text is the one line that the person at the shell reads."""


# ---------------------------------------------------------------------------------------------------------------------
# Command line: the constants at the top of a script, each with an option of the same name


class Network(NamedTuple):
    """What the command line must know of a network before it is built."""

    widths: dict[str, int]  # every layer that may be named: its number of kernels
    all: list[str]  # the layers that `--layers all` stands for, the last convolution layer last


def _words(text):
    return [word.strip() for word in text.split(",") if word.strip()]


def _whole_number(text):
    if not re.fullmatch(r"[+-]?\d{1,18}", text.strip()):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return int(text)


def _path(text):
    if not text:
        raise argparse.ArgumentTypeError("an empty name")
    return Path(text)


OPTIONS = {  # constant: (how its option is read, what --help says)
    "MODELS": (_words, "networks, separated by commas"),
    "FIGURES": (_words, "figures to draw, separated by commas, or all"),
    "LAYERS": (_words, "layer names, separated by commas, or all; a figure of one layer takes the last"),
    "CLASSES": (_words, "classes, separated by commas: index 0-999, WordNet id or name; top4 for the most probable"),
    "KERNELS": (_words, "kernel numbers from 0, separated by commas, or top9 for the strongest"),
    "MODE": (str, "max: the strongest position of a kernel's map; all: the whole map"),
    "WEIGHTS": (_path, "imagenet (published, downloaded once), {}, a weights file, or a folder of published files"),
    "PATCH": (_whole_number, "width of the grey square of the figure occlusion, in pixels of the network's input"),
    "STRIDE": (_whole_number, "how far the square is moved at a time"),
    "COMPARED": (_whole_number, "how many photographs the figure comparison sets side by side at most"),
    "SEED": (_whole_number, "seed of --weights random"),
    "OUTPUT": (_path, "folder for the results"),
    "COLORMAP": (str, "an OpenCV colour map"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{message} (see --help; lists are separated by commas)")

    def print_help(self, file=None):
        super().print_help(file or sys.__stdout__)


def _constant(script, name):
    """A constant of a script as its option would give it: a list where one word stands alone. UserError if wrong."""
    value, read = script[name], OPTIONS[name][0] if name in OPTIONS else _path
    kind = {_whole_number: int, _path: (str, Path), str: str, _words: (str, int, list, tuple)}[read]
    if isinstance(value, bool) or not isinstance(value, kind) or value == "":
        raise UserError(f"the constant {name} is {value!r}: its comment in the script says what may stand there")
    if read is _words:
        return _words(value) if isinstance(value, str) else [value] if isinstance(value, int) else list(value)
    return value


def _parser(script, words):
    """A parser with an option for each constant of a script, whose value is the default. words: weights by name."""
    summary, _, rest = script["__doc__"].partition("\n")
    parser = _Parser(
        description=summary, epilog=rest, allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter)
    images = [script["IMAGES"]] if isinstance(script["IMAGES"], (str, Path)) else list(script["IMAGES"] or ())
    if not images:
        raise UserError("the constant IMAGES names no photograph")
    images = [HERE / path for path in images]
    parser.add_argument("images", nargs="*", type=_path, default=images, metavar="PHOTO_OR_FOLDER",
                        help=f"photographs, or folders of them (default: {' '.join(path.name for path in images)})")
    for name, (read, text) in OPTIONS.items():
        if name in script:
            value = default = _constant(script, name)
            if name == "OUTPUT" or name == "WEIGHTS" and default not in words:
                default = HERE / default  # the constants' paths are relative to the script
            shown = ",".join(map(str, value)) if isinstance(value, list) else value
            parser.add_argument(f"--{name.lower()}", type=read, default=default,
                                help=f"{text.format(', '.join(words[1:]))} (default: {shown})")
    if not isinstance(script["ARRAYS"], bool):
        raise UserError(f"the constant ARRAYS is {script['ARRAYS']!r}: True or False")
    parser.add_argument("--arrays", action="store_true", default=script["ARRAYS"], help="save the numbers too, as .npz")
    parser.add_argument("--skip-existing", action="store_true", help="leave out what is in OUTPUT already")
    parser.add_argument("--list-layers", action="store_true", help="print the layer names that may be given, and stop")
    return parser


def read_options(script, figures, networks, builtin_weights=()):
    """The constants of a script, overridden by its command line, every word checked, without TensorFlow.

    script: the script's globals(). figures: the figure names it draws. networks: name -> Network.
    Returns a namespace with an attribute a constant; `layers` is a dict network -> layer names, `images` the list of
    photographs, folders walked, `stems` what their results are called, `group` what those over them all are called.
    Raises UserError for a wrong word, a missing file or a folder that cannot be written.
    """
    words = ("imagenet", *builtin_weights, "random")
    options = _parser(script, words).parse_args()
    options.models = check_words(getattr(options, "models", list(networks)), networks, "model")
    options.layers = _layers_of(options.layers, {name: networks[name] for name in options.models})
    if options.list_layers:
        names = (name for model in options.models for name in networks[model].widths)
        print(*dict.fromkeys(names), sep="\n", file=sys.__stdout__)
        sys.exit(0)
    options.figures = check_words(options.figures, figures, "figure")
    options.colormap = colormap_number(options.colormap)
    options.classes = [read_class(word) for word in options.classes]
    if not options.classes:
        raise UserError("no class is given: an index, a WordNet id, a name, or top4 for the most probable")
    if not 0 <= options.seed < 2**32:
        raise UserError(f"seed {options.seed}: from 0 to {2**32 - 1}")
    options.kernels = _kernel_words([str(word) for word in options.kernels], options.layers, networks)
    if "MODE" in script:
        options.mode = check_words([options.mode], ("max", "all"), "mode")[0]
        for name, most, what in (("patch", 299, "pixels"), ("stride", 299, "pixels"), ("compared", 32, "photographs")):
            if not 1 <= getattr(options, name) <= most:
                raise UserError(f"{name} {getattr(options, name)}: from 1 to {most} {what}")
    options.weights = str(options.weights)
    if options.weights not in words and not any(Path(options.weights + end).exists() for end in ("", ".index")):
        raise UserError(f"no weights {options.weights}: give a file, a folder, {', '.join(words[:-1])} or random")
    given = options.images
    options.images = find_photos(given)
    options.stems, options.skipped = _stems(options.images), []
    first, more = options.stems[options.images[0]], len(options.images) - 1
    options.group = f"{first}_and_{more}_more" if more else first
    if len(given) == 1 and given[0].is_dir():
        options.group = given[0].resolve().name.lower()
    if not more:
        read_photo(options.images[0])  # one photograph that cannot be read is told at once
    _make_folder(options.output)
    return options


def check_words(words, known, what):
    """The words, each one of `known` in any case (`all` for them all), once each. UserError names near ones."""
    words, names = [str(word) for word in words], {name.lower(): name for name in known}
    if "all" in words and "all" not in known:
        return list(known)
    for word in words:
        if word.lower() not in names:
            raise UserError(f"unknown {what} {word!r}{_near(word, known)}")
    if not words:
        raise UserError(f"no {what} is given: choose from {', '.join(known)}")
    return list(dict.fromkeys(names[word.lower()] for word in words))


def _near(word, known):
    """A clause that names what is nearest to a mistyped word, or all there is where that is little."""
    names = {name.lower(): name for name in known}
    near = [name for lower, name in names.items() if word.lower() in lower.split()][:3]
    near = near or [names[lower] for lower in difflib.get_close_matches(word.lower(), names, 3, 0.5)]
    if near:
        return f": did you mean {', '.join(near)}?"
    return f": choose from {', '.join(known)}" if len(names) < 30 else ""


def _layers_of(words, networks):
    """Which of the named layers, shell wildcards among them, each network draws: {network: names}."""
    if "all" in words:
        return {name: list(network.all) for name, network in networks.items()}

    def named(word, widths):
        return [layer for layer in widths if fnmatch.fnmatchcase(layer.lower(), str(word).lower())]

    known = dict.fromkeys(itertools.chain(*(network.widths for network in networks.values())))
    for word in words:
        if not named(word, known):
            raise UserError(f"unknown layer {word!r}{_near(str(word), known) or ': --list-layers prints them'}")
    chosen = {name: list(dict.fromkeys(itertools.chain(*(named(word, network.widths) for word in words))))
              for name, network in networks.items()}
    for name, layers in chosen.items():
        if not layers:
            raise UserError(f"{name} has no layer {', '.join(words) or 'without a name'}"
                            + (_near(words[0], networks[name].widths) if words else ""))
    return chosen


def _kernel_words(words, layers, networks):
    """Kernel numbers, or the N of `topN`; every number must exist in the last layer of every network."""
    width = min(networks[model].widths[names[-1]] for model, names in layers.items())
    if len(words) == 1 and words[0][:3] == "top" and words[0][3:].isdecimal():
        count = int(words[0][3:])
        if not 1 <= count <= width:
            raise UserError(f"kernels {words[0]}: from top1 to top{width}")
        return count
    for word in words:
        if not (str(word).isdecimal() and int(word) < width):
            raise UserError(f"no kernel {word!r}: numbers from 0 to {width - 1}, or top9 alone for the nine strongest")
    if not words:
        raise UserError("no kernel is given: numbers from 0, or top9")
    return [int(word) for word in dict.fromkeys(words)]


class _Chatter(io.TextIOBase):
    """Where libraries' progress bars go: stderr, in colours on a terminal only, and not where NO_COLOR is set."""

    def write(self, text):
        plain = not sys.stderr.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        return sys.stderr.write(re.sub(r"\x1b\[[0-9;]*m", "", text) if plain else text)

    def flush(self):
        sys.stderr.flush()

    def isatty(self):
        return sys.stderr.isatty()


def run(main):
    """Call a script's main and end the program with the exit code it returns, 2 for a UserError, 130 for Ctrl-C.

    What libraries print on stdout (progress bars, say) goes to stderr: stdout is the list of files written.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell: the next file that is opened must not take its place
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))
            setattr(sys, f"__{name}__", getattr(sys, name))
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it can do without a folder of its own
    try:
        with contextlib.redirect_stdout(_Chatter()):
            code = main()
    except UserError as error:
        tell(f"error: {error}")
        code = 2
    except KeyboardInterrupt:
        tell("stopped")
        code = 130
    sys.exit(code)


def progress(items, total):
    """Iterate; where it takes longer than two seconds, Keras's progress bar shows the time left, on a terminal.

    Of loops inside one another the outermost has the bar.
    """
    if not sys.stderr.isatty() or RUNNING.locked():
        yield from items
        return
    with RUNNING:
        bar, start = import_keras().utils.Progbar(total), time.monotonic()
        for count, item in enumerate(items, 1):
            yield item
            if time.monotonic() - start > 2:
                bar.update(count)


# ---------------------------------------------------------------------------------------------------------------------
# Photographs


class Photo(NamedTuple):
    """A photograph: where it lies, what its results are called, and its pixels, uint8 (H, W, 3), RGB.

    left: {figure: names of the networks for which it is still to be drawn}
    """

    path: Path
    stem: str
    pixels: np.ndarray
    left: dict


def find_photos(paths):
    """The photographs among files and folders; folders are walked recursively, in sorted order, results left out."""
    found = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in PHOTO_ENDINGS and p.is_file() and not (
                RESULT.search(p.name) or any(part.startswith(".") for part in p.relative_to(path).parts)))
            if not inside:
                raise UserError(f"no photographs in the folder {path} (endings: {' '.join(sorted(PHOTO_ENDINGS))})")
            found += inside
        elif path.exists() or len(paths) > 1:  # a missing one of several is skipped later, like an unreadable one
            found.append(path)
        else:
            near = _near(path.name, os.listdir(path.parent)) if path.parent.is_dir() else ""
            raise UserError(f"no such photograph or folder: {path}{near if 'did you' in near else ''}")
    return list(dict.fromkeys(found))


def _stems(paths):
    """What each photograph's results are called; no two the same, and no file name longer than file systems take."""
    stems, taken, counts = {}, set(), collections.Counter(path.stem.lower() for path in paths)
    for path in paths:
        name = path.stem.lower()
        if counts[name] > 1:
            name = f"{Path(os.path.realpath(path)).parent.name}_{path.name.replace('.', '_')}".lower()
        name = "".join(letter if letter.isprintable() or "\udc80" <= letter <= "\udcff" else "_" for letter in name)
        if len(os.fsencode(name)) > 150:
            digest = hashlib.sha1(os.fsencode(name)).hexdigest()[:8]
            name = f"{os.fsencode(name)[:140].decode(errors='ignore')}_{digest}"
        numbered = (f"{name}_{number}" for number in itertools.count(2))
        while name in taken:
            name = next(numbered)
        taken.add(name)
        stems[path] = name
    return stems


TURNS = {  # EXIF orientation: what turns the picture upright
    2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, 3),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: np.rot90}


def _rgb(image):
    """A Pillow image as uint8 (H, W, 3): transparency over white, 16 bits scaled to 8."""
    if image.mode.startswith("I"):
        grey = np.asarray(image)
        grey = grey.astype(grey.dtype.newbyteorder("="), copy=False)  # TIFF may say the other way round
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("its pixels are beyond 16 bits")
        pixels = cv2.convertScaleAbs(grey, alpha=1 / 257)
        if "transparency" in image.info:
            pixels[grey == image.info["transparency"]] = 255
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers")
    transparent = image.has_transparency_data
    mode, factor = "RGBA" if transparent else "RGB", max(image.size) // LONGEST_SIDE
    image = image if image.mode == mode else image.convert(mode)
    image = image.reduce(factor) if factor > 1 else image  # before it is copied
    if transparent:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return np.asarray(image)


def _check_effort(image):
    """ValueError for a photograph that would take much more memory or time to read than any camera's."""
    size, pixels, jpeg = f"{image.width} x {image.height} pixels", image.width * image.height, image.format in JPEG
    run_lengths = image.format == "BMP" and image.info.get("compression") in (1, 2)  # which Pillow decodes in Python
    share = 10 if run_lengths else 2 if image.format == "WEBP" else 1  # WebP takes twice the memory of the others
    if max(image.size) > 2**16 or not jpeg and pixels > MOST_PIXELS / share:  # a large JPEG is decoded at a fraction
        raise ValueError(f"{size} are more than are read here")
    if jpeg:  # each scan goes over all pixels once more
        image.fp.seek(0)
        scans = sum(block.count(b"\xff\xda") for block in iter(lambda: image.fp.read(2**20), b""))
        if scans * pixels > 20 * MOST_PIXELS:
            raise ValueError(f"{scans} scans of {size} are no camera's work")


@functools.lru_cache(maxsize=1)
def read_photo(path):
    """The pixels of a photograph, uint8 (H, W, 3), RGB, upright, at most LONGEST_SIDE on the longer side.

    Transparency is laid over white, 16 bits are scaled to 8. Pillow reads (it comes with matplotlib): unlike
    cv2.imread it refuses a truncated file instead of filling it with grey. UserError for anything that cannot be read.
    """
    try:
        if Path(path).exists() and not Path(path).is_file():  # a pipe would be waited for
            raise ValueError("it is no file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=("JPEG", "PNG", "BMP", "WEBP", "TIFF")) as image:
                _check_effort(image)
                image.draft(None, (LONGEST_SIDE, LONGEST_SIDE))  # a large JPEG is decoded at a half, a quarter …
                with _silence() if image.format == "TIFF" else contextlib.nullcontext():
                    image.load()
                pixels = _rgb(image)
                turn = TURNS.get(image.getexif().get(274))
    except Exception as error:  # a decoder fails in many ways on a broken file
        known = {UnidentifiedImageError: "no whole image in a format known here", FileNotFoundError: "no such file"}
        raise UserError(f"cannot read the photograph {path}: {known.get(type(error)) or reason(error)}") from error
    pixels = pixels if turn is None else np.ascontiguousarray(turn(pixels))
    scale = LONGEST_SIDE / max(pixels.shape[:2])
    return fit(pixels, LONGEST_SIDE) if scale < 1 else pixels


def fit(image, side):
    """The image with its longer side `side` pixels long, at its own proportions."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    return resize(image, max(1, round(width * scale)), max(1, round(height * scale)))


def resize(image, width, height):
    """cv2.resize: area averages where it shrinks, cubic where it grows."""
    shrinks = width < image.shape[1] or height < image.shape[0]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


@contextlib.contextmanager
def _silence():
    """Keep what C libraries print on stderr from the terminal; it is let through where the block fails to import."""
    with SILENCE, tempfile.TemporaryFile() as said:
        sys.stderr.flush()
        stderr = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            yield
        except ImportError:
            said.seek(0)
            os.write(stderr, said.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def photographs(options, figures, names=None, first=0):
    """Each photograph of options.images as a Photo; one of several that cannot be read is named and skipped.

    figures: those drawn of each photograph. names: figure -> the words for the network in its file names; by default
    the networks. With --skip-existing what is there already is left out, and not read where nothing is left; of the
    first so many a figure over several photographs needs the pixels in any case.
    Skipped paths are collected in options.skipped. UserError where none of them can be read.
    """
    several, drawn, there, shown = len(options.images) > 1, 0, 0, 0
    try:
        for path in progress(options.images, len(options.images)) if several else options.images:
            left = {figure: [name for name in (names(figure) if names else options.models)
                             if not is_done(options, options.stems[path], name, figure)] for figure in figures}
            left = {figure: missing for figure, missing in left.items() if missing}
            if not figures and shown >= first:
                break
            if not left and shown >= first:
                there += 1
                continue
            try:
                photo = Photo(path, options.stems[path], read_photo(path), left)
            except UserError as error:
                if not several:
                    raise
                tell(f"skipped: {error}")
                options.skipped.append(path)
                continue
            yield photo
            shown += 1
            if figures and not left:  # it was read for a figure over several photographs only
                there += 1
            else:
                drawn += 1
    finally:
        if several:
            tell(f"{len(options.images)} photographs: {drawn} {'done' if figures else 'compared'}, {there} there "
                 f"already, {len(options.skipped)} unreadable")
    if len(options.skipped) == len(options.images):
        raise UserError(f"none of the {len(options.images)} photographs could be read")


def is_done(options, stem, name, figure):
    """Whether --skip-existing finds a figure, and its arrays where they are wanted, there already."""
    path = options.output / f"{stem}_{name}_{figure}.jpg"
    return options.skip_existing and path.exists() and (path.with_suffix(".npz").exists() or not options.arrays)


def network_input(pixels, size, preprocess):
    """What a network is fed: float32 (1, size, size, 3), the whole picture resized, then preprocessed by Keras."""
    return preprocess(resize(pixels, size, size)[None].astype(np.float32))


# ---------------------------------------------------------------------------------------------------------------------
# ImageNet classes


@functools.cache
def imagenet_classes():
    """The 1000 classes in the networks' order: a list of (WordNet id, name)."""
    with open(HERE / "Image" / "imagenet_classes.csv", newline="", encoding="utf-8") as file:
        return [(row["wordnet_id"], row["name"].replace("_", " ")) for row in csv.DictReader(file)]


def read_class(word):
    """The index of a class given as an index, a WordNet id or a name; `top4` stays as it is for `choose_classes`."""
    word = str(word).strip()
    key = word.lower().replace("_", " ")
    names = imagenet_classes()
    if key[:3] == "top" and key[3:].isdecimal():
        if not 1 <= int(key[3:]) <= len(names):
            raise UserError(f"class {word}: from top1 to top{len(names)}")
        return key
    if re.fullmatch(r"-?\d+", key):
        if len(key) > 9 or not 0 <= int(key) < len(names):
            raise UserError(f"class {word}: an index is from 0 to {len(names) - 1}")
        return int(key)
    found = [index for index, (synset, name) in enumerate(names) if key in (synset, name.lower())]
    if not found:
        near = _near(key, [name for _, name in names]) or \
            ": give an index, a WordNet id or a name of Image/imagenet_classes.csv"
        raise UserError(f"unknown class {word!r}{near}")
    if len(found) > 1:
        both = " or ".join(f"{index} ({names[index][0]})" for index in found)
        raise UserError(f"{len(found)} classes are called {word!r}: give the index, {both}")
    return found[0]


def choose_classes(words, logits):
    """Class indices for words that `read_class` has read: topN becomes the N most probable of this photograph."""
    ranked = np.argsort(-logits, kind="stable")
    chosen = (ranked[: int(word[3:])].tolist() if isinstance(word, str) else [word] for word in words)
    return list(dict.fromkeys(itertools.chain(*chosen)))


def softmax(logits):
    """Probabilities from logits, over the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


# ---------------------------------------------------------------------------------------------------------------------
# Networks and weights


@functools.cache
def import_keras():
    """Keras on TensorFlow, channels last, imported without the messages that TensorFlow greets with."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with _on_interrupt(lambda *_: os._exit(130)), _silence():
        import keras
        import tensorflow as tf
        tf.constant(0)  # the first operation starts the devices, which greet too
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError("Keras was imported with another backend than TensorFlow, before utils")
    keras.config.set_image_data_format("channels_last")
    keras.config.set_floatx("float32")
    return keras


class Published(NamedTuple):
    """A file of published weights: where it is fetched from, and its hash (md5 or sha256)."""

    url: str
    hash: str

    @property
    def name(self):
        return self.url.rpartition("/")[2]


KERAS_APPLICATIONS = "https://storage.googleapis.com/tensorflow/keras-applications"
VGG_PUBLISHED = {  # with and without the classifier, as keras.applications fetches them
    "vgg16": (("", "64373286793e3c8b2b4e3219cbf3544b"), ("_notop", "6d6bbae143d832006294945121d1f1fc")),
    "vgg19": (("", "cbe5617147190e668d6c5d5026f83318"), ("_notop", "253f8cb515780f3b799900260a226db6")),
}
VGG_DENSE = {"fc1": 4096, "fc2": 4096, "predictions": 1000}
VGG_BLOCKS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}  # convolution layers in each block


def weights_file(weights, published, hints=("random",)):
    """The path of a network's weights, fetched where they must be; None for `random`.

    weights: `imagenet`, `random`, a file, or a folder that holds one of the published files. published: the files that
    would do, the best first; one that is whole in Keras's cache already is taken before the last one is downloaded.
    """
    if weights == "random":
        return None
    path = Path(weights)
    if weights != "imagenet":
        if not path.is_dir():
            return path
        found = [path / file.name for file in published if (path / file.name).is_file()]
        if not found:
            raise UserError(f"the folder {path} holds no {' or '.join(file.name for file in published)}")
        return found[0]
    home = Path(os.path.expanduser(os.environ.get("KERAS_HOME") or "~/.keras"))
    caches = [place / "models" for place in (home, Path(tempfile.gettempdir()) / ".keras")]  # as Keras has them
    for file, cache in itertools.product(published, caches):
        if _is_whole(cache / file.name, file.hash):
            return cache / file.name
    with contextlib.suppress(OSError):
        home.mkdir(parents=True, exist_ok=True)
    file, cache = published[-1], caches[0] if os.access(home, os.W_OK) else caches[1]
    try:
        return _download(file, cache)
    except Exception as error:
        raise UserError(
            f"no whole copy of the published weights {file.name} is in {cache}, or could be fetched from {file.url} "
            f"({reason(error).rpartition(' -- ')[2]}): put the file there by hand, or go on with "
            + " or ".join(f"--weights {hint}" for hint in (*hints, "PATH"))) from error


def _is_whole(path, digest):
    """Whether a file is there and has the md5 or sha256 that is published of it."""
    if not path.is_file():
        return False
    known = hashlib.new("sha256" if len(digest) == 64 else "md5", usedforsecurity=False)
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(2**20), b""):
            known.update(block)
    return known.hexdigest() == digest


def _download(file, cache):
    """Fetch a Published file into Keras's cache: its path. It gets its name when it is whole, and its hash is right."""
    keras = import_keras()
    cache.mkdir(parents=True, exist_ok=True)
    for left in cache.glob("download_*"):  # by a killed run
        if time.time() - left.stat().st_mtime > 24 * 3600:
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="download_", dir=cache) as folder:
        talks, patience = keras.config.is_interactive_logging_enabled(), socket.getdefaulttimeout()
        socket.setdefaulttimeout(PATIENCE)
        if not sys.stderr.isatty():  # nobody watches the bar
            keras.config.disable_interactive_logging()
        try:
            part = keras.utils.get_file(file.name, file.url, cache_dir=folder, cache_subdir="")
        finally:
            socket.setdefaulttimeout(patience)
            if talks:
                keras.config.enable_interactive_logging()
        if not _is_whole(Path(part), file.hash):
            raise ValueError("what came is not the published file: its hash is another; a proxy may be in the way")
        os.replace(part, cache / file.name)
    return cache / file.name


def reason(error):
    """What an exception says, on one line of bearable length."""
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:300] or type(error).__name__


def _print_shapes(path):
    """Print as JSON the shapes of the arrays that Keras would load from an .h5 file.

    For a process of its own, which runs this source alone: on some broken files HDF5 never comes to an end.
    """
    import json
    import sys

    import h5py
    if sys.platform == "linux":
        import resource
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (2**33 if hard == resource.RLIM_INFINITY else min(2**33, hard), hard))

    def arrays(group, depth=0):
        for key in group.attrs:
            group.attrs[key]  # Keras will read them too
        for name in group:
            item = group[name]
            if depth > 20 or not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"{name} is a link, or nested too deep")
            if isinstance(item, h5py.Group):
                if depth or not name.startswith("optimizer"):
                    yield from arrays(item, depth + 1)
            elif item.dtype.kind not in "fiu" or item.external or item.is_virtual:
                raise ValueError(f"{name} holds no numbers of its own")
            elif any(chunk > size for chunk, size in zip(item.chunks or (), item.shape)):
                raise ValueError(f"{name} is packed in pieces larger than itself")
            else:
                yield item

    def named(group, key):  # a long list of names is stored in several
        parts = [key] if key in group.attrs else [f"{key}{part}" for part in range(len(group.attrs))]
        return [name for part in parts if part in group.attrs for name in group.attrs[part]]

    with h5py.File(path, "r") as file:
        found = list(arrays(file))
        root = file if "layer_names" in file.attrs else file.get("model_weights", file)
        if named(root, "layer_names"):  # the layout of the published files: what its lists name is loaded
            groups = [root[layer] for layer in named(root, "layer_names")]
            found = [group[name] for group in groups for name in named(group, "weight_names")]
        print(json.dumps([item.shape for item in found]))


@functools.lru_cache(maxsize=2)
def _shapes(path, changed):
    """See `stored_shapes`; changed: when the file was."""
    source = f"{inspect.getsource(_print_shapes)}\nimport sys\n_print_shapes(sys.argv[1])"
    try:
        done = subprocess.run([sys.executable, "-c", source, path], capture_output=True, check=True, timeout=INSPECTION)
    except subprocess.TimeoutExpired as error:
        raise ValueError("HDF5 comes to no end with it") from error
    except subprocess.CalledProcessError as error:
        last = error.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ValueError(last.partition(": ")[2] or "HDF5 cannot read it") from error
    return [tuple(shape) for shape in json.loads(done.stdout)]


def stored_shapes(path):
    """The shapes of the arrays in a Keras weights file, `.weights.h5` or the older `.h5`, largest first.

    UserError where it is no such file, not a whole one, or one that would cost more than a network's weights to load.
    """
    try:
        shapes = _shapes(os.path.abspath(path), os.stat(path).st_mtime_ns)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no weights file of Keras, or not a whole one ({reason(error)})") from error
    return sorted(shapes, key=lambda shape: (-np.prod(shape, dtype=float), shape))


def has_classifier(path):
    """Whether a weights file holds the layer that gives the 1000 logits."""
    return any(shape[-1:] == (1000,) for shape in stored_shapes(path))


def load_weights(model, path):
    """Load a Keras weights file of either layout into the model; UserError unless it fits array by array."""
    stored = stored_shapes(path)
    wanted = sorted((tuple(w.shape) for w in model.weights), key=lambda shape: (-np.prod(shape, dtype=float), shape))
    if stored != wanted:
        odd = next(((a, b) for a, b in itertools.zip_longest(stored, wanted) if a != b))
        raise UserError(f"{path} does not fit {model.name}: it holds {len(stored)} arrays, the network has "
                        f"{len(wanted)}; {odd[0] or 'nothing'} stands where {odd[1] or 'nothing'} belongs")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.load_weights(str(path))
    except Exception as error:
        raise UserError(f"{path} does not fit {model.name}: {reason(error)}") from error
    if not all(np.isfinite(array).all() for array in model.get_weights()):
        raise UserError(f"{path} holds numbers that are not finite")


def vgg_network(name, dense=False):
    """The layers of VGG16 or VGG19 as the command line knows them; `all` are the convolutions."""
    widths, ends = {}, (64, 128, 256, 512, 512)
    for block, (count, width) in enumerate(zip(VGG_BLOCKS[name], ends), 1):
        widths |= {f"block{block}_conv{number}": width for number in range(1, count + 1)}
        widths[f"block{block}_pool"] = width
    convolutions = [layer for layer in widths if "conv" in layer]
    return Network(widths | VGG_DENSE if dense else widths, convolutions)


def build_vgg(name, weights, seed, classifier=True):
    """VGG16 or VGG19 with logits for output; without its classifier where that is not needed and not at hand."""
    keras = import_keras()
    base = f"{KERAS_APPLICATIONS}/{name}/{name}_weights_tf_dim_ordering_tf_kernels"
    published = [Published(f"{base}{top}.h5", md5) for top, md5 in VGG_PUBLISHED[name]]
    path = weights_file(weights, published[:1] if classifier else published)
    keras.utils.set_random_seed(seed)
    build = {"vgg16": keras.applications.VGG16, "vgg19": keras.applications.VGG19}[name]
    top = has_classifier(path) if path else classifier
    if classifier and not top:
        raise UserError(f"{path} holds no classifier, which this needs")
    model = build(weights=None, include_top=top, input_shape=(224, 224, 3), classifier_activation=None)
    if path is not None:
        load_weights(model, path)
    return model


# ---------------------------------------------------------------------------------------------------------------------
# The methods


class Step(NamedTuple):
    """One operation of a forward pass, with the tensors that went in and the one that came out."""

    op: object
    args: tuple
    kwargs: dict
    inputs: list
    output: object


class ForwardPass:
    """One photograph seen by one network: a single forward pass, and the ways back down through it.

    The network is run layer by layer and left as it is (`_without_relu` gives back what it takes); going down, each
    layer is transposed by its own rule, for many signals at once. What differs between the methods is only what a ReLU
    does with the signal R that comes down, where the forward pass gave f (Springenberg et al. 2014, arXiv 1412.6806,
    figure 1):

        gradient    R where f > 0              Grad-CAM
        deconvnet   R where R > 0              Zeiler and Fergus, section 2.1, «Rectification»
        guided      R where both are > 0       guided backpropagation

    model: functional or Sequential Keras model. x: float32 (1, H, W, 3), as the model wants it.
    """

    def __init__(self, model, x):
        import tensorflow as tf
        import_keras()
        self.input = tf.convert_to_tensor(x, tf.float32)
        if self.input.shape.rank != 4 or self.input.shape[0] != 1:
            raise ValueError(f"x has shape {tuple(self.input.shape)}, not (1, H, W, channels)")
        ends = len(_graph(model).inputs), len(_graph(model).outputs)
        if ends != (1, 1):
            raise ValueError(f"{model.name} has {ends[0]} inputs and {ends[1]} outputs, not one of each")
        self.steps, self._known, self._switches = [], {id(self.input)}, {}  # id: steps keep all tensors alive
        self.output = self._run(model, self.input)
        self.outputs = {step.op.name: step.output for step in self.steps}

    def _run(self, model, inputs):
        # Keras has no public way to be told of each operation; this one is the same from Keras 3.0 to 3.15.
        return _graph(model)._run_through_graph(inputs, operation_fn=self._record)

    def _record(self, op):
        import tensorflow as tf

        def call(*args, **kwargs):
            inputs = [tensor for tensor in tf.nest.flatten((args, kwargs)) if id(tensor) in self._known]
            if hasattr(getattr(op, "_functional", op), "_run_through_graph"):
                return self._run(op, inputs)  # a network inside the network: its layers are ours
            if "training" in inspect.signature(op.call).parameters:
                kwargs["training"] = False
            output = op(*args, **kwargs)
            if not tf.is_tensor(output):  # several tensors: a step for each
                parts = [self._keep(_part(op, place), args, kwargs, inputs, part)
                         for place, part in enumerate(tf.nest.flatten(output))]
                return tf.nest.pack_sequence_as(output, parts)
            return self._keep(op, args, kwargs, inputs, output)

        return call

    def _keep(self, op, args, kwargs, inputs, output):
        import tensorflow as tf
        if id(output) in self._known:  # dropout gives back its very input
            output = tf.identity(output)
        self._known.add(id(output))
        self.steps.append(Step(op, args, kwargs, inputs, output))
        return output

    @functools.cached_property
    def logits(self):
        """The class scores before softmax, float32 (n_classes,). ValueError where the network gives none."""
        last = getattr(self.steps[-1].op, "activation", self.steps[-1].op)
        name = getattr(last, "__name__", type(last).__name__).lower()
        if self.output.shape.rank != 2 or "softmax" in name or "sigmoid" in name:
            raise ValueError("the network's last layer gives no logits: build it with classifier_activation=None")
        return self.output[0]

    def feature_map(self, layer):
        """What a layer gave, a tensor (1, h, w, K), or (1, K) of a dense layer. ValueError for an unknown layer."""
        if not isinstance(layer, str) or layer not in self.outputs:
            raise ValueError(f"unknown layer {layer!r}{_near(str(layer), self.outputs)}")
        return self.outputs[layer]

    def strongest(self, layer, count):
        """The numbers of the kernels with the strongest response anywhere in the layer's map, the strongest first."""
        response = np.max(self.feature_map(layer)[0], axis=tuple(range(self.feature_map(layer).shape.rank - 2)))
        return np.argsort(-response, kind="stable")[:count].tolist()

    def _classes_down(self, classes, wanted, rule):
        """The signals of class logits at the tensors `wanted`, 16 at a time: a thousand classes fit in memory."""
        import tensorflow as tf
        for index in () if tf.is_tensor(classes) else classes:
            _check_class(index, self.logits.shape[0])
        seeds = tf.one_hot(tf.cast(classes, tf.int32), self.logits.shape[0])
        if not seeds.shape[0]:
            return [tf.zeros((0, *tensor.shape[1:])) for tensor in wanted]
        parts = [self._down({id(self.output): seeds[start:start + 16]}, wanted, rule)
                 for start in range(0, seeds.shape[0], 16)]
        return [tf.concat(signals, axis=0) for signals in zip(*parts)]

    def grad_cam(self, layers, classes):
        """Grad-CAM (Selvaraju et al. 2016, section 3): {layer: (len(classes), h, w) tensor}, before the last ReLU.

        One way down serves all layers, and all classes as one batch: of the logits y^c, never of the softmax.
        """
        import tensorflow as tf
        maps = [self.feature_map(layer) for layer in layers]
        for layer, map_ in zip(layers, maps):
            if map_.shape.rank != 4:
                raise ValueError(f"layer {layer!r} has no map to lay over a photograph")
        gradients = self._classes_down(classes, maps, "gradient")
        cams = {}
        for layer, map_, gradient in zip(layers, maps, gradients):
            weights = tf.reduce_mean(gradient, axis=(1, 2))  # equation 1: alpha_k^c, (classes, K)
            cams[layer] = tf.einsum("hwk,ck->chw", map_[0], weights)  # equation 2, without its ReLU
        return cams

    def guided_backprop(self, classes):
        """Guided backpropagation of class logits down to the input: tensor (len(classes), H, W, 3)."""
        return self._classes_down(classes, [self.input], "guided")[0]

    def deconvnet(self, layer, kernels, mode="max", rule="deconvnet"):
        """Kernels of a layer projected back to pixels (Zeiler and Fergus 2013, section 2.1): float32 (N, H, W, 3).

        mode: `max` keeps the strongest position of each kernel's map, the first in row order, `all` the whole map;
        everything else in the layer is set to zero. rule: see the class; `gradient` and `guided` start from 1.
        Of a small receptive field only that is computed; kernels that see most of the picture go down nine at a time.
        """
        import tensorflow as tf
        map_ = self.feature_map(layer)
        if mode not in ("max", "all") or rule not in ("deconvnet", "guided", "gradient"):
            raise ValueError(f"unknown mode {mode!r} or rule {rule!r}: max or all; deconvnet, guided or gradient")
        projections, large = np.zeros((len(kernels), *self.input.shape[1:]), np.float32), []
        confined = mode == "max" and map_.shape.rank == 4
        for place, kernel in enumerate(kernels):
            y, x = self.strongest_position(layer, kernel)
            channel = tf.one_hot(kernel, map_.shape[-1])
            seed = map_[:, y:y + 1, x:x + 1] if confined else map_
            seed = channel * (seed if rule == "deconvnet" else tf.ones_like(seed))
            windows = self.windows(layer, y, x) if confined else {}
            field = windows.get(id(self.input))
            if field and field.area < self.input.shape[1] * self.input.shape[2] / 2:
                part = self._down({id(map_): seed}, [self.input], rule, windows)[0]
                projections[place, field.top:field.bottom, field.left:field.right] = part[0]
            else:
                whole = Window(0, *map_.shape[1:2], 0, *map_.shape[2:3]) if confined else None
                large.append((place, _place(seed, windows[id(map_)], whole) if confined else seed))
        for start in range(0, len(large), 9):
            places, seeds = zip(*large[start:start + 9])
            projections[list(places)] = self._down({id(map_): tf.concat(seeds, 0)}, [self.input], rule)[0]
        return projections

    def strongest_position(self, layer, kernel):
        """Row and column of the maximum of a kernel's map, the first in row order; (0, 0) of a dense layer's unit."""
        map_ = self.feature_map(layer)
        if not (isinstance(kernel, (int, np.integer)) and 0 <= kernel < map_.shape[-1]):
            raise ValueError(f"unknown kernel {kernel!r} of {layer!r}: a number from 0 to {map_.shape[-1] - 1}")
        if map_.shape.rank != 4:
            return 0, 0
        return tuple(int(i) for i in np.unravel_index(np.argmax(map_[0, ..., kernel]), map_.shape[1:3]))

    def windows(self, layer, y, x):
        """The part of every tensor below that position (y, x) of a layer's map is computed from: {id(tensor): Window}.

        Of the network's input that is the receptive field.
        """
        windows = {id(self.feature_map(layer)): Window(y, y + 1, x, x + 1)}
        for step in reversed(self.steps):
            if id(step.output) in windows:
                for tensor in step.inputs:
                    window, seen = _source(step, tensor, windows[id(step.output)]), windows.get(id(tensor))
                    windows[id(tensor)] = window.union(seen) if window and seen else window
        return windows

    def receptive_field(self, layer, kernel):
        """The Window of the input that the strongest position of a kernel's map sees; of a dense layer's unit, all."""
        whole = Window(0, self.input.shape[1], 0, self.input.shape[2])
        if self.feature_map(layer).shape.rank != 4:
            return whole
        return self.windows(layer, *self.strongest_position(layer, kernel)).get(id(self.input), whole)

    def _down(self, seeds, wanted, rule, windows=None):
        """Carry signals down: from seeds {id(tensor): (N, ...)} to the signals at the tensors `wanted`, a list.

        windows: the part of each tensor to which its signal is confined, from `windows`; None for the whole.
        """
        import tensorflow as tf
        kept, above = {id(tensor) for tensor in wanted}, set()
        for step in self.steps:  # only what lies above a wanted tensor is gone through
            if any(id(tensor) in kept or id(tensor) in above for tensor in step.inputs):
                above.add(id(step.output))
        signals, count = dict(seeds), next(iter(seeds.values())).shape[0]
        for step in reversed(self.steps):
            key = id(step.output)
            if key in signals and key in above:
                signal = signals[key] if key in kept else signals.pop(key)
                for tensor, part in zip(step.inputs, self._step_down(step, signal, rule, windows)):
                    signals[id(tensor)] = signals[id(tensor)] + part if id(tensor) in signals else part
        return [signals[id(t)] if id(t) in signals else tf.zeros((count, *t.shape[1:])) for t in wanted]

    def _step_down(self, step, signal, rule, windows):
        """The signals at the inputs of a step, from the signal at its output. Biases take no part."""
        import tensorflow as tf
        op, layers = step.op, import_keras().layers
        window = windows[id(step.output)] if windows else None
        last_axis = getattr(op, "axis", None) in (-1, len(signal.shape) - 1)
        ceiling = _relu_ceiling(op)
        if ceiling:
            signal = _rectify(signal, _cut(step.output, window), ceiling, rule)
        linear = ceiling or getattr(getattr(op, "activation", None), "__name__", "") == "linear"
        plain = getattr(op, "data_format", "") == "channels_last"
        if type(op) is layers.Conv2D and linear and plain and op.groups == 1 and max(op.dilation_rate) == 1:
            return [self._filter_down(step, signal, windows)]
        if type(op) is layers.MaxPooling2D and plain:
            return [self._unpool(step, signal, windows)]
        if type(op) is layers.Dense and linear:
            return [tf.linalg.matmul(signal, op.kernel, transpose_b=True)]
        if type(op) is layers.BatchNormalization and last_axis:
            scale = tf.math.rsqrt(op.moving_variance + op.epsilon)
            parts = [signal * (scale if op.gamma is None else scale * op.gamma)]
        elif type(op) is layers.Concatenate and last_axis:
            parts = tf.split(signal, [tensor.shape[-1] for tensor in step.inputs], axis=-1)
        elif type(op) is layers.Add or ceiling and not getattr(op, "weights", None):  # a ReLU of its own
            parts = [signal] * len(step.inputs)
        else:
            return self._derivative(step, signal, windows)
        return [_place(part, window, windows and windows[id(t)]) for t, part in zip(step.inputs, parts)]

    def _filter_down(self, step, signal, windows):
        """«Filtering» (section 2.1): convolution with the transposed kernels."""
        import tensorflow as tf
        op, (_, height, width, channels) = step.op, step.inputs[0].shape
        if not windows:
            shape = (signal.shape[0], height, width, channels)
            return tf.nn.conv2d_transpose(signal, op.kernel, shape, op.strides, op.padding.upper())
        window = windows[id(step.output)]
        top, bottom = _reach(window.top, window.bottom, op.kernel_size[0], op.strides[0], op.padding, height)
        left, right = _reach(window.left, window.right, op.kernel_size[1], op.strides[1], op.padding, width)
        shape = (signal.shape[0], bottom - top, right - left, channels)
        part = tf.nn.conv2d_transpose(signal, op.kernel, shape, op.strides, "VALID")
        return _place(part, Window(top, bottom, left, right), windows[id(step.inputs[0])])

    def _unpool(self, step, signal, windows):
        """«Unpooling» (section 2.1): each value goes back through its switch, where the maximum was found."""
        import tensorflow as tf
        op, (_, height, width, channels) = step.op, step.inputs[0].shape
        size, strides, padding = tuple(op.pool_size), tuple(op.strides), op.padding.upper()
        key, count = id(step.output), signal.shape[0]
        if key not in self._switches:  # of equal values the first in row order
            self._switches[key] = tf.nn.max_pool_with_argmax(step.inputs[0], size, strides, padding)[1]
        if not windows:
            return tf.raw_ops.MaxPoolGradWithArgmax(
                input=tf.zeros((count, height, width, channels)), grad=signal,
                argmax=tf.repeat(self._switches[key], count, axis=0),
                ksize=(1, *size, 1), strides=(1, *strides, 1), padding=padding)
        switches, window = _cut(self._switches[key], windows[key]), _source(step, step.inputs[0], windows[key])
        # TensorFlow counts switches through the whole map, (row * width + column) * channels + channel.
        row, place = switches // (width * channels), switches % (width * channels)
        switches = (row - window.top) * window.width * channels + place - window.left * channels
        values = tf.math.unsorted_segment_sum(
            tf.reshape(signal, [-1]), tf.reshape(switches, [-1]), window.area * channels)
        values = tf.reshape(values, (1, window.height, window.width, channels))
        return _place(values, window, windows[id(step.inputs[0])])

    def _derivative(self, step, signal, windows):
        """Any other step: TensorFlow's derivative of it, its ReLU (if it ends in one) having had its turn already."""
        import tensorflow as tf
        count, op = signal.shape[0], step.op
        if windows and windows[id(step.output)]:
            _, height, width, _ = step.output.shape
            signal = _place(signal, windows[id(step.output)], Window(0, height, 0, width))
        many = [tf.repeat(tensor, count, axis=0) for tensor in step.inputs]
        swap = {id(tensor): copy for tensor, copy in zip(step.inputs, many)}
        args, kwargs = tf.nest.map_structure(lambda t: swap.get(id(t), t), (step.args, step.kwargs))
        with tf.GradientTape(watch_accessed_variables=False) as tape, _without_relu(op):
            tape.watch(many)
            output = op(*args, **kwargs)
        parts = tape.gradient(output, many, output_gradients=signal, unconnected_gradients="zero")
        return [_cut(part, windows[id(t)]) if windows else part for t, part in zip(step.inputs, parts)]


def _graph(model):
    """The functional network that a model is, or holds. ValueError for a subclassed one."""
    graph = getattr(model, "_functional", model)
    if not hasattr(graph, "_run_through_graph"):
        raise ValueError(f"{getattr(model, 'name', model)} is no functional Keras model, or has not been built yet")
    return graph


def _several(names):
    """What is given alone, as a list of one."""
    return [names] if isinstance(names, (str, int, np.integer)) else list(names)


def _part(op, place):
    """An operation that gives several tensors, as one that gives the one at `place`."""
    import tensorflow as tf
    part = functools.partial(lambda *args, **kwargs: tf.nest.flatten(op(*args, **kwargs))[place])
    part.name = op.name
    return part


def _relu_ceiling(op):
    """Where a step that is a ReLU, or ends in one, stops growing (6 for ReLU6, else infinity); None for any other."""
    function = getattr(op, "activation", op)
    if getattr(function, "negative_slope", 0) or getattr(function, "threshold", 0):
        return None
    name = getattr(function, "__name__", type(function).__name__).lower()
    return {"relu": getattr(function, "max_value", None) or np.inf, "relu6": 6.0}.get(name)


def _rectify(signal, forward, ceiling, rule):
    """What a ReLU that gave `forward` lets down of a signal: the three rules of ForwardPass."""
    import tensorflow as tf
    if rule != "gradient":
        signal = tf.nn.relu(signal)
    return signal if rule == "deconvnet" else tf.where((forward > 0) & (forward < ceiling), signal, 0.0)


@contextlib.contextmanager
def _without_relu(op):
    """The layer without the ReLU that it ends in, for as long as the block runs."""
    activation = op.activation if _relu_ceiling(op) and hasattr(op, "activation") else None
    try:
        if activation:
            op.activation = import_keras().activations.linear
        yield
    finally:
        if activation:
            op.activation = activation


class Window(NamedTuple):
    """A rectangle of a feature map or a picture, `bottom` and `right` excluded."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def height(self):
        return self.bottom - self.top

    @property
    def width(self):
        return self.right - self.left

    @property
    def area(self):
        return self.height * self.width

    def union(self, other):
        return Window(min(self.top, other.top), max(self.bottom, other.bottom),
                      min(self.left, other.left), max(self.right, other.right))


def _reach(first, last, extent, stride, padding, size):
    """The input rows from which output rows first…last-1 of a filter are computed, padding counted in.

    `same` pads what is missing for ceil(size / stride) steps, the smaller half before the first row.
    """
    before = max((-(-size // stride) - 1) * stride + extent - size, 0) // 2 if padding == "same" else 0
    return first * stride - before, (last - 1) * stride - before + extent


def _source(step, tensor, window):
    """The window of a step's input from which a window of its output is computed; None where there are no rows."""
    layers, op = import_keras().layers, step.op
    if tensor.shape.rank != 4:
        return None
    _, height, width, _ = tensor.shape
    if window and type(op) in (layers.Conv2D, layers.MaxPooling2D, layers.AveragePooling2D):
        extent = [1 + (size - 1) * dilation for size, dilation in zip(
            getattr(op, "pool_size", None) or op.kernel_size, getattr(op, "dilation_rate", (1, 1)))]
        top, bottom = _reach(window.top, window.bottom, extent[0], op.strides[0], op.padding, height)
        left, right = _reach(window.left, window.right, extent[1], op.strides[1], op.padding, width)
        return Window(max(top, 0), min(bottom, height), max(left, 0), min(right, width))
    pointwise = (layers.Activation, layers.ReLU, layers.BatchNormalization, layers.Dropout, layers.Add)
    if window and (type(op) in pointwise or type(op) is layers.Concatenate and op.axis in (-1, 3)):
        return window
    return Window(0, height, 0, width)


def _cut(tensor, window):
    return tensor if window is None else tensor[:, window.top:window.bottom, window.left:window.right]


def _place(part, window, target):
    """A signal that lies at `window` of a map, cut or filled up with zeros to lie at `target`."""
    import tensorflow as tf
    if window == target:
        return part
    inside = Window(*(max(target.top - window.top, 0), min(target.bottom, window.bottom) - window.top,
                      max(target.left - window.left, 0), min(target.right, window.right) - window.left))
    above, before = max(window.top - target.top, 0), max(window.left - target.left, 0)
    part = _cut(part, inside)
    below = target.height - above - part.shape[1]
    return tf.pad(part, [(0, 0), (above, below), (before, target.width - before - part.shape[2]), (0, 0)])


@functools.lru_cache(maxsize=4)
def _grad_cam_function(model, layers, count):
    """(x, classes) -> (cams, logits) for a model, its layers and a number of classes.

    Eager at the first call, one traced graph from the second on: tracing costs more than one photograph's arithmetic,
    and a graph prunes and fuses what an eager pass cannot.
    """
    import tensorflow as tf

    def compute(x, classes):
        seen = ForwardPass(model, x)
        return seen.grad_cam(layers, classes), seen.logits

    traced, first = tf.function(compute, autograph=False), iter([True])
    return lambda x, classes: (compute if next(first, False) else traced)(x, classes)


def grad_cam(model, x, layers, classes):
    """Grad-CAM of several classes at several layers from one forward pass (Selvaraju et al. 2016, equations 1 and 2).

    model: functional Keras model whose last layer gives logits; it is left as it was. x: float32 (1, H, W, 3) as the
    model wants it. layers: names of layers with a map. classes: indices.
    Returns (maps, logits): maps[layer] float32 (len(classes), h, w), signed, before the final ReLU: positive values
    speak for the class, negative ones against it; logits float32 (n_classes,).
    Raises ValueError for an unknown layer or class. Call `_grad_cam_function.cache_clear()` after changing an
    activation of the model by hand: the last four graphs are kept.
    """
    import tensorflow as tf
    import_keras()
    x, layers, classes = tf.convert_to_tensor(x, tf.float32), tuple(_several(layers)), _several(classes)
    for index in classes:
        _check_class(index, _graph(model).outputs[0].shape[-1])
    cams, logits = _grad_cam_function(model, layers, len(classes))(x, tf.constant(classes, tf.int32))
    return {layer: cam.numpy() for layer, cam in cams.items()}, logits.numpy()


def _check_class(index, count):
    if not (isinstance(index, (int, np.integer)) and 0 <= index < count):
        raise ValueError(f"unknown class {index!r}: an index from 0 to {count - 1}")


def guided_backprop(model, x, classes):
    """Guided backpropagation of class logits (Springenberg et al. 2014): float32 (len(classes), H, W, 3).

    Arguments and errors as of `grad_cam`.
    """
    return ForwardPass(model, x).guided_backprop(_several(classes)).numpy()


def deconvnet(model, x, layer, kernels, mode="max"):
    """DeconvNet projections of kernels of a layer (Zeiler and Fergus 2013): float32 (len(kernels), H, W, 3).

    All from one forward pass. mode: `max` for the strongest position of each kernel's map, `all` for the whole map.
    Raises ValueError for an unknown layer, kernel or mode; otherwise as `grad_cam`.
    """
    return ForwardPass(model, x).deconvnet(layer, _several(kernels), mode)


@functools.lru_cache(maxsize=4)
def _predictor(model, layer):
    """A traced function: inputs (N, H, W, 3) -> (logits (N, classes), sums of the layer's maps (N, K))."""
    import tensorflow as tf
    network = import_keras().Model(model.inputs[0], [model.output, model.get_layer(layer).output])

    @tf.function(input_signature=[tf.TensorSpec((None, *model.input_shape[1:]), tf.float32)])
    def predict(x):
        logits, maps = network(x, training=False)
        return logits, tf.reduce_sum(maps, axis=tuple(range(1, maps.shape.rank - 1)))

    return predict


def predict_many(model, inputs, total, layer, batch=16):
    """Probabilities (total, classes) and summed responses of a layer's kernels (total, K) of an iterable of inputs.

    inputs: `total` arrays float32 (H, W, 3), made as they are needed.
    """
    inputs, answers = iter(inputs), []
    for _ in progress(range(0, total, batch), -(-total // batch)):
        answers.append(_predictor(model, layer)(np.stack(list(itertools.islice(inputs, batch)))))
    logits, sums = (np.concatenate(parts) for parts in zip(*answers))
    return softmax(logits), sums


class Trial(NamedTuple):
    """A class's probability as pixels leave or enter, in the order of heat and at random."""

    shares: np.ndarray  # (21,), share of the pixels that have left or entered
    deletion: np.ndarray  # (21,)
    insertion: np.ndarray  # (21,)
    random_deletion: np.ndarray  # (orders, 21)
    random_insertion: np.ndarray  # (orders, 21)


def put_to_the_test(model, x, cam, index, layer, orders=4, seed=0):
    """Deletion and insertion (Petsiuk et al. 2018, arXiv 1806.07421, section 4) of a class's map, as a Trial.

    The pixels of x, float32 (1, H, W, 3), leave for grey (zero, the mean of what the network knows), or enter a blurred
    x, the warmest of the signed map cam first, in steps of 5 %; for comparison in random order of patches, 7 by 7.
    194 forward passes with four random orders.
    """
    height, width = x.shape[1:3]
    generator, shares = np.random.default_rng(seed), np.linspace(0, 1, 21)
    heats = [cv2.resize(np.asarray(cam), (width, height), interpolation=cv2.INTER_CUBIC)]
    *random, tie = [cv2.resize(generator.random((7, 7)), (width, height), interpolation=cv2.INTER_NEAREST)
                    for _ in range(orders + 1)]  # equally warm pixels leave in a random order of patches, too
    heats += random
    blurred, grey = cv2.GaussianBlur(x[0], (11, 11), 5), np.zeros_like(x[0])

    def pictures():
        for start, end in ((x[0], grey), (blurred, x[0])):
            yield from (start, end)
            for heat in heats:
                order = np.lexsort((tie.ravel(), -heat.ravel()))
                for share in shares[1:-1]:
                    picture = start.copy().reshape(-1, start.shape[-1])
                    changed = order[: round(share * order.size)]
                    picture[changed] = end.reshape(picture.shape)[changed]
                    yield picture.reshape(start.shape)

    inner = len(shares) - 2
    half = 2 + len(heats) * inner
    probabilities = predict_many(model, pictures(), 2 * half, layer)[0][:, index].reshape(2, half)
    curves = np.stack([np.concatenate([np.repeat(first, len(heats))[:, None], rest.reshape(len(heats), inner),
                                       np.repeat(last, len(heats))[:, None]], axis=1)
                       for first, last, rest in ((part[0], part[1], part[2:]) for part in probabilities)])
    return Trial(shares, curves[0, 0], curves[1, 0], curves[0, 1:], curves[1, 1:])


def area(curve):
    """The area under one curve, or several, over shares from 0 to 1 in equal steps."""
    return ((curve[..., 1:] + curve[..., :-1]) / 2).mean(axis=-1)


def verdict(trial, name):
    """What deletion says of a map, in one sentence: chance is within two standard deviations of the random orders."""
    before, after, chance = trial.deletion[0], trial.deletion[4], trial.random_deletion[:, 4]
    mean, spread = chance.mean(), chance.std(ddof=1)
    found = "beats chance" if after < mean - 2 * spread else "does worse than chance" if after > mean + 2 * spread \
        else "does no better than chance"
    if f"{after:.2f}" == f"{mean:.2f}":
        found = "does no better than chance"
    moves = f"{'falls' if after < before else 'rises'} from {before:.2f} to {after:.2f}"
    if f"{before:.2f}" == f"{after:.2f}":
        moves = f"stays at {after:.2f}"
    return (f"Without the warmest 20 % of the pixels the probability of {name} {moves}; "
            f"without a random 20 % to {mean:.2f} ± {spread:.2f}: the map {found}.")


def rank_correlation(first, second):
    """Spearman's rank correlation of two maps, equal values sharing their mean rank; NaN where one is constant."""
    ranks = []
    for values in (first, second):
        _, places, counts = np.unique(np.asarray(values).ravel(), return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[places])
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(*ranks)[0, 1])


def occlusion(model, x, layer, patch, stride):
    """A grey square slid over the input (Zeiler and Fergus 2013, section 4.2): (probabilities, responses).

    x: float32 (1, H, W, 3). The square, `patch` pixels wide, is centred on every cell of a grid of `stride` pixels and
    cut off at the edges; grey is zero. probabilities: (h, w, classes); responses: (h, w, K), the sum of each kernel's
    map in the layer; h and w are H and W over stride, rounded up.
    """
    height, width = x.shape[1:3]
    rows, columns = (range(stride // 2, stride * -(-size // stride), stride) for size in (height, width))

    def pictures():
        for y, x_ in itertools.product(rows, columns):
            picture = x[0].copy()
            top, left = max(y - patch // 2, 0), max(x_ - patch // 2, 0)
            picture[top:y - patch // 2 + patch, left:x_ - patch // 2 + patch] = 0
            yield picture

    answers = predict_many(model, pictures(), len(rows) * len(columns), layer)
    return tuple(answer.reshape(len(rows), len(columns), -1) for answer in answers)


class Strongest(NamedTuple):
    """What a scan of many photographs found, for every kernel of a layer."""

    layer: str
    activations: np.ndarray  # float32 (count, K), the strongest first; -inf where there were fewer photographs
    photos: np.ndarray  # int (count, K), which photograph it was
    seen: int  # how many photographs were looked at
    unreadable: list  # the paths of those that could not be
    interrupted: bool


def _read_ahead(paths, prepare, shape, batch):
    """Batches of (indices, inputs, whether each could be read), two of them read by threads ahead of use.

    Not by tf.data: its readers take threads from the convolutions, which then take half as long again now and then.
    """
    def read(index):
        try:
            return prepare(read_photo(paths[index]))[0], True
        except UserError as error:
            tell(f"skipped: {error}")
            return np.zeros(shape, np.float32), False

    left, ahead = iter(range(len(paths))), collections.deque()
    pool = concurrent.futures.ThreadPoolExecutor()

    def begin():
        indices = list(itertools.islice(left, batch))
        if indices:
            ahead.append((np.array(indices), [pool.submit(read, index) for index in indices]))

    try:
        begin()
        begin()
        while ahead:
            indices, futures = ahead.popleft()
            inputs, good = zip(*(future.result() for future in futures))
            begin()
            yield indices, np.stack(inputs), np.array(good)
    finally:
        pool.shutdown(cancel_futures=True)


def _responder(model, layer, strategy):
    """A function: inputs (N, H, W, 3), always as many -> the maximum of each kernel's map, (N, K)."""
    import tensorflow as tf
    keras, replicas = import_keras(), strategy.num_replicas_in_sync
    network = keras.Model(model.inputs[0], model.get_layer(layer).output)
    if replicas > 1:
        with strategy.scope():
            weights, network = network.get_weights(), keras.models.clone_model(network)
            network.set_weights(weights)
    axes = tuple(range(1, len(network.output_shape) - 1))

    @tf.function
    def respond(x):
        return strategy.run(lambda part: tf.reduce_max(network(part, training=False), axis=axes), (x,))

    def call(x):
        if replicas > 1:
            shares = tf.split(x, replicas)
            x = strategy.experimental_distribute_values_from_function(
                lambda context: shares[context.replica_id_in_sync_group])
        return np.concatenate(strategy.experimental_local_results(respond(x)))

    return call


def strongest_photos(model, layer, paths, prepare, count=9, batch=8, strategy=None):
    """The photographs that excite each kernel of a layer most (Zeiler and Fergus 2013, figure 2), as a Strongest.

    paths: the photographs, one response each; one that cannot be read is named on stderr and skipped. prepare: pixels
    -> float32 (1, H, W, 3). Reads ahead, works in batches, on all GPUs where there are several, in memory that does
    not grow with the number of photographs. Ctrl-C ends the scan with what has been seen so far.
    """
    import tensorflow as tf
    import_keras()
    if strategy is None:
        several = len(tf.config.list_logical_devices("GPU")) > 1
        strategy = tf.distribute.MirroredStrategy() if several else tf.distribute.get_strategy()
    batch *= strategy.num_replicas_in_sync
    respond, width = _responder(model, layer, strategy), model.get_layer(layer).output.shape[-1]
    batches = _read_ahead(paths, prepare, model.input_shape[1:], batch)
    best, photos = np.full((count, width), -np.inf, np.float32), np.full((count, width), -1)
    seen, unreadable, interrupted = 0, [], False
    try:
        for indices, x, good in progress(batches, -(-len(paths) // batch)):
            x = tf.pad(x, [(0, batch - len(indices)), (0, 0), (0, 0), (0, 0)])  # batches of one size: a single trace
            values = np.where(good[:, None], respond(x)[:len(indices)], -np.inf)
            values = np.concatenate([best, values])
            owners = np.concatenate([photos, np.repeat(indices[:, None], width, axis=1)])
            order = np.argsort(-values, axis=0, kind="stable")[:count]
            best, photos = np.take_along_axis(values, order, axis=0), np.take_along_axis(owners, order, axis=0)
            seen += int(good.sum())
            unreadable += [paths[index] for index in indices[~good]]
    except KeyboardInterrupt:
        tell(f"stopped after {seen} of {len(paths)} photographs")
        interrupted = True
    if not seen:
        raise KeyboardInterrupt if interrupted else UserError(f"none of the {len(paths)} photographs could be read")
    return Strongest(layer, best, photos, seen, unreadable, interrupted)


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


class Tile(NamedTuple):
    """A picture with the words above it; image uint8 (h, w, 3), RGB."""

    image: np.ndarray
    title: str


def colormap_number(name):
    """OpenCV's number of a colour map given by name (`jet`, `turbo`, `viridis` …)."""
    known = {key[9:].lower(): value for key, value in vars(cv2).items() if key.startswith("COLORMAP_")}
    return known[check_words([name.lower()], known, "colour map")[0]]


def colorize(values, colormap):
    """Numbers from 0 to 1, (h, w), as colours: cv2.applyColorMap, uint8 (h, w, 3), RGB."""
    return cv2.applyColorMap(np.uint8(np.clip(values, 0, 1) * 255 + 0.5), colormap)[..., ::-1]


def heat_map(cam, height, width, sign=1, scale=None):
    """The last ReLU and the scale: (heat, strength) of a signed map (h, w).

    sign: 1 keeps what speaks for the class, -1 what speaks against it. scale: what is drawn as 1; the strongest pixel
    where none is given. heat: float32 (height, width), enlarged, from 0 to 1; all zero where no pixel has that sign.
    strength: the strongest pixel before scaling, in units of the logit.
    """
    evidence = np.maximum(sign * np.asarray(cam, np.float32), 0)
    strength = evidence.max()
    heat = cv2.resize(evidence / (scale or strength or 1), (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(heat, 0, 1), float(strength)


def overlay(image, heat, colormap, alpha=0.5):
    """A heat map (h, w) from 0 to 1 in colours over a picture of the same size: uint8 (h, w, 3), RGB."""
    return cv2.addWeighted(np.ascontiguousarray(colorize(heat, colormap)), alpha, image, 1 - alpha, 0)


def grey_scale(values):
    """What `signed_grey` draws as white: the 99th percentile of the absolute values that are not zero."""
    size = np.abs(np.asarray(values, np.float32))
    return float(np.percentile(size[size > 0], 99)) if size.any() else 1.0


def signed_grey(values, scale=None):
    """A projection or gradient (h, w, 3) as a picture on mid-grey, uint8, one rule for all.

    Zero is grey (128) and the sign is kept, on one scale for the three channels; a high percentile of the absolute
    values (`grey_scale`) goes to white or black, so that one hot pixel does not darken the rest.
    """
    return np.uint8(np.clip(128.5 + 127 * np.asarray(values, np.float32) / (scale or grey_scale(values)), 1, 255))


class Look:
    """One photograph seen by one network: what the figures of a script have in common.

    label: the network as titles spell it; in lower case it stands in file names and keys. x: what the network is fed,
    float32 (1, H, W, 3), channels in the order `channels` ("RGB" or "BGR").
    """

    def __init__(self, label, model, photo, x, options, channels="RGB"):
        self.label, self.name, self.model = label, label.lower(), model
        self.photo, self.x, self.options = photo, x, options
        self.seen, self.channels = ForwardPass(model, x), channels
        self.logits = self.seen.output[0].numpy() if self.seen.output.shape.rank == 2 else None
        self.image = fit(photo.pixels, TILE)
        self.original = Tile(self.image, short(photo.path.name))
        self.layers = options.layers[self.name]
        self.last = self.layers[-1]

    @functools.cached_property
    def classes(self):
        return choose_classes(self.options.classes, self.logits)

    @functools.cached_property
    def kernels(self):
        chosen = self.options.kernels
        return chosen if isinstance(chosen, list) else self.seen.strongest(self.last, chosen)

    @functools.cached_property
    def cams(self):
        """{class: signed Grad-CAM map of the last layer}"""
        return dict(zip(self.classes, self.seen.grad_cam([self.last], self.classes)[self.last].numpy()))

    @property
    def evidence(self):
        """The arrays behind a figure that draws `cams`."""
        return {f"{self.last}/{index}": cam for index, cam in self.cams.items()}

    def probability(self, index):
        return softmax(self.logits)[index]

    def title(self, index):
        return f"{class_name(index)}\np {self.probability(index):.3f}"

    def heat(self, cam, title, sign=1, image=None):
        """A class's map laid over the photograph, its strength in the title; grey, and said so, where it is empty."""
        image = self.image if image is None else image
        heat, strength = heat_map(cam, *image.shape[:2], sign)
        if not strength:
            grey = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None] // 2 + 64, 3, axis=2)
            return Tile(grey, f"{title} · no {'positive' if sign > 0 else 'negative'} evidence")
        extreme = f"{'max' if sign > 0 else 'min'} {sign * strength:.3g}"
        return Tile(overlay(image, heat, self.options.colormap), f"{title} · {extreme}")

    def feature(self, map_, title, scale=None, over=False):
        """A kernel's map (h, w) in colours, over the photograph if wanted, its maximum in the title."""
        heat, strength = heat_map(map_, *self.image.shape[:2], scale=scale)
        colours = colorize(heat, self.options.colormap)
        picture = overlay(self.image, heat, self.options.colormap) if over else colours
        return Tile(picture, f"{title} · max {strength:.3g}" if strength else f"{title} · silent")

    def response(self, layer, kernel, scale=None):
        """A kernel's map over the photograph; of a dense layer's unit, which has no map, the photograph."""
        map_ = self.seen.feature_map(layer)[0].numpy()[..., kernel]
        if map_.ndim == 0:
            return Tile(self.image, f"{layer} unit {kernel} · {map_:.3g}")
        return self.feature(map_, f"{layer} kernel {kernel}", scale, over=True)

    def grey(self, values, title, window=None, scale=None):
        """A projection or gradient (H, W, 3), or a Window of it, on mid-grey, at the photograph's own proportions."""
        values = values[..., ::-1] if self.channels == "BGR" else values
        picture = signed_grey(values, scale)
        if window:
            picture = picture[window.top:window.bottom, window.left:window.right]
            height, width = self.cut(window).shape[:2]
        else:
            height, width = self.image.shape[:2]
        return Tile(resize(picture, width, height), title)

    def cut(self, window):
        """The part of the photograph that a Window of the network's input shows, its longer side TILE pixels long."""
        down, right = np.array(self.photo.pixels.shape[:2]) / self.x.shape[1:3]
        top, left = int(window.top * down), int(window.left * right)
        bottom, end = max(round(window.bottom * down), top + 1), max(round(window.right * right), left + 1)
        return fit(self.photo.pixels[top:bottom, left:end], TILE)

    def patch(self, layer, kernel, projection):
        """A kernel's projection and what it sees of the photograph: in mode max both cut to the receptive field."""
        field = self.seen.receptive_field(layer, kernel) if self.options.mode == "max" else None
        seen = self.cut(field) if field else self.image
        return self.grey(projection, "", field).image, seen

    def patches(self, layer, kernels, projections):
        """The patches of several kernels of a layer as two tiles: the projections, and what they see."""
        pairs = [self.patch(layer, kernel, projection) for kernel, projection in zip(kernels, projections)]
        left, right = (mosaic(images) for images in zip(*pairs))
        first, last = (self.seen.feature_map(layer)[..., kernels[place]].numpy().max() for place in (0, -1))
        return [Tile(left, f"{layer}\nkernels {' '.join(map(str, kernels))}"),
                Tile(right, f"activations {first:.3g} to {last:.3g}")]

    def arrays(self, arrays):
        """Arrays under the keys of the contract: the network's name first, its input and logits among them."""
        logits = {} if self.logits is None else {"logits": self.logits}
        return prefix(self.name, {"input": self.x, **logits, **arrays})

    def save(self, figure, rows, note, arrays, colorbar=True):
        """Write a figure of this photograph and network and, if asked for, the arrays behind it."""
        save_figure(self.options, self.photo.stem, self.label, figure, rows, f"{self.photo.path.name} · {note}",
                    self.arrays(arrays), colorbar)


def short(name):
    """A file name that is too long for a title, without its middle."""
    return name if len(name) <= 36 else f"{name[:22]}…{name[-13:]}"


def prefix(name, arrays):
    """Arrays under keys that begin with the network's name."""
    return {f"{name}/{key}": np.asarray(value) for key, value in arrays.items()}


def save_figure(options, stem, label, figure, rows, note, arrays, colorbar=True):
    """Write OUTPUT/STEM_MODEL_FIGURE.jpg and, with --arrays, the .npz beside it; see `save_picture`."""
    untrained = f"untrained weights, seed {options.seed}"
    weights = untrained if options.weights == "random" else f"weights {Path(options.weights).name}"
    path = options.output / f"{stem}_{label.lower()}_{figure}.jpg"
    save_picture(path, list(rows), f"{label} · {figure} · {weights}", note,
                 options.colormap if colorbar else None, arrays if options.arrays else None)


def class_name(index):
    """A class as pictures name it: name, index and WordNet id."""
    synset, name = imagenet_classes()[index]
    return f"{name} ({index}, {synset})"


def plot(draw, width, height):
    """What `draw(axes)` draws with matplotlib, as an image uint8 (height, width, 3), RGB."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    figure = Figure(figsize=(width / 100, height / 100), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    draw(figure.subplots())
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def curve_tile(trial, kind):
    """A Trial's `deletion` or `insertion` curve over the mean and spread of the random ones, as a tile."""
    curve, chance = getattr(trial, kind), getattr(trial, f"random_{kind}")

    def draw(axes):
        mean, spread = chance.mean(axis=0), chance.std(axis=0)
        axes.fill_between(trial.shares, mean - spread, mean + spread, color="0.85")
        axes.plot(trial.shares, mean, color="0.5", label="at random")
        axes.plot(trial.shares, curve, color="C3", label="warmest first")
        axes.set(xlim=(0, 1), ylim=(0, max(curve.max(), (mean + spread).max()) * 1.05 + 1e-6),
                 xlabel=f"share of pixels {'deleted' if kind == 'deletion' else 'inserted'}", ylabel="probability")
        axes.legend(frameon=False, fontsize=8)

    return Tile(plot(draw, TILE, 220), f"{kind}: area {area(curve):.3f}\nat random {area(chance).mean():.3f} "
                                       f"± {area(chance).std():.3f}")


def class_map(indices, image):
    """A map (h, w) of class indices over a picture, a colour a class, and its legend: two tiles."""
    import matplotlib
    classes, places, counts = np.unique(indices, return_inverse=True, return_counts=True)
    frequent = np.argsort(-counts, kind="stable")[:10]
    colours = np.full((len(classes), 3), 0.5)  # those that the legend does not name are grey
    colours[frequent] = matplotlib.colormaps["tab10"](np.arange(len(frequent)))[:, :3]
    picture = np.uint8(colours[places.reshape(indices.shape)] * 255)
    picture = cv2.resize(picture, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)

    def legend(axes):
        axes.set_axis_off()
        for place in frequent:
            axes.scatter([], [], marker="s", color=colours[place], label=class_name(classes[place]))
        axes.legend(loc="upper left", frameon=False, fontsize=8)

    count = f"classes: {len(classes)}" + (", the ten most frequent" if len(classes) > 10 else "")
    return [Tile(cv2.addWeighted(picture, 0.5, image, 0.5, 0), "most probable class"),
            Tile(plot(legend, TILE, 220), count)]


def wrap(tiles, columns):
    """Tiles in rows of so many columns."""
    return [tiles[start:start + columns] for start in range(0, len(tiles), columns)]


def mosaic(images, columns=3, cell=120):
    """Small images side by side on white, the longer side of each `cell` pixels long: uint8 (h, w, 3), RGB."""
    small = [fit(image, cell) for image in images]
    down, right = (max(image.shape[axis] for image in small) + 4 for axis in (0, 1))
    canvas = np.full((-(-len(small) // columns) * down - 4, columns * right - 4, 3), 255, np.uint8)
    for place, image in enumerate(small):
        y, x = place // columns * down, place % columns * right
        canvas[y:y + image.shape[0], x:x + image.shape[1]] = image
    return canvas


def beside(tile, rows):
    """A tile in front of the first row, the others moved along."""
    rows = list(rows)
    return [[tile, *rows[0]], *(row if isinstance(row, str) else [None, *row] for row in rows[1:])]


GAP, LINE, MARGIN = 12, 16, 16  # pixels of a page: between tiles, of a line of text, around it all


def save_picture(path, rows, heading, note="", colorbar=None, arrays=None):
    """Lay tiles out in rows and write them as a JPEG, and `arrays`, if given, as .npz beside it; print the paths.

    rows: lists of Tile or None for a gap; a str is a line of text. heading: bold, first line; note: below it.
    colorbar: a colour map whose scale, from 0 to the maximum that each title gives, is drawn beside the tiles.
    Files appear whole or not at all; UserError where they cannot be written.
    """
    tiles = [tile for row in rows if not isinstance(row, str) for tile in row if tile]
    cell = max(max(tile.image.shape[1], _text_width(tile.title)) for tile in tiles)
    columns = max(len(row) for row in rows if not isinstance(row, str))
    width = max(2 * MARGIN + columns * (cell + GAP) - GAP, 480) + (60 if colorbar is not None else 0)
    notes = textwrap.wrap(note, (width - 2 * MARGIN) // 7) if note else []
    headings = textwrap.wrap(heading, (width - 2 * MARGIN) // 11)
    top = MARGIN + 22 * len(headings) + LINE * len(notes) + GAP
    texts, images, height = _lay_out(rows, cell, top, width)
    texts += [(MARGIN, MARGIN + 22 * len(headings) - 4, "\n".join(headings), 12, "bold"),
              (MARGIN, top - GAP, "\n".join(notes), 9, "normal")]
    if colorbar is not None:
        strip = min(240, height - top - 2 * LINE)
        x, y = width - 44, top + 2 * LINE
        images.append((x, y, np.repeat(colorize(np.linspace(1, 0, strip)[:, None], colorbar), 16, axis=1)))
        texts += [(x, y - 4, "max", 8, "normal"), (x, y + strip + LINE, "0", 8, "normal")]
        height = max(height, y + strip + 3 * LINE)
    if max(height, width) > 65000:
        raise UserError(f"cannot write {path}: {width} x {height} pixels are more than a JPEG takes: choose less")
    pixels = _page(texts, images, height, width)
    write_whole(path, lambda file: Image.fromarray(pixels).save(file, "JPEG", quality=92))
    if arrays is not None:
        write_whole(path.with_suffix(".npz"), lambda file: np.savez(file, **arrays))


def _lay_out(rows, cell, top, width):
    """Where everything in rows goes, in columns of `cell` pixels from line `top` on: (texts, images, height).

    texts: (x, y of the last baseline, text, size, weight); images: (x, y, pixels).
    """
    texts, images, y = [], [], top
    for row in rows:
        if isinstance(row, str):
            sentence = textwrap.wrap(row, (width - 2 * MARGIN) // 7)
            y += LINE * len(sentence)
            texts.append((MARGIN, y - 6, "\n".join(sentence), 9, "normal"))
            y += GAP
            continue
        shown = [(MARGIN + column * (cell + GAP), tile) for column, tile in enumerate(row) if tile]
        y += LINE * max(tile.title.count("\n") + 1 if tile.title else 0 for _, tile in shown) + 4
        texts += [(x, y - 6, tile.title, 9, "normal") for x, tile in shown]
        images += [(x, y, tile.image) for x, tile in shown]
        y += max(tile.image.shape[0] for _, tile in shown) + GAP
    return texts, images, y + MARGIN - GAP


def _page(texts, images, height, width):
    """Texts, written by matplotlib, and images, copied in as they are, on white: uint8 (height, width, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    figure = Figure(figsize=((width + 0.1) / 100, (height + 0.1) / 100), dpi=100)  # 0.1: sizes are cut to whole pixels
    canvas = FigureCanvasAgg(figure)
    for x, y, text, size, weight in texts:
        text = text.encode("utf-8", "replace").decode()  # a file name may be no text at all
        figure.text(x / width, 1 - y / height, text, size=size, weight=weight, va="baseline", parse_math=False,
                    linespacing=1.2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that the font lacks
        canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    for x, y, image in images:
        pixels[y - 1:y + image.shape[0] + 1, x - 1:x + image.shape[1] + 1] = 208  # a frame: some are white themselves
        pixels[y:y + image.shape[0], x:x + image.shape[1]] = image
    return pixels


def _text_width(text):
    """Pixels that the longest line of a title takes."""
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.font_manager import FontProperties
    renderer, font = RendererAgg(1, 1, 100), FontProperties(size=9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that the font lacks
        return max(round(renderer.get_text_width_height_descent(line, font, False)[0]) + 1
                   for line in text.encode("utf-8", "replace").decode().split("\n"))


def write_whole(path, write):
    """Write a file beside its place and rename it, so that it appears whole or not at all; list its path on stdout.

    write: a function of a file. It is given one in memory: encoders forget to look whether a disk has taken it all.
    """
    part, whole, stopped = path.with_name(f".{secrets.token_hex(8)}.part"), io.BytesIO(), []
    try:
        with _on_interrupt(lambda *_: stopped.append(True)):  # it waits until the file is there
            write(whole)
            with open(part, "xb") as file:
                file.write(whole.getbuffer())
            os.replace(part, path)
            _list(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    if stopped:
        raise KeyboardInterrupt


def _list(path):
    """Name a file on stdout. UserError where that cannot be written."""
    try:
        sys.__stdout__.buffer.write(os.fsencode(path) + b"\n")  # in the name's own bytes, whatever the terminal's
        sys.__stdout__.buffer.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())  # or Python tries once more as it ends
        if not isinstance(error, BrokenPipeError):  # where nobody listens any more the rest is drawn all the same
            raise UserError(f"cannot list {path} on stdout: {error.strerror or error}") from error


def _make_folder(path):
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path}: {error.strerror or error}") from error
    if not os.access(path, os.W_OK):
        raise UserError(f"cannot write into the folder {path}")
    for part in path.glob(".*.part"):  # what a killed run left behind
        with contextlib.suppress(OSError):  # another run may clear it away at the same moment
            if re.fullmatch(r"\.[0-9a-f]{16}\.part", part.name) and time.time() - part.lstat().st_mtime > 60:
                part.unlink()


# ---------------------------------------------------------------------------------------------------------------------
# Figures that are the same in every script of a family


def draw_trust(look, control):
    """Can the maps be believed? Deletion and insertion against chance, and the network with its weights drawn anew.

    control: such a network (Adebayo et al. 2018, arXiv 1810.03292: a map that does not change does not explain).
    """
    rows, arrays = [], dict(look.evidence)
    drawn_anew = ForwardPass(control, look.x).grad_cam([look.last], look.classes)[look.last].numpy()
    for (index, cam), anew in zip(look.cams.items(), drawn_anew):
        if not cam.max() > 0:
            rows.append([look.heat(cam, look.title(index))])
            rows.append(f"No pixel speaks for {class_name(index)}: nothing to test.")
            continue
        trial = put_to_the_test(look.model, look.x, cam, index, look.last)
        same = rank_correlation(cam, anew)
        rows.append([look.heat(cam, look.title(index)), curve_tile(trial, "deletion"),
                     curve_tile(trial, "insertion"),
                     look.heat(anew, f"weights drawn anew\nrank correlation {same:.2f}")])
        rows.append(verdict(trial, class_name(index)) + (
            f" But it resembles the map of weights drawn anew (rank correlation {same:.2f})." if same > 0.5 else ""))
        arrays |= {f"{look.last}/{index}/{key}": value for key, value in trial._asdict().items()}
        arrays |= {f"{look.last}/{index}/control": anew, f"{look.last}/{index}/rank_correlation": same}
    look.save("trust", rows, f"{look.last} · deletion: lower is better, insertion: higher is better", arrays)


WAYS = {  # of bringing a kernel down: mode, rule (see ForwardPass)
    "DeconvNet, max": ("max", "deconvnet"), "DeconvNet, all": ("all", "deconvnet"),
    "guided backpropagation": ("max", "guided"), "plain gradient": ("max", "gradient")}


def compare_ways(look):
    """The same kernels of one photograph, brought down in four ways."""
    layer, rows, arrays = look.last, [], {}
    ways = {way: look.seen.deconvnet(layer, look.kernels, mode, rule) for way, (mode, rule) in WAYS.items()}
    for place, kernel in enumerate(look.kernels):
        rows.append([look.response(layer, kernel), *(look.grey(ways[way][place], way) for way in ways)])
        arrays[f"{layer}/{kernel}"] = ways[f"DeconvNet, {look.options.mode}"][place]
        arrays |= {f"{layer}/{kernel}/{way}": ways[way][place] for way in ways}
    save_figure(look.options, look.options.group, look.label, "comparison", beside(look.original, rows),
                f"{look.photo.path.name} · {layer} · each picture on its own scale", look.arrays(arrays))


def compare_photos(looks, total):
    """The same kernels under the same weights on several photographs: a row a kernel, one colour scale a row."""
    first, rows, arrays = looks[0], [], {f"input/{look.photo.stem}": look.x for look in looks}
    layer, kernels, options = first.last, first.kernels, first.options
    projections = [look.seen.deconvnet(layer, kernels, options.mode) for look in progress(looks, len(looks))]
    for kernel, ours in zip(kernels, zip(*projections)):
        heat = max(np.max(look.seen.feature_map(layer)[..., kernel]) for look in looks)
        grey, row = grey_scale(ours), []
        for look, projection in zip(looks, ours):
            field = look.seen.receptive_field(layer, kernel) if options.mode == "max" else None
            response = look.response(layer, kernel, heat)
            row += [response._replace(title=f"{look.original.title}\n{response.title}"),
                    look.grey(projection, "projection", field, grey)]
            arrays[f"{layer}/{kernel}/{look.photo.stem}"] = projection
        rows.append(row)
    save_figure(options, options.group, first.label, "comparison", rows,
                f"{layer} · mode {options.mode} · {len(looks)} of {total} photographs · a scale a row",
                prefix(first.name, arrays))


def draw_top9(found, paths, see, options):
    """For each kernel the nine photographs that excite it most, cut to its receptive field, beside the projections.

    found: Strongest of the photographs `paths`. see: path -> Look.
    """
    layer, kernels = found.layer, options.kernels
    if not isinstance(kernels, list):
        kernels = np.argsort(-found.activations[0], kind="stable")[:kernels].tolist()
    owners, pairs, arrays = found.photos[:, kernels], {}, {}
    chosen = np.unique(owners[owners >= 0])
    for index in progress(chosen, len(chosen)):  # a photograph serves all its kernels at once
        look, mine = see(paths[index]), [kernel for kernel in kernels if index in found.photos[:, kernel]]
        for kernel, projection in zip(mine, look.seen.deconvnet(layer, mine, options.mode)):
            pairs[kernel, index] = look.patch(layer, kernel, projection)
            arrays[f"{layer}/{kernel}/{look.photo.stem}"] = projection
        arrays[f"input/{look.photo.stem}"] = look.x
    tiles = []
    for kernel, indices, strengths in zip(kernels, owners.T, found.activations[:, kernels].T):
        indices, strengths = indices[indices >= 0], strengths[indices >= 0]
        left, right = (mosaic(images) for images in zip(*(pairs[kernel, index] for index in indices)))
        tiles += [Tile(left, f"{layer} kernel {kernel}"),
                  Tile(right, f"activation {strengths[0]:.3g} to {strengths[-1]:.3g}")]
        arrays |= {f"{layer}/{kernel}/photographs": [str(paths[index]) for index in indices],
                   f"{layer}/{kernel}/stems": [options.stems[paths[index]] for index in indices],
                   f"{layer}/{kernel}/activations": strengths}
    save_figure(options, options.group, look.label, "top9", wrap(tiles, 6),
                f"{found.seen} of {len(options.images)} photographs seen · strongest first · zero is grey",
                prefix(look.name, arrays), False)
    tell(f"{len(paths)} photographs: {found.seen} seen, {len(found.unreadable)} unreadable")


def draw_occlusion(look):
    """Zeiler and Fergus, figure 7: class and strongest kernel where a grey square hides a part."""
    layer, index, kernel = look.last, look.classes[0], look.kernels[0]

    def hidden(map_, title):  # from the least to the most: far from zero, the differences are what counts
        heat, _ = heat_map(map_ - map_.min(), *look.image.shape[:2])
        return Tile(overlay(look.image, heat, look.options.colormap), f"{title}, {map_.min():.3g} to {map_.max():.3g}")

    probabilities, responses = occlusion(look.model, look.x, layer, look.options.patch, look.options.stride)
    ours, response = probabilities[..., index], responses[..., kernel]
    tiles = [look.original,
             hidden(ours, f"{class_name(index)}\nprobability"),
             *class_map(probabilities.argmax(axis=-1), look.image),
             hidden(response, f"{layer} kernel {kernel}\nsummed response"),
             look.grey(look.seen.deconvnet(layer, [kernel], look.options.mode)[0], f"kernel {kernel}, projection")]
    look.save("occlusion", wrap(tiles, 3),
              f"a grey square of {look.options.patch} pixels is centred on each point of the maps, which run from "
              "their least (cold: what is hidden there is needed) to their most",
              {f"{layer}/{index}/probability": ours, f"{layer}/{kernel}/response": response,
               "most_probable": probabilities.argmax(axis=-1)}, False)
