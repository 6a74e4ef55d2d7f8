"""Several machines: the workers of TensorFlow's cluster (TF_CONFIG or SLURM), and gathering.

Every worker runs the same command; collectives gather what figures over all photographs need."""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import hashlib
import io
import os
import pickle
import shutil
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from cnnvis.runtime import log_once, quiet, tf
from utils import UserError

WAIT_SECONDS = 60  # for the other workers to start
SILENT_SECONDS = 10  # before it says that it waits
WATCH_SECONDS = 5  # between two looks at them
MISSES = 3  # that make a worker a lost one
GATHERED = {  # the classes of what is gathered
    *(("numpy", name) for name in ("ndarray", "dtype", "_reconstruct", "scalar", "_frombuffer")),
    *(("pathlib", name) for name in ("Path", "PosixPath", "WindowsPath")),
    *(("cnnvis", name) for name in ("Box", "ConfusionCounts", "Failure", "Geometry")),
    ("collections", "Counter"),
}


def read_resolver() -> Any:
    """The cluster resolver of TF_CONFIG, or of SLURM's variables. UserError: they are wrong."""
    resolvers = tf.distribute.cluster_resolver
    try:
        if "TF_CONFIG" in os.environ:
            resolver = resolvers.TFConfigClusterResolver()
        elif shutil.which("nvidia-smi"):
            resolver = resolvers.SlurmClusterResolver()
        else:  # it divides by the number of GPUs: it is given some, which are then left out
            slurm = resolvers.SlurmClusterResolver(None, 8888, 999, 1, auto_set_gpu=False)
            spec = slurm.cluster_spec()  # which finds the own task
            own = ("", *slurm.get_task_info(), "", {"GPU": 0}, "grpc")
            resolver = resolvers.SimpleClusterResolver(spec, *own)
        if resolver.task_id in range(len(resolver.cluster_spec().job_tasks("worker"))):
            return resolver
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(f"the cluster cannot be read: {error}") from error
    raise UserError("the cluster has no such worker: its task must be one of its workers")


class Unpickler(pickle.Unpickler):
    """Reads what a worker gives: arrays, paths and our own tuples, and nothing that runs code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.partition(".")[0], name) not in GATHERED:
            raise UserError(f"a worker sent {module}.{name}, which is not expected")
        return super().find_class(module, name)


class Cluster:
    """The workers of a run, seen by one of them."""

    def __init__(self):
        """Wait for the other workers. It comes before any other operation of TensorFlow."""
        resolver = read_resolver()
        self.index = resolver.task_id
        self.addresses = resolver.cluster_spec().job_tasks("worker")
        self.names = [f"worker {index} ({at})" for index, at in enumerate(self.addresses)]
        self.others = [index for index in range(len(self.addresses)) if index != self.index]
        self.lost = []  # those that do not answer any more
        self.wait_for_others()
        kinds = tf.distribute.experimental
        ring = kinds.CommunicationOptions(implementation=kinds.CommunicationImplementation.RING)
        try:
            with quiet():  # TensorFlow up to 2.20 logs that it connects
                self.strategy = tf.distribute.MultiWorkerMirroredStrategy(resolver, ring)
        except (tf.errors.OpError, RuntimeError) as error:  # such as a port that is taken
            raise UserError(f"{self.names[self.index]} cannot join the cluster: {error}") from error
        threading.Thread(target=self.watch, daemon=True).start()

    def share(self, items: Sequence) -> list:
        """Every n-th of some items: those of this worker."""
        return list(items)[self.index :: len(self.addresses)]

    # --- workers that are lost ---

    def wait_for_others(self) -> None:
        """Wait until every other worker has its port open, as this one has meanwhile.

        TensorFlow itself waits for ever, and cannot be interrupted. UserError: one is missing."""
        port = int(self.addresses[self.index].rpartition(":")[2])
        missing, ends = self.others, time.monotonic() + WAIT_SECONDS
        try:
            with socket.create_server(("", port)):
                while missing and time.monotonic() < ends:
                    time.sleep(0.2)
                    missing = self.silent()
                    if missing and time.monotonic() > ends - WAIT_SECONDS + SILENT_SECONDS:
                        log_once(f"waiting for {self.names[missing[0]]}")
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise UserError(f"{self.names[self.index]} cannot open its port: {reason}") from error
        if missing:
            missing = [self.names[index] for index in missing]
            raise UserError(f"no answer from {', '.join(missing)}")

    def silent(self) -> list[int]:
        """The other workers that accept no connection."""
        silent = []
        for index in self.others:
            host, _, port = self.addresses[index].rpartition(":")
            try:
                socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            except OSError:
                silent.append(index)
        return silent

    def watch(self) -> None:
        """Find out in a thread whether every other worker still answers."""
        misses = dict.fromkeys(self.others, 0)
        while not self.lost:
            time.sleep(WATCH_SECONDS)
            silent = self.silent()
            misses = {index: (count + 1) * (index in silent) for index, count in misses.items()}
            self.lost = [index for index in silent if misses[index] >= MISSES]

    def loss(self) -> str:
        """What is said of lost workers."""
        who = ", ".join(self.names[index] for index in self.lost) or "another worker"
        return f"{who} ended: its share of the photographs is missing"

    def check(self) -> None:
        """UserError where another worker is lost."""
        if self.lost:
            raise UserError(self.loss())

    # --- gathering ---

    def gather(self, value: Any) -> list:
        """What every worker gives, in their order. UserError: one of them ended.

        Another thread waits in TensorFlow, so that Ctrl-C and the loss of a worker end it."""
        gathered = concurrent.futures.Future()
        threading.Thread(target=self.exchange, args=(value, gathered), daemon=True).start()
        while True:
            self.check()
            with contextlib.suppress(TimeoutError):
                return gathered.result(timeout=1)

    def exchange(self, value: Any, gathered: concurrent.futures.Future) -> None:
        """Set what every worker gives as the result of a Future."""
        content = np.frombuffer(pickle.dumps(value), np.uint8)
        content = np.pad(content, (0, -len(content) % 4)).view(np.int32)  # uint8 is not gathered
        try:
            sizes = self.collect(np.array([len(content)], np.int32))
            parts = np.split(self.collect(content), np.cumsum(sizes)[:-1])
            values = [Unpickler(io.BytesIO(part.tobytes())).load() for part in parts]
        except tf.errors.OpError:
            self.lost = self.lost or self.silent()
            gathered.set_exception(UserError(self.loss()))
        except UserError as error:
            gathered.set_exception(error)
        else:
            gathered.set_result(values)

    def collect(self, values: np.ndarray) -> np.ndarray:
        """The values of all workers, one after the other; of a worker's GPUs the first speaks."""
        devices = self.strategy.num_replicas_in_sync // len(self.addresses)

        def of_device(context):
            speaks = context.replica_id_in_sync_group % devices == 0
            return tf.constant(values if speaks else values[:0])

        shares = self.strategy.experimental_distribute_values_from_function(of_device)
        return self.strategy.gather(shares, axis=0).numpy()


def join(options: argparse.Namespace, paths: Sequence) -> Cluster:
    """The Cluster of a run. UserError: its workers have other photographs (paths) or options."""
    cluster = Cluster()
    settings = [getattr(options, name) for name in options.constants if name != "output"]
    digest = hashlib.sha1(b"\n".join(os.fsencode(path.name) for path in paths)).hexdigest()
    first, *rest = cluster.gather(((f"{len(paths)} photographs", digest), repr(settings)))
    for index, other in enumerate(rest, 1):
        if other != first:
            what = f"see different photographs: {first[0][0]} and {other[0][0]}, or other names"
            what = "have different options" if other[0] == first[0] else what
            raise UserError(f"{cluster.names[0]} and {cluster.names[index]} {what}")
    return cluster
