"""A small U-Net that tells which shape each pixel belongs to: Image/shapes_unet.keras and .txt.

python tests/shapes_unet.py Image    trains it anew, in some minutes on two cores
"""

import copy
import sys
import zipfile
from pathlib import Path

import numpy as np
from shapes import NAMES, background, draw

CLASSES = ["background", *NAMES]
WIDTHS = (8, 16, 32, 48)


def pixels_drawn(name, generator, centre, size, side):
    """Where a shape is drawn, bool (side, side): there black and white paper look the same."""
    papers = [np.full((side, side, 3), grey, np.uint8) for grey in (0, 255)]
    black, white = [draw(paper, name, copy.deepcopy(generator), centre, size) for paper in papers]
    return (black == white).all(axis=-1)


def scene(generator, side=96):
    """A picture of one to three shapes, uint8 (side, side, 3), and its classes, (side, side)."""
    picture, labels = background(generator, side), np.zeros((side, side), np.uint8)
    for _ in range(generator.integers(1, 4)):
        name = NAMES[generator.integers(len(NAMES))]
        size = generator.uniform(0.1, 0.25) * side
        centre = generator.uniform(size, side - size, 2)
        labels[pixels_drawn(name, generator, centre, size, side)] = CLASSES.index(name)
        picture = draw(picture, name, generator, centre, size)
    return picture, labels


def scenes(count, seed):
    """Pictures, uint8 (count, side, side, 3), and their classes, (count, side, side)."""
    generator = np.random.default_rng(seed)
    pairs = [scene(generator) for _ in range(count)]
    return tuple(map(np.stack, zip(*pairs, strict=True)))


def unet():
    """From pixels (0 to 255) to a softmax over the classes of every pixel."""
    import keras
    from keras import layers

    def block(x, width, name, count=2):
        for number in range(1, count + 1):
            x = layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"{name}_{number}")(x)
            x = layers.BatchNormalization(momentum=0.9)(x)
            x = layers.ReLU(name=f"{name}_relu{number}")(x)
        return x

    image = keras.Input((96, 96, 3))
    x, skips = layers.Rescaling(1 / 127.5, -1)(image), []
    for number, width in enumerate(WIDTHS[:-1], 1):
        skips.append(block(x, width, f"down{number}"))
        x = layers.MaxPooling2D()(skips[-1])
    x = block(x, WIDTHS[-1], "bottom")
    for number, skip in reversed(list(enumerate(skips, 1))):
        x = layers.Concatenate()([layers.UpSampling2D()(x), skip])
        x = block(x, WIDTHS[number - 1], f"up{number}", 1)
    x = layers.Conv2D(len(CLASSES), 1, activation="softmax", name="classes")(x)
    return keras.Model(image, x, name="shapes_unet")


def train(epochs=8, count=6000, batch=32):
    """The U-Net, trained; the share of pixels that are right is printed."""
    import keras

    keras.utils.set_random_seed(0)
    model = unet()
    rate = keras.optimizers.schedules.CosineDecay(4e-3, epochs * (count // batch + 1))
    adam = keras.optimizers.Adam(rate)
    model.compile(adam, "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(*scenes(count, 0), batch, epochs, verbose=2, validation_data=scenes(300, 1))
    model.compile()  # without the optimizer's numbers the file is a third as large
    return model


def compress(path):
    """Compress the parts of a .keras file, which Keras stores as they are."""
    with zipfile.ZipFile(path) as stored:
        parts = {name: stored.read(name) for name in stored.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in parts.items():
            packed.writestr(name, data)


def main():
    folder = Path(sys.argv[1])
    train().save(folder / "shapes_unet.keras")
    compress(folder / "shapes_unet.keras")
    (folder / "shapes_unet.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
