"""Results on disk: what files are called, what they carry in their metadata, and writing them.

Names are a pure function of the run. What a figure shows is not in here."""

from __future__ import annotations

import argparse
import functools
import glob
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.image import imsave
from PIL import Image, PngImagePlugin

from cnnvis.pages import Bar, Page, make_page, matplotlib_defaults
from cnnvis.runtime import log, log_once
from cnnvis.shell import write_stdout
from utils import UserError

JPEG_LIMIT = 65500  # pixels: the largest height that libjpeg allows
NAME_LIMIT = 170  # bytes of a file name of at most 255: photographs and network
STEM_LIMIT = 230  # figure and suffix too; `.EXTENSION`, and `.PID.part` while it is written, follow
ENDS = 50_000  # bytes at the start or end of a file that hold its metadata
QUALITY = 92  # of JPEGs


@dataclass
class Drawing:
    """The contents of one file: a page of rows of tiles, or a picture, or a table."""

    rows: list | None = None  # lists of Tiles
    note: str = ""
    arrays: dict = field(default_factory=dict)  # for --arrays
    bars: list | None = None  # Bars; None: that of heat maps
    picture: np.ndarray | None = None  # uint8 (H, W, 3), without a page around it
    table: str | None = None  # text of a CSV file
    suffix: str = ""  # in the file name, where a figure has several files


@dataclass
class Result:
    """The files of a figure: by which network, of which photographs, what they are called."""

    options: argparse.Namespace
    figure: Any  # a Figure
    network: Any
    paths: tuple  # of the photographs
    stem: str  # what the results of these photographs are called
    arguments: tuple = ()  # the words for several photographs, such as a folder that may grow

    @functools.cached_property
    def settings(self) -> dict:
        """What the figure is drawn with, for metadata: names, never folders."""
        options = vars(self.options)
        settings = {name.rstrip("_"): options[name] for name in self.options.constants}
        settings |= {"weights": self.options.weights.title, "arrays": self.options.arrays}
        for key in ("labels", "boxes", "import", "mask"):
            settings[key] = Path(str(settings.get(key, ""))).name
        settings.pop("output", None)
        settings.pop("figures", None)  # one figure does not depend on the others
        figure = {"script": self.options.script, "figure": self.figure.name}
        names = [path.name for path in self.paths[:9]]
        photos = {"photographs": names, "album": self.photo_digest}
        network = {"network": self.network.name, "origin": self.origin}
        return {**figure, **network, **photos, **settings}

    @functools.cached_property
    def photo_digest(self) -> str:
        """Twelve hex digits of the photographs that were asked for."""
        return digest_of_paths(self.arguments or self.paths)

    @functools.cached_property
    def origin(self) -> str:
        """Twelve hex digits of the path of the weights, which tell networks of one name apart."""
        path = self.options.weights.path
        return digest_of_paths([path] if path else [])

    @functools.cached_property
    def digest(self) -> str:
        """Hex digits that change with the settings, and with the files that were read."""
        named = [getattr(self.options, name, "") for name in ("labels", "boxes", "mask")]
        files = [*self.paths, self.options.weights.path, *named]
        stamps = [os.stat(path).st_mtime_ns for path in files if path and os.path.exists(path)]
        settings = {key: value for key, value in self.settings.items() if key != "origin"}
        text = json.dumps([settings, stamps], default=str)
        return hashlib.sha1(text.encode()).hexdigest()

    @property
    def name(self) -> str:
        """The stem of the file names."""
        name = shorten(f"{self.stem}_{self.network.name}", NAME_LIMIT)
        return f"{name}_{self.figure.name}"

    @property
    def extension(self) -> str:
        """The ending of the file names."""
        return self.figure.extension or self.options.format

    def path(self, extension: str, suffix: str = "") -> Path:
        """Where a file is written."""
        stem = shorten(f"{self.name}{suffix}", STEM_LIMIT)
        return self.options.output / f"{stem}.{extension}"

    def is_drawn(self) -> bool:
        """Whether --skip-existing leaves the figure out: all its files exist with this digest."""
        if not self.options.skip_existing:
            return False
        wanted, existing = 1, 0
        for path in self.options.output.glob(f"{glob.escape(self.name)}*"):
            if path.suffix not in (f".{self.extension}", ".png"):
                continue
            content = path.read_bytes()
            if self.digest.encode() in content:
                existing += 1
                counted = re.search(rb'"files": (\d+)', content)
                wanted = int(counted[1]) if counted else 1
        return existing >= wanted

    def report_overwritten(self, drawings: Sequence[Drawing]) -> None:
        """Report once a run that files of another network of the same name are written over."""
        for drawing in drawings:
            extension = self.extension if drawing.table is None else "csv"
            if read_origin(self.path(extension, drawing.suffix)) not in (None, self.origin):
                saved = "--name gives this one another name"
                advice = saved if self.options.weights.saved else "--output gives another folder"
                what = f"results of another network named {self.network.name} are overwritten"
                log_once(f"{self.options.output}: {what}; {advice}")

    # --- writing ---

    def write(self, drawings: Sequence[Drawing]) -> None:
        """Write the files of a figure, the arrays of each before its picture."""
        self.report_overwritten(drawings)
        for drawing in drawings:
            if drawing.table is not None:
                fill = functools.partial(save_text, text=drawing.table)
                write_whole(self.path("csv", drawing.suffix), fill)
                continue
            page = self.page(drawing) if drawing.picture is None else drawing.picture
            if self.options.arrays:
                save = functools.partial(np.savez, **drawing.arrays)
                write_whole(self.path("npz", drawing.suffix), save)
            self.write_picture(page, drawing.suffix, len(drawings))

    def page(self, drawing: Drawing) -> Page:
        """The page of a drawing."""
        options, network = self.options, self.network
        label = network.heading or network.label
        method = getattr(options, "method", "")
        method = f" · {method}" if method and not self.figure.kernels_of else ""
        figure = self.figure.name.replace("_", " ")
        heading = f"{label} · {figure}{method} · weights: {options.weights.title}"
        bars = [Bar(options.colormap, "max")] if drawing.bars is None else drawing.bars
        return make_page(drawing.rows, heading, drawing.note, bars, options.scale)

    def write_picture(self, page: Page | np.ndarray, suffix: str, count: int) -> None:
        """Write a page or a picture. count: the number of files of the figure."""
        about = json.dumps({**self.settings, "files": count, "digest": self.digest}, default=str)
        extension = self.extension
        if isinstance(page, Page) and extension != "pdf":
            page = page.pixels()
        if extension == "jpg" and len(page) > JPEG_LIMIT:
            extension = "png"
            log(f"{self.name}{suffix}: {len(page):,} pixels high, more than a JPEG can be: as PNG")
        save = save_pdf if extension == "pdf" else save_pixels
        fill = functools.partial(save, page=page, extension=extension, about=about)
        write_whole(self.path(extension, suffix), fill)


def digest_of_paths(paths: Sequence[Path]) -> str:
    """Twelve hex digits of resolved paths."""
    resolved = "\n".join(str(path.resolve()) for path in paths)
    return hashlib.sha1(resolved.encode("utf-8", "replace")).hexdigest()[:12]


def read_origin(path: Path) -> str | None:
    """The `origin` of a file of results, from its first or last bytes; None where it has none."""
    if not path.is_file():
        return None
    try:
        with open(path, "rb") as file:
            content = file.read(ENDS)
            file.seek(max(ENDS, path.stat().st_size - ENDS))  # where a PDF has its metadata
            content += file.read()
    except OSError:
        return None
    origin = re.search(rb"origin\W{1,5}([0-9a-f]{12})\b", content)
    return origin[1].decode() if origin else None


@matplotlib_defaults()
def save_pdf(file: io.BytesIO, page: Page | np.ndarray, extension: str, about: str) -> None:
    """Save a page or a picture as a PDF, with what it was drawn with as metadata."""
    if isinstance(page, Page):
        page.figure().savefig(file, format=extension, metadata={"Subject": about})
    else:
        imsave(file, page, format=extension, metadata={"Subject": about})


def save_pixels(file: io.BytesIO, page: np.ndarray, extension: str, about: str) -> None:
    """Save a picture, uint8 (H, W, 3), as it is, with the same metadata."""
    image = Image.fromarray(page)
    if extension == "jpg":
        image.save(file, "JPEG", quality=QUALITY, comment=about.encode())
        return
    info = PngImagePlugin.PngInfo()
    info.add_text("Subject", about)
    image.save(file, "PNG", pnginfo=info)


def save_text(file: io.BytesIO, text: str) -> None:
    """Save text, in UTF-8."""
    file.write(text.encode("utf-8"))


def write_whole(path: Path, fill: Callable) -> None:
    """Write a file under a hidden name and rename it, so that it appears whole or not at all.

    fill(file) writes the contents. The path is printed on stdout."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    file = io.BytesIO()
    fill(file)
    try:
        part.write_bytes(file.getbuffer())
        os.replace(part, path)
    except OSError as error:  # the message of a full disk does not name the file
        raise UserError(f"cannot write {path}: {os.strerror(error.errno)}") from error
    finally:
        part.unlink(missing_ok=True)
    list_file(path)


def list_file(path: Path) -> None:
    """Print the path of a file on stdout."""
    reason = write_stdout(os.fsencode(path) + b"\n")
    if reason:
        log_once(f"the list of files cannot be written to stdout ({reason}): the files are written")


def shorten(name: str, limit: int) -> str:
    """A name of at most `limit` bytes; the end of a cut one is a digest of all of it."""
    encoded = os.fsencode(name)
    if len(encoded) <= limit:
        return name
    digest = hashlib.sha1(encoded).hexdigest()[:8]
    return f"{encoded[: limit - 9].decode(errors='ignore')}_{digest}"
