"""What benchmark.py times in its own process, ours and other people's: {what is timed: call}."""

import functools
import importlib
import sys
from unittest import mock

FILTERS = {"block1": 64, "block2": 128, "block3": 256, "block4": 512, "block5": 512}  # of VGG16
LAYERS = [f"block{block}_conv{n}" for block in (1, 2) for n in (1, 2)]  # its convolutions
LAYERS += [f"block{block}_conv{n}" for block in (3, 4, 5) for n in (1, 2, 3)]
LAST_OF_BLOCKS = ["block1_conv2", "block2_conv2", "block3_conv3", "block4_conv3", "block5_conv3"]
LAST = LAYERS[-1]
CLASS = 285  # Egyptian cat
NINE = range(9)  # kernels

PASS = "tf.function(VGG16)(x)"
GOOGLENET = "tf.function(GoogLeNet)(x)"
RESNET50 = "tf.function(ResNet50)(x)"
CAMS = "grad_cam(model, x, the 13 layers, [285])"
USUAL_CAMS = "for each layer keras.Model(model.input, [its output, model.output]), tape, eagerly"
TF_KERAS_VIS = "for each layer Gradcam(model, clone=False)(CategoricalScore(285), x), tf-keras-vis"
CLASS_MAP = 'grad_cam(model, x, ["block5_conv3"], [285])'
TEN_MAPS = 'grad_cam(model, x, ["block5_conv3"], ten classes)'
PROJECTIONS = 'deconvnet(model, x, "block5_conv3", nine kernels)'
TAPE = "nine tape.gradient of one persistent tape, over a clone whose relu is a tf.custom_gradient"
POSITIONS = 'deconvnet(model, x, layer, nine kernels, "max"), the last layer of each block'
WHOLE_MAPS = 'deconvnet(model, x, layer, nine kernels, "all"), the last layer of each block'
INCEPTION = 'deconvnet(model, x, layer, nine kernels, "all"), mixed0 to mixed10 of InceptionV3'
TORCH_PASS = "torch's VGG16(x)"
CAPTUM = "nine times Deconvolution(torch's VGG16 to block5_conv3).attribute(x, (kernel, y, x))"
TORCH_CAMS = "for each layer GradCAM(torch's VGG16, [layer])(x, [ClassifierOutputTarget(285)])"


@functools.cache
def network(script, *arguments):
    """What a script's `build` makes, from seed 0."""
    import keras

    keras.utils.set_random_seed(0)
    return importlib.import_module(script).build(*arguments)


@functools.cache
def photograph(side=224, preprocess="caffe"):
    """What a network is fed, float32 (1, side, side, 3)."""
    import utils

    pixels = utils.load_image(utils.IMAGE_FOLDER / "hopper_coffee.jpg")
    return utils.preprocess_input(pixels, (side, side), preprocess)


def forward_pass(model, x):
    """A call that takes x through a whole network."""
    import tensorflow as tf

    x = tf.constant(x)
    forward = tf.function(lambda x: model(x, training=False))
    return lambda: forward(x).numpy()


# --- ours ---


def passes():
    vgg16 = network("gradcam_vgg", "vgg16")
    googlenet = network("gradcam_googlenet")
    resnet50 = network("gradcam_resnet50")
    return {
        PASS: forward_pass(vgg16, photograph()),
        GOOGLENET: forward_pass(googlenet, photograph()),
        RESNET50: forward_pass(resnet50, photograph()),
    }


def grad_cams():
    from gradcam_vgg import grad_cam

    model = network("gradcam_vgg", "vgg16")
    x = photograph()
    ten = list(range(CLASS, CLASS + 10))
    return {
        CAMS: lambda: grad_cam(model, x, LAYERS, [CLASS]),
        CLASS_MAP: lambda: grad_cam(model, x, [LAST], [CLASS]),
        TEN_MAPS: lambda: grad_cam(model, x, [LAST], ten),
    }


def projections():
    from deconvnet_vgg import deconvnet

    model = network("gradcam_vgg", "vgg16")
    inception = network("deconvnet_inceptionv3", False)
    x = photograph()
    wide = photograph(299, "tf")
    mixed = [f"mixed{number}" for number in range(11)]
    return {
        PROJECTIONS: lambda: deconvnet(model, x, LAST, NINE),
        POSITIONS: lambda: [deconvnet(model, x, layer, NINE, "max") for layer in LAST_OF_BLOCKS],
        WHOLE_MAPS: lambda: [deconvnet(model, x, layer, NINE, "all") for layer in LAST_OF_BLOCKS],
        INCEPTION: lambda: [deconvnet(inception, wide, layer, NINE, "all") for layer in mixed],
    }


# --- theirs ---


def usual_cam(model, x, layer):
    """Grad-CAM as in keras.io's example: float32 (h, w), signed."""
    import keras
    import tensorflow as tf

    outputs = [model.get_layer(layer).output, model.outputs[0]]
    grad_model = keras.Model(model.inputs[0], outputs)
    with tf.GradientTape() as tape:
        maps, scores = grad_model(x)
        score = scores[:, CLASS]
    weights = tf.reduce_mean(tape.gradient(score, maps), axis=(0, 1, 2))
    return tf.squeeze(maps[0] @ weights[..., tf.newaxis]).numpy()


def recipes():
    """What is written by hand where there is no tool."""
    model = network("gradcam_vgg", "vgg16")
    x = photograph()
    return {
        USUAL_CAMS: lambda: [usual_cam(model, x, layer) for layer in LAYERS],
        TAPE: taped_projections(model, x),
    }


def taped_projections(model, x):
    """Nine times float32 (H, W, 3)."""
    import keras
    import tensorflow as tf

    rectify_back = tf.custom_gradient(lambda x: (tf.nn.relu(x), tf.nn.relu))
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    for layer in clone.layers:
        if getattr(layer, "activation", None) is keras.activations.relu:
            layer.activation = rectify_back
    below = keras.Model(clone.inputs[0], clone.get_layer(LAST).output)
    pixels = tf.constant(x)

    def project():
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(pixels)
            maps = below(pixels)
            strongest = [tf.reduce_max(maps[..., kernel]) for kernel in NINE]
        return [(one * tape.gradient(one, pixels))[0].numpy() for one in strongest]

    return project


def tf_keras_vis():
    from tf_keras_vis.gradcam import Gradcam
    from tf_keras_vis.utils.scores import CategoricalScore

    gradcam = Gradcam(network("gradcam_vgg", "vgg16"), clone=False)
    raw = {"seek_penultimate_conv_layer": False, "expand_cam": False, "normalize_cam": False}

    def cam(layer):
        return gradcam(CategoricalScore(CLASS), photograph(), penultimate_layer=layer, **raw)[0]

    return {TF_KERAS_VIS: lambda: [cam(layer) for layer in LAYERS]}


def torch_vgg16():
    """VGG16 in torch, with random weights: (network, the ReLU of each of its convolutions)."""
    from torch import nn

    channels = 3
    modules = []
    relus = []
    for layer in LAYERS:
        relus.append(nn.ReLU())  # not in place: it is hooked
        modules += [nn.Conv2d(channels, FILTERS[layer[:6]], 3, padding=1), relus[-1]]
        if layer in LAST_OF_BLOCKS:
            modules.append(nn.MaxPool2d(2))
        channels = FILTERS[layer[:6]]
    head = [nn.Linear(25088, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU()]
    return nn.Sequential(*modules, nn.Flatten(), *head, nn.Linear(4096, 1000)).eval(), relus


def torch():
    import torch
    from captum.attr import Deconvolution

    # Imported, not used here, and rarely fit for this torch
    for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
        sys.modules[name] = mock.MagicMock()
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    torch.manual_seed(0)
    model, relus = torch_vgg16()
    below = model[: list(model).index(relus[-1]) + 1]
    x = torch.from_numpy(photograph().transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        maps = below(x)[0].flatten(1)  # (K, 14 * 14)
    kernels = maps.amax(1).topk(9).indices.tolist()
    targets = [(kernel, *divmod(int(maps[kernel].argmax()), 14)) for kernel in kernels]
    deconvolution = Deconvolution(below)

    def cam(relu):
        return GradCAM(model, [relu])(x, [ClassifierOutputTarget(CLASS)])

    return {
        TORCH_PASS: functools.partial(torch.no_grad()(model), x),
        CAPTUM: lambda: [deconvolution.attribute(x, target=target) for target in targets],
        TORCH_CAMS: lambda: [cam(relu) for relu in relus],
    }


GROUPS = {
    passes: (PASS, GOOGLENET, RESNET50),
    grad_cams: (CAMS, CLASS_MAP, TEN_MAPS),
    projections: (PROJECTIONS, POSITIONS, WHOLE_MAPS, INCEPTION),
    recipes: (USUAL_CAMS, TAPE),
    tf_keras_vis: (TF_KERAS_VIS,),
    torch: (TORCH_PASS, CAPTUM, TORCH_CAMS),
}


@functools.cache
def make(group):
    return group()


def find(name):
    """The call of this name. ModuleNotFoundError: its peer is not installed."""
    for group, names in GROUPS.items():
        if name in names:
            return make(group)[name]
    raise KeyError(name)
