"""How fast: every ratio that README claims, measured on this machine, beside what other people's tools take.

    python tests/benchmark.py                          all of it, about 20 minutes on two cores
    python tests/benchmark.py --only gradcam,captum    the lines of these claims
    python tests/benchmark.py --json speed.json        where the numbers go (default: benchmark.json)

It prints one table, in Markdown, and writes one JSON file; tests/benchmark.json is that of the run whose numbers README
shows, and test_benchmark.py holds README to it. Each line names the call or command that was timed, ours and the one it
is held against. The peers are used where they are installed (tf-keras-vis; torch, captum, grad-cam) and named as absent
where not. Install them into a folder of their own (pip install --target) and put it on PYTHONPATH for this program:
Keras imports some of what they bring, scikit-learn for one, wherever it finds it, and so starts later.

What is compared runs in one process, on the same photograph, both sides warm, in turns (one round after the other, so
that a busy moment of the machine meets both); the ratio is taken within each round, and its median over the rounds is
the line. «A pass» is a bare forward pass of the same network in a tf.function, in the same rounds. Weights are
random, from seed 0, so that nothing need be downloaded: speed does not depend on them. Folders of photographs are
measured as people meet them, by the times at which a script's pictures appear.
"""

import argparse
import contextlib
import functools
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import utils  # noqa: E402

BLOCKS = ["block1_conv2", "block2_conv2", "block3_conv3", "block4_conv3", "block5_conv3"]
CONVOLUTIONS = (2, 2, 3, 3, 3)  # of VGG16's five blocks
LAYERS = [
    f"block{block}_conv{number}"
    for block, count in enumerate(CONVOLUTIONS, 1)
    for number in range(1, count + 1)
]
LAST = "block5_conv3"
CLASS = 285  # Egyptian cat


class Line(NamedTuple):
    """A line of the table."""

    claim: str
    rounds: list  # the ratio, seconds or megabytes in each round; the table shows the median
    unit: str
    target: float | None  # what it should reach; None where nothing is promised
    ours: str  # the call or command that was timed
    against: str  # and what it is divided by
    least: bool = False  # True: the target is the least that will do; False: the most


# --- how it is measured -----------------------------------------------------------------------------------------------


def clock(call):
    """Seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def take_turns(rounds=5, warm=2, **calls):
    """Seconds of each call: {name: (rounds,)}. Two calls each to warm up: the first one may be traced.

    In every round each call has its turn, a quick one as often as fits into a second; the median of these counts.
    """
    last = {name: [clock(call) for _ in range(warm)][-1] for name, call in calls.items()}
    seconds = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            seconds[name].append(
                np.median([clock(call) for _ in range(max(1, int(1 / last[name])))])
            )
    return {name: np.array(values) for name, values in seconds.items()}


def in_a_process(function, *arguments):
    """What a function of this file returns, called in a Python of its own."""
    code = f"import json, benchmark; print(json.dumps(benchmark.{function}(*{arguments!r})))"
    return json.loads(run_program("-c", code).splitlines()[-1])


def run_program(*words):
    """Run Python with these words; what it prints. A script runs without the peers on PYTHONPATH, as its users do."""
    env = (
        os.environ
        | {"TF_CPP_MIN_LOG_LEVEL": "3"}
        | ({} if words[0] == "-c" else {"PYTHONPATH": ""})
    )
    done = subprocess.run(
        [sys.executable, *words], cwd=HERE, capture_output=True, text=True, check=False, env=env
    )
    if done.returncode:
        raise RuntimeError(f"python {' '.join(words)} ended with {done.returncode}: {done.stderr}")
    return done.stdout


def same(ours, theirs):
    """How well two lists of arrays agree, in words: the largest difference, as a share of its array's largest value."""
    pairs = [
        (np.asarray(a, np.float64), np.asarray(b, np.float64))
        for a, b in zip(ours, theirs, strict=True)
    ]
    worst = max(np.abs(a - b).max() / (np.abs(b).max() or 1) for a, b in pairs)
    return f"numbers agree within {worst:.0e}" if worst else "the same numbers, bit for bit"


def installed(*names):
    return all(importlib.util.find_spec(name) for name in names)


def absent(claim, package):
    return Line(claim, [], "", None, "", f"absent: pip install {package}")


# --- what it is measured on -------------------------------------------------------------------------------------------


@functools.cache
def vgg16():
    import gradcam_vgg

    gradcam_vgg.keras.utils.set_random_seed(0)
    return gradcam_vgg.build("vgg16")


@functools.cache
def photograph(side=224, preprocess="caffe"):
    """What the network is fed, float32 (1, side, side, 3)."""
    return utils.network_input(
        utils.read_photo(HERE.parent / "Image" / "hopper_coffee.jpg"), (side, side), preprocess
    )


def bare_pass(model, x):
    """A call that takes one pass: the photograph through the whole network in a tf.function."""
    import tensorflow as tf

    x, forward = tf.constant(x), tf.function(lambda x: model(x, training=False))
    return lambda: forward(x).numpy()


# --- Grad-CAM ---------------------------------------------------------------------------------------------------------


def textbook_grad_cam(model, x, layer, index):
    """The usual recipe, as in keras.io's example: a model and a tape for one layer. The map before its ReLU, (h, w)."""
    import keras
    import tensorflow as tf

    grad_model = keras.Model(model.inputs[0], [model.get_layer(layer).output, model.outputs[0]])
    with tf.GradientTape() as tape:
        maps, scores = grad_model(x)
        score = scores[:, index]
    weights = tf.reduce_mean(tape.gradient(score, maps), axis=(0, 1, 2))
    return tf.squeeze(maps[0] @ weights[..., tf.newaxis]).numpy()


def gradcam():
    """All 13 layers of VGG16, one class: in passes, against the usual recipe, against tf-keras-vis."""
    from gradcam_vgg import grad_cam

    model, x = vgg16(), photograph()
    calls = {
        "a_pass": bare_pass(model, x),
        "ours": lambda: grad_cam(model, x, LAYERS, [CLASS])[0],
        "textbook": lambda: [textbook_grad_cam(model, x, layer, CLASS) for layer in LAYERS],
    }
    if installed("tf_keras_vis"):
        from tf_keras_vis.gradcam import Gradcam
        from tf_keras_vis.utils.scores import CategoricalScore

        peer, score = Gradcam(model, clone=False), CategoricalScore(CLASS)
        calls["tf_keras_vis"] = lambda: [
            np.squeeze(
                peer(
                    score,
                    x,
                    penultimate_layer=layer,
                    seek_penultimate_conv_layer=False,
                    expand_cam=False,
                    normalize_cam=False,
                )
            )
            for layer in LAYERS
        ]
    seconds = take_turns(**calls)
    maps, ours = (
        [cam[0] for cam in calls["ours"]().values()],
        f"grad_cam(model, x, the 13 layers, [{CLASS}])",
    )
    yield Line(
        "Grad-CAM, 13 layers of VGG16, one class",
        seconds["ours"] / seconds["a_pass"],
        "passes",
        2.4,
        ours,
        "tf.function(model)(x)",
    )
    yield Line(
        "the same, against the usual recipe",
        seconds["textbook"] / seconds["ours"],
        "times faster",
        20,
        ours,
        "for each layer: keras.Model(model.input, [its output, model.output]), GradientTape, eager; "
        + same(maps, calls["textbook"]()),
        least=True,
    )
    if "tf_keras_vis" not in calls:
        yield absent("the same, against tf-keras-vis", "tf-keras-vis")
        return
    yield Line(
        "the same, against tf-keras-vis",
        seconds["tf_keras_vis"] / seconds["ours"],
        "times faster",
        None,
        ours,
        f"for each layer: Gradcam(model, clone=False)(CategoricalScore({CLASS}), x, "
        "penultimate_layer=layer, expand_cam=False, normalize_cam=False); "
        + same([np.maximum(map_, 0) for map_ in maps], calls["tf_keras_vis"]()),
    )


def classes():
    """Ten classes at one layer against one."""
    from gradcam_vgg import grad_cam

    model, x, ten = vgg16(), photograph(), list(range(CLASS, CLASS + 10))
    seconds = take_turns(
        one=lambda: grad_cam(model, x, [LAST], [CLASS]), ten=lambda: grad_cam(model, x, [LAST], ten)
    )
    yield Line(
        f"Grad-CAM, ten classes at {LAST}",
        seconds["ten"] / seconds["one"],
        "times one class",
        1.5,
        f'grad_cam(model, x, ["{LAST}"], ten classes)',
        f'grad_cam(model, x, ["{LAST}"], [{CLASS}])',
    )


def torch_vgg16():
    """In torch, a VGG16 of the same shape, from its convolutions on and up to the last one, and its input."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    features, width = [], 3
    for filters, count in zip((64, 128, 256, 512, 512), CONVOLUTIONS):
        for _ in range(count):
            features += [
                nn.Conv2d(width, filters, 3, padding=1),
                nn.ReLU(),
            ]  # not in place: they are hooked
            width = filters
        features.append(nn.MaxPool2d(2))
    head = [
        nn.Flatten(),
        nn.Linear(25088, 4096),
        nn.ReLU(),
        nn.Linear(4096, 4096),
        nn.ReLU(),
        nn.Linear(4096, 1000),
    ]
    whole, up_to_last = nn.Sequential(*features, *head).eval(), nn.Sequential(*features[:-1]).eval()
    return whole, up_to_last, torch.from_numpy(photograph().transpose(0, 3, 1, 2).copy())


def torch_seconds():
    """Seconds in torch: a forward pass; nine projections by Captum, one by one; 13 maps by pytorch-grad-cam."""
    import torch
    from captum.attr import Deconvolution

    whole, up_to_last, x = torch_vgg16()
    with torch.no_grad():
        maps = up_to_last(x)[0].flatten(1)  # (K, h * w)
    kernels = maps.amax(1).topk(9).indices.tolist()
    targets = [(kernel, *divmod(int(maps[kernel].argmax()), 14)) for kernel in kernels]
    peer = Deconvolution(up_to_last)

    def a_pass():
        with torch.no_grad():
            whole(x)

    calls = {
        "a_pass": a_pass,
        "nine": lambda: [peer.attribute(x, target=target) for target in targets],
    }
    if installed("pytorch_grad_cam"):
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        layers = [
            layer
            for layer, before in zip(list(whole)[1:], whole)
            if isinstance(before, torch.nn.Conv2d)
        ]
        calls["maps"] = lambda: [
            GradCAM(model=whole, target_layers=[layer])(x, [ClassifierOutputTarget(CLASS)])
            for layer in layers
        ]
    return {name: values.tolist() for name, values in take_turns(**calls).items()}


def torch():
    """Captum and pytorch-grad-cam in passes of their own torch, and in seconds against ours."""
    claims = (
        f"DeconvNet by Captum, nine projections of {LAST}",
        "ours against Captum, in seconds",
        "Grad-CAM by pytorch-grad-cam, 13 layers",
        "ours against pytorch-grad-cam, in seconds",
    )
    if not installed("torch", "captum", "pytorch_grad_cam"):
        yield from (absent(claim, "torch captum grad-cam") for claim in claims)
        return
    from deconvnet_vgg import deconvnet
    from gradcam_vgg import grad_cam

    model, x = vgg16(), photograph()
    calls = {
        "nine": lambda: deconvnet(model, x, LAST, range(9)),
        "maps": lambda: grad_cam(model, x, LAYERS, [CLASS]),
    }
    before = take_turns(**calls)
    theirs = {name: np.array(values) for name, values in in_a_process("torch_seconds").items()}
    after = take_turns(**calls)
    ours = {name: np.median([*before[name], *after[name]]) for name in calls}
    how = {
        "nine": "nine times Deconvolution(VGG16 to block5_conv3).attribute(x, target=(kernel, row, column))",
        "maps": "for each layer: GradCAM(model=VGG16, target_layers=[layer])(x, [ClassifierOutputTarget(285)])",
    }
    for name, (passes, faster) in {"nine": claims[:2], "maps": claims[2:]}.items():
        yield Line(
            passes,
            theirs[name] / theirs["a_pass"],
            "passes",
            None,
            "",
            f"{how[name]}; torch's VGG16(x)",
        )
        yield Line(
            faster,
            theirs[name] / ours[name],
            "times faster",
            None,
            "",
            f"{how[name]}, in another process",
        )


# --- DeconvNet --------------------------------------------------------------------------------------------------------


def taped_projections(model, x, kernels):
    """DeconvNet the usual way: a clone whose ReLUs rectify the gradient, one persistent tape, a way down a kernel."""
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
    network, x = keras.Model(clone.inputs[0], clone.get_layer(LAST).output), tf.constant(x)

    def project():
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            maps = network(x)
            tops = [tf.reduce_max(maps[..., kernel]) for kernel in kernels]
        return np.concatenate([top * tape.gradient(top, x) for top in tops])

    return project


def deconvnet():
    """Nine projections of block5_conv3 in passes and against a tape; 45 by strongest position against whole maps."""
    from deconvnet_vgg import deconvnet as project

    model, x, nine = vgg16(), photograph(), list(range(9))
    calls = {
        "a_pass": bare_pass(model, x),
        "ours": lambda: project(model, x, LAST, nine),
        "tape": taped_projections(model, x, nine),
    }
    seconds = take_turns(**calls)
    ours = f'deconvnet(model, x, "{LAST}", nine kernels)'
    yield Line(
        f"DeconvNet, nine projections of {LAST}",
        seconds["ours"] / seconds["a_pass"],
        "passes",
        11,
        ours,
        "tf.function(model)(x)",
    )
    yield Line(
        "the same, against one persistent tape",
        seconds["tape"] / seconds["ours"],
        "times faster",
        None,
        ours,
        "eagerly, in a clone whose relu is a tf.custom_gradient: one GradientTape(persistent=True), "
        "nine tape.gradient; " + same(calls["ours"](), calls["tape"]()),
    )
    seconds = take_turns(
        **{
            mode: lambda mode=mode: [project(model, x, layer, nine, mode) for layer in BLOCKS]
            for mode in ("max", "all")
        }
    )
    yield Line(
        "DeconvNet, 45 projections of VGG16's five blocks, strongest positions",
        seconds["max"] / seconds["all"],
        "of whole maps",
        0.7,
        'deconvnet(model, x, layer, nine kernels, "max"), the last layer of every block',
        'the same with "all"',
    )


def inceptionv3():
    """99 whole maps of InceptionV3's eleven modules."""
    import deconvnet_inceptionv3

    deconvnet_inceptionv3.keras.utils.set_random_seed(0)
    model, x = deconvnet_inceptionv3.build(False), photograph(299, "tf")
    seconds = take_turns(
        rounds=3,
        warm=1,
        ours=lambda: [
            deconvnet_inceptionv3.deconvnet(model, x, f"mixed{number}", range(9), "all")
            for number in range(11)
        ],
    )
    yield Line(
        "DeconvNet, 99 whole maps of InceptionV3's eleven modules",
        seconds["ours"],
        "s",
        12,
        'deconvnet(model, x, layer, nine kernels, "all") for mixed0 … mixed10',
        "",
    )


# --- folders ----------------------------------------------------------------------------------------------------------


def make_photographs(folder, count, seed=0):
    """Fill a folder with JPEGs of 500x375, cut at random from those in Image/; the folder."""
    generator, originals = (
        np.random.default_rng(seed),
        sorted((HERE.parent / "Image").glob("*.jpg")),
    )
    for number in range(count):
        pixels = utils.read_photo(originals[number % len(originals)])
        height, width = pixels.shape[:2]
        side = generator.uniform(0.5, 1) * min(height, width * 0.75)
        top, left = (
            int(generator.uniform(0, height - side)),
            int(generator.uniform(0, width - side / 0.75)),
        )
        picture = utils.resize(
            pixels[top : top + int(side), left : left + int(side / 0.75)], 500, 375
        )
        utils.cv2.imwrite(f"{folder}/{number:04}.jpg", picture[..., ::-1])
    return folder


def pass_seconds(script):
    """Seconds of a bare pass of a script's network."""
    module = __import__(script)
    return float(
        np.median(take_turns(rounds=3, a_pass=bare_pass(module.build(), photograph()))["a_pass"])
    )


def folder(count=40, rounds=3):
    """A folder of photographs by a whole run of a script: seconds from picture to picture, in passes of its network."""
    commands = {
        "gradcam_googlenet.py --figures classes": 6,
        "gradcam_resnet50.py --figures layers": 5,
    }
    for command, target in commands.items():
        (script, *words), ratios = command.split(), []
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as place:
                photos, out = Path(place) / "photos", Path(place) / "out"
                photos.mkdir()
                run_program(
                    str(HERE.parent / script),
                    str(make_photographs(photos, count)),
                    *words,
                    "--weights",
                    "random",
                    "--output",
                    str(out),
                )
                written = sorted(path.stat().st_mtime for path in out.glob("*.jpg"))
                ratios.append(
                    np.median(np.diff(written)[5:]) / in_a_process("pass_seconds", script[:-3])
                )
        yield Line(
            f"`{command}`, a photograph of a folder",
            ratios,
            "passes",
            target,
            f"python {command} FOLDER --weights random, from picture to picture",
            "tf.function(network)(x)",
        )


def scan(count=96):
    """Photographs a second of the scan against a bare forward pass to the same layer over tensors in memory."""
    import tensorflow as tf

    import deconvnet_vgg

    model, prepare = (
        vgg16(),
        functools.partial(utils.network_input, size=(224, 224), preprocess="caffe"),
    )
    top = deconvnet_vgg.keras.Model(model.inputs[0], model.get_layer(LAST).output)
    forward = tf.function(lambda x: top(x, training=False))
    network = argparse.Namespace(model=model, layer=LAST, prepare=prepare)
    with tempfile.TemporaryDirectory() as place:
        paths = sorted(Path(make_photographs(place, count)).glob("*.jpg"))
        options = argparse.Namespace(images=paths, skipped=set())
        batches = [
            tf.constant(
                np.concatenate(
                    [prepare(utils.read_photo(path)) for path in paths[start : start + 8]]
                )
            )
            for start in range(0, count, 8)
        ]
        seconds = take_turns(
            rounds=3,
            warm=1,
            bare=lambda: [forward(batch).numpy() for batch in batches],
            ours=lambda: deconvnet_vgg.scan(options, network, None),
        )
    rate = count / np.median(seconds["ours"])
    yield Line(
        f"top9, photographs a second of the scan to {LAST} ({rate:.1f}/s)",
        seconds["bare"] / seconds["ours"],
        "of a bare pass",
        0.85,
        f"scan(options, network, None), {count} JPEGs of 500x375",
        f"tf.function(network to {LAST})(batch) over the same in memory, batches of 8",
        least=True,
    )


def peak_of_a_scan(place, count):
    """Megabytes that a process needs at its peak to scan the first so many photographs of a folder up to block1_conv1.

    Linux carries ru_maxrss over from the parent when a process is started; VmHWM begins anew.
    """
    import deconvnet_vgg

    prepare = functools.partial(utils.network_input, size=(224, 224), preprocess="caffe")
    network = argparse.Namespace(
        model=deconvnet_vgg.build("vgg16", False), layer="block1_conv1", prepare=prepare
    )
    options = argparse.Namespace(images=sorted(Path(place).glob("*.jpg"))[:count], skipped=set())
    deconvnet_vgg.scan(options, network, None)
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024


def memory(few=20, many=2000):
    """What a scan of 2000 photographs needs at its peak above one of 20 (Linux)."""
    with tempfile.TemporaryDirectory() as place:
        make_photographs(place, many)
        more = [
            in_a_process("peak_of_a_scan", place, many) - in_a_process("peak_of_a_scan", place, few)
            for _ in range(3)
        ]
    yield Line(
        f"top9, peak memory of {many} photographs above that of {few}",
        more,
        "MB",
        100,
        f"scan of {many} JPEGs up to block1_conv1, the lightest layer",
        f"the same of {few}",
    )


def first_command(rounds=3):
    """README's first command, from nothing to six pictures."""
    command, seconds = "gradcam_googlenet.py Image/hopper_coffee.jpg --weights tiny", []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as place:
            script, photo, *words = command.split()
            seconds.append(
                clock(
                    lambda: run_program(
                        str(HERE.parent / script),
                        str(HERE.parent / photo),
                        *words,
                        "--output",
                        place,
                    )
                )
            )
    yield Line("README's first command, six figures", seconds, "s", 9, f"python {command}", "")


# --- the table --------------------------------------------------------------------------------------------------------

CLAIMS = {
    function.__name__: function
    for function in (
        gradcam,
        classes,
        deconvnet,
        torch,
        inceptionv3,
        folder,
        scan,
        memory,
        first_command,
    )
}


def surroundings():
    """What was measured where, for the JSON file."""
    found = {}
    for package in ("tensorflow", "keras", "numpy", "tf-keras-vis", "torch", "captum", "grad-cam"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "packages": found,
        "weights": "random, seed 0 (the published ones cannot be had everywhere; speed does not depend on them)",
    }


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


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--json", type=Path, default="benchmark.json", metavar="FILE", help="where the numbers go"
    )
    parser.add_argument(
        "--only", default=",".join(CLAIMS), metavar="WORD,...", help=f"of {','.join(CLAIMS)}"
    )
    options = parser.parse_args()
    chosen = options.only.split(",")
    if not set(chosen) <= set(CLAIMS):
        parser.error(f"--only takes {', '.join(CLAIMS)}")
    about, lines = surroundings(), []
    print(
        f"Weights: {about['weights']}.",
        *(f"{name} {version}," for name, version in about["packages"].items()),
        f"{about['cores']} cores.\n",
    )
    print("| claim | measured | aim | ours | against |\n|---|---|---|---|---|")
    try:
        for name in chosen:
            for line in CLAIMS[name]():
                lines.append(line)
                print(f"{summary(line)} {line.ours} | {line.against} |", flush=True)
    finally:  # what has been measured is kept, whatever fails later
        numbers = [
            line._asdict() | {"rounds": list(line.rounds), "median": median(line)} for line in lines
        ]
        options.json.write_text(json.dumps(about | {"lines": numbers}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
