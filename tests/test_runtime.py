"""Threads beside the main one: order, bounds, errors, Ctrl-C; and a run that uses both."""

import threading
import time
from pathlib import Path

import pytest
from runs import ROOT, save_photo

from cnnvis import results
from cnnvis.runtime import AHEAD, BackgroundThread, compute_ahead, log
from utils import UserError

SHAPES = f"--weights {ROOT}/Image/shapes.keras"


def test_items_are_computed_ahead_in_order_and_only_so_far():
    computed = []
    doubled = compute_ahead(lambda item: computed.append(item) or 2 * item, range(9), 2)
    for item, result in enumerate(doubled):
        assert result == 2 * item
        assert len(computed) <= item + 3
    assert computed == [*range(9)]
    assert [*compute_ahead(str, [])] == []


def test_an_error_of_an_item_is_raised_when_it_is_due():
    quotients = compute_ahead(lambda item: 6 // item, [3, 2, 0, 1])
    assert [next(quotients), next(quotients)] == [2, 3]
    with pytest.raises(ZeroDivisionError):
        next(quotients)


def test_calls_and_messages_keep_their_order(capsys):
    def write(number):
        time.sleep(0.01)
        log(f"written {number}")

    with BackgroundThread() as writer:
        for number in range(5):
            log(f"drawn {number}")
            writer.submit(write, number)
    log("the end")
    lines = [f"{word} {number}" for number in range(5) for word in ("drawn", "written")]
    assert capsys.readouterr().err.splitlines() == [*lines, "the end"]


def test_only_so_many_calls_wait():
    gate, submitted = threading.Event(), []

    def submit_all():
        with BackgroundThread() as writer:
            for number in range(9):
                writer.submit(gate.wait)
                submitted.append(number)

    thread = threading.Thread(target=submit_all)
    thread.start()
    time.sleep(0.2)
    assert len(submitted) == 1 + AHEAD  # the current one, and those that wait
    gate.set()
    thread.join()
    assert len(submitted) == 9 and BackgroundThread.active is None


@pytest.mark.parametrize("count", [1, 9])
def test_after_a_call_that_fails_no_other_is_made(count, capsys):
    made = []

    def fail():
        raise UserError("the disk is full")

    with pytest.raises(UserError, match="disk"), BackgroundThread() as writer:
        writer.submit(made.append, "before")
        writer.submit(fail)
        log("too late")
        for _ in range(count):
            writer.submit(made.append, "after")
    assert made == ["before"] and not capsys.readouterr().err


def test_an_error_of_the_main_thread_lets_the_calls_before_it_end_and_ctrl_c_does_not():
    for error, expected in ((UserError, 3), (KeyboardInterrupt, 1)):
        begun, gate, made = threading.Event(), threading.Event(), []

        def write(begun=begun, gate=gate, made=made):
            begun.set()
            gate.wait()
            made.append(1)

        with pytest.raises(error), BackgroundThread() as writer:
            for _ in range(3):
                writer.submit(write)
            begun.wait()
            threading.Timer(0.1, gate.set).start()
            raise error("now")
        assert len(made) == expected


def test_a_folder_is_drawn_in_order_with_what_cannot_be_read_in_between(run):
    for name in "abcdefg":
        save_photo(Path(f"photos/{name}.png"))
    for name in "ce":
        Path(f"photos/{name}.png").write_bytes(b"broken")
    done = run("gradcam_vgg photos --figures classes,one_class --output out", SHAPES)
    figures = ("classes", "one_class")
    names = [f"out/{name}_shapes_{figure}.jpg" for name in "abdfg" for figure in figures]
    assert done.code == 1 and done.out == names
    skipped = [line for line in done.err if line.startswith("skipped")]
    assert ["c.png" in skipped[0], "e.png" in skipped[1], len(skipped)] == [True, True, 2]
    assert done.err[-1] == "photographs: 5 drawn, 0 there already, 2 unreadable"


def test_a_file_that_cannot_be_written_ends_the_run(run, monkeypatch):
    for name in "abcdefg":
        save_photo(Path(f"photos/{name}.png"))
    write_whole = results.write_whole

    def full(path, fill):
        if path.name.startswith("c"):
            raise UserError(f"cannot write {path}: No space left on device")
        write_whole(path, fill)

    monkeypatch.setattr(results, "write_whole", full)
    done = run("gradcam_vgg photos --figures classes --output out", SHAPES)
    assert done.code == 2 and done.err[-1].startswith("error: cannot write")
    assert done.out == ["out/a_shapes_classes.jpg", "out/b_shapes_classes.jpg"]
    assert done.files("out") == {Path(name).name for name in done.out}
