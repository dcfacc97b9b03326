"""Fixtures of several test modules."""

import logging
import os
import shutil
import zlib

import numpy as np
import pytest
import soundfile
import torch

# The models of the tests are tiny; two workers (`-n 2`) use two processors better than two threads would.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def log_reaches_caplog():
    """Commands that an earlier test ran in this process change the log: its level, and whether caplog hears it."""
    logger = logging.getLogger("gafx")
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def empty_model_cache(monkeypatch, tmp_path_factory):
    """No published model is in the cache, whatever this machine has: `experiment=small` would start from it."""
    monkeypatch.setenv("GAFX_CACHE", str(tmp_path_factory.getbasetemp() / "no-models"))


@pytest.fixture
def rng(request):
    """A random generator seeded by the test's name: the same in every process and in any order of the tests."""
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))


@pytest.fixture
def wav_factory(tmp_path):
    """`wav_factory(name, samples, rate)` writes `(samples, channels)` under tmp_path and returns the path."""

    def write(name, samples, rate=22050, **arguments):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, rate, **arguments)
        return path

    return write


@pytest.fixture(scope="session")
def synthetic_root(tmp_path_factory):
    """40 synthetic tracks of 1.5 s, the data of `tests.runs.SMALL`."""
    from gafx.data.sources.synthetic import synthesize

    return synthesize(tmp_path_factory.mktemp("data") / "synthetic", tracks=4, seconds=1.5)


@pytest.fixture(scope="module")
def browser():
    """Chromium or Chrome without a window, with a microphone that beeps."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium or google-chrome on this machine")
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # which chromium refuses to root
    media = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=program, args=[*sandbox, *media])
        yield opened
        opened.close()
