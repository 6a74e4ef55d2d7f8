"""What the scripts share: load an image, preprocess it, ImageNet's classes, colour overlays.

    x = utils.preprocess_input(utils.load_image("Image/cat.jpg"), (224, 224), "caffe")

Importing this module imports no TensorFlow. The machinery of the scripts is in cnnvis/."""

from __future__ import annotations

import csv
import difflib
import functools
import json
import os
import re
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps

IMAGE_FOLDER = Path(__file__).resolve().parent / "Image"
PHOTO_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")  # none that starts other programs
COLORMAPS = {name[9:].lower(): code for name, code in vars(cv2).items() if name[:9] == "COLORMAP_"}
PREPROCESS_MODES = ("caffe", "tf", "torch", "unit", "none")
FITS = ("squeeze", "crop", "pad")
INTERPOLATIONS = {"bilinear": cv2.INTER_LINEAR, "nearest": cv2.INTER_NEAREST_EXACT}


class UserError(Exception):
    """An error that the user can fix; its text is shown without a traceback."""


def suggest(word: str, known: Sequence[str]) -> str:
    """A "did you mean" hint for a mistyped word, or the list of what is known, or nothing."""
    word = word[:99]
    near = [name for name in known if word and word.lower() in name.lower()][-3:]
    near = near or difflib.get_close_matches(word, known, 3, 0.5)
    if near:
        return f": did you mean {', '.join(near)}?"
    if 0 < len(known) < 30:
        return f": one of {', '.join(known)}"
    return ""


def check_choice(name: str, value: Any, known: Sequence) -> None:
    """ValueError unless an argument has one of the known values."""
    if value not in known:
        raise ValueError(f"Expected {name} to be one of {tuple(known)}. Received: {value!r}")


# --- load an image ---


def load_image(path: str | Path, upright: bool = True, background: str = "white") -> np.ndarray:
    """The pixels of a photograph, uint8 (H, W, 3), RGB.

    upright: turn it as its EXIF orientation says. background: behind transparent parts. UserError:
    it cannot be read. Pillow refuses a file that ends early; OpenCV returns grey for the rest."""
    try:
        check_file(Path(path))
        with Image.open(path, formats=PHOTO_FORMATS) as image:
            if image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise ValueError(f"more than {Image.MAX_IMAGE_PIXELS:,} pixels: shrink it")
            return rgb_pixels(image, path, upright, background)
    except Exception as error:  # a decoder fails in many ways on a broken file
        formats = ", ".join(PHOTO_FORMATS)
        raise UserError(f"cannot read the photograph {path} ({formats}): {error}") from error


def check_file(path: Path) -> None:
    """ValueError with the cause for a file that is known not to be a photograph."""
    if path.exists() and not path.is_file():
        raise ValueError("it is no regular file")  # reading a pipe may wait for ever
    refuse_lfs_pointer(path)
    with open(path, "rb") as file:
        start = file.read(512)
    if not start:
        raise ValueError("the file is empty")
    if start[4:8] == b"ftyp":
        raise ValueError("it is HEIC, AVIF or a video: save it as JPEG")
    if re.match(rb"(\xef\xbb\xbf)?\s*<(!|html|\?xml|svg)", start, re.IGNORECASE):
        raise ValueError("it is a web page or SVG: download the image itself, or save it as PNG")


def refuse_lfs_pointer(path: Path) -> None:
    """UserError if a file is only Git LFS's pointer to the real one."""
    with open(path, "rb") as file:
        start = file.read(40)
    if start.startswith(b"version https://git-lfs.github.com"):
        raise UserError(f"{path} is a Git LFS pointer, not the file itself: run «git lfs pull»")


def rgb_pixels(image: Image.Image, path: str | Path, upright: bool, background: str) -> np.ndarray:
    """The pixels of an open Pillow image, uint8 (H, W, 3)."""
    if upright:
        image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":  # 16 bits, or real numbers
        image = Image.fromarray(to_8_bits(np.asarray(image, np.float32), image.mode, path))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return np.asarray(image.convert("RGB"))


def to_8_bits(values: np.ndarray, mode: str, path: str | Path) -> np.ndarray:
    """Values of a TIFF or PNG as uint8; a range other than 0-1, 0-255 or 16 bits is rescaled."""
    finite = values[np.isfinite(values)]
    least, most = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    values = np.nan_to_num(values, nan=0, posinf=most, neginf=least)
    if mode == "F" and least >= 0 and most <= 1:
        return np.uint8(values * 255)
    if mode != "F" and 4096 <= most <= 65535:
        return np.uint8(values / 257)
    if most > 255 or least < 0 or mode != "F":
        print(f"{path}: values {least:g} to {most:g}, rescaled to 0 to 255", file=sys.stderr)
        values = (values - min(least, 0)) * (255 / max(most - min(least, 0), 1e-12))
    return np.uint8(values.clip(0, 255))


# --- preprocess it ---


def resize(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """cv2.resize: area averages along an axis that shrinks, cubic along one that grows."""
    shrunk = (min(width, image.shape[1]), min(height, image.shape[0]))
    if shrunk != image.shape[1::-1]:  # INTER_AREA averages nothing where the other axis grows
        image = cv2.resize(image, shrunk, interpolation=cv2.INTER_AREA)
    if shrunk != (width, height):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    return image


def fit_box(size: Sequence[int], target: Sequence[int], fit: str) -> tuple[np.ndarray, np.ndarray]:
    """The box of an image of `size` that becomes a rectangle of size `target`, (height, width).

    fit: squeeze, the whole image; crop, its largest centred part of the target's proportions; pad,
    the whole image with borders (start is negative). Returns start and length, int (y, x), in whole
    pixels as Keras counts them in Resizing, crop_to_aspect_ratio and pad_to_aspect_ratio."""
    size, target = np.array(size), np.array(target)
    proportioned = size[::-1] * target // target[::-1]
    if fit == "crop":
        length = np.clip(proportioned, 1, size)
        return (size - length) // 2, length
    border = np.maximum(proportioned - size, 0) // 2 if fit == "pad" else 0 * size
    return -border, size + 2 * border


def fit_image(
    image: np.ndarray, size: Sequence[int], fit: str, interpolation: str, pad: int
) -> np.ndarray:
    """An image as a rectangle of size (H, W), see `fit_box`: float32 (H, W, 3)."""
    (y, x), (rows, columns) = fit_box(image.shape[:2], size, fit)
    if fit == "crop":
        image = image[y : y + rows, x : x + columns]
    if fit == "pad":
        image = np.pad(image, [(-y, -y), (-x, -x), (0, 0)], constant_values=pad)
    height, width = size
    if interpolation == "area":
        return np.float32(resize(image, width, height))
    method = INTERPOLATIONS[interpolation]
    return cv2.resize(np.float32(image), (width, height), interpolation=method)


def preprocess_input(
    image: np.ndarray,
    size: Sequence[int] = (224, 224),
    mode: str = "caffe",
    channels: int = 3,
    fit: str = "squeeze",
    interpolation: str = "area",
    pad: int = 0,
) -> np.ndarray:
    """The input of a network, float32 (1, H, W, channels), of an image, uint8 (h, w, 3), RGB.

    size: (H, W). mode: caffe (BGR less the ImageNet mean), tf (-1 to 1), torch (ImageNet mean and
    deviation), as Keras calls them; unit (0 to 1), none (0 to 255). channels: 3, or 1 for grey.
    fit, pad (borders' grey, 0 to 255): see `fit_box`. interpolation: area; bilinear, nearest."""
    image = check_image(image)
    check_size(size)
    check_choice("mode", mode, PREPROCESS_MODES)
    check_choice("fit", fit, FITS)
    check_choice("interpolation", interpolation, ("area", *INTERPOLATIONS))
    check_choice("channels", channels, (1, 3))
    check_choice("pad", pad, range(256))
    if channels == 1:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        image = cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)
    x = fit_image(image, size, fit, interpolation, pad)[None]
    if mode == "unit":
        x = x / 255
    if mode in ("caffe", "tf", "torch"):
        from keras.applications import imagenet_utils  # late: it imports TensorFlow

        x = imagenet_utils.preprocess_input(x, "channels_last", mode)
    return x if channels == 3 else x.mean(axis=-1, keepdims=True)


def check_image(image: Any) -> np.ndarray:
    """An image, an array or Pillow's, as uint8 (H, W, 3). ValueError for anything else."""
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"Expected uint8 (H, W, 3). Received: {image.dtype} {image.shape}")
    return image


def check_size(size: Any) -> None:
    """ValueError unless size is (height, width), in pixels."""
    if np.shape(size) != (2,) or min(size) < 1:
        raise ValueError(f"Expected size=(height, width), in pixels. Received: {size!r}")


# --- classes ---


@dataclass(frozen=True)
class Selection:
    """Chosen indices, and the `top` strongest at a position among them."""

    indices: tuple = ()
    top: int = 0
    position: int = 0

    def __str__(self) -> str:
        words = list(map(str, self.indices))
        if self.top:
            words.insert(self.position, f"top{self.top}")
        return ",".join(words)

    def first(self) -> Selection:
        """The first of what was chosen."""
        if self.indices and (self.position or not self.top):
            return Selection(self.indices[:1])
        return Selection(top=1)

    def among(self, scores: Any) -> list[int]:
        """The indices chosen, each once, in the order asked for. scores: (n,)."""
        ranked = np.argsort(-np.asarray(scores), kind="stable")[: self.top].tolist()
        chosen = [*self.indices[: self.position], *ranked, *self.indices[self.position :]]
        return list(dict.fromkeys(chosen))


@dataclass(frozen=True)
class ClassNames:
    """The classes of a network: WordNet ids, empty where there are none, and names."""

    wordnet_ids: list
    names: list

    def __len__(self) -> int:
        return len(self.names)

    def title(self, index: int) -> str:
        """A class in titles, with its index and WordNet id."""
        name = self.names[index]
        if name == f"class {index}":
            return name
        ids = filter(None, [str(index), self.wordnet_ids[index]])
        return f"{name} ({f',{chr(0xA0)}'.join(ids)})"  # a space that breaks no line

    def short(self, index: int) -> str:
        """A class's name, with its index where several classes have the same name."""
        name = self.names[index]
        return name if self.names.count(name) == 1 else f"{name} ({index})"

    @functools.cached_property
    def indices(self) -> dict[str, list[int]]:
        """{normalised name or WordNet id: indices of the classes}."""
        indices = {}
        for index, name in enumerate(map(normalize_name, self.names)):
            bare = name.removeprefix(f"{index} ")  # «0 rock», as Teachable Machine writes it
            for word in {normalize_name(self.wordnet_ids[index]), name, bare}:
                indices.setdefault(word, []).append(index)
        return indices

    def named(self, word: str) -> int:
        """`index` of a word that is a name first: a folder `10` may be the third of the classes."""
        return self.names.index(word) if self.names.count(word) == 1 else self.index(word)

    def index(self, word: str) -> int:
        """The class of an index, a WordNet id or a name. UserError: none or several."""
        key = normalize_name(word)
        if key.isdecimal() and len(key) < 10 and int(key) < len(self):
            return int(key)  # whatever the classes' names are
        matches = self.indices.get(key, [])
        if len(matches) > 1:
            numbers = " or ".join(map(str, matches))
            raise UserError(f"{len(matches)} classes are named {word!r}: give an index, {numbers}")
        if not matches:
            hint = suggest(key, [name.lower() for name in self.names])
            if re.fullmatch(r"(top|-)?\d+", key):
                hint = f": one of 0 … {len(self) - 1}, top1 … top99"
            raise UserError(f"unknown class {word[:99]!r}{hint}")
        return matches[0]

    def select(self, words: Sequence[str]) -> Selection:
        """A Selection of classes from words: indices, WordNet ids, names, `top4`."""
        indices, top, position = [], 0, 0
        for word in words:
            counted = re.fullmatch(r"top([1-9]\d?)", word.strip().lower())
            if not counted:
                indices.append(self.index(word))
            elif int(counted[1]) > top:
                top, position = int(counted[1]), len(indices)
        return Selection(tuple(dict.fromkeys(indices)), min(top, len(self)), position)


def normalize_name(name: str) -> str:
    """A name for comparison: lower case, spaces for underscores, composed accents (NFC)."""
    return unicodedata.normalize("NFC", name).strip().lower().replace("_", " ")


def read_classes(labels: str = "", count: int = 1000) -> ClassNames:
    """The ClassNames of ImageNet, of a file with one name per line, or of a folder of sub-folders.

    count: the number of the network's classes. UserError: another number of labels."""
    if not labels and count != 1000:
        return ClassNames([""] * count, [f"class {index}" for index in range(count)])
    if not labels:
        with open(IMAGE_FOLDER / "imagenet_classes.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        names = [row["name"].replace("_", " ") for row in rows]
        return ClassNames([row["wordnet_id"] for row in rows], names)
    names = sub_folders(labels) if os.path.isdir(labels) else read_labels(Path(labels))
    if len(names) != count:
        raise UserError(f"{labels} names {len(names)} classes, the network has {count}")
    return ClassNames([""] * count, names)


def read_labels(path: Path) -> list[str]:
    """The names in a file: a line a class, or «0,disc»; in .json {name: index} or names."""
    text = decode_text(path.read_bytes()).strip()
    if "\0" in text:
        raise UserError(f"{path} is no text file")
    if path.suffix.lower() == ".json":
        return json_labels(path, text)
    lines = [line.strip() for line in text.splitlines()]
    numbered = [re.fullmatch(r"(\d{1,9})\s*[,;\t]\s*(.+)", line) for line in lines]
    pairs = sorted((int(each[1]), each[2]) for each in numbered if each)
    is_numbered = [index for index, _ in pairs] == list(range(len(lines)))
    return [name for _, name in pairs] if is_numbered else lines


def json_labels(path: Path, text: str) -> list[str]:
    """The names in JSON: a list, {name: index} as Keras's class_indices, or {index: name}."""
    try:
        labels = json.loads(text)
        if isinstance(labels, dict):
            pairs = [(int(a), b) if isinstance(b, str) else (b, a) for a, b in labels.items()]
            labels = [dict(pairs)[index] for index in range(len(pairs))]
        return list(map(str, labels))
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path} is no JSON of {{name: index}}, indices from 0") from error


def decode_text(data: bytes) -> str:
    """Text of a file in UTF-8, or in UTF-16 with its byte order mark."""
    is_utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    return data.decode("utf-16" if is_utf16 else "utf-8-sig", "replace")


def sub_folders(folder: str | Path) -> list[str]:
    """The names of a folder's sub-folders, sorted, without hidden ones and macOS's."""
    return sorted({sub.name for sub in Path(folder).glob("[!.]*/") if sub.is_dir()} - {"__MACOSX"})


def decode_predictions(predictions: np.ndarray, top: int = 5) -> list[list[tuple]]:
    """ImageNet's most probable classes, as keras.applications returns them, without a download.

    predictions: probabilities (N, 1000). Returns for each row a list of (WordNet id, name, p)."""
    predictions = np.asarray(predictions)
    if predictions.ndim != 2 or predictions.shape[1] != 1000:
        raise ValueError(f"Expected predictions of shape (N, 1000). Received: {predictions.shape}")
    classes, decoded = read_classes(), []
    names = [name.replace(" ", "_") for name in classes.names]
    for row in predictions:
        ranked = row.argsort()[::-1][:top]
        decoded.append([(classes.wordnet_ids[i], names[i], row[i]) for i in ranked])
    return decoded


# --- colour overlays ---


def colorize(values: np.ndarray, colormap: str) -> np.ndarray:
    """Numbers from 0 to 1, (h, w), in the colours of an OpenCV map: uint8 (h, w, 3), RGB."""
    check_choice("colormap", colormap, COLORMAPS)
    levels = np.uint8(np.clip(values, 0, 1) * 255 + 0.5)
    return cv2.cvtColor(cv2.applyColorMap(levels, COLORMAPS[colormap]), cv2.COLOR_BGR2RGB)


def heat_map(
    cam: np.ndarray, height: int, width: int, scale: float | None = None, geometry: Any = None
) -> np.ndarray:
    """A signed map after Grad-CAM's last ReLU (equation 2), enlarged: (height, width), 0 to 1.

    scale: the value shown as 1; default: the map's maximum. geometry: of the map's layer, see
    cnnvis.layer_geometries; without it the map is stretched."""
    cam = np.asarray(cam, np.float32)
    if cam.ndim != 2 or not np.isfinite(cam).all():
        raise ValueError(f"Expected a finite map (h, w). Received: {cam.shape}, sum {cam.sum()}")
    heat = np.maximum(cam, 0)
    heat = heat / (scale or heat.max() or 1)
    if geometry is None:
        heat = cv2.resize(heat, (width, height), interpolation=cv2.INTER_CUBIC)
    else:
        heat = geometry.resample(heat, height, width)
    return np.clip(heat, 0, 1)


def overlay(
    image: np.ndarray,
    cam: np.ndarray,
    geometry: Any = None,
    colormap: str = "jet",
    alpha: float = 0.5,
    scale: float | None = None,
) -> np.ndarray:
    """A signed map of any size over an image, in colours: uint8 (H, W, 3), RGB.

    image: uint8 (H, W, 3). alpha: the share of the colours. scale: see `heat_map`. geometry: of the
    map's layer, dims what the network does not see; without it the map is stretched."""
    image = check_image(image)
    height, width = image.shape[:2]
    colours = colorize(heat_map(cam, height, width, scale, geometry), colormap)
    mixed = cv2.addWeighted(colours, alpha, image, 1 - alpha, 0)
    return mixed if geometry is None else geometry.dim(image, mixed)


def signed_grey(values: np.ndarray, like: np.ndarray, mode: str = "none") -> np.ndarray:
    """A projection or gradient (h, w, channels) as a picture, uint8, of the size of another.

    Zero is grey, the 99th percentile of the absolute values is white. mode: caffe, if in BGR."""
    height, width = like.shape[:2]
    values = resize(np.asarray(values, np.float32), width, height)  # before it is scaled
    values = values.reshape(height, width, -1)
    scale = np.percentile(np.abs(values[values != 0]), 99) if values.any() else 1
    levels = np.uint8(np.clip(128.5 + 127 * values / scale, 1, 255))
    picture = np.repeat(levels, 3 // values.shape[-1], axis=-1)
    return picture[..., ::-1] if mode == "caffe" else picture


def pale_grey(image: np.ndarray) -> np.ndarray:
    """An image in pale grey, for where there is nothing to colour."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) // 2 + 64
    return cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)
