"""What the two VGG scripts share about their networks: VGG16, VGG19 and the bundled weights.

The networks themselves are Keras's; how they are drawn is in the scripts."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from cnnvis.runtime import keras, log
from utils import IMAGE_FOLDER, UserError

CONVOLUTIONS = IMAGE_FOLDER / "vgg16_imagenet_notop.weights.h5"  # of VGG16, as published
CLASSIFIER = IMAGE_FOLDER / "vgg16_head_200_classes.npz"
KNOWN_CLASSES = IMAGE_FOLDER / "vgg16_classes.txt"
UNKNOWN_CLASS_LOGIT = -20  # of the classes that the bundled classifier does not know


def vgg_models(options: argparse.Namespace) -> list[str]:
    """The VGGs to draw: only one with --list-layers, with bundled weights or a saved network."""
    models = options.models
    if options.weights.word == "bundled":
        if "vgg16" not in models:
            raise UserError("bundled weights are VGG16's: give --models vgg16")
        if "vgg19" in models:
            log("bundled weights are VGG16's: vgg19 is left out")
        return ["vgg16"]
    return models[-1:] if options.weights.saved or options.list_layers else models


def bundled_vgg16() -> Any:
    """VGG16's published convolutions with a classifier of 200 of ImageNet's 1000 classes."""
    how = {"include_top": False, "pooling": "avg", "input_shape": (224, 224, 3)}
    base = keras.applications.VGG16(weights=CONVOLUTIONS, **how)
    classifier = keras.layers.Dense(1000, name="predictions")
    model = keras.Model(base.inputs[0], classifier(base.output), name="vgg16")
    kernel = np.zeros((512, 1000), np.float32)
    bias = np.full(1000, UNKNOWN_CLASS_LOGIT, np.float32)
    with np.load(CLASSIFIER, allow_pickle=False) as head:
        kernel[:, head["classes"]] = head["kernel"]
        bias[head["classes"]] = head["bias"]
    classifier.set_weights([kernel, bias])
    return model
