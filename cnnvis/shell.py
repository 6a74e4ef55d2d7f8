"""The process of a script: its threads, Ctrl-C, and text on stdout.

It imports nothing slow: a script calls `prepare_process` before its other imports."""

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

INTERRUPTED = 130  # the exit code after Ctrl-C


def prepare_process() -> None:
    """Prepare the process of a script, before NumPy is imported.

    NumPy multiplies small matrices only. Its threads would wait busily for more, and take the time
    from TensorFlow's: a folder takes a fifth longer. matplotlib draws in memory, with its own
    settings: those of a person, who may have set it up for a notebook, are not even read."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ |= {"MPLBACKEND": "agg", "MATPLOTLIBRC": os.devnull}
    exit_on_interrupt()


def exit_on_interrupt() -> None:
    """Let Ctrl-C end the process at once, with one line: while it starts nothing is half done.

    A signal that is ignored, as in the background of a shell script, stays ignored. Where a person
    goes on after the script, as after %run in IPython, nothing changes."""
    is_interactive = hasattr(sys, "ps1") or sys.flags.interactive
    if not is_interactive and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, exit_at_once)


def exit_at_once(*_: Any) -> None:
    """Handle SIGINT: libraries may swallow a KeyboardInterrupt while they are imported."""
    with contextlib.suppress(OSError):
        os.write(2, b"stopped\n")
    os._exit(INTERRUPTED)


@contextlib.contextmanager
def interrupts_raised() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt as usual, where `exit_on_interrupt` was called before."""
    exits = signal.getsignal(signal.SIGINT) is exit_at_once
    if exits:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if exits:
            signal.signal(signal.SIGINT, exit_at_once)


def write_stdout(text: bytes) -> str:
    """Write text on stdout at once, since its reader may close the pipe early.

    Returns why it cannot be written, or nothing."""
    try:
        if sys.__stdout__ is None:  # closed at the start: 1 may be another file by now
            raise OSError(errno.EBADF, "")
        os.write(1, text)
    except OSError as error:
        return os.strerror(error.errno)
    return ""
