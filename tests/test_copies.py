"""What standalone scripts cost, kept honest: copies equal to the letter, no imports across,
pictures. Sources are read, never run: this needs no TensorFlow."""

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
        "MODELS recipe draw draw_layers_by_block": "VGG16 and VGG19 share a page, a row a block",
        "RECIPE": "where there is one network",
        "IMAGES LAYERS WEIGHTS WEIGHTS_WORDS": "what suits the network",
        "MODULES Branch branches convolution inception googlenet": "Keras has no GoogLeNet",
        "ARCHIVE SHA256 CHECKPOINT BUNDLED variables load assign": "whose weights are TF-Slim's",
    },
    DECONVNET: {
        "build recipe open_networks": "each has its own network",
        "MODELS": "VGG alone is two",
        "LAYERS WEIGHTS WEIGHTS_WORDS COMPARED": "what suits the network",
        "RULES": "behind strided convolutions guided backpropagation is to stand beside",
    },
}


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


def imported(name):
    """The modules that a source imports, wherever it does."""
    return set(re.findall(r"^\s*(?:import|from) (\w+)", source(name), re.MULTILINE))


@pytest.mark.parametrize("family", OWN, ids=["gradcam", "deconvnet"])
def test_scripts_of_a_family_hold_the_same_to_the_letter(family):
    """But for what is listed as their own, which really differs, or is missing in one of them."""
    scripts = [parts(script) for script in family]
    names = Counter(name for script in scripts for name in script)
    differing = {name for name in names if len({script.get(name) for script in scripts}) > 1}
    assert differing == set(" ".join(OWN[family]).split())
    assert len(names) - len(differing) > 25


def test_scripts_stand_alone_and_utils_holds_no_method():
    for name in [*SCRIPTS, "utils"]:
        assert not imported(name) & {*SCRIPTS, "keras", "tensorflow"}, name
    words = ("GradientTape", "custom_gradient", "conv2d_transpose", "max_pool")
    assert [word for word in words if word in source("utils")] == []
    assert all(any(word in source(name) for word in words) for name in SCRIPTS)


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
