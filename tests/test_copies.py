"""The house: copies equal to the letter, imports downwards only, sizes, README's pictures.

Sources are read, never run: this needs no TensorFlow."""

import ast
import json
import re
from collections import Counter

import pytest
from PIL import Image
from runs import DECONVNET, GRADCAM, ROOT, SCRIPTS, carried

# What the scripts of a family do not share to the letter, and why.
OWN = {
    GRADCAM: {
        "build main": "each has its own network",
        "MODELS vgg_spec": "VGG alone is two networks",
        "SPEC": "where there is one network",
        "IMAGES LAYERS WEIGHTS WEIGHTS_WORDS": "what suits the network",
        "MODULES Branch branches convolution inception googlenet": "Keras has no GoogLeNet",
        "ARCHIVE SHA256 CHECKPOINT BUNDLED variables load assign": "whose weights are TF-Slim's",
    },
    DECONVNET: {
        "build main": "each has its own network",
        "MODELS vgg_spec": "VGG alone is two networks",
        "inception_spec BUNDLED": "where there is one network",
        "LAYERS COMPARED": "what suits the network",
        "RULES": "after strided convolutions guided backpropagation is drawn too",
    },
}
FLOORS = """
    utils shell | runtime keras2 | pages graph distributed | geometry saved_models | segmentation
    | logits | networks occlusion | vgg faithfulness boxes projections | cli results | photos
    | explanation | activations folder | failures | drawing | gradcam_figures deconvnet_figures"""
LIMITS = {"utils": 450, "gradcam_googlenet": 400, **dict.fromkeys(GRADCAM[:2], 300)}
LIMITS |= dict.fromkeys(DECONVNET, 370)
METHOD = ("GradientTape", "custom_gradient", "conv2d_transpose", "max_pool")


def source(name):
    return (ROOT / f"{name}.py").read_text(encoding="utf-8")


def parts(script):
    """{name: text} of functions, classes, tables and constants, with comments above and behind."""
    lines, found = source(script).splitlines(), {}
    for node in ast.parse(source(script)).body[1:]:
        if isinstance(node, ast.Import | ast.ImportFrom):
            continue
        decorators = getattr(node, "decorator_list", [])
        start = min([node.lineno, *(each.lineno for each in decorators)]) - 1
        while lines[start - 1].startswith("# ") and "# fmt:" not in lines[start - 1]:
            start -= 1
        name = getattr(node, "name", lines[node.lineno - 1])
        if isinstance(node, ast.Assign):
            name = ast.unparse(node.targets[0])
        found[name] = "\n".join(lines[start : node.end_lineno])
    return found


def imported(path):
    """The modules that a source imports anywhere in it: `utils`, `cnnvis.graph`, `keras` …"""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(each.name for each in node.names)
        if isinstance(node, ast.ImportFrom) and node.module == "cnnvis":
            found.update(f"cnnvis.{each.name}" for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return found


@pytest.mark.parametrize("family", OWN, ids=["gradcam", "deconvnet"])
def test_scripts_of_a_family_hold_the_same_to_the_letter(family):
    """But for what is listed as their own, which really differs, or is missing in one of them."""
    scripts = [parts(script) for script in family]
    names = Counter(name for script in scripts for name in script)
    differing = {name for name in names if len({script.get(name) for script in scripts}) > 1}
    assert differing == set(" ".join(OWN[family]).split())
    assert len(names) - len(differing) > 20


def test_imports_run_downwards_only():
    """A module imports from lower floors, and never a script; scripts do not import each other."""
    floors = [floor.split() for floor in FLOORS.split("|")]
    floor_of = {name: number for number, floor in enumerate(floors) for name in floor}
    modules = {path.stem: path for path in (ROOT / "cnnvis").glob("[!_]*.py")}
    assert modules.keys() | {"utils"} == floor_of.keys()
    for name, path in {**modules, "utils": ROOT / "utils.py"}.items():
        ours = {each.removeprefix("cnnvis.") for each in imported(path)} & floor_of.keys()
        assert all(floor_of[each] < floor_of[name] for each in ours), (name, ours)
        assert not imported(path) & {*SCRIPTS, "keras", "tensorflow"}, name
    for script in SCRIPTS:
        assert not imported(ROOT / f"{script}.py") & {*SCRIPTS, "keras", "tensorflow"}, script


def test_files_are_small_and_the_method_is_in_the_scripts():
    for path in [*ROOT.glob("*.py"), *ROOT.glob("cnnvis/*.py")]:
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= LIMITS.get(path.stem, 400), path.name
        assert (path.stem in SCRIPTS) == any(word in text for word in METHOD), path.name
    for script in SCRIPTS:
        first = next(each for each in ast.parse(source(script)).body if hasattr(each, "name"))
        assert first.name == ("grad_cam" if script in GRADCAM else "deconvnet")


def readme_pictures():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(r"!\[[^\]]*\]\(([^)\s]+)", text) + re.findall(r'<img[^>]*src="([^"]+)"', text)


def test_readme_s_pictures_exist_and_name_no_folders():
    """Fault 17: a picture says what it was drawn with, and not where."""
    names = [name for name in readme_pictures() if not name.startswith("http")]
    assert len(names) >= 10
    for name in names:
        if "gallery" in name:
            about = json.loads(carried(ROOT / name))
            assert about["script"] in SCRIPTS and "output" not in about
            assert not re.search(r"[/\\]\w", json.dumps({**about, "colormap": ""})), name
        with Image.open(ROOT / name) as image:
            assert image.width >= 300
