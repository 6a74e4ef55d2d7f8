"""Where a map lies: a disc, and a network with ResNet50's strides and paddings that finds it.

    python tests/disc.py FOLDER
    python gradcam_resnet50.py FOLDER/disc.png --weights FOLDER/disc.keras --preprocess none

It writes disc.png and disc.keras. The network is not trained: its first kernel is the disc's colour
less all others, what follows takes means, as far apart as in ResNet50.
"""

import sys
from pathlib import Path

import cv2
import numpy as np

RED = (230, 40, 40)


def photograph():
    """A red disc on blue, uint8 (448, 448, 3), RGB."""
    picture = np.full((448, 448, 3), (40, 60, 120), np.uint8)
    return cv2.circle(picture, (150, 270), 44, RED, -1, cv2.LINE_AA)


def network():
    """From pixels (0 to 255) to two logits: there is a disc, there is none."""
    import keras
    from keras import layers

    image = keras.Input((224, 224, 3))
    x = layers.Conv2D(1, 1, activation="relu", name="colour")(image)
    x = layers.ZeroPadding2D(3)(x)
    x = layers.Conv2D(1, 7, strides=2, use_bias=False)(x)
    x = layers.ZeroPadding2D(1)(x)
    x = layers.AveragePooling2D(3, strides=2)(x)
    for _ in range(3):  # as the blocks that make maps smaller: 1 x 1 kernels with stride 2
        x = layers.Conv2D(1, 3, padding="same", use_bias=False)(x)
        x = layers.Conv2D(1, 1, strides=2, use_bias=False, activation="relu")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, layers.Dense(2, use_bias=False)(x), name="disc")
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D):
            layer.kernel.assign(np.full(layer.kernel.shape, 1 / np.prod(layer.kernel_size)))
    colour = np.float32([1, -0.5, -0.5]).reshape(1, 1, 3, 1)
    model.get_layer("colour").set_weights([colour / 255, np.float32([-0.2])])
    model.layers[-1].set_weights([np.float32([[9, -9]])])
    return model


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / "disc.png"), photograph()[..., ::-1])
    network().save(folder / "disc.keras")


if __name__ == "__main__":
    main()
