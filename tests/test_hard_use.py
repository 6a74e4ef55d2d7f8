"""The scripts in hard use: long runs, runs stopped, killed and resumed, full disks, odd names, odd surroundings.

What the five share is tried on a sixth script without a network, which takes half a second; what is each script's own,
on all five with small networks in place of theirs, in one process, which runs beside the other tests.
"""
import json
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_programs import CAT, CLONE, DECONVNET, SCRIPTS, Done, arrays, assert_quiet, environment, files, interrupted

import utils

posix = pytest.mark.skipif(os.name != "posix", reason="only POSIX has it")
LONG = 200  # photographs of a long run; one more is broken

SIXTH = """'A script as the five are.'
if True:
    import os, time, utils
    IMAGES, FIGURES, LAYERS, CLASSES, KERNELS = ["photos"], ["shown"], ["all"], ["top1"], ["0"]
    WEIGHTS, SEED, OUTPUT, ARRAYS, COLORMAP = "random", 0, "results", False, "jet"

    def main():
        if "LIMIT" in os.environ:  # stands in for a full disk: it, too, takes a part of the last write and no more
            import resource
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["LIMIT"]),) * 2)
        if "SLOW" in os.environ:  # files take their time to get their names
            replace, os.replace = os.replace, lambda *paths: (time.sleep(0.05), replace(*paths))
        options = utils.read_options(globals(), ["shown"], {"none": utils.Network({"layer": 1}, ["layer"])})
        for photo in utils.photographs(options, options.figures):
            time.sleep(float(os.environ.get("PAUSE", 0)))
            if photo.stem == os.environ.get("STOP_AT"):
                raise KeyboardInterrupt
            rows = [[utils.Tile(photo.pixels, photo.path.name)]]
            utils.save_figure(options, photo.stem, "None", "shown", rows, photo.path.name, {"input": photo.pixels})
        return 1 if options.skipped else 0

    if __name__ == "__main__":
        utils.run(main)
"""

ROUNDS = """if True:  # the sixth script, once in each of several settings of the terminal
    import json, os, sys
    import sixth, utils
    for name, settings in json.loads(os.environ["ROUNDS"]).items():
        os.environ.update(settings)
        print(f"### {name}", file=sys.stderr)
        try:
            utils.run(sixth.main)
        except SystemExit as end:
            print(f"code {end.code}", file=sys.stderr)
"""

STAND_INS = """if True:  # the five scripts with small networks; what they did goes into a file
    import contextlib, importlib, io, json, sys
    from pathlib import Path
    import utils
    keras = utils.import_keras()
    import matplotlib.figure
    import tensorflow as tf

    LAST = {"gradcam_resnet50": "conv5_block3_out", "gradcam_googlenet": "Mixed_5c", "deconvnet_inceptionv3": "mixed10"}
    made, network_input, draw = tf.Graph.__init__, utils.network_input, matplotlib.figure.Figure.draw

    def graph(self, *arguments, **settings):  # every trace makes one
        seen["traces"] += 1
        made(self, *arguments, **settings)

    def noted(*arguments):  # called once for each photograph and, by DeconvNet, network
        status = Path("/proc/self/status")
        lines = status.read_text().splitlines() if status.exists() else []
        seen["traced"].append(seen["traces"])
        seen["memory"] += [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")]
        return network_input(*arguments)

    def network(layer, side):
        seen["built"] += 1
        image = keras.Input((side, side, 3))
        maps = keras.layers.Conv2D(16, 3, activation="relu", name=layer)(keras.layers.AveragePooling2D(16)(image))
        return keras.Model(image, keras.layers.Dense(1000)(keras.layers.GlobalAveragePooling2D()(maps)))

    def call(script, photos, figures, name, *more):
        global seen
        layer, side = LAST.get(script, "block5_conv3"), 299 if "inception" in script else 224
        module, seen = importlib.import_module(script), {"traces": 0, "built": 0, "traced": [], "memory": []}
        utils.build_vgg = module.build = lambda *_, **__: network(layer, side)
        sys.argv = [script, *photos, "--figures", figures, "--output", f"{script}/{name}", "--weights", "random",
                    "--layers", layer, "--kernels", "0", "--classes", "0", *more]
        sys.__stdout__, err, code = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO(), None
        with contextlib.redirect_stderr(err):
            try:
                utils.run(module.main)
            except SystemExit as end:
                code = end.code
        sys.__stdout__.seek(0)
        return {"code": code, "out": sys.__stdout__.read().splitlines(), "err": err.getvalue().splitlines(), **seen}

    tf.Graph.__init__, utils.network_input, told = graph, noted, {}
    for script in ("gradcam_googlenet", "gradcam_resnet50", "gradcam_vgg", "deconvnet_vgg", "deconvnet_inceptionv3"):
        figures = "classes" if "gradcam" in script else "kernels,comparison,top9"
        model = "vgg16" if "vgg" in script else script.partition("_")[2]
        one = ["--models", model] if "vgg" in script else []
        runs = told[script] = {"all": call(script, ["three"], "all", "all")}
        runs["long"] = call(script, ["many", "a.png"], figures, "long", *one)
        if "deconvnet" in script:
            runs["top9"] = call(script, ["five"], "top9", "top9", *one)
        call(script, ["five"], figures, "resumed", "--arrays", *one)
        out, missing = Path(script, "resumed"), [f"000_{model}_classes.npz"]
        if "deconvnet" in script:
            missing = [f"five_{model}_comparison.jpg", f"five_{model}_top9.npz"]
        for name in missing:
            (out / name).unlink()
        before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
        runs["resumed"] = call(script, ["five"], figures, "resumed", "--arrays", "--skip-existing", *one)
        runs["kept"] = [path.name for path in out.iterdir() if before.get(path.name) == path.stat().st_mtime_ns]
        runs["missing"] = [Path(name).stem for name in missing]
        matplotlib.figure.Figure.draw = lambda *_: None  # takes most of the time; the first script has shown it
    Path("told.json").write_text(json.dumps(told))
"""

TRAP = """if True:  # Ctrl-C so many seconds after a module is asked for; Python imports this before any script
    import os, signal, sys, threading

    class Finder:
        def find_spec(name, path=None, target=None):
            if name == os.environ["AT"]:
                sys.meta_path.remove(Finder)
                after = float(os.environ["AFTER"])
                if after:
                    threading.Timer(after, os.kill, (os.getpid(), signal.SIGINT)).start()
                else:
                    os.kill(os.getpid(), signal.SIGINT)

    sys.meta_path.insert(0, Finder)
"""


def noise(path, height=30, width=40):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)


def photographs(folder, count, broken=(), **size):
    """A folder of photographs, 000.png and so on, all the same but for the broken ones."""
    folder.mkdir()
    noise(folder / "000.png", **size)
    for number in range(1, count):
        path = folder / f"{number:03}.png"
        path.write_bytes(b"broken") if number in broken else shutil.copy(folder / "000.png", path)


def counts(lines):
    """The numbers of the line that counts: photographs, done, there already, unreadable."""
    return [int(number) for number in re.findall(r"\d+", next(line for line in lines if " photographs: " in line))]


def last_counts(done):
    return counts(done.err[-1:])


def assert_whole(folder):
    """Every picture decodes to its end, every .npz gives its numbers; nothing else lies there."""
    for path in folder.iterdir():
        if path.suffix == ".npz":
            assert arrays(path)
        else:
            assert path.suffix == ".jpg" and path.read_bytes()[-2:] == b"\xff\xd9", path.name
            with Image.open(path) as image:
                image.load()


def make_old(path):
    """As old as what nobody can still be writing."""
    os.utime(path, (time.time() - 3600,) * 2)


def times(paths):
    return {path: path.stat().st_mtime_ns for path in paths}


# --- how programs are run, some of them beside the tests --------------------------------------------------------------


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The folder of the programs written above."""
    library = tmp_path_factory.mktemp("library")
    (library / "trap").mkdir()
    for name, text in {"sixth": SIXTH, "rounds": ROUNDS, "stand_ins": STAND_INS, "trap/sitecustomize": TRAP}.items():
        (library / f"{name}.py").write_text(text, encoding="utf-8")
    return library


def start(script, *arguments, cwd, shell="", trap=CLONE, env=None, **settings):
    """A program that has begun. shell: what a shell does with PROGRAM. env: FILE is a file, None removes a variable."""
    words = [sys.executable, *map(str, (script, *arguments))]
    words = ["sh", "-c", shell.replace("PROGRAM", 'exec "$0" "$@"'), *words] if shell else words
    (cwd / "file").write_text("")
    env = environment(PYTHONPATH=os.pathsep.join(map(str, (trap, CLONE)))) | (env or {})
    env = {name: value.replace("FILE", str(cwd / "file")) for name, value in env.items() if value is not None}
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | settings
    return subprocess.Popen(words, cwd=cwd, env=env, encoding="utf-8", errors="surrogateescape", **streams)


def ended(process):
    """Its code and lines. (str.splitlines would break names at characters that end no line for a shell.)"""
    with process:
        try:
            out, err = (text.split("\n")[:-1] for text in process.communicate(timeout=300))
        finally:
            process.kill()
    return Done(process.returncode, out, err, None)


@pytest.fixture
def sixth(library, tmp_path):
    """Begin the sixth script in the test's own folder; results go to `out`."""
    return lambda *arguments, **settings: start(
        library / "sixth.py", *arguments, "--output", tmp_path / "out", cwd=tmp_path, **settings)


def five(cwd, library):
    """What the five scripts told of their runs with small networks, and where the results are."""
    photographs(cwd / "many", LONG, broken=[7])
    photographs(cwd / "five", 5)
    photographs(cwd / "three", 3)
    noise(cwd / "a.png")
    done = ended(start(library / "stand_ins.py", cwd=cwd))
    assert done.code == 0, "\n".join(done.err[-20:])
    return json.loads((cwd / "told.json").read_text()), cwd


def terminal(cwd, library):
    """What a terminal shows: {round: text}."""
    import pty
    photographs(cwd / "photos", 12, broken=[9])
    rounds = {"colours": {"TERM": "xterm"}, "dumb": {"TERM": "dumb"}, "NO_COLOR": {"TERM": "xterm", "NO_COLOR": "1"},
              "stopped": {"STOP_AT": "010"}}
    ours, theirs = pty.openpty()
    process = start(library / "rounds.py", "photos", "--output", "out", cwd=cwd, stdout=subprocess.DEVNULL,
                    stderr=theirs, env={"ROUNDS": json.dumps(rounds), "PAUSE": "0.3", "NO_COLOR": None})
    os.close(theirs)
    shown = b""
    try:
        while more := os.read(ours, 4096):
            shown += more
    except OSError:  # Linux's way to say that nobody writes any more
        pass
    os.close(ours)
    assert process.wait() == 0, shown
    return dict(text.split("\n", 1) for text in shown.decode().replace("\r\n", "\n").split("### ")[1:])


def googlenet(cwd, shell, env):
    """One figure of one photograph, with a real network."""
    shutil.copy(CAT, cwd / "кошка.jpg")
    return ended(start(CLONE / "gradcam_googlenet.py", cwd / "кошка.jpg", "--weights", "tiny", "--figures", "one_class",
                       "--output", cwd / "out", cwd=cwd, shell=shell, env=env)), cwd / "out"


LACKING = {
    "no home": {"HOME": None}, "a home that is a file": {"HOME": "FILE"}, "C": {"LC_ALL": "C"},
    "no display": {"MPLBACKEND": "TkAgg", "DISPLAY": None},
    "no folder for matplotlib": {"MPLCONFIGDIR": "FILE/below"}, "ASCII streams": {"PYTHONIOENCODING": "ascii"},
    "nothing but ASCII": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}}
ALL_AT_ONCE = LACKING["no display"] | LACKING["a home that is a file"] | LACKING["nothing but ASCII"]
DELETED = "mkdir gone && cd gone && rmdir ../gone && PROGRAM"
BESIDE = {"five": five} | ({
    "terminal": terminal,
    "stderr closed": lambda cwd, _: googlenet(cwd, "PROGRAM 2>&-", {}),
    "all at once": lambda cwd, _: googlenet(cwd, DELETED, ALL_AT_ONCE)} if os.name == "posix" else {})


@pytest.fixture(scope="module")
def beside(library, tmp_path_factory):
    """What a function of BESIDE returns; two threads go through them, as one of them mostly waits."""
    with ThreadPoolExecutor(2) as pool:
        futures = {name: pool.submit(function, tmp_path_factory.mktemp(name.replace(" ", "_")), library)
                   for name, function in BESIDE.items()}
        yield lambda name: futures[name].result()
        pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="module", autouse=True)
def begin(request):
    """Begin with what runs beside the tests, if one of them asks for it, and let all children hear Ctrl-C.

    What a shell runs in the background is deaf to it, and so are its children, unless their parent listens.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    if any("beside" in item.fixturenames for item in request.session.items):
        request.getfixturevalue("beside")
    yield
    signal.signal(signal.SIGINT, before)


# --- places that cannot be written ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sizes(library, tmp_path_factory):
    """How large the results of a noisy photograph are: {ending: bytes}."""
    cwd = tmp_path_factory.mktemp("sizes")
    noise(cwd / "b.png", 300, 300)  # the name is in the picture
    assert ended(start(library / "sixth.py", "b.png", "--arrays", "--output", "out", cwd=cwd)).code == 0
    return {path.suffix: path.stat().st_size for path in (cwd / "out").iterdir()}


@posix
@pytest.mark.parametrize("ending, missing", [(".jpg", 1), (".jpg", 50000), (".npz", 1)])
def test_a_full_disk_is_one_line_and_what_was_written_before_stays_whole(sixth, sizes, tmp_path, ending, missing):
    noise(tmp_path / "a.png")
    noise(tmp_path / "b.png", 300, 300)
    done = ended(sixth("a.png", "b.png", *["--arrays"] * (ending == ".npz"),
                       env={"LIMIT": str(sizes[ending] - missing)}))
    assert_whole(tmp_path / "out")
    assert done.code == 2 and counts(done.err)[:2] == [2, 1] and len(done.err) == 2
    assert [line for line in done.err if line.startswith("error: cannot write") and f"b_none_shown{ending}" in line]
    assert sorted(Path(line).name for line in done.out) == files(tmp_path / "out")


@posix
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_list_of_files_that_cannot_be_written_is_one_line(sixth, tmp_path):
    noise(tmp_path / "a.png")
    done = ended(sixth("a.png", shell="PROGRAM >/dev/full"))
    assert done.code == 2 and len(done.err) == 1 and done.err[0].startswith("error: "), "\n".join(done.err)
    assert_whole(tmp_path / "out")


PLACES = {
    "a folder in the picture's place": lambda out: (out / "a_none_shown.jpg").mkdir(parents=True),
    "a link to nothing": lambda out: out.symlink_to("nothing"), "a link to itself": lambda out: out.symlink_to("out"),
    # Root may write anywhere but into what is no disk.
    "read-only": lambda out: out.mkdir(mode=0o500) if os.geteuid() else out.symlink_to("/proc")}


@posix
@pytest.mark.parametrize("put", PLACES.values(), ids=PLACES)
def test_a_place_that_cannot_be_written_is_one_line(sixth, tmp_path, put):
    noise(tmp_path / "a.png")
    put(tmp_path / "out")
    done = ended(sixth("a.png"))
    assert done.code == 2 and "out" in done.error()
    assert files(tmp_path) == ["a.png", "file"]


@posix
def test_a_results_folder_that_vanishes_during_the_run_is_one_line(sixth, tmp_path):
    photographs(tmp_path / "photos", 100)
    process = sixth("photos")
    process.stdout.readline()
    (tmp_path / "out").rename(tmp_path / "moved")
    done = ended(process)
    assert done.code == 2 and sum(line.startswith("error: cannot write") for line in done.err) == 1
    assert len(done.err) == 2 and 1 <= counts(done.err)[1] < 100
    assert_whole(tmp_path / "moved")


# --- files beside their place -----------------------------------------------------------------------------------------


@pytest.fixture
def part(tmp_path, monkeypatch):
    """The hidden file beside `a.jpg` before that is there, which a kill would leave behind."""
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *paths: seen.append(paths))
        utils.write_whole(tmp_path / "a.jpg", lambda file: file.write(b"whole"))
    assert [name.name for name in seen[0][1:]] == ["a.jpg"] and not list(tmp_path.iterdir())
    return seen[0][0]


def test_litter_is_cleared_when_nobody_can_be_writing_it_and_nothing_else_is(tmp_path, part):
    fresh = part.with_name(f".{part.name[1:-5][::-1]}.part")  # of a run beside this one
    mine, folder = tmp_path / ".my download.part", tmp_path / ".box.part"
    for path in (part, fresh, mine):
        path.write_bytes(b"half")
    folder.mkdir()
    for path in (part, mine, folder):
        make_old(path)
    utils._make_folder(tmp_path)
    assert set(tmp_path.iterdir()) == {fresh, mine, folder}


@posix
@pytest.mark.parametrize("aim", ["mine.txt", "nothing"])
def test_a_link_in_the_place_of_a_part_or_a_picture_is_not_written_through(tmp_path, part, aim):
    """In a folder that others may write into, that would be their way to any file of ours."""
    (tmp_path / "mine.txt").write_bytes(b"mine")
    for link in (part, tmp_path / "a.jpg"):
        link.symlink_to(tmp_path / aim)
    assert utils.secrets.token_hex(8) not in part.name  # nobody can know the next one
    utils._make_folder(tmp_path)
    utils.write_whole(tmp_path / "a.jpg", lambda file: file.write(b"whole"))
    assert (tmp_path / "mine.txt").read_bytes() == b"mine" and not (tmp_path / "nothing").exists()
    assert (tmp_path / "a.jpg").read_bytes() == b"whole" and not (tmp_path / "a.jpg").is_symlink()


@posix
def test_files_may_be_read_by_whom_the_umask_allows(tmp_path):
    before = os.umask(0o027)
    try:
        utils.write_whole(tmp_path / "a.jpg", lambda file: file.write(b"whole"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.jpg").stat().st_mode) == 0o640


def test_two_runs_that_write_one_picture_never_mix_their_halves(tmp_path):
    seen = []

    def slow(file):
        file.write(b"slow, first half, ")
        file.flush()
        utils.write_whole(tmp_path / "a.jpg", lambda other: other.write(b"quick"))
        file.write(b"second half")
        file.flush()
        seen.append((tmp_path / "a.jpg").read_bytes())

    utils.write_whole(tmp_path / "a.jpg", slow)
    assert (*seen, (tmp_path / "a.jpg").read_bytes()) == (b"quick", b"slow, first half, second half")
    assert files(tmp_path) == ["a.jpg"]


@posix
@pytest.mark.parametrize("blow", [signal.SIGINT, getattr(signal, "SIGKILL", None)], ids=["SIGINT", "SIGKILL"])
def test_a_run_ended_at_six_moments_leaves_whole_files_and_is_finished_by_the_seventh(sixth, tmp_path, blow):
    photographs(tmp_path / "photos", 25, broken=[3], height=400, width=600)
    out, chance, kept = tmp_path / "out", random.Random(0), {}
    for moment in range(6):
        process = sixth("photos", "--arrays", "--skip-existing", env={"SLOW": "1"})
        for _ in range(3):  # a photograph is done, and another begun
            process.stdout.readline()
        time.sleep(chance.uniform(0, 0.05))
        while moment % 2 and process.poll() is None and not list(out.glob(".*")):
            pass  # every other time it is ended when a file has just been begun
        process.send_signal(blow)
        done, litter = ended(process), list(out.glob(".*"))
        assert done.code == (130 if blow == signal.SIGINT else -blow)
        assert all(re.match("skipped: |25 photographs: |stopped$", line) for line in done.err), "\n".join(done.err)
        assert {path.suffix for path in litter} <= ({".part"} if blow != signal.SIGINT else set())
        for path in litter:
            make_old(path)
        shutil.copytree(out, tmp_path / str(moment), ignore=shutil.ignore_patterns(".*"))
        assert_whole(tmp_path / str(moment))
        assert times(kept) == kept  # what was complete before has not been touched
        kept = times(path for path in out.glob("*.jpg") if path.with_suffix(".npz").exists())
    done = ended(sixth("photos", "--arrays", "--skip-existing"))
    assert done.code == 1 and last_counts(done) == [25, 24 - len(kept), len(kept), 1]
    assert 0 < len(kept) < 24 and times(kept) == kept and len(files(out)) == 2 * 24
    assert_whole(out)


# --- names ------------------------------------------------------------------------------------------------------------


NAMES = [b"\xc3\xa9" * 125 + b"a.png", b"\xc3\xa9" * 125 + b"b.png", b"line\nline.png", b"\x1b[31mred\x07.png",
         b"caf\xe9.png", b"-x.png", b"a b'\"$(c).png", "\u2028\u202e\x85.png".encode()]


@pytest.fixture
def odd(tmp_path):
    """Photographs of odd names, as far as the file system takes them: Windows knows few, macOS only what is UTF-8."""
    (tmp_path / "photos").mkdir()
    for name in NAMES:
        try:
            noise(tmp_path / "photos" / os.fsdecode(name))
        except (OSError, ValueError):
            continue
    return list((tmp_path / "photos").iterdir())


def test_odd_names_are_drawn_and_listed_one_a_line(sixth, tmp_path, odd):
    done = ended(sixth("photos", "--arrays"))
    assert done.code == 0 and len(done.err) == 1 and last_counts(done) == [len(odd), len(odd), 0, 0]
    assert len(files(tmp_path / "out")) == 2 * len(odd)
    assert_whole(tmp_path / "out")
    assert {Path(line) for line in done.out} == set((tmp_path / "out").iterdir())


def test_odd_names_of_broken_files_are_told_one_a_line_without_what_moves_a_terminal(sixth, tmp_path, odd):
    for path in odd:
        path.write_bytes(b"broken")
    noise(tmp_path / "a.png")
    done = ended(sixth("photos", "a.png"))
    assert done.code == 1 and last_counts(done) == [len(odd) + 1, 1, 0, len(odd)] and len(done.err) == len(odd) + 1
    assert all(line.startswith("skipped: ") and line.isprintable() for line in done.err[:-1])


@posix
def test_links_to_photographs_are_followed_and_links_to_folders_are_not(tmp_path):
    """As Path.rglob has it from Python 3.10 to 3.13: a loop has an end, and no photograph comes twice."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    (inside / "below").mkdir(parents=True)
    outside.mkdir()
    for path in (inside / "a.png", inside / "below" / "b.png", outside / "c.png"):
        path.write_bytes(b"")
    for link, aim in {"file.png": outside / "c.png", "folder": outside, "folder.png": outside, "below/loop": inside,
                      "gone.png": "no.png", "self.png": "self.png"}.items():
        (inside / link).symlink_to(aim)
    (tmp_path / "alias").symlink_to(inside)
    for folder in (inside, tmp_path / "alias"):
        assert utils.find_photos([folder]) == [folder / name for name in ("a.png", "below/b.png", "file.png")]


# --- what surrounds a program -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("env", LACKING.values(), ids=LACKING)
def test_surroundings_that_lack_something_do_no_harm(sixth, tmp_path, env):
    noise(tmp_path / "кошка.png")
    done = ended(sixth("кошка.png", env=env))
    assert (done.code, done.err) == (0, [])
    assert len(done.out) == 1 and files(tmp_path / "out") == ["кошка_none_shown.jpg"]
    assert_whole(tmp_path / "out")


@posix
@pytest.mark.parametrize("shell, out, err", [
    ("PROGRAM >&-", 0, 2), ("PROGRAM 2>&-", 2, 0), ("PROGRAM <&- >&- 2>&-", 0, 0), (DELETED, 2, 2)])
def test_closed_streams_and_a_deleted_working_directory_do_no_harm(sixth, tmp_path, shell, out, err):
    photographs(tmp_path / "photos", 3, broken=[1])
    done = ended(sixth(tmp_path / "photos", shell=shell))
    assert (done.code, len(done.out), len(done.err)) == (1, out, err), "\n".join(done.err)
    assert files(tmp_path / "out") == ["000_none_shown.jpg", "002_none_shown.jpg"]
    assert_whole(tmp_path / "out")


@posix
def test_a_reader_that_goes_away_ends_the_run_without_a_traceback(sixth, tmp_path):
    photographs(tmp_path / "photos", 30)
    with sixth("photos") as process:
        process.stdout.readline()  # as `| head -1` does
        process.stdout.close()
        err = process.stderr.read()
    assert not re.search("Traceback|Exception|BrokenPipe", err) and len(err.splitlines()) <= 2, err
    assert_whole(tmp_path / "out")


@posix
@pytest.mark.parametrize("place", ["stderr closed", "all at once"])
def test_a_network_runs_there_too(beside, place):
    done, out = beside(place)
    assert (done.code, done.err, len(done.out)) == (0, [], 1)
    assert len(list(out.iterdir())) == 1
    assert_whole(out)


@posix
@pytest.mark.parametrize("name", ["colours", "dumb", "NO_COLOR", "stopped"])
def test_a_terminal_shows_the_time_left_in_colours_only_where_they_are_wanted(beside, name):
    text = beside("terminal")[name]
    assert re.search(r"\b8/12 .* \ds ", re.sub(r"\x1b\[\d*m", "", text)), text
    assert ("\x1b[" in text) == (name == "colours"), text


@posix
@pytest.mark.parametrize("name", ["colours", "stopped"])
def test_what_is_said_while_a_progress_bar_is_shown_has_a_line_of_its_own(beside, name):
    text = beside("terminal")[name]
    lines = [line.rpartition("\r")[2] for line in text.split("\n")]
    assert "Traceback" not in text and f"code {130 if name == 'stopped' else 1}" in lines
    drawn = 9 if name == "stopped" else 11
    assert counts([line for line in lines if line.startswith("12 ")]) == [12, drawn, 0, 1], text
    assert len([line for line in lines if line.startswith("skipped: ")]) == 1, text
    assert name != "stopped" or "stopped" in lines, text


# --- long runs of the five scripts, and --skip-existing ---------------------------------------------------------------


@pytest.fixture(params=[script.removesuffix(".py") for script in SCRIPTS])
def told(request, beside):
    """What a script told of its runs, and its name."""
    return beside("five")[0][request.param], request.param


def test_a_long_run_builds_its_network_once_and_counts_what_it_did(told):
    runs, script = told
    run, figures = runs["long"], LONG + 2 * ("deconvnet" in script)
    assert (run["built"], run["code"], len(run["out"])) == (1, 1, figures)
    assert [line for line in run["err"] if "007.png" in line] == run["err"][:1]
    assert counts(run["err"]) == [LONG + 1, LONG, 0, 1] and counts(run["err"][-1:])


def test_every_figure_together_builds_each_network_once_and_traces_nothing_at_the_second_photograph(told):
    """Grad-CAM's `trust` needs each network a second time, untrained. Both VGGs are drawn."""
    runs, script = told
    run, networks = runs["all"], 2 if "vgg" in script else 1
    assert run["code"] == 0 and run["built"] == networks * (2 if "gradcam" in script else 1)
    calls = 1 if "gradcam" in script else networks  # for a photograph
    assert run["traced"][calls] == run["traced"][2 * calls]
    assert len(set(runs["long"]["traced"][2:LONG])) == 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process's memory there")
def test_memory_is_flat_over_a_long_run(told):
    memory = told[0]["long"]["memory"]
    assert memory[LONG - 1] - memory[50] < 20, memory[::50]


def test_skip_existing_draws_what_is_missing_and_leaves_the_rest_untouched(told):
    runs, script = told
    run = runs["resumed"]
    assert run["code"] == 0 and sorted({Path(line).stem for line in run["out"]}) == runs["missing"]
    assert len(runs["kept"]) == 2 * (4 if "gradcam" in script else 5)
    total, done, there, unreadable = counts(run["err"])
    assert (total, done + there, unreadable) == (5, 5, 0) and (done == 1 or "deconvnet" in script)


@pytest.mark.parametrize("script", [script.removesuffix(".py") for script in DECONVNET])
def test_a_comparison_drawn_later_shows_the_photographs_that_it_would_have_shown(beside, script):
    told, cwd = beside("five")
    path = cwd / script / "resumed" / f"{told[script]['missing'][0]}.jpg"
    assert path.exists()
    assert [key[-3:] for key in arrays(path.with_suffix(".npz")) if "/input/" in key] == ["000", "001", "002", "003"]


@pytest.mark.parametrize("script", [script.removesuffix(".py") for script in DECONVNET])
def test_a_scan_alone_ends_with_a_line_that_counts(beside, script):
    run = beside("five")[0][script]["top9"]
    assert run["code"] == 0 and len(run["out"]) == 1
    assert run["err"] and counts(run["err"][-1:])[:2] == [5, 5]


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------


MOMENTS = [  # from the first import of a script on; what comes before is Python's own
    ("gradcam_googlenet.py", "numpy", 0), ("gradcam_resnet50.py", "numpy", 0), ("deconvnet_vgg.py", "numpy", 0),
    ("gradcam_vgg.py", "cv2", 0), ("gradcam_vgg.py", "PIL", 0), ("deconvnet_vgg.py", "numpy", 0.1),
    ("gradcam_googlenet.py", "cv2", 0.1), ("gradcam_googlenet.py", "cv2", 0.3), ("gradcam_googlenet.py", "keras", 0),
    ("gradcam_googlenet.py", "keras", 0.7), ("gradcam_googlenet.py", "tensorflow", 1),
    ("gradcam_googlenet.py", "tensorflow", 2), ("gradcam_googlenet.py", "matplotlib.figure", 0)]


@posix
def test_ctrl_c_while_anything_is_imported_ends_the_run_without_a_traceback(library, tmp_path):
    def interrupt(script, module, after):
        done = ended(start(CLONE / script, CAT, "--weights", "tiny" if "googlenet" in script else "random", "--output",
                           "out", cwd=tmp_path, trap=library / "trap", env={"AT": module, "AFTER": str(after)}))
        said = [line for line in done.err if line != "stopped"]
        return (done.code, said[-1:]) != (130, []) and (script, module, after, done.code, said[-1:])

    with ThreadPoolExecutor(2) as pool:
        assert [found for found in pool.map(interrupt, *zip(*MOMENTS)) if found] == []
    assert not (tmp_path / "out").exists() or files(tmp_path / "out") == []


@posix
def test_a_run_stopped_by_ctrl_c_says_what_is_done_and_goes_on_with_skip_existing(tmp_path):
    photographs(tmp_path / "photos", 20, broken=[2])
    out = tmp_path / "out"
    words = ("gradcam_googlenet.py", "photos", "--weights", "tiny", "--figures", "one_class", "--arrays",
             "--output", "out")
    first = interrupted(*words, cwd=tmp_path, stream="stdout",
                        when=lambda line: line.endswith("008_googlenet_one_class.jpg"))
    assert first.code == 130 and "stopped" in first.err and len(first.err) == 3, "\n".join(first.err)
    total, done, there, unreadable = counts(first.err)
    assert (total, there, unreadable) == (20, 0, 1) and 7 <= done < 19
    assert_whole(out)
    (out / "004_googlenet_one_class.npz").unlink()
    kept = times(path for path in out.glob("*.jpg") if path.with_suffix(".npz").exists())
    second = ended(start(CLONE / words[0], *words[1:], "--skip-existing", cwd=tmp_path))
    assert second.code == 1 and last_counts(second) == [20, 19 - len(kept), len(kept), 1]
    assert_quiet(second)
    assert times(kept) == kept and len(second.out) == 2 * (19 - len(kept)) and len(files(out)) == 2 * 19
    assert_whole(out)
