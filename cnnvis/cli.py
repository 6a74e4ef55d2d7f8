"""The command line: a script's constants as options, their types, and errors in one line.

It imports no TensorFlow, so that mistyped options are reported at once. What a figure or a network
makes of its options is not in here."""

from __future__ import annotations

import argparse
import ast
import contextlib
import csv
import io
import itertools
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cnnvis.boxes import read_boxes
from cnnvis.runtime import log
from cnnvis.saved_models import Weights, is_saved_network, refuse_foreign
from cnnvis.shell import write_stdout
from utils import (
    COLORMAPS,
    FITS,
    INTERPOLATIONS,
    PREPROCESS_MODES,
    Selection,
    UserError,
    load_image,
    read_classes,
    suggest,
)

LARGEST_SEED = 2**32 - 1


# --- argument types ---


def split_words(text: str) -> list[str]:
    """Words between commas or on lines, each once; a word with a comma is quoted, as in CSV."""
    words = itertools.chain(*csv.reader(text.splitlines(), skipinitialspace=True))
    return list(dict.fromkeys(word.strip() for word in words if word.strip()))


def choice(*names: str) -> Callable:
    """An argparse type: one of these names, case-insensitive."""
    by_lower = {name.lower(): name for name in names}

    def read(text: str) -> str:
        word = text.strip().lower()
        if word not in by_lower:
            raise argparse.ArgumentTypeError(f"unknown {text.strip()!r}{suggest(word, names)}")
        return by_lower[word]

    return read


def choices(*names: str) -> Callable:
    """An argparse type: some of these names, or `all`; without names any words."""
    read_one = choice(*names) if names else str

    def read(text: str) -> list[str]:
        words = split_words(text)
        if not words:
            raise argparse.ArgumentTypeError(f"expected names, not {text!r}")
        if names and "all" in words:
            return list(names)
        return [read_one(word) for word in words]

    return read


def int_range(least: int, most: int) -> Callable:
    """An argparse type: a whole number within a range."""

    def read(text: str) -> int:
        if not re.fullmatch(r"-?\d{1,12}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(
                f"{text!r}: expected a whole number from {least} to {most}"
            )
        return int(text)

    return read


def kernels_type(text: str) -> Selection:
    """An argparse type: kernels as numbers and ranges of them, or `topN`."""
    if re.fullmatch(r"top[1-9]\d{0,3}", text):
        return Selection(top=int(text[3:]))
    numbers = []
    for word in text.split(","):
        ends = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", word.strip())
        if not ends:
            raise argparse.ArgumentTypeError(
                f"{text!r}: expected numbers from 0, ranges like 0-8, or top9"
            )
        first, last = sorted((int(ends[1]), int(ends[2] or ends[1])))
        numbers += range(first, last + 1)
    return Selection(tuple(dict.fromkeys(numbers)))


def size_type(text: str) -> tuple[int, int] | None:
    """An argparse type: height,width in pixels, or nothing."""
    if not text:
        return None
    sides = re.fullmatch(r"(\d{1,4})\s*[,x]\s*(\d{1,4})", text.strip())
    if not sides or min(int(sides[1]), int(sides[2])) < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected height,width in pixels, such as 224,224"
        )
    return int(sides[1]), int(sides[2])


def name_type(text: str) -> str:
    """An argparse type: a name for file names, or nothing."""
    if re.search(r"[/\\\0-\x1f]", text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a name without / and \\")
    return text.strip()


def weights_type(*words: str) -> Callable:
    """An argparse type: one of these words, or the path of a file or folder."""

    def read(text: str) -> Weights:
        if text in words:
            return Weights(text)
        path = Path(text)
        if not text or not (path.exists() or Path(f"{text}.index").exists()):
            known = ", ".join(words)
            raise argparse.ArgumentTypeError(
                f"there is no {text!r}: give {known}, a file or a folder"
            )
        refuse_foreign(path)
        return Weights("", path, is_saved_network(path))

    return read


ARGUMENT_TYPES = {
    "MODELS": choices("vgg16", "vgg19"),
    "LAYERS": choices(),
    "CLASSES": choices(),
    "KERNELS": kernels_type,
    "MODE": choice("max", "all"),
    "PATCH": int_range(1, 100),
    "STRIDE": int_range(1, 100),
    "COMPARED": int_range(1, 32),
    "LABELS": str,
    "IMPORT": str,
    "NAME": name_type,
    "SIZE": size_type,
    "PREPROCESS": choice("auto", *PREPROCESS_MODES),
    "FIT": choice(*FITS),
    "PAD": int_range(0, 255),
    "RESIZE": choice("area", *INTERPOLATIONS),
    "PLACE": choice("field", "stretch"),
    "THRESHOLD": int_range(1, 99),
    "BOXES": str,
    "MASK": str,
    "PAGES": int_range(1, 999),
    "SCALE": int_range(1, 8),
    "SEED": int_range(0, LARGEST_SEED),
    "OUTPUT": Path,
    "FORMAT": choice("jpg", "png", "pdf"),
    "COLORMAP": choice(*COLORMAPS),
}
SWITCHES = ("AS_STORED", "ARRAYS")  # constants that are True or False


# --- the parser ---


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UserErrors, and writes its help to the real stdout."""

    def error(self, message: str) -> None:
        raise UserError(f"{message} (see --help)")

    def print_help(self, file: Any = None) -> None:
        encoding = getattr(sys.__stdout__, "encoding", None) or "utf-8"
        reason = write_stdout(self.format_help().encode(encoding, "replace"))
        if reason:
            log(f"the help cannot be written to stdout ({reason})")


def as_typed(name: str, constant: Any) -> str:
    """A constant as a person would type it: a list is a line of CSV. UserError: no such type."""
    if isinstance(constant, str | Path | int | float) and not isinstance(constant, bool):
        return str(constant)
    if isinstance(constant, list | tuple | range):
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow(constant)
        return line.getvalue()
    expected = "expected text in quotes, a whole number or a list"
    raise UserError(f"the constant {name} = {constant!r}: {expected}")


def read_constant(name: str, value: Any, read: Callable | None) -> Any:
    """A constant's value, read as that of its option. UserError says what the constant takes."""
    if name in SWITCHES:
        if not isinstance(value, bool):
            raise UserError(f"the constant {name} = {value!r}: expected True or False")
        return value
    try:
        return read(as_typed(name, value))
    except argparse.ArgumentTypeError as error:
        raise UserError(f"the constant {name} = {value!r}: {error}") from error


def types_of(script: Mapping[str, Any], figures: Mapping[str, Any]) -> dict[str, Any]:
    """{constant of a script that is an option: its argparse type}, None for a switch."""
    types = {
        **ARGUMENT_TYPES,
        **dict.fromkeys(SWITCHES),
        "FIGURES": choices(*figures),
        "WEIGHTS": weights_type(*script["WEIGHTS_WORDS"]),
        "METHOD": choice(*script.get("CAM_WEIGHTS", ())),
        "RULES": choices(*script.get("RELU_RULES", ())),
    }
    return {name: types[name] for name in script if name in types}


def make_parser(
    script: Mapping[str, Any], figures: Mapping[str, Any], types: Mapping[str, Any]
) -> Parser:
    """The parser of a script's options: its constants, with their comments and defaults.

    script: its globals(). figures: {name: Figure}. types: see `types_of`. An option that is not
    typed is left out."""
    source = Path(script["__file__"]).read_text(encoding="utf-8")
    comments = dict(re.findall(r"^([A-Z_]+) = .*?  # (.*)$", source, re.MULTILINE))
    summaries = [f"{name:12} {figure.summary}" for name, figure in figures.items()]
    parser = Parser(
        description=ast.get_docstring(ast.parse(source)),
        epilog="\n".join(["figures:", *summaries]),
        formatter_class=argparse.RawTextHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("images", nargs="*", help="photographs, folders of them, or patterns")
    for name, read in types.items():
        add_constant(parser, name, script[name], read, comments.get(name, ""))
    text = "leave out what was already drawn with the same settings"
    parser.add_argument("--skip-existing", action="store_true", help=text)
    text = "print the names of layers, one a line, and stop"
    parser.add_argument("--list-layers", action="store_true", help=text)
    return parser


def attribute_of(name: str) -> str:
    """The attribute of the options for a constant; `import` is a word of Python."""
    return "import_" if name == "IMPORT" else name.lower()


def add_constant(parser: Parser, name: str, value: Any, read: Any, comment: str) -> None:
    """Add the option of a constant, which overrides it."""
    option = f"--{name.lower().replace('_', '-')}"
    how = {"dest": attribute_of(name), "default": argparse.SUPPRESS}
    if name in SWITCHES:
        how |= {"action": argparse.BooleanOptionalAction, "help": comment}
    else:
        shown = as_typed(name, value) or "none"
        how |= {"type": read, "metavar": name, "help": f"{comment} (default: {shown})"}
    how["help"] = how["help"].replace("%", "%%")
    parser.add_argument(option, **how)


# --- reading ---


def read_options(script: Mapping[str, Any], figures: Mapping[str, Any]) -> argparse.Namespace:
    """The constants of a script, its globals(), overridden by its command line.

    figures: {name: Figure}; options.chosen lists the ones asked for."""
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    types = types_of(script, figures)
    options = make_parser(script, figures, types).parse_intermixed_args(words[:end])
    for name, read in types.items():
        if attribute_of(name) not in options:  # no option overrides the constant
            setattr(options, attribute_of(name), read_constant(name, script[name], read))
    options.script = Path(script["__file__"]).stem
    options.constants = tuple(map(attribute_of, types))
    options.images = [*options.images, *words[end + 1 :]]  # even those that look like options
    options.chosen = [figures[name] for name in options.figures]
    options.draws_units = any(figure.draws_units for figure in figures.values())
    read_option_files(options)
    if not options.weights.saved:
        read_classes().select(options.classes)  # wrong names, before TensorFlow is imported
    check_output(options.output)
    return options


def read_option_files(options: argparse.Namespace) -> None:
    """Add the region of --mask and the boxes of --boxes to the options; report unused options.

    UserError: a file that does not exist, or that cannot be read."""
    if options.labels and not options.weights.saved:
        raise UserError("--labels names the classes of a saved network: give one by --weights")
    for option in ("import_", "name", "size"):
        if getattr(options, option) and not options.weights.saved:
            word = f"--{option.rstrip('_')}"
            log(f"{word} is not used: it is for a saved network, given by --weights")
    if options.labels and not os.path.exists(options.labels):
        raise UserError(f"--labels {options.labels}: there is no such file or folder")
    if options.import_.endswith(".py") and not os.path.exists(options.import_):
        raise UserError(f"--import {options.import_}: there is no such file")
    mask = getattr(options, "mask", "")
    if mask and not options.weights.saved:
        raise UserError("--mask is for a segmentation network: give one by --weights")
    options.region = read_mask(mask) if mask else None
    boxes = getattr(options, "boxes", "")
    options.true_boxes = read_boxes(boxes) if boxes else {}
    if boxes and not any(figure.uses_boxes for figure in options.chosen):
        log("--boxes is not used: no figure asked for draws boxes")


def read_mask(path: str) -> np.ndarray:
    """The region of a picture, bool (H, W): what is not black. UserError: there is none."""
    try:
        region = load_image(path, background="black").any(axis=-1)
    except UserError as error:
        raise UserError(f"--mask: {error}") from error
    if not region.any():
        raise UserError(f"--mask {path} is black: draw in white what the network is asked about")
    return region


def check_output(folder: Path) -> None:
    """Create the folder of the results. UserError: it cannot be written."""
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if not (os.path.isdir(folder) and os.access(folder, os.W_OK)):
        raise UserError(f"cannot write into the folder {folder}: choose another by --output")
