"""Commands whose standard streams are closed, full or without a reader, and signals that end them."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from runs import environment

import gafx.cli
from gafx.data.packing.pool import run_all
from gafx.errors import UsageError
from gafx.io import atomic_folder, atomic_path, atomic_write
from gafx.process import Terminated, check_output_open, print_made, standard_streams, terminable

posix = pytest.mark.skipif(os.name == "nt", reason="descriptors and signals as on Linux and macOS")


def gafx_command(*arguments, closed=(), **streams):
    """Run a command with some of its standard streams closed."""

    def close():
        for descriptor in closed:
            os.close(descriptor)

    command = [sys.executable, "-m", "gafx", *map(str, arguments)]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.run(
        command, text=True, env=environment(), timeout=300, check=False, preexec_fn=close if closed else None, **streams
    )


@posix
@pytest.mark.parametrize("closed", [(0,), (2,), (0, 2)])
def test_a_result_is_printed_though_another_stream_is_closed(closed):
    done = gafx_command("list", "objectives", closed=closed)
    assert done.returncode == 0
    assert done.stdout.startswith("objectives:\n  classify\n")
    assert done.stderr == ""


@posix
@pytest.mark.parametrize("arguments", [("list", "data"), ("--help",), ("predict", "x.wav", "--model", "none")])
@pytest.mark.parametrize("closed", [(1,), (0, 1, 2)])
def test_a_result_for_a_closed_output_is_an_error(arguments, closed):
    done = gafx_command(*arguments, closed=closed)
    assert done.returncode == 2
    assert ("error: standard output is closed" in done.stderr) == (2 not in closed)
    assert "Traceback" not in done.stderr


@posix
def test_a_closed_output_does_not_matter_to_what_is_written_to_files(tmp_path):
    done = gafx_command("synthesize", tmp_path / "a", "--tracks", 1, "--seconds", 1, closed=(0, 1, 2))
    assert done.returncode == 0
    done = gafx_command("synthesize", tmp_path / "b", "--tracks", 1, "--seconds", 1, closed=(1,))
    assert (done.returncode, done.stdout) == (0, "")
    assert str(tmp_path / "b") in done.stderr  # the name of the result, which is printed otherwise
    names = [{path.relative_to(tmp_path / x): path.read_bytes() for path in (tmp_path / x).rglob("*.*")} for x in "ab"]
    assert names[0] == names[1]
    assert len(names[0]) == 12


@posix
def test_labels_go_to_the_file_with_all_streams_closed(tmp_path, wav_factory):
    from gafx.model import create_model

    model = create_model("mel", {"name": "ast", "depth": 1}, classes=["a", "b"], segment_seconds=0.5).save(
        tmp_path / "model"
    )
    wave = np.random.default_rng(0).normal(0, 0.1, 12_000)
    clips = [wav_factory("clips/b.mp3", wave, format="MP3"), wav_factory("clips/a.wav", wave)]
    contents = []
    for closed in ((), (0, 1, 2)):
        done = gafx_command(
            "predict", *clips, "--model", model, "--csv", "--output", tmp_path / f"{len(closed)}.csv", closed=closed
        )
        assert done.returncode == 0
        contents.append((tmp_path / f"{len(closed)}.csv").read_text())
    assert contents[0] == contents[1]
    assert contents[0].count("\n") == 3


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_an_output_without_room():
    with open("/dev/full", "w") as full:
        done = gafx_command("list", "data", stdout=full)
    assert done.returncode == 2
    assert done.stderr == "error: No space left on device; make room on the disk and try again\n"


@posix
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_ends(stream):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        done = gafx_command("list", "data", **{stream: pipe})
    assert done.returncode == 0
    assert "Broken" not in (done.stderr or "")


def test_messages_that_cannot_be_written_end_nothing(monkeypatch):
    class Broken:
        def write(self, text):
            raise OSError(errno.EIO, "the terminal is gone")

        flush = isatty = lambda self: False

        def fileno(self):
            raise OSError("none")

    monkeypatch.setattr(sys, "stderr", Broken())
    with standard_streams():
        print("lost", file=sys.stderr, flush=True)
        sys.stderr.flush()
        assert not sys.stderr.isatty()
    assert isinstance(sys.stderr, Broken)


def test_streams_that_python_did_not_open(monkeypatch, capfd):
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    with standard_streams():
        assert sys.stdin.read() is not None
        sys.stdout.write("")
        print("message", file=sys.stderr)
        print_made("made")
        for write in (check_output_open, lambda: print("result")):
            with pytest.raises(UsageError, match="standard output is closed"):
                write()
    assert (sys.stdin, sys.stdout, sys.stderr) == (None, None, None)
    assert capfd.readouterr() == ("", "message\nmade\n")


def run_main(monkeypatch, run, command="features"):
    """Run the `main` of a command whose work is `run()`; return its status."""
    monkeypatch.setattr(gafx.cli, "read_command", lambda argv: types.SimpleNamespace(run=lambda parsed: run()))
    with pytest.raises(SystemExit) as ended:
        gafx.cli.main([command])
    return ended.value.code


def test_a_broken_pipe_that_is_not_the_output_is_an_error(monkeypatch, capsys):
    def fail():
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    assert run_main(monkeypatch, fail) == 2
    assert "error: Broken pipe" in capsys.readouterr().err


@posix
@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("write", [atomic_write, atomic_path, atomic_folder])
def test_signals_remove_what_is_being_written(monkeypatch, tmp_path, kind, write):
    handler = signal.getsignal(kind)

    def work():
        with write(tmp_path / "result") as out:
            if write is atomic_write:
                out.write("half")
            else:
                (out if write is atomic_path else out / "file").write_text("half")
            assert len(list(tmp_path.iterdir())) == 1
            os.kill(os.getpid(), kind)
            raise AssertionError("the signal came too late")

    assert run_main(monkeypatch, work) == 128 + kind
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(kind) is handler


@posix
def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with terminable():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@posix
def test_a_second_signal_and_ranks_have_the_default(monkeypatch):
    with terminable(), contextlib.suppress(Terminated):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal came too late")
    with terminable():
        with pytest.raises(Terminated) as raised:
            os.kill(os.getpid(), signal.SIGTERM)
        assert raised.value.signal == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    monkeypatch.setenv("WORLD_SIZE", "2")
    with terminable():
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("stop", [KeyboardInterrupt, GeneratorExit])
def test_processes_are_ended_in_the_middle_of_a_job(stop):
    results = run_all(time.sleep, iter([(0.0,), (600.0,), (600.0,)]), 2, ordered=True)
    next(results)  # the other processes are busy for ten minutes
    begin = time.monotonic()
    with pytest.raises(stop):
        results.throw(stop)
    assert time.monotonic() - begin < 60
