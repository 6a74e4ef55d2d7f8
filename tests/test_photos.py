"""Finding photographs and naming their results."""

import argparse
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cnnvis import photos
from utils import UserError

PATTERN = np.full((8, 8, 3), 90, np.uint8)


# --- folders and names ---


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Photographs, hidden ones, our own results and others of such names, where a person stands."""
    monkeypatch.chdir(tmp_path)
    names = """b/2.PNG a/z.Tiff a/deep/er/x.webp c.JPEG d.bmp e.gif f.HEIC d[1].png .hidden.jpg
        a/.git/y.jpg notes.txt jpg film.mp4 b/.2.png.part c_vgg16_one_class.jpg b/cake_layers.png
        c_mine_overlay_3.jpg photos_mine_failures_1.png c_vgg16_classes.npz my/Übel.2.PNG"""
    for name in map(Path, names.split()):
        name.parent.mkdir(parents=True, exist_ok=True)
        text = PngInfo()
        ours = "_" in name.name and name.stem != "cake_layers"
        text.add_text("Subject", '{"photographs": ["c.jpg"]}' if ours else "cake in layers")
        Image.fromarray(PATTERN).save(name, "png", pnginfo=text)
    Path("folder.jpg").mkdir()


def photos_of(*given):
    return photos.find_photos(
        argparse.Namespace(images=[*map(str, given)], as_stored=False, region=None), []
    )


FOUND = {  # what is typed: what is found, and what results are called, of each and of all
    "a": ("a/deep/er/x.webp a/z.Tiff", "x z", "a"),
    "my": ("my/Übel.2.PNG", "übel.2", "my"),
    "a/.git": ("a/.git/y.jpg", "y", ".git"),  # hidden ones are read when asked for
    "d.bmp b ./c.JPEG b/2.PNG d.bmp": (  # each once
        "d.bmp b/2.PNG b/cake_layers.png c.JPEG",
        "d 2 cake_layers c",
        "d_and_3_more_HEX",
    ),
    "b/[0-9]* ?.bmp": ("b/2.PNG d.bmp", "2 d", "2_and_1_more_HEX"),
    "**/*.webp": ("a/deep/er/x.webp", "x", "x"),
    "c_vgg16_one_class.jpg": ("c_vgg16_one_class.jpg", "c_vgg16_one_class", "c_vgg16_one_class"),
}


@pytest.mark.parametrize("given", FOUND)
def test_files_folders_and_patterns_are_found_and_named(tree, given):
    found_photos = photos_of(*given.split())
    found = " ".join(path.as_posix() for path in found_photos.paths)
    name = re.sub("_more_[0-9a-f]{6}$", "_more_HEX", found_photos.name)
    assert (found, " ".join(found_photos.stems.values()), name) == FOUND[given]
    assert photos_of(*given.split()).name == found_photos.name  # of the list alone


def test_the_name_of_several_photographs_is_a_function_of_the_list(tree):
    name = photos_of("d.bmp", "c.JPEG").name
    assert photos_of(Path("d.bmp").absolute(), "a/../c.JPEG").name == name
    Path("results").mkdir()
    Path("results", f"{name}_vgg16_classes.jpg").touch()
    Path("c.JPEG").write_bytes(Path("d.bmp").read_bytes())
    assert photos_of("d.bmp", "c.JPEG").name == name
    assert len({photos_of("d.bmp", each).name for each in ("c.JPEG", "e.gif", "b/2.PNG")}) == 3


def test_links_to_folders_are_followed_and_each_real_folder_is_read_once(tmp_path, monkeypatch):
    """A link that comes first in the alphabet does not take a folder's photographs away."""
    monkeypatch.chdir(tmp_path)
    for path in map(Path, ["all/cat/1.png", "all/dog/2.png", "elsewhere/fox/3.png"]):
        path.parent.mkdir(parents=True)
        Image.fromarray(PATTERN).save(path)
    Path("all/cat/again").symlink_to(tmp_path / "all/dog")
    Path("all/fox").symlink_to(tmp_path / "elsewhere/fox")
    Path("elsewhere/fox/loop").symlink_to(tmp_path / "all")
    Path("all/dog/gone.jpg").symlink_to(tmp_path / "nowhere")  # named when it is read
    found = photos_of("all")
    assert [path.as_posix() for path in found.paths] == [
        "all/cat/1.png",
        "all/dog/2.png",
        "all/dog/gone.jpg",
        "all/fox/3.png",
    ]
    assert found.subfolders == ["cat", "dog", "fox"]
    assert [*found.subfolder_of.values()] == ["cat", "dog", "dog", "fox"]


def test_a_single_photograph_is_decoded_once_and_a_broken_one_is_reported(tree, monkeypatch):
    decoded, load_image = [], photos.load_image
    monkeypatch.setattr(photos, "load_image", lambda *all: decoded.append(all) or load_image(*all))
    found = photos_of("d.bmp")
    assert [photo.image.shape for photo in [*found.readable(), *found.readable()]] == [
        (8, 8, 3)
    ] * 2
    assert len(decoded) == 1 and found.exit_code() == 0
    Path("c.JPEG").write_bytes(b"no photograph")
    with pytest.raises(UserError, match=r"c\.JPEG"):
        photos_of("c.JPEG")
    found = photos_of("c.JPEG", "d.bmp")
    assert [photo.stem for photo in found.readable()] == ["d"] and found.exit_code() == 1


def test_a_folder_s_own_results_are_known_by_what_they_carry_and_only_those_read(tree, monkeypatch):
    """Fault 6: a phone's name is like ours at first sight."""
    for name in ("IMG_20240101_123456.jpg", "b/my_photo_2.jpg"):
        Path(name).write_bytes(b"not read before its turn")
    opened, pillow_opens = [], Image.open

    def spy(path, *more, **how):
        opened.append(Path(path).name)
        return pillow_opens(path, *more, **how)

    monkeypatch.setattr(Image, "open", spy)
    found = [path.name for path in photos_of(".").paths]
    wanted = "IMG_20240101_123456.jpg x.webp z.Tiff 2.PNG cake_layers.png my_photo_2.jpg c.JPEG"
    assert found == [*wanted.split(), "d.bmp", "d[1].png", "e.gif", "f.HEIC", "Übel.2.PNG"]
    ours = {"c_vgg16_one_class.jpg", "c_mine_overlay_3.jpg", "photos_mine_failures_1.png"}
    assert set(opened) == {*ours, "my_photo_2.jpg"}


@pytest.mark.parametrize(
    "paths",
    [
        "a/cat.jpg b/cat.jpg",
        "cat.jpg cat.png",
        "x/a/cat.jpg y/a/cat.jpg z/a/cat.jpg",  # the folders' names are the same, too
        "a_cat_jpg.png a/cat.jpg b/cat.jpg",
        f"{'猫' * 60}a.jpg {'猫' * 60}b.jpg",  # a file name has 255 bytes at most
    ],
)
def test_no_two_photographs_share_a_name(paths):
    stems = photos.name_results([Path(path) for path in paths.split()])
    assert len(set(stems.values())) == len(paths.split())
    assert all(stem == stem.lower() and len(stem.encode()) < 200 for stem in stems.values())


@pytest.mark.parametrize("stored", [False, True])
def test_a_photograph_that_is_turned_is_reported_once(tmp_path, capsys, stored):
    exif = Image.Exif()
    exif[photos.ORIENTATION] = 6
    for name in "abc":
        more = {"exif": exif} if name > "a" else {}
        Image.fromarray(PATTERN).save(tmp_path / f"{name}.jpg", **more)
    found = photos.find_photos(
        argparse.Namespace(images=[str(tmp_path)], as_stored=stored, region=None), []
    )
    assert len(list(found.readable())) == 3
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (0 if stored else 1) and all("--as-stored" in line for line in lines)
