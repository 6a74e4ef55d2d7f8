"""README's commands, run as they stand, with stand-ins for a reader's photographs and network."""

import re
import shlex
import shutil
import sys
from pathlib import Path

import keras
import pytest
from helpers import small
from PIL import Image
from runs import CAT, ROOT, call

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
LINES = re.findall(r"^python (.+)$", TEXT, re.MULTILINE) + re.findall(r"`python ([^`]+)`", TEXT)
COMMANDS = [line for line in dict.fromkeys(LINES) if re.match(r"(gradcam|deconvnet|tests)", line)]
LEFT_OUT = {  # patterns of commands that are not run, and why
    r"^gradcam_(vgg|resnet50)\.py photo\.jpg (--models|--figures)": "downloads weights",
    r"^gradcam_googlenet\.py (photo\.jpg|val/)": "downloads weights",
    r"^deconvnet_inceptionv3\.py photo\.jpg$": "downloads weights",
    r"--figures (trust|occlusion)": "takes a minute; other tests draw it with a small network",
    r"^tests/benchmark\.py": "takes forty minutes",
}


def is_left_out(command):
    return any(re.search(pattern, command) for pattern in LEFT_OUT)


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder as a reader has it: the clone's Image/, a photograph, photographs, a network."""
    folder = tmp_path_factory.mktemp("desk")
    for name in ("Image", "tests"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("photo.jpg", "photos/a.jpg", "my_photographs/a.jpg", "my_photographs/b.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.open(CAT).resize((160, 120)).save(folder / name)
    small("softmax", 3).save(folder / "mine.keras")
    (folder / "names.txt").write_text("cat\ncup\nrocket\n")
    return folder


def run_tool(desk, command, monkeypatch):
    """Run a file of tests/ as a script."""
    script, *words = shlex.split(command)
    monkeypatch.setattr(sys, "argv", [script, *words])
    monkeypatch.chdir(desk)
    monkeypatch.syspath_prepend(str(ROOT / "tests"))
    __import__(Path(script).stem).main()


@pytest.mark.parametrize("command", [each for each in COMMANDS if not is_left_out(each)])
def test_commands_run_as_they_stand(desk, command, monkeypatch):
    keras.utils.clear_session()
    if command.startswith("tests/"):
        run_tool(desk, command, monkeypatch)
        return
    if " val/ " in command:  # a reader's own folder
        for name in ("cat", "cup"):
            (desk / "val" / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(desk / "photo.jpg", desk / "val" / name / f"{name}.jpg")
    done = call(desk, command.replace(".py ", " ", 1))
    assert done.code == 0, done.err
    assert done.out
    if "val/" in command:
        shutil.rmtree(desk / "val")


def test_every_pattern_leaves_a_command_out():
    assert all(any(re.search(pattern, each) for each in COMMANDS) for pattern in LEFT_OUT)
    assert len(COMMANDS) > 25 and sum(map(is_left_out, COMMANDS)) < 11
