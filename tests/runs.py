"""How tests run the scripts: within their own process, which spares TensorFlow's start, or as a
person's shell does."""

import importlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from cnnvis import cli, runtime
from utils import UserError

ROOT = Path(__file__).resolve().parent.parent
CAT, CAT_COFFEE = ROOT / "Image" / "cat.jpg", ROOT / "Image" / "cat_coffee.jpg"
GRADCAM = ("gradcam_vgg", "gradcam_resnet50", "gradcam_googlenet")
DECONVNET = ("deconvnet_vgg", "deconvnet_inceptionv3")
SCRIPTS = GRADCAM + DECONVNET
CHATTER = re.compile(
    r"^[IWEF]\d{4}\b|^\d{4}-\d\d-\d\d|warning|onednn|cuda|absl|cpu_feature_guard|site-packages"
    r"|traceback|retracing|font cache|exception ignored",
    re.IGNORECASE,
)


def arrays(path):
    with np.load(path, allow_pickle=False) as stored:
        return dict(stored)


class Done(NamedTuple):
    """A program that has ended: its exit code, lines on stdout and on stderr, where it ran."""

    code: int
    out: list
    err: list
    cwd: Path

    def files(self, folder="results"):
        """The names in the output folder, hidden ones too: exactly those that stdout lists."""
        names = sorted(path.name for path in (self.cwd / folder).iterdir())
        assert sorted(self.out) == [f"{folder}/{name}" for name in names], self.err
        return set(names)

    def arrays(self, name=None, folder="results"):
        """The numbers of a figure: of the first one listed, or by its name."""
        return arrays(self.cwd / folder / f"{name or Path(self.out[0]).stem}.npz")

    def error(self):
        """The line that a program ends with which drew nothing."""
        lines = [line for line in self.err if line.startswith("error: ")]
        assert (self.code, self.out, lines) == (2, [], self.err[-1:]), self.err
        assert not [line for line in self.err if CHATTER.search(line)]
        assert not [*self.cwd.glob("results/*")]
        return lines[0]


def typed(*words):
    """Words as a shell takes them apart."""
    return shlex.split(" ".join(map(str, words)))


def start(*words, cwd, **env):
    """A script as a shell starts it: without what the tests have set for TensorFlow."""
    script, *arguments = typed(*words)
    ours = ("TF_", "KERAS_", "PYTHON", "COLUMNS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    command = [sys.executable, ROOT / f"{script}.py", *arguments]
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(command, cwd=cwd, env=kept | env, text=True, **pipes)


def program(*words, cwd, **env):
    with start(*words, cwd=cwd, **env) as process:
        out, err = process.communicate(timeout=300)
    return Done(process.returncode, out.splitlines(), err.splitlines(), Path(cwd))


def read_options(monkeypatch, script, *words, **constants):
    """The options of words typed behind a script, some of its constants having other values."""
    module = importlib.import_module(script)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, words)])
    figures = getattr(module, "GRADCAM_FIGURES", None) or module.DECONVNET_FIGURES
    return cli.read_options({**vars(module), **constants}, figures)


def refusal(call, *arguments, **constants):
    """The one line of the UserError that a call ends with."""
    with pytest.raises(UserError) as caught:
        call(*arguments, **constants)
    line = str(caught.value)
    assert line.strip() and "\n" not in line
    return line


class Stream(io.StringIO):
    """What a script writes to, within this process."""


def call(cwd, *words):
    """A run within this process, in a folder."""
    script, *arguments = typed(*words)
    module = importlib.import_module(script)
    runtime.log_once.cache_clear()
    out, err, write = Stream(), Stream(), os.write

    def listed(number, data):
        return out.write(os.fsdecode(data)) if number == 1 else write(number, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.setattr(sys, "argv", [f"{script}.py", *arguments])
        patch.setattr(sys, "__stdout__", out)
        patch.setattr(os, "write", listed)
        patch.setattr(sys, "stderr", err)
        patch.setattr("logging.disable", lambda level: None)
        code = runtime.run(module.main)
    return Done(code, out.getvalue().splitlines(), err.getvalue().splitlines(), Path(cwd))


def save_photo(path, seed=0, size=(120, 60)):
    """A smooth picture that differs with the name and the seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng([seed, *path.stem.encode()])
    small = generator.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(small).resize(size).save(path)
    return path


def carried(path):
    """The text that a picture, jpg or png, carries."""
    with Image.open(path) as image:
        return image.info.get("Subject") or image.info["comment"].decode()
