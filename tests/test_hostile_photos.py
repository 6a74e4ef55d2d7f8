"""Photographs made to do harm: hundreds of mutated ones, and the worst that each format allows, written out by hand.

All of them are read by one process, which reports on each. So what one file leaves behind shows in the next, and a
file that kills the process is named: another process goes on with those that are left.
"""
import io
import itertools
import json
import math
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import PIL
import pytest
from conftest import beside
from PIL import Image
from test_programs import CAT, ROCKET, program

import utils

SECONDS, MEGABYTES = 15, 1200  # what one photograph may cost, whatever it claims
SIDE, LESS, LEAST = (math.isqrt(utils.MOST_PIXELS // share) for share in (1, 2, 10))  # not refused for its size alone:
# as most formats, as WebP, as BMP of run lengths
WIDTH, HEIGHT = 313, 271  # 0x0139, 0x010f: two bytes that hardly ever stand together by chance
posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")


# ---------------------------------------------------------------------------------------------------------------------
# Good photographs in every format: what is mutated


def png(width, height, depth, colour, interlaced, data, *chunks):
    """A PNG of chunks with right checksums, whatever it claims. data: compressed; chunks: (kind, data) before it."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in [(b"IHDR", head), *chunks, (b"IDAT", data), (b"IEND", b"")])


def scanlines(pixels):
    return b"".join(b"\0" + row.tobytes() for row in pixels)


def interlaced_png(pixels):
    """The seven passes of a PNG that appears coarse first, which Pillow reads but does not write."""
    steps = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    passes = (pixels[top::down, left::right] for top, left, down, right in steps)
    return png(WIDTH, HEIGHT, 8, 2, 1, zlib.compress(b"".join(map(scanlines, passes))))


def tiff(entries, data=b"", following=0):
    """A little-endian TIFF whose data begin at byte 8. entries: {tag: a number or several, or (type, count, value)}."""
    start, outside = 8 + len(data), b""
    body = struct.pack("<H", len(entries))
    for tag, value in sorted(entries.items()):
        kind, count, value = value if isinstance(value, tuple) else (4, np.size(value), value)
        if np.size(value) > 1:
            place = start + 2 + 12 * len(entries) + 4 + len(outside)
            outside, value = outside + struct.pack(f"<{count}I", *value), place
        body += struct.pack("<HHII", tag, kind, count, value)
    return b"II*\0" + struct.pack("<I", start) + data + body + struct.pack("<I", following) + outside


def grey_tiff(side, data, following=0, **more):
    """A grey TIFF of one strip, whatever it claims; more: t259=5 for another compression, say, None for no such tag."""
    entries = {256: side, 257: side, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: side, 279: len(data)}
    entries |= {int(tag[1:]): value for tag, value in more.items()}
    return tiff({tag: value for tag, value in entries.items() if value is not None}, data, following)


def tiled_tiff(grey):
    """Four tiles, each compressed by itself, which reach beyond the edges of the photograph."""
    padded = np.pad(grey, ((0, 288 - HEIGHT), (0, 320 - WIDTH)), mode="edge")
    tiles = [zlib.compress(padded[y:y + 144, x:x + 160].tobytes()) for y in (0, 144) for x in (0, 160)]
    lengths = [len(tile) for tile in tiles]
    return grey_tiff(None, b"".join(tiles), t256=WIDTH, t257=HEIGHT, t259=8, t322=160, t323=144, t325=lengths,
                     t324=np.cumsum([8, *lengths[:-1]]), t273=None, t279=None)


def saved(image, kind, **settings):
    file = io.BytesIO()
    image.copy().save(file, kind, **settings)  # a copy: what a JPEG leaves on an image, a TIFF stumbles over
    return file.getvalue()


def good_photographs():
    """{name: (bytes, the picture they show as a Pillow image)}"""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    colours = np.dstack([x * 255 // WIDTH, y * 255 // HEIGHT, (x // 40 + y // 40) % 2 * 200])
    photo = Image.fromarray(colours.astype(np.uint8))
    other, grey, palette = photo.rotate(180), photo.convert("L"), photo.quantize(64)
    veiled = photo.copy()
    veiled.putalpha(grey)
    over_white = Image.alpha_composite(Image.new("RGBA", photo.size, "white"), veiled).convert("RGB")
    sixteen = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    rgb16 = np.repeat(np.asarray(photo), 2, axis=2)  # v * 257, in either byte order
    pages = {"save_all": True, "append_images": [other]}
    return {
        "baseline.jpg": (saved(photo, "JPEG", subsampling=0), photo),
        "progressive.jpg": (saved(photo, "JPEG", progressive=True, subsampling=0), photo),
        "restarts.jpg": (saved(photo, "JPEG", restart_marker_rows=2), photo),
        "cmyk.jpg": (saved(photo.convert("CMYK"), "JPEG"), photo),
        "grey.jpg": (saved(grey, "JPEG"), grey),
        "several.jpg": (saved(photo, "MPO", save_all=True, append_images=[grey]), photo),  # as telephones write it
        "plain.png": (saved(photo, "PNG"), photo),
        "grey16.png": (saved(sixteen, "PNG"), grey),
        "rgb16.png": (png(WIDTH, HEIGHT, 16, 2, 0, zlib.compress(scanlines(rgb16))), photo),
        "palette.png": (saved(palette, "PNG"), palette),
        "interlaced.png": (interlaced_png(np.asarray(photo)), photo),
        "plain.bmp": (saved(photo, "BMP"), photo),
        "palette.bmp": (saved(palette, "BMP"), palette),
        "lossy.webp": (saved(photo, "WEBP"), photo),
        "lossless.webp": (saved(photo, "WEBP", lossless=True), photo),
        "transparent.webp": (saved(veiled, "WEBP", lossless=True), over_white),
        "animated.webp": (saved(photo, "WEBP", **pages), photo),
        "plain.tif": (saved(photo, "TIFF"), photo),
        "deflate.tif": (saved(photo, "TIFF", compression="tiff_adobe_deflate"), photo),
        "lzw.tif": (saved(photo, "TIFF", compression="tiff_lzw"), photo),
        "jpeg.tif": (saved(photo, "TIFF", compression="jpeg"), photo),
        "pages.tif": (saved(photo, "TIFF", compression="tiff_lzw", **pages), photo),
        "tiled.tif": (tiled_tiff(np.asarray(grey)), grey),
    }


GOOD = good_photographs()


# ---------------------------------------------------------------------------------------------------------------------
# Mutations


def bits(data, rng):
    for place in rng.integers(0, len(data), rng.integers(1, 9)):
        data[place] ^= 1 << rng.integers(8)


def headers(data, rng):
    """Other bytes where the header stands, or the directory that libtiff writes at the end."""
    for place in rng.integers(0, 120, rng.integers(1, 5)):
        data[place if rng.random() < 0.7 else -place - 1] = rng.integers(256)


def numbers(data, rng):
    """The least and the largest numbers in place of lengths, counts and offsets."""
    size = rng.choice([2, 4])
    place = rng.integers(2, 150) if rng.random() < 0.7 else len(data) - rng.integers(4, 150)
    number = rng.choice([0, 1, 2**(8 * size) - 1, 2**(8 * size - 1), 2**(8 * size - 1) - 1, 60000])
    data[place:place + size] = int(number).to_bytes(size, rng.choice(["big", "little"]))


def lengths(data, rng):
    """Cut, a piece left out, a piece put in, or a piece twice."""
    first, last = sorted(rng.integers(0, len(data), 2))
    stop = min(last, first + 2000)
    data[first:stop] = (b"", b"", rng.bytes(rng.integers(1, 50)), bytes(data[first:stop] * 2))[way := rng.integers(4)]
    if way == 0:
        del data[last:]


def sizes(data, rng):
    """Another width or height, wherever they stand as such or less one, in either byte order."""
    claims = 0, 1, 200, 400, 12000, 16383, 32768, 60000, 65535
    for order in "<>":
        for side in (WIDTH, HEIGHT) if rng.random() < 0.5 else [rng.choice([WIDTH, HEIGHT])]:
            claim = int(rng.choice(claims))
            for less in 0, 1:
                told, claimed = (struct.pack(order + "H", max(0, number - less)) for number in (side, claim))
                data[:] = data.replace(told, claimed)


def splices(data, rng):
    """The rest from another photograph, of the same format or not."""
    name = sorted(GOOD)[rng.integers(len(GOOD))]
    cut = rng.integers(1, len(data))
    data[cut:] = GOOD[name][0][rng.integers(len(GOOD[name][0])):]


def checksums(data):
    """Right ones in a PNG, so that what is mutated is not refused before it does harm."""
    place = 8
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place:place + 4], "big")
        if end + 4 <= len(data):
            data[end:end + 4] = struct.pack(">I", zlib.crc32(data[place + 4:end]))
        place = end + 4


MUTATIONS, ROUNDS = (bits, headers, numbers, lengths, sizes, splices), 6


def mutated(name, mutate):
    """{file name: bytes} of one good photograph; the same at every run, whatever is added to the lists above."""
    rng, made = np.random.default_rng([zlib.crc32(name.encode()), zlib.crc32(mutate.__name__.encode())]), {}
    for number in range(ROUNDS):
        data = bytearray(GOOD[name][0])
        mutate(data, rng)
        if name.endswith("png") and number % 4:
            checksums(data)
        made[f"{mutate.__name__}_{number}_{name}"] = bytes(data)
    return made


# ---------------------------------------------------------------------------------------------------------------------
# The worst of each format, by hand


def zeros(megabytes):
    """A zlib stream of that many megabytes of zeros, a thousandth of that in size, made in no time."""
    one = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = one.compress(bytes(2**20)) + one.flush(zlib.Z_FULL_FLUSH)
    return b"\x78\xda" + block * megabytes + b"\x03\0" + struct.pack(">I", megabytes * 2**20 % 65521 << 16 | 1)


def segment(marker, body):
    return b"\xff" + marker + struct.pack(">H", len(body) + 2) + body


def claiming(name, side):
    """A good JPEG with another size in its frame header."""
    data = GOOD[name][0]
    place = max(data.find(b"\xff\xc0\0\x11"), data.find(b"\xff\xc2\0\x11"))
    return data[:place + 5] + struct.pack(">HH", side, side) + data[place + 9:]


def scans(side, number):
    """A progressive JPEG with that many scans which hold nothing, each of them a walk over all blocks."""
    data = claiming("progressive.jpg", side)
    return data[:-2] + segment(b"\xda", bytes([1, 1, 0, 1, 5, 0])) * number + data[-2:]


def bmp(width, height, depth, compression, data):
    return (b"BM" + struct.pack("<IHHI", 54 + 1024 + len(data), 0, 0, 54 + 1024)
            + struct.pack("<IiiHHIIiiII", 40, width, height, 1, depth, compression, len(data), 0, 0, 256, 0)
            + bytes(1024) + data)


def riff(*chunks):
    body = b"".join(kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for kind, data in chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def one_colour(width, height):
    """A lossless WebP whose five codes have one symbol each: no bit for a pixel, however many are claimed."""
    stream = (width - 1) | (height - 1) << 14 | int("0001" * 5, 2) << 35
    return b"VP8L", b"\x2f" + stream.to_bytes(9, "little")


def canvas(width, height, frames):
    """An animated WebP: that many frames of one pixel on a canvas of any size."""
    kind, pixel = one_colour(1, 1)
    frame = bytes(12) + b"\1\0\0\0" + kind + struct.pack("<I", len(pixel)) + pixel
    head = struct.pack("<I", 2) + b"".join((side - 1).to_bytes(3, "little") for side in (width, height))
    return riff((b"VP8X", head), (b"ANIM", bytes(6)), *[(b"ANMF", frame)] * frames)


def overlapping(entries):
    """A TIFF whose entries all point to the same piece of it, as large as their directory."""
    tags = range(40000, 40000 + entries)
    return grey_tiff(1, bytes(12 * entries), **{f"t{tag}": (7, 12 * entries, 8) for tag in tags})


def hostile_photographs():
    """{file name: bytes}. Names tell what is claimed."""
    photo, plain, lossy = (GOOD[name][0] for name in ("baseline.jpg", "plain.png", "lossy.webp"))
    raw, line, exif = np.asarray(GOOD["tiled.tif"][1]).tobytes(), zlib.compress(bytes(310)), overlapping(10000)
    _, mark, mpo = GOOD["several.jpg"][0].partition(b"\xff\xe2")
    several = mark + mpo[:int.from_bytes(mpo[:2], "big")]  # what says that there is more than one picture
    apart = claiming("baseline.jpg", 13000)  # a scan of one colour alone: the others may follow, so all is kept
    start = apart.find(b"\xff\xda")
    most, tile = utils.MOST_PIXELS // 2**20 + 1, -(-SIDE // 16) * 16  # megabytes of a byte a pixel; one tile for all
    hostile = {
        "size_65535.jpg": claiming("progressive.jpg", 65535), "size_13000.jpg": claiming("baseline.jpg", 13000),
        "size_13000_scans.jpg": claiming("progressive.jpg", 13000),
        "scans_60000.jpg": scans(600, 60000), "scans_500.jpg": scans(4000, 500), "scans_400.jpg": scans(2000, 400),
        "scans_of_several_pictures.jpg": photo[:2] + several + scans(4000, 20000)[2:],
        "size_13000_scans_apart.jpg": apart[:start] + segment(b"\xda", bytes([1, 1, 0, 0, 63, 0])) + apart[start + 14:],
        "half_with_an_end.jpg": photo[:len(photo) // 2] + b"\xff\xd9",
        "filling.jpg": photo[:2] + b"\xff" * 2_000_000 + photo[2:],
        "segments.jpg": photo[:2] + segment(b"\xef", b"") * 100_000 + photo[2:],
        "exif_overlapping.jpg": photo[:2] + segment(b"\xe1", b"Exif\0\0" + overlapping(2700)) + photo[2:],
        "size_60000.png": png(60000, 60000, 8, 2, 0, line), "size_0.png": png(0, 0, 8, 2, 0, line),
        "size_60000_bomb.png": png(60000, 60000, 8, 2, 0, zeros(500)),
        "size_2147483647.png": png(2**31 - 1, 1, 8, 2, 0, line),
        "size_most_grey16.png": png(SIDE, SIDE, 16, 0, 0, zeros(2 * most)),
        "size_most_rgba.png": png(SIDE, SIDE, 8, 6, 1, zeros(4 * most)),
        "size_10_bomb.png": png(10, 10, 8, 2, 0, zeros(500)),
        "text_bomb.png": png(10, 10, 8, 2, 0, line, (b"zTXt", b"a\0\0" + zeros(500))),
        "text_bomb_2.png": png(10, 10, 8, 2, 0, line, (b"iTXt", b"a\0\1\0\0\0" + zeros(500))),
        "profile_bomb.png": png(10, 10, 8, 2, 0, line, (b"iCCP", b"icc\0\0" + zeros(500))),
        "texts.png": png(10, 10, 8, 2, 0, line, *[(b"zTXt", b"a\0\0" + zeros(1)[:1100])] * 300),
        "text_broken.png": plain[:33] + struct.pack(">I", 9) + b"tEXta\0bcdefgh\0\0\0\0" + plain[33:],
        "exif_overlapping.png": png(10, 10, 8, 2, 0, line, (b"eXIf", exif)),
        "size_60000.bmp": bmp(60000, 60000, 24, 0, bytes(999)), "size_most.bmp": bmp(SIDE, SIDE, 24, 0, bytes(999)),
        "size_negative.bmp": bmp(-300, -200, 24, 0, bytes(999)), "size_least.bmp": bmp(-2**31, -2**31, 24, 0, b""),
        "lines_encoded.bmp": bmp(LEAST, LEAST, 8, 1, b"\1\0\0\0" * LEAST),
        "jumps_encoded.bmp": bmp(LEAST, LEAST, 4, 2, b"\0\2\xff\xff" * LEAST),
        "size_16383.webp": riff(one_colour(16383, 16383)), "size_most.webp": riff(one_colour(LESS, LESS)),
        "size_claimed.webp": lossy[:26] + struct.pack("<HH", 16383, 10900) + lossy[30:],
        "wide.webp": riff(one_colour(16383, 1)), "tall.webp": riff(one_colour(1, 16383)),
        "canvas_wide.webp": canvas(2**24, 1, 2), "canvas_tall.webp": canvas(1, 2**24, 2),
        "canvas_most.webp": canvas(LESS, LESS, 2), "frames.webp": canvas(1000, 1000, 20000),
        "exif_overlapping.webp": riff((b"VP8X", b"\x08" + bytes(9)), one_colour(1, 1), (b"EXIF", exif)),
        "size_60000.tif": grey_tiff(60000, raw), "size_60000_bomb.tif": grey_tiff(60000, zeros(300), t259=8),
        "size_most_1_bit.tif": grey_tiff(SIDE, zeros(most // 8 + 1), t259=8, t258=1),
        "size_most_cmyk.tif": grey_tiff(SIDE, zeros(4 * most), t259=8, t258=[8] * 4, t262=5, t277=4),
        "size_most_tile.tif": grey_tiff(SIDE, zeros(4 * most + 3), t259=8, t258=[8] * 4, t262=2, t277=4, t338=2,
                                        t273=None, t279=None, t322=tile, t323=tile, t324=8,
                                        t325=len(zeros(4 * most + 3))),
        "size_most_float.tif": grey_tiff(SIDE, zeros(4 * most), t259=8, t258=32, t339=3),
        "size_most_fax.tif": grey_tiff(SIDE, b"\xff" * SIDE, t259=4, t258=1),
        "strip_huge.tif": grey_tiff(280, raw, t279=2**32 - 1),
        "strip_huge_deflate.tif": grey_tiff(280, zlib.compress(raw), t259=8, t279=2**31 - 1),
        "strips.tif": grey_tiff(280, raw, t259=8, t273=(4, 2**32 - 1, 8)),
        "samples_65535.tif": grey_tiff(280, raw, t277=65535),
        "tile_huge.tif": grey_tiff(280, raw, t259=8, t322=2**31, t323=2**31, t324=8, t325=100),
        "circular.tif": grey_tiff(280, raw, following=8 + len(raw), t34665=8 + len(raw), t330=8 + len(raw)),
        "circular_deflate.tif": grey_tiff(280, zlib.compress(raw), following=8, t259=8),
        "overlapping.tif": exif, "old_jpeg.tif": grey_tiff(280, photo, t259=6, t513=8, t514=len(photo)),
        "film.jpg": b"\0\0\0\x20ftypisom" + bytes(9000), "page.jpg": b"<!DOCTYPE html><html></html>" * 99,
        "drawing.jpg": b'<svg xmlns="http://www.w3.org/2000/svg" width="60000" height="60000"/>',
        "moving.jpg": saved(GOOD["grey.jpg"][1], "GIF"), "script.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) run\n",
    }
    if int(PIL.__version__.partition(".")[0]) < 13:  # which takes gigabytes for such a directory, whoever asks it
        hostile = {name: data for name, data in hostile.items() if "overlapping" not in name}
    return hostile


HOSTILE = hostile_photographs()


# ---------------------------------------------------------------------------------------------------------------------
# The process that reads them all


READER = r"""
import faulthandler, json, os, re, sys, tempfile, time, zlib
from pathlib import Path
import utils

def memory(forget=False):
    '''Megabytes held at most so far, or since they were forgotten where the system can do so; 0 on Windows.'''
    if sys.platform == "linux":
        if forget and os.access("/proc/self/clear_refs", os.W_OK):
            Path("/proc/self/clear_refs").write_text("5")
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**20

report, screams = os.fdopen(os.dup(1), "w", buffering=1), os.fdopen(os.dup(2), "w")
faulthandler.enable(screams)
said = tempfile.TemporaryFile(buffering=0)
for stream in 1, 2:
    os.dup2(said.fileno(), stream)
start = memory()
for path in json.load(sys.stdin):
    entry = {"path": path}
    print(json.dumps(entry), file=report)
    faulthandler.dump_traceback_later(30, exit=True, file=screams)
    memory(forget=True)
    begin = time.monotonic()
    try:
        pixels = utils.read_photo(Path(path))
        entry.update(shape=pixels.shape, dtype=str(pixels.dtype), digest=zlib.crc32(pixels.tobytes()))
    except utils.UserError as error:
        entry["refused"] = str(error)
    except BaseException as error:
        entry["raised"] = repr(error)
    entry.update(seconds=time.monotonic() - begin, megabytes=memory() - start)
    faulthandler.cancel_dump_traceback_later()
    for stream in sys.stdout, sys.stderr:
        stream.flush()
    said.seek(0)
    entry["said"] = said.read().decode(errors="replace")
    said.seek(0)
    said.truncate()
    print(json.dumps(entry), file=report)
"""


def read_in_one_process(paths):
    """{file name: what the process reports of it}. Where the process dies, `killed` holds its last words."""
    reports, left = {}, list(paths)
    for _ in range(10):  # processes, where every one of them dies
        done = subprocess.run([sys.executable, "-W", "always", "-c", READER], check=False, cwd=utils.HERE, text=True,
                              capture_output=True, input=json.dumps([str(path) for path in left]))
        assert done.stdout, done.stderr
        reports |= {Path(entry["path"]).name: entry for entry in map(json.loads, done.stdout.splitlines())}
        last = list(reports.values())[-1]
        if "seconds" not in last:
            last["killed"] = f"exit code {done.returncode} {done.stderr}"
        left = [path for path in left if path.name not in reports]
        if not left:
            break
    return reports


def devices(folder):
    """What a name in a folder may stand for beside a file; none of it may be waited for."""
    os.mkfifo(folder / "pipe.jpg")
    for name, target in {"endless.jpg": "/dev/zero", "empty.jpg": "/dev/null", "terminal.jpg": "/dev/tty",
                         "gone.jpg": "nowhere", "loop.jpg": "loop.jpg", "linked_pipe.jpg": "pipe.jpg"}.items():
        (folder / name).symlink_to(target)
    (folder / "folder.jpg").mkdir()
    (folder / "locked.png").write_bytes(GOOD["plain.png"][0])
    (folder / "locked.png").chmod(0)
    return sorted(folder.iterdir())


@beside
def reports(folder):
    """What the process reports: {file name: report}; the good photographs come last."""
    files = dict(HOSTILE)
    for name, mutate in itertools.product(GOOD, MUTATIONS):
        files |= mutated(name, mutate)
    for name, data in (files | {name: data for name, (data, _) in GOOD.items()}).items():
        (folder / name).write_bytes(data)
    (folder / "devices").mkdir()
    others = devices(folder / "devices") if os.name == "posix" else []
    return read_in_one_process([*(folder / name for name in files), *others, *(folder / name for name in GOOD)])


def faults(report):
    """What is wrong with the way in which a photograph was read or refused."""
    found = [f"{key}: {report[key]}" for key in ("killed", "raised", "said") if report.get(key)]
    if "shape" in report:
        height, width, channels = report["shape"]
        if report["dtype"] != "uint8" or channels != 3 or not 1 <= min(height, width) <= max(height, width) <= 2048:
            found.append(f"it was read as {report['dtype']} {report['shape']}")
    line = report.get("refused", report["path"])
    if report["path"] not in line or "\n" in line or len(line) > len(report["path"]) + 400:
        found.append(f"it was refused so: {line}")
    found += [f"{report[cost]:.1f} {cost}" for cost, most in (("seconds", SECONDS), ("megabytes", MEGABYTES))
              if report.get(cost, 0) > most]
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Tests


@pytest.mark.parametrize("mutate", MUTATIONS)
@pytest.mark.parametrize("name", GOOD)
def test_a_mutated_photograph_is_read_or_refused_in_one_line_at_bounded_cost(reports, name, mutate):
    found = {path: faults(reports[path]) for path in mutated(name, mutate)}
    assert {path: faults for path, faults in found.items() if faults} == {}


@pytest.mark.parametrize("name", HOSTILE)
def test_the_worst_of_each_format_is_read_or_refused_in_one_line_at_bounded_cost(reports, name):
    assert faults(reports[name]) == []


NO_PHOTOGRAPHS = ("size_6", "size_0", "size_2", "size_16", "film", "page", "drawing", "moving", "script")


@pytest.mark.parametrize("name", [name for name in HOSTILE if name.startswith(NO_PHOTOGRAPHS)])
def test_what_is_no_photograph_or_claims_billions_of_pixels_is_refused(reports, name):
    assert "refused" in reports[name]


@pytest.mark.parametrize("name, shape", [("wide.webp", [1, 2048, 3]), ("tall.webp", [2048, 1, 3])])
def test_a_photograph_is_not_refused_for_being_long_and_thin(reports, name, shape):
    assert reports[name].get("shape") == shape


@posix
def test_a_folder_is_walked_past_what_is_no_file_and_a_loop_has_a_name(tmp_path):
    found = devices(tmp_path)
    assert utils.find_photos([tmp_path]) == [tmp_path / "locked.png"]
    loops = [path for path in found if path.name == "loop.jpg"] + [tmp_path / "folder.jpg" / "loop.jpg"]
    loops[1].symlink_to("loop.jpg")
    assert sorted(utils._stems(loops)) == sorted(loops)


@posix
@pytest.mark.parametrize("name", ["pipe.jpg", "linked_pipe.jpg", "endless.jpg", "empty.jpg", "terminal.jpg", "gone.jpg",
                                  "loop.jpg", "folder.jpg", "locked.png"])
def test_what_is_no_file_or_not_readable_is_refused_and_not_waited_for(reports, name):
    if name == "locked.png" and os.geteuid() == 0:
        pytest.skip("root reads every file")
    assert faults(reports[name]) == [] and "refused" in reports[name]


@pytest.mark.parametrize("name", GOOD)
def test_a_good_photograph_is_read_right_after_all_the_others(reports, name):
    pixels = utils.read_photo(Path(reports[name]["path"]))
    assert np.abs(pixels.astype(int) - np.asarray(GOOD[name][1].convert("RGB"))).mean() < 4
    assert faults(reports[name]) == [] and reports[name]["digest"] == zlib.crc32(pixels.tobytes())


@pytest.mark.parametrize("ending", [".jpg", ".png", ".bmp", ".webp", ".tif"])
def test_some_of_the_mutated_photographs_are_read_and_some_refused(reports, ending):
    ways = [next(way for way in ("shape", "refused", "path") if way in reports[path])
            for name in GOOD if name.endswith(ending) for mutate in MUTATIONS for path in mutated(name, mutate)]
    assert min(ways.count("shape"), ways.count("refused")) >= len(ways) / 20


def test_hundreds_are_read_in_one_process(reports):
    assert len(GOOD) * len(MUTATIONS) * ROUNDS >= 600
    assert [name for name, report in reports.items() if "killed" in report] == []


FOLDER = ("size_60000_bomb.png", "text_bomb.png", "scans_60000.jpg", "page.jpg", "moving.jpg", "size_60000.bmp",
          "size_claimed.webp", "size_16383.webp", "samples_65535.tif", "strip_huge_deflate.tif")


def test_a_folder_of_hostile_photographs_costs_a_line_each_and_the_good_ones_are_drawn(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in FOLDER:
        (folder / name).write_bytes(HOSTILE[name])
    for photo in CAT, ROCKET:
        (folder / photo.name).write_bytes(photo.read_bytes())
    done = program("gradcam_googlenet.py", folder, "--weights", "tiny", "--figures", "one_class", "--output", "out",
                   cwd=tmp_path)
    *skipped, last = done.err
    assert done.code == 1 and sorted(Path(line).name.split("_")[0] for line in done.out) == ["cat", "rocket"]
    assert len(list((tmp_path / "out").glob("*.jpg"))) == 2
    assert len(skipped) == len(FOLDER) and all(line.startswith("skipped: ") for line in skipped)
    assert [sum(str(folder / name) in line for line in skipped) for name in FOLDER] == [1] * len(FOLDER)
    assert "12 photographs: 2 done, 0 there already, 10 unreadable" in last


@pytest.mark.parametrize("name", ["size_60000_bomb.png", "size_16383.webp", "samples_65535.tif",
                                  pytest.param("pipe.jpg", marks=posix)])
def test_a_single_hostile_photograph_ends_a_program_before_tensorflow_is_imported(tmp_path, name):
    if name in HOSTILE:
        (tmp_path / name).write_bytes(HOSTILE[name])
    else:
        os.mkfifo(tmp_path / name)
    (tmp_path / "tensorflow.py").write_text("import os\nos._exit(99)\n")
    done = program("gradcam_googlenet.py", name, "--output", "out", cwd=tmp_path, PYTHONPATH=tmp_path)
    assert done.code == 2 and name in done.error() and not (tmp_path / "out").exists()
