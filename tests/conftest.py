import os
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
PHOTO = ROOT / "Image" / "cat.jpg"

os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"  # whose rounding depends on the machine
sys.path.insert(0, str(ROOT))


class Shell:
    """`python SCRIPT.py cat.jpg WORDS …` in this process: starting TensorFlow takes seconds."""

    def __init__(self, monkeypatch, capfd):
        self.monkeypatch = monkeypatch
        self.capfd = capfd

    def __call__(self, script, *words):
        """Exit code, lines on stdout, lines on stderr."""
        self.monkeypatch.setattr(sys, "argv", [script, str(PHOTO), *map(str, words)])
        self.capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        out, err = self.capfd.readouterr()
        lines = [
            line for line in err.splitlines() if not re.match("[EIW]0000 ", line)
        ]  # TensorFlow
        return end.value.code or 0, out.splitlines(), lines

    def arrays(self, script, *words, figure="classes"):
        """The numbers behind a figure."""
        code, out, err = self(script, "--figures", figure, "--arrays", *words)
        assert (code, len(out)) == (0, 2), err
        with np.load(out[0], allow_pickle=False) as file:
            return dict(file)

    def refusal(self, script, *words):
        """The one line of a program that ends as promised: no file anywhere, code 2."""
        before = {Path("results"), *Path().rglob("*")}
        code, out, err = self(script, *words)
        assert (code, out, len(err)) == (2, [], 1), err
        assert err[0].startswith("error: ")
        assert {Path("results"), *Path().rglob("*")} == before
        return err[0]


@pytest.fixture
def shell(monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(tmp_path)
    return Shell(monkeypatch, capfd)
