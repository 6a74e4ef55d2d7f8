"""What a person's own Keras settings and odd layers do to the pictures: nothing, or one line."""

import keras
import numpy as np
import pytest
from helpers import error, noise, small
from keras import layers as kl

import gradcam_vgg
import utils
from deconvnet_vgg import deconvnet


def everything(x):
    """Maps, guided backpropagation and projections of a network as it is built and opened now."""
    keras.utils.set_random_seed(1)
    model = utils.open_network(MODEL)
    layer = list(utils.named_layers(model))[-1]
    maps, logits = gradcam_vgg.grad_cam(model, x, [layer], [0, 1])
    guided = gradcam_vgg.guided_backprop(model, x, [1])
    return [maps[layer], logits, guided, deconvnet(model, x, layer, [0, 1], rule="guided")]


MODEL = small()


def test_half_precision_and_channels_first_do_not_leak_in():
    x = utils.network_input(np.uint8(255 * np.abs(noise(64, 64, 3)).clip(0, 1)), (64, 64), "tf")
    expected = everything(x)
    keras.config.set_floatx("float16")
    keras.config.set_image_data_format("channels_first")
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:
        found = everything(x)
        assert keras.config.floatx() == "float16"  # what the person chose stays
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_image_data_format("channels_last")
        keras.mixed_precision.set_dtype_policy("float32")
    for got, wanted in zip(found, expected, strict=True):
        assert got.dtype == np.float32 and error(got, wanted) < 1e-6


def test_a_layer_that_gives_another_shape_than_it_declares_is_named():
    stack = [keras.Input((64, 64, 3)), kl.RandomCrop(32, 32), kl.Conv2D(4, 3, name="conv")]
    model = keras.Sequential([*stack, kl.GlobalAveragePooling2D(), kl.Dense(2)])
    with pytest.raises(ValueError, match=r"conv declares maps of \(30, 30, 4\)"):
        utils.check_shapes(utils.open_network(model))
