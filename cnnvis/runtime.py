"""What every run needs: lazy Keras and TensorFlow, exit codes, messages and progress on stderr.

Importing it costs no TensorFlow, so that wrong words on the command line are reported at once.
It knows nothing of photographs, networks or figures."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from utils import UserError

os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever keras.json says: the methods need its tapes
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

MESSAGE_LENGTH = 600  # characters of a message on stderr
REPORT_SECONDS = 30  # between two reports of progress where stderr is no terminal


def log(text: str) -> None:
    """Print a message on stderr, on one line."""
    print(textwrap.shorten(text, MESSAGE_LENGTH, placeholder=" …"), file=sys.stderr)


log_once = functools.cache(log)  # the same message at most once a run


def abbreviate(words: Sequence[str]) -> str:
    """The first of many words, for a message."""
    return ", ".join(words if len(words) < 6 else [*words[:5], "…"])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence TensorFlow's C++ log, which does not respect its own log level at import."""
    with open(os.devnull, "w") as nowhere, os.fdopen(os.dup(2), "w") as terminal:
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
        with quiet():
            module = importlib.import_module(self._name)
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
        with contextlib.redirect_stdout(sys.stderr):  # stdout is the list of files
            return main()
    except (UserError, OSError) as error:  # OSError: a file that cannot be read or written
        log(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        log("stopped")
        return 130


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
