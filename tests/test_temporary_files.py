"""Temporary files: of several writers of one file, and of processes that were killed."""

import errno
import os
import subprocess
import sys

import pytest

from gafx import io
from gafx.io import atomic_folder, atomic_write, part_path, remove_leftovers, write_text


@pytest.fixture
def ended():
    """Number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def left_by(monkeypatch, process, path):
    """The temporary path that another process has for `path`."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: process)
        return part_path(path)


@pytest.mark.skipif(os.name == "nt", reason="processes of Windows cannot be looked up")
def test_the_next_write_removes_what_killed_processes_left(monkeypatch, tmp_path, ended):
    kept = [
        left_by(monkeypatch, os.getppid(), tmp_path / "a"),  # is running
        left_by(monkeypatch, os.getpid(), tmp_path / "b"),  # of another thread
        tmp_path / f".c.00beef-{ended}.part",  # of another machine or container
        tmp_path / ".notes.part", tmp_path / ".a.old", tmp_path / "d.part",  # somebody's own
    ]  # fmt: skip
    left = [left_by(monkeypatch, ended, tmp_path / name) for name in ("a", "a.b.c", "folder", "\n")]
    left[2].mkdir()
    for path in [*kept, *left[:2], left[3], left[2] / "inside"]:
        path.write_text("half")
    io._cleaned.clear()  # as in a new process
    write_text(tmp_path / "new", "")
    assert sorted(tmp_path.iterdir()) == sorted([*kept, tmp_path / "new"])
    remove_leftovers(tmp_path, locked=True)
    assert sorted(tmp_path.iterdir()) == sorted([*kept[3:], tmp_path / "new"])


@pytest.mark.skipif(os.name == "nt", reason="processes of Windows cannot be looked up")
@pytest.mark.parametrize("replaced", [True, False])
def test_a_folder_whose_replacement_was_killed_gets_its_name_back(monkeypatch, tmp_path, ended, replaced):
    part = left_by(monkeypatch, ended, tmp_path / "model")
    old = part.with_suffix(".old")
    old.mkdir()
    (old / "weights").write_text("old")
    if replaced:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "weights").write_text("new")
    io._cleaned.clear()
    write_text(tmp_path / "x", "")
    assert (tmp_path / "model" / "weights").read_text() == ("new" if replaced else "old")
    assert not old.exists()


def test_several_processes_write_one_file(monkeypatch, tmp_path):
    with atomic_write(tmp_path / "a") as first:
        first.write("first")
        with monkeypatch.context() as other:
            other.setattr(os, "getpid", lambda: os.getppid())
            with atomic_write(tmp_path / "a") as second:
                second.write("second")
        assert (tmp_path / "a").read_text() == "second"
    assert (tmp_path / "a").read_text() == "first"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["x" * 255, "\u00e4" * 127, ".hidden", "a b"])
def test_names_up_to_the_file_systems_limit(tmp_path, name):
    write_text(tmp_path / name, "text")
    with atomic_folder(tmp_path / f"{name[:-1]}d") as part:
        (part / "x").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, f"{name[:-1]}d"])


def test_a_full_disk_is_named_with_the_file(tmp_path):
    with pytest.raises(OSError, match="No space") as raised, atomic_write(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert raised.value.filename == str(tmp_path / "a")
    with pytest.raises(OSError, match="other") as raised, atomic_write(tmp_path / "a"):
        raise OSError(errno.EIO, "other")
    assert raised.value.filename is None
    assert list(tmp_path.iterdir()) == []
