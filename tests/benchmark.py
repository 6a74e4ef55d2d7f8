"""How fast: every ratio that README claims, measured on this machine, beside what other people's tools take.

    python tests/benchmark.py                          all of it, about 20 minutes on two cores
    python tests/benchmark.py --only gradcam,captum    the lines of these claims
    python tests/benchmark.py --json speed.json        where the numbers go (default: benchmark.json)

It prints one table, in Markdown, and writes one JSON file; tests/benchmark.json is that of the run whose numbers README
shows, and test_benchmark.py holds README to it. Each line names the call or command that was timed, ours
and the one it is held against. The peers are used where they are installed (`pip install tf-keras-vis`, `pip install
torch captum`) and named as absent where not.

How it measures: what is compared runs in one process, on the same photograph, both sides warm, in turns (one round
after the other, so that a busy moment of the machine meets both); the ratio is taken within each round, and its median
over the rounds is the line. «A pass» is a bare forward pass of the same VGG16 in a tf.function at 224x224, in the same
rounds. The weights are random, from seed 0, so that nothing need be downloaded: speed does not depend on them.
"""
import argparse
import contextlib
import functools
import importlib.metadata
import importlib.util
import inspect
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import utils  # noqa: E402

LAYERS = utils.vgg_network("vgg16").all  # the 13 convolutions
LAST = "block5_conv3"
BLOCKS = ["block1_conv2", "block2_conv2", "block3_conv3", "block4_conv3", "block5_conv3"]
CLASS = 285  # Egyptian cat
BATCH = inspect.signature(utils.strongest_photos).parameters["batch"].default  # what the scan takes at once
DOWN = "utils.ForwardPass(model, x).deconvnet"


class Line(NamedTuple):
    """A line of the table."""

    claim: str
    rounds: list  # the ratio, seconds or megabytes in each round; the table shows the median
    unit: str
    target: float | None  # what it should reach; None where nothing is promised
    ours: str  # the call or command that was timed
    against: str  # and what it is divided by, or what is subtracted
    least: bool = False  # True: the target is the least that will do; False: the most


# --- how it is measured -----------------------------------------------------------------------------------------------


def clock(call):
    """Seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def take_turns(rounds=5, warm=2, **calls):
    """Seconds of each call: {name: (rounds,)}. Two calls each to warm up, since utils.grad_cam traces at its second.

    In every round each call has its turn, a quick one as often as fits into a second; the median of these counts.
    """
    last = {name: [clock(call) for _ in range(warm)][-1] for name, call in calls.items()}
    seconds = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            seconds[name].append(np.median([clock(call) for _ in range(max(1, int(1 / last[name])))]))
    return {name: np.array(values) for name, values in seconds.items()}


def in_a_process(function, *arguments):
    """What a function of this file returns, called in a Python of its own."""
    code = f"import json, benchmark; print(json.dumps(benchmark.{function}(*{arguments!r})))"
    return json.loads(run_program("-c", code).splitlines()[-1])


def run_program(*words):
    """Run Python with these words; what it prints."""
    done = subprocess.run([sys.executable, *words], cwd=HERE, capture_output=True, text=True, check=False,
                          env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"})
    if done.returncode:
        raise RuntimeError(f"python {' '.join(words)} ended with {done.returncode}: {done.stderr}")
    return done.stdout


def same(ours, theirs):
    """How well two lists of arrays agree, in words: the largest difference, as a share of its array's largest value."""
    pairs = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in zip(ours, theirs, strict=True)]
    worst = max(np.abs(a - b).max() / np.abs(b).max() for a, b in pairs)
    return f"numbers agree within {worst:.0e}" if worst else "the same numbers, bit for bit"


def installed(name):
    return importlib.util.find_spec(name) is not None


def absent(claim, package):
    return Line(claim, [], "", None, "", f"absent: pip install {package}")


# --- what it is measured on -------------------------------------------------------------------------------------------


@functools.cache
def vgg16():
    return utils.build_vgg("vgg16", "random", 0)


@functools.cache
def photograph():
    """What the network is fed, float32 (1, 224, 224, 3)."""
    pixels = utils.read_photo(utils.HERE / "Image" / "hopper_coffee.jpg")
    return utils.network_input(pixels, 224, utils.import_keras().applications.vgg16.preprocess_input)


def bare_pass():
    """A call that takes one pass: the photograph through the whole of VGG16 in a tf.function."""
    import tensorflow as tf
    model, x = vgg16(), tf.constant(photograph())
    forward = tf.function(lambda x: model(x, training=False))
    return lambda: forward(x).numpy()


# --- Grad-CAM ---------------------------------------------------------------------------------------------------------


def textbook_grad_cam(model, x, layer, index):
    """The usual recipe, as in keras.io's example: a model and a tape for one layer. The map before its ReLU, (h, w)."""
    import keras
    import tensorflow as tf
    grad_model = keras.Model(model.input, [model.get_layer(layer).output, model.output])
    with tf.GradientTape() as tape:
        maps, scores = grad_model(x)
        score = scores[:, index]
    gradients = tape.gradient(score, maps)
    weights = tf.reduce_mean(gradients, axis=(0, 1, 2))
    return tf.squeeze(maps[0] @ weights[..., tf.newaxis]).numpy()


def gradcam():
    """All 13 layers of VGG16, one class: in passes, against the usual recipe, against tf-keras-vis."""
    model, x = vgg16(), photograph()
    calls = {"a_pass": bare_pass(), "ours": lambda: utils.grad_cam(model, x, LAYERS, [CLASS])[0],
             "textbook": lambda: [textbook_grad_cam(model, x, layer, CLASS) for layer in LAYERS]}
    if installed("tf_keras_vis"):
        from tf_keras_vis.gradcam import Gradcam
        from tf_keras_vis.utils.scores import CategoricalScore
        peer, score = Gradcam(model, clone=False), CategoricalScore(CLASS)
        calls["tf_keras_vis"] = lambda: [np.squeeze(peer(
            score, x, penultimate_layer=layer, seek_penultimate_conv_layer=False, expand_cam=False,
            normalize_cam=False)) for layer in LAYERS]
    seconds = take_turns(**calls)
    maps = [calls["ours"]()[layer][0] for layer in LAYERS]
    ours = f"utils.grad_cam(model, x, the 13 layers, [{CLASS}])"
    yield Line("Grad-CAM, 13 layers of VGG16, one class", seconds["ours"] / seconds["a_pass"], "passes", 2.4,
               ours, "tf.function(model)(x)")
    yield Line("the same, against the usual recipe", seconds["textbook"] / seconds["ours"], "times faster", 20,
               ours, "for each layer: keras.Model(model.input, [its output, model.output]), GradientTape, eager; "
               + same(maps, calls["textbook"]()), least=True)
    if "tf_keras_vis" not in calls:
        yield absent("the same, against tf-keras-vis", "tf-keras-vis")
        return
    yield Line("the same, against tf-keras-vis", seconds["tf_keras_vis"] / seconds["ours"], "times faster", None,
               ours, f"for each layer: Gradcam(model, clone=False)(CategoricalScore({CLASS}), x, "
               "penultimate_layer=layer, seek_penultimate_conv_layer=False, expand_cam=False, normalize_cam=False); "
               + same([np.maximum(map_, 0) for map_ in maps], calls["tf_keras_vis"]()))


def classes():
    """Ten classes at one layer against one."""
    model, x = vgg16(), photograph()
    ten = list(range(CLASS, CLASS + 10))
    seconds = take_turns(one=lambda: utils.grad_cam(model, x, [LAST], [CLASS]),
                         ten=lambda: utils.grad_cam(model, x, [LAST], ten))
    yield Line(f"Grad-CAM, ten classes at {LAST}", seconds["ten"] / seconds["one"], "times one class", 1.5,
               f'utils.grad_cam(model, x, ["{LAST}"], ten classes)', f'utils.grad_cam(model, x, ["{LAST}"], [{CLASS}])')


# --- DeconvNet --------------------------------------------------------------------------------------------------------


def deconvnet_clone(model, layer):
    """The network up to a layer, every ReLU replaced by one that rectifies the gradient: DeconvNet, the usual way."""
    import keras
    import tensorflow as tf

    @tf.custom_gradient
    def relu(x):
        return tf.nn.relu(x), tf.nn.relu

    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    for each in clone.layers:
        if getattr(each, "activation", None) is keras.activations.relu:
            each.activation = relu
    return keras.Model(clone.input, clone.get_layer(layer).output)


def taped_projections(network, x, kernels):
    """One eager forward pass under a persistent tape, and a way down for each kernel: (len(kernels), H, W, 3)."""
    import tensorflow as tf
    x = tf.constant(x)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        maps = network(x)
        strongest = [tf.reduce_max(maps[..., kernel]) for kernel in kernels]
    return np.concatenate([top * tape.gradient(top, x) for top in strongest])


def deconvnet():
    """Nine projections of block5_conv3: in passes, and against one eager persistent tape."""
    model, x = vgg16(), photograph()
    kernels, clone = utils.ForwardPass(model, x).strongest(LAST, 9), deconvnet_clone(model, LAST)
    calls = {"a_pass": bare_pass(), "ours": lambda: utils.deconvnet(model, x, LAST, kernels),
             "tape": lambda: taped_projections(clone, x, kernels)}
    seconds = take_turns(**calls)
    ours = f'utils.deconvnet(model, x, "{LAST}", nine kernels)'
    yield Line(f"DeconvNet, nine projections of {LAST}", seconds["ours"] / seconds["a_pass"], "passes", 11,
               ours, "tf.function(model)(x)")
    yield Line("the same, against one persistent tape", seconds["tape"] / seconds["ours"], "times faster", None,
               ours, "eagerly, in a clone whose relu is a tf.custom_gradient: one GradientTape(persistent=True), "
               "nine tape.gradient; " + same(calls["ours"](), calls["tape"]()))


def captum_seconds():
    """In torch, a VGG16 of the same shape: seconds of a forward pass, and of nine projections by Captum, one by one."""
    import torch
    from captum.attr import Deconvolution
    from torch import nn
    torch.manual_seed(0)
    features, width = [], 3
    for filters, count in zip((64, 128, 256, 512, 512), utils.VGG_BLOCKS["vgg16"]):
        for _ in range(count):
            features += [nn.Conv2d(width, filters, 3, padding=1), nn.ReLU()]  # not in place: Captum hooks them
            width = filters
        features.append(nn.MaxPool2d(2))
    classifier = [nn.Flatten(), nn.Linear(25088, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(),
                  nn.Linear(4096, 1000)]
    whole, up_to_last = nn.Sequential(*features, *classifier).eval(), nn.Sequential(*features[:-1]).eval()
    x = torch.from_numpy(photograph().transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        maps = up_to_last(x)[0].flatten(1)  # (K, h * w)
    kernels = maps.amax(1).topk(9).indices.tolist()
    targets = [(kernel, *divmod(int(maps[kernel].argmax()), 14)) for kernel in kernels]
    peer = Deconvolution(up_to_last)

    def a_pass():
        with torch.no_grad():
            whole(x)

    seconds = take_turns(a_pass=a_pass, nine=lambda: [peer.attribute(x, target=target) for target in targets])
    return {name: values.tolist() for name, values in seconds.items()}


def captum():
    """Nine projections by Captum in passes of its own torch, and in seconds against ours."""
    claims = f"the same by Captum, in torch's own passes ({LAST}, nine)", "the same, against Captum, in seconds"
    if not (installed("torch") and installed("captum")):
        yield from (absent(claim, "torch captum") for claim in claims)
        return
    model, x = vgg16(), photograph()
    kernels = utils.ForwardPass(model, x).strongest(LAST, 9)
    calls = {"ours": lambda: utils.deconvnet(model, x, LAST, kernels)}
    before = take_turns(**calls)["ours"]
    theirs = {name: np.array(values) for name, values in in_a_process("captum_seconds").items()}
    ours = np.median([*before, *take_turns(**calls)["ours"]])
    call = ("nine times captum.attr.Deconvolution(VGG16 to block5_conv3).attribute(x, target=(kernel, row, column)), "
            "in a process of its own")
    yield Line(claims[0], theirs["nine"] / theirs["a_pass"], "passes", None, "", f"{call}; torch's VGG16(x)")
    yield Line(claims[1], theirs["nine"] / ours, "times faster", None,
               f'utils.deconvnet(model, x, "{LAST}", nine kernels)', f"{call}; ours before and after")


def blocks():
    """The 45 projections of the figure blocks: cut to the receptive field, against the whole photograph."""
    model, x = vgg16(), photograph()

    def cut():
        seen = utils.ForwardPass(model, x)
        return [seen.deconvnet(layer, seen.strongest(layer, 9)) for layer in BLOCKS]

    def whole():
        with mock.patch.object(utils.Window, "area", property(lambda window: 1e12)):
            return cut()

    seconds = take_turns(cut=cut, whole=whole)
    yield Line("DeconvNet, the 45 projections of `blocks`, cut", seconds["cut"] / seconds["whole"], "of whole", 0.5,
               f"{DOWN}(layer, nine kernels) for the last layer of every block",
               "the same with utils.Window.area = 1e12, which forbids the cut; " + same(cut(), whole()))


# --- the scan of top9 -------------------------------------------------------------------------------------------------


def make_photographs(folder, count, seed=0):
    """Fill a folder with JPEGs of 500x375, cut at random from those in Image/; their paths."""
    generator, originals = np.random.default_rng(seed), sorted((utils.HERE / "Image").glob("*.jpg"))
    for number in range(count):
        pixels = utils.read_photo(originals[number % len(originals)])
        height, width = pixels.shape[:2]
        side = generator.uniform(0.5, 1) * min(height, width * 0.75)
        top, left = int(generator.uniform(0, height - side)), int(generator.uniform(0, width - side / 0.75))
        picture = utils.resize(pixels[top:top + int(side), left:left + int(side / 0.75)], 500, 375)
        utils.cv2.imwrite(str(folder / f"{number:04}.jpg"), picture[..., ::-1])
    return sorted(folder.glob("*.jpg"))


def prepare(pixels):
    return utils.network_input(pixels, 224, utils.import_keras().applications.vgg16.preprocess_input)


def scan(count=96):
    """Photographs a second of the scan against a bare forward pass to the same layer over tensors in memory."""
    keras, model = utils.import_keras(), vgg16()
    import tensorflow as tf
    network = keras.Model(model.input, model.get_layer(LAST).output)
    forward = tf.function(lambda x: network(x, training=False))
    with tempfile.TemporaryDirectory() as folder:
        paths = make_photographs(Path(folder), count)
        batches = [tf.constant(np.concatenate([prepare(utils.read_photo(path)) for path in paths[start:start + BATCH]]))
                   for start in range(0, count, BATCH)]
        seconds = take_turns(rounds=3, warm=1,
                             bare=lambda: [forward(batch).numpy() for batch in batches],
                             ours=lambda: utils.strongest_photos(model, LAST, paths, prepare))
    rate = count / np.median(seconds["ours"])
    yield Line(f"top9, photographs a second of the scan to {LAST} ({rate:.1f}/s)", seconds["bare"] / seconds["ours"],
               "of a bare pass", 0.85, f'utils.strongest_photos(model, "{LAST}", {count} JPEGs of 500x375, prepare)',
               f"tf.function(network to {LAST})(batch) over the same in memory, batches of {BATCH}", least=True)


def peak_of_a_scan(folder, count):
    """Megabytes that a process needs at its peak to scan the first so many photographs of a folder up to block1_conv1.

    Linux carries ru_maxrss over from the parent when a process is started; VmHWM begins anew.
    """
    keras = utils.import_keras()
    model = keras.applications.VGG16(weights=None, include_top=False, input_shape=(224, 224, 3))
    utils.strongest_photos(model, "block1_conv1", sorted(Path(folder).glob("*.jpg"))[:count], prepare)
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def memory(few=20, many=2000):
    """What a scan of 2000 photographs needs at its peak above one of 20."""
    with tempfile.TemporaryDirectory() as folder:
        make_photographs(Path(folder), many)
        more = [in_a_process("peak_of_a_scan", folder, many) - in_a_process("peak_of_a_scan", folder, few)
                for _ in range(3)]
    yield Line(f"top9, peak memory of {many} photographs above that of {few}", more, "MB", 100,
               f'utils.strongest_photos(VGG16, "block1_conv1" (the lightest layer), {many} JPEGs, prepare)',
               f"the same with {few}; each in a process of its own")


# --- whole runs -------------------------------------------------------------------------------------------------------


def building_seconds(script):
    """Seconds to build a script's network with random weights, TensorFlow imported."""
    utils.import_keras()
    if script == "deconvnet_vgg.py":
        return clock(lambda: utils.build_vgg("vgg16", "random", 0, classifier=False))
    import deconvnet_inceptionv3
    return clock(lambda: deconvnet_inceptionv3.build("random", 0, False))


def runs(rounds=3):
    """Whole runs of three scripts, seconds beyond importing TensorFlow and (DeconvNet) building the network."""
    commands = {"gradcam_googlenet.py --weights tiny": ("six figures", 10),
                "deconvnet_vgg.py --models vgg16 --figures blocks --weights random": ("45 projections", 10),
                "deconvnet_inceptionv3.py --figures blocks --weights random": ("99 projections", 18)}
    importing = ("-c", "import tensorflow, keras")
    run_program(*importing)
    for command, (what, target) in commands.items():
        script, *words = command.split()
        seconds, builds = [], script != "gradcam_googlenet.py"
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as folder:
                program = (str(HERE.parent / script), *words, "--output", folder)
                whole = clock(functools.partial(run_program, *program))
            imported = clock(lambda: run_program(*importing))
            seconds.append((whole, imported, in_a_process("building_seconds", script) if builds else 0))
        whole, imported, built = np.array(seconds).T
        less = f"less python -c 'import tensorflow, keras' ({np.median(imported):.1f} s)"
        less += f" and building the network ({np.median(built):.1f} s)" if builds else ""
        beyond = "beyond importing TensorFlow" + " and building the network" * builds
        yield Line(f"{script}, {what}, {beyond}", whole - imported - built, "s", target,
                   f"python {command} ({np.median(whole):.1f} s)", less)


def drawing():
    """Seconds to lay 29 tiles out and write them, and the same against computing 13 maps."""
    model, x = vgg16(), photograph()
    image = utils.fit(utils.read_photo(utils.HERE / "Image" / "cat.jpg"), utils.TILE)
    cams = utils.grad_cam(model, x, LAYERS, [CLASS])[0]
    jet = utils.colormap_number("jet")
    heats = {layer: utils.heat_map(cam[0], *image.shape[:2])[0] for layer, cam in cams.items()}
    tiles = [utils.Tile(utils.overlay(image, heat, jet), layer) for layer, heat in heats.items()]
    rows = utils.wrap((tiles * 3)[:29], 5)  # as many as both VGGs have convolutions
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(sys, "__stdout__", io.TextIOWrapper(io.BytesIO())):
        path = Path(folder) / "benchmark.jpg"
        seconds = take_turns(maps=lambda: utils.grad_cam(model, x, LAYERS, [CLASS]),
                             ours=lambda: utils.save_picture(path, rows, "heading", "note", jet))
    ours = "utils.save_picture(path, 29 tiles in rows of 5, heading, note, colour map)"
    yield Line("drawing a figure of 29 tiles", seconds["ours"], "s", 1, ours, "")
    yield Line("the same, against computing 13 maps of VGG16", seconds["ours"] / seconds["maps"], "times", 1,
               ours, f"utils.grad_cam(model, x, the 13 layers, [{CLASS}])")


# --- the table --------------------------------------------------------------------------------------------------------

CLAIMS = {function.__name__: function for function in
          (gradcam, classes, deconvnet, captum, blocks, scan, memory, runs, drawing)}


def surroundings():
    """What was measured where, for the JSON file."""
    found = {}
    for package in ("tensorflow", "keras", "numpy", "tf-keras-vis", "torch", "captum"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return {"python": platform.python_version(), "system": platform.platform(), "cores": os.cpu_count(),
            "packages": found,
            "weights": "random, seed 0 (the published ones cannot be had everywhere; speed does not depend on them)"}


def median(line):
    """The value of a Line; None where the peer is absent."""
    return float(np.median(line.rounds)) if len(line.rounds) else None


def summary(line):
    """The beginning of a Line's row, as README has it: claim, measured, aim."""
    value, measured, target = median(line), "", ""
    if value is not None:
        measured = f"{value:.3g} {line.unit}"
        if line.target is not None:
            reached = value >= line.target if line.least else value <= line.target
            target = f"{'≥' if line.least else '≤'} {line.target}{'' if reached else ', missed'}"
    return f"| {line.claim} | {measured} | {target} |"


def row(line):
    """A Line as a row of the table: its summary, and the calls."""
    ours = f"`{line.ours}`" if line.ours else ""
    return f"{summary(line)} {ours} | {line.against} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, default="benchmark.json", metavar="FILE", help="where the numbers go")
    parser.add_argument("--only", default=",".join(CLAIMS), metavar="WORD,...", help=f"of {','.join(CLAIMS)}")
    options = parser.parse_args()
    chosen = options.only.split(",")
    if not set(chosen) <= set(CLAIMS):
        parser.error(f"--only takes {', '.join(CLAIMS)}")
    about, lines = surroundings(), []
    print(f"Weights: {about['weights']}.", *(f"{name} {version}," for name, version in about["packages"].items()),
          f"{about['cores']} cores.\n")
    print("| claim | measured | aim | ours | against |\n|---|---|---|---|---|")
    try:
        for name in chosen:
            for line in CLAIMS[name]():
                lines.append(line)
                print(row(line), flush=True)
    finally:  # what has been measured is kept, whatever fails later
        numbers = [line._asdict() | {"rounds": list(line.rounds), "median": median(line)} for line in lines]
        options.json.write_text(json.dumps(about | {"lines": numbers}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
