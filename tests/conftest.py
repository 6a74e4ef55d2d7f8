import functools
import os
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
