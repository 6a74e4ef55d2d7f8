"""The scripts as a person runs them: what is typed, what lands on disk, what is said, exit codes.

A process of its own costs seconds for TensorFlow alone: there are few, the rest is called here,
mostly with a small network. Wrong words are tried where a trap stands in for TensorFlow."""

import functools
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers as kl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import Bbox
from PIL import Image
from runs import CAT, CAT_COFFEE, CHATTER, ROOT, carried, program, save_photo, start

from cnnvis import results

SIDE = 32
NAMES = [
    "ring",
    "disc",
    "the class whose name is by far the longest of all the five names in this list of labels",
    "Old_English_sheepdog,_bobtail_and_several_other_names_of_it_in_a_row",
    "nothing",  # for which nothing speaks
]
SAVED = "--weights mine.keras --labels names.txt"


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """A folder with a small network, which ends in softmax, and the names of its classes."""
    folder = tmp_path_factory.mktemp("networks")
    keras.utils.set_random_seed(0)
    image = keras.Input((SIDE, SIDE, 3))
    x = kl.Rescaling(1 / 255)(image)
    for number, width in enumerate((8, 12, 16), 1):
        conv = kl.Conv2D(width, 3, padding="same", activation="relu", name=f"conv{number}")
        x = kl.MaxPooling2D()(conv(x))
    model = keras.Model(image, kl.Dense(5, "softmax")(kl.Flatten()(x)))
    kernel, bias = model.layers[-1].get_weights()
    kernel[:, 4] = -0.1
    model.layers[-1].set_weights([4 * kernel, bias])
    model.save(folder / "mine.keras")
    (folder / "names.txt").write_text("\n".join(NAMES))
    return folder


@pytest.fixture
def run(run, networks):
    """Run a script in this process, in a folder with the network."""
    for path in networks.iterdir():
        Path(path.name).symlink_to(path)
    return run


IMPORTED = 99


@pytest.fixture
def trapped(tmp_path):
    """Run a script; it ends at once, with the code IMPORTED, where it imports TensorFlow."""
    for name in ("tensorflow", "keras"):
        (tmp_path / "trap" / name).mkdir(parents=True)
        code = f"import os\nos._exit({IMPORTED})\n"
        (tmp_path / "trap" / name / "__init__.py").write_text(code)
    (tmp_path / "cut.jpg").write_bytes(CAT.read_bytes()[:9000])
    trap = {"PYTHONPATH": str(tmp_path / "trap")}
    return functools.partial(program, cwd=tmp_path, **trap)


WRONG = {
    "gradcam_vgg --figures clases": "'clases'",
    "gradcam_resnet50 --classes crane": "134 or 517",
    "gradcam_googlenet cut.jpg": "cut.jpg",  # a single photograph
    "deconvnet_vgg --output cut.jpg": "cut.jpg",
    "deconvnet_inceptionv3 'nowhere/*.jpg'": "nowhere/*.jpg",
}


@pytest.mark.parametrize("words", WRONG)
def test_what_is_wrong_is_told_before_tensorflow_is_imported(trapped, words):
    begun = os.times()
    done = trapped(*words.split(" ", 1))
    ended = os.times()
    assert WRONG[words] in done.error()
    assert sum(ended[2:4]) - sum(begun[2:4]) < 2  # of children; one, on a quiet core


def test_right_words_reach_tensorflow_and_help_does_without(trapped):
    """The proof that the trap of the test above catches."""
    done = trapped("gradcam_vgg", CAT, "--classes 'Egyptian cat' --output out")
    assert (done.code, done.out, done.err) == (IMPORTED, [], [])
    done = trapped("deconvnet_vgg", "--help")
    assert (done.code, done.err) == (0, []) and "usage: deconvnet_vgg.py" in done.out[0]


VGG = {16: {}, 19: {}}  # {layer: side of its map}, by the papers
for number, most in ((16, 3), (19, 4)):
    for block, convolutions in enumerate((2, 2, most, most, most), 1):
        for conv in range(1, convolutions + 1):
            VGG[number][f"block{block}_conv{conv}"] = 448 >> block
GOOGLENET = {"Conv2d_1a_7x7": 112, "Conv2d_2b_1x1": 56, "Conv2d_2c_3x3": 56}
for stage, letters, side in ((3, "bc", 28), (4, "bcdef", 14), (5, "bc", 7)):
    GOOGLENET |= {f"Mixed_{stage}{letter}": side for letter in letters}
RESNET50 = {"conv1_relu": 112}
for stage, count in ((2, 3), (3, 4), (4, 6), (5, 3)):
    RESNET50 |= {f"conv{stage}_block{b}_out": 224 >> stage for b in range(1, count + 1)}
FIGURES = ["layers", "classes", "negative", "one_class", "kernels", "guided", "trust"]


def pictures(stem, *figures, endings=("jpg", "npz")):
    return {f"{stem}_{figure}.{ending}" for figure in figures for ending in endings}


def shapes(arrays):
    """{key: shape}, less figures' own; floats are float32, and finite, kernels' numbers ints."""
    found = {}
    for key, array in arrays.items():
        wanted = "i" if key.endswith("kernel_numbers") else "f"
        assert array.dtype.kind == wanted and np.isfinite(array).all(), key
        assert wanted == "i" or array.dtype == np.float32
        found[key] = array.shape
    return found


def test_the_first_command_of_a_person(tmp_path):
    """A process of its own, over the bundled weights: names, keys and silence."""
    figures = [*FIGURES[:-1], "overlay_967", "overlay_281"]  # trust takes a minute
    words = f"--weights bundled --models vgg16 --figures {','.join(FIGURES[:-1])},overlay --arrays"
    more = "--classes espresso,281 --kernels 511,0,7"
    done = program("gradcam_vgg", CAT_COFFEE, words, more, cwd=tmp_path)
    assert (done.code, done.err) == (0, [])
    assert done.files() == pictures("cat_coffee_vgg16", *figures)
    for name in pictures("", *figures, endings=["jpg"]):
        with Image.open(tmp_path / "results" / f"cat_coffee_vgg16{name}") as image:
            assert image.format == "JPEG" and np.ptp(np.asarray(image.convert("RGB"))) > 200
            assert ("overlay" in name) == (image.size == Image.open(CAT_COFFEE).size)
    last = "vgg16/block5_conv3"
    basic = {"vgg16/input": (1, 224, 224, 3), "vgg16/logits": (1000,), f"{last}/geometry": (2, 2)}
    one = basic | {f"{last}/967": (14, 14)}
    two = one | {f"{last}/281": (14, 14)}
    guided = two | {f"vgg16/guided/{index}": (224, 224, 3) for index in (967, 281)}
    kernels = basic | {f"{last}/kernels": (14, 14, 3), f"{last}/kernel_numbers": (3,)}
    wanted = {"classes": two, "negative": two, "one_class": one, "guided": guided}
    wanted |= {"overlay_967": one, "kernels": kernels}
    for figure, keys in wanted.items():
        found = shapes(done.arrays(f"cat_coffee_vgg16_{figure}"))
        assert {key: found.get(key) for key in keys} == keys, figure
        assert found.keys() - keys.keys() <= {"vgg16/logits"}
    stored = done.arrays("cat_coffee_vgg16_kernels")
    assert stored[f"{last}/kernel_numbers"].tolist() == [511, 0, 7]
    # The whole photograph as VGG wants it: BGR less the mean.
    pixels = stored["vgg16/input"][0] + [103.939, 116.779, 123.68]
    photo = Image.open(CAT_COFFEE).convert("RGB").resize((224, 224), Image.Resampling.BOX)
    assert np.abs(pixels[..., ::-1] - np.asarray(photo, float)).mean() < 4


def layer_keys(network, layers, index):
    keys = {f"{network}/input": (1, 224, 224, 3), f"{network}/logits": (1000,)}
    for layer, side in layers.items():
        keys |= {f"{network}/{layer}/{index}": (side, side), f"{network}/{layer}/geometry": (2, 2)}
    return keys


def test_both_vggs_share_a_page_of_layers_and_no_other(run):
    words = (
        "--models vgg16,vgg19 --weights random --figures layers,one_class --classes 285 --arrays"
    )
    done = run("gradcam_vgg", CAT, words, "--figures layers,one_class")
    assert (done.code, done.err) == (0, [])
    assert done.files() == pictures("cat", "vgg_layers", "vgg16_one_class", "vgg19_one_class")
    wanted = layer_keys("vgg16", VGG[16], 285) | layer_keys("vgg19", VGG[19], 285)
    assert shapes(done.arrays("cat_vgg_layers")) == wanted
    assert "vgg19/block5_conv4/285" in done.arrays("cat_vgg19_one_class")


def test_googlenet_and_resnet50_draw_their_layers(run):
    done = run("gradcam_googlenet", CAT, "--weights bundled --figures layers --arrays")
    found = done.arrays("cat_googlenet_layers")
    wanted = layer_keys("googlenet", GOOGLENET, found["googlenet/logits"].argmax())
    assert (done.code, done.err, shapes(found)) == (0, [], wanted)
    words = "--weights random --figures layers --classes 7 --arrays --seed 3 --format png"
    done = run("gradcam_resnet50", CAT, words, "--output deep/folder")
    assert done.code == 0
    assert done.files("deep/folder") == pictures("cat_resnet50", "layers", endings=("png", "npz"))
    found = done.arrays("cat_resnet50_layers", "deep/folder")
    assert shapes(found) == layer_keys("resnet50", RESNET50, 7)


def test_a_folder_is_drawn_but_for_what_cannot_be_read(run):
    for name in ("photos/p1.png", "photos/p2.png", "photos/sub/P2.png"):
        save_photo(Path(name))
    Path("photos/cut.jpg").write_bytes(CAT.read_bytes()[:9000])
    Path("photos/a phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    words = f"photos --figures {','.join(FIGURES)},overlay --arrays --classes ring,nothing"
    done = run("gradcam_vgg", words, SAVED)
    figures = [*FIGURES, "overlay_0", "overlay_4"]
    stems = [f"{stem}_mine" for stem in ("p1", "p2", "sub_p2_png")]
    assert done.code == 1
    assert done.files() == set().union(*[pictures(stem, *figures) for stem in stems])
    for unreadable in ("cut.jpg", "a phone.heic"):
        assert len([line for line in done.err if unreadable in line]) == 1
    assert "3 drawn, 0 there already, 2 unreadable" in done.err[-1]
    # An overlay bears no words: that nothing speaks for a class, stderr says. And once, how the
    # network wants its pixels.
    assert len([line for line in done.err if "no positive evidence for nothing" in line]) == 3
    assert len([line for line in done.err if "--preprocess none" in line]) == 1
    keys = done.arrays("sub_p2_png_mine_layers").keys()
    drawn = {key.split("/")[1] for key in keys if key.endswith("/0")}
    assert drawn == {"conv1", "conv2", "conv3"}
    for path in Path("photos").rglob("*.png"):
        path.write_bytes(b"broken")
    done = run("gradcam_vgg photos --output none", SAVED)
    assert (done.code, done.out) == (2, [])


def test_deconvnet_draws_from_the_clone(run):
    """What draws fewer layers is drawn with small networks."""
    words = "--weights bundled --figures blocks,occlusion --kernels top1 --stride 50 --arrays"
    done = run("deconvnet_vgg", CAT_COFFEE, words)
    assert (done.code, done.err) == (0, [])
    assert done.files() == pictures("cat_coffee_vgg16", "blocks", "occlusion")
    blocks = done.arrays("cat_coffee_vgg16_blocks")
    drawn = [key.split("/")[1] for key in blocks if re.search(r"/\d+$", key)]
    last = ["block1_conv2", "block2_conv2", "block3_conv3", "block4_conv3", "block5_conv3"]
    assert sorted(drawn) == sorted(last * 9)
    assert {blocks[key].shape for key in blocks if re.search(r"/\d+$", key)} == {(224, 224, 3)}


AGAIN = [("ring,disc", "pdf"), ("top4", "jpg"), ("disc,top3", "png")]


@pytest.mark.parametrize("classes, ending", AGAIN)
def test_skip_existing_leaves_out_what_is_whole_and_draws_the_rest(run, classes, ending):
    """Fault 1: overlays are files a class, and which classes, only the logits say."""
    for number in range(3):
        save_photo(Path(f"photos/q{number}.png"))
    again = f"{SAVED} --classes {classes} --figures classes,overlay --skip-existing"
    again += f" --format {ending}"
    first = run("gradcam_vgg photos", again)
    count = {"ring,disc": 2, "top4": 4}.get(classes, len(first.out) // 3 - 1)
    assert len(first.out) == 3 * (1 + count) and 2 <= count <= 4
    second = run("gradcam_vgg photos", again)
    assert second.out == [] and "0 drawn, 3 there already" in second.err[-1]
    single = run("gradcam_vgg photos/q0.png", again)
    assert single.out == [] and "1 there already" in single.err[-1]
    gone = next(line for line in first.out if "/q1_mine_overlay" in line)
    Path(gone).unlink()
    save_photo(Path("photos/q2.png"), seed=1)
    third = run("gradcam_vgg photos", again)
    assert gone in third.out and "2 drawn, 1 there already" in third.err[-1]
    assert not [line for line in third.out if "/q0" in line or "q1_mine_classes" in line]
    assert f"results/q2_mine_classes.{ending}" in third.out
    numbered = run("gradcam_vgg photos/q0.png --arrays", again)
    assert [line for line in numbered.out if line.endswith("q0_mine_classes.npz")]


@pytest.mark.parametrize("ending", ["jpg", "png", "pdf"])
def test_skip_existing_knows_boxes_pages_and_tables(run, ending):
    for name in ("ring/a", "ring/b", "disc/c", "nothing/d"):
        save_photo(Path(f"photos/{name}.png"))
    words = f"photos {SAVED} --figures boxes,failures,table --skip-existing --format {ending}"
    first = run("gradcam_vgg", words)
    assert first.code == 0 and len(first.out) >= 4 + 2
    assert run("gradcam_vgg", words).out == []
    os.utime("photos/ring/b.png", (1, 1))
    third = run("gradcam_vgg", words).out
    assert f"results/b_mine_boxes.{ending}" in third and "results/photos_mine_table.csv" in third


@pytest.mark.parametrize("script, ending", [("gradcam_vgg", "png"), ("deconvnet_vgg", "jpg")])
def test_a_picture_tells_what_it_was_drawn_with_but_no_folder(run, tmp_path, script, ending):
    """Fault 17, to the end: nothing that was typed with a folder is published with the picture."""
    photo = save_photo(tmp_path / "secret" / "cat.png")
    here = Path.cwd()
    words = f"--weights {here}/mine.keras --labels {here}/names.txt --output {here}/secret/out"
    figures = "kernels,overlay" if script == "gradcam_vgg" else "projections,comparison"
    more = f"--figures {figures} --classes ring --seed 7 --arrays --format {ending}"
    done = run(script, photo, words, more)
    about = [carried(path) for path in done.out if path.endswith(ending)]
    assert done.code == 0 and len(about) == 2
    for text in about:
        assert str(tmp_path) not in text and "secret" not in text
        settings = json.loads(text)
        assert (settings["script"], settings["seed"]) == (script, 7)
        assert settings["photographs"] == ["cat.png"] and settings["weights"] == "mine.keras"


UNKNOWN = {  # occlusion draws another layer
    "gradcam_resnet50 --weights random --layers conv5": r"mean (conv5_\w+,? ?)+\?",
    f"gradcam_vgg {SAVED} --kernels 16": "conv3 has kernels 0 to 15, not 16",
    f"gradcam_vgg {SAVED} --classes rign": "'rign'.*ring",
    f"deconvnet_vgg {SAVED} --layers conv2 --kernels 3-12": "0 to 11, not 12",
    "deconvnet_vgg --figures occlusion --kernels 512": "block5_conv3 has kernels 0 to 511",
    "deconvnet_vgg --figures projections --kernels 300": "block3_conv3 has kernels 0 to 255",
    "gradcam_vgg --classes tench": "tench.*Image/vgg16_classes.txt",
    "gradcam_vgg --models vgg19": "--models vgg16",
}


@pytest.mark.parametrize("words", UNKNOWN)
def test_a_wrong_layer_kernel_or_class_of_a_network_is_told(run, monkeypatch, words):
    monkeypatch.setattr("deconvnet_vgg.deconvnet", lambda *_: pytest.fail("it has begun"))
    weights = "" if "--weights" in words else "--weights bundled"
    line = run(words, CAT, weights).error()
    assert re.search(UNKNOWN[words], line), line


DOWNLOADED = {
    "vgg19": "deconvnet_vgg --models vgg19 --layers block3_conv3",
    "inception_v3": "deconvnet_inceptionv3 --layers mixed3",
}


@pytest.mark.parametrize("module", DOWNLOADED)
def test_without_a_connection_one_file_is_tried_and_that_named(run, monkeypatch, module):
    """Fault 2: the convolutions' file, which is a tenth of the whole network's."""
    tried = []

    def get_file(name, origin, *more, **how):
        tried.append(name)
        raise Exception(f"URL fetch failure on {origin}: None -- no route to host")

    monkeypatch.setattr(f"keras.src.applications.{module}.file_utils.get_file", get_file)
    line = run(DOWNLOADED[module], CAT, "--figures projections").error()
    assert len(tried) == 1 and "notop" in tried[0] and tried[0] in line


def loaded_by_keras(path, fit, resize):
    """What `model.predict` is fed of a folder's one photograph."""
    if resize == "nearest":
        (file,) = path.iterdir()
        return keras.utils.img_to_array(keras.utils.load_img(file, target_size=(SIDE, SIDE)))[None]
    how = {"image_size": (SIDE, SIDE), "crop_to_aspect_ratio": fit == "crop", "verbose": False}
    data = keras.utils.image_dataset_from_directory(path, labels=None, **how)
    return np.concatenate(list(data.as_numpy_iterator()))


@pytest.mark.parametrize("how", ["squeeze bilinear", "crop bilinear", "squeeze nearest"])
@pytest.mark.parametrize("size", [(117, 61), (43, 99), (20, 27)])
def test_probabilities_are_those_of_what_keras_s_own_loaders_load(run, how, size):
    fit, resize = how.split()
    path = save_photo(Path("training/photo.png"))
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    model = keras.saving.load_model("mine.keras")
    expected = model.predict(loaded_by_keras(path.parent, fit, resize), verbose=0)[0]
    found = {}
    for folder, more in (("ours", f"--fit {fit} --resize {resize}"), ("other", "")):
        words = f"{SAVED} --figures one_class --arrays --output {folder}"
        done = run("gradcam_vgg", path, words, more)
        logits = done.arrays("photo_mine_one_class", folder)["mine/logits"]
        found[folder] = keras.ops.softmax(logits).numpy()
    np.testing.assert_allclose(found["ours"], expected, rtol=0, atol=1e-4)
    assert np.abs(found["other"] - expected).max() > 5e-4  # another interpolation will not do


@pytest.fixture
def many(tmp_path, networks):
    for number in range(60):
        save_photo(tmp_path / "many" / f"{number:02}.jpg", size=(1200, 800))
    words = f"many --weights {networks}/mine.keras --figures classes"
    return functools.partial(start, "gradcam_vgg", words, cwd=tmp_path)


def assert_whole(folder):
    """Only whole pictures stand under a name; how many."""
    paths = [path for path in folder.iterdir() if not path.name.startswith(".")]
    for path in paths:
        with Image.open(path) as image:
            image.load()
    return len(paths)


def test_ctrl_c_is_130_and_leaves_whole_files(many, tmp_path, listening):
    with many() as process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert not [line for line in err.splitlines() if "rror" in line or CHATTER.search(line)]
    assert 1 <= assert_whole(tmp_path / "results") < 60
    assert not [*(tmp_path / "results").glob(".*")]


def test_a_reader_that_goes_away_is_no_traceback(many, tmp_path):
    with many() as process:
        process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 0 and err.count("cannot be written to stdout") == 1
    assert not CHATTER.search(err) and assert_whole(tmp_path / "results") == 60


def test_every_text_stands_on_the_page_beside_all_others_and_all_pictures(run, monkeypatch):
    """On every page that two scripts lay out of a photograph with a long name."""
    pages, make_page = [], results.make_page
    photo = save_photo(Path(f"{'a photograph with a long name ' * 4}.png"))

    def keep(rows, *arguments):
        page = make_page(rows, *arguments)
        pages.append((page.figure(), rows))
        return page

    monkeypatch.setattr(results, "make_page", keep)
    words = f"'{photo}' {SAVED} --figures all --classes 2,3,4"
    assert run("gradcam_resnet50", words, "--fit crop").code == 0
    assert run("deconvnet_inceptionv3", words, "--scale 2 --stride 50").code == 0
    assert len(pages) >= 7 + 5
    for page, rows in pages:
        renderer = FigureCanvasAgg(page).get_renderer()
        texts = [text.get_window_extent(renderer) for text in page.texts if text.get_text()]
        extents = [np.take(each.get_extent(), [0, 2, 1, 3]) for each in page.images]
        images = [Bbox.from_extents(*extent) for extent in extents]
        assert len(texts) > 2 and len(images) >= sum(map(len, rows))
        for box in texts:
            assert box.x0 >= 0 and box.x1 <= page.bbox.width
            assert box.y0 >= 0 and box.y1 <= page.bbox.height
        pairs = [*itertools.combinations(texts, 2), *itertools.product(texts, images)]
        for first, second in pairs:
            across = min(first.x1, second.x1) - max(first.x0, second.x0)
            down = min(first.y1, second.y1) - max(first.y0, second.y0)
            assert across <= 1 or down <= 1, [text.get_text() for text in page.texts]
    tiles = [tile for _, rows in pages for row in rows for tile in row]
    boxed = [tile.picture[:, 0] for tile in tiles if "\nbox (" in tile.title]
    assert boxed and all(edge.max() <= 85 for edge in boxed)  # dimmed: beyond the crop
    titles = [tile.title for tile in tiles]
    cold = [title for title in titles if title.startswith(NAMES[4])]
    assert len(cold) >= 3 and all("no positive evidence" in title for title in cold)
    assert not [title for title in titles if NAMES[2] in title and "no positive" in title]


def test_the_readme_s_notebook_example_runs_as_it_stands(tmp_path):
    for path in ROOT.glob("[!.]*"):
        (tmp_path / path.name).symlink_to(path)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.search(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[1]
    env = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
