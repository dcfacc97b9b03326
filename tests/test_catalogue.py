"""Published models by name: fetched once from a local server, checked, listed, and used by `gafx predict`."""

import dataclasses
import hashlib
import io
import json
from pathlib import Path

import hub_server
import numpy as np
import pytest
import torch
from crnn_weights import published_like

import gafx
from gafx import cli
from gafx.cli import main
from gafx.errors import UsageError
from gafx.saving import catalogue

NAME = "audioset-crnn"


@pytest.fixture
def site(monkeypatch, tmp_path):
    """A server of random weights in the published layout, an empty cache, and the entry that points to both."""
    state, buffer = published_like(527), io.BytesIO()
    torch.save(state, buffer)
    body = buffer.getvalue()
    monkeypatch.setenv("GAFX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with hub_server.serve({"lab/vad": {"model.pth": body}}) as server:
        entry = dataclasses.replace(
            catalogue.CATALOGUE[NAME], address=f"{server.url}/lab/vad/resolve/main/model.pth", bytes=len(body),
            sha256=hashlib.sha256(body).hexdigest(),
        )  # fmt: skip
        monkeypatch.setitem(catalogue.CATALOGUE, NAME, entry)
        server.entry, server.body = entry, body
        yield server


def sound(seconds=1.0):
    return 0.1 * torch.randn(1, 1, round(22050 * seconds), generator=torch.Generator().manual_seed(0))


def test_the_entries_state_their_terms():
    for model in gafx.list_models(pretrained=True):
        assert model.address.startswith("https://")
        assert model.describe().startswith(model.name)
        if model.repository is None:
            assert len(model.labels) == len(set(model.labels)) == 527
            assert {"Speech", "Music"} <= set(model.labels)
            assert len(model.sha256) == 64


def test_a_name_is_the_whole_model_fetched_once(site, tmp_path):
    assert not site.entry.is_cached
    model = gafx.load(NAME)
    asked = len(site.asked)
    assert asked == 1
    assert not model.training
    assert model.info.classes == site.entry.labels
    assert (model.info.objective, model.info.sample_rate, model.info.segment_seconds) == ("tag", 22050, 10.0)
    assert model.info.provenance.classifier.kind == "published"
    assert model.map_norm.std > 1  # the scale of its input is set
    again = gafx.load(site.entry)
    with pytest.raises(UsageError, match=f"no path {NAME}; the published model is loaded by its name, '{NAME}'"):
        gafx.load(Path(NAME))
    assert len(site.asked) == asked
    file = tmp_path / "elsewhere" / "teacher2.pth"
    file.parent.mkdir()
    file.write_bytes(site.body)
    (file.parent / "another.pth").write_bytes(site.body[:-1] + b"x")
    for same in (again, gafx.load(file), gafx.load(file.parent), gafx.load(model.save(tmp_path / "saved"))):
        assert torch.equal(same(sound()), model(sound()))
        assert (same.info.objective, same.info.classes) == ("tag", model.info.classes)
    other = gafx.load(NAME, classes=["dog", "rain"])
    assert other(sound()).shape == (1, 2)
    assert torch.equal(other.embed(sound()), model.embed(sound()))
    same_number = gafx.load(NAME, classes=[str(number) for number in range(527)])
    assert not torch.equal(same_number(sound()), model(sound()))
    started = gafx.create_model(
        dict(site.entry.frontend), {"name": "crnn", "pretrained": NAME}, num_classes=2, segment_seconds=2.0
    )
    assert torch.equal(started.eval().embed(sound()), model.embed(sound()))


def test_offline_and_damaged_files_are_refused(site, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UsageError, match=r"not in the cache, and HF_HUB_OFFLINE .* put http"):
        gafx.load(NAME)
    assert site.asked == []
    monkeypatch.delenv("HF_HUB_OFFLINE")
    site.repos["lab/vad"]["model.pth"] = site.body[:-1] + b"x"
    with pytest.raises(UsageError, match="not the expected file: SHA-256"):
        gafx.load(NAME)
    assert not site.entry.is_cached
    site.repos["lab/vad"]["model.pth"] = site.body
    gafx.load(NAME)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    gafx.load(NAME)
    site.entry.path.write_bytes(site.body[:-1] + b"x")
    with pytest.raises(UsageError, match="is not audioset-crnn: its SHA-256"):
        gafx.load(NAME)
    assert not site.entry.is_cached
    assert f"cache: damaged in the cache: delete {site.entry.path}" in site.entry.describe()


def test_an_unknown_weights_file_is_refused(site, tmp_path):
    (tmp_path / "mine.pth").write_bytes(site.body[:-1] + b"x")
    with pytest.raises(UsageError, match="is a file: name the folder"):
        gafx.load(tmp_path / "mine.pth")


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"GAFX_CACHE": "/a/b", "XDG_CACHE_HOME": "/c"}, "/a/b"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/gafx"),
        ({"HOME": "/users/me"}, "/users/me/.cache/gafx"),
    ],
)
def test_the_cache_folder(variables, folder, monkeypatch):
    for name in ("GAFX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert catalogue.cache_folder().as_posix() == folder


def test_the_commands(site, wav_factory, capsys, monkeypatch):
    file = wav_factory("noise.wav", (0.1 * np.random.default_rng(0).standard_normal(22050)).astype(np.float32))

    def run(*arguments):
        status = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as error:
            status = error.code
        return status, *capsys.readouterr()

    status, _, errors = run("predict", file)
    assert status == 2
    assert "no --model" in errors
    assert f"--model {NAME}" in errors
    assert site.asked == []
    assert "cache: not in the cache\n" in run("list", "--pretrained")[1]
    _, output, _ = run("predict", file, "--model", NAME, "--json")
    assert len(site.asked) == 1
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # restored after the test, whatever --offline sets
    without = run("predict", file, "--json", "--offline")[1]
    assert json.loads(without) == json.loads(output)
    listed = run("list", "--pretrained")[1]
    for text in (NAME, "MIT", site.entry.sha256, site.entry.address, "score: not stated", str(site.entry.path)):
        assert text in listed
    for text in ("frontend.pretrained=torchaudio", "HDEMUCS_HIGH_MUSDB_PLUS", "hdemucs_mmi", "deit_", "Apache-2.0"):
        assert text in listed
    for text in (listed, run("list")[1]):
        assert f"cache: {catalogue.cache_folder()} (GAFX_CACHE)" in text
        assert NAME in text
    assert run("list", "frontends", "--pretrained")[0] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [({"revision": "main"}, "leave out revision"), ({"local_files_only": True}, "local_files_only forbids to fetch")],
)
def test_options_of_the_hub_s_client(site, options, message):
    with pytest.raises(UsageError, match=message):
        gafx.GAFX.from_pretrained(NAME, **options)
    assert site.asked == []


def test_the_licence_of_published_weights_is_kept(site, tmp_path):
    model = gafx.load(NAME)
    assert gafx.load(model.save(tmp_path / "model")).info.license == "mit"
    assert "license: mit" in (tmp_path / "model" / "README.md").read_text()
    assert gafx.load(NAME, classes=["dog", "rain"]).info.license == "mit"


def test_offline_is_an_option_of_all_commands_that_load_models(monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # restored after the test
    for name in cli._COMMANDS:
        with pytest.raises(SystemExit):
            cli.main([name, "--help"])
        listed = "--offline" in capsys.readouterr().out
        assert listed == (name not in ("list", "merge", "synthesize", "pack", "leaks")), name
