"""Networks from files: which kind a file is, what is refused, and loading .keras and HDF5.

No code of a file is ever run. What is drawn of a loaded network is in networks.py."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import re
import shutil
import sys
import tempfile
import traceback
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

from cnnvis.keras2 import RefusedError, config_parts, convert_config
from cnnvis.runtime import keras
from utils import IMAGE_FOLDER, UserError, refuse_lfs_pointer

PROJECT = IMAGE_FOLDER.parent

GRAPH = "is a TensorFlow graph and keeps no layers: give the Keras file that it came from"
TORCH = "is a PyTorch file: build the network in Keras, copy the weights into it, and save it there"
FOREIGN = {  # endings of networks that are not Keras's, and what to do
    ".tflite": "is a TensorFlow Lite file and has no layers: give the Keras file that it came from",
    ".pb": GRAPH,
    ".onnx": "is an ONNX network: give the Keras file that it came from, or convert it to Keras",
    ".pt": TORCH,
    ".pth": TORCH,
}
REFUSED = {  # by patterns of class names
    "Lambda|__lambda__|TFSMLayer|TorchModuleWrapper|JaxLayer|FlaxLayer": (
        "code of the file, as Lambda layers are, which is not run: use layers of Keras, or classes "
        "named by --import"
    ),
    "TFOpLambda|SlicingOpLambda|ClassMethod|TensorFlowOpLayer": (
        "TensorFlow between the layers, as in `inputs / 255.`, which Keras 3 cannot read: use a "
        "layer such as Rescaling, load the weights into that network, and save it again"
    ),
    "Random(Height|Width)|LocallyConnected[12]D|ThresholdedReLU|CuDNN(GRU|LSTM)": (
        "a layer that Keras 3 no longer has: build the network without it, load the weights into "
        "that, and save it again"
    ),
}
LARGEST_CONFIG = 64 << 20  # bytes of a config in a .keras file
NUMBERED = "_layer_checkpoint_dependencies"  # the layers in weights of Keras 2.13
SUBCLASSED = "; a subclassed network is drawn only if it is built as keras.Model(inputs, outputs)"
NETWORKS = ("Sequential", "Functional", "Model")  # classes of networks whose config has layers
FILE_ERRORS = (ValueError, TypeError, LookupError, OSError, RuntimeError, ImportError, EOFError)
FILE_ERRORS += (zipfile.BadZipFile,)  # what libraries raise over a file
MESSAGES = {  # «type: message» of Keras, HDF5, NumPy and TensorFlow, in other words
    r"shape=\(\d+, 1000\), Received: value.shape=\(\d+, (\d+)\)": r"it is for \1 classes, not 1000",
    r"\.shape=(\(.*?\)), Received: value\.shape=(\(.*?\))": r"an array is \2 where \1 is needed",
    "^ValueError: .*(objects could not be loaded|(Layer|Weight) count mismatch)": (
        "its layers differ, or it has no classifier"
    ),
    r"^\w+: (?:Could not locate (?:class|function)|Unknown [\w ]+:) '([\w>]+)'": (
        r"\1 is no class of Keras: name the file that defines and registers it, --import NAME.py"
    ),
    r"Could not deserialize 'keras\.(?:\w+\.)*(\w+)' because": r"this Keras has no \1",
    r"^\w+: Unrecognized keyword .* to (\w+): {'(\w+)'": r"\1 has no '\2' in this Keras",
    "ExternalLink|SoftLink|external Dataset": (
        "a part of it is in another file, which is not read: save the network as a whole"
    ),
    "No cast function available": "its numbers are bfloat16: save the network as .keras",
    "File format not supported": "it is no file of weights that Keras writes (.weights.h5, .h5)",
    "truncated file": "it is truncated: copy or download it again",
    "^RecursionError": "its config is nested too deeply",
    "^DataLossError": "it is not a checkpoint, or is incomplete",
    "^ValueError: .*(allow_pickle=False|contains pickled)": "it holds no arrays, or pickled ones",
    r"^(BadZipFile|OSError: .*Unable to|KeyError: .*(model_config|\.json))": (
        "it is not a Keras network, or is incomplete"
    ),
}


@dataclass(frozen=True)
class Weights:
    """What --weights names: a word, or a file or folder; whether that is a whole saved network."""

    word: str
    path: Path | None = None
    saved: bool = False

    @property
    def title(self) -> str:
        """Its name in headings."""
        return self.path.name if self.path else self.word


def refuse_foreign(path: Path) -> None:
    """UserError for a network that another library saved, with what to do; costs no TensorFlow."""
    if (path / "saved_model.pb").exists() and not (path / "keras_metadata.pb").exists():
        lost = "that keeps no layers, as Keras 3 exports it: give the .keras file of the network"
        raise UserError(f"{path} is a SavedModel {lost}")
    if (path / "saved_model.pb").exists():
        load_it = "tf_keras.models.load_model opens it, .save('mine.h5') saves it as a Keras file"
        raise UserError(f"{path} is a SavedModel: {load_it}")
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{path} is no regular file")  # reading a pipe may wait for ever
    if path.is_file():
        refuse_lfs_pointer(path)
    if path.suffix.lower() in FOREIGN:
        raise UserError(f"{path} {FOREIGN[path.suffix.lower()]}")


def is_saved_network(path: Path) -> bool:
    """Whether a file holds a whole Keras network, and not weights alone."""
    if not h5py.is_hdf5(path):  # as Keras wrote it, also under .keras, up to 2.11
        return path.suffix == ".keras"
    try:
        with h5py.File(path) as file:
            if not len(file) and not len(file.attrs):
                raise UserError(f"{path} is an HDF5 file with nothing in it")
            return "model_config" in file.attrs
    except OSError as error:
        raise UserError(f"{path}: {explain_error(error, path)}") from error


def is_loading_error(error: Exception) -> bool:
    """Whether a library raised this over a file or a download; else it is a mistake of ours."""
    frames = traceback.extract_tb(error.__traceback__)
    if frames and Path(frames[-1].filename).parent in (PROJECT, PROJECT / "cnnvis"):
        return False
    library = type(error).__module__.partition(".")[0]
    unnamed = type(error) is Exception  # as keras.utils.get_file raises it
    return isinstance(error, FILE_ERRORS) or unnamed or library in ("tensorflow", "tarfile")


def explain_error(error: Exception, path: Path | None = None) -> str:
    """What a library said of a file, on one line, in plain words where they are known."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    text = " ".join(str(error).split())
    text = text.rpartition("Exception encountered:")[2].strip()  # the last one is the cause
    searched = text.replace(str(path), "") if path else text  # a path must not match a pattern
    for pattern, words in MESSAGES.items():
        if match := re.search(pattern, f"{type(error).__name__}: {searched}"):
            return match.expand(words)
    return text[:250]


def import_code(name: str) -> None:
    """Run NAME.py, or import a module: the classes that it registers are then known to Keras.

    UserError with the cause for code that fails."""
    path = Path(name)
    try:
        if path.suffix == ".py":
            with own_imports_first(path.resolve().parent):
                run_file(path)
        else:
            importlib.import_module(name)
    except (Exception, SystemExit) as error:  # anything: it is another person's code
        is_missing = name in (getattr(error, "name", ""), getattr(error, "filename", ""))
        hint = ": give a .py file or an installed module" if is_missing else ""
        message = " ".join(str(error).split())
        text = f"--import {name}: {type(error).__name__}: {message}{hint}"
        raise UserError(text) from error


def run_file(path: Path) -> None:
    """Run a Python file as a module."""
    spec = importlib.util.spec_from_file_location(f"import_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)


@contextlib.contextmanager
def own_imports_first(folder: Path) -> Iterator[None]:
    """Let a file import the modules beside it, even those with the name of one of ours."""
    beside = {each.stem for each in folder.glob("*.py")} | {each.name for each in folder.glob("*/")}
    ours = {name: sys.modules[name] for name in list(sys.modules) if is_ours(name, beside)}
    if folder == PROJECT:
        ours = {}
    for name in ours:
        del sys.modules[name]
    path = list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = dict.fromkeys([*path, *sys.path])  # last: what is imported by a class in use
        sys.modules.update(ours)


def is_ours(name: str, beside: set[str]) -> bool:
    """Whether a module of this project has the name of one beside another person's file."""
    file = getattr(sys.modules[name], "__file__", None) or ""
    return name.partition(".")[0] in beside and Path(file).is_relative_to(PROJECT)


def load_saved_model(path: Path) -> Any:
    """A saved network as Keras builds it, from .keras or HDF5; no code of the file is run.

    UserError: a file that Keras cannot read, or with code in it."""
    config, version = {}, ""
    try:
        config, version = read_saved(path)
        check_config(config)
        refuse_parts(config)
        refuse_lost_lora(config, path)
        is_old = version_numbers(version) < [3]
        return build_saved(path, convert_config(config) if is_old else None)
    except RefusedError as error:
        raise UserError(f"cannot open the network {path}: {error}") from error
    except (*FILE_ERRORS, AttributeError) as error:  # only Keras, h5py and zipfile run here
        reason = explain_error(error, path)
        if config:
            reason = with_advice(reason, path, config, version)
        raise UserError(f"cannot open the network {path}: {reason}") from error


def read_saved(path: Path) -> tuple[Any, str]:
    """The config of a saved network, .keras or HDF5, and the version of Keras that wrote it."""
    if h5py.is_hdf5(path):
        with h5py.File(path) as file:
            config = json.loads(file.attrs["model_config"])
            version = file.attrs.get("keras_version", "1")
    else:
        with zipfile.ZipFile(path) as file:
            config = read_json(file, "config.json")
            metadata = read_json(file, "metadata.json")
        version = metadata.get("keras_version", "") if isinstance(metadata, dict) else ""
    return config, version.decode() if isinstance(version, bytes) else str(version)


def read_json(archive: zipfile.ZipFile, name: str) -> Any:
    """What a file of an archive holds. RefusedError: too much, as in a zip bomb."""
    size = archive.getinfo(name).file_size
    if size > LARGEST_CONFIG:
        raise RefusedError(f"its {name} is {size >> 20} MB, more than a network needs")
    return json.loads(archive.read(name))


def version_numbers(version: str) -> list[int]:
    """The numbers in a version of Keras, at most three."""
    if not re.match(r"\d", version):
        raise RefusedError(f"it names no version of Keras that wrote it, but {version!r}")
    return [int(number) for number in re.findall(r"\d+", version)[:3]]


def check_config(config: Any) -> None:
    """RefusedError for a config that describes no network."""
    kind, inner = None, None
    if isinstance(config, dict):
        kind, inner = config.get("class_name"), config.get("config")
    layers = inner.get("layers") if isinstance(inner, dict) else inner  # Keras 2.2: a bare list
    if kind in NETWORKS and layers == []:
        raise RefusedError("it is a network without layers")
    is_network = isinstance(kind, str) and isinstance(inner, dict | list)
    if is_network and (kind in NETWORKS or isinstance(inner, list)):
        is_network = isinstance(layers, list) and all(is_layer(layer) for layer in layers)
    if not is_network:
        raise RefusedError("its config describes no network")


def is_layer(config: Any) -> bool:
    """Whether a part of a config describes a layer."""
    named = isinstance(config, dict) and isinstance(config.get("class_name"), str)
    return named and isinstance(config.get("config"), dict | list)


def refuse_parts(config: Any) -> None:
    """RefusedError for a part of a config that would run code, or that Keras 3 does not have."""
    for part in config_parts(config):
        kind = part.get("class_name")
        for pattern, reason in REFUSED.items():
            if isinstance(kind, str) and re.fullmatch(pattern, kind):
                raise RefusedError(f"«{part.get('name') or kind}» is {reason}")


def refuse_lost_lora(config: Any, path: Path) -> None:
    """RefusedError for a scale of LoRA that Keras forgets: in .keras it is part of the kernel."""
    for part in config_parts(config):
        alpha = part.get("lora_alpha")
        is_lost = h5py.is_hdf5(path) and "kernel_size" not in part  # a convolution keeps it
        if is_lost and alpha not in (None, part.get("lora_rank")):
            lost = "which Keras does not read from HDF5: save the network as .keras"
            raise RefusedError(f"«{part.get('name')}» has LoRA of lora_alpha={alpha}, {lost}")


def quantised_to(config: Any) -> str:
    """The quantisation of a layer of a network, empty where there is none."""
    modes = (str(part.get("mode")) for part in config_parts(config) if "source_name" in part)
    return next(modes, "")


def with_advice(reason: str, path: Path, config: dict, version: str) -> str:
    """Why Keras cannot build a network, and what to do, by the version that saved it."""
    written, installed = version_numbers(version), version_numbers(keras.__version__)
    if written < [2]:
        return "Keras 1 saved it: load it with Keras 2, and save it there again"
    if written > installed:
        newer = f"newer than {keras.__version__} here: upgrade Keras"
        return f"{reason} (saved by Keras {version}, {newer})"
    operation = find_operation(config)
    if operation and written >= [3] and h5py.is_hdf5(path):
        not_kept = "an operation between the layers, which HDF5 does not keep"
        return f"«{operation}» is {not_kept}: save the network as .keras"
    if "--import" in reason:
        is_subclassed = "layers" not in config["config"]
        return reason + (SUBCLASSED if is_subclassed else "")
    mode = quantised_to(config)
    if mode:
        kept = "which Keras does not read back of every layer: save the network before quantize()"
        return f"{reason} (it is quantised to {mode}, {kept})"
    advice = (
        f" (saved by Keras {version}, of which Keras 3 reads only a part: load it "
        "there, save the weights, and load those into the same network built with Keras 3)"
    )
    return reason + (advice if written < [3] else "")


def find_operation(config: Any) -> str:
    """The name of a function of keras.ops in the config of a network, empty where there is none."""
    for part in config_parts(config):
        arguments = part.get("config")
        is_node = "inbound_nodes" in part and isinstance(arguments, dict)
        if is_node and "trainable" not in arguments and part["class_name"] != "InputLayer":
            return str(part.get("name"))
    return ""


def build_saved(path: Path, converted: dict | None) -> Any:
    """The network that Keras builds in its safe mode.

    converted: its config, where Keras 2 saved it."""
    classes = keras.saving.get_custom_objects().items()  # of --import, as PACKAGE>NAME
    named = {name.rpartition(">")[2]: each for name, each in classes}
    own = {name: each for name, each in named.items() if not hasattr(keras.layers, name)}
    words = {"dot": "dot"}  # of Attention, which HDF5's reader takes for the function of layers
    scope = keras.saving.custom_object_scope({**words, **own})
    with tempfile.TemporaryDirectory() as folder, scope:
        file = readable_copy(path, Path(folder), bool(converted))
        if not converted:
            return keras.saving.load_model(file, compile=False)
        model = keras.models.model_from_json(json.dumps(converted))
        model.load_weights(file)
        return model


def readable_copy(path: Path, folder: Path, is_old: bool) -> Path:
    """A saved network's file, or a copy where Keras does not read it under its name.

    Keras before 3.0 wrote backslashes into the names of weights on Windows (keras issue 18528)."""
    if h5py.is_hdf5(path):
        plain = re.search(r"(?<!\.weights)\.(h5|hdf5)$", path.name)
        return path if plain else shutil.copyfile(path, folder / "network.h5")
    if not is_old:
        return path
    with zipfile.ZipFile(path) as archive:
        weights = Path(archive.extract("model.weights.h5", folder))
    with h5py.File(weights, "r+") as file:
        for name in [name for name in file if "\\" in name]:
            file.move(name, name.replace("\\", "/"))
        renumber_layers(file)
    return weights


def renumber_layers(file: h5py.File) -> None:
    """Number the layers of a class one by one: Keras 2.13 counted those with weights twice."""
    groups = []
    file.visititems(lambda name, group: groups.append(group) if name.endswith(NUMBERED) else None)
    for group in groups:
        counts = Counter()
        for name in sorted(group, key=lambda name: int((re.findall(r"_(\d+)$", name) or [0])[0])):
            kind = re.sub(r"_\d+$", "", name)
            number = counts[kind]
            counts[kind] += 1
            renamed = f"{kind}_{number}" if number else kind
            if renamed != name:
                group.move(name, renamed)
