import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
BESIDE = {}


def beside(function):
    """Mark a long job of another process: it begins with the first test, and the fixture of its name waits for it.

    function: of a folder of its own. It runs in a thread, so it must leave what the tests share (seeds, say) alone.
    """
    BESIDE[function.__name__] = function
    return function


@pytest.fixture(scope="session", autouse=True)
def begun(request, tmp_path_factory):
    """{name: future} of the jobs that the chosen tests need, done one after the other."""
    needed = {name for item in request.session.items for name in item.fixturenames}
    with ThreadPoolExecutor(1) as pool:
        yield {name: pool.submit(job, tmp_path_factory.mktemp(name)) for name, job in BESIDE.items() if name in needed}
        pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="session")
def reports(begun):
    return begun["reports"].result()
