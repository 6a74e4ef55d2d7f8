"""What standalone scripts cost, kept honest: copies equal to the letter, no imports across, sizes, names, docstrings.

Sources are read, never run: this needs no TensorFlow.
"""

import ast
import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TREE = (
    "README.md requirements.txt gradcam_vgg.py gradcam_resnet50.py gradcam_googlenet.py deconvnet_vgg.py "
    "deconvnet_inceptionv3.py utils.py Image tests"
).split()
SCRIPTS = [name[:-3] for name in TREE if name.endswith(".py") and name != "utils.py"]
OWN = {  # what the scripts of a family do not share, or not to the letter, and why
    "gradcam": {
        "build": "each has its own network",
        "main draw_layers": "VGG16 and VGG19 share a page, a row a block; GoogLeNet's tiny weights know 81 classes",
        "MODELS": "VGG alone is two networks",
        "LAYERS WEIGHTS PREPROCESS": "comments and defaults that are the network's",
        "MODULES branches convolution googlenet": "Keras has no GoogLeNet: the script brings it",
        "ARCHIVE SHA256 CHECKPOINT TINY variables load": "nor its weights, which are TF-Slim's, or bundled",
    },
    "deconvnet": {
        "build open_networks": "each has its own network",
        "MODELS open_vgg": "VGG alone is two networks",
        "TINY": "VGG16 alone has bundled weights",
        "LAYERS WEIGHTS PREPROCESS": "comments and defaults that are the network's",
        "RULES COMPARED": "behind strided convolutions guided backpropagation is to stand beside the DeconvNet",
    },
}
LINES = dict.fromkeys(SCRIPTS, 450) | {
    "utils": 600,
    "gradcam_vgg": 320,
    "gradcam_resnet50": 320,
    "gradcam_googlenet": 430,
}
SAID = {  # by the docstrings of what people import: shapes, and errors
    "gradcam_vgg grad_cam": [
        "(1, H, W, channels)",
        "(top + len(classes), h, w)",
        "(n_classes,)",
        "ValueError",
    ],
    "gradcam_vgg guided_backprop": ["(len(classes), H, W, channels)", "errors as of `grad_cam`"],
    "deconvnet_vgg deconvnet": [
        "(1, H, W, channels)",
        "(len(kernels), H, W, channels)",
        "ValueError",
    ],
    "utils read_photo": ["uint8 (H, W, 3), RGB", "UserError"],
    "utils overlay": ["uint8 (H, W, 3), RGB"],
    "utils open_network": ["(H, W)", "ValueError"],
}


def source(name):
    return (ROOT / f"{name}.py").read_text(encoding="utf-8")


def first_line(node):
    return min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", ()))])


def parts(script):
    """{name: text} of functions, classes, tables and constants, with the comments above and behind them; other blocks
    by their first line. Docstring and imports are a script's own."""
    lines, found = source(script).splitlines(), {}
    for node in ast.parse(source(script)).body[1:]:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        start = first_line(node) - 1
        while lines[start - 1].startswith("#"):
            start -= 1
        name = getattr(node, "name", "") or (
            ast.unparse(node.targets[0]) if isinstance(node, ast.Assign) else lines[node.lineno - 1]
        )
        found[name] = found.get(name, "") + "\n".join(lines[start : node.end_lineno])
    return found


def imported(nodes):
    return {
        name.split(".")[0]
        for node in nodes
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in (getattr(node, "module", ""), *(alias.name for alias in node.names))
        if name
    }


@pytest.mark.parametrize("family", OWN)
def test_scripts_of_a_family_hold_the_same_to_the_letter(family):
    """But for what is listed as their own, which really differs, or is missing in one of them."""
    scripts = [parts(script) for script in SCRIPTS if script.startswith(family)]
    assert len(scripts) >= 2
    differing = {
        name for name in set().union(*scripts) if len({script.get(name) for script in scripts}) > 1
    }
    assert differing == set(" ".join(OWN[family]).split())


def test_scripts_stand_alone_and_utils_holds_no_method():
    for name in [*SCRIPTS, "utils"]:
        assert not imported(ast.walk(ast.parse(source(name)))) & {*SCRIPTS}, name
    assert not imported(ast.parse(source("utils")).body) & {
        "keras",
        "tensorflow",
    }  # errors are told before they load
    for word in ("GradientTape", "custom_gradient", "conv2d_transpose", "max_pool", "CAM_WEIGHTS"):
        assert word not in source("utils")


@pytest.mark.parametrize("name", LINES)
def test_sizes_that_one_person_can_hold_in_the_head(name):
    assert source(name).count("\n") <= LINES[name]
    functions = [
        node for node in ast.walk(ast.parse(source(name))) if isinstance(node, ast.FunctionDef)
    ]
    assert [node.name for node in functions if node.end_lineno - first_line(node) + 1 > 40] == []


def test_lines_and_tests_are_short():
    texts = {
        path: path.read_text(encoding="utf-8")
        for path in [*ROOT.glob("*.py"), *ROOT.glob("tests/**/*.py")]
    }
    assert [
        f"{path.name}:{number}"
        for path, text in texts.items()
        for number, line in enumerate(text.split("\n"), 1)
        if len(line) > 120
    ] == []
    assert sum(text.count("\n") for path, text in texts.items() if path.parent != ROOT) <= 4000


def test_the_tree_is_that_of_the_contract():
    ignored = [
        line.strip().strip("/")
        for line in (ROOT / ".gitignore").read_text().splitlines()
        if line.strip()
    ]
    assert {
        path.name
        for path in ROOT.iterdir()
        if not any(fnmatch.fnmatch(path.name, pattern) for pattern in [".*", *ignored])
    } == {*TREE}


@pytest.mark.parametrize("name", SAID)
def test_docstrings_of_what_people_import_give_shapes_and_errors(name):
    module, function = name.split()
    (node,) = (
        node for node in ast.parse(source(module)).body if getattr(node, "name", "") == function
    )
    text = " ".join(ast.get_docstring(node).split())
    assert [words for words in SAID[name] if words not in text] == []
