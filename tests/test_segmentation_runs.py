"""Runs on a segmentation network: every figure of a photograph, with or without mask; refusals."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import error, noise, shake, small, textbook
from keras import layers as kl
from PIL import Image
from runs import ROOT, save_photo
from shapes_unet import scenes
from test_segmentation import ENDS, conv, region_scores, unet

import cnnvis
from cnnvis.gradcam_figures import reinitialise
from cnnvis.graph import named_layers
from cnnvis.segmentation import layers_down_and_up
from gradcam_vgg import grad_cam


@pytest.fixture
def photo(tmp_path):
    model = shake(unet(ENDS["softmax"]))
    model.save(tmp_path / "unet.keras")
    mask = np.zeros((60, 120), np.uint8)
    mask[:30, 40:] = 1
    Image.fromarray(mask).save(tmp_path / "mask.png")
    layers = [np.full_like(mask, grey) for grey in (200, 0)]
    for name, layer in zip(("white", "black"), layers, strict=True):
        Image.fromarray(np.dstack([layer, 255 * mask])).save(tmp_path / f"{name}_brush.png")
    return save_photo(tmp_path / "photo.png")


@pytest.mark.parametrize("mask", ["", "--mask mask.png", "--mask white_brush.png"])
def test_every_figure_of_a_photograph(run, photo, mask):
    figures = "layers,classes,negative,one_class,kernels,guided,overlay,trust"
    words = f"{photo} --weights unet.keras {mask} --classes top2 --arrays --figures"
    done = run("gradcam_vgg", words, figures)
    assert done.code == 0 and len(done.files()) == 2 * 9, done.err
    found = done.arrays("photo_unet_classes")
    z = keras.saving.load_model("unet.keras")(found["unet/input"]).numpy()[0]
    region = np.ones(z.shape[:2], bool)
    if mask:
        region[:] = False
        region[:16, 16:] = True
    shares = [(z.argmax(-1) == index)[region].mean() for index in range(4)]
    np.testing.assert_allclose(found["unet/shares"], shares)
    top = np.argsort(shares)[::-1][:2]
    assert [key for key in found if "bottom/" in key][:2] == [f"unet/bottom/{i}" for i in top]


def test_of_several_photographs_those_of_another_size_than_the_mask_are_skipped(run, photo):
    other = save_photo(Path("other.png"), size=(50, 60))
    words = f"{other} {photo} --weights unet.keras --mask mask.png --figures overlay --classes 0"
    done = run("gradcam_vgg", words)
    assert (done.code, done.files()) == (1, {"photo_unet_overlay_0.jpg"})
    assert "skipped: --mask is 120 x 60 pixels, and other.png is 50 x 60" in done.err


def test_refusals_are_one_line(run, photo):
    Image.new("L", (120, 60)).save("black.png")
    Image.new("L", (60, 120), 255).save("turned.png")
    small().save("classifier.keras")
    refused = {
        "--weights unet.keras --mask none.png": "--mask: cannot read the photograph none.png",
        "--weights unet.keras --mask black.png": "--mask black.png is black",
        "--weights unet.keras --mask black_brush.png": "black_brush.png is black",
        "--weights unet.keras --mask turned.png": "--mask is 60 x 120 pixels.*is 120 x 60",
        "--weights classifier.keras --mask mask.png": "a mask is for segmentation networks",
        "--weights random --mask mask.png": "--mask is for a segmentation network",
        "--weights unet.keras --figures boxes,table": "segmentation network; boxes is left out",
        "--weights unet.keras --figures failures": "failures is left out: it is of one right",
    }
    for words, text in refused.items():
        assert re.search(text, run("gradcam_vgg", photo, words).error()), words


def test_an_encoder_of_several_outputs_is_inlined():
    """As in TensorFlow's tutorial, where MobileNetV2 returns what the way up takes."""
    image, photo = keras.Input((16, 24, 3)), keras.Input((16, 24, 3))
    down = conv(image, 4, "down1")
    encoder = keras.Model(image, [down, conv(kl.MaxPooling2D()(down), 6, "bottom")])
    skip, bottom = encoder(photo)
    joined = kl.Concatenate(name="joined")([kl.UpSampling2D()(bottom), skip])
    model = shake(keras.Model(photo, kl.Conv2D(3, 1)(conv(joined, 4, "up"))))
    opened, x = cnnvis.open_network(model), noise(1, 16, 24, 3)
    found = layers_down_and_up(opened, named_layers(opened))
    assert found == (["down1", "bottom", "up"], "bottom")
    maps, _ = grad_cam(opened, x, ["joined"], [0, 2])
    expected, _ = textbook(model, x, "joined", [0, 2], score=region_scores)
    assert error(maps["joined"], expected) < 1e-5


def test_the_bundled_network_tells_shapes_apart():
    path = ROOT / "Image" / "shapes_unet.keras"
    assert path.stat().st_size < 500_000
    pictures, classes = scenes(40, seed=3)
    model = keras.saving.load_model(path, compile=False)
    assert (model.predict(pictures, verbose=0).argmax(axis=-1) == classes).mean() > 0.98
    opened = cnnvis.open_network(model)
    hits = []
    for picture, truth in zip(pictures, classes, strict=True):
        index = int(truth.max())
        maps, _ = grad_cam(opened, np.float32(picture[None]), ["up3_relu1"], [index])
        y, x = np.unravel_index(maps["up3_relu1"][0].argmax(), (24, 24))
        hits.append((truth[4 * y : 4 * y + 4, 4 * x : 4 * x + 4] == index).any())
    assert np.mean(hits) > 0.8


def test_newly_drawn_weights_explain_the_same_pixels():
    opened = cnnvis.open_network(shake(unet(ENDS["softmax"])))
    x, regions = noise(1, *opened.input_shape[1:]), noise(4, 32, 48) > 0
    control = reinitialise(0, opened, regions)
    logits = keras.Model(control.inputs[0], control.layers[-1].input)(x)[0].numpy()
    expected = [logits[..., index][regions[index]].sum() for index in range(4)]
    np.testing.assert_allclose(control(x)[0], expected, rtol=1e-3)
    assert np.abs(control(x) - opened(x)).max() > 1e-3
