"""What every run needs: lazy Keras and TensorFlow, exit codes, messages and progress on stderr.

Importing it costs no TensorFlow, so that mistyped options are reported at once.
It knows nothing of photographs, networks or figures."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import functools
import importlib
import logging
import os
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from cnnvis.shell import INTERRUPTED, interrupts_raised
from utils import UserError

os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever keras.json says: the methods need its tapes
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

MESSAGE_LENGTH = 600  # characters of a message on stderr
REPORT_SECONDS = 30  # between two reports of progress where stderr is no terminal
STDERR_LOCK = threading.RLock()  # held while something writes to stderr, or replaces it
AHEAD = 2  # steps that a thread may be ahead of the main one, or behind it


def log(text: str) -> None:
    """Print a message on stderr, on one line, after what a BackgroundThread has yet to do."""
    line = textwrap.shorten(text, MESSAGE_LENGTH, placeholder=" …")
    background = BackgroundThread.active
    if background and background.owner is threading.current_thread():
        background.append(print_line, line)
    else:
        print_line(line)


def print_line(line: str) -> None:
    """Print a line on stderr, unless that is closed or its disk is full."""
    with STDERR_LOCK, contextlib.suppress(OSError):
        print(line, file=sys.stderr)


log_once = functools.cache(log)  # the same message at most once a run


def abbreviate(words: Sequence[str]) -> str:
    """The first of many words, for a message."""
    return ", ".join(words if len(words) < 6 else [*words[:5], "…"])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence TensorFlow's C++ log, which does not respect its own log level at import."""
    with STDERR_LOCK, open(os.devnull, "w") as nowhere, os.fdopen(os.dup(2), "w") as terminal:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal.fileno(), 2)


class LazyModule:
    """A module that is imported when an attribute is first read."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        try:
            with quiet():
                module = importlib.import_module(self._name)
        except Exception as error:  # Keras reads its settings
            hint = "it may be the settings in ~/.keras/keras.json"
            raise UserError(f"cannot import {self._name}: {error} ({hint})") from error
        value = getattr(module, attribute)
        setattr(self, attribute, value)
        return value


keras = LazyModule("keras")
tf = LazyModule("tensorflow")


@contextlib.contextmanager
def default_keras_settings() -> Iterator[None]:
    """Channels last and float32, whatever keras.json or a notebook's policy say; restored after."""
    config = keras.config
    data_format, floatx = config.image_data_format(), config.floatx()
    policy = config.dtype_policy()
    config.set_image_data_format("channels_last")
    config.set_floatx("float32")
    config.set_dtype_policy("float32")
    try:
        yield
    finally:
        config.set_image_data_format(data_format)
        config.set_floatx(floatx)
        config.set_dtype_policy(policy)


def run(main: Callable[[], int]) -> int:
    """The exit code of a program: 2 after an error that the user can fix, 130 after Ctrl-C.

    The text of such an error is printed on one line, without a traceback."""
    logging.disable(logging.WARNING)  # messages of libraries to programmers
    warnings.simplefilter("ignore")
    try:
        with interrupts_raised(), contextlib.redirect_stdout(sys.stderr):  # stdout lists the files
            return main()
    except (UserError, OSError) as error:  # OSError: a file that cannot be read or written
        log(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        log("stopped")
        return INTERRUPTED


def progress(count: int) -> Callable[[], None]:
    """A function to call after each of `count` steps.

    It shows a progress bar where stderr is a terminal, elsewhere a line every 30 seconds."""
    if count < 2:
        return lambda: None
    if sys.stderr.isatty():
        return functools.partial(keras.utils.Progbar(count).add, 1)
    return ProgressReport(count).advance


class ProgressReport:
    """Progress in lines of text, such as «12 of 45, about 6 min left»."""

    def __init__(self, count: int):
        self.count = count
        self.done = 0
        self.started = self.reported = time.monotonic()

    def advance(self) -> None:
        """Count a step, and report if the last report is some time ago."""
        self.done += 1
        now = time.monotonic()
        if now - self.reported < REPORT_SECONDS or self.done >= self.count:
            return
        self.reported = now
        seconds = (now - self.started) / self.done * (self.count - self.done)
        left = f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
        log(f"{self.done} of {self.count}, about {left} left")


# --- beside the main thread ---


def compute_ahead(function: Callable, items: Iterable, count: int = AHEAD) -> Iterator:
    """function(item) of each item, in order; a thread computes them, up to `count` ahead of use.

    An exception is raised when its item is due."""
    ahead = collections.deque()
    pool = concurrent.futures.ThreadPoolExecutor(1)
    try:
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) > count:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class BackgroundThread:
    """A thread that makes calls in the order in which they come, while the main one goes on.

    Messages of the main thread wait for the calls before them. After a call that fails no other
    is made; its exception is raised by the next `submit`, or at the end of the `with` statement."""

    active = None  # the one that messages wait for

    def __init__(self, count: int = AHEAD):
        """count: how many calls may wait."""
        self.count = count
        self.owner = threading.current_thread()
        self.pool = concurrent.futures.ThreadPoolExecutor(1)
        self.pending = collections.deque()

    def append(self, call: Callable, *arguments: Any) -> None:
        """Make a call after those before it."""
        before = self.pending[-1] if self.pending else None
        self.pending.append(self.pool.submit(self.follow, before, call, *arguments))

    @staticmethod
    def follow(before: Any, call: Callable, *arguments: Any) -> None:
        """Make a call, unless the one before it failed."""
        if before:
            before.result()
        call(*arguments)

    def submit(self, call: Callable, *arguments: Any) -> None:
        """Like `append`, but wait first while more than `count` calls are pending."""
        while len(self.pending) > self.count or (self.pending and self.pending[0].done()):
            self.pending.popleft().result()
        self.append(call, *arguments)

    def __enter__(self) -> BackgroundThread:
        BackgroundThread.active = self
        return self

    def __exit__(self, kind: type | None, *_: Any) -> None:
        """Wait for all calls; after Ctrl-C for the current one only."""
        BackgroundThread.active = None
        is_stopped = bool(kind) and not issubclass(kind, Exception)
        self.pool.shutdown(cancel_futures=is_stopped)
        if self.pending and not is_stopped:
            self.pending[-1].result()
