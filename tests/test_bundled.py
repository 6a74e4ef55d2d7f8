"""The weights in the clone: VGG16's convolutions against facts of the published ones, and what the
scripts make of photographs of which everybody sees what they show."""

import functools
import re
from types import SimpleNamespace

import h5py
import keras
import numpy as np
import pytest
from runs import CAT_COFFEE, ROOT, read_options

import deconvnet_inceptionv3
import deconvnet_vgg
import gradcam_googlenet
import gradcam_vgg
import utils
from cnnvis import projections, vgg
from cnnvis.activations import inner_responses
from cnnvis.networks import open_network_for
from cnnvis.photos import find_photos

IMAGES = ROOT / "Image"
TABBY, EGYPTIAN, ESPRESSO = 281, 285, 967
FIRST_KERNEL, TOTAL = (
    [-0.237671, -0.375732, -0.041748],
    394441.3,
)  # of inception_v3_notop.weights.h5


@functools.cache
def vgg16():
    return gradcam_vgg.build("vgg16", "bundled")


def says(model, photo, preprocess="caffe"):
    """The probabilities of the classes of a photograph."""
    x = utils.preprocess_input(utils.load_image(IMAGES / photo), (224, 224), preprocess)
    return keras.ops.softmax(model(x))[0].numpy()


def test_convolutions_are_the_published_ones_to_half_precision():
    first, last = (vgg16().get_layer(f"block{name}") for name in ("1_conv1", "5_conv3"))
    kernel, bias = first.get_weights()
    facts = [
        (kernel[0, :, 0, 0], [0.42947, 0.37347, -0.06136]),
        (bias[:3], [0.73430, 0.09340, 0.06776]),
        (last.get_weights()[0][0, :, 0, 0], [0.00040788, 0.00030285, 0.0030907]),
        (last.get_weights()[1][:3], [0.18838, -0.50037, 0.54222]),
    ]
    for found, published in facts:
        np.testing.assert_allclose(found, published, rtol=1e-3)
    with h5py.File(vgg.CONVOLUTIONS) as file:
        kinds = []
        file.visititems(lambda _, each: kinds.append(getattr(each, "dtype", None)))
    assert kinds.count(np.float16) == 13 and sum(kind is not None for kind in kinds) >= 26


def test_the_published_convolutions_are_imagenet_s_where_no_classifier_is_asked_for(monkeypatch):
    """No download: `deconvnet_vgg.py` has them in the clone."""
    get_file = "keras.src.applications.vgg16.file_utils.get_file"
    monkeypatch.setattr(get_file, lambda *_, **__: pytest.fail("a download"))
    light = deconvnet_vgg.build("vgg16", False, "imagenet")
    for layer in light.layers[1:]:
        bundled = vgg16().get_layer(layer.name).get_weights()
        for found, expected in zip(layer.get_weights(), bundled, strict=True):
            np.testing.assert_array_equal(found, expected)
    assert len(light.weights) == 26


@pytest.mark.parametrize("script", ["vgg16", "googlenet"])
def test_the_classes_listed_are_those_that_the_weights_know(script):
    lines = (IMAGES / f"{script}_classes.txt").read_text(encoding="utf-8").splitlines()
    known = {int(index): name for index, name in (line.split(maxsplit=1) for line in lines)}
    model = vgg16() if script == "vgg16" else gradcam_googlenet.build("bundled")
    preprocess = "caffe" if script == "vgg16" else "tf"
    x = utils.preprocess_input(utils.load_image(CAT_COFFEE), (224, 224), preprocess)
    logits = model(x)[0].numpy()
    assert logits.shape == (1000,) and len(known) == {"vgg16": 200, "googlenet": 81}[script]
    assert sorted(set(range(1000)) - set(known)) == np.flatnonzero(logits == -20).tolist()
    names = utils.read_classes().names
    assert all(name == names[index] for index, name in known.items())


def test_a_cup_is_espresso_and_a_cat_a_tabby_or_an_egyptian_cat():
    assert says(vgg16(), "coffee.jpg")[ESPRESSO] > 0.95
    cat = says(vgg16(), "cat.jpg")
    assert cat.argmax() in (TABBY, EGYPTIAN) and cat[[TABBY, EGYPTIAN]].sum() > 0.9
    both = says(vgg16(), "cat_coffee.jpg")
    assert set(both.argsort()[-3:]) == {TABBY, EGYPTIAN, ESPRESSO}
    assert says(gradcam_googlenet.build("bundled"), "coffee.jpg", "tf").argmax() == ESPRESSO


def halves(cam):
    """Which shares of the positive heat lie on the left and on the right half."""
    heat = np.maximum(cam, 0)
    middle = heat.shape[1] // 2
    return heat[:, :middle].sum() / heat.sum(), heat[:, middle:].sum() / heat.sum()


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "hirescam", "layercam"])
def test_heat_lies_on_the_cat_and_on_the_cup(method):
    x = utils.preprocess_input(utils.load_image(CAT_COFFEE))
    classes, layer = [ESPRESSO, TABBY, EGYPTIAN], "block5_conv3"
    maps, logits = gradcam_vgg.grad_cam(vgg16(), x, [layer], classes, method)
    wanted = 0.9 if method == "gradcam" else 0.6  # of the others none promises as much
    for cam, side in zip(maps[layer], (1, 0, 0), strict=True):
        assert halves(cam)[side] > wanted
    np.testing.assert_allclose(logits, vgg16()(x)[0].numpy(), rtol=1e-4, atol=1e-4)


def test_no_kernel_of_the_nine_of_block3_is_strongest_on_the_border(run, monkeypatch):
    """Of all kernels several answer most to the black frame of zero padding: they are not drawn."""
    options = read_options(monkeypatch, "deconvnet_vgg")
    spec = deconvnet_vgg.vgg_spec("vgg16", include_top=False)
    network = open_network_for(options, spec, find_photos(options, ["Image/cat.jpg"]))
    at_border = []
    assert network.main_layer == "block3_conv3"
    for path in sorted(IMAGES.glob("*.jpg")):
        x = network.prepare(utils.load_image(path))
        maps = network.activations(network.main_layer, x)
        inner = inner_responses(maps, network.inner_cells(network.main_layer))
        kernels = options.kernels.among(inner)
        flat = maps.reshape(-1, maps.shape[-1])
        places = np.array(np.unravel_index(flat.argmax(0), maps.shape[:2]))
        border = (places % 55 == 0).any(axis=0)  # of 56 cells a side
        assert len(kernels) == 9 and not border[kernels].any(), path.name
        at_border += border[np.argsort(-flat.max(0))[:9]].tolist()
        strongest = deconvnet_vgg.deconvnet(network.model, x, network.main_layer, kernels[:1])[0]
        mass = np.abs(strongest).sum(axis=-1)
        y, x = [(where * mass).sum() / mass.sum() for where in np.indices(mass.shape)]
        row, column = 4 * places[:, kernels[0]] + 2  # a cell is 4 pixels wide
        assert np.hypot(y - row, x - column) < 15
    assert any(at_border)  # else the test could not fail


def test_a_patch_of_block5_holds_95_percent_of_the_projection(run):
    words = ["--figures", "projections", "--layers", "block5_conv3", "--kernels", "top1"]
    done = run("deconvnet_vgg", CAT_COFFEE, *words, "--arrays", "--mode", "max")
    arrays = done.arrays("cat_coffee_vgg16_projections")
    (projection,) = (each for key, each in arrays.items() if re.search(r"conv3/\d+$", key))
    mass = np.abs(projection).sum(-1, dtype=float)
    found = SimpleNamespace(values={"way": projection}, patch=())
    projections.cut_patches([found], "way")
    down, across = found.patch
    size = down.stop - down.start
    held = mass[down, across].sum() / mass.sum()
    assert size == across.stop - across.start and size < 200  # a part of 224 pixels
    assert held >= 0.95


@pytest.mark.parametrize("script", ["gradcam_vgg", "deconvnet_vgg"])
def test_vgg19_beside_bundled_weights_is_left_out_and_vgg16_drawn(run, script):
    figure = "one_class" if script == "gradcam_vgg" else "projections"
    words = ["--weights", "bundled", "--models", "vgg16,vgg19", "--figures", figure]
    done = run(script, CAT_COFFEE, *words, "--kernels", "top1")
    assert done.code == 0 and done.files() == {f"cat_coffee_vgg16_{figure}.jpg"}
    assert len(done.err) == 1 and "vgg19 is left out" in done.err[0]


def test_inceptionv3_s_bundled_kernels_are_those_of_the_file():
    """Facts taken once from the file: its first kernel and bias, and a sum over all weights."""
    model = deconvnet_inceptionv3.build(include_top=True, weights="bundled")
    assert model.output_shape[1:] == (8, 8, 2048) and len(model.weights) == 376
    first = model.get_layer("conv2d").get_weights()[0]
    np.testing.assert_allclose(first[0, :, 0, 0], FIRST_KERNEL, rtol=1e-3)
    total = sum(np.abs(each).sum(dtype=float) for each in model.get_weights())
    np.testing.assert_allclose(total, TOTAL, rtol=1e-4)
