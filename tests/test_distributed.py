"""Two workers on one machine, over loopback, against one process."""

import io
import json
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers as kl
from runs import CHATTER, ROOT, Done, arrays, program, refusal, save_photo, start

from cnnvis import distributed
from cnnvis.failures import ConfusionCounts, Failure
from utils import UserError

COUNT = 37
WORDS = "photos --weights mine.keras --figures"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a small network, photographs in a sub-folder a class, and true boxes."""
    folder = tmp_path_factory.mktemp("cluster")
    keras.utils.set_random_seed(1)
    image = keras.Input((32, 32, 3))
    how = {"padding": "same", "activation": "relu"}
    x = kl.Conv2D(8, 3, **how, name="conv1")(kl.Rescaling(1 / 255)(image))
    x = kl.Conv2D(12, 3, strides=2, **how, name="conv2")(x)
    x = kl.Dense(3, "softmax")(kl.GlobalAveragePooling2D()(x))
    keras.Model(image, x).save(folder / "mine.keras")
    lines = ["photo,class,x0,y0,x1,y1"]
    for number in range(COUNT):
        label = ("cat", "dog", "fox")[number % 3]
        path = save_photo(folder / "photos" / label / f"{number:02}.png")
        lines.append(f"photos/{label}/{path.name},{label},10,10,{40 + number},50")
    path.write_bytes(b"broken")
    (folder / "boxes.csv").write_text("\n".join(lines))
    return folder


def free_addresses(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    return addresses


def start_workers(script, *words, cwd, count=2):
    """Processes of workers, each with its own folder of results, worker0 …"""
    cluster = {"worker": free_addresses(count)}
    processes = []
    for index in range(count):
        task = {"cluster": cluster, "task": {"type": "worker", "index": index}}
        at = cwd[index] if isinstance(cwd, list) else cwd
        output = f"--output worker{index}"
        processes.append(start(script, *words, output, cwd=at, TF_CONFIG=json.dumps(task)))
    return processes


def end(process, cwd):
    out, err = process.communicate(timeout=240)
    return Done(process.returncode, out.splitlines(), err.splitlines(), cwd)


def without_drawn(lines):
    """Lines on stderr but for the one that counts the photographs of a worker."""
    return [line for line in lines if not line.startswith(("photographs: ", "skipped: "))]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("deconvnet_vgg", "top9,comparison --arrays --layers conv2 --kernels 0-3"),
        ("gradcam_vgg", "failures,table --arrays"),
        ("gradcam_vgg", "boxes --boxes boxes.csv --arrays"),
    ],
)
def test_two_workers_find_what_one_process_finds(folder, script, words):
    alone = program(script, WORDS, words, "--output alone", cwd=folder)
    workers = [end(each, folder) for each in start_workers(script, WORDS, words, cwd=folder)]
    first, second = workers
    assert alone.code == first.code == second.code == 1, (alone.err, first.err, second.err)
    names = [{Path(line).name for line in done.out} for done in (alone, *workers)]
    assert names[0] == names[1] | names[2] and not names[1] & names[2]
    over_all = [name for name in names[0] if not re.match(r"\d\d_mine_", name)]
    assert over_all and set(over_all) <= names[1]
    assert without_drawn(alone.err) == without_drawn(first.err)
    every_line = [line for done in workers for line in done.err]
    assert len([line for line in every_line if line.startswith("skipped: ")]) == 1
    assert not [line for line in every_line if CHATTER.search(line)]
    for index in range(2):
        for name in [name for name in names[1 + index] if name.endswith((".npz", ".csv"))]:
            compare(folder / "alone" / name, folder / f"worker{index}" / name)


def compare(expected, found):
    if found.suffix == ".csv":
        assert found.read_text() == expected.read_text()  # with the digests of the settings
        return
    ours, theirs = arrays(found), arrays(expected)
    assert [*ours] == [*theirs]
    for key, values in theirs.items():
        np.testing.assert_allclose(ours[key], values, rtol=0, atol=1e-4, err_msg=key)


def test_a_worker_that_is_killed_ends_the_other(folder):
    words = f"{WORDS} trust,table --classes 0,1,2"
    first, second = start_workers("gradcam_vgg", words, cwd=folder)
    second.stdout.readline()
    second.kill()
    killed = time.monotonic()
    done = end(first, folder)
    second.communicate()
    assert time.monotonic() - killed < 60 and done.code == 2
    assert re.match(r"error: worker 1 \(127\.0\.0\.1:\d+\) ended", done.err[-1])
    assert not [line for line in done.err if CHATTER.search(line)]
    assert not [*(folder / "worker0").glob(".*")]


def test_ctrl_c_while_a_worker_waits_for_another_is_one_line(folder, listening):
    first, second = start_workers("gradcam_vgg", f"{WORDS} overlay,table", cwd=folder)
    second.stdout.readline()
    second.send_signal(signal.SIGSTOP)
    while line := first.stderr.readline():
        if line.startswith("photographs: "):
            break
    time.sleep(1)
    first.send_signal(signal.SIGINT)
    done = end(first, folder)
    second.kill()
    second.communicate()
    assert (done.code, done.err[-1]) == (130, "stopped")


def test_workers_that_see_different_folders_end(folder, tmp_path):
    for path in [folder / "mine.keras", *folder.glob("photos/*/*.png")][:-1]:
        other = tmp_path / path.relative_to(folder)
        other.parent.mkdir(parents=True, exist_ok=True)
        other.write_bytes(path.read_bytes())
    places = [folder, tmp_path]
    workers = start_workers("gradcam_vgg", WORDS, "table", cwd=places)
    for process, place in zip(workers, places, strict=True):
        done = end(process, place)
        assert done.code == 2 and not done.out
        assert "see different photographs: 37 photographs and 36" in done.err[-1]


def test_without_a_cluster_nothing_of_it_is_imported(folder):
    """Nor where a step of SLURM has one task only."""
    words = "runpy.run_path('gradcam_vgg.py', run_name='__main__')"
    code = f"import runpy, sys\ntry: {words}\nfinally: print('cnnvis.distributed' in sys.modules)"
    photo = next(folder.glob("photos/cat/*.png"))
    more = ["--weights", folder / "mine.keras", "--figures", "classes", "--output", folder / "one"]
    env = os.environ | {"SLURM_STEP_NUM_TASKS": "1"}
    command = [sys.executable, "-c", code, photo, *more]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
    assert done.stdout.split()[1:] == ["False"], done.stderr


def test_slurm_s_variables_make_a_cluster(monkeypatch):
    values = {"PROCID": "1", "STEP_NUM_TASKS": "2", "STEP_TASKS_PER_NODE": "1(x2)"}
    for name, value in {**values, "STEP_NODELIST": "n[1-2]"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.setattr("shutil.which", lambda _: None)  # a machine without GPUs
    resolver = distributed.read_resolver()
    assert resolver.cluster_spec().as_dict() == {"worker": ["n1:8888", "n2:8888"]}
    assert (resolver.task_type, resolver.task_id) == ("worker", 1)


@pytest.mark.parametrize("value", ["{", "{}", '{"cluster": {"ps": ["a:1"]}}', "[]"])
def test_a_wrong_cluster_is_one_line(monkeypatch, value):
    monkeypatch.setenv("TF_CONFIG", value)
    assert "cluster" in refusal(distributed.read_resolver)


@pytest.mark.parametrize("is_taken", [False, True])
def test_a_worker_that_never_joins_or_a_taken_port_is_one_line(monkeypatch, is_taken):
    """TensorFlow would wait for ever inside a call that nothing interrupts."""
    workers = free_addresses(2)
    task = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(task))
    monkeypatch.setattr(distributed, "WAIT_SECONDS", 1)
    expected = "cannot open its port" if is_taken else f"no answer from worker 1 .*{workers[1]}"
    with socket.socket() as taken:
        if is_taken:
            taken.bind(("", int(workers[0].rpartition(":")[2])))
            taken.listen()
        with pytest.raises(UserError, match=expected):
            distributed.Cluster()


def test_what_workers_send_runs_no_code():
    class Trap:
        def __reduce__(self):
            return print, ("code ran",)

    with pytest.raises(UserError, match=r"builtins\.print"):
        distributed.Unpickler(io.BytesIO(pickle.dumps(Trap()))).load()
    failure = Failure(0.5, Path("a"), 1, 0, np.zeros(2), np.zeros((2, 1, 1)))
    sent = [failure, ConfusionCounts({(1, 0): 2}), np.float32(1)]
    found = distributed.Unpickler(io.BytesIO(pickle.dumps(sent))).load()
    assert found[0].path == Path("a") and found[1] == sent[1] and found[2] == 1
