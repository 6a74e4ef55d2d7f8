"""deconvnet_vgg.py over folders: which photographs excite a kernel most, by one process, several workers or devices,
against NumPy's ranking of the maps that Keras's `predict` gives; and the numbers behind the DeconvNet figures.

The network is a small one of Keras, saved as a person saves it. Photographs have just the size of its input, so that
nothing is resized, and `--preprocess unit` makes x = pixels / 255. `deconvnet` itself: test_deconvnet.py."""

import json
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import layers as kl
from PIL import Image

import deconvnet_vgg
import utils

SCRIPT, SIDES = Path(deconvnet_vgg.__file__), (40, 56)


def save(path, pixels):
    Image.fromarray(pixels).save(path)
    return path


def photo(seed, height=SIDES[0], width=SIDES[1]):
    """A smooth coloured picture with a few hard edges."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 200, (5, 7, 3), np.uint8))
    pixels = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))
    top, left = rng.integers(0, (height - 9, width - 9))
    pixels[top : top + 9, left : left + 9] = rng.integers(0, 256, 3)
    return pixels


def some(folder, *seeds):
    return [save(folder / f"q{seed}.png", photo(seed)) for seed in seeds]


def tensor(pixels):
    return pixels[None].astype(np.float32) / 255


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with net.keras and photographs/, 17 files, of which one is no photograph and two are the same."""
    folder = tmp_path_factory.mktemp("desk")
    inputs = keras.Input((*SIDES, 3))
    x = kl.MaxPooling2D()(kl.Conv2D(6, 3, padding="same", activation="relu", name="conv1")(inputs))
    x = kl.MaxPooling2D()(kl.Conv2D(12, 3, padding="same", activation="relu", name="conv2")(x))
    x = kl.Conv2D(10, 9, padding="same", activation="relu", name="conv3")(x)
    model = keras.Model(inputs, kl.Dense(4, activation="softmax")(kl.Flatten()(x)))
    rng = np.random.default_rng(1)
    for weight in model.weights:
        weight.assign(rng.normal(scale=(2 / np.prod(weight.shape[:-1])) ** 0.5, size=weight.shape))
    model.save(folder / "net.keras")
    (folder / "photographs").mkdir()
    photos = {f"p{number:02}": photo(min(number, 15)) for number in range(17)}
    for stem, pixels in photos.items():
        save(folder / "photographs" / f"{stem}.png", pixels)
    (folder / "photographs" / "p05.png").write_text("not a photograph")
    del photos["p05"]
    return SimpleNamespace(folder=folder, model=model, photos=photos)


def maps_of(desk, layer, *pictures):
    part = keras.Model(desk.model.inputs[0], desk.model.get_layer(layer).output)
    return part.predict(np.concatenate([tensor(pixels) for pixels in pictures]), verbose=0)


def back(desk, pixels, layer, kernel, mode="max", rule="deconvnet"):
    return deconvnet_vgg.deconvnet(desk.model, tensor(pixels), layer, [kernel], mode, rule)[0]


def read(path):
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def assert_same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def start(desk, output, program=(SCRIPT,), **env):
    arguments = [
        "photographs",
        "--weights",
        "net.keras",
        "--preprocess",
        "unit",
        "--arrays",
        "--output",
        output,
        "--figures",
        "top9",
        "--layers",
        "conv2",
        "--mode",
        "max",
    ]
    return subprocess.Popen(
        [sys.executable, *program, *arguments],
        cwd=desk.folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | env,
    )


# --- the scan -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_process(desk):
    process = start(desk, "one")
    said, told = process.communicate(timeout=300)
    arrays = read(desk.folder / "one" / "photographs_net_top9.npz")
    return SimpleNamespace(code=process.returncode, said=said, told=told, arrays=arrays)


def test_a_run_over_a_folder_draws_what_can_be_read_and_names_what_cannot(one_process):
    assert one_process.code == 1 and "Traceback" not in one_process.told
    assert [
        line.startswith("skipped: ") for line in one_process.told.splitlines() if "p05.png" in line
    ] == [True]
    assert one_process.said.splitlines() == [
        f"one{os.sep}photographs_net_top9.{kind}" for kind in ("npz", "jpg")
    ]


def test_top9_are_the_nine_strongest_photographs_of_the_nine_strongest_kernels(desk, one_process):
    arrays, stems = one_process.arrays, list(desk.photos)
    peaks = maps_of(desk, "conv2", *desk.photos.values()).max((1, 2))  # (photographs, K)
    ranked = np.argsort(-peaks, axis=0, kind="stable")[
        :9
    ].T.tolist()  # stable: of equals the first, p15 before p16
    assert any({14, 15} <= set(best) for best in ranked)
    kernels = np.argsort(-peaks.max(0), kind="stable")[:9].tolist()
    assert {int(key.split("/")[2]) for key in arrays if key.endswith("/activations")} == set(
        kernels
    )
    for kernel in kernels:
        best = [stems[place] for place in ranked[kernel]]
        assert_same(arrays[f"net/conv2/{kernel}/activations"], peaks[ranked[kernel], kernel])
        stored = [key.split("/")[3] for key in arrays if key.startswith(f"net/conv2/{kernel}/")]
        assert [stem for stem in stored if stem != "activations"] == best
        stem = best[kernel % 9]
        assert_same(
            arrays[f"net/conv2/{kernel}/{stem}"], back(desk, desk.photos[stem], "conv2", kernel)
        )
        np.testing.assert_allclose(
            arrays[f"net/input/{stem}"], tensor(desk.photos[stem]), rtol=1e-6
        )


def assert_same_arrays(desk, output, one_process):
    found = read(desk.folder / output / "photographs_net_top9.npz")
    assert list(found) == list(one_process.arrays)
    for key, values in found.items():
        assert_same(values, one_process.arrays[key])


def test_two_workers_find_what_one_process_finds_and_the_first_draws(desk, one_process):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    [each.close() for each in sockets]
    workers = [
        start(
            desk,
            "two",
            TF_CONFIG=json.dumps(
                {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            ),
        )
        for index in range(2)
    ]
    try:
        (said, told), (said_second, told_second) = [
            worker.communicate(timeout=240) for worker in workers
        ]
    finally:
        [worker.kill() for worker in workers]
    # Each worker reads every second photograph: the second one had the fifth, which cannot be read, to tell of.
    assert [worker.returncode for worker in workers] == [0, 1], told + told_second
    assert "p05.png" in told_second and "p05.png" not in told
    assert "photographs_net_top9.npz" in said and not said_second
    assert_same_arrays(desk, "two", one_process)


def test_two_devices_of_a_machine_find_what_one_finds(desk, one_process):
    """The last batch of the folder is a single photograph: the second device has nothing to do then."""
    program = """import os, runpy, sys, tensorflow as tf
cpu, device = tf.config.list_physical_devices("CPU")[0], tf.device
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
tf.device = lambda name: print("works on", name, file=sys.stderr) or device(name)
sys.argv.pop(0)
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")"""
    process = start(desk, "devices", ["-c", program, SCRIPT])
    _, told = process.communicate(timeout=300)
    assert process.returncode == 1 and "works on /device:CPU:1" in told, told
    assert_same_arrays(desk, "devices", one_process)


def test_read_ahead_keeps_the_order_and_names_what_cannot_be_read(tmp_path, capfd):
    paths = [
        save(tmp_path / f"{number}.png", np.full((2, 2, 3), number, np.uint8))
        for number in range(23)
    ]
    for number in (0, 9, 10):
        paths[number].write_bytes(b"")

    def prepare(pixels):
        time.sleep(
            random.random() / 50
        )  # which thread is the first to be done is a matter of chance
        return pixels[None]

    skipped, numbers = set(), [*range(0, 23, 3), 10, 1, 22]
    options = SimpleNamespace(images=paths, skipped=skipped)
    lists = list(
        deconvnet_vgg.read_ahead(options, SimpleNamespace(prepare=prepare), numbers, size=4)
    )
    found = [pair for some in lists for pair in some]
    assert [number for number, _ in found] == [
        number for number in numbers if number not in (0, 9, 10)
    ]
    assert all((x == number).all() and x.shape == (2, 2, 3) for number, x in found)
    assert max(map(len, lists)) == 4 and sorted(skipped) == sorted(
        paths[number] for number in (0, 9, 10)
    )
    assert all(str(path) in told for told in [capfd.readouterr().err] for path in skipped)


# --- the figures ----------------------------------------------------------------------------------------------------


@pytest.fixture
def draw(desk, tmp_path, monkeypatch):
    """Calls the script within this process: (exit code, the rows of its one page, its arrays)."""
    pages, lay_out = [], utils.lay_out
    monkeypatch.setattr(
        utils, "lay_out", lambda rows, *more: pages.append(rows) or lay_out(rows, *more)
    )
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(
            sys,
            "argv",
            [
                str(SCRIPT),
                "--weights",
                str(desk.folder / "net.keras"),
                "--preprocess",
                "unit",
                "--arrays",
                "--output",
                "out",
                *map(str, arguments),
            ],
        )
        code = deconvnet_vgg.main(utils.read_options(vars(deconvnet_vgg)))
        return code, pages[-1], read(sorted(Path("out").glob("*.npz"))[0])

    return call


def test_of_fewer_photographs_than_nine_top9_has_so_many_columns(draw, tmp_path):
    """The reddest photograph first: the kernel adds up what is red."""
    for red, left in (200, 1), (250, 30), (150, 15):
        pixels = np.zeros((*SIDES, 3), np.uint8)
        pixels[10:16, left : left + 6, 0] = red
        save(tmp_path / f"{left}.png", pixels)
    inputs = keras.Input((*SIDES, 3))
    conv = kl.Conv2D(2, 3, activation="relu", name="conv")
    model = keras.Model(inputs, kl.Dense(3)(kl.GlobalAveragePooling2D()(conv(inputs))))
    conv.set_weights([np.broadcast_to([[1, 0], [0, 1], [0, 1]], (3, 3, 3, 2)), np.zeros(2)])
    model.save(tmp_path / "red.keras")
    code, rows, arrays = draw(
        tmp_path, "--figures", "top9", "--kernels", "0", "--weights", tmp_path / "red.keras"
    )
    assert_same(arrays["red/conv/0/activations"], 9 * np.array([250, 200, 150]) / 255)
    (photographs, _), (projections, _) = sum(rows, [])
    side = photographs.shape[0]
    assert (
        photographs.shape == projections.shape == (side, 3 * side, 3) and code == 0
    )  # a row of three square patches
    assert photographs[side // 2, side // 2 :: side].tolist() == [
        [250, 0, 0],
        [200, 0, 0],
        [150, 0, 0],
    ]


def test_comparison_of_several_photographs_has_a_row_a_kernel_and_columns_a_photograph(
    desk, draw, tmp_path
):
    code, rows, arrays = draw(
        *some(tmp_path, 3, 4, 5, 6),
        "--figures",
        "comparison",
        "--layers",
        "conv2",
        "--kernels",
        "7,2",
        "--compared",
        "3",
        "--mode",
        "max",
    )
    assert code == 0 and [len(row) for row in rows] == [
        6,
        6,
    ]  # of each photograph its map and a projection
    assert set(arrays) == {
        f"net/{what}/q{seed}" for what in ("conv2/7", "conv2/2", "input") for seed in (3, 4, 5)
    }
    for kernel, seed in ((7, 3), (2, 5)):
        assert_same(arrays[f"net/conv2/{kernel}/q{seed}"], back(desk, photo(seed), "conv2", kernel))


def test_black_photographs_and_extreme_shapes_are_drawn(draw, tmp_path):
    """Where no map says anything, and where a strip is set beside a pillar."""
    for name, size in (("strip", (4, 200)), ("pillar", (200, 4))):
        save(tmp_path / f"{name}.png", np.zeros((*size, 3), np.uint8))
    code, rows, _ = draw(
        tmp_path / "strip.png",
        tmp_path / "pillar.png",
        "--figures",
        "projections,blocks,comparison",
    )
    assert code == 0 and {picture.shape[0] for picture, _ in rows[0]} == {60}


def test_comparison_leaves_out_a_photograph_that_cannot_be_read(draw, tmp_path):
    paths = some(tmp_path, 3, 4, 5)
    paths[1].write_text("not a photograph")
    code, rows, arrays = draw(
        *paths, "--figures", "comparison", "--layers", "conv2", "--kernels", "7"
    )
    assert code == 1 and len(rows[0]) == 4 and {"net/input/q3", "net/input/q5"} <= set(arrays)


def test_comparison_of_one_photograph_shows_four_ways(desk, draw, tmp_path):
    code, rows, arrays = draw(
        *some(tmp_path, 3), "--figures", "comparison", "--layers", "conv2", "--kernels", "7,2"
    )
    assert code == 0 and [len(row) for row in rows] == [5, 5]
    ways = {
        "": ("all", "deconvnet"),
        "/max": ("max", "deconvnet"),
        "/guided": ("all", "guided"),
        "/gradient": ("all", "gradient"),
    }  # what differs from --mode and the first of --rules is in the key
    assert set(arrays) == {
        "net/input",
        *(f"net/conv2/{kernel}{way}" for kernel in (7, 2) for way in ways),
    }
    for key, way in ways.items():
        assert_same(arrays[f"net/conv2/2{key}"], back(desk, photo(3), "conv2", 2, *way))


def test_projections_are_deconvnet_s_in_both_modes_by_each_rule(desk, draw, tmp_path):
    kernels = np.argsort(-maps_of(desk, "conv1", photo(3))[0].max((0, 1)), kind="stable")[:9]
    code, rows, arrays = draw(
        *some(tmp_path, 3),
        "--figures",
        "projections",
        "--layers",
        "conv1",
        "--mode",
        "max",
        "--rules",
        "deconvnet,guided",
    )
    ways = {
        "": ("max", "deconvnet"),
        "/guided": ("max", "guided"),
        "/all": ("all", "deconvnet"),
        "/all/guided": ("all", "guided"),
    }
    assert set(arrays) == {
        "net/input",
        *(f"net/conv1/{kernel}{way}" for kernel in kernels for way in ways),
    }
    for key, way in ways.items():
        assert_same(
            arrays[f"net/conv1/{kernels[1]}{key}"], back(desk, photo(3), "conv1", kernels[1], *way)
        )
    # The map; by each rule the whole map, the strongest position and its patch; the patch of the photograph.
    assert [len(row) for row in rows] == [8] * len(kernels) and code == 0


def test_no_patch_where_the_receptive_field_is_most_of_the_photograph(desk, draw, tmp_path):
    code, rows, _ = draw(*some(tmp_path, 3), "--figures", "projections", "--layers", "conv3")
    assert code == 0 and [len(row) for row in rows] == [3] * 9


@pytest.mark.parametrize("height, width", [(60, 120), (150, 70)])
def test_blocks_are_nine_whole_maps_of_each_block_at_the_photograph_s_proportions(
    desk, draw, tmp_path, height, width
):
    code, rows, arrays = draw(
        save(tmp_path / "p.png", photo(3, height, width)),
        "--figures",
        "blocks",
        "--rules",
        "guided,gradient",
    )
    x = arrays.pop("net/input")
    assert code == 0 and [len(row) for row in rows] == [3, 3, 3]
    for layer, row in zip(("conv1", "conv2", "conv3"), rows):
        kernels = deconvnet_vgg.different(maps_of(desk, layer, x[0] * 255)[0])
        assert {key for key in arrays if layer in key} == {
            f"net/{layer}/{kernel}{rule}" for kernel in kernels for rule in ("", "/gradient")
        }
        for kernel in kernels[::4]:
            for key, rule in (("", "guided"), ("/gradient", "gradient")):
                assert_same(
                    arrays[f"net/{layer}/{kernel}{key}"],
                    back(desk, x[0] * 255, layer, kernel, "all", rule),
                )
        for picture, _ in row:  # three in a row, each in a frame of a pixel
            one = np.array(picture.shape[:2]) / (-(-len(kernels) // 3), 3) - 2
            assert one[1] / one[0] == pytest.approx(width / height, rel=0.05)


def test_occlusion_s_numbers_are_those_of_a_plain_loop(desk, draw, tmp_path):
    stride, patch, pixels = 12, 14, photo(3)  # 30 and 35 % of the shorter side, 40
    code, rows, arrays = draw(
        *some(tmp_path, 3),
        "--figures",
        "occlusion",
        "--stride",
        30,
        "--patch",
        35,
        "--classes",
        "2",
        "--layers",
        "conv2",
        "--kernels",
        "7",
    )
    assert code == 0 and [len(row) for row in rows] == [5]
    hidden = []
    for y in range(stride // 2, SIDES[0], stride):
        for x in range(stride // 2, SIDES[1], stride):
            top, left = y - patch // 2, x - patch // 2
            hidden.append(pixels.copy())
            hidden[-1][max(top, 0) : top + patch, max(left, 0) : left + patch] = 128
    shape, p = (
        (3, 5),
        desk.model.predict(np.concatenate([tensor(each) for each in hidden]), verbose=0),
    )
    assert_same(arrays["net/conv2/2/probability"], p[:, 2].reshape(shape))
    np.testing.assert_array_equal(arrays["net/most_probable"], p.argmax(1).reshape(shape))
    assert_same(
        arrays["net/conv2/7/response"],
        maps_of(desk, "conv2", *hidden)[..., 7].sum((1, 2)).reshape(shape),
    )
