"""Hard use: damaged and hostile photographs and weights, servers that misbehave, kills, full disks, long runs.

What may crash, hang or eat the memory is tried in a process of its own, which is this file run as a program (see the
end): it writes an answer a line, so that a crash shows in which case. Measured are CPU seconds, not the clock's: they
do not depend on what else the machine does.
"""
import contextlib
import faulthandler
import gzip
import http.server
import io
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
import types
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

import utils

try:  # not on Windows
    import pty
    import resource
except ImportError:
    pty = resource = None

LINUX = sys.platform == "linux"
on_posix = pytest.mark.skipif(os.name != "posix", reason="signals, links and terminals are POSIX's")
on_linux = pytest.mark.skipif(not LINUX, reason="measures and isolates with what Linux has")
MB = 2**20
LARGEST = 178_956_970  # pixels of the largest photograph that is read; 25 bytes a pixel are a few copies of it


# ---------------------------------------------------------------------------------------------------------------------
# Trials: what was answered, what it cost and what was said meanwhile


class Answer(NamedTuple):
    case: str
    kind: str  # taken, refused (by a UserError), raised (anything else), died (the process)
    words: str  # of the error
    seconds: float  # of CPU
    memory: int  # bytes by which the process has grown at most
    said: str  # on stderr, warnings among it


class Trials:
    """In the child: calls, whose answers go to a file."""

    def __init__(self, folder):
        self.folder, self.answers = folder, open(folder / "answers", "a")
        faulthandler.enable(open(folder / "faults", "w"))
        self.said = open(folder / "said", "w+b")
        os.dup2(self.said.fileno(), 2)  # what C libraries say goes there, too
        if LINUX:
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + 6 * 2**30,) * 2)  # a bomb must not take the machine along

    def peak(self):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if LINUX else 1) if resource else 0

    def attempt(self, case, call):
        if LINUX:
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        memory, seconds, place = self.peak(), time.process_time(), self.said.seek(0, os.SEEK_END)
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            try:
                kind, words = "taken", call() or ""
            except utils.UserError as error:
                kind, words = "refused", str(error)
            except BaseException as error:
                kind, words = "raised", repr(error)
        cost = time.process_time() - seconds, self.peak() - memory
        sys.stderr.flush()
        self.said.seek(place)
        answer = Answer(case, kind, words, *cost, self.said.read().decode(errors="replace"))
        print(json.dumps(answer), file=self.answers, flush=True)

    def isolated(self, case, call, seconds=10):
        """The same in a process of its own, which dies after so many seconds of CPU."""
        pid = os.fork()
        if not pid:
            resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + seconds, resource.RLIM_INFINITY))
            self.attempt(case, call)
            os._exit(0)
        if status := os.waitpid(pid, 0)[1]:
            answer = Answer(case, "died", f"signal {os.WTERMSIG(status)}", 0, 0, "")
            print(json.dumps(answer), file=self.answers, flush=True)


def child(role, *arguments, **settings):
    """This file as a program in one of its roles."""
    path = os.pathsep.join(map(str, [utils.HERE, *filter(None, [os.environ.get("PYTHONPATH")])]))
    return subprocess.Popen([sys.executable, __file__, role, *map(str, arguments)], stdin=subprocess.DEVNULL,
                            env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}, **settings)


def tried(role, folder):
    """{case: Answer} of the trials of a role, all of them made."""
    with child(role, folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        _, errors = process.communicate(timeout=600)
    answers = [Answer(*json.loads(line)) for line in (folder / "answers").read_text().splitlines()]
    assert process.returncode == 0, f"after {answers[-1:]}: {errors}{(folder / 'faults').read_text()}"
    return {answer.case: answer for answer in answers}


def assert_good(answer, seconds, megabytes, kinds=("taken", "refused")):
    """Read, or refused in one line, in bounded time and memory, and nothing else said."""
    assert answer.kind in kinds, answer
    assert answer.said == ""
    assert answer.words.isprintable() and (answer.words or answer.kind == "taken")
    assert answer.seconds < seconds and answer.memory < megabytes * MB


# ---------------------------------------------------------------------------------------------------------------------
# Mutations of any file


def flip(data, draw):
    for place in draw.sample(range(len(data)), draw.choice([1, 3, 30])):
        data[place] ^= 1 << draw.randrange(8)


def overwrite(data, draw, places):
    """A number that is one of the extremes, or any."""
    place, width = draw.choice(places), draw.choice([1, 2, 4, 8])
    data[place:place + width] = draw.choice([bytes(width), b"\xff" * width, b"\x7f" + b"\xff" * (width - 1),
                                             b"\xff" * (width - 1) + b"\x7f", draw.randbytes(width)])


def cut(data, draw):
    del data[draw.randrange(len(data)):]


def lose(data, draw):
    place = draw.randrange(len(data))
    del data[place:place + draw.randrange(1, 60)]


def repeat(data, draw):
    place, width = draw.randrange(len(data)), draw.randrange(1, 60)
    data[place:place] = data[draw.randrange(len(data)):][:width]


MUTATIONS = {
    "bits": flip, "header": lambda data, draw: overwrite(data, draw, range(min(100, len(data)))),
    "tail": lambda data, draw: overwrite(data, draw, range(max(0, len(data) - 300), len(data))),
    "numbers": lambda data, draw: overwrite(data, draw, range(len(data))),
    "cut": cut, "lost": lose, "repeated": repeat}


def mutated(data, mutation, number):
    draw, data = random.Random(f"{mutation} {number}"), bytearray(data)
    MUTATIONS[mutation](data, draw)
    return bytes(data)


# ---------------------------------------------------------------------------------------------------------------------
# Photographs


def encoded(kind, image, **settings):
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def good_photographs():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    pixels[:20] = 200  # half of it is calm, which compresses
    image, exif = Image.fromarray(pixels), Image.Exif()
    grey16, exif[274], exif[271] = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), 6, "a camera"
    turned = {"save_all": True, "append_images": [image.rotate(90)]}
    return {
        "baseline.jpg": encoded("JPEG", image, exif=exif), "progressive.jpg": encoded("JPEG", image, progressive=True),
        "cmyk.jpg": encoded("JPEG", image.convert("CMYK")), "restarts.jpg": encoded("JPEG", image, restart_marker_rows=1),
        "rgb.png": encoded("PNG", image, exif=exif), "palette.png": encoded("PNG", image.quantize(16)),
        "grey16.png": encoded("PNG", grey16), "rgba.png": encoded("PNG", image.convert("RGBA")),
        "frames.png": encoded("PNG", image, **turned),
        "rgb.bmp": encoded("BMP", image), "palette.bmp": encoded("BMP", image.quantize(16)),
        "lossy.webp": encoded("WEBP", image), "lossless.webp": encoded("WEBP", image, lossless=True, exif=exif),
        "rgba.webp": encoded("WEBP", image.convert("RGBA")), "frames.webp": encoded("WEBP", image, **turned),
        "plain.tif": encoded("TIFF", image), "grey16.tif": encoded("TIFF", grey16),
        "pages.tif": encoded("TIFF", image, **turned), "group4.tif": encoded("TIFF", image.convert("1"), compression="group4"),
        **{f"{name}.tif": encoded("TIFF", image, compression=f"tiff_{name}") for name in ("lzw", "adobe_deflate")},
        **{f"{name}.tif": encoded("TIFF", image, compression=name) for name in ("jpeg", "packbits")}}


GOOD = good_photographs()
EACH = 5  # photographs of each form and mutation


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_checksums(data):
    """A PNG whose checksums fit again, so that what is damaged is believed."""
    data, place = bytearray(data), 8
    while place + 12 <= len(data):
        end = place + 8 + struct.unpack_from(">I", data, place)[0]
        data[end:end + 4] = struct.pack(">I", zlib.crc32(data[place + 4:end]))
        place = end + 4
    return bytes(data)


def tagged(data, **tags):
    """A little-endian TIFF with other values in its first directory."""
    data = bytearray(data)
    start, = struct.unpack_from("<I", data, 4)
    for place in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", data, start)[0], 12):
        if (key := f"tag{struct.unpack_from('<H', data, place)[0]}") in tags:
            struct.pack_into("<HII", data, place + 2, 4, 1, tags[key])
    return bytes(data)


def sized(name, width, height):
    """A good photograph whose header claims another size."""
    data = bytearray(GOOD[name])
    if name.endswith("png"):
        struct.pack_into(">II", data, 16, width, height)
        return with_checksums(data)
    if name.endswith("bmp"):
        struct.pack_into("<ii", data, 18, width, height)
    elif name == "frames.webp":  # the canvas of the extended format
        data[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    elif name == "lossy.webp":
        struct.pack_into("<HH", data, data.index(b"\x9d\x01\x2a") + 3, width, height)
    elif name.endswith("tif"):
        return tagged(data, tag256=width, tag257=height, tag278=height)
    else:
        struct.pack_into(">HH", data, data.index(b"\xff\xc2" if "progressive" in name else b"\xff\xc0") + 5, height, width)
    return bytes(data)


def many_scans(side, count):
    """A progressive JPEG that says of each of `count` scans, in few bytes, that nothing in it changes."""
    data = encoded("JPEG", Image.new("L", (64, 64)), progressive=True)
    data = data.replace(struct.pack(">HH", 64, 64), struct.pack(">HH", side, side))
    tables = b"".join(b"\xff\xc4\0\x14" + bytes([place, 1, *[0] * 15, symbol]) for place, symbol in ((0, 0), (16, 0xe0)))
    runs = "0" * 0 + "".join("0" + "1" * 14 for _ in range((side // 8) ** 2 // 32767 + 1))
    runs += "1" * (-len(runs) % 8)
    scan = b"\xff\xda\0\x08\x01\x01\0\x01\x3f\0" + int(runs, 2).to_bytes(len(runs) // 8, "big").replace(b"\xff", b"\xff\0")
    return data[:data.index(b"\xff\xc4")] + tables + scan * count + b"\xff\xd9"


HUGE = ("baseline.jpg", "progressive.jpg", "rgb.png", "rgb.bmp", "frames.webp", "plain.tif", "lzw.tif", "jpeg.tif")
HOSTILE = {  # name: (the photograph, whether it must be refused, CPU seconds, megabytes)
    **{f"60000x60000 {name}": (lambda name=name: sized(name, 60000, 60000), True, 0.5, 30) for name in HUGE},
    **{f"13000x13000 {name}": (lambda name=name: sized(name, 13000, 13000), ".jpg" not in name, 5, 1024)
       for name in (*HUGE[:4], "lossy.webp", *HUGE[5:])},  # libjpeg fills up with grey what an ended file lacks
    "samples a pixel.tif": (lambda: tagged(GOOD["plain.tif"], tag277=16387), True, 0.5, 30),
    "a strip of 4 GB.tif": (lambda: tagged(GOOD["lzw.tif"], tag279=2**32 - 1), False, 0.5, 100),
    "text of 300 MB.png": (lambda: GOOD["rgb.png"][:33] + png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(300 * MB), 1))
                           + GOOD["rgb.png"][33:], False, 1, 100),
    "colour profile of 300 MB.png": (lambda: GOOD["rgb.png"][:33] + png_chunk(b"iCCP", b"k\0\0" + zlib.compress(
        bytes(300 * MB), 1)) + GOOD["rgb.png"][33:], False, 1, 100),
    "2 kB for a long thin canvas.webp": (lambda: sized("frames.webp", 40, 1_000_000), False, 10, 40e6 * 25 / MB),
    "200 kB of empty scans.jpg": (lambda: many_scans(8000, 2000), False, 5, 1024),
}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Every mutated and hostile photograph, and what became of it."""
    folder = tmp_path_factory.mktemp("photographs")
    for sort in ("mutated", "hostile"):
        (folder / sort).mkdir()
    for (name, data), mutation, number in itertools.product(GOOD.items(), MUTATIONS, range(EACH)):
        damaged = mutated(data, mutation, number)
        if name.endswith("png") and number % 2:
            damaged = with_checksums(damaged)
        (folder / "mutated" / f"{mutation} {number} {name}").write_bytes(damaged)
    for name, (make, *_) in HOSTILE.items():
        (folder / "hostile" / name).write_bytes(make())
    return folder


@pytest.fixture(scope="module")
def read(photographs):
    return tried("photographs", photographs)


def read_all(folder):
    """In the child: read every photograph, the mutated ones in this one process."""
    def look(path):
        pixels = utils.read_photo(path)
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
        assert 1 <= min(pixels.shape) and max(pixels.shape) <= utils.LONGEST_SIDE

    trials = Trials(folder)
    for path in sorted((folder / "mutated").iterdir()):
        trials.attempt(path.name, lambda: look(path))
    for path in sorted((folder / "hostile").iterdir()):
        (trials.isolated if LINUX else trials.attempt)(path.name, lambda: look(path))


@pytest.mark.parametrize("name", GOOD)
def test_a_mutated_photograph_is_read_or_refused_in_one_line(read, photographs, name):
    answers = [answer for answer in read.values() if answer.case.endswith(f" {name}")
               and (photographs / "mutated" / answer.case).exists()]
    assert len(answers) == len(MUTATIONS) * EACH
    for answer in answers:
        assert_good(answer, 20, LARGEST * 25 / MB)
        assert answer.case in answer.words or answer.kind == "taken"


def test_the_mutations_are_many_and_neither_too_weak_nor_too_strong(read, photographs):
    kinds = [read[path.name].kind for path in (photographs / "mutated").iterdir()]
    assert len(kinds) >= 300 and min(kinds.count("taken"), kinds.count("refused")) > len(kinds) / 5


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_photograph_costs_little(read, name):
    _, refused, seconds, megabytes = HOSTILE[name]
    assert_good(read[name], seconds, megabytes, ["refused"] if refused else ["taken", "refused"])


@on_posix
@pytest.mark.parametrize("name", ["two\nlines.jpg", "red \x1b[31m.jpg", "\x1b]0;title\x07.jpg"])
def test_a_name_neither_breaks_the_line_nor_reaches_the_terminal(tmp_path, capfd, name):
    """Of a stranger's folder, skipped photographs are told one a line, in plain letters."""
    for path in (tmp_path / name, tmp_path / "other.jpg"):
        path.write_bytes(b"no photograph")
    options = types.SimpleNamespace(images=sorted(tmp_path.iterdir()), models=["m"], skip_existing=False, arrays=False,
                                    output=tmp_path, skipped=[])
    options.stems = utils._stems(options.images)
    with pytest.raises(utils.UserError):
        list(utils.photographs(options, ["f"]))
    lines = capfd.readouterr().err.split("\n")
    assert [line for line in lines if not line.isprintable()] == []
    assert [line.split(":")[0] for line in lines[:2]] == ["skipped", "skipped"] and "2 unreadable" in lines[2]
