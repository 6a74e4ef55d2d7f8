"""A network of one's own, trained in a few minutes on drawn shapes: Image/shapes.keras, shapes.png.

python tests/shapes.py folder              trains it anew
python tests/shapes.py --known folder 9    draws a folder with known answers, 9 of each shape,
                                           each beside a smaller one of another kind
"""

import sys
from pathlib import Path

import cv2
import numpy as np

NAMES = ["disc", "cross", "triangle", "square"]
ARM = ((1, -0.2), (1, 0.2), (0.2, 0.2))
QUARTERS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # turns: cosine and sine
CORNERS = {  # of a shape of size 1 around (0, 0)
    "cross": [(x * a - y * b, x * b + y * a) for a, b in QUARTERS for x, y in ARM],
    "triangle": [(np.cos(angle), np.sin(angle)) for angle in np.arange(3) * 2 * np.pi / 3],
    "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
}


def background(generator, side):
    """Clouds of colour, uint8 (side, side, 3)."""
    clouds = np.zeros((side, side, 3))
    for cells, weight in ((2, 40), (5, 25), (12, 12), (40, 8)):
        noise = generator.normal(size=(cells, cells, 3))
        clouds += weight * cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)
    return np.uint8(np.clip(clouds + generator.uniform(60, 190, 3), 0, 255))


def draw(picture, name, generator, centre, size):
    """Draw a shape of any colour, turned by any angle."""
    colour, angle = generator.integers(0, 256, 3).tolist(), generator.uniform(0, 2 * np.pi)
    if name == "disc":
        middle, radius = np.int32(centre).tolist(), int(0.9 * size)
        return cv2.circle(picture, middle, radius, colour, -1, cv2.LINE_AA)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    corners = np.int32(centre + size * np.array(CORNERS[name]) @ turn)
    return cv2.fillPoly(picture, [corners], colour, cv2.LINE_AA)


def examples(count, seed, side=96):
    """Pictures of one shape each, uint8 (count, side, side, 3), and their numbers, (count,)."""
    generator = np.random.default_rng(seed)
    pictures, numbers = [], generator.integers(0, len(NAMES), count)
    for number in numbers:
        size = generator.uniform(0.12, 0.3) * side
        picture = background(generator, side)
        centre = generator.uniform(size, side - size, 2)
        pictures.append(draw(picture, NAMES[number], generator, centre, size))
    return np.stack(pictures), numbers


def train(epochs=8, count=12000):
    """A small CNN, from pixels (0 to 255) to probabilities, that tells the shapes apart."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    stack = [keras.Input((96, 96, 3)), layers.Rescaling(1 / 127.5, -1)]
    for block, width in enumerate((16, 32, 48, 64), 1):
        for number in (1, 2):
            name = f"{block}_{number}"
            conv = layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"conv{name}")
            norm = layers.BatchNormalization(momentum=0.9)
            stack += [conv, norm, layers.ReLU(name=f"relu{name}")]
        stack.append(layers.MaxPooling2D(name=f"pool{block}"))
    stack[-1:] = [layers.GlobalAveragePooling2D(), layers.Dense(4, activation="softmax")]
    model = keras.Sequential(stack, name="shapes")
    rate = keras.optimizers.schedules.CosineDecay(2e-3, epochs * (count // 128 + 1))
    adam = keras.optimizers.Adam(rate)
    model.compile(adam, "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(*examples(count, 0), 128, epochs, verbose=2, validation_data=examples(1000, 1))
    model.compile()  # without the optimizer's numbers the file is a third as large
    return model


def draw_folder(folder, count, wrong=0, distract=False, seed=9):
    """Photographs of a shape in sub-folders, `count` a class; distract: with a smaller other one.

    The first `wrong` of them lie in the next class's folder; returns their paths."""
    generator = np.random.default_rng(seed)
    misplaced = []
    for number in range(count * len(NAMES)):
        shape = number % len(NAMES)
        size = generator.uniform(16, 22)
        left, top = generator.uniform(size, 96 - size - 28 * distract), generator.uniform(26, 70)
        picture = draw(background(generator, 96), NAMES[shape], generator, (left, top), size)
        if distract:
            other = NAMES[(shape + generator.integers(1, 4)) % len(NAMES)]
            centre = (left + size + 14, top + generator.uniform(-12, 12))
            draw(picture, other, generator, centre, 11)
        lies_in = NAMES[(shape + (number < wrong)) % len(NAMES)]
        path = Path(folder) / lies_in / f"{NAMES[shape]}_{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), picture[..., ::-1])
        if number < wrong:
            misplaced.append(path)
    return misplaced


def main():
    if sys.argv[1] == "--known":
        draw_folder(sys.argv[2], int(sys.argv[3]), distract=True)
        return
    folder, generator = Path(sys.argv[1]), np.random.default_rng(5)
    train().save(folder / "shapes.keras")
    (folder / "shapes.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    picture = background(generator, 480)
    for name, centre in zip(NAMES, ((120, 120), (350, 130), (130, 350), (350, 350)), strict=True):
        draw(picture, name, generator, centre, 80)
    cv2.imwrite(str(folder / "shapes.png"), picture[..., ::-1])


if __name__ == "__main__":
    main()
