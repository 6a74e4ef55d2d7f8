"""Downloads against a server that misbehaves: what is not whole is never taken for weights, now or at the next run."""
import hashlib
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from test_hostile_weights import ARRAYS, KERNEL, write_whole
from test_weights import refusal, tf

import gradcam_googlenet
import utils

NAME, BODY = "weights_of_a_test.h5", os.urandom(300_000)
HALF, PAGE = BODY[:150_000], b"<!DOCTYPE html><title>Sign in</title>" * 200
DIGEST = hashlib.sha256(BODY).hexdigest()


def flipped(place):
    data = bytearray(BODY)
    data[place] ^= 1
    return bytes(data)


class Handler(BaseHTTPRequestHandler):
    """Answers a request in the way that the first part of the address names."""

    def do_GET(self):
        self.server.requests += 1
        WAYS[urllib.parse.unquote(self.path).split("/")[1]](self)
        self.close_connection = True

    def log_message(self, *_):
        """Requests are counted, not told."""

    def answer(self, body=b"", status=200, length=None, **headers):
        """Send a body; length: what is said of it, nothing where it is 0."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if length != 0:
            self.send_header("Content-Length", str(length or len(body)))
        self.end_headers()
        self.wfile.write(body)

    def chunks(self, body, end):
        self.protocol_version = "HTTP/1.1"
        self.answer(f"{len(body):x}\r\n".encode() + body + b"\r\n" + end, length=0, **{"Transfer-Encoding": "chunked"})

    def stall(self):
        """Say no more, for longer than any client of these tests waits."""
        self.server.stalled.set()
        self.server.closing.wait(60)

    def half_then_stall(self):
        self.answer(HALF, length=len(BODY))
        self.stall()

    def half_then_reset(self):
        self.answer(HALF, length=len(BODY))
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def wait_for_another(self):
        """Half of it to two clients before either gets the rest."""
        self.answer(HALF, length=len(BODY))
        self.server.both.wait(60)
        self.wfile.write(BODY[len(HALF):])


WAYS = {
    "whole": lambda client: client.answer(client.server.body),
    "half": lambda client: client.answer(HALF, length=len(BODY)),
    "half without a length": lambda client: client.answer(HALF, length=0),
    "half as if it were whole": lambda client: client.answer(HALF),
    "half of the chunks": lambda client: client.chunks(HALF, b""),
    "half in one chunk": lambda client: client.chunks(HALF, b"0\r\n\r\n"),
    "broken chunks": lambda client: client.chunks(HALF, b"no number\r\n"),
    "a page": lambda client: client.answer(PAGE, **{"Content-Type": "text/html"}),
    "tampered": lambda client: client.answer(BODY[::-1]),
    "the first bit": lambda client: client.answer(flipped(0)),
    "the last bit": lambda client: client.answer(flipped(-1)),
    "more than the whole": lambda client: client.answer(BODY + b"\0"),
    "nothing": lambda client: client.answer(length=0),
    "no answer": lambda client: None,
    "no HTTP": lambda client: client.wfile.write(b"\0\r\n\x1b[31m\r\n" * 99),
    "404": lambda client: client.answer(PAGE, 404),
    "500": lambda client: client.answer(BODY, 500),
    "503": lambda client: client.send_error(503, "one line\x1b[31m"),
    "sent to a page": lambda client: client.answer(status=302, Location="/a%20page/"),
    "sent round": lambda client: client.answer(status=302, Location=client.path),
    "sent to a file": lambda client: client.answer(status=302, Location="file:///etc/passwd"),
    "stalls": Handler.half_then_stall,
    "stalls at once": Handler.stall,
    "reset": Handler.half_then_reset,
    "waits": Handler.wait_for_another,
}


class Server(ThreadingHTTPServer):
    def handle_error(self, *connection):
        if not isinstance(sys.exc_info()[1], OSError):  # a client that has had enough is expected
            super().handle_error(*connection)


@pytest.fixture(scope="module")
def served():
    """The server, in a thread."""
    server = Server(("127.0.0.1", 0), Handler)
    server.closing, server.stalled, server.both = threading.Event(), threading.Event(), threading.Barrier(2)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def server(served):
    served.requests, served.body = 0, BODY
    served.stalled.clear()
    return served


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Keras's folder of weights, empty; its other one; little patience; no proxy between the tests and their server."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "*")
    monkeypatch.setattr(utils, "PATIENCE", 1)
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def address(server, way, name=NAME):
    return f"http://127.0.0.1:{server.server_port}/{urllib.parse.quote(way)}/{name}"


@pytest.fixture
def nowhere():
    """An address where nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}/{NAME}"


def fetch(url, digest=DIGEST):
    return utils.weights_file("imagenet", [utils.Published(url, digest)])


def is_refused(url, cache):
    """The line names the file, where it should come from and where it belongs."""
    line = refusal(fetch, url)
    assert url in line and NAME in line.replace(url, "") and str(cache) in line
    return True


@pytest.mark.parametrize("way", sorted({*WAYS, "nobody listens"} - {"whole", "waits"}))
def test_what_is_not_the_published_file_is_never_taken(server, nowhere, cache, way, capfd):
    assert is_refused(nowhere if way == "nobody listens" else address(server, way), cache)
    assert not os.listdir(cache)
    assert is_refused(nowhere, cache)  # nothing is found at the next run
    assert fetch(address(server, "whole")).read_bytes() == BODY
    assert fetch(nowhere).read_bytes() == BODY
    assert os.listdir(cache) == [NAME] and capfd.readouterr() == ("", "")


@pytest.mark.parametrize("digest", [DIGEST, hashlib.md5(BODY, usedforsecurity=False).hexdigest()])
@pytest.mark.parametrize("way", ["whole", "tampered"])
def test_md5_and_sha256_are_both_checked(server, cache, way, digest):
    url = address(server, way)
    if way == "whole":
        assert fetch(url, digest) == cache / NAME and (cache / NAME).read_bytes() == BODY
    else:
        assert "hash" in refusal(fetch, url, digest)


def test_a_whole_copy_is_taken_without_asking_the_server(server, cache):
    (cache / NAME).write_bytes(BODY)
    assert fetch(address(server, "whole")) == cache / NAME and not server.requests


@pytest.mark.parametrize("remains", [HALF, b"", PAGE, flipped(7), BODY + b"\0"])
def test_a_damaged_copy_is_refused_without_a_network_and_replaced_with_one(server, nowhere, cache, remains):
    (cache / NAME).write_bytes(remains)
    for url in (nowhere, address(server, "half")):
        assert is_refused(url, cache)
        assert (cache / NAME).read_bytes() == remains  # somebody may want to know what came of it
    assert fetch(address(server, "whole")).read_bytes() == BODY and os.listdir(cache) == [NAME]


def test_a_folder_in_the_files_place_is_told(server, cache):
    (cache / NAME).mkdir()
    (cache / NAME / "inside").touch()
    assert is_refused(address(server, "whole"), cache)
    assert os.listdir(cache / NAME) == ["inside"]


def test_a_cache_that_is_not_there_yet_is_made(server, cache, monkeypatch):
    home = cache / "not there" / "yet"
    monkeypatch.setenv("KERAS_HOME", str(home))
    assert fetch(address(server, "whole")) == home / "models" / NAME


@pytest.mark.parametrize("whole", [0, 1])
def test_of_several_published_files_the_whole_one_in_the_cache_is_taken(server, nowhere, cache, whole):
    files = [utils.Published(nowhere.replace(NAME, name), DIGEST) for name in ("top.h5", "notop.h5")]
    for number, file in enumerate(files):
        (cache / file.name).write_bytes(BODY if number == whole else HALF)
    assert utils.weights_file("imagenet", files) == cache / files[whole].name


def test_googlenets_archive_is_fetched_checked_and_unpacked(server, cache, tmp_path, monkeypatch):
    write_whole(tmp_path)
    server.body = (tmp_path / "archive.tar.gz").read_bytes()
    published = utils.Published(address(server, "whole"), hashlib.sha256(server.body).hexdigest())
    kernel = tf.Variable(tf.zeros(ARRAYS[KERNEL].shape))
    monkeypatch.setattr(gradcam_googlenet, "googlenet", lambda: None)
    monkeypatch.setattr(gradcam_googlenet, "variables", lambda model: {KERNEL: (kernel, ARRAYS[KERNEL].shape)})
    name = "archive.tar.gz"
    for way, fits in (("tampered", False), ("a page", False), ("whole", True), ("500", True)):
        published = published._replace(url=address(server, way, name))
        monkeypatch.setattr(gradcam_googlenet, "PUBLISHED", published)
        if fits:
            gradcam_googlenet.build("imagenet", 0)
            assert np.array_equal(kernel, ARRAYS[KERNEL]) and os.listdir(cache) == [name]
        else:
            assert "tiny" in refusal(gradcam_googlenet.build, "imagenet", 0) and not os.listdir(cache)


# ---------------------------------------------------------------------------------------------------------------------
# Programs

PROGRAM = """
import sys
import utils
utils.run(lambda: print(utils.weights_file("imagenet", [utils.Published(*sys.argv[1:])]), file=sys.__stdout__))
"""


def program(url):
    return subprocess.Popen([sys.executable, "-c", PROGRAM, url, DIGEST], cwd=utils.HERE, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("end", [
    "SIGKILL", pytest.param("SIGINT", marks=pytest.mark.skipif(os.name == "nt", reason="Ctrl-C goes to the console"))])
def test_a_download_that_is_stopped_is_fetched_anew(server, nowhere, cache, end):
    with program(address(server, "stalls")) as running:
        assert server.stalled.wait(60)
        running.kill() if end == "SIGKILL" else running.send_signal(signal.SIGINT)
        said = running.communicate(timeout=60)
    if end == "SIGINT":
        assert running.returncode == 130 and said == ("", "stopped\n") and not os.listdir(cache)
    assert is_refused(nowhere, cache)
    assert fetch(address(server, "whole")).read_bytes() == BODY


def test_two_programs_may_fetch_the_same_file_at_the_same_time(server, cache):
    """Their stdout holds what they list; without a terminal no progress is shown."""
    url = address(server, "waits")
    with program(url) as one, program(url) as other:
        said = [running.communicate(timeout=120) for running in (one, other)]
    assert (one.returncode, other.returncode) == (0, 0) and server.requests == 2
    assert (cache / NAME).read_bytes() == BODY and os.listdir(cache) == [NAME]
    for stdout, stderr in said:
        assert stdout == f"{cache / NAME}\n"
        assert stderr.count("\n") <= 2 and "\r" not in stderr and "\x1b" not in stderr
