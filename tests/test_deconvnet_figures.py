"""DeconvNet's figures by the numbers: which photographs of a folder excite a kernel most, against
NumPy's sorting of the feature maps that Keras's `predict` gives, and the arrays of each figure.

The network is a small one of Keras, saved in a file. Photographs have the size of its input, so
that nothing is resized, and `--preprocess unit` makes x = pixels / 255."""

import functools
import os
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import layers as kl
from PIL import Image
from runs import Stream

import deconvnet_vgg
from cnnvis import deconvnet_figures, results

SIDES = (40, 56)
# The cells of conv2 (2 pixels wide, with a field of 8) whose field has no padding in it.
INNER = (slice(None), slice(2, 18), slice(2, 26))


def photo(seed, height=SIDES[0], width=SIDES[1]):
    """A smooth coloured picture with a few hard edges."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 200, (5, 7, 3), np.uint8))
    pixels = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))
    top, left = rng.integers(0, (height - 9, width - 9))
    pixels[top : top + 9, left : left + 9] = rng.integers(0, 256, 3)
    return pixels


def some(*seeds):
    """Photographs in the current folder."""
    for seed in seeds:
        Image.fromarray(photo(seed)).save(f"q{seed}.png")
    return [f"q{seed}.png" for seed in seeds]


def tensor(*photos):
    return np.stack(photos).astype(np.float32) / 255


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A network, and the file that holds it."""
    inputs = keras.Input((*SIDES, 3))
    x = kl.MaxPooling2D()(kl.Conv2D(6, 3, padding="same", activation="relu", name="conv1")(inputs))
    x = kl.MaxPooling2D()(kl.Conv2D(12, 3, padding="same", activation="relu", name="conv2")(x))
    x = kl.Conv2D(10, 9, padding="same", activation="relu", name="conv3")(x)
    model = keras.Model(inputs, kl.Dense(4, activation="softmax")(kl.Flatten()(x)))
    rng = np.random.default_rng(1)
    for weight in model.weights:
        scale = (2 / np.prod(weight.shape[:-1])) ** 0.5
        weight.assign(rng.normal(scale=scale, size=weight.shape))
    path = tmp_path_factory.mktemp("net") / "net.keras"
    model.save(path)
    return SimpleNamespace(keras=model, path=path)


def maps_of(model, layer, *photos):
    part = keras.Model(model.keras.inputs[0], model.keras.get_layer(layer).output)
    return part.predict(tensor(*photos), verbose=0)


def back(model, pixels, layer, kernel, mode="max", rule="deconvnet"):
    x = tensor(pixels)
    return deconvnet_vgg.deconvnet(model.keras, x, layer, [kernel], mode, rule)[0]


def assert_same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.fixture
def draw(model, run, monkeypatch):
    """Draw a figure: (the Done of the run, the rows of its page, its arrays)."""
    drawn, make_page = [], results.make_page

    def keep(rows, *more):
        drawn.append(rows)
        return make_page(rows, *more)

    monkeypatch.setattr(results, "make_page", keep)
    words = ["--weights", model.path, "--preprocess", "unit", "--arrays"]
    run = functools.partial(run, "deconvnet_vgg", *words)

    def draw(figure, *more):
        done = run("--figures", figure, *more)
        return done, drawn[-1], done.arrays()

    draw.run = run
    return draw


def test_top9_are_the_nine_strongest_photographs_of_the_strongest_kernels(model, draw):
    """Of 17 files one is no photograph and two are the same; border cells do not count."""
    photos = {f"p{number:02}": photo(min(number, 15)) for number in range(17)}
    Path("photographs").mkdir()
    for stem, pixels in photos.items():
        Image.fromarray(pixels).save(f"photographs/{stem}.png")
    Path("photographs/p05.png").write_text("not a photograph")
    del photos["p05"]
    done, _, arrays = draw("top9", "photographs", "--layers", "conv2", "--mode", "max")
    assert done.code == 1
    assert done.files() == {"photographs_net_top9.npz", "photographs_net_top9.jpg"}
    assert [line[:9] for line in done.err if "p05.png" in line] == ["skipped: "]
    maps, stems = maps_of(model, "conv2", *photos.values()), list(photos)
    peaks = maps[INNER].max((1, 2))  # (photographs, K)
    ranked = np.argsort(-peaks, axis=0, kind="stable")[:9].T.tolist()  # of equals the first
    assert any({14, 15} <= set(best) for best in ranked)
    everywhere = np.argsort(-maps.max((1, 2)), axis=0, kind="stable")[:9].T.tolist()
    assert sum(best != others for best, others in zip(ranked, everywhere, strict=True)) > 1
    kernels = np.argsort(-peaks.max(0), kind="stable")[:9].tolist()
    kernels_stored = {int(key.split("/")[2]) for key in arrays if key.endswith("/activations")}
    assert kernels_stored == set(kernels)
    for kernel in kernels:
        excited = [place for place in ranked[kernel] if peaks[place, kernel] > 0]
        best = [stems[place] for place in excited or ranked[kernel][:1]]  # none: still a row
        assert_same(arrays[f"net/conv2/{kernel}/activations"], peaks[ranked[kernel], kernel])
        stored = [key.split("/")[3] for key in arrays if key.startswith(f"net/conv2/{kernel}/")]
        assert sorted(stored) == sorted(["activations", *best])
        stem = best[kernel % len(best)]
        pixels = photos[stem]
        assert_same(arrays[f"net/conv2/{kernel}/{stem}"], back(model, pixels, "conv2", kernel))
        np.testing.assert_allclose(arrays[f"net/input/{stem}"], tensor(pixels), rtol=1e-6)


def test_top9_of_other_photographs_never_overwrites(draw):
    """`top9 a b`, then `top9 a c`; a third run of the first finds its own again."""
    a, b, c = some(1, 2, 3)
    words = ["--kernels", "top2", "--layers", "conv2"]
    first, rows, _ = draw("top9", a, b, *words)
    for picture, _ in rows[0]:  # two square patches, of two photographs
        assert picture.shape[1] == 2 * picture.shape[0]
    second, _, _ = draw("top9", a, c, *words)
    assert not set(first.out) & set(second.out)
    skip = ["--figures", "comparison,top9", a, b, *words, "--skip-existing"]
    assert len(draw.run(*skip).out) == 2  # the comparison
    again = draw.run(*skip)
    existing = [f"net, {figure}: there already" for figure in ("comparison", "top9")]
    assert (again.out, again.err) == ([], existing)
    os.utime(b, (1, 1))  # another photograph under its name
    assert len(draw.run(*skip).out) == 4
    assert set(draw("top9", a, b, *words)[0].out) == set(first.out)
    inputs = set(second.arrays(Path(second.out[-1]).stem)) & {"net/input/q2", "net/input/q3"}
    assert inputs == {"net/input/q3"}


def test_top9_leaves_out_a_photograph_that_vanishes_after_the_scan(draw, monkeypatch):
    a, b = some(1, 2)

    def scan(*arguments, scan=deconvnet_figures.scan):
        top = scan(*arguments)
        os.remove(b)
        return top

    monkeypatch.setattr(deconvnet_figures, "scan", scan)
    done, rows, arrays = draw("top9", a, b, "--kernels", "top2", "--layers", "conv2")
    assert done.code == 1 and len(rows[0]) == 4 and "q2.png" in done.err[-1]
    assert "net/input/q1" in arrays and not [key for key in arrays if "q2" in key]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_on_a_terminal(draw, monkeypatch, terminal):
    """Over a scan and over the photographs of a folder, with the time; not in a log."""
    Path("many").mkdir()
    for seed in range(12):
        Image.fromarray(photo(seed)).save(f"many/{seed}.png")
    monkeypatch.setattr(Stream, "isatty", lambda _: terminal)
    done, _, _ = draw("projections,top9", "many", "--layers", "conv2", "--kernels", "0")
    assert done.code == 0 and len(done.out) == 2 * 13  # stdout stays the list of files
    steps = [line for line in done.err if "12/12" in line]
    assert len(steps) == (2 if terminal else 0)
    assert all("s" in line for line in steps)


def test_comparison_of_several_photographs(model, draw):
    """A row a kernel, a column a photograph; one that cannot be read is left out."""
    photos = some(3, 9, 4, 5, 6)
    Path("q9.png").write_text("not a photograph")
    words = ["--layers", "conv2", "--kernels", "7,2", "--compared", "3", "--mode", "max"]
    done, rows, arrays = draw("comparison", *photos, *words)
    assert done.code == 1 and [len(row) for row in rows] == [6, 6]  # a map and a projection each
    for stored in ("net/conv2/7", "net/conv2/2", "net/input"):
        assert {f"{stored}/q{seed}" for seed in (3, 4, 5)} < set(arrays)
    assert len(arrays) == 9
    for kernel, seed in ((7, 3), (2, 5)):
        expected = back(model, photo(seed), "conv2", kernel)
        assert_same(arrays[f"net/conv2/{kernel}/q{seed}"], expected)


def test_comparison_of_one_photograph_shows_four_ways(model, draw):
    """The same kernels' maps above and their projections below."""
    words = ["--layers", "conv2", "--kernels", "7,2,0"]
    done, rows, arrays = draw("comparison", *some(3), *words)
    assert done.code == 0 and [len(row) for row in rows] == [3] * 5
    ways = {"": ("all", "deconvnet"), "/max": ("max", "deconvnet")}  # if not options
    ways |= {"/guided": ("all", "guided"), "/gradient": ("all", "gradient")}
    kernels = {f"net/conv2/{kernel}{way}" for kernel in (7, 2, 0) for way in ways}
    assert set(arrays) == {"net/input", *kernels}
    for key, way in ways.items():
        assert_same(arrays[f"net/conv2/2{key}"], back(model, photo(3), "conv2", 2, *way))


def test_projections_are_deconvnet_s_in_both_modes_by_each_rule(model, draw):
    maps = maps_of(model, "conv2", photo(3))
    kernels = np.argsort(-maps[INNER][0].max((0, 1)), kind="stable")[:9]
    words = ["--layers", "conv2", "--mode", "max", "--rules", "deconvnet,guided"]
    done, rows, arrays = draw("projections", *some(3), *words)
    ways = {"": ("max", "deconvnet"), "/guided": ("max", "guided")}
    ways |= {"/all": ("all", "deconvnet"), "/all/guided": ("all", "guided")}
    wanted = {f"net/conv2/{kernel}{way}" for kernel in kernels for way in ways}
    assert set(arrays) == {"net/input", "net/conv2/geometry", *wanted}
    for key, way in ways.items():
        expected = back(model, photo(3), "conv2", kernels[1], *way)
        assert_same(arrays[f"net/conv2/{kernels[1]}{key}"], expected)
    # The map; by each rule the whole map, the strongest position, its patch; the photograph's.
    assert [len(row) for row in rows] == [8] * len(kernels) and done.code == 0
    patches = [tile.picture.shape for row in rows for tile in row[3::3]]
    assert all(height == width >= 100 for height, width, _ in patches)


@pytest.mark.parametrize("height, width", [(60, 120), (150, 70)])
def test_blocks_are_nine_whole_maps_of_each_block(model, draw, height, width):
    """At the photograph's proportions, three in a row, each in a frame of a pixel."""
    Image.fromarray(photo(3, height, width)).save("p.png")
    done, rows, arrays = draw("blocks", "p.png", "--rules", "guided,gradient", "--kernels", "99")
    pixels = arrays.pop("net/input")[0] * 255
    assert done.code == 0 and [len(row) for row in rows] == [3, 3, 3]
    for layer, row in zip(("conv1", "conv2", "conv3"), rows, strict=True):
        keys = [key for key in arrays if f"/{layer}/" in key and "geometry" not in key]
        kernels = {int(key.split("/")[2]) for key in keys}
        assert 5 <= len(kernels) <= 9 and len(keys) == 2 * len(kernels)
        kernel = min(kernels)
        for key, rule in (("", "guided"), ("/gradient", "gradient")):
            expected = back(model, pixels, layer, kernel, "all", rule)
            assert_same(arrays[f"net/{layer}/{kernel}{key}"], expected)
        for picture, _ in row:
            one = np.array(picture.shape[:2]) / (-(-len(kernels) // 3), 3) - 2
            assert one[1] / one[0] == pytest.approx(width / height, rel=0.05)


def test_black_photographs_and_extreme_shapes_are_drawn(draw):
    """Feature maps without any response, and very wide beside very high photographs."""
    for name, size in (("strip", (4, 200)), ("pillar", (200, 4))):
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(f"{name}.png")
    done, _, _ = draw("projections,blocks,comparison,top9", "strip.png", "pillar.png")
    assert done.code == 0 and len(done.out) == 2 * 6


def test_occlusion_s_numbers_are_those_of_a_plain_loop(model, draw):
    stride, patch, pixels = 12, 14, photo(3)  # 30 and 35 % of the shorter side, 40
    words = ["--classes", "2", "--layers", "conv2", "--kernels", "7"]
    done, rows, arrays = draw("occlusion", *some(3), "--stride", 30, "--patch", 35, *words)
    assert done.code == 0 and [len(row) for row in rows] == [5]
    occluded = []
    for y in range(stride // 2, SIDES[0], stride):
        for x in range(stride // 2, SIDES[1], stride):
            top, left = y - patch // 2, x - patch // 2
            picture = pixels.copy()
            picture[max(top, 0) : top + patch, max(left, 0) : left + patch] = 128
            occluded.append(picture)
    shape, p = (3, 5), model.keras.predict(tensor(*occluded), verbose=0)
    assert_same(arrays["net/conv2/2/probability"], p[:, 2].reshape(shape))
    np.testing.assert_array_equal(arrays["net/most_probable"], p.argmax(1).reshape(shape))
    responses = maps_of(model, "conv2", *occluded)[..., 7].sum((1, 2))
    assert_same(arrays["net/conv2/7/response"], responses.reshape(shape))
