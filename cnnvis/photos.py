"""The photographs of a run: finding them, naming their results, reading them.

Nothing is decoded before it is needed, but for a single photograph, whose faults are reported at
once. Preprocessing is in utils.py."""

from __future__ import annotations

import argparse
import functools
import glob
import hashlib
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cnnvis.results import shorten
from cnnvis.runtime import abbreviate, log
from utils import IMAGE_FOLDER, PHOTO_FORMATS, UserError, load_image, sub_folders

# Those of the second line are not read, only reported
PHOTO_ENDINGS = ".jpg .jpeg .jpe .jfif .png .gif .bmp .webp .tif .tiff"
PHOTO_ENDINGS += " .heic .heif .avif .dng .cr2 .nef .arw"
RESULT_NAME = re.compile(r"[^A-Z]+_[^A-Z]+_[^A-Z]+\.(jpg|png)")  # STEM_MODEL_FIGURE.jpg
ORIENTATION = 274  # the EXIF tag
PHOTO_STEM_LIMIT = 150  # bytes of the part of a file name that comes from a photograph


@dataclass(frozen=True)
class Photo:
    """A photograph: its path, what its results are called, and its pixels."""

    path: Path
    stem: str
    image: np.ndarray  # uint8 (H, W, 3), RGB


@dataclass
class PhotoSet:
    """The photographs of a run."""

    paths: list
    stems: dict  # {path: what its results are called}
    name: str  # what the results over all photographs are called
    arguments: tuple  # the words for them, as paths
    subfolder_of: dict  # {path: the sub-folder of a given folder that holds it}
    subfolders: list  # every sub-folder of the given folders, sorted
    upright: bool = True  # turn photographs by their EXIF orientation
    region: np.ndarray | None = None  # of --mask, which has the size of every photograph
    unreadable: dict = field(default_factory=dict)  # {path: why}
    turned: bool = False  # whether a photograph that is turned upright was reported
    decoded: dict = field(default_factory=dict)  # {path: pixels} of a single photograph
    cluster: Any = None  # the Cluster that shares the work

    # --- several machines ---

    def join_cluster(self, options: argparse.Namespace) -> None:
        """Join the workers that TF_CONFIG or SLURM names, if they do."""
        several_tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1) > 1
        if self.cluster or not ("TF_CONFIG" in os.environ or several_tasks):
            return
        from cnnvis.distributed import join  # not loaded without a cluster

        self.cluster = join(options, self.paths)

    @property
    def writes_folder(self) -> bool:
        """Whether figures over all photographs are written here: by the first worker only."""
        return not self.cluster or self.cluster.index == 0

    @property
    def share(self) -> list:
        """The photographs whose own figures are drawn here."""
        return self.cluster.share(self.paths) if self.cluster else self.paths

    def gather(self, value: Any) -> list:
        """What each worker gives; of one machine its own value."""
        return self.cluster.gather(value) if self.cluster else [value]

    def share_unreadable(self) -> None:
        """Let every worker know which photographs the others could not read."""
        for unreadable in self.gather(self.unreadable):
            self.unreadable |= unreadable

    @functools.cached_property
    def order(self) -> dict[Path, int]:
        """{path: its place among the photographs}."""
        return {path: place for place, path in enumerate(self.paths)}

    def class_folders(self, count: int, labels: str = "") -> list[str]:
        """The sub-folders that are a network's classes, sorted: all, as Keras's loaders count them.

        If their number is not `count`, but the number of those with photographs is, only those.
        labels: the folder of the sub-folders; default: the given ones."""
        folders = sub_folders(labels) if labels else self.subfolders
        if len(folders) == count or count < 2:  # 1: a number, no class
            return folders
        root, subfolder_of = Path(labels), self.subfolder_of
        if labels:
            subfolder_of = find_subfolders([root], walk(root))
        filled = sorted({*folders} & {*subfolder_of.values()})
        if len(filled) != count:
            return folders
        empty = [folder for folder in folders if folder not in filled]
        log(f"sub-folders without photographs are no classes: {abbreviate(empty)}")
        return filled

    # --- reading ---

    def read(self, path: Path) -> Photo | None:
        """The Photo, or None for one that cannot be read, which is reported once."""
        return self.admit(path, self.decode(path))

    def decode(self, path: Path) -> np.ndarray | UserError:
        """The pixels of a photograph, or why it cannot be read. Threads may call it."""
        if path in self.decoded:
            return self.decoded[path]
        try:
            image = load_image(path, self.upright)
            check_mask(self.region, image, path)
            return image
        except UserError as error:
            return error

    def admit(self, path: Path, pixels: np.ndarray | UserError) -> Photo | None:
        """The Photo of what `decode` gives, or None for one without pixels, which is reported."""
        if not isinstance(pixels, UserError):
            self.report_turned(path)
            return Photo(path, self.stems[path], pixels)
        self.report(path, pixels)
        return None

    def report(self, path: Path, error: UserError) -> None:
        """Report a photograph that cannot be read, once."""
        if path not in self.unreadable:
            log(f"skipped: {error}")
        self.unreadable[path] = str(error)

    def report_turned(self, path: Path) -> None:
        """Report the first photograph that is turned upright, which Keras's loaders do not do."""
        if self.upright and not self.turned and is_turned(path):
            self.turned = True
            text = "is turned upright by its EXIF orientation, as are others like it"
            log(f"{path} {text}; --as-stored reads photographs as Keras's loaders do")

    def readable(self) -> Iterator[Photo]:
        """Every Photo that can be read, in order."""
        return filter(None, map(self.read, self.paths))

    def exit_code(self) -> int:
        """0; 1 where some photographs could not be read, 2 where none could."""
        if len(self.unreadable) == len(self.paths):
            return 2
        return 1 if self.unreadable else 0


def find_photos(options: argparse.Namespace, images: str | Sequence[str]) -> PhotoSet:
    """The photographs asked for. images: the script's constant, relative to the script."""
    constant = [images] if isinstance(images, str | Path) else images
    arguments = options.images or [str(IMAGE_FOLDER.parent / image) for image in constant]
    paths = expand_arguments(arguments)
    roots = [Path(word) for word in arguments if os.path.isdir(word)]
    stems = name_results(paths)
    photos = PhotoSet(
        paths=paths,
        stems=stems,
        name=set_name(arguments, roots, paths, stems),
        arguments=tuple(map(Path, arguments)),
        subfolder_of=find_subfolders(roots, paths),
        subfolders=sorted({folder for root in roots for folder in sub_folders(root)}),
        upright=not options.as_stored,
        region=options.region,
    )
    if len(paths) == 1:  # a broken one is reported at once, and a good one is decoded once
        image = photos.decoded[paths[0]] = photos.decode(paths[0])
        if isinstance(image, UserError):
            raise image
    return photos


def check_mask(region: np.ndarray | None, image: np.ndarray, path: Path) -> None:
    """UserError for a mask, (H, W), of another size than a photograph's."""
    if region is not None and region.shape != image.shape[:2]:
        mask, photo = ("{1} x {0}".format(*array.shape) for array in (region, image))
        raise UserError(f"--mask is {mask} pixels, and {path} is {photo}")


def set_name(arguments: Sequence[str], roots: list, paths: list, stems: dict) -> str:
    """What results over all photographs are called: the folder, or the first and a digest."""
    first = stems[paths[0]]
    if len(arguments) == len(roots) == 1:
        return shorten(roots[0].resolve().name.lower(), PHOTO_STEM_LIMIT)
    if len(paths) == 1:
        return first
    resolved = b"\n".join(os.fsencode(path.resolve()) for path in paths)
    digest = hashlib.sha1(resolved).hexdigest()[:6]
    return f"{first}_and_{len(paths) - 1}_more_{digest}"


def find_subfolders(roots: Sequence[Path], paths: Sequence[Path]) -> dict[Path, str]:
    """{photograph: the name of the sub-folder of one of the given folders that holds it}."""
    subfolders = {}
    for path, root in itertools.product(paths, roots):
        inner = path.relative_to(root).parts if path.is_relative_to(root) else ()
        if len(inner) > 1:
            subfolders[path] = inner[0]
    return subfolders


def expand_arguments(arguments: Sequence[str]) -> list[Path]:
    """The paths of photographs among files, patterns and folders, in order, each once."""
    found = []
    for word in arguments:
        if not word or re.match(r"[a-zA-Z]+://", word):
            what = word or "an empty word"
            raise UserError(f"{what} is no file: give a file; download what an address names first")
        paths = [word] if os.path.exists(word) else sorted(glob.glob(word, recursive=True))
        for path in map(Path, paths or [word]):
            found += walk(path) if path.is_dir() else [path]
    if not found:
        where = ", ".join(arguments) or "the constant IMAGES"
        raise UserError(f"no photographs in {where} (endings: {PHOTO_ENDINGS})")
    return list(dict.fromkeys(found))


def walk(folder: Path) -> list[Path]:
    """The photographs in a folder and below it, sorted, without hidden ones and our own results.

    Links to folders are followed; each real folder is read once, by its own path if it has one."""
    found, visited, endings = [], set(), PHOTO_ENDINGS.split()
    pending = [folder]  # the folder, then the links to folders that were met
    while pending:
        for place, subfolders, files in os.walk(pending.pop(0)):
            real = os.path.realpath(place)
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            if real in visited:
                subfolders.clear()
                continue
            visited.add(real)
            pending += [link for name in subfolders if (link := Path(place, name)).is_symlink()]
            paths = [Path(place, name) for name in files if not name.startswith(".")]
            found += [path for path in paths if path.suffix.lower() in endings]
    return [path for path in sorted(found) if not is_result(path)]


def is_turned(path: Path) -> bool:
    """Whether the EXIF orientation of a photograph is another than the stored one."""
    with Image.open(path, formats=PHOTO_FORMATS) as image:
        return image.getexif().get(ORIENTATION, 1) != 1


def is_result(path: Path) -> bool:
    """Whether a picture is one of our own, by its name and its metadata."""
    if not RESULT_NAME.fullmatch(path.name) or not path.is_file():
        return False
    try:
        with Image.open(path, formats=("JPEG", "PNG")) as image:
            about = image.info.get("comment") or image.info.get("Subject") or ""
    except (OSError, ValueError, SyntaxError):
        return False
    return '"photographs": [' in str(about)


def name_results(paths: Sequence[Path]) -> dict[Path, str]:
    """{path: what its results are called}: stems in lower case, no two the same."""
    stems, taken = {}, set()
    cut = functools.partial(shorten, limit=PHOTO_STEM_LIMIT)
    for path in paths:
        stem = cut(re.sub(r"[\0-\x1f]", "_", path.stem.lower()))
        if stem in taken:
            parent = path.resolve().parent.name
            stem = cut(f"{parent}_{path.name.replace('.', '_')}".lower())
        while stem in taken:
            stem += "_"
        stems[path] = stem
        taken.add(stem)
    return stems
