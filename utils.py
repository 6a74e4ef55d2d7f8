"""What the scripts share, in the order of a run: from the command line to pages and measures.

For a notebook: `read_photo`, `network_input`, `open_network`, `overlay`. Importing this module
costs no TensorFlow."""

import argparse
import concurrent.futures
import contextlib
import csv
import difflib
import fnmatch
import functools
import glob
import hashlib
import importlib
import importlib.util
import io
import itertools
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import textwrap
import traceback
import warnings
import weakref
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import cv2
import h5py
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave
from PIL import Image, ImageOps

HERE = Path(__file__).resolve().parent
VGG16_CONVOLUTIONS = HERE / "Image" / "vgg16_imagenet_notop.weights.h5"
VGG16_CLASSIFIER = HERE / "Image" / "vgg16_head_200_classes.npz"
PHOTO_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")  # none that starts other programs
PHOTO_ENDINGS = (
    ".jpg .jpeg .jpe .jfif .png .gif .bmp .webp .tif .tiff"
    " .heic .heif .avif .dng .cr2 .nef .arw"  # these last are only told apart
)
COLORMAPS = {key[9:].lower(): value for key, value in vars(cv2).items() if key[:9] == "COLORMAP_"}
PREPROCESS = ("caffe", "tf", "torch", "unit", "none")
FITS = ("squeeze", "crop", "pad")
INTERPOLATIONS = {"bilinear": cv2.INTER_LINEAR, "nearest": cv2.INTER_NEAREST_EXACT}
PAGE = 1200  # pixels: the width that tiles are made for; a page is as wide as its tiles
GAP = 10  # pixels between tiles
MARGIN = 14  # pixels around a page
JPEG_LIMIT = 65500  # pixels: what libjpeg allows a picture to be high
BOX_COLOUR = (255, 30, 30)  # RGB: of a map's box, red
TRUE_BOX_COLOUR = (0, 200, 70)  # green
BEST = 9  # how many photographs top9 shows of a kernel

os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever keras.json says: tf differentiates
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


# --- telling people ---


class UserError(Exception):
    """Something expected to go wrong; its text is the line that the person at the shell reads."""


def warn(text):
    """Say something on stderr, on one line of bearable length."""
    print(textwrap.shorten(text, 600, placeholder=" …"), file=sys.stderr)


say = functools.cache(warn)  # once a run


def few(words):
    """The first of many words, for a message."""
    return ", ".join(words if len(words) < 6 else [*words[:5], "…"])


@contextlib.contextmanager
def quiet():
    """Keep off the terminal what TensorFlow's C++ says while it is imported and started."""
    with open(os.devnull, "w") as nowhere, os.fdopen(os.dup(2), "w") as terminal:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal.fileno(), 2)


class LazyModule:
    """A module imported at its first use: wrong words are told before TensorFlow is there."""

    def __init__(self, name):
        self._name = name

    def __getattr__(self, attribute):
        with quiet():
            module = importlib.import_module(self._name)
        value = getattr(module, attribute)
        setattr(self, attribute, value)
        return value


keras = LazyModule("keras")
tf = LazyModule("tensorflow")


def run(main):
    """Exit code of a program: 2 and one line for what may be expected to go wrong, 130: Ctrl-C."""
    logging.disable(logging.WARNING)  # what libraries have to say to programmers
    warnings.simplefilter("ignore")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is the list of files written
            return main()
    except (UserError, OSError) as error:  # OSError: what cannot be read or written
        warn(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        warn("stopped")
        return 130


def suggest(word, known):
    """A clause that names what is nearest to a mistyped word, or what there is."""
    found = [name for name in known if word.lower() in name.lower()][-3:]
    found = found or difflib.get_close_matches(word, known, 3, 0.5)
    if found:
        return f": did you mean {', '.join(found)}?"
    if 0 < len(known) < 30:
        return f": one of {', '.join(known)}"
    return ""


# --- the command line ---


@dataclass(frozen=True)
class Selection:
    """What was asked for: indices, and so many of the strongest at a place among them."""

    indices: tuple = ()
    top: int = 0
    place: int = 0

    def __str__(self):
        words = list(map(str, self.indices))
        if self.top:
            words.insert(self.place, f"top{self.top}")
        return ",".join(words)

    def first(self):
        """The first of what was asked for."""
        if self.indices and (self.place or not self.top):
            return Selection(self.indices[:1])
        return Selection(top=1)

    def among(self, scores):
        """The indices chosen, each once, in the order asked for. scores: (n,)."""
        ranked = np.argsort(-np.asarray(scores), kind="stable")[: self.top].tolist()
        chosen = [*self.indices[: self.place], *ranked, *self.indices[self.place :]]
        return list(dict.fromkeys(chosen))


@dataclass(frozen=True)
class Weights:
    """What --weights names: a word, or a file or folder; whether that is a whole saved network."""

    word: str
    path: Path | None = None
    saved: bool = False

    @property
    def title(self):
        return self.path.name if self.path else self.word


def split_words(text):
    """Words between commas or in lines, each once; one with a comma stands in quotes, as in CSV."""
    words = itertools.chain(*csv.reader(text.splitlines(), skipinitialspace=True))
    return list(dict.fromkeys(word.strip() for word in words if word.strip()))


def one_of(*known):
    """A reader of one word of those known, in any case."""
    names = {name.lower(): name for name in known}

    def read(text):
        word = text.strip()
        if word.lower() not in names:
            raise argparse.ArgumentTypeError(f"unknown {word!r}{suggest(word, known)}")
        return names[word.lower()]

    return read


def some_of(*known):
    """A reader of words between commas, of those known (`all`: every one), or any."""
    read_one = one_of(*known) if known else str

    def read(text):
        words = split_words(text)
        if not words:
            raise argparse.ArgumentTypeError(f"it takes names, not {text!r}")
        found = [read_one(word) for word in words if not known or word != "all"]
        return list(known) if known and "all" in words else found

    return read


def number(least, most=2**32 - 1):
    """A reader of a whole number within a range."""

    def read(text):
        if not re.fullmatch(r"-?\d{1,12}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r}: a whole number from {least} to {most}")
        return int(text)

    return read


def read_kernels(text):
    """A Selection of kernels: numbers and ranges of them, or the N of `topN`."""
    if re.fullmatch(r"top[1-9]\d{0,3}", text):
        return Selection(top=int(text[3:]))
    numbers = []
    for word in text.split(","):
        ends = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", word.strip())
        if not ends:
            raise argparse.ArgumentTypeError(f"{text!r}: numbers from 0, ranges like 0-8, or top9")
        first, last = sorted((int(ends[1]), int(ends[2] or ends[1])))
        numbers += range(first, last + 1)
    return Selection(tuple(dict.fromkeys(numbers)))


def weights_of(*words):
    """A reader of --weights: one of these words, or the path of a file or folder."""

    def read(text):
        if text in words:
            return Weights(text)
        if text == "tiny":
            raise argparse.ArgumentTypeError(f"tiny is gone{suggest('bundled', words)}")
        path = Path(text)
        if not text or not (path.exists() or Path(f"{text}.index").exists()):
            wanted = ", ".join(words)
            raise argparse.ArgumentTypeError(f"no {text!r}: give {wanted}, a file or a folder")
        refuse_foreign(path)
        return Weights("", path, is_saved_network(path))

    return read


READERS = {
    "MODELS": some_of("vgg16", "vgg19"),
    "LAYERS": some_of(),
    "CLASSES": some_of(),
    "KERNELS": read_kernels,
    "MODE": one_of("max", "all"),
    "PATCH": number(1, 100),
    "STRIDE": number(1, 100),
    "COMPARED": number(1, 32),
    "LABELS": str,
    "PREPROCESS": one_of("auto", *PREPROCESS),
    "FIT": one_of(*FITS),
    "RESIZE": one_of("area", *INTERPOLATIONS),
    "PLACE": one_of("field", "stretch"),
    "IMPORT": str,
    "THRESHOLD": number(1, 99),
    "BOXES": str,
    "PAGES": number(1, 999),
    "SCALE": number(1, 8),
    "SEED": number(0),
    "OUTPUT": Path,
    "FORMAT": one_of("jpg", "png", "pdf"),
    "COLORMAP": one_of(*COLORMAPS),
}


class Parser(argparse.ArgumentParser):
    """Tells what is wrong as a UserError; prints its help on the real stdout."""

    def error(self, message):
        raise UserError(f"{message} (see --help)")

    def print_help(self, file=None):
        super().print_help(file or sys.__stdout__)


def as_typed(constant):
    """A constant as a person would type it: a list is a line of CSV."""
    if isinstance(constant, str | int | Path):
        return str(constant)
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(constant)
    return line.getvalue()


def make_parser(script):
    """The parser of a script's options: its constants, with their comments and defaults."""
    figures = script["FIGURES_DRAWN"]
    said = [f"{name:12} {draw.__doc__.splitlines()[0]}" for name, draw in figures.items()]
    parser = Parser(
        description=script["__doc__"],
        epilog="\n".join(["figures:", *said]),
        formatter_class=argparse.RawTextHelpFormatter,
        allow_abbrev=False,
    )
    readers = {
        **READERS,
        "FIGURES": some_of(*figures),
        "WEIGHTS": weights_of(*script["WEIGHTS_WORDS"]),
        "METHOD": one_of(*script.get("CAM_WEIGHTS", ())),
        "RULES": some_of(*script.get("RELU_RULES", ())),
    }
    source = Path(script["__file__"]).read_text(encoding="utf-8")
    comments = dict(re.findall(r"^([A-Z]+) = .*?  # (.*)$", source, re.MULTILINE))
    parser.set_defaults(script=Path(script["__file__"]).stem)
    parser.add_argument("images", nargs="*", help="photographs, folders of them, or patterns")
    for name in [name for name in script if name in readers]:
        default = as_typed(script[name])
        text = f"{comments.get(name, '')} (default: {default or 'none'})".replace("%", "%%")
        how = {"type": readers[name], "default": default, "metavar": name, "help": text}
        attribute = name.lower().replace("import", "import_")
        parser.add_argument(f"--{name.lower()}", dest=attribute, **how)
    how = {"action": argparse.BooleanOptionalAction, "default": script["ARRAYS"]}
    text = "save the numbers behind each figure too, as .npz"
    parser.add_argument("--arrays", help=text, **how)
    text = "leave out what was already drawn with the same settings"
    parser.add_argument("--skip-existing", action="store_true", help=text)
    text = "print the names of layers, one a line, and stop"
    parser.add_argument("--list-layers", action="store_true", help=text)
    return parser


def read_options(script):
    """The constants of a script, its globals(), overridden by its command line, as a namespace."""
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    options = make_parser(script).parse_intermixed_args(words[:end])
    options.images = [*options.images, *words[end + 1 :]]  # even those that look like options
    if options.labels and not options.weights.saved:
        raise UserError("--labels names the classes of a saved network: give that by --weights")
    if options.labels and not os.path.exists(options.labels):
        raise UserError(f"--labels {options.labels}: there is no such file or folder")
    if options.import_.endswith(".py") and not os.path.exists(options.import_):
        raise UserError(f"--import {options.import_}: there is no such file")
    if getattr(options, "boxes", ""):
        read_boxes(options.boxes)
    if not options.weights.saved:
        read_classes().select(options.classes)
    folder = options.output
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise UserError(f"cannot write into the folder {folder}: choose another by --output")
    return options


# --- photographs ---


@dataclass(frozen=True)
class Photo:
    """A photograph: its path, what its results are called, its pixels, uint8 (H, W, 3), RGB."""

    path: Path
    stem: str
    pixels: np.ndarray


@dataclass
class Album:
    """The photographs of a run."""

    paths: list
    stems: dict  # {path: what its results are called}
    name: str  # what the results of all are called
    given: tuple  # the words for them, as paths
    places: dict  # {path: the sub-folder of a folder given that it lies in}
    folders: list  # every sub-folder of the folders given, sorted
    unreadable: dict = field(default_factory=dict)  # {path: why}

    def read(self, path):
        """The Photo, or None for one that cannot be read, which is said once."""
        try:
            return Photo(path, self.stems[path], read_photo(path))
        except UserError as error:
            if path not in self.unreadable:
                warn(f"skipped: {error}")
            self.unreadable[path] = str(error)
            return None

    def readable(self):
        """Every Photo that can be read, in order."""
        return filter(None, map(self.read, self.paths))

    def result(self, options, figure, network, path=None):
        """The Result of a figure of one photograph, or over all of them."""
        if path:
            return Result(options, figure, network, (path,), self.stems[path])
        return Result(options, figure, network, tuple(self.paths), self.name, self.given)

    def exit_code(self):
        """0; 1 where some photographs could not be read, 2 where none could."""
        if len(self.unreadable) == len(self.paths):
            return 2
        return 1 if self.unreadable else 0


def open_album(options, images):
    """The photographs asked for. images: the script's constant, relative to the script."""
    constant = [images] if isinstance(images, str | Path) else images
    given = options.images or [str(HERE / image) for image in constant]
    paths = find_photos(given)
    if len(paths) == 1:
        read_photo(paths[0])  # a broken one is told at once
    roots = [Path(word) for word in given if os.path.isdir(word)]
    stems = name_results(paths)
    name = stems[paths[0]]
    if len(given) == len(roots) == 1:
        name = roots[0].resolve().name.lower()
    elif len(paths) > 1:
        name = f"{name}_and_{len(paths) - 1}_more"
    folders = sorted({folder for root in roots for folder in sub_folders(root)})
    return Album(paths, stems, name, tuple(map(Path, given)), place_photos(roots, paths), folders)


def place_photos(roots, paths):
    """{photograph: the name of the sub-folder of one of the folders given that it lies in}."""
    places = {}
    for path, root in itertools.product(paths, roots):
        inner = path.relative_to(root).parts if path.is_relative_to(root) else ()
        if len(inner) > 1:
            places[path] = inner[0]
    return places


def sub_folders(folder):
    """The names of a folder's sub-folders, sorted, without hidden ones."""
    return sorted(each.name for each in Path(folder).glob("[!.]*/") if each.is_dir())


def find_photos(given):
    """The paths of photographs among files, patterns and folders, in order, each once."""
    found = []
    for word in given:
        if not word or re.match(r"[a-zA-Z]+://", word):
            what = word or "an empty word"
            raise UserError(f"{what} is no file: give one; what an address names, fetch first")
        paths = [word] if os.path.exists(word) else sorted(glob.glob(word, recursive=True))
        for path in map(Path, paths or [word]):
            found += walk(path) if path.is_dir() else [path]
    if not found:
        raise UserError(f"no photographs in {', '.join(given)} (endings: {PHOTO_ENDINGS})")
    return list(dict.fromkeys(found))


def walk(folder):
    """The photographs below a folder, sorted; without hidden ones and without our own results."""
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        known = path.suffix.lower() in PHOTO_ENDINGS.split()
        if known and not hidden and path.is_file() and not is_result(path):
            yield path


RESULT_NAME = re.compile(
    r"_(layers|classes|negative|one_class|kernels|guided|overlay_[^_]+|trust|boxes|failures_[^_]+"
    r"|projections|blocks|comparison|top9|occlusion)\.(jpg|png)$"
)


def is_result(path):
    """Whether a picture is one of our own, by its name and by what it carries."""
    if not RESULT_NAME.search(path.name):
        return False
    try:
        with Image.open(path, formats=("JPEG", "PNG")) as image:
            carried = image.info.get("comment") or image.info.get("Subject") or ""
    except (OSError, ValueError, SyntaxError):
        return False
    return '"photographs": [' in str(carried)


def name_results(paths):
    """{path: what its results are called}: stems in lower case, no two the same."""
    stems, taken = {}, set()
    for path in paths:
        stem = shorten(path.stem.lower())
        if stem in taken:
            parent = path.resolve().parent.name
            stem = shorten(f"{parent}_{path.name.replace('.', '_')}".lower())
        while stem in taken:
            stem += "_"
        stems[path] = stem
        taken.add(stem)
    return stems


def shorten(stem):
    """A stem that leaves room for more in a file name of 255 bytes; cut ones are told apart."""
    encoded = os.fsencode(stem)
    if len(encoded) <= 150:
        return stem
    digest = hashlib.sha1(encoded).hexdigest()[:8]
    return f"{encoded[:140].decode(errors='ignore')}_{digest}"


def read_photo(path):
    """The pixels of a photograph, uint8 (H, W, 3), RGB, upright, transparency laid over white.

    UserError for what cannot be read. Pillow refuses a file that ends early, OpenCV does not."""
    try:
        refuse_lfs_pointer(path)
        with Image.open(path, formats=PHOTO_FORMATS) as image:
            if image.width * image.height > Image.MAX_IMAGE_PIXELS:
                limit = f"{Image.MAX_IMAGE_PIXELS:,} pixels"
                raise UserError(f"{path} has more than {limit}: shrink it")
            return upright_rgb(image)
    except UserError:
        raise
    except Exception as error:  # a decoder fails in many ways on a broken file
        formats = ", ".join(PHOTO_FORMATS)
        raise UserError(f"cannot read the photograph {path} ({formats}): {error}") from error


def upright_rgb(image):
    """The pixels of an open Pillow image, uint8 (H, W, 3)."""
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":  # 16 bits, or real numbers
        image = Image.fromarray(to_8_bits(np.asarray(image, np.float32), image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def to_8_bits(values, image):
    """Numbers of a TIFF, 0 to 1 or 0 to 65535, as uint8; others are scaled by what they hold."""
    values = np.nan_to_num(values)
    least, most = float(values.min()), float(values.max())
    if image.mode == "F" and least >= 0 and most <= 1:
        return np.uint8(values * 255)
    if image.mode != "F" and 4096 <= most <= 65535:
        return np.uint8(values / 257)
    if most > 255 or least < 0 or image.mode != "F":
        warn(f"{getattr(image, 'filename', 'a photograph')}: values {least:g} to {most:g}, scaled")
        values = (values - min(least, 0)) * (255 / max(most - min(least, 0), 1e-12))
    return np.uint8(values.clip(0, 255))


def resize(image, width, height):
    """cv2.resize: area averages where it shrinks, cubic where it grows."""
    shrinks = width < image.shape[1] or height < image.shape[0]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return cv2.resize(image, (width, height), interpolation=interpolation)


def fit_to(pixels, size, fit="squeeze", interpolation="area"):
    """A photograph as the network's rectangle, (H, W), by --fit and --resize: float32 (H, W, 3)."""
    start, length = fitted(pixels.shape[:2], size, fit)
    end = start + length
    if fit == "crop":
        pixels = pixels[start[0] : end[0], start[1] : end[1]]
    if fit == "pad":
        borders = np.transpose([-start, end - pixels.shape[:2]])
        pixels = np.pad(pixels, [*borders, (0, 0)], constant_values=128)
    height, width = size
    if interpolation == "area":
        return np.float32(resize(pixels, width, height))
    how = INTERPOLATIONS[interpolation]
    return cv2.resize(np.float32(pixels), (width, height), interpolation=how)


def network_input(
    pixels, size=(224, 224), preprocess="caffe", channels=3, fit="squeeze", interpolation="area"
):
    """What a network is fed: float32 (1, H, W, channels). pixels: uint8 (h, w, 3), RGB.

    size: (H, W). preprocess: caffe (BGR less the ImageNet mean), tf (-1 to 1), torch (ImageNet mean
    and deviation), as Keras calls them; unit (0 to 1), none (0 to 255). channels: 3, or 1 for
    grey. fit: squeeze, the whole; crop, its largest centred part of the size's proportions; pad,
    the whole between grey borders. interpolation: area; bilinear and nearest as Keras's loaders
    do. ValueError for anything else."""
    check_size(size)
    ways = [(preprocess, PREPROCESS), (fit, FITS), (interpolation, ("area", *INTERPOLATIONS))]
    for way, known in [*ways, (channels, (1, 3))]:
        if way not in known:
            raise ValueError(f"{way!r}: one of {known}")
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"pixels of shape (h, w, 3) are wanted, not {pixels.shape}")
    if channels == 1:
        grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        pixels = cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)
    x = fit_to(pixels, size, fit, interpolation)[None]
    if preprocess == "unit":
        x = x / 255
    if preprocess in ("caffe", "tf", "torch"):
        x = keras.applications.imagenet_utils.preprocess_input(x, "channels_last", preprocess)
    return x if channels == 3 else x.mean(axis=-1, keepdims=True)


def check_size(size):
    """ValueError unless it is (height, width), in pixels."""
    if np.shape(size) != (2,) or min(size) < 1:
        raise ValueError(f"size=(height, width), in pixels, is wanted, not {size!r}")


# --- classes ---


@dataclass(frozen=True)
class ClassNames:
    """The classes of a network: WordNet ids, empty where there are none, and names."""

    synsets: list
    names: list

    def __len__(self):
        return len(self.names)

    def title(self, index):
        """A class in titles; what is in brackets stays on one line."""
        name = self.names[index]
        if name == f"class {index}":
            return name
        known = ",\N{NO-BREAK SPACE}".join(filter(None, [str(index), self.synsets[index]]))
        return f"{name} ({known})"

    def short(self, index):
        """A class's name, with its index where others are called the same."""
        name = self.names[index]
        return name if self.names.count(name) == 1 else f"{name} ({index})"

    @functools.cached_property
    def indices(self):
        """{word by which classes can be asked for, lower case: their indices}."""
        found = {}
        for index, name in enumerate(map(plain, self.names)):
            bare = name.removeprefix(f"{index} ")  # «0 rock», as Teachable Machine writes it
            for word in {plain(self.synsets[index]), name, bare}:
                found.setdefault(word, []).append(index)
        return found

    def called(self, word):
        """`index` of what is a name first: a folder `10` may well be the third of the classes."""
        return self.names.index(word) if self.names.count(word) == 1 else self.index(word)

    def index(self, word):
        """The class called by an index, a WordNet id or a name. UserError where there is none."""
        key = plain(word)
        if key.isdecimal() and int(key) < len(self):
            return int(key)  # whatever classes are called
        found = self.indices.get(key, [])
        if len(found) > 1:
            numbers = " or ".join(map(str, found))
            raise UserError(f"{len(found)} classes are called {word!r}: give an index, {numbers}")
        if not found:
            known = [name.lower() for name in self.names]
            if re.fullmatch(r"(top|-)?\d+", key):
                known = [f"0 … {len(self) - 1}", "top1 … top99"]
            raise UserError(f"unknown class {word!r}{suggest(key, known)}")
        return found[0]

    def select(self, words):
        """A Selection of classes from words: indices, WordNet ids, names, `top4`."""
        indices, top, place = [], 0, 0
        for word in words:
            counted = re.fullmatch(r"top([1-9]\d?)", word.strip().lower())
            if not counted:
                indices.append(self.index(word))
            elif int(counted[1]) > top:
                top, place = int(counted[1]), len(indices)
        return Selection(tuple(dict.fromkeys(indices)), min(top, len(self)), place)


def plain(name):
    """A name as it is compared: lower case, spaces for underscores."""
    return name.strip().lower().replace("_", " ")


def read_classes(labels="", count=1000):
    """The ClassNames of ImageNet; of a file, a line a class; of a folder, a sub-folder a class."""
    if not labels and count != 1000:
        return ClassNames([""] * count, [f"class {index}" for index in range(count)])
    if not labels:
        with open(HERE / "Image" / "imagenet_classes.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        names = [row["name"].replace("_", " ") for row in rows]
        return ClassNames([row["wordnet_id"] for row in rows], names)
    if os.path.isdir(labels):
        names = sub_folders(labels)
    else:
        names = Path(labels).read_text("utf-8-sig", "replace").strip().splitlines()
    if len(names) != count:
        raise UserError(f"{labels} names {len(names)} classes, the network has {count}")
    return ClassNames([""] * count, [name.strip() for name in names])


# --- networks ---


@contextlib.contextmanager
def plain_keras():
    """Channels last and float32, whatever keras.json or a notebook's policy say; restored after."""
    config = keras.config
    order, kind, policy = config.image_data_format(), config.floatx(), config.dtype_policy()
    config.set_image_data_format("channels_last")
    config.set_floatx("float32")
    config.set_dtype_policy("float32")
    try:
        yield
    finally:
        config.set_image_data_format(order)
        config.set_floatx(kind)
        config.set_dtype_policy(policy)


@dataclass(frozen=True)
class Recipe:
    """What a script says of its own network."""

    label: str  # in titles
    build: Callable  # of "imagenet", "bundled" or None, untrained: a Keras model with logits
    files: tuple  # published names of its weights
    shown: tuple  # wildcards: what --layers all draws
    layer: str | None = None  # what figures of one layer draw then; None: the last of those
    size: tuple = (224, 224)
    preprocess: str = "caffe"
    load: Callable = lambda model, path: model.load_weights(path)
    known: Path | None = None  # a text file of the classes that bundled weights know


@dataclass(frozen=True)
class Network:
    """A network, which layers and classes of it are drawn, and how it is fed."""

    model: object  # a flat Keras model with logits for output
    label: str  # in titles
    layers: list  # names, of figures of several layers
    layer: str  # of figures of one layer
    classes: ClassNames
    selection: Selection  # of classes
    kind: str  # how logits become probabilities: softmax, sigmoid, log, number
    preprocess: str
    fit: str
    interpolation: str
    about: str = ""  # in headings, if not the label

    @property
    def name(self):
        """In file names and array keys."""
        return self.label.lower()

    def keyed(self, arrays):
        """Arrays to be saved, under the network's name."""
        return {f"{self.name}/{key}": array for key, array in arrays.items()}

    def prepare(self, pixels):
        """The network's input of a photograph, float32 (1, H, W, channels)."""
        _, *size, channels = self.model.inputs[0].shape
        return network_input(pixels, size, self.preprocess, channels, self.fit, self.interpolation)

    def logits(self, x):
        """float32 (N, n_classes) of inputs (N, H, W, channels)."""
        return self.model(x, training=False).numpy()

    def predict(self, x):
        """Their probabilities."""
        return self.probabilities(self.logits(x))

    def probabilities(self, logits):
        """float32 of the shape of logits; of a number, the number."""
        logits = np.asarray(logits, np.float32)
        if self.kind == "number":
            return logits
        if self.kind == "log":
            return np.exp(logits)
        if self.kind == "sigmoid":
            return 1 / (1 + np.exp(-logits))
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return powers / powers.sum(axis=-1, keepdims=True)

    def maps(self, layer, x):
        """What a layer gives, float32 (h, w, K), of an input of one; (1, 1, K) of a dense layer."""
        output = get_operation(self.model, layer).output
        maps = keras.Model(self.model.inputs[0], output)(x, training=False)[0].numpy()
        return maps.reshape((1, 1, -1)) if maps.ndim == 1 else maps

    @functools.cached_property
    def geometries(self):
        return layer_geometries(self.model)

    def geometry(self, layer):
        """Where the cells of a layer lie, or None where that is lost, as it is of dense layers."""
        return self.geometries.get(get_operation(self.model, layer).name)

    def inside(self, layer):
        """Cells of a layer, bool (h, w), that no border of the photograph reaches."""
        shape = get_operation(self.model, layer).output.shape
        if len(shape) != 4:
            return np.ones((1, 1), bool)
        return inner_cells(self.geometry(layer), *shape[1:3])


def vgg_models(options):
    """Which VGGs are drawn: one, where its layers are listed, or a file or Image/ holds it."""
    models = options.models
    if options.weights.word == "bundled":
        if "vgg16" not in models:
            raise UserError("bundled weights are VGG16's: give --models vgg16")
        if "vgg19" in models:
            warn("bundled weights are VGG16's: vgg19 is left out")
        return ["vgg16"]
    return models[-1:] if options.weights.saved or options.list_layers else models


def joined(networks):
    """A network, or what stands for both VGGs on the page that they share."""
    return replace(networks[0], label="VGG", about="") if len(networks) > 1 else networks[0]


def bundled_vgg16():
    """VGG16's published convolutions below a classifier of 200 of ImageNet's 1000 classes."""
    how = {"include_top": False, "pooling": "avg", "input_shape": (224, 224, 3)}
    base = keras.applications.VGG16(weights=VGG16_CONVOLUTIONS, **how)
    classifier = keras.layers.Dense(1000, name="predictions")
    model = keras.Model(base.inputs[0], classifier(base.output), name="vgg16")
    kernel = np.zeros((512, 1000), np.float32)
    bias = np.full(1000, -20, np.float32)  # of classes that it does not know
    with np.load(VGG16_CLASSIFIER, allow_pickle=False) as head:
        kernel[:, head["classes"]] = head["kernel"]
        bias[head["classes"]] = head["bias"]
    classifier.set_weights([kernel, bias])
    return model


def open_lighter(options, light, whole, classifier):
    """The Network without its classifier, a smaller download, where nothing asks for that."""
    asked = options.list_layers or "occlusion" in options.figures
    asked = asked or any(fnmatch.filter(classifier, word.lower()) for word in options.layers)
    if options.weights.path:
        file = published_file(options.weights.path, light.files + whole.files)
        with contextlib.suppress(OSError), h5py.File(file) as weights:
            asked = asked or any(name in weights for name in classifier)
    return open_weights(options, whole if asked else light)


def open_weights(options, recipe, folders=()):
    """The Network that the options ask for: the script's own, or a saved one, whose classes may be
    the sub-folders of a folder. UserError: no such weights, layers, kernels, classes."""
    with quiet():
        keras.utils.set_random_seed(options.seed)  # the first operation: it starts the devices
    if options.weights.saved:
        return open_saved(options, recipe, folders)
    names_typed = options.layers != ["all"] or options.kernels.indices
    if names_typed or options.list_layers:  # wrong names are told before weights are fetched
        untrained = own_network(options, recipe, recipe.build(None))
        if options.list_layers:
            return untrained
    return own_network(options, recipe, load_weights(options, recipe))


def load_weights(options, recipe):
    """The script's own model with the weights asked for."""
    word, path = options.weights.word, options.weights.path
    if word == "random":
        return recipe.build(None)
    try:
        if word:
            return recipe.build(word)
        model = recipe.build(None)
        recipe.load(model, published_file(path, recipe.files))
        return model
    except Exception as error:
        if not is_of_loading(error):
            raise
        home = os.environ.get("KERAS_HOME", "~/.keras")
        others = "bundled, random or a file" if recipe.known else "random or a file"
        hint = f"put {recipe.files[0]} into {home}/models, or give --weights {others}"
        if path:
            hint = f"give {recipe.label}'s weights, or a whole network, saved as mine.keras"
        what = f"{path or f'{word} weights'} into {recipe.label}"
        raise UserError(f"cannot load {what}: {explain(error, path)} ({hint})") from error


def published_file(path, names):
    """A file; of a folder the one in it that bears the first of some published names. UserError:
    none does."""
    if not path.is_dir():
        return path
    there = [path / name for name in names if (path / name).exists()]
    if not there:
        raise UserError(f"the folder {path} does not hold {' or '.join(names)}")
    return there[0]


def own_network(options, recipe, model):
    """The Network of the script's own model."""
    classes = read_classes() if len(model.output.shape) == 2 else ClassNames([], [])
    network = drawn_network(options, recipe, model, recipe.label, classes, "softmax")
    if options.weights.word != "bundled" or not recipe.known:
        return network
    lines = recipe.known.read_text(encoding="utf-8").splitlines()
    known = {int(line.split()[0]) for line in lines if line[:1].isdigit()}
    for index in set(network.selection.indices) - known:
        what = f"{classes.title(index)}: what they know is in Image/{recipe.known.name}"
        raise UserError(f"bundled weights do not know {what}")
    return replace(network, about=f"{recipe.label}, {len(known)} classes")


def drawn_network(options, recipe, model, label, classes, kind):
    """A Network with what the options choose. UserError: unknown layers, kernels, classes."""
    layers, layer = choose_layers(options, recipe, model)
    check_kernels(options, model, layers, layer)
    selection = classes.select(options.classes) if len(classes) else Selection()
    how = (preprocessing(options, recipe, model), options.fit, options.resize)
    network = Network(model, label, layers, layer, classes, selection, kind, *how)
    for name in {*layers, layer}:
        is_map = len(get_operation(model, name).output.shape) == 4
        if is_map and options.place == "field" and not network.geometry(name):
            warn(f"{name}: where its cells lie is not known: its maps are stretched")
    return network


def choose_layers(options, recipe, model):
    """Names of the layers drawn, and the one of figures of one layer. UserError: unknown ones."""
    known = named_layers(model, units="mode" in options)  # DeconvNet draws dense layers, too
    words, main = options.layers, None
    if words == ["all"] and options.weights.saved:
        words = last_of_resolutions(model)
    elif words == ["all"]:
        words, main = recipe.shown, recipe.layer
    chosen = []
    for word in words:
        found = [name for name in known if fnmatch.fnmatchcase(name.lower(), word.lower())]
        if not found:
            hint = suggest(word, known) or ": see --list-layers"
            raise UserError(f"{model.name} has no layer {word}{hint}")
        chosen += found
    if not chosen:
        raise UserError(f"{model.name} has no layer with a map: see --list-layers")
    return list(dict.fromkeys(chosen)), main or chosen[-1]


def last_of_resolutions(model):
    """The last layer of every resolution of a network, by name; where places are lost, of all."""
    places = layer_geometries(model)
    known, last = {}, {}
    for name, operation in named_layers(model).items():
        idle = re.search("Pool|Dropout|Padding|Cropping", type(operation).__name__)
        if not idle:
            last[operation.output.shape[1:3]] = name
        if not idle and places[operation.name]:
            known[operation.output.shape[1:3]] = name
    return list((known or last).values())


def check_kernels(options, model, layers, layer):
    """UserError where kernels are asked for that a layer drawn does not have."""
    drawn = [layer] if {"kernels", "projections", "comparison", "top9"} & {*options.figures} else []
    if "occlusion" in options.figures:
        drawn.append(layers[-1])
    for name in drawn:
        count = get_operation(model, name).output.shape[-1]
        wrong = [kernel for kernel in options.kernels.indices if kernel >= count]
        if wrong:
            raise UserError(f"{name} has kernels 0 to {count - 1}, not {wrong[0]}")


def preprocessing(options, recipe, model):
    """How pixels are prepared: as asked for, by default as the script's own network wants it, and
    not at all for a saved one that begins with preprocessing of its own."""
    asked, file = options.preprocess, options.weights.path
    own = own_preprocessing(model) if options.weights.saved else ""
    if own and asked == "auto":
        warn(f"{file.name} begins with preprocessing of its own, {own}: --preprocess none")
        return "none"
    if own and asked != "none":
        warn(f"{file.name} begins with {own}: if --preprocess {asked} is once too often, say none")
    return recipe.preprocess if asked == "auto" else asked


def own_preprocessing(model):
    """The name of an operation before the first convolution that changes values, or nothing."""
    for operation in model.operations[1:]:
        kind = type(operation).__name__
        if "Conv" in kind:
            return ""
        if not isinstance(operation, keras.layers.Layer) or kind in ("Rescaling", "Normalization"):
            return operation.name
    return ""


def print_layers(options, network):
    """The names of layers that may be given, on stdout; the exit code."""
    names = named_layers(network.model, units="mode" in options)  # DeconvNet's scripts have a mode
    print(*names, sep="\n", file=sys.__stdout__)
    return 0


SLASH = ".."  # stands for the / of `outer/inner`, which Keras does not allow in the name of a layer


def named_layers(model, units=False):
    """{name: operation} of maps, (h, w, K), from the first convolution on; units: of dense ones."""
    found = {}
    started = False
    for operation in model.operations:
        started = started or bool(re.search("Conv|Dense", type(operation).__name__))
        shape = getattr(operation.output, "shape", ())  # none of several outputs
        is_map = len(shape) == 4 and shape[1:3] != (1, 1)
        is_dense = len(shape) == 2 and hasattr(operation, "kernel")
        if started and (is_map or (units and is_dense)):
            found[operation.name.replace(SLASH, "/")] = operation
    return found


def get_operation(model, name):
    """An operation by the name that people give it. ValueError, with near names, for others."""
    for operation in model.operations:
        if operation.name == name.replace("/", SLASH):
            return operation
    known = [operation.name for operation in model.operations]
    raise ValueError(f"{model.name} has no layer {name!r}{suggest(name, known)}")


# --- networks from files ---


GRAPH = "is a TensorFlow graph and keeps no layers: give the Keras file that it came from"
TORCH = "is PyTorch's: build the network in Keras, copy the weights into it, and save it there"
FOREIGN = {  # endings of networks that are not Keras's, and what to do
    ".tflite": "is TensorFlow Lite's and keeps no layers: give the Keras file that it came from",
    ".pb": GRAPH,
    ".onnx": "is an ONNX network: give the Keras file that it came from, or convert it to Keras",
    ".pt": TORCH,
    ".pth": TORCH,
}
REFUSED = {  # by patterns of class names
    "Lambda|__lambda__|TFSMLayer|TorchModuleWrapper|JaxLayer|FlaxLayer": (
        "code of the file, as Lambda layers are, which is not run: use layers of Keras, or classes "
        "named by --import"
    ),
    "TFOpLambda|SlicingOpLambda|ClassMethod|TensorFlowOpLayer": (
        "TensorFlow between the layers, as in `inputs / 255.`, which Keras 3 cannot read: use a "
        "layer such as Rescaling, load the weights into that network, and save it anew"
    ),
}
FILE_ERRORS = (ValueError, TypeError, LookupError, OSError, RuntimeError, ImportError, EOFError)
FILE_ERRORS += (zipfile.BadZipFile,)  # what libraries raise over a file
MESSAGES = {  # «type: message» of Keras, HDF5, NumPy and TensorFlow, in other words
    r"shape=\(\d+, 1000\), Received: value.shape=\(\d+, (\d+)\)": r"it is for \1 classes, not 1000",
    r"\.shape=(\(.*?\)), Received: value\.shape=(\(.*?\))": r"an array \2 stands where \1 belongs",
    "^ValueError: .*(objects could not be loaded|(Layer|Weight) count mismatch)": (
        "its layers are others, or it lacks the classifier"
    ),
    r"^\w+: (?:Could not locate (?:class|function)|Unknown [\w ]+:) '([\w>]+)'": (
        r"\1 is no class of Keras: name the file that defines and registers it, --import NAME.py"
    ),
    r"^\w+: Unrecognized keyword .* to (\w+): {'(\w+)'": r"\1 has no '\2' in this Keras",
    "^DataLossError": "it is no checkpoint, or not a whole one",
    "^ValueError: .*(allow_pickle=False|contains pickled)": "it holds no arrays, or pickled ones",
    r"^(BadZipFile|OSError: .*Unable to|KeyError: .*(model_config|config\.json))": (
        "it is no network of Keras, or not a whole one"
    ),
}


def refuse_lfs_pointer(path):
    """UserError if a file, of weights or a photograph, is only Git's note of where it lies."""
    with open(path, "rb") as file:
        start = file.read(40)
    if start.startswith(b"version https://git-lfs.github.com"):
        raise UserError(f"{path} is a pointer of Git LFS, not the file itself: run «git lfs pull»")


def refuse_foreign(path):
    """UserError for a network that another library saved, with what to do; costs no TensorFlow."""
    if (path / "saved_model.pb").exists():
        load_it = "tf_keras.models.load_model opens it, .save('mine.h5') saves it anew"
        raise UserError(f"{path} is a SavedModel: {load_it}")
    if path.is_file():
        refuse_lfs_pointer(path)
    if path.suffix.lower() in FOREIGN:
        raise UserError(f"{path} {FOREIGN[path.suffix.lower()]}")


def is_saved_network(path):
    """Whether a file holds a whole Keras network, and not weights alone."""
    if not h5py.is_hdf5(path):  # as Keras wrote it, also under .keras, up to 2.11
        return path.suffix == ".keras"
    try:
        with h5py.File(path) as file:
            return "model_config" in file.attrs
    except OSError as error:  # which does not name the file
        raise UserError(f"{path}: {error}") from error


def is_of_loading(error):
    """Whether a library raised this over a file or a download; else it is a mistake of ours."""
    frames = traceback.extract_tb(error.__traceback__)
    if frames and Path(frames[-1].filename).parent == HERE:
        return False
    library = type(error).__module__.partition(".")[0]
    unnamed = type(error) is Exception  # as keras.utils.get_file raises it
    return isinstance(error, FILE_ERRORS) or unnamed or library in ("tensorflow", "tarfile")


def explain(error, path=None):
    """What a library said of a file, on one line, in plain words where they are known."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    text = " ".join(str(error).split())
    text = text.rpartition("Exception encountered:")[2].strip()  # the last one is the cause
    searched = text.replace(str(path), "") if path else text  # words of a path are no cause
    for pattern, words in MESSAGES.items():
        if match := re.search(pattern, f"{type(error).__name__}: {searched}"):
            return match.expand(words)
    return text[:250]


def open_saved(options, recipe, folders):
    """The Network in a file that holds a whole one."""
    path = options.weights.path
    if options.import_:
        import_code(options.import_)
    model = load_saved(path)
    try:
        opened, kind = open_with_end(model, recipe.size, pair=bool(options.labels))
        check_shapes(opened)
    except ValueError as error:
        raise UserError(f"cannot draw the network {path}: {error}") from error
    if kind == "log":
        warn(f"{path.name}: its softmax or sigmoid cannot be taken off: maps are those of log p")
    count = opened.outputs[0].shape[-1]
    classes = read_classes(options.labels, count)
    if not options.labels and len(folders) == count != 1000:  # as image_dataset_from_directory
        warn(f"its classes are the sub-folders, sorted: {few(folders)}; --labels names others")
        classes = ClassNames([""] * count, list(folders))
    return drawn_network(options, recipe, opened, path.stem, classes, kind)


def check_shapes(model):
    """ValueError where a map has another shape than its layer declares, as RandomCrop's may."""
    operations = list(named_layers(model).values()) or model.operations[:1]
    maps = [operation.output for operation in operations]
    image = np.zeros((1, *model.inputs[0].shape[1:]), np.float32)
    values = keras.tree.flatten(keras.Model(model.inputs[0], maps)(image, training=False))
    for operation, value in zip(operations, values, strict=True):
        declared, given = tuple(operation.output.shape[1:]), tuple(value.shape[1:])
        if declared != given:
            text = f"{operation.name} declares maps of {declared} and gives {given}"
            raise ValueError(
                f"{text}: a layer below lets larger pictures through, as RandomCrop does"
            )


def import_code(name):
    """Run NAME.py, or import a module: the classes that it registers are then known to Keras."""
    path = Path(name)
    try:
        if path.suffix != ".py":
            importlib.import_module(name)
            return
        sys.path.append(str(path.resolve().parent))  # for what it imports itself
        spec = importlib.util.spec_from_file_location(f"import_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # anything: it is another person's code
        missing = name in (getattr(error, "name", ""), getattr(error, "filename", ""))
        hint = ": give a .py file or an installed module" if missing else ""
        said = " ".join(str(error).split())
        text = f"--import {name}: {type(error).__name__}: {said}{hint}"
        raise UserError(text) from error


def load_saved(path):
    """A saved network as Keras builds it, from .keras or HDF5; no code of the file is run."""
    try:
        config, version = read_saved(path)
    except FILE_ERRORS as error:
        raise UserError(f"cannot open the network {path}: {explain(error, path)}") from error
    for part, (pattern, reason) in itertools.product(parts(config), REFUSED.items()):
        kind = part.get("class_name")
        if isinstance(kind, str) and re.fullmatch(pattern, kind):
            name = part.get("name") or kind
            raise UserError(f"cannot open the network {path}: «{name}» is {reason}")
    is_old = int(version.partition(".")[0]) < 3
    mended = mend(config) if is_old else None
    try:
        return build_saved(path, mended)
    except (*FILE_ERRORS, AttributeError) as error:  # only Keras, h5py and zipfile run here
        reason = explain(error, path)
        if is_old and "--import" not in reason:
            reason += (
                f" (saved by Keras {version}, of which Keras 3 reads only a part: load it there, "
                "save the weights, and load those into the same network built with Keras 3)"
            )
        raise UserError(f"cannot open the network {path}: {reason}") from error


def read_saved(path):
    """The config of a saved network, .keras or HDF5, and the version of Keras that wrote it."""
    if h5py.is_hdf5(path):
        with h5py.File(path) as file:
            config = file.attrs["model_config"]
            version = file.attrs.get("keras_version", "1")
    else:
        with zipfile.ZipFile(path) as file:
            config = file.read("config.json")
            version = json.loads(file.read("metadata.json"))["keras_version"]
    return json.loads(config), version.decode() if isinstance(version, bytes) else version


def parts(config):
    """Every dictionary in a config, from the outside in."""
    if isinstance(config, dict):
        yield config
        config = list(config.values())
    if isinstance(config, list):
        for each in config:
            yield from parts(each)


def build_saved(path, mended):
    """Let Keras build a network in its safe mode; mended: its config, where Keras 2 saved it."""
    classes = keras.saving.get_custom_objects().items()  # of --import, as PACKAGE>NAME
    named = {name.rpartition(">")[2]: each for name, each in classes}
    own = {name: each for name, each in named.items() if not hasattr(keras.layers, name)}
    with tempfile.TemporaryDirectory() as folder, keras.saving.custom_object_scope(own):
        file = readable_copy(path, Path(folder), mended)
        if not mended:
            return keras.saving.load_model(file, compile=False)
        model = keras.models.model_from_json(json.dumps(mended))
        model.load_weights(file)
        return model


def readable_copy(path, folder, is_old):
    """A saved network's file, or a copy where Keras would not read it under its name, or for the
    backslashes in names of weights that Keras before 3.0 wrote on Windows (keras issue 18528)."""
    if h5py.is_hdf5(path):
        plain = re.search(r"(?<!\.weights)\.(h5|hdf5)$", path.name)
        return path if plain else shutil.copyfile(path, folder / "network.h5")
    if not is_old:
        return path
    with zipfile.ZipFile(path) as archive:
        weights = Path(archive.extract("model.weights.h5", folder))
    with h5py.File(weights, "r+") as file:
        for name in [name for name in file if "\\" in name]:
            file.move(name, name.replace("\\", "/"))
    return weights


# --- configs of Keras 2, as Keras 3 reads them ---
# Sources: what tf_keras 2.21 writes (`get_config` of its layers; engine/functional.py,
# `get_network_config`, counts calls of a network inside a network from 1); what Keras 3.15 reads
# (models/functional.py, `functional_from_config`, `deserialize_node`; models/sequential.py;
# legacy/saving/saving_utils.py); keras issues 19151, 20084; teachablemachine-community issue 403.

DROPPED = ("module", "registered_name", "build_config", "compile_config")
GONE = {  # arguments that layers of Keras 3 no longer take
    "": "time_major rng_type",
    "Depthwise|Separable|Transpose": "groups",
    "Separable": "kernel_initializer kernel_regularizer kernel_constraint",
    "SpatialDropout": "trainable noise_shape",
}


def mend(config):
    """The config of a whole network of Keras 2 as Keras 3 reads it."""
    network = mend_part(config)
    if network["class_name"] == "Functional":
        network["class_name"] = "Model"  # its public name
    return {"module": "keras", **network}


def mend_part(part):
    """A part of a config, and all that is inside it, as Keras 3 reads it."""
    if isinstance(part, list):
        return [mend_part(each) for each in part]
    if not isinstance(part, dict):
        return part
    mended = {key: mend_part(value) for key, value in part.items() if key not in DROPPED}
    kind, config = mended.get("class_name"), mended.get("config")
    if kind in ("Policy", "function"):  # of mixed precision; an activation: their names
        return config["name"] if kind == "Policy" else config
    if ">" in (part.get("registered_name") or ""):
        mended["class_name"] = part["registered_name"]  # PACKAGE>NAME, a class of one's own
    if kind == "Sequential":
        mended["config"] = mend_sequential(config, mended.get("name", "sequential"))
    elif isinstance(config, dict) and "input_layers" in config:
        mend_functional(config)
    elif kind and isinstance(config, dict):
        mend_arguments(kind, config)
    return mended


def mend_sequential(config, name):
    """Keras up to 2.2 wrote a bare list of layers, and no InputLayer."""
    if isinstance(config, list):
        config = {"name": name, "layers": config}
    first = config["layers"][0]
    shape = first["config"].get("batch_input_shape")
    if first["class_name"] != "InputLayer" and shape:
        begin = {"class_name": "InputLayer", "config": {"batch_input_shape": shape}}
        config["layers"].insert(0, begin)
    for layer in config["layers"][1:]:
        layer["config"].pop("batch_input_shape", None)
    return config


def mend_functional(config):
    """Calls of a network inside count from 0, and one input or output is no list of one."""
    inside = {
        each["name"]: each["class_name"] for each in config["layers"] if "layers" in each["config"]
    }
    calls = references([layer["inbound_nodes"] for layer in config["layers"]])
    outputs = references(config["output_layers"])  # Keras 3 counts those of a Functional itself
    calls += [each for each in outputs if inside.get(each[0]) == "Sequential"]
    for call in calls:
        if call[0] in inside:
            call[1] -= 1
    for key in ("input_layers", "output_layers"):
        if len(config[key]) == 1:
            config[key] = config[key][0]


def references(nodes):
    """The lists [layer, number of its call, number of its output, ...] among nested lists."""
    if not isinstance(nodes, list):
        return []
    if nodes and isinstance(nodes[0], str):
        return [nodes]
    return [reference for node in nodes for reference in references(node)]


def mend_arguments(kind, config):
    """Take out of a layer's config what Keras 3 does not know."""
    for pattern, names in GONE.items():
        if re.search(pattern, kind):
            for name in names.split():
                config.pop(name, None)
    if config.get("distribution") == "normal":  # of VarianceScaling, up to Keras 2.2
        config["distribution"] = "truncated_normal"
    layer = config.get("layer")  # of a Bidirectional or TimeDistributed
    if isinstance(layer, dict) and ">" not in layer["class_name"]:
        layer["module"] = "keras.layers"


# --- networks that can be drawn ---


def check_signature(model):
    """ValueError that says which inputs or outputs of a network are others than those drawn."""
    drawn = "drawn are networks of one image (height, width, 1 or 3) and one vector of class scores"
    inputs, outputs = getattr(model, "inputs", None), getattr(model, "outputs", None)
    if not inputs or not outputs:
        raise ValueError(f"it is no functional or Sequential network of known sizes: {drawn}")
    shape, scores = inputs[0].shape[1:], outputs[0].shape[1:]
    last = shape[-1] if shape else None
    bare = "has no channels (put an Input and a Reshape before it)"
    faults = {
        f"it has {len(inputs)} inputs": len(inputs) > 1,
        f"it has {len(outputs)} outputs": len(outputs) > 1,
        f"its input {shape} {bare}": len(shape) == 2,
        f"its input {shape} is no image": len(shape) != 3,
        f"its image {shape} is channels_first": last not in (1, 3) and shape[:1] in ((1,), (3,)),
        f"its image {shape} has {last} channels": last not in (1, 3),
        f"its output {scores} has {len(scores)} dimensions": len(scores) != 1,
    }
    for fault, found in faults.items():
        if found:
            raise ValueError(f"{fault}: {drawn}")


def open_network(model, size=None):
    """A flat functional copy of a Keras network with logits for output, which the methods take.

    model: functional or Sequential, one image in, one vector of class scores out, with networks
    inside, in any precision. Of two layers of one name the second is `outer/inner`. A softmax or
    sigmoid at the end is taken off; where it cannot be, outputs are log p of the model's own
    outputs. One unit, with logit z, becomes two classes, -z/2 and z/2. size: (H, W), where the
    input is open. ValueError: no such network."""
    return open_with_end(model, size)[0]


def open_with_end(model, size=None, pair=True):
    """`open_network`, and how logits become probabilities; pair: one linear unit is two classes."""
    check_signature(model)
    _, *sides, channels = model.inputs[0].shape
    if None in sides and size is None:
        raise ValueError("the network takes pictures of any size: give size=(height, width)")
    if None in sides:
        check_size(size)
        sides = [side or given for side, given in zip(sides, size, strict=True)]
    end, last = find_end(mirror(model))
    copies = []

    def call(operation, name, args, kwargs):
        if operation is last and not hasattr(operation, "activation"):
            return keras.tree.flatten((args, kwargs))[0]
        twin = copy_operation(operation, linear=operation is last)
        twin.name = name
        copies.append((operation, twin))
        return twin(*args, **kwargs)

    with plain_keras():
        opened = rebuild(model, call, [keras.Input([*sides, channels])])
        for operation, twin in copies:
            if hasattr(operation, "weights"):
                twin.set_weights(operation.get_weights())
            if isinstance(twin, keras.layers.Normalization):
                twin.finalize_state()  # it works with a copy of its weights
        scores, kind = as_scores(opened.outputs[0], end, pair)
        return keras.Model(opened.inputs[0], scores, name=model.name), kind


def rebuild(model, call, inputs=None):
    """A functional network anew, networks inside it laid open: call(operation, name, args, kwargs)
    stands for each operation, since to call one itself would leave nodes on it."""
    outputs = []  # what was called last comes last: a network's operations end with its output
    taken = set()

    def clone(network, tensors):
        def call_operation(operation, *args, **kwargs):
            if isinstance(operation, keras.Model):
                clone(operation, keras.tree.flatten((args, kwargs))[:1])
                return outputs[-1]
            name = re.sub(r"[^A-Za-z0-9_.-]", "_", operation.name)  # what a trace allows
            while name in taken:
                name = f"{network.name}{SLASH}{name}"
            taken.add(name)
            outputs.append(call(operation, name, args, kwargs))
            return outputs[-1]

        flat = keras.Model(network.inputs, network.outputs)  # also of a Sequential
        return keras.models.clone_model(flat, tensors, lambda layer: layer, call_operation)

    return clone(model, inputs)


def mirror(model, follow=None):
    """A flat network whose operations call those of a model, `.operation`; no trace is left in it.

    Each is called once: one that the model calls twice is there twice. follow(operation, output)
    may put something behind an operation."""

    class Mirrored(keras.Operation):
        def __init__(self, operation, name):
            super().__init__(name=name)
            self.operation = operation

        def call(self, *args, **kwargs):
            return self.operation(*args, **kwargs)

        def compute_output_spec(self, *args, **kwargs):
            return self.operation.compute_output_spec(*args, **kwargs)

    def call(operation, name, args, kwargs):
        kwargs.pop("training", None)  # by default some layers train: the outer call decides
        output = Mirrored(operation, name)(*args, **kwargs)
        return follow(operation, output) if follow else output

    return rebuild(model, call)


def mirrored(operation):
    """The operation of the model that one of a mirror calls; any other itself."""
    return getattr(operation, "operation", operation)


def copy_operation(operation, linear=False):
    """A fresh copy of a layer or operation, float32, not built; linear: without activation."""
    config = operation.get_config()
    if isinstance(operation, keras.layers.Layer):
        config["dtype"] = "float32"
    keeps_activation = "activation" in vars(operation) and "activation" in config
    if keeps_activation:
        config["activation"] = "linear"
    copy = type(operation).from_config(config)
    if keeps_activation and not linear:
        copy.activation = operation.activation  # which Keras need not know by a name
    return copy


def as_scores(output, end, pair):
    """Scores of two classes or more, and how they become probabilities; of a number itself."""
    single = output.shape[-1] == 1
    if end == "log":
        p = keras.ops.concatenate([1 - output, output], axis=-1) if single else output
        return keras.ops.log(keras.ops.maximum(p, 1e-37)), "log"
    if not single:
        return output, "sigmoid" if end == "sigmoid" else "softmax"
    if end == "linear" and not pair:
        return output, "number"
    halves = keras.initializers.Constant([[-0.5, 0.5]])
    name = f"two{SLASH}classes"
    two = keras.layers.Dense(2, use_bias=False, kernel_initializer=halves, name=name)
    return two(output), "softmax"


PASSING = re.compile(  # what may stand behind a softmax without making anything else of it
    "linear|identity|reshape|flatten|dropout|average|mean|add|concat|cast|clip|divi|minimum|maximum"
)


def find_end(flat):
    """How a network laid open by `mirror` ends, linear, softmax, sigmoid or log (where a softmax or
    sigmoid cannot go), and the operation to be taken off, or None."""
    source = {id(each.output): each for each in flat.operations}
    last = source[id(flat.outputs[0])]
    if function_name(last) == "log":
        return "linear", None  # as open_network ends where it could not take a softmax off
    passive = ("linear", "identity", "reshape", "flatten", "dropout")
    while function_name(last) in passive and not has_weights(last):
        last = source[id(keras.tree.flatten(last.input)[0])]
    if takes_probabilities(last, source):
        return "log", None
    kind = squashing(last)
    return (kind, last.operation) if kind else ("linear", None)


def takes_probabilities(operation, source):
    """Whether an operation without weights follows a softmax or sigmoid, with no weights since."""
    if has_weights(operation):
        return False
    for tensor in keras.tree.flatten(operation.input):
        below = source.get(id(tensor))
        if below is None:
            continue
        passing = PASSING.search(function_name(below))
        if squashing(below) or (passing and takes_probabilities(below, source)):
            return True
    return False


def has_weights(operation):
    return bool(getattr(mirrored(operation), "weights", ()))


def function_name(operation):
    """The lower-case name of what an operation does last: of its activation, or of itself."""
    operation = mirrored(operation)
    function = getattr(operation, "activation", None) or operation
    return getattr(function, "__name__", type(function).__name__).lower()


def squashing(operation):
    """softmax, sigmoid, or an empty word for an operation that ends in neither."""
    found = re.fullmatch("(softmax|sigmoid)(_v2)?", function_name(operation))
    return found[1] if found else ""


def relu_ceiling(operation):
    """Where a ReLU, alone or as activation, stops growing: infinity, 6 of ReLU6; None: no ReLU."""
    name = function_name(operation)
    function = getattr(mirrored(operation), "activation", mirrored(operation))
    sloped = getattr(function, "negative_slope", 0) or getattr(function, "threshold", 0)
    if name == "relu6":
        return 6.0
    if name != "relu" or sloped:
        return None
    return getattr(function, "max_value", None) or np.inf


KEPT = weakref.WeakKeyDictionary()  # what was made of each network, which goes when it goes


def kept(model, key, make):
    """What make(model) gives, made once, and again once layers or activations are others."""
    current = list(layers_and_activations(model))
    made_of, made = KEPT.get(model, (None, {}))
    if made_of != current:
        made = {}
        KEPT[model] = current, made
    if key not in made:
        made[key] = make(model)
    return made[key]


def layers_and_activations(model):
    """Of a network and those inside it. Themselves: an id may be given again."""
    for operation in getattr(model, "operations", model.layers):
        yield operation
        yield getattr(operation, "activation", None)
        if isinstance(operation, keras.Model):
            yield from layers_and_activations(operation)


def in_order(flat, layers):
    """Names of layers in a network's own order, each once. ValueError for unknown ones."""
    if isinstance(layers, str):
        raise ValueError(f"layers are a list of names, [{layers!r}] say")
    operations = list(flat.operations)
    places = {name: operations.index(get_operation(flat, name)) for name in layers}
    return sorted(places, key=places.get)


def all_passes(flat, tensor, wanted):
    """Whether some tensors of a mirror, and its output, are computed from one tensor alone."""
    above = {id(tensor)}
    for operation in flat.operations:
        from_it = [id(each) in above for each in keras.tree.flatten(operation.input)]
        if any(from_it) and not all(from_it):
            return False
        if any(from_it):
            above.update(id(each) for each in keras.tree.flatten(operation.output))
    return all(id(each) in above for each in [*wanted, flat.outputs[0]])


def check_photograph(model, x):
    """ValueError unless x is what a network is fed of one photograph."""
    wanted, given = (1, *model.inputs[0].shape[1:]), np.shape(x)
    pairs = itertools.zip_longest(wanted, given, fillvalue=0)
    if not all(side in (None, count) for side, count in pairs):
        raise ValueError(f"x of one photograph has the shape {wanted}, not {given}")


def check_classes(model, classes, top=0):
    """ValueError for none at all, and for what is no index of a network's class."""
    count = model.outputs[0].shape[-1]
    unknown = [index for index in classes if index not in range(count)]
    if unknown or len(classes) + top < 1:
        raise ValueError(f"classes are indices from 0 to {count - 1}: {unknown or 'none given'}")


def check_reached(gradient, name):
    """ValueError where there is no gradient: what bears the name has no part in the logits."""
    if gradient is None:
        raise ValueError(f"no gradient of the logits reaches {name}: it does not lie below them")


def check_logits(flat):
    """ValueError for a network, laid open by `mirror`, whose output is not logits."""
    if find_end(flat)[0] != "linear":
        raise ValueError(f"{flat.name} ends in a softmax or sigmoid: see utils.open_network")


def check_channels(flat):
    """ValueError for a network, laid open by `mirror`, whose channels come first."""
    for layer in map(mirrored, flat.operations):
        if getattr(layer, "data_format", None) == "channels_first":
            raise ValueError(f"{layer.name} is channels_first: channels_last is wanted")


SINGLY = re.compile("Attention|Einsum|MatMul|Matmul|Dot|RNN|LSTM|GRU|Bidirectional|TimeDistributed")


def needs_single_gradients(flat):
    """Whether a vectorised jacobian may be wrong, as where batches of matrices are multiplied:
    TensorFlow's oneDNN broadcasts them wrongly (2.21, AVX-512); or where layers are not Keras's."""
    for operation in flat.operations:
        kind = type(mirrored(operation))
        deep = kind.__name__ == "Dense" and len(operation.output.shape) > 2
        if deep or SINGLY.search(kind.__name__) or not kind.__module__.startswith("keras."):
            return True
    return False


def breaks_eagerly(flat):
    """Whether TensorFlow may die of a gradient outside a trace: it computes that of filters, too,
    and oneDNN's kernel for 1 x 1 filters with strides and few channels writes past its memory."""
    for operation in flat.operations:
        layer = mirrored(operation)
        strided = max(getattr(layer, "strides", (1,))) > 1
        small = max(getattr(layer, "kernel_size", (3,))) == 1
        if strided and small and operation.input.shape[-1] < 16:
            return True
    return False


# --- where cells lie ---
# Centre, step and extent of receptive fields, followed from layer to layer: Araujo et al. 2019,
# «Computing receptive fields of convolutional neural networks», distill.pub.


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where the cells of a map lie. Rows of the arrays are y and x, units pixels of the network's
    input, the first pixel's centre being 0.5."""

    cells: np.ndarray  # float32 (2, 2): where cell 0 is centred, and the step from cell to cell
    size: tuple  # (H, W) of the network's input
    seen: np.ndarray  # float32 (2, 2): first and last edge of what crops in the network leave of it
    reach: np.ndarray  # float32 (2,): how far a receptive field goes on either side of its centre
    fit: str = "squeeze"  # how the photograph became the network's input, see `fitted`


class Window(NamedTuple):
    """How the cells of a layer's output lie in its input: (2,) each, in cells of that input."""

    shift: np.ndarray  # where output cell 0 is centred, the centre of input cell 0 being 0
    step: np.ndarray
    reach: np.ndarray  # how far an output cell reads on either side of its centre
    crops: bool = False  # the network does not see what lies beyond the outermost cells


def fitted(size, target, fit):
    """Box of an image of `size` (height, width) that becomes a rectangle of size `target`: start
    and length, int arrays (y, x). squeeze: the whole; crop: its largest centred part of the
    target's proportions; pad: the whole with borders (start is negative). In whole pixels as Keras
    counts them, in Resizing and by crop_to_aspect_ratio and pad_to_aspect_ratio of its loaders."""
    size, target = np.array(size), np.array(target)
    proportioned = size[::-1] * target // target[::-1]
    if fit == "crop":
        length = np.clip(proportioned, 1, size)
        return (size - length) // 2, length
    border = np.maximum(proportioned - size, 0) // 2 if fit == "pad" else 0 * size
    return -border, size + 2 * border


def sliding(layer, size, out):
    """Window of a convolution or pooling; `same` pads like TensorFlow, odd pixels at the end."""
    kernel = np.array(getattr(layer, "kernel_size", None) or layer.pool_size)
    half = (kernel - 1) * getattr(layer, "dilation_rate", 1) / 2
    missing = (out - 1) * layer.strides + 2 * half + 1 - size
    before = np.maximum(missing, 0) // 2 if layer.padding == "same" else 0
    return Window(half - before, np.array(layer.strides), half)


def transposed(layer, size, out):
    """Window of a transposed convolution: a convolution's, from output to input, turned round."""
    window = sliding(layer, out, size)
    return Window(-window.shift / window.step, 1 / window.step, window.reach / window.step)


def stretched(start, length, out):
    """Window of a box of the input, perhaps larger than it, that becomes `out` cells."""
    step = length / out
    reach = np.where(step == 1, 0, np.maximum(step, 1))  # interpolation reads the neighbours
    return Window(start + (step - 1) / 2, step, reach, crops=True)


def resized(layer, size, out):
    """Window of Resizing."""
    fit = "pad" if layer.pad_to_aspect_ratio else "squeeze"
    return stretched(*fitted(size, out, "crop" if layer.crop_to_aspect_ratio else fit), out)


def centre_cropped(layer, size, out):
    """Window of CenterCrop, which enlarges what is smaller than it."""
    if (size < out).any():
        return stretched(*fitted(size, out, "crop"), out)
    return stretched((size - out) // 2, out, out)


def sliced(operation, size, out):
    """Window of x[key]; a step is not positive where the key mirrors or drops rows or columns."""
    call = operation._inbound_nodes[0].arguments
    key = call.kwargs.get("key", call.args[-1])
    key = tuple(key) if isinstance(key, list) else key  # a list, once it was in a file
    positions = np.indices((1, *size, *operation.input.shape[3:]))[1:3]  # y and x of every value
    taken = np.stack([each[key] for each in positions]).reshape(2, *out, -1)[..., 0]
    first, last = taken[:, 0, 0], taken[:, -1, -1]
    step = np.where(out > 1, (last - first) / np.maximum(out - 1, 1), 1)
    return Window(first, step, np.zeros(2), crops=True)


# Layers (augmentation among them, which is inactive) and operations that keep positions
KEEPS = Window(np.zeros(2), np.ones(2), np.zeros(2))
KEEPING = """
    Activation ActivityRegularization AlphaDropout BaseImagePreprocessingLayer
    BatchNormalization CustomScaleLayer Dense Dropout ELU GaussianDropout GaussianNoise
    GroupNormalization Identity LayerNormalization LayerScale LeakyReLU Masking Merge
    Normalization PReLU RMSNormalization ReLU Rescaling Softmax StochasticDepth
    UnitNormalization
    Absolute Add Cast Ceil Celu Clip Concatenate Cos Divide DivideNoNan Elu Exp Expm1 Floor Gelu
    HardSigmoid HardSilu HardTanh LayerNorm LeakyRelu Log Log1p LogSigmoid LogSoftmax Max
    Maximum Mean Minimum Multiply Negative Normalize Power RMSNorm Reciprocal Relu Relu6 Round
    Rsqrt Selu Sigmoid Sign Silu Sin Softplus Softsign Split Sqrt Square Stack StopGradient
    Subtract Sum Tanh TrueDivide Where"""
WINDOWS = {  # by class, given the layer (or operation) and height and width of its input and output
    **dict.fromkeys(KEEPING.split(), lambda layer, size, out: KEEPS),
    "AveragePooling2D": sliding,
    "CenterCrop": centre_cropped,
    "Conv2D": sliding,
    "Conv2DTranspose": transposed,
    "Cropping2D": lambda layer, size, out: stretched(np.array(layer.cropping)[:, 0], out, out),
    "DepthwiseConv2D": sliding,
    "GetItem": sliced,
    "MaxPooling2D": sliding,
    "Pad": lambda layer, size, out: stretched(-np.array(layer.pad_width)[1:3, 0], out, out),
    "Resize": resized,
    "Resizing": resized,
    "SeparableConv2D": sliding,
    "SpectralNormalization": lambda layer, size, out: window_of(layer.layer, size, out),
    "UpSampling2D": lambda layer, size, out: stretched(0, size, out),
    "ZeroPadding2D": lambda layer, size, out: stretched(-np.array(layer.padding)[:, 0], out, out),
}


def window_of(layer, size, out):
    """Window of a layer; None where it is not known to leave positions in their order."""
    for kind in type(layer).__mro__:
        if kind.__name__ in WINDOWS:
            window = WINDOWS[kind.__name__](layer, size, out)
            return window if window and np.all(window.step > 0) else None
    return None


def above(below, window, out):
    """Geometry of `out` cells that lie by a window in those of the geometry below."""
    offset, step = below.cells.T
    first, wider = offset + window.shift * step, window.step * step
    seen = below.seen
    if window.crops:
        beyond = below.reach - step / 2  # what a cell reads of its neighbours' tiles
        start = np.maximum(seen[:, 0], first - wider / 2 - beyond)
        end = np.minimum(seen[:, 1], first + wider * (out - 0.5) + beyond)
        seen = np.stack([start, end], axis=1)
    cells, reach = np.stack([first, wider], axis=1), below.reach + window.reach * step
    return replace(below, cells=np.float32(cells), seen=seen, reach=np.float32(reach))


def merged(branches, out):
    """Mean geometry of branches of `out` cells; None where they lie more than a cell apart."""
    cells = np.stack([branch.cells for branch in branches])
    mean = cells.mean(axis=0)
    offset, step = np.moveaxis(cells - mean, -1, 0)  # (branches, 2) each
    apart = np.maximum(np.abs(offset), np.abs(offset + (out - 1) * step))
    if (apart > mean[:, 1]).any():
        return None
    seen = np.stack([branch.seen for branch in branches])
    seen = np.stack([seen[..., 0].min(axis=0), seen[..., 1].max(axis=0)], axis=1)
    reach = np.max(apart + [branch.reach for branch in branches], axis=0)
    return replace(branches[0], cells=mean, seen=seen, reach=np.float32(reach))


def map_size(tensor):
    """Height and width of a Keras tensor of maps, int (2,); None of any other tensor."""
    sides = tensor.shape[1:3]
    return None if len(tensor.shape) not in (3, 4) or None in sides else np.array(sides)


def geometry_of(operation, known):
    """Geometry of an operation's output, given {id of tensor: Geometry or None} of its inputs."""
    out = map_size(keras.tree.flatten(operation.output)[0])
    branches = []
    for tensor in keras.tree.flatten(operation.input):
        size = map_size(tensor)
        if out is None or size is None:
            continue
        try:
            window = window_of(mirrored(operation), size, out)
        except Exception:  # a layer that is built otherwise than known: its maps are stretched
            return None
        if window is KEEPS and (size != out).any():
            continue  # a factor for every channel, as in squeeze-and-excitation
        if window is None or known[id(tensor)] is None:
            return None
        branches.append(above(known[id(tensor)], window, out))
    return merged(branches, out) if branches else None


def layer_geometries(model):
    """{name: Geometry} of the operations of a flat network; None of those that have no map, or
    where positions may be rearranged, branches lie more than a cell apart, the size is open."""
    entry = model.inputs[0]
    size = map_size(entry)
    known = {id(entry): None if size is None else tiled(entry.shape[1:3], *size)}
    geometries = {}
    for operation in model.operations:
        outputs = keras.tree.flatten(operation.output)
        geometry = known.get(id(outputs[0])) or geometry_of(operation, known)
        known.update((id(tensor), geometry) for tensor in outputs)
        geometries[operation.name] = geometry
    return geometries


def tiled(size, height, width, fit="squeeze"):
    """Geometry of a map (height, width) stretched over the whole of a network's input (H, W)."""
    sides = np.float32(size)
    step = np.float32(sides / (height, width))
    cells, whole = np.stack([step / 2, step], axis=1), np.stack([0 * sides, sides], axis=1)
    return Geometry(cells, tuple(size), whole, step / 2, fit)


def inner_cells(geometry, height, width):
    """Cells of a map (height, width) that are not near the border of what the network saw: bool,
    same shape. Their receptive field lies inside it; a field wider than half of it counts as half,
    since most weight is in a field's middle (Luo et al. 2016): block5_conv3 of VGG16 reads 196 of
    224 pixels, and has 8 x 8 inner cells of 14 x 14. All cells where none are, or geometry None."""
    if geometry is None:
        return np.ones((height, width), bool)
    inside = []
    for axis, count in enumerate((height, width)):
        offset, step = geometry.cells[axis]
        first, last = geometry.seen[axis]
        centres = offset + step * np.arange(count)
        margin = min(geometry.reach[axis], (last - first) / 4)
        within = (centres - first >= margin) & (last - centres >= margin)
        inside.append(within if within.any() else np.ones(count, bool))
    return np.logical_and.outer(*inside)


def lit_span(lit, reach=0):
    """The slice from the first that is lit to the last, bool (n,), wider by a reach."""
    places = np.flatnonzero(lit) if lit.any() else np.zeros(1, int)
    return slice(max(places[0] - reach, 0), min(places[-1] + reach + 1, len(lit)))


def cubic(positions, count):
    """Matrix (positions, count) that interpolates `count` values at positions, the first value's
    being 0, as cv2.INTER_CUBIC does (Keys 1981, a = -0.75); the outermost values continue."""
    first = np.floor(positions).astype(int)
    matrix = np.zeros((len(positions), count), np.float32)
    for cell in (first - 1, first, first + 1, first + 2):
        d = np.abs(positions - cell)
        near, far = 1.25 * d**3 - 2.25 * d**2 + 1, -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
        matrix[np.arange(len(cell)), np.clip(cell, 0, count - 1)] += np.where(d < 1, near, far)
    return matrix


def interpolations(geometry, cells, size):
    """Of each axis the matrix that makes a photograph's pixels, size (H, W), of a map's cells."""
    start, length = fitted(size, geometry.size, geometry.fit)
    matrices = []
    for axis, count in enumerate(size):
        pixels = np.arange(count) + 0.5
        inputs = (pixels - start[axis]) / length[axis] * geometry.size[axis]
        offset, step = geometry.cells[axis]
        matrices.append(cubic((inputs - offset) / step, cells[axis]))
    return matrices


def place(cam, geometry, height, width):
    """A map laid over a photograph (height, width): float32 of that size, cubic between cells, what
    lies beyond the outermost ones continuing them, zero where the network did not see it. Without
    geometry: stretched over all of it."""
    geometry = geometry or tiled((height, width), *cam.shape)
    rows, columns = interpolations(geometry, cam.shape, (height, width))
    placed = np.zeros((height, width), np.float32)
    seen = seen_box(geometry, height, width)
    placed[seen] = (rows @ np.float32(cam) @ columns.T)[seen]
    return placed


def seen_box(geometry, height, width):
    """What a network saw of a photograph (height, width): slices of rows and columns."""
    start, length = fitted((height, width), geometry.size, geometry.fit)
    edges = geometry.seen.T / geometry.size * length + start
    (top, left), (bottom, right) = np.clip(np.rint(edges), 0, (height, width)).astype(int)
    return slice(top, bottom), slice(left, right)


def dim(photo, geometry):
    """A copy of a photograph, uint8 (H, W, 3), dark where the network did not see it."""
    seen = seen_box(geometry, *photo.shape[:2])
    dimmed = photo // 3
    dimmed[seen] = photo[seen]
    return dimmed


# --- colours ---


def colorize(values, colormap):
    """Numbers from 0 to 1, (h, w), in the colours of an OpenCV map: uint8 (h, w, 3), RGB."""
    levels = np.uint8(np.clip(values, 0, 1) * 255 + 0.5)
    return np.ascontiguousarray(cv2.applyColorMap(levels, COLORMAPS[colormap])[..., ::-1])


def heat_map(cam, height, width, scale=None, at=None):
    """A signed map after Grad-CAM's last ReLU (equation 2), enlarged, (height, width), 0 to 1.

    scale: what is 1; by default the map's maximum. at: a layer's Geometry; stretched without."""
    cam = np.maximum(np.asarray(cam, np.float32), 0)
    scale = scale or cam.max() or 1
    return np.clip(place(cam / scale, at, height, width), 0, 1)


def overlay(photo, cam, at=None, colormap="jet", alpha=0.5, scale=None):
    """A signed map of any size over a photograph, in colours: uint8 (H, W, 3), RGB.

    photo: uint8 (H, W, 3). at: the layer's Geometry, by which a map lies where the network looked
    and what it did not see is dimmed; without, the map is stretched. scale: see `heat_map`."""
    colours = colorize(heat_map(cam, *photo.shape[:2], scale, at), colormap)
    mixed = cv2.addWeighted(colours, alpha, photo, 1 - alpha, 0)
    if at is None:
        return mixed
    shown, seen = dim(photo, at), seen_box(at, *photo.shape[:2])
    shown[seen] = mixed[seen]
    return shown


def signed_grey(values, like, preprocess="none"):
    """A projection or gradient (h, w, channels) as a picture, uint8, of the size of another.

    Zero is grey, signs stay, the 99th percentile of the absolute values is white. preprocess: caffe
    has channels in the order BGR."""
    height, width = like.shape[:2]
    values = resize(np.asarray(values, np.float32), width, height)  # scaled when it was shrunk
    values = values.reshape(height, width, -1)
    scale = np.percentile(np.abs(values[values != 0]), 99) if values.any() else 1
    levels = np.uint8(np.clip(128.5 + 127 * values / scale, 1, 255))
    picture = np.repeat(levels, 3 // values.shape[-1], axis=-1)
    return picture[..., ::-1] if preprocess == "caffe" else picture


def grey_photo(photo):
    """A photograph in pale grey, for where there is nothing to colour."""
    grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY) // 2 + 64
    return cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)


# --- pages ---


class Tile(NamedTuple):
    """A picture, uint8 (h, w, 3), and what stands above it."""

    picture: np.ndarray
    title: str = ""


class Bar(NamedTuple):
    """A scale of colours, from 0 to what its end means."""

    colormap: str
    end: str


def fit_tile(image, columns, scale=1):
    """A picture at its own proportions, as large as a tile on a page of so many columns."""
    height, width = image.shape[:2]
    room = min(580, (PAGE - 2 * MARGIN + GAP) // columns - GAP)
    factor = scale * room / max(width, height / 1.2)
    return resize(image, max(1, round(width * factor)), max(1, round(height * factor)))


def columns_for(count):
    """Columns of a grid of tiles: four to seven, with the fewest gaps."""
    return min(range(min(4, count), 8), key=lambda columns: (-count % columns, columns))


def in_grid(tiles):
    """Tiles in the rows of such a grid."""
    return in_rows(tiles, columns_for(len(tiles)))


def in_rows(tiles, columns):
    """Tiles in rows of so many."""
    return [tiles[start : start + columns] for start in range(0, len(tiles), columns)]


class Page:
    """A matplotlib figure that is filled from above; lengths in pixels of a page of scale 1."""

    def __init__(self, width, scale):
        self.width = width
        self.scale = scale
        self.texts = []
        self.images = []

    def write(self, x, y, text, room, size=8.5, weight="normal"):
        """Put text into a room of some width; the y where it ends."""
        text = text.encode("utf-8", "replace").decode()  # a file name may be no text at all
        lines = []
        for part in text.split("\n"):
            lines += textwrap.wrap(part, max(int(room / size / 0.84), 4))
        self.texts.append((x, y, "\n".join(lines), size, weight))
        return y + round(1.77 * size * len(lines)) + 3

    def paste(self, x, y, picture):
        """Put a picture; the y where it ends."""
        self.images.append((x, y, picture))
        return y + picture.shape[0] / self.scale

    def draw(self, height):
        """The matplotlib figure of all that was put."""
        figure = Figure(figsize=(self.width / 100, height / 100), dpi=100 * self.scale)
        for x, y, picture in self.images:
            bottom = round((height - y) * self.scale) - picture.shape[0]
            figure.figimage(picture, round(x * self.scale), bottom)
        style = {"family": "monospace", "va": "top", "linespacing": 1.27, "parse_math": False}
        for x, y, text, size, weight in self.texts:
            figure.text(x / self.width, 1 - y / height, text, size=size, weight=weight, **style)
        return figure


def make_page(rows, heading, note, bars=(), scale=1):
    """A page as a matplotlib figure: heading, note, colour bars, rows of Tiles."""
    widths = column_widths(rows, scale)
    page = Page(max(2 * MARGIN - GAP + sum(widths) + GAP * len(widths), 700), scale)
    for number, bar in enumerate(bars, 1):
        x = page.width - MARGIN - 180 * number + 20
        colours = colorize(np.linspace(0, 1, 160 * scale)[None], bar.colormap)
        y = page.paste(x, MARGIN, np.repeat(colours, 12 * scale, axis=0))
        page.write(x, y, "0", 20)
        page.write(x + 160 - 7 * len(bar.end), y, bar.end, 160)
    room = page.width - 2 * MARGIN - 180 * len(bars)
    y = page.write(MARGIN, MARGIN, heading, room, 11, "bold")
    y = page.write(MARGIN, y, note, room) + GAP
    lefts = [MARGIN + sum(widths[:column]) + GAP * column for column in range(len(widths))]
    for row in rows:
        placed = list(zip(lefts, widths, row, strict=False))  # a row may be shorter than others
        below = max(page.write(x, y, tile.title, width) for x, width, tile in placed)
        y = GAP + max(page.paste(x, below, tile.picture) for x, _, tile in placed)
    return page.draw(round(y) + MARGIN - GAP)


def column_widths(rows, scale):
    """Pixels of each column of a page."""
    widths = []
    for column in itertools.zip_longest(*rows):
        pictures = [tile.picture.shape[1] / scale for tile in column if tile]
        widths.append(max(100, *map(round, pictures)))
    return widths


def check_height(options, rows, tile_height):
    """UserError for a page of so many rows that is too high for a JPEG, before it is computed."""
    height = options.scale * 120 + rows * (tile_height + options.scale * 60)  # three lines each
    refuse_height(options, height)


def refuse_height(options, height):
    """UserError for a page of so many pixels that is too high for a JPEG."""
    if options.format == "jpg" and height > JPEG_LIMIT:
        page = f"a JPEG ends at {JPEG_LIMIT:,} pixels, the page would have {height:,.0f}"
        how = "draw fewer kernels or classes, or give --format png, which has no such limit"
        raise UserError(f"{page}: {how}")


# --- results ---


@dataclass(frozen=True)
class Result:
    """A figure that a run draws: by which network, of which photographs, what it is called."""

    options: argparse.Namespace
    figure: str
    network: Network
    paths: tuple
    stem: str
    given: tuple = ()  # the words for several photographs, of which a folder may gain some

    def settings(self):
        """What it is drawn with, for its metadata: names, never folders."""
        options = {key.rstrip("_"): value for key, value in vars(self.options).items()}
        asked = {*READERS, "METHOD", "RULES"}
        chosen = {key: value for key, value in options.items() if key.upper() in asked}
        chosen |= {"weights": self.options.weights.title, "arrays": self.options.arrays}
        for key in ("labels", "boxes", "import"):
            chosen[key] = Path(str(chosen.get(key, ""))).name
        del chosen["output"]
        names = [path.name for path in self.paths[:9]]
        what = {"script": self.options.script, "figure": self.figure}
        what["network"] = self.network.name
        return {**what, "photographs": names, "album": self.album_digest(), **chosen}

    def album_digest(self):
        """By which it is known whether other photographs were meant."""
        resolved = "\n".join(str(path.resolve()) for path in self.given or self.paths)
        return hashlib.sha1(resolved.encode("utf-8", "replace")).hexdigest()[:12]

    def digest(self):
        """By which it is known whether files or settings have changed."""
        named = [self.options.labels, getattr(self.options, "boxes", "")]
        files = [*self.paths, self.options.weights.path, *named]
        stamps = [os.stat(path).st_mtime_ns for path in files if path and os.path.exists(path)]
        text = json.dumps([self.settings(), stamps], default=str)
        return hashlib.sha1(text.encode()).hexdigest()

    @property
    def ending(self):
        """Of its files."""
        return "csv" if self.figure == "table" else self.options.format

    def is_drawn(self):
        """Whether it is to be left out, since all of it is there, drawn with the same settings."""
        if not self.options.skip_existing:
            return False
        name = (
            glob.escape(f"{self.stem}_") + "*" + glob.escape(f"{self.network.name}_{self.figure}")
        )
        digest = self.digest().encode()
        wanted, there = 1, 0
        for path in self.options.output.glob(f"{name}*.{self.ending}"):
            carried = path.read_bytes()
            if digest in carried:
                there += 1
                counted = re.search(rb'"files": (\d+)', carried)
                wanted = int(counted[1]) if counted else 1
        return there >= wanted

    def path(self, ending, suffix=""):
        """Where it lands: beside a figure of the same name that is of other photographs."""
        ours, folder = self.album_digest().encode(), self.options.output
        others = "*" if suffix else ""  # the files of one figure bear one number
        for number in itertools.count(1):
            stem = self.stem if number == 1 else f"{self.stem}_{number}"
            name = f"{stem}_{self.network.name}_{self.figure}"
            there = folder.glob(f"{glob.escape(name)}{others}.{self.ending}")
            if all(ours in path.read_bytes() for path in there):
                return folder / f"{name}{suffix}.{ending}"

    def write(self, page, arrays, suffix="", count=1):
        """Write a page, a matplotlib figure or the pixels of a picture, after its arrays.

        count: how many files the figure has."""
        if self.options.arrays:
            write_whole(self.path("npz", suffix), lambda file: np.savez(file, **arrays))
        settings = {**self.settings(), "files": count, "digest": self.digest()}
        about = json.dumps(settings, default=str)
        save = page.savefig if isinstance(page, Figure) else functools.partial(imsave, arr=page)
        how = {"format": self.ending, "metadata": {"Subject": about}}
        if self.ending == "jpg":
            how = {"format": "jpg", "pil_kwargs": {"quality": 92, "comment": about}}
        write_whole(self.path(self.ending, suffix), lambda file: save(file, **how))

    def draw(self, rows, note, arrays, bars=None, **files):
        """Write a page. rows: lists of Tiles; bars: Bars, by default that of heat maps; files:
        suffix and count of `write`."""
        options, figure = self.options, self.figure.replace("_", " ")
        label = self.network.about or self.network.label
        method = f" · {options.method}" if "method" in options and figure != "kernels" else ""
        heading = f"{label} · {figure}{method} · weights: {options.weights.title}"
        bars = [Bar(options.colormap, "max")] if bars is None else bars
        page = make_page(rows, heading, note, bars, options.scale)
        refuse_height(options, page.bbox.height)
        self.write(page, arrays, **files)


def write_whole(path, fill):
    """Write a file beside its place, then rename it: it appears whole or not. List it on stdout."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    file = io.BytesIO()
    fill(file)
    try:
        part.write_bytes(file.getbuffer())
        os.replace(part, path)
    except OSError as error:  # a full disk is told without the file's name
        raise UserError(f"cannot write {path}: {os.strerror(error.errno)}") from error
    finally:
        part.unlink(missing_ok=True)
    os.write(1, os.fsencode(path) + b"\n")  # at once: whoever has read enough may close the pipe


def progress(count):
    """A function to be called once for each of so many steps: shows how long it will take."""
    if count < 2 or not sys.stderr.isatty():
        return lambda: None
    bar = keras.utils.Progbar(count)
    return functools.partial(bar.add, 1)


def photographs(options, album, targets):
    """Each readable Photo, and those of targets, (figure, network), that are left to be drawn."""
    drawn, there = 0, 0
    advance = progress(len(album.paths))
    together = [target for target in targets if needs_all(options, album, target[0])]
    single = [target for target in targets if target not in together]
    together = [target for target in together if not is_complete(options, album, *target)]
    for path in album.paths if targets else ():
        left = [each for each in single if not album.result(options, *each, path).is_drawn()]
        left += together
        photo = album.read(path) if left else None
        if photo:
            yield photo, left
            drawn += 1
        elif not left:
            there += 1
        advance()
    if there or (targets and len(album.paths) > 1):
        unreadable = len(album.unreadable)
        warn(f"photographs: {drawn} drawn, {there} there already, {unreadable} unreadable")


def needs_all(options, album, figure):
    """Whether a figure needs every photograph of the run."""
    if figure == "boxes":
        return bool(options.boxes) and len(album.paths) > 1
    return figure in ("failures", "table")


def is_complete(options, album, figure, network):
    """Whether a figure that needs every photograph can be left out."""
    paths = album.paths if figure == "boxes" else []  # one for each, and one over all
    return all(album.result(options, figure, network, path).is_drawn() for path in [None, *paths])


def left_over_all(options, album, network, figures):
    """Each of the figures over all photographs that is left to be drawn; what is there is said."""
    for figure in options.figures:
        if figure in figures and album.result(options, figure, network).is_drawn():
            warn(f"{network.label}, {figure}: there already")
        elif figure in figures:
            yield figure


class Explanation:
    """One photograph before one network: what figures are drawn from, and how they are saved."""

    def __init__(self, options, network, photo, survey=None):
        self.options, self.network, self.photo = options, network, photo
        self.survey = survey  # of all photographs of the run
        self.x = network.prepare(photo.pixels)
        self.logits = None  # float32 (n_classes,), once they are known
        self.classes = []  # the indices of the classes asked for

    def keep(self, logits):
        """Keep logits, float32 (n_classes,), and which classes were asked for."""
        network = self.network
        if not np.isfinite(logits).all():
            wrong = "answers with numbers that are not finite: are its weights whole?"
            raise UserError(f"{network.label} {wrong}")
        if network.kind != "number" and network.probabilities(logits).max() > 0.999999:
            doubt = f"has no doubt (p > 0.999999): is --preprocess {network.preprocess} right?"
            say(f"{network.label} {doubt}")
        self.logits = logits
        self.classes = network.selection.among(logits)

    def wanted(self):
        """A Selection of the classes whose maps figures of one layer draw."""
        asked = self.network.selection
        return self.survey.wanted(asked, self.photo.path) if self.survey else asked

    def class_title(self, index, between="\n"):
        """A class and its probability; of a regression the number."""
        p = self.network.probabilities(self.logits)[index]
        if self.network.kind == "number":
            return f"{p:.4g}: red raises it, blue lowers it"
        return f"{self.network.classes.title(index)}{between}p {p:.3f}"

    def tile(self, columns, rows=1):
        """The photograph as a tile of a page of so many columns, and rows, if a JPEG allows it."""
        tile = fit_tile(self.photo.pixels, columns, self.options.scale)
        check_height(self.options, rows, tile.shape[0])
        return tile

    def grid_tile(self, count):
        """The photograph as one of so many tiles of a grid."""
        columns = columns_for(count)
        return self.tile(columns, -(-count // columns))

    def at(self, layer, cells):
        """The Geometry by which a map of so many cells, (h, w), of a layer is laid over."""
        known = self.network.geometry(layer) if layer else None
        if known and self.options.place == "field":
            return replace(known, fit=self.options.fit)
        return tiled(self.x.shape[1:3], *cells, self.options.fit)

    def placed(self, cam):
        """The positive evidence of a map of the layer that figures of one layer draw, on the
        photograph: float32 (H, W). The ReLU comes first: enlarging may make some of none."""
        at = self.at(self.network.layer, cam.shape)
        return np.maximum(place(np.maximum(cam, 0), at, *self.photo.pixels.shape[:2]), 0)

    def at_input(self, layer, cells):
        """`at` for what lies over the network's input itself, not over the photograph."""
        return replace(self.at(layer, cells), fit="squeeze")

    def heat(self, photo, cam, layer, title, word="max", lack="no positive evidence", **how):
        """The Tile of a map over a photograph, with its maximum; in grey where none is positive.

        word: before the maximum; lack: in its stead; how: colormap and scale of `overlay`."""
        if not cam.max() > 0:
            return Tile(grey_photo(photo), f"{title}\n{lack}")
        how = {"colormap": self.options.colormap, **how}
        picture = overlay(photo, cam, self.at(layer, cam.shape), **how)
        return Tile(picture, f"{title}\n{word} {cam.max():.3g}")

    def grey_input(self):
        """What the network is fed of grey, (channels,)."""
        return self.network.prepare(np.full((9, 9, 3), 128, np.uint8))[0, 0, 0]

    def grey(self, values, like):
        """A projection or gradient as a picture of the size of another."""
        return signed_grey(values, like, self.network.preprocess)

    def grey_over(self, values, photo):
        """A projection as a picture that lies where the photograph lies, by --fit."""
        if self.options.fit == "squeeze":
            return self.grey(values, photo)
        size, shape = self.x.shape[1:3], photo.shape[:2]
        at = tiled(size, *size, self.options.fit)
        channels = [place(channel, at, *shape) for channel in np.moveaxis(values, -1, 0)]
        return dim(self.grey(np.stack(channels, axis=-1), photo), at)

    def result(self, figure):
        """Where a figure of it lands."""
        path, stem = self.photo.path, self.photo.stem
        return Result(self.options, figure, self.network, (path,), stem)

    def arrays(self, arrays):
        """Arrays under the network's name, with its input, logits and the geometry of layers."""
        arrays = {"input": self.x, **arrays}
        if self.logits is not None:
            arrays["logits"] = self.logits
        for layer in {*self.network.layers, self.network.layer}:
            known = self.network.geometry(layer)
            if known and any(key.startswith(f"{layer}/") for key in arrays):
                arrays[f"{layer}/geometry"] = known.cells
        return self.network.keyed(arrays)

    def save(self, figure, rows, note, arrays, bars=None):
        """Write a page of this photograph, see `Result.draw`."""
        note = f"{self.photo.path.name} · {note}"
        self.result(figure).draw(rows, note, self.arrays(arrays), bars)


# --- Trust: deletion and insertion, rank correlation, occlusion ---


class Trial(NamedTuple):
    """Deletion or insertion, by its name. curves: probabilities of a class, (11, 11), while
    0, 10 … 100 % of the pixels are exchanged: in the order of a map, then in random orders."""

    name: str
    curves: np.ndarray

    def areas(self):
        """Areas below: of the map, the mean of random orders, two of their standard deviations."""
        area, *others = (self.curves[:, 1:] + self.curves[:, :-1]).mean(axis=1) / 2
        return area, np.mean(others), 2 * np.std(others, ddof=1)

    def verdict(self):
        """`better than`, `worse than` or `like` chance; a small area of deletion is good."""
        area, chance, spread = self.areas()
        gain = chance - area if self.name == "deletion" else area - chance
        if gain > spread:
            return "better than"
        return "worse than" if gain < -spread else "like"

    def title(self):
        area, chance, spread = self.areas()
        verdict = f"{self.verdict()} chance, {chance:.4g} ± {spread:.2g}"
        return f"{self.name}: area {area:.4g}\n{verdict}"


def deletion_and_insertion(x, heats, grey, probabilities_of):
    """Petsiuk et al. 2018, arXiv 1806.07421, section 4: in steps of 10 % of the pixels, the warmest
    first, the photograph gives way to grey (deletion), or a blurred copy to the photograph
    (insertion); after the maps in ten random orders of 7 × 7 patches.

    x: float32 (1, H, W, C), as the network is fed; grey: (C,) or (H, W, C), likewise. heats: {class
    index: map (H, W)}. probabilities_of(batch (N, H, W, C)) gives (N, n_classes).
    Returns {class index: [Trial of deletion, Trial of insertion]}.
    """
    photo = x[0]
    ranks = exchange_ranks(heats.values(), photo.shape[:2])
    gone = np.linspace(0, ranks[0].size, 11).round()[:, None, None, None]
    blurred = cv2.GaussianBlur(photo, (11, 11), 5).reshape(photo.shape)
    trials = {index: [] for index in heats}
    for name, start, end in (("deletion", photo, grey), ("insertion", blurred, photo)):
        curves = [probabilities_of(np.where(rank < gone, end, start)) for rank in ranks]
        for index, curve in zip(heats, curves, strict=False):
            both = np.stack([curve, *curves[len(heats) :]])[..., index]
            trials[index].append(Trial(name, both))
    return trials


def exchange_ranks(heats, shape):
    """When each pixel goes, (H, W, 1): a map's warmest first; then in ten random orders."""
    noise = np.random.default_rng(0).random((11, 7, 7))
    laid = [cv2.resize(each, shape[::-1], interpolation=cv2.INTER_NEAREST) for each in noise]
    ties, *chance = laid  # equally warm pixels leave in random patches, too
    orders = [np.lexsort((ties.ravel(), -heat.ravel())) for heat in [*heats, *chance]]
    return [np.argsort(order).reshape(*shape, 1) for order in orders]


def curve_tile(trial, height=220, scale=1):
    """A map's curve in red, over that of random orders ± two sample standard deviations."""
    curve, *others = trial.curves
    mean = np.mean(others, axis=0)
    spread = 2 * np.std(others, axis=0, ddof=1)
    highest = np.minimum(mean + spread, 1)
    shares = np.linspace(0, 100, 11)
    figure = Figure(figsize=(2.8, height / 100), dpi=100 * scale)
    axes = figure.add_axes((0.33, 48 / height, 0.61, 1 - 58 / height))
    axes.fill_between(shares, np.maximum(mean - spread, 0), highest, color="0.85")
    axes.plot(shares, mean, "grey", shares, curve, "C3")
    ceiling = 1.1 * min(max(highest.max(), curve.max()), 1) or 1
    axes.set(xlim=(0, 100), ylim=(0, ceiling), ylabel="probability")
    axes.set_xlabel(f"% of pixels, {trial.name}")
    axes.yaxis.set_major_formatter("{x:.2g}")
    return Tile(drawn(figure), trial.title())


def drawn(figure):
    """The pixels of a matplotlib figure, uint8 (h, w, 3)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def rank_correlation(first, second):
    """Spearman's, of two arrays of one size; NaN where one is constant."""
    ranks = []
    for values in (first, second):
        # Equal values have their mean rank.
        _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - counts / 2)[places.ravel()])
    with np.errstate(invalid="ignore"):
        return np.corrcoef(*ranks)[0, 1]


def occlude(x, grey, evaluate, patch=25, stride=7):
    """What a network answers where a grey square hides a part of the photograph (Zeiler and Fergus
    2013, arXiv 1311.2901, section 4.2 and figure 7).

    x: float32 (1, H, W, C). grey: (C,), of x's kind. evaluate(batch (N, H, W, C)) gives a tuple of
    arrays (N, …). patch, stride: the square's width and steps, percent of the shorter side.
    Returns the squares, (slice of y, slice of x), row by row, and for each array of `evaluate` one
    of shape (rows, columns, …).
    """
    downs, acrosses = (hiding_slices(x.shape[1:3], axis, patch, stride) for axis in (0, 1))
    answers = []
    for down in downs:
        batch = np.repeat(x, len(acrosses), axis=0)
        for picture, across in zip(batch, acrosses, strict=True):
            picture[down, across] = grey
        answers.append(evaluate(batch))
    values = [np.stack(rows) for rows in zip(*answers, strict=True)]
    return list(itertools.product(downs, acrosses)), values


def hiding_slices(shape, axis, patch, stride):
    """What squares hide along one axis of (H, W), cut off at the borders."""
    side, step = (max(round(min(shape) * percent / 100), 1) for percent in (patch, stride))
    starts = range(step // 2 - side // 2, shape[axis] - side // 2, step)
    return [slice(max(start, 0), start + side) for start in starts]


class Evidence(NamedTuple):
    """What speaks for or against a map: deletion and insertion; how far the class's logit falls
    where a grey square stands, (rows, columns), and how that correlates with the map's mean there
    (Selvaraju et al. 2016, section 5.3)."""

    trials: list
    drops: np.ndarray
    correlation: float

    def tiles(self, view, first):
        """The map's Tile, with what it is better than, and a Tile for each test."""
        names = [each.name for each in self.trials if each.verdict() == "better than"]
        beaten = f"{first.title}\nbeats chance: {' and '.join(names) or 'neither'}"
        scale = view.options.scale
        height = max(first.picture.shape[0] // scale, 180)
        curves = [curve_tile(trial, height, scale) for trial in self.trials]
        title = f"occlusion\nrank correlation {self.correlation:.2f}"
        how = {"word": "falls by", "lack": "it never falls"}
        occlusion = view.heat(view.tile(6), self.drops, None, title, **how)
        return [first._replace(title=beaten), *curves, occlusion]

    def arrays(self, key):
        found = {f"{key}/{trial.name}": trial.curves for trial in self.trials}
        return {**found, f"{key}/occlusion": self.drops}


def put_to_test(view, cams):
    """{class: Evidence} of the maps {class: map} of a photograph."""
    network, grey = view.network, view.grey_input()
    check_height(view.options, len(cams), 220 * view.options.scale)
    heats = {}
    for index, cam in cams.items():
        at = view.at_input(network.layer, cam.shape)
        heats[index] = place(cam, at, *view.x.shape[1:3])
    trials = deletion_and_insertion(view.x, heats, grey, network.predict)
    squares, (logits,) = occlude(view.x, grey, lambda batch: (network.logits(batch),), 25, 12)
    found = {}
    for index, heat in heats.items():
        drops = view.logits[index] - logits[..., index]
        hidden = np.array([heat[square].mean() for square in squares])
        found[index] = Evidence(trials[index], drops, rank_correlation(hidden, drops))
    return found


# --- Kernels: which are drawn, and the photographs that excite them ---


def inner_responses(maps, inside):
    """The strongest response, (…, K), of each kernel of maps (…, h, w, K) in the cells inside, bool
    (h, w), or in all if none is: some kernels answer most to the black frame of zero padding."""
    counted = inside if inside.any() else np.ones_like(inside)
    return maps[..., counted, :].max(axis=-2)


def diverse_kernels(maps, inside, count=9, limit=0.8):
    """The strongest kernel of maps (h, w, K), then the strongest whose maps correlate less than
    limit with all chosen ones; filled up with the strongest of the rest whose maps vary."""
    ranked = np.argsort(-inner_responses(maps, inside), kind="stable").tolist()
    flat = maps.reshape(-1, maps.shape[-1]).T
    varied = [kernel for kernel in ranked if np.ptp(flat[kernel])]
    if not varied:
        return ranked[:count]
    with np.errstate(invalid="ignore"):  # of kernels that do not vary
        alike = np.atleast_2d(np.corrcoef(flat))
    chosen = []
    for kernel in varied:
        if len(chosen) < count and (alike[kernel, chosen] < limit).all():
            chosen.append(kernel)
    rest = [kernel for kernel in varied if kernel not in chosen]
    return (chosen + rest)[:count]


class Best(NamedTuple):
    """The photographs that excite each kernel most, at most BEST, the strongest first, of equals
    the first. activations: float32 (n, K). numbers: of photographs, int (n, K)."""

    activations: np.ndarray
    numbers: np.ndarray

    def of(self, kernel):
        """Numbers of the photographs that excite a kernel, at least one."""
        count = max(1, int((self.activations[:, kernel] > 0).sum()))
        return self.numbers[:count, kernel]

    def merge(self, activations, numbers):
        """The best of these and of other photographs: activations (n, K), numbers (n, 1)."""
        numbers = np.concatenate([self.numbers, np.broadcast_to(numbers, activations.shape)])
        activations = np.concatenate([self.activations, activations])
        order = np.lexsort((numbers, -activations), axis=0)[:BEST]
        return Best(*[np.take_along_axis(each, order, axis=0) for each in (activations, numbers)])


def scan(network, album):
    """The Best of each kernel of a layer over all photographs, by its response in inner cells."""
    photograph = network.model.inputs[0]
    top = get_operation(network.model, network.layer).output
    part = keras.Model(photograph, top)
    inside = network.inside(network.layer)
    rows, columns = lit_span(inside.any(axis=1)), lit_span(inside.any(axis=0))

    def respond(x):
        maps = part(x, training=False)
        if len(maps.shape) == 4:
            maps = tf.reduce_max(maps[:, rows, columns], axis=(1, 2))
        return maps

    traced = tf.function(respond, [tf.TensorSpec((None, *photograph.shape[1:]), tf.float32)])
    nothing = np.zeros((0, top.shape[-1]), np.float32)
    best = Best(nothing, nothing.astype(int))
    for batch in read_ahead(album, network.prepare):
        numbers, inputs = zip(*batch, strict=True)
        activations = traced(np.concatenate(inputs)).numpy()
        best = best.merge(activations, np.array(numbers)[:, None])
    return best


def read_ahead(album, prepare, size=8):
    """Lists of (number, network's input) of readable photographs, one list ahead of its use."""

    def read(number):
        photo = album.read(album.paths[number])
        return (number, prepare(photo.pixels)) if photo else None

    numbers = range(len(album.paths))
    advance = progress(len(numbers))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        ahead = []
        for some in [*in_rows(numbers, size), ()]:
            ready = ahead
            ahead = [pool.submit(read, number) for number in some]
            batch = []
            for done in ready:
                found = done.result()
                batch += [found] if found else []
                advance()
            if batch:
                yield batch


# --- Projections, and tiles of them and of what squares hide ---


class Way(NamedTuple):
    """How a kernel is projected: mode and rule of `deconvnet`."""

    mode: str
    rule: str

    def words(self):
        return f"{self.rule}: {'whole map' if self.mode == 'all' else 'strongest patch'}"


@dataclass
class Projected:
    """A kernel's projections before a photograph, and the patch that they are cut to."""

    kernel: int
    stem: str  # what the photograph's results are called
    seen: np.ndarray  # uint8 (H, W, 3), what the network was fed of it
    cam: np.ndarray | None = None  # the kernel's map, (h, w)
    values: dict = field(default_factory=dict)  # {Way: float32 (H, W, channels)}
    cut: tuple = ()  # slices of y and x


def cut_patches(found, way, share=0.95):
    """Cut squares of one size, around the medians of Projected strongest positions, which hold a
    share of the absolute values. way: of mode max."""
    masses = [np.abs(each.values[way]).sum(axis=-1, dtype=np.float64) for each in found]
    medians, size = [], 1
    for mass in masses:
        sums = [np.cumsum(mass.sum(axis=other)) for other in (1, 0)]
        median = [int(np.searchsorted(along, along[-1] / 2)) for along in sums]
        medians.append(median)
        while mass[square_around(median, size, mass.shape)].sum() < share * mass.sum():
            size += 1
    for each, median in zip(found, medians, strict=True):
        each.cut = square_around(median, size, masses[0].shape)


def square_around(centre, size, shape):
    """Slices of a square, moved inside a picture (H, W); a side that is too long is cut."""
    sides = np.minimum(size, shape)
    starts = np.clip(centre - sides // 2, 0, shape - sides)
    return tuple(slice(*ends) for ends in zip(starts, starts + sides, strict=True))


def patch_side(photo, scale):
    """How wide a patch is beside a tile of the photograph: as high as that, at least 100 pixels."""
    return max(min(photo.shape[:2]), 100 * scale)


def projection_arrays(options, layer, found, several=False):
    """Projections to be saved: LAYER/KERNEL, behind which stands what is not the options' first."""
    arrays = {}
    for each in found:
        for way, values in each.values.items():
            words = [layer, str(each.kernel)]
            words += [way.mode] if way.mode != options.mode else []
            words += [way.rule] if way.rule != options.rules[0] else []
            words += [each.stem] if several else []
            arrays["/".join(words)] = values
    return arrays


def tiles_of_one_height(views, times):
    """The photographs of Explanations as tiles of a page that has each so many times in a row."""
    photos = [view.photo.pixels for view in views]
    shapes = [photo.shape[1] / photo.shape[0] for photo in photos]  # width by height
    height = min(max((PAGE - 100) / sum(shapes) / times, 100), 280)
    height = int(height * views[0].options.scale)
    sizes = [(max(round(height * shape), 1), height) for shape in shapes]
    return [resize(photo, *size) for photo, size in zip(photos, sizes, strict=True)]


def mosaic(pictures, columns=3):
    """Pictures of one size, uint8 (h, w, 3), side by side with white lines in between."""
    framed = [np.pad(each, ((1, 1), (1, 1), (0, 0)), constant_values=255) for each in pictures]
    framed += [np.full_like(framed[0], 255)] * (-len(framed) % columns)
    return np.vstack([np.hstack(row) for row in in_rows(framed, columns)])


def mosaic_layout(options, count):
    """How so many patches a kernel are laid out: patches side by side, pixels of each, at least
    100, and mosaics side by side. UserError where the page would be too high."""
    across = min(count, 3)
    side = 100 if across == 3 else 150
    of_kernel = 1 + len(options.rules)
    kernels_a_row = max(1, round(PAGE / of_kernel / (across * (side + 2) + GAP)))
    side *= options.scale
    asked = len(options.kernels.indices) + options.kernels.top
    check_height(options, -(-asked // kernels_a_row), -(-count // across) * side)
    return across, side, of_kernel * kernels_a_row


def kernel_mosaics(found, best, across, side, preprocess):
    """A kernel's Tiles: patches of its Best photographs, and these projected in each Way."""
    title = f"kernel {found[0].kernel}"
    strengths = best.activations[: len(found), found[0].kernel]
    seen = [resize(each.seen[each.cut], side, side) for each in found]
    span = f"{strengths[0]:.3g} to {strengths[-1]:.3g}"
    tiles = [Tile(mosaic(seen, across), f"{title}: {span}")]
    square = np.empty((side, side))
    for way in found[0].values:
        pictures = [signed_grey(each.values[way][each.cut], square, preprocess) for each in found]
        tiles.append(Tile(mosaic(pictures, across), f"{title}: {way.rule}"))
    return tiles


class Fall(NamedTuple):
    """How far a number falls where a part of the photograph is hidden."""

    before: float
    hidden: np.ndarray  # (rows, columns)

    def map(self):
        """How much of it is needed of each part."""
        return self.before - self.hidden

    def words(self):
        return f"{self.before:.3g}, hidden {self.hidden.min():.3g} to {self.hidden.max():.3g}"


def hide_parts(view, layer, kernel):
    """Where a grey square hides a part: the Fall of the first class's probability, that of the sum
    of a kernel's map, and the most probable classes, int (rows, columns)."""
    network, options = view.network, view.options
    outputs = [network.model.outputs[0], get_operation(network.model, layer).output]
    model = keras.Model(network.model.inputs[0], outputs)

    def evaluate(batch):
        logits, maps = model(batch, training=False)
        responses = maps.numpy()[..., kernel].reshape(len(batch), -1)
        return network.probabilities(logits), responses.sum(axis=1)

    view.keep(network.logits(view.x)[0])
    index = view.classes[0]
    before, response = evaluate(view.x)
    how = options.patch, options.stride
    _, (probabilities, responses) = occlude(view.x, view.grey_input(), evaluate, *how)
    probability = Fall(before[0, index], probabilities[..., index])
    return probability, Fall(response[0], responses), probabilities.argmax(axis=-1)


COLOURS = {  # of the most frequent classes; grey of all the rest
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "yellow": (240, 220, 60),
    "blue": (31, 119, 180),
    "violet": (148, 103, 189),
}


def winners_tile(winners, photo, at, names):
    """The Tile of the most probable classes, int (rows, columns), in colours over a photograph."""
    frequent = Counter(sorted(winners.ravel().tolist())).most_common(len(COLOURS))
    colours = {index: colour for (index, _), colour in zip(frequent, COLOURS, strict=False)}
    painted = np.full((*winners.shape, 3), 128, np.uint8)
    for index, colour in colours.items():
        painted[winners == index] = COLOURS[colour]
    painted = painted[nearest_cells(winners.shape, photo.shape[:2], at)]
    mixed = cv2.addWeighted(painted, 0.5, photo, 0.5, 0)
    legend = "; ".join(f"{colour}: {names.title(index)}" for index, colour in colours.items())
    return Tile(dim(mixed, at), f"most probable: {legend}")


def nearest_cells(cells, size, at):
    """The cell, of (rows, columns), nearest to each pixel of a photograph (H, W), for indexing."""
    start, length = fitted(size, at.size, at.fit)
    nearest = []
    for axis, count in enumerate(cells):
        places = (np.arange(size[axis]) + 0.5 - start[axis]) / length[axis] * count
        nearest.append(np.clip(places, 0, count - 1).astype(int))
    return np.ix_(*nearest)


# --- Boxes: weakly supervised localisation ---

BOX_COLUMNS = ("photo", "class", "x0", "y0", "x1", "y1")
LOCALISATION = ("IoU ≥ 0.5", "mean IoU", "pointing, 15 pixels", "pointing", "heat inside")


class Box(NamedTuple):
    """The pixels x0 <= x < x1, y0 <= y < y1 of a photograph."""

    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def size(self):
        """Height and width."""
        return np.array([self.y1 - self.y0, self.x1 - self.x0])

    def iou(self, other):
        """Intersection over union, 0 to 1."""
        common = np.minimum(self[2:], other[2:]) - np.maximum(self[:2], other[:2])
        common = np.maximum(common, 0).prod()
        return common / (self.size.prod() + other.size.prod() - common)


def read_boxes(path):
    """{resolved path of a photograph: {class as written: [Box, …]}} of a CSV file with BOX_COLUMNS
    and perhaps others, whose paths are relative to it. UserError names lines that give no box."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"--boxes {path}: there is no such file")
    boxes, wrong = {}, []
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
        rows = csv.DictReader(file)
        if set(BOX_COLUMNS) - set(rows.fieldnames or ()):
            raise UserError(f"{path}: its first line must name {','.join(BOX_COLUMNS)}")
        for row in rows:
            box = parse_box(row)
            if box:
                of_photo = boxes.setdefault((path.parent / row["photo"]).resolve(), {})
                of_photo.setdefault(row["class"].strip(), []).append(box)
            else:
                wrong.append(str(rows.line_num))
    if wrong:
        wanted = "a photo, a class, and numbers 0 <= x0 < x1, 0 <= y0 < y1"
        raise UserError(f"{path}: no box in line {few(wrong)}: {wanted} are wanted")
    return boxes


def parse_box(row):
    """The Box of a row {column: text}, or None."""
    try:
        box = Box(*[float(row[column]) for column in BOX_COLUMNS[2:]])
    except (TypeError, ValueError):
        return None
    named = row["photo"] and row["class"].strip() and None not in row  # None: a comma too many
    ordered = 0 <= box.x0 < box.x1 and 0 <= box.y0 < box.y1
    return box if named and ordered and np.isfinite(box).all() else None


def true_boxes(options, classes, album):
    """{resolved path of a photograph: {class index: [Box, …]}} of --boxes, if boxes are drawn."""
    if not options.boxes or "boxes" not in options.figures:
        return {}
    read, found = read_boxes(options.boxes), {}
    try:
        for path in dict.fromkeys(map(Path.resolve, album.paths)):
            for word, boxes in read.get(path, {}).items():
                of_photo = found.setdefault(path, {})
                of_photo.setdefault(classes.called(word), []).extend(boxes)
        if not found:
            raise UserError(
                f"none of the photographs has a box there ({few(list(map(str, read)))})"
            )
    except UserError as error:
        raise UserError(f"--boxes {options.boxes}: {error}") from error
    others = [path.name for path in read if path not in found]
    if others:
        warn(f"--boxes {options.boxes}: photographs that are not drawn here: {few(others)}")
    return found


def over_threshold(heat, threshold):
    """Where heat is over threshold percent of its maximum, uint8, 0 or 1; 0 without any heat."""
    return np.uint8(heat > max(heat.max(), 0) * threshold / 100)


def segment_box(heat, threshold=15):
    """The Box of the largest segment of heat (H, W) over threshold percent (below 100) of its
    maximum, None without positive heat: Selvaraju et al. 2016, arXiv 1610.02391, section 4.1.
    Pixels that touch at a corner are connected, as OpenCV and scikit-image have it."""
    hot = over_threshold(heat, threshold)
    if not hot.any():
        return None
    _, _, segments, _ = cv2.connectedComponentsWithStats(hot, connectivity=8)
    largest = 1 + segments[1:, cv2.CC_STAT_AREA].argmax()  # 0 is what is not hot
    x, y, width, height, _ = segments[largest].tolist()
    return Box(x, y, x + width, y + height)


def check_inside(photo, boxes):
    """Say so where a true box is not of this photograph, but of a larger one perhaps."""
    height, width = photo.pixels.shape[:2]
    if any(box.x1 > width or box.y1 > height for box in boxes):
        warn(f"{photo.path}, {width} × {height} pixels: a true box reaches beyond it")


def draw_boxes(view):
    """The box of the largest segment of heat, a tile a class; over a folder, how well it fits."""
    layer, maps, survey = view.network.layer, view.maps, view.survey
    truths = survey.boxes.get(view.photo.path.resolve(), {})
    check_inside(view.photo, itertools.chain(*truths.values()))
    classes = list(dict.fromkeys([*view.classes, *truths]))
    photo = view.grid_tile(len(classes) + 1)
    tiles, arrays = [Tile(photo, "photograph")], {}
    for index in classes:
        heat, true = view.placed(maps[index]), truths.get(index, [])
        box = segment_box(heat, view.options.threshold)
        seen = dim(photo, view.at(layer, maps[index].shape))
        tiles.append(box_tile(view, seen, index, heat, box, true))
        arrays[f"{layer}/{index}"] = maps[index]
        arrays[f"{layer}/{index}/box"] = np.float32(box or np.full(4, np.nan))
        if true:
            survey.localisation.add(heat, box, true)
    note = f"{layer} · white: over {view.options.threshold} % of the maximum; "
    note += "red: its largest segment's box"
    note += "; green: true boxes" if truths else ""
    view.save("boxes", in_grid(tiles), note, arrays, [])


def box_tile(view, picture, index, heat, box, truths):
    """The Tile of a class: what is hot outlined, its Box and true ones drawn on a picture."""
    scale = view.options.scale
    hot = over_threshold(heat, view.options.threshold)
    hot = cv2.resize(hot, picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    outlines, _ = cv2.findContours(hot, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, outlines, -1, (255, 255, 255), scale)
    for true in truths:
        mark(picture, true, heat.shape, TRUE_BOX_COLOUR, 2 * scale)
    if not box:
        return Tile(picture, f"{view.class_title(index)}\nno positive evidence")
    mark(picture, box, heat.shape, BOX_COLOUR, 2 * scale)
    title = f"{view.class_title(index)}\nbox {tuple(box)}"
    if truths:
        title += f"\nIoU {max(map(box.iou, truths)):.2f}"
    return Tile(picture, title)


def mark(picture, box, shape, colour, width):
    """Draw the Box of a photograph (H, W) on a picture of it, of any size."""
    factors = np.tile(np.divide(picture.shape[1::-1], shape[::-1]), 2)
    x0, y0, x1, y1 = np.rint(box * factors).astype(int).tolist()
    cv2.rectangle(picture, (x0, y0), (x1 - 1, y1 - 1), colour, width)


def score_box(box, point, heat, truths):
    """The numbers of LOCALISATION, (5,), of a map (H, W) with its box and its maximum at point, (y,
    x), before true boxes, the best of which counts. Pointing game: Zhang et al. 2016, arXiv
    1608.00507, section 4.1; its tolerance is 15 pixels along y and x."""
    true = np.zeros(heat.shape, bool)
    for x0, y0, x1, y1 in np.round(truths).astype(int):
        true[y0:y1, x0:x1] = True
    y, x = point
    near = true[max(y - 15, 0) : y + 16, max(x - 15, 0) : x + 16].any()
    iou = max(map(box.iou, truths))
    positive = np.maximum(heat, 0)
    inside = positive[true].sum() / positive.sum()
    return np.array([iou >= 0.5, iou, near, true[y, x], inside], float)


def score_centred(shape, size, truths):
    """The same of a centred box, equally warm, of a size (height, width) in shares of shape's."""
    height, width = shape
    margins = np.round((1 - size) * shape / 2)
    y0, x0 = np.clip(margins, 0, [(height - 1) // 2, (width - 1) // 2]).astype(int).tolist()
    box = Box(x0, y0, width - x0, height - y0)
    heat = np.zeros(shape, np.float32)
    heat[box.y0 : box.y1, box.x0 : box.x1] = 1
    return score_box(box, (height // 2, width // 2), heat, truths)


class Localisation:
    """How well maps find true boxes, and a centred box of the true ones' mean size does."""

    def __init__(self):
        self.scores = []  # of each map
        self.places = []  # of each map: its shape, its true boxes

    def add(self, heat, box, truths):
        """A map (H, W), its box (None: no positive heat, nothing found), one or more true boxes."""
        point = np.unravel_index(heat.argmax(), heat.shape)
        nothing = np.zeros(len(LOCALISATION))
        self.scores.append(score_box(box, point, heat, truths) if box else nothing)
        self.places.append((heat.shape, truths))

    def summary(self):
        """{name: (mean of the maps, of the centred box)}, as LOCALISATION names them, 0 to 1."""
        sizes = [box.size / shape for shape, truths in self.places for box in truths]
        size = np.mean(sizes, axis=0)  # in shares of the photographs'
        centred = [score_centred(shape, size, truths) for shape, truths in self.places]
        means = np.mean([self.scores, centred], axis=1)
        return dict(zip(LOCALISATION, map(tuple, means.T.tolist()), strict=True))

    def line(self):
        pairs = self.summary().items()
        text = ", ".join(f"{name} {own:.3f} ({centred:.3f})" for name, (own, centred) in pairs)
        return f"{len(self.scores)} maps with true boxes (and a centred box of mean size): {text}"

    def tile(self):
        """The summary as bars."""
        summary = self.summary()
        figure = Figure(figsize=(7, 3), dpi=100)
        axes = figure.add_axes((0.22, 0.16, 0.73, 0.7))
        places = -np.arange(len(summary))
        columns = zip(*summary.values(), strict=True)
        styles = (("Grad-CAM", "C3", 0.2), ("centred box", "0.7", -0.2))
        for means, (label, colour, shift) in zip(columns, styles, strict=True):
            bars = axes.barh(places + shift, means, 0.38, color=colour, label=label)
            axes.bar_label(bars, fmt="%.3f", padding=3)
        axes.set_yticks(places, summary)
        axes.set(xlim=(0, 1.12), xlabel="mean over the maps")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
        return Tile(drawn(figure))


# --- Known answers: failures and the table ---

TABLE_COLUMNS = ["photograph", "true_class", "true_p"]
TABLE_COLUMNS += [f"{column}_{place}" for place in range(1, 6) for column in ("class", "p")]
TABLE_COLUMNS += ["layer", "map_maximum", "x0", "y0", "x1", "y1", "settings", "error"]
ROWS = 8  # of a page of failures


def match_folders(folders, classes):
    """{sub-folder: class index}, of the ClassNames that sub-folders are called like, saying which
    are left out, and of several of one class. UserError where none is called like a class."""
    found = {}
    for folder in folders:
        with contextlib.suppress(UserError):
            found[folder] = classes.called(folder)
    unknown = [folder for folder in folders if folder not in found]
    if not found:
        there = f"no sub-folder ({few(unknown)})" if unknown else "there is no sub-folder that"
        raise UserError(f"{there} is called like a class ({few(classes.names)})")
    if unknown:
        say(f"sub-folders called like no class, or like several, are left out: {few(unknown)}")
    counts = Counter(found.values())
    doubled = [folder for folder, index in found.items() if counts[index] > 1]
    if doubled:
        say(f"sub-folders of one and the same class are taken together: {few(doubled)}")
    return found


def known_answers(options, network, album):
    """{photograph: class index}, by the names of sub-folders; UserError where there is none, and
    failures is drawn and no figure of single photographs."""
    try:
        if network.kind == "number":
            raise UserError(f"{network.label} gives a number, no class")
        found = match_folders(album.folders, network.classes)
    except UserError as error:
        if "failures" not in options.figures:
            return {}
        if set(options.figures) <= {"failures", "table"}:
            raise UserError(f"failures: {error}") from error
        say(f"failures is left out: {error}")
        return {}
    filled = set(album.places.values())
    empty = [folder for folder in found if folder not in filled]
    if empty:
        say(f"sub-folders without photographs: {few(empty)}")
    places = album.places.items()
    return {path: found[folder] for path, folder in places if folder in found}


class Tally(Counter):
    """How often (true class, predicted class) came, by their indices."""

    def right(self):
        return sum(times for (true, predicted), times in self.items() if true == predicted)

    def by_class(self):
        """Counters of photographs by their true class, and by the predicted one."""
        by_true, by_predicted = Counter(), Counter()
        for (true, predicted), times in self.items():
            by_true[true] += times
            by_predicted[predicted] += times
        return by_true, by_predicted

    def line(self, name):
        """`412 of 500 right (82.4 %); cat taken for dog 31 times, …`; name(index): of a class."""
        parts = []
        for (true, predicted), times in sorted(self.items(), key=lambda item: (-item[1], item[0])):
            if true != predicted:
                often = "once" if times == 1 else f"{times} times"
                parts.append(f"{name(true)} taken for {name(predicted)} {often}")
        share = 100 * self.right() / self.total()
        text = f"{self.right()} of {self.total()} right ({share:.1f} %)"
        return f"{text}; {few(parts)}" if parts else f"{text}: no failures to draw"


class Failure(NamedTuple):
    """A photograph taken for another class, with probability p. maps: (2, h, w), of the class
    predicted, and of the true one."""

    p: float
    path: Path
    predicted: int
    true: int
    logits: np.ndarray
    maps: np.ndarray


class Survey:
    """All photographs of a run before one network: what is known of them, what figures gather."""

    def __init__(self, options, network, album):
        self.options, self.network, self.album = options, network, album
        self.counts = bool({"failures", "table"} & set(options.figures))
        self.truths = known_answers(options, network, album) if self.counts else {}
        self.figures = [each for each in options.figures if each != "failures" or self.truths]
        self.boxes = true_boxes(options, network.classes, album)
        self.tally = Tally()
        self.heats = {}  # of each class predicted: the sum of its maps, each of its maximum
        self.at = None  # the Geometry by which maps lie over the network's input
        self.wrong = []  # Failures, the most confident first
        self.rows = {}  # of the table, by the photograph's path
        self.localisation = Localisation()

    def wanted(self, asked, path):
        """A Selection of classes, and with them those that figures over all need."""
        known = [self.truths[path]] if path in self.truths else []
        known += self.boxes.get(path.resolve(), {})
        top = max(asked.top, 1) if self.counts else asked.top
        return replace(asked, indices=(*asked.indices, *known), top=top)

    def finish(self):
        """Write and say what was gathered."""
        if self.tally:
            warn(f"{self.network.label}: {self.tally.line(self.network.classes.short)}")
            pages = in_rows(self.wrong, ROWS)
            for number, failures in enumerate(pages, 1):
                self.draw_failures(failures, number, len(pages))
            self.draw_mean_heat(len(pages) + 1)
            self.suspect()
        if self.localisation.scores and len(self.album.paths) > 1:
            warn(f"{self.network.label}: {self.localisation.line()}")
            note = f"{len(self.localisation.scores)} maps with true boxes"
            arrays = {"localisation": np.stack(self.localisation.scores)}
            self.save("boxes", [[self.localisation.tile()]], note, arrays, bars=[])
        if self.rows or ("table" in self.options.figures and self.album.exit_code() == 2):
            self.write_table()

    def save(self, figure, rows, note, arrays, **how):
        """Write a page over all photographs."""
        result = self.album.result(self.options, figure, self.network)
        note = f"{self.network.layer} · {note}"
        result.draw(rows, note, self.network.keyed(arrays), **how)

    def draw_failures(self, failures, number, pages):
        """Write a page of failures."""
        rows, arrays = [], {}
        for failure in failures:
            photo = self.album.read(failure.path)
            if photo:
                rows.append(failure_row(Explanation(self.options, self.network, photo), failure))
                arrays[f"{photo.stem}/logits"] = failure.logits
                for index, cam in zip((failure.predicted, failure.true), failure.maps, strict=True):
                    arrays[f"{photo.stem}/{self.network.layer}/{index}"] = cam
        total = self.tally.total()
        wrong = total - self.tally.right()
        note = f"{wrong} of {total} wrong, the most confident first · page {number} of {pages}"
        if self.options.method in ("gradcam", "hirescam"):
            note += " · the difference of two maps is the map of the logits' difference"
        how = {"suffix": f"_{number}", "count": pages + 1}
        bars = [Bar(self.options.colormap, "max of both")]
        self.save("failures", rows, note, arrays, bars=bars, **how)

    def draw_mean_heat(self, count):
        """Write the page of the mean heat of each class predicted, of the most frequent ones."""
        classes = self.tally.by_class()[1].most_common(35)
        tiles, arrays = [], {}
        for index, times in classes:
            mean = self.heats[index] / times
            picture = colorize(heat_map(mean, *self.at.size, at=self.at), self.options.colormap)
            title = f"{self.network.classes.title(index)}\npredicted {times} times"
            title += f", right {self.tally[index, index]}\nmax {mean.max():.2f}"
            picture = fit_tile(picture, columns_for(len(classes)), self.options.scale)
            tiles.append(Tile(picture, title))
            arrays[f"{self.network.layer}/{index}/mean"] = mean
        note = "mean heat of the class predicted, of each map's maximum"
        if len(classes) < len(self.heats):
            note += f" · the {len(classes)} most frequent of {len(self.heats)} classes"
        self.save("failures", in_grid(tiles), note, arrays, suffix="_heat", count=count)

    def suspect(self):
        """Say so where a network is no better than always the same answer, and try why."""
        frequencies, _ = self.tally.by_class()
        most = max(frequencies.values())
        if self.tally.right() > most or len(frequencies) == 1:
            return
        label, how = self.network.label, self.network.preprocess
        order = "are the labels in the order of training"
        warn(f"{label}: the most frequent class has {most}: {order}, is --preprocess {how} right?")
        count, shares = self.try_preprocessings()
        tried = ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items())
        warn(f"{label}: right of {count} photographs with --preprocess {tried}")

    def try_preprocessings(self):
        """How many photographs, fifty at most, the classes taking turns, and {--preprocess: share
        that is right}."""
        turns, met = {}, Counter()
        for path, true in self.truths.items():
            turns[path] = met[true]
            met[true] += 1
        first = sorted(turns, key=turns.get)[:50]
        photos = list(filter(None, map(self.album.read, first)))
        networks = [replace(self.network, preprocess=name) for name in PREPROCESS]
        right = np.zeros(len(networks))
        for photo in photos:
            batch = np.concatenate([network.prepare(photo.pixels) for network in networks])
            right += self.network.logits(batch).argmax(axis=1) == self.truths[photo.path]
        return len(photos), dict(zip(PREPROCESS, right / len(photos), strict=True))

    def write_table(self):
        """Write the rows in the order of the photographs, with those that cannot be read."""
        result = self.album.result(self.options, "table", self.network)
        settings = f"{result.album_digest()} {result.digest()}"
        rows = []
        for path in self.album.paths:
            cells = self.rows.get(path) or {"error": self.album.unreadable.get(path, "")}
            rows.append({"photograph": str(path), "settings": settings, **cells})
        text = table_text(rows).encode("utf-8")
        write_whole(result.path("csv"), lambda file: file.write(text))


def add_failure(view):
    """Of sub-folders that are classes: what is taken for what, and why; the mean heat a class."""
    survey = view.survey
    true = survey.truths.get(view.photo.path)
    if true is None:
        return
    maps = view.maps  # whose pass gives the logits
    predicted = int(view.logits.argmax())
    cam = maps[predicted]
    survey.tally[true, predicted] += 1
    survey.at = view.at_input(view.network.layer, cam.shape)
    heat = np.maximum(cam, 0)
    survey.heats[predicted] = survey.heats.get(predicted, 0) + heat / (heat.max() or 1)
    if predicted != true:
        p = float(view.network.probabilities(view.logits)[predicted])
        both = np.stack([cam, maps[true]])
        failure = Failure(p, view.photo.path, predicted, true, view.logits, both)
        ranked = sorted([*survey.wrong, failure], key=lambda each: -each.p)
        survey.wrong = ranked[: ROWS * view.options.pages]


def failure_row(view, failure):
    """Tiles: photograph, heat of the class predicted and of the true one, their difference."""
    photo, layer = view.tile(4), view.network.layer
    view.logits = failure.logits
    wrong, right = failure.maps
    scale = {"scale": max(failure.maps.max(), 0)}
    taken_for, true = map(view.class_title, (failure.predicted, failure.true))
    return [
        Tile(photo, f"{Path(*view.photo.path.parts[-2:])}\ntrue: {true}"),
        view.heat(photo, wrong, layer, f"taken for {taken_for}", **scale),
        view.heat(photo, right, layer, f"true: {true}", **scale),
        signed_tile(view, photo, wrong - right, failure),
    ]


def signed_tile(view, photo, difference, failure):
    """The Tile of a signed map: red where it is positive, blue where it is negative."""
    at = view.at(view.network.layer, difference.shape)
    laid = place(difference, at, *photo.shape[:2])[..., None]
    ends = np.float32(np.where(laid > 0, (178, 24, 43), (33, 102, 172)))
    colours = np.uint8(255.5 + np.abs(laid) / (np.abs(laid).max() or 1) * (ends - 255))
    picture = dim(cv2.addWeighted(colours, 0.6, grey_photo(photo), 0.4, 0), at)
    predicted, true = map(view.network.classes.short, (failure.predicted, failure.true))
    title = f"red: {predicted} rather than {true}\nblue: {true} rather than {predicted}"
    return Tile(picture, title)


def add_row(view):
    """A CSV of all photographs: truth, predictions, probabilities, the map's maximum, its box."""
    cam = view.maps[int(view.logits.argmax())]
    probabilities = view.network.probabilities(view.logits)
    true = view.survey.truths.get(view.photo.path)
    cells = class_cells(view.network.classes.short, probabilities, true)
    cells |= {"layer": view.network.layer, "map_maximum": f"{cam.max():.6g}"}
    box = segment_box(view.placed(cam), view.options.threshold)
    view.survey.rows[view.photo.path] = cells | (box._asdict() if box else {})


def class_cells(name, probabilities, true=None):
    """Cells {column: text}: the true class, and the five most probable; name(index): of a class."""
    cells = {}
    if true is not None:
        cells = {"true_class": name(true), "true_p": f"{probabilities[true]:.6g}"}
    ranked = np.argsort(-probabilities, kind="stable")[:5].tolist()
    for place, index in enumerate(ranked, 1):
        cells[f"class_{place}"] = name(index)
        cells[f"p_{place}"] = f"{probabilities[index]:.6g}"
    return cells


def table_text(rows):
    """Rows {column of TABLE_COLUMNS: cell} as CSV (RFC 4180); what a row lacks is empty."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, TABLE_COLUMNS, restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "replace").decode()  # a file name may be no text


SURVEYED = {"boxes": draw_boxes, "failures": add_failure, "table": add_row}
