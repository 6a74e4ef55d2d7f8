"""Weights files made to do harm: each is loaded or refused in one line, without noise, in bounded time and memory.

The files go through two processes, started from this very file (see `judge`), because a crash or an endless loop in a C
library would take the tests with it. GoogLeNet is a stand-in of four arrays there, so that small files do.
"""
import contextlib
import faulthandler
import functools
import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import warnings
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
from test_weights import Trap, save_published, small, tf

import gradcam_googlenet
import utils

SECONDS, GROWTH = 15, 3 * 2**27  # what one file may cost: time, and bytes on top of what was held before
KERNEL, LOGITS = "InceptionV1/Conv2d_1a_7x7/weights", "InceptionV1/Logits/Conv2d_0c_1x1/weights"
ARRAYS = {name: np.random.default_rng(0).random(shape, np.float32) for name, shape in {
    KERNEL: (3, 3, 3, 64), "InceptionV1/Conv2d_1a_7x7/BatchNorm/beta": (64,), LOGITS: (1, 1, 64, 11),
    "InceptionV1/Logits/Conv2d_0c_1x1/biases": (11,)}.items()}
KINDS = ["V1.ckpt", "V2.index", "archive.tar.gz", "arrays.npz", "published.h5", "keras.weights.h5"]
SEEDS = range(42)
WIDTH = 2**16  # of a Keras network whose last array takes a megabyte


# ---------------------------------------------------------------------------------------------------------------------
# The process that takes the files


def loader():
    """A function that loads a file as the scripts do, and returns the numbers that arrived."""
    found = {name: tf.Variable(array[0, 0, :, 1:] if name == LOGITS else array[1:] if "Logits" in name else array)
             for name, array in ARRAYS.items()}
    gradcam_googlenet.googlenet = lambda: None
    gradcam_googlenet.variables = lambda model: {name: (found[name], ARRAYS[name].shape) for name in found}
    networks = {"wide": small(WIDTH), "": small()}

    def load(path):
        if path.suffix == ".h5":
            utils.load_weights(network := networks["wide" if "wide" in path.name else ""], path)
            return network.get_weights()
        gradcam_googlenet.build(str(path), 0)
        return [variable.numpy() for variable in found.values()]

    return load


def peak(anew=False):
    """The most bytes that this process has held, on Linux `anew` from now on; 0 where the system does not tell."""
    if sys.platform == "win32":
        return 0
    import resource
    if anew and sys.platform == "linux":
        with contextlib.suppress(OSError):  # where a sandbox forbids it, what came before hides smaller peaks
            Path("/proc/self/clear_refs").write_text("5")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def judge(said, whole):
    """Load the files that stdin names; for each, a line of JSON before and one with what came of it after.

    said: an empty file for what libraries say. whole: {kind: a sound file}. What is no UserError ends the process.
    """
    report, watch, load = os.fdopen(os.dup(1), "w"), os.fdopen(os.dup(2), "w"), loader()
    os.dup2(said.fileno(), 1)
    os.dup2(said.fileno(), 2)
    utils.INSPECTION = 3  # seconds: enough for what is small
    whole = {kind: load(path) for kind, path in whole.items()}  # the first time costs more, by no fault of the file
    if sys.platform == "linux":  # the machine must outlive what the peak finds too late
        import resource
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + 2**33,) * 2)
    for path in map(Path, sys.stdin.read().split("\n")):
        print(json.dumps([path.name, ["ended the process", "", "", 0]]), file=report, flush=True)
        said.seek(0)
        said.truncate()
        before, line = peak(anew=True), ""
        faulthandler.dump_traceback_later(SECONDS, exit=True, file=watch)
        try:
            with warnings.catch_warnings():  # so that each file shows its own
                loaded = load(path)
            same = all(map(np.array_equal, loaded, whole.get(path.name.partition("-")[2], loaded)))
            finite = all(np.isfinite(array).all() for array in loaded)
            answer = ("loaded" if same else "loaded other numbers") if finite else "loaded what is not finite"
        except utils.UserError as error:
            answer, line = "refused", str(error).replace(str(path), "PATH")
        faulthandler.cancel_dump_traceback_later()
        said.seek(0)
        noise = said.read().decode(errors="replace")
        print(json.dumps([path.name, [answer, line, noise, peak() - before]]), file=report, flush=True)


def judged(paths, folder):
    """{name of a file: what came of it, the line, the noise, the growth}. A process that ends is started again."""
    answers, left = {}, list(paths)
    surroundings = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder / "temporary"))
    while left:
        done = subprocess.run(
            [sys.executable, __file__, folder], input="\n".join(map(str, left)), capture_output=True, encoding="utf-8",
            check=False, cwd=folder / "hostile", env={
                **os.environ, **surroundings, "PYTHONPATH": str(utils.HERE), "PYTHONIOENCODING": "utf-8"})
        results = dict(json.loads(line) for line in done.stdout.splitlines())
        assert results, done.stderr
        if done.returncode:
            results[list(results)[-1]][0] += f" with {done.returncode}: {done.stderr[-300:]}"
        answers |= results
        left = [path for path in left if path.name not in answers]
    return answers


# ---------------------------------------------------------------------------------------------------------------------
# Sound files, and what chance does to them


def write_whole(folder):
    """A sound file of every kind."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variables = [tf.compat.v1.get_variable(name, initializer=array) for name, array in ARRAYS.items()]
        session.run([variable.initializer for variable in variables])
        versions = tf.compat.v1.train.SaverDef
        for name, version in (("V1.ckpt", versions.V1), ("V2", versions.V2)):
            tf.compat.v1.train.Saver(variables, write_version=version).save(
                session, str(folder / name), write_meta_graph=False, write_state=False)
    tar(folder / "archive.tar.gz", data=(folder / "V1.ckpt").read_bytes())
    np.savez(folder / "arrays.npz", **ARRAYS)
    save_published(small(), folder / "published.h5")
    small().save_weights(folder / "keras.weights.h5")


def hurt(data, seed):
    """A copy of a file's bytes with one fault, of a kind and at a place that the seed chooses."""
    rng, data = np.random.default_rng(seed), bytearray(data)
    near = rng.integers(min(len(data) - 8, 400))
    place = int(rng.choice([rng.integers(len(data) - 8), near, len(data) - 8 - near]))  # anywhere, headers, directory
    fault = ("flip", "flip", "number", "cut", "insert", "overwrite")[seed % 6]
    if fault == "flip":
        data[place] ^= 1 << int(rng.integers(8))
    elif fault == "number":  # where a length or an offset stands, maybe
        number = (2**64 - 1, 0, 2**31 - 1, 2**40)[seed // 6 % 4]
        data[place:place + 8] = number.to_bytes(8, "little")
    elif fault == "cut":
        del data[place:]
    else:
        piece, target = data[place:place + int(rng.integers(1, 300))], int(rng.integers(len(data)))
        data[target:target + len(piece) * (fault == "overwrite")] = piece
    return bytes(data)


def write_hurt(source, kind, seed, folder):
    """A file of that kind with a fault. In archives every other fault is inside, where their checksum hides it."""
    path, data = folder / f"{seed}-{kind}", (source / kind).read_bytes()
    if kind == "archive.tar.gz" and seed % 2:
        tar(path, data=hurt((source / "V1.ckpt").read_bytes(), seed))
    elif kind == "arrays.npz" and seed % 2:
        npz(path, lambda kernel: hurt(kernel, seed))
    elif kind == "V2.index":
        data, numbers = [data, (source / "V2.data-00000-of-00001").read_bytes()], f"{seed}-V2.data-00000-of-00001"
        data[seed % 4 == 0] = hurt(data[seed % 4 == 0], seed)
        path.write_bytes(data[0])
        (folder / numbers).write_bytes(data[1])
    else:
        path.write_bytes(hurt(data, seed))
    return path


# ---------------------------------------------------------------------------------------------------------------------
# Files that somebody thought out


def npz(path, change):
    """A compressed .npz of the sound arrays, one of them stored as the bytes that `change` makes of its own."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in ARRAYS.items():
            np.save(file := io.BytesIO(), array)
            archive.writestr(f"{name}.npy", change(file.getvalue()) if name == KERNEL else file.getvalue())


def npy(kind="'<f4'", shape="(3, 3, 3, 64)", data=b""):
    header = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + data


def lying_directory(path):
    npz(path, lambda _: npy(data=bytes(2**29)))
    lie, truth = ((len(npy()) + size).to_bytes(4, "little") for size in (ARRAYS[KERNEL].nbytes, 2**29))
    path.write_bytes(path.read_bytes().replace(truth, lie))


def strange_members(path):
    npz(path, lambda _: b"{}")
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")  # a member of a name that is taken
        for name in (f"{KERNEL}.npy", "x" * 65000, "../../sprung", "/sprung", "ärger\r\n\x1b[31m\u202e.npy"):
            archive.writestr(name, b"")


@functools.cache
def zeros(size, pack=gzip.compress):
    return pack(bytes(size), 1)


def tar(path, name="inception_v1.ckpt", kind=tarfile.REGTYPE, size=None, data=b"", blocks=0, link="", after=b""):
    """A .tar.gz of one member, which holds the data and so many times 64 MB of zeros, and may claim another size."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, len(data) if size is None else size
    start = member.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)
    path.write_bytes(gzip.compress(start, 1) + zeros(2**26) * blocks + (after or gzip.compress(bytes(1024))))


def late_checkpoint(path):
    tar(path, data=b"no checkpoint")
    tar(path, "first", size=10 * 2**30, blocks=160, after=path.read_bytes())


def h5(change, model=small):
    """What writes a published file with `change(file)` made to it."""
    def write(path):
        save_published(model(), path)
        with h5py.File(path, "r+") as file:
            change(file)
    return write


def bias(**options):
    """The change that puts another dataset in the place of one of four numbers."""
    def change(file):
        del file["conv/conv/bias:0"]
        file.create_dataset("conv/conv/bias:0", **{"shape": (4,), "dtype": "f4"} | options)
    return change


def bomb(group, name, size=2**28, chunk=2**26):
    """Compressed zeros, which unpack to a thousand times what they take; a chunk of them is stored again and again."""
    array = group.create_dataset(name, (size,), "f4", chunks=(chunk,), maxshape=(None,), compression="gzip")
    for start in range(0, size, chunk):
        array.id.write_direct_chunk((start,), zeros(4 * chunk, zlib.compress))


def bias_bomb(size, chunk):
    def change(file):
        del file["conv/conv/bias:0"]
        bomb(file, "conv/conv/bias:0", size, chunk)
    return change


def decoy(file):
    """The right arrays are there, but those that the attributes name, which would be loaded, are others."""
    file.move("conv", "decoy")
    bomb(file, "optimizer/bomb")
    file["optimizer"].attrs["weight_names"] = [b"bomb"] * 2
    file.attrs["layer_names"] = [b"optimizer", b"bn", b"logits"]


def decoy_group(file):
    """The same: Keras reads `model_weights` only where the file itself has no `layer_names`."""
    for name in list(file):
        file.move(name, f"model_weights/{name}")
        bomb(file, f"{name}/bomb")
        file[name].attrs["weight_names"] = [b"bomb"] * len(file[f"model_weights/{name}"].attrs["weight_names"])


def circles(file):
    file["there"], file["here"] = h5py.SoftLink("/here"), h5py.SoftLink("/there")
    file["conv/itself"], file["conv/all"] = file["conv"], file
    file.move("conv/conv/bias:0", "conv/conv/other")
    file["conv/conv/bias:0"] = h5py.SoftLink("/here")


def elsewhere(file):
    del file["conv/conv/bias:0"]
    file["conv/conv/bias:0"] = h5py.ExternalLink("/etc/passwd", "/")


def virtual(file):
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource(f"{file.filename}.other", "numbers", (4,))
    del file["conv/conv/bias:0"]
    file.create_virtual_dataset("conv/conv/bias:0", layout)


def from_a_pipe(path):
    os.mkfifo(f"{path}.pipe")
    h5(bias(external=[(f"{path}.pipe", 0, 16)]))(path)


def nested(path):
    with h5py.File(path, "w", libver="latest") as file:
        group = file.id
        for _ in range(20000):
            group = h5py.h5g.create(group, b"g")


def code(file):
    keras = utils.import_keras()
    trap = keras.layers.Lambda(lambda x: (__import__("os").mkdir("sprung"), x)[1], output_shape=(4,))
    file.attrs["model_config"] = json.dumps(keras.saving.serialize_keras_object(keras.Sequential([small(), trap])))
    assert "__lambda__" in file.attrs["model_config"]


def binary(change):
    """What writes a published file and changes its bytes, below what HDF5's own functions would write."""
    def write(path):
        save_published(small(), path)
        change(data := bytearray(path.read_bytes()))
        path.write_bytes(data)
    return write


def free_for_ever(data):
    """A heap's list of free space leads back to its first entry: HDF5 follows it, and keeps what it finds."""
    heap = data.index(b"HEAP")
    free, start = (int.from_bytes(data[heap + place:heap + place + 8], "little") for place in (16, 24))
    data[start + free:start + free + 8] = free.to_bytes(8, "little")


def no_size(data):
    """Objects of no size in the heap of texts: HDF5 never comes to its end."""
    heap = data.index(b"GCOL")
    data[heap + 16:heap + 4096] = bytes(4080)


def group_for_array(path):
    small().save_weights(path)
    with h5py.File(path, "r+") as file:
        file.move("layers/conv2d/vars/0", "elsewhere")
        file.create_group("layers/conv2d/vars/0")


CASES = {  # name of the file: what writes it
    "unpacks to a quarter of a gigabyte.npz": lambda path: npz(path, lambda _: bytes(2**28)),
    "unpacks to more than its directory says.npz": lying_directory,
    "claims a trillion numbers.npz": lambda path: npz(path, lambda _: npy(shape="(1000000000000,)")),
    "claims strings of five megabytes.npz": lambda path: npz(path, lambda _: npy("'|S5000000'", data=bytes(2**20))),
    "code in a header.npz": lambda path: npz(path, lambda _: npy(shape="__import__('os').mkdir('sprung')")),
    "a header of Python 2.npz": lambda path: npz(
        path, lambda kernel: npy(shape="(3L, 3L, 3L, 64L)", data=kernel[128:])),
    "brackets in brackets.npz": lambda path: npz(path, lambda _: npy(shape="(" * 9000)),
    "complex numbers.npz": lambda path: np.savez(path, **ARRAYS | {KERNEL: ARRAYS[KERNEL] * 1j}),
    "too large for 32 bits.npz": lambda path: np.savez(path, **ARRAYS | {KERNEL: ARRAYS[KERNEL] + np.float64(1e300)}),
    "a pickle.npz": lambda path: np.savez(path, **ARRAYS | {KERNEL: np.full((3, 3, 3, 64), Trap("sprung"))}),
    "strange members.npz": strange_members,
    "claims a terabyte.tar.gz": lambda path: tar(path, size=2**40),
    "claims a megabyte.tar.gz": lambda path: tar(path, size=2**20),
    "checkpoint after ten gigabytes of zeros.tar.gz": late_checkpoint,
    "a name of two gigabytes.tar.gz": lambda path: tar(path, "name", tarfile.GNUTYPE_LONGNAME, 2**31, blocks=32),
    "a sparse terabyte.tar.gz": lambda path: tar(path, kind=tarfile.GNUTYPE_SPARSE, size=2**40),
    "a link to passwords.tar.gz": lambda path: tar(path, kind=tarfile.SYMTYPE, link="/etc/passwd"),
    "outside.tar.gz": lambda path: tar(path, "../../sprung"),
    "outside from the root.tar.gz": lambda path: tar(path, "/sprung"),
    "an enormous array.h5": h5(bias(shape=(2**20, 2**20), chunks=(64, 64))),
    "eight gigabytes of zeros.h5": h5(bias_bomb(2**31, 2**26)),
    "four numbers in a chunk of a gigabyte.h5": h5(bias_bomb(4, 2**28)),
    "four strings of half a gigabyte.h5": h5(bias(dtype="S500000000")),
    "another array is loaded.h5": h5(decoy),
    "another group is loaded.h5": h5(decoy_group),
    "wide one array three thousand times.h5": h5(
        lambda file: file["logits"].attrs.update(weight_names=[b"logits/kernel:0"] * 3000), lambda: small(WIDTH)),
    "a link to another file.h5": h5(elsewhere),
    "links in circles.h5": h5(circles),
    "numbers in another file.h5": h5(bias(external=[(__file__, 0, 16)])),
    "numbers in a pipe.h5": from_a_pipe,
    "a virtual array.h5": h5(virtual),
    "groups in groups.h5": nested,
    "free for ever.h5": binary(free_for_ever),
    "objects of no size.h5": binary(no_size),
    "code in a network.h5": h5(code),
    "no names of layers.h5": h5(lambda file: file.attrs.pop("layer_names")),
    "names that lie.h5": h5(lambda file: file.attrs.update(layer_names=[b"../../etc", b"\xff\xfe", b""])),
    "a group for an array.weights.h5": group_for_array,
    "another network.h5": h5(lambda file: None, lambda: small(5)),
}
HARMLESS = {"a header of Python 2.npz", "complex numbers.npz", "four numbers in a chunk of a gigabyte.h5",
            "code in a network.h5"}  # may be loaded, if nothing comes of what is odd about them
if os.name == "nt":
    del CASES["numbers in a pipe.h5"]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """{name of the file: what came of it}, and what was left behind, under the name of no file."""
    folder = tmp_path_factory.mktemp("weights")
    hostile, temporary = folder / "hostile", folder / "temporary"
    hostile.mkdir()
    temporary.mkdir()
    write_whole(folder)
    paths = [write_hurt(folder, kind, seed, hostile) for kind in KINDS for seed in SEEDS]
    for name, write in CASES.items():
        write(hostile / name)
        paths.append(hostile / name)
    there = {*os.listdir(hostile)}
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda half: judged(half, folder), (paths[::2], paths[1::2]))
    return one | other | {"": {*os.listdir(hostile)} - there | {*os.listdir(temporary)}}


def fault(answer, *harmless):
    """What is wrong with an answer, or nothing."""
    answer, line, noise, growth = answer
    good = answer == "refused" and "PATH" in line and "\n" not in line or answer in harmless
    return (noise or growth > GROWTH and f"took {growth:,} bytes") if good else f"{answer} {line}"


@pytest.mark.parametrize("kind", KINDS)
def test_what_chance_does_to_a_file_is_refused_or_does_not_matter(answers, kind):
    """Finite numbers of the right shapes pass in HDF5, which has no checksum here, and where the zip's was renewed."""
    unseen = {seed for seed in SEEDS if kind.endswith(".h5") or kind == "arrays.npz" and seed % 2}
    mine = {seed: answers[f"{seed}-{kind}"] for seed in SEEDS}
    faults = {seed: fault(answer, "loaded", *["loaded other numbers"] * (seed in unseen))
              for seed, answer in mine.items()}
    assert not any(faults.values()), {seed: text for seed, text in faults.items() if text}
    assert sum(answer[0] == "refused" for answer in mine.values()) >= 10  # they are no trifles


@pytest.mark.parametrize("name", CASES)
def test_a_file_made_to_do_harm_is_refused_in_one_line(answers, name):
    assert not fault(answers[name], *["loaded", "loaded other numbers"] * (name in HARMLESS))


def test_no_file_leaves_anything_behind(answers):
    assert not answers[""]


@pytest.mark.parametrize("script, name", [
    ("gradcam_googlenet.py", "too large for 32 bits.npz"), ("gradcam_googlenet.py", "a name of two gigabytes.tar.gz"),
    ("gradcam_resnet50.py", "groups in groups.h5"), ("gradcam_resnet50.py", "eight gigabytes of zeros.h5")])
def test_a_program_says_it_in_one_line_and_writes_nothing(tmp_path, script, name):
    CASES[name](tmp_path / name)
    done = subprocess.run(
        [sys.executable, utils.HERE / script, "--weights", tmp_path / name, "--output", tmp_path / "results"],
        check=False, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and name in done.stderr
    assert not os.listdir(tmp_path / "results") and {*os.listdir(tmp_path)} == {name, "results"}


if __name__ == "__main__":
    place = Path(sys.argv[1])
    with tempfile.TemporaryFile() as said_there:
        judge(said_there, {kind: place / kind for kind in KINDS})
