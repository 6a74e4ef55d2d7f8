"""How fast: every number that README claims, measured on this machine, beside other people's tools.

    python tests/benchmark.py                                  all of it, 40 minutes on two cores
    python tests/benchmark.py --only captum "first command"    lines whose claims hold such words
    python tests/benchmark.py --tree ../old --json old.json    another copy of the scripts

It prints a table, whose first two columns README shows, and writes the same as JSON. A line is one
measurement, or the ratio of two, ours and theirs, which take turns, so that a busy moment meets
both; of its rounds the median counts, and the first, which traces and warms up, does not. A pass is
a bare forward pass of the same network. Weights are random where no others are named: speed does
not depend on them. Peers, in benchmark_calls.py, are measured where they are installed: pip install
--target PLACE torch captum grad-cam tf-keras-vis, and PYTHONPATH=PLACE. Scripts run without that:
Keras would import scikit-learn, and start later.
"""

import argparse
import functools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import benchmark_calls as calls
import numpy as np
from PIL import Image, ImageOps

SUBJECTS = {"cat": "Egyptian cat", "coffee": "espresso", "hopper": "military uniform"}
PACKAGES = ("tensorflow", "keras", "numpy", "tf-keras-vis", "torch", "captum", "grad-cam")
PEAK = """import resource, subprocess, sys
subprocess.run([sys.executable, *sys.argv[1:]], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"""

# Commands, as they are run; FOLDER is one of so many photographs.
CLASSES = "gradcam_googlenet.py FOLDER --figures classes --weights random"
EVERY_LAYER = "gradcam_resnet50.py FOLDER --figures layers --weights random"
FAILURES = "gradcam_googlenet.py FOLDER --figures failures,table --weights bundled"
TOP9 = "deconvnet_vgg.py FOLDER --figures top9 --models vgg16 --kernels 0 --weights random"
SCAN = f"{TOP9} --layers block5_conv3"
LIGHT_SCAN = f"{TOP9} --layers block1_conv1"
FIRST = "gradcam_vgg.py Image/cat_coffee.jpg --weights bundled"
FIRST_GOOGLENET = "gradcam_googlenet.py Image/hopper_coffee.jpg --weights bundled"


class Line(NamedTuple):
    """A line of the table. timed, against: what is measured, and what that is divided by."""

    claim: str
    unit: str
    timed: str
    against: str = ""


LINES = [
    Line("Grad-CAM, 13 layers of VGG16, one class", "passes", calls.CAMS, calls.PASS),
    Line("the same, against the usual recipe", "times faster", calls.USUAL_CAMS, calls.CAMS),
    Line("the same, against tf-keras-vis", "times faster", calls.TF_KERAS_VIS, calls.CAMS),
    Line("Grad-CAM, ten classes at a layer", "times one class", calls.TEN_MAPS, calls.CLASS_MAP),
    Line("DeconvNet, nine projections of block5_conv3", "passes", calls.PROJECTIONS, calls.PASS),
    Line("the same, against one persistent tape", "times faster", calls.TAPE, calls.PROJECTIONS),
    Line("the same by Captum, in torch", "passes", calls.CAPTUM, calls.TORCH_PASS),
    Line("the same against Captum, in seconds", "times faster", calls.CAPTUM, calls.PROJECTIONS),
    Line("DeconvNet, 45 strongest positions", "of whole maps", calls.POSITIONS, calls.WHOLE_MAPS),
    Line("DeconvNet, 99 whole maps of InceptionV3's eleven modules", "s", calls.INCEPTION),
    Line("Grad-CAM by pytorch-grad-cam, 13 layers", "passes", calls.TORCH_CAMS, calls.TORCH_PASS),
    Line("ours against pytorch-grad-cam, in seconds", "times faster", calls.TORCH_CAMS, calls.CAMS),
    Line("`classes` of a folder, GoogLeNet, a photograph", "passes", CLASSES, calls.GOOGLENET),
    Line("`layers` of a folder, ResNet50, a photograph", "passes", EVERY_LAYER, calls.RESNET50),
    Line("`failures` and `table`, GoogLeNet, a photograph", "passes", FAILURES, calls.GOOGLENET),
    Line("`top9`, a photograph of the scan to block5_conv3", "passes", SCAN, calls.PASS),
    Line("`top9`, peak memory of 2000 photographs above that of 20", "MB", LIGHT_SCAN),
    Line("README's first command, six figures", "s", FIRST),
    Line("the same of GoogLeNet", "s", FIRST_GOOGLENET),
]


class SkippedError(Exception):
    """A command cannot be measured: the script refuses its words."""


# --- commands ---


@functools.cache
def photographs(count):
    """A folder of JPEGs of 500 x 375, cut at random from Image/, with a sub-folder a class."""
    folder = tempfile.TemporaryDirectory()
    generator = np.random.default_rng(0)
    for number in range(count):
        name, label = list(SUBJECTS.items())[number % len(SUBJECTS)]
        border, *centre = generator.uniform((0, 0, 0), (0.2, 1, 1))
        original = Image.open(f"Image/{name}.jpg")
        picture = ImageOps.fit(original, (500, 375), bleed=border, centering=centre)
        place = Path(folder.name) / label
        place.mkdir(exist_ok=True)
        picture.save(place / f"{number:04}.jpg", quality=95)
    return folder


def run(command, output, count=0, launcher=()):
    """Run a script as people do; what is printed. launcher: words for Python that come before."""
    words = [photographs(count).name if word == "FOLDER" else word for word in command.split()]
    program = [sys.executable, *launcher, *words, "--output", output]
    environment = os.environ | {"PYTHONPATH": ""}
    done = subprocess.run(program, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SkippedError(" ".join(done.stderr.split())[-200:])
    return done.stdout


def seconds(command, count=0):
    """Seconds of a command."""
    with tempfile.TemporaryDirectory() as output:
        return clock(lambda: run(command, output, count))


def seconds_between_pictures(command):
    """Seconds from picture to picture of a folder of 40 photographs."""
    with tempfile.TemporaryDirectory() as output:
        run(command, output, 40)
        written = sorted(path.stat().st_mtime for path in Path(output).glob("*.jpg"))
    return np.median(np.diff(written)[5:])


def seconds_a_photograph(command, few, many):
    """Seconds of a command for each photograph that a folder has more than another."""
    return (seconds(command, many) - seconds(command, few)) / (many - few)


def peak_megabytes(command, count):
    """What a command needs at its peak, of Linux, which counts a parent's memory: a small one's."""
    with tempfile.TemporaryDirectory() as output:
        return int(run(command, output, count, ["-c", PEAK]).split()[-1]) / 1024


def more_megabytes(command, few, many):
    return peak_megabytes(command, many) - peak_megabytes(command, few)


COMMANDS = {
    CLASSES: functools.partial(seconds_between_pictures, CLASSES),
    EVERY_LAYER: functools.partial(seconds_between_pictures, EVERY_LAYER),
    FAILURES: functools.partial(seconds_a_photograph, FAILURES, 20, 500),
    SCAN: functools.partial(seconds_a_photograph, SCAN, 24, 200),
    LIGHT_SCAN: functools.partial(more_megabytes, LIGHT_SCAN, 20, 2000),
    FIRST: functools.partial(seconds, FIRST),
    FIRST_GOOGLENET: functools.partial(seconds, FIRST_GOOGLENET),
}


# --- measuring ---


def clock(call):
    """Seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def median_seconds(call):
    """Seconds of a call: the median of as many as fit into one second, of one at least."""
    durations = [clock(call)]
    while sum(durations) < 1:
        durations.append(clock(call))
    return np.median(durations)


def find_measure(name):
    """The function that measures something: a number each time."""
    if name in COMMANDS:
        return COMMANDS[name]
    return functools.partial(median_seconds, calls.find(name))


def measure(line, rounds):
    """What is timed, and what it is divided by, in turns: {name: (rounds,)}."""
    measures = {name: find_measure(name) for name in (line.timed, line.against) if name}
    numbers = {name: [] for name in measures}
    for _ in range(1 + rounds):
        for name, function in measures.items():
            numbers[name].append(float(function()))
    return {name: values[1:] for name, values in numbers.items()}


def evaluate(line, rounds):
    """A line with its numbers, as JSON has it; skipped: why there are none."""
    try:
        numbers = measure(line, rounds)
    except (SkippedError, ModuleNotFoundError) as error:
        return line._asdict() | {"skipped": str(error)}
    ratios = np.divide(numbers[line.timed], numbers.get(line.against, 1))
    measured = {"measured": float(np.median(ratios)), "rounds": ratios.tolist()}
    return line._asdict() | measured | {"numbers": numbers}


def row(result):
    """Of the Markdown table."""
    measured = f"{result['measured']:.3g} {result['unit']}" if "measured" in result else "skipped"
    last = result.get("skipped", result["against"])
    return f"| {result['claim']} | {measured} | {result['timed']} | {last} |"


def surroundings():
    """What was measured where, with which packages."""
    found = metadata.distributions()
    versions = {each.name: each.version for each in found if each.name in PACKAGES}
    system = {"python": platform.python_version(), "system": platform.platform()}
    return system | {"cores": os.cpu_count(), "packages": versions}


def read_options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    tree = Path(__file__).resolve().parent.parent
    parser.add_argument("--tree", type=Path, default=tree, help="folder of the scripts")
    parser.add_argument("--json", type=Path, default="benchmark.json", help="where numbers go")
    parser.add_argument("--only", nargs="+", default=[""], help="words that claims hold")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def main():
    options = read_options()
    file = options.json.resolve()
    sys.path.insert(0, str(options.tree.resolve()))
    os.chdir(options.tree)
    results = []
    print("| what | measured | timed | against |\n| --- | --- | --- | --- |")
    for line in LINES:
        if any(words.lower() in line.claim.lower() for words in options.only):
            results.append(evaluate(line, options.rounds))
            print(row(results[-1]), flush=True)
            file.write_text(json.dumps(surroundings() | {"lines": results}, indent=1))


if __name__ == "__main__":
    main()
