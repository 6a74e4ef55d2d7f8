"""Ctrl-C while a script starts, and text on a stdout that takes none."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import keras
import pytest
from helpers import small
from runs import CAT, ROOT, SCRIPTS, program, read_options, start

from cnnvis import networks, results, runtime


@pytest.mark.parametrize("script", SCRIPTS)
def test_ctrl_c_while_a_script_starts_is_one_line(script, tmp_path, listening):
    (tmp_path / "sitecustomize.py").write_text("import os; os.write(1, b'the script is next\\n')")
    for delay in (0.1, 0.3, 0.6):  # NumPy, OpenCV and matplotlib, then h5py and the options
        with start(script, "--weights random", cwd=tmp_path, PYTHONPATH=str(tmp_path)) as process:
            process.stdout.readline()
            time.sleep(delay)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (130, "", "stopped\n"), delay


OTHERS = {  # code of other programs: how they take Ctrl-C
    "import gradcam_vgg, deconvnet_vgg, cnnvis": "default_int",
    "import gradcam_vgg, cnnvis.runtime as r; r.run(lambda: 0)": "default_int",
    "from cnnvis import shell; shell.exit_on_interrupt()": "exit_at_once",
    "from cnnvis import shell, runtime as r; shell.exit_on_interrupt(); r.run(str)": "exit_at_once",
    "from cnnvis import shell; shell.sys.ps1 = ''; shell.exit_on_interrupt()": "default_int",
    "s.signal(2, s.SIG_IGN); from cnnvis import shell; shell.exit_on_interrupt()": "SIG_IGN",
}


@pytest.mark.parametrize("code", OTHERS)
def test_who_imports_a_script_or_ignores_ctrl_c_is_left_alone(code, listening):
    words = [sys.executable, "-c", f"import signal as s; {code}; print([s.getsignal(2)])"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert OTHERS[code] in done.stdout, done.stderr


def print_layers(monkeypatch):
    model = small(before=keras.layers.Conv2D(3, 1, name="каталог"))
    options = SimpleNamespace(draws_units=False)
    networks.print_layers(options, SimpleNamespace(model=model))


def print_help(monkeypatch):
    with pytest.raises(SystemExit):
        read_options(monkeypatch, "gradcam_vgg", "--help")


WRITERS = [print_layers, print_help, lambda _: results.list_file(Path("каталог.jpg"))]
LACKS = {"full": errno.ENOSPC, "gone": errno.EPIPE, "closed": errno.EBADF}


@pytest.mark.parametrize("lack", LACKS)
@pytest.mark.parametrize("write", WRITERS, ids=["layers", "help", "files"])
def test_a_stdout_that_takes_nothing_is_one_line(write, lack, monkeypatch, capsys):
    """And takes names as they are, whatever it is said to be encoded in."""
    runtime.log_once.cache_clear()
    written = []

    def fail(number, data):
        written.append(data)
        raise OSError(LACKS[lack], "")

    monkeypatch.setattr(os, "write", fail)
    ascii_only = SimpleNamespace(encoding="ascii")
    monkeypatch.setattr(sys, "__stdout__", None if lack == "closed" else ascii_only)
    write(monkeypatch)
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"to stdout ({os.strerror(LACKS[lack])})" in err
    assert len(written) == (lack != "closed")
    assert not written or write is print_help or "каталог".encode() in written[0]


def test_a_person_s_settings_of_matplotlib_and_keras(tmp_path):
    """Of matplotlib they are not read; unreadable ones of Keras are one line."""
    folder = tmp_path / ".config" / "matplotlib"
    folder.mkdir(parents=True)
    (folder / "matplotlibrc").write_bytes(b"\xff\xfe")
    words = f"{CAT} --weights random --figures overlay --classes 0"
    env = {"MPLBACKEND": "module://none.there", "KERAS_HOME": str(tmp_path), "HOME": str(tmp_path)}
    done = program("gradcam_googlenet", words, cwd=tmp_path, **env)
    assert (done.code, len(done.out)) == (0, 1), done.err
    (tmp_path / "keras.json").write_text('{"epsilon": 1}')
    done = program("gradcam_googlenet", words, "--output other", cwd=tmp_path, **env)
    assert done.code == 2 and not done.out
    assert re.match("error: cannot import keras: .*epsilon.*keras.json", done.err[-1]), done.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="of Linux")
def test_a_stderr_that_takes_nothing_loses_no_picture(tmp_path):
    words = [CAT, "--weights", ROOT / "Image" / "shapes.keras", "--figures", "classes"]
    command = [sys.executable, ROOT / "gradcam_vgg.py", *words]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=tmp_path, stderr=full)
    assert done.returncode == 0 and len([*tmp_path.glob("results/*.jpg")]) == 1
