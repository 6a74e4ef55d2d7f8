"""Image classifiers of keras_hub, whose layers --import makes known: skipped where it is absent.

Its preprocessor is no part of what is drawn."""

import numpy as np
import pytest
from helpers import error, noise, textbook

import gradcam_vgg
import utils

hub = pytest.importorskip("keras_hub")


def test_a_vgg_of_keras_hub(tmp_path):
    blocks = {"stackwise_num_repeats": [1, 1], "stackwise_num_filters": [4, 8]}
    backbone = hub.models.VGGBackbone(image_shape=(32, 32, 3), **blocks)
    pool = {"pooling": "avg", "pooling_hidden_dim": 16}
    model = hub.models.VGGImageClassifier(backbone, num_classes=3, activation="softmax", **pool)
    model.save(tmp_path / "hub.keras")
    utils.import_code("keras_hub")
    opened = utils.open_network(utils.load_saved(tmp_path / "hub.keras"))
    x = noise(1, 32, 32, 3)
    layer = list(utils.named_layers(opened))[-1]
    maps, logits = gradcam_vgg.grad_cam(opened, x, [layer], [0, 2])
    np.testing.assert_allclose(np.exp(logits) / np.exp(logits).sum(), model(x)[0], rtol=1e-4)
    for found, cam in zip(maps[layer], textbook(opened, x, layer, [0, 2])[0], strict=True):
        assert error(found, cam) < 1e-4
