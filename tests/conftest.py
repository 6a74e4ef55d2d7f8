import functools
import os
import signal
import sys
from pathlib import Path

import pytest

os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"  # whose rounding depends on the machine
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run a script within this process, in a folder of its own."""
    from runs import call

    monkeypatch.chdir(tmp_path)
    return functools.partial(call, tmp_path)


@pytest.fixture
def listening():
    """Processes that a test starts listen to Ctrl-C, as in a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Read the options of a script, in a folder with a photograph."""
    from runs import read_options, save_photo

    monkeypatch.chdir(tmp_path)
    save_photo(tmp_path / "photo.png")
    return functools.partial(read_options, monkeypatch)
