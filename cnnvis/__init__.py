"""The machinery behind the scripts; the methods themselves are in the scripts, not in here.

Modules import downwards only, in this order:

shell               Ctrl-C and stdout; imports nothing slow
runtime             lazy Keras and TensorFlow, exit codes, messages, progress
keras2              configs of Keras 2, converted for Keras 3
pages               tiles and pages of pictures
distributed         several machines: shares, gathering; only loaded where there are some
graph               a network as a flat graph: its layers, its ReLUs, checks of arguments
geometry            which pixels each cell of a feature map responds to
saved_models        networks from files
segmentation        networks with a score a pixel: regions, shares, outlines
logits              networks with logits for output, and their probabilities
networks, vgg       the network of a run: weights, layers, classes, preprocessing
occlusion, faithfulness, boxes, projections     measures and pictures of maps and projections
cli                 the command line
results             files of results: names, metadata, writing
photos              the photographs of a run
explanation         one photograph and one network
activations         which kernels are drawn, and the photographs that excite them
folder, failures    what is gathered over a folder, with known answers
drawing             the figures of a run, one after the other
gradcam_figures, deconvnet_figures              a function a figure, and the registries

To add a figure: a function and a line of the registry, in gradcam_figures or deconvnet_figures. To
add a CAM method: a line of CAM_WEIGHTS in each of the three scripts.

In a notebook: `open_network`, `layer_geometries`, and `utils` beside this package."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnnvis.geometry import layer_geometries
    from cnnvis.logits import open_network

__all__ = ["layer_geometries", "open_network"]
MODULES = {"layer_geometries": "cnnvis.geometry", "open_network": "cnnvis.logits"}


def __getattr__(name: str) -> Any:
    """What a notebook needs, imported when it is used: scripts import shell before all else."""
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(MODULES[name]), name)
