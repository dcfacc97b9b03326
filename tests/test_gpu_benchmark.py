"""benchmarks/gpu.py: its rehearsal, and what it does when it is cut off, out of time, or when a row fails."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
from runs import ROOT, environment

SECTIONS = {"Throughput", "Losses", "Predictions", "GAFX-A in fp16", "FSDP2", "Labelling", "ESC-10"}


# --- the whole rehearsal, in separate processes -----------------------------------------------------------------------


def start(*arguments):
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "gpu.py"),
        "--rehearse",
        "--patience",
        "100",
        "--budget",  # on a busy machine, too
        "3600",
        *map(str, arguments),
    ]
    variables = environment(PYTHONPATH=str(ROOT), CUDA_VISIBLE_DEVICES="")
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def read(path):
    """The rows of a results file, by key; parsing fails on NaN."""

    def refuse(constant):
        raise AssertionError(constant)

    return json.loads(path.read_text(), parse_constant=refuse)["rows"]


def in_the_middle(rows):
    """Return whether two rows are done and another one is being measured."""
    states = [row["status"] for row in rows.values()]
    return states.count("done") >= 2 and "interrupted" in states


@pytest.fixture(scope="module")
def esc10(tmp_path_factory):
    """Twenty clips in ESC-10's layout: two classes, five folds."""
    root = tmp_path_factory.mktemp("esc10")
    for number, name in ((1, "Dog bark"), (2, "Rain")):
        folder = root / f"{number:03d} - {name}"
        folder.mkdir()
        for fold in range(1, 6):
            for take in "AB":
                wave = np.sin(np.arange(22050) / (5 * number + fold)) / 2
                soundfile.write(folder / f"{fold}-{number}00{fold}-{take}.wav", wave, 22050)
    return root


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory, esc10):
    """The results after SIGTERM in the middle and after the same command has continued, and that command's output."""
    folder = tmp_path_factory.mktemp("gpu")
    arguments = ("--output", folder / "results", "--work", folder / "work", "--esc10", esc10)
    path = folder / "results" / "rehearsal.json"
    process = start(*arguments)
    end = time.monotonic() + 600
    while not (path.is_file() and in_the_middle(read(path))):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=300)
    first = read(path)
    assert process.returncode == 143, err
    assert "stopped by SIGTERM" in err
    process = start(*arguments)
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    return first, read(path), out, err, path.with_suffix(".md").read_text()


@pytest.mark.slow
def test_cut_off_in_the_middle_and_continued(rehearsal):
    first, last, _, err, _ = rehearsal
    done = {key for key, row in first.items() if row["status"] == "done"}
    running = [key for key, row in first.items() if row["status"] == "interrupted"]
    assert len(running) <= 1
    assert {row["reason"] for row in first.values() if row["status"] == "skipped"} == {"not reached before the end"}
    assert set(first) == set(last)
    assert all(first[key] == last[key] for key in done)  # not measured again
    assert not any(f" {key}\n" in err for key in done)
    assert all(last[key]["status"] == "done" and last[key]["attempts"] == 2 for key in running)


@pytest.mark.slow
def test_every_section_is_exercised(rehearsal):
    _, last, _, _, _ = rehearsal
    assert {row["section"] for row in last.values()} == SECTIONS
    missing = {(row["status"], row["reason"]) for row in last.values() if row["status"] != "done"}
    assert missing == {
        ("skipped", "precision=fp16 needs a GPU"), ("skipped", "compilation is rehearsed with --all only"),
        ("skipped", "test_on_a_gpu: needs a GPU"),
    }  # fmt: skip
    done = {key: row["values"] for key, row in last.items() if row["status"] == "done"}
    speeds = [values for key, values in done.items() if key.startswith("Throughput: ")]
    assert len(speeds) == 14
    for values in speeds:
        assert values["clips_per_second"] > 0
        assert 0 <= values["data_wait_fraction"] < 1
        if values is done["Throughput: vq + cnn, codec, 1 s, bf16, eager"]:
            assert "training_gflop_per_clip" not in values  # its decoder is no part of the model
            continue
        ceiling = 790e12 / (1e9 * values["training_gflop_per_clip"])
        assert values["ceiling_clips_per_second"] == pytest.approx(ceiling)
        assert values["fraction_of_ceiling"] == pytest.approx(values["clips_per_second"] / ceiling)
    learned, frozen = (
        done[f"Throughput: gafx_u{kind}, 30 s, bf16, eager"]["training_gflop_per_clip"] for kind in ("", ", frozen")
    )
    assert frozen < learned
    losses = {key: values for key, values in done.items() if key.startswith("Losses: ")}
    assert {f"Losses: {model} + cnn" for model in ("mel64", "gabor", "leaf")} < set(losses)
    for values in losses.values():
        assert values["equal"]
        assert len(values["losses"]) == 2
    predictions = {key: values for key, values in done.items() if key.startswith("Predictions: ")}
    assert len(predictions) == 9
    for values in predictions.values():
        assert values["equal"]
        assert values["finite"]
        assert values["fp32"] == 0 < values["bf16"]  # the CPU against itself, and in bf16
        assert 0.2 < values["largest_probability"] < 1  # ten labels
    for norm in ("pre", "post"):
        assert done[f"GAFX-A in fp16: norm={norm}, learning rate 0.0005"]["nonfinite_losses"] == 0
    methods = {method["method"]: method for method in done["Labelling: eager"]["methods"]}
    assert {f"model alone, {precision}, batches of 2" for precision in ("fp32", "bf16")} < set(methods)
    if not done["Labelling: eager"]["note"]:
        ours, theirs = methods["gafx.predict, bf16, batches of 2, readers: 1"], methods["pipeline, bf16, batches of 16"]
        assert ours["times_pipeline"] == pytest.approx(ours["windows_per_second"] / theirs["windows_per_second"])
        assert ours["windows"] == theirs["windows"]
    assert done["ESC-10: gafx_r, fold 1"]["tracks"] == 4


@pytest.mark.slow
def test_the_table_says_what_was_measured_and_what_was_not(rehearsal):
    _, last, out, _, table = rehearsal
    assert table.strip() in out
    assert table.startswith("# gafx on CPU")
    assert "Rehearsal" in table
    assert "PyTorch 2" in table
    sections = table.split("\n## ")
    assert [section.partition("\n")[0] for section in sections[1:]] == [
        "Throughput", "Losses", "Predictions", "GAFX-A in fp16", "Labelling", "ESC-10", "Not measured",
    ]  # fmt: skip
    value = last["Throughput: mel, 1024 frames, bf16, eager"]["values"]
    (line,) = [line for line in table.splitlines() if line.startswith("| mel, 1024 frames, bf16, eager | ")]
    assert f"| {value['clips_per_second']:.1f} |" in line
    assert f"| {100 * value['data_wait_fraction']:.1f} % |" in line
    assert "| FSDP2 | train, save, load, resume | skipped | test_on_a_gpu: needs a GPU |" in sections[-1]
    assert all(line.count(" | ") in (0, 3, 6) for line in sections[1].splitlines() if "---" not in line)


@pytest.mark.slow
def test_compiled_models_and_fsdp_are_rehearsed_too(tmp_path):
    process = start("--output", tmp_path, "--all", "--only", "throughput", "fsdp", "--budget", "1500")
    _, err = process.communicate(timeout=1500)
    rows = read(tmp_path / "rehearsal.json")
    assert process.returncode == 0, err
    assert {row["reason"] for row in rows.values() if row["status"] != "done"} == {"precision=fp16 needs a GPU"}
    assert sum(row["status"] == "done" for row in rows.values()) == 27  # 14 eager, 12 compiled, FSDP2


def test_every_row_composes_in_full_size(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import torch
    from gpu_rows import CONFIGS, Setup
    from gpu_sections import SECTIONS as sections

    from gafx.compose import compose_train

    setup = Setup(work=tmp_path, esc10=tmp_path, device=torch.device("cpu"))
    rows = [row for make in sections.values() for row in make(setup)]
    assert len({row.key for row in rows}) == len(rows)
    throughput = {tuple(row.settings["overrides"]) for row in rows if row.section == "Throughput"}
    assert {tuple(row.settings["overrides"]) for row in rows if row.section == "Predictions"} < throughput
    for overrides in throughput:  # those of other sections are composed in the rehearsal as well
        assert {f"classifier={group}" for group in ("ast_tiny", "bert", "cnn", "crnn")} & set(overrides)
        compose_train(overrides, CONFIGS)
    # Those measured first fit into one call.
    assert sum(row.cost for row in rows if row.order <= 40) < 0.8 * 480


def test_a_compiled_model_gives_the_answers_of_the_model(monkeypatch):
    """Whole windows by compiled code, filled up to the batch; other lengths and larger batches without it."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import torch
    from gpu_labelling import Compiled

    import gafx
    from gafx.inference import Probabilities

    sizes = []

    def compiles(function, **options):
        return lambda wave: sizes.append(tuple(wave.shape)) or function(wave)

    monkeypatch.setattr(torch, "compile", compiles)
    model = gafx.create_model("mel+cnn", classes=["a", "b"], segment_seconds=0.5).eval()
    model.fit_statistics(torch.randn(2, 1, 11025))
    compiled = Compiled(model, 4, 11025)
    with torch.no_grad():
        for shape in ((4, 1, 11025), (3, 1, 11025), (5, 1, 11025), (4, 1, 9000)):
            wave = torch.randn(*shape)
            assert torch.allclose(compiled(wave), Probabilities(model)(wave), atol=1e-6)
    assert sizes == [(4, 1, 11025)] * 2


# --- the loop, with rows that measure nothing -------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """`gpu(rows, *arguments)` runs the loop on the rows and returns the exit status, the results and the table."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu_run
    from gpu_rows import Row

    monkeypatch.setattr(gpu_run, "clean", lambda: None)

    def run(functions, *arguments, settings=None):
        rows = [
            Row("Losses", name, cost, 0, function, settings or {}, needs_data=False)
            for name, (cost, function) in functions.items()
        ]
        monkeypatch.setattr(gpu_run, "SECTIONS", {"losses": lambda setup: rows})
        status = gpu_run.main(["--rehearse", "--output", str(tmp_path), *arguments])
        found = read(tmp_path / "rehearsal.json")
        return status, {row["name"]: row for row in found.values()}, (tmp_path / "rehearsal.md").read_text()

    return run


VALUES = {
    "steps": 2, "tolerance": 1e-3, "largest_relative_difference": 0.0, "first_gradient_norm_difference": 0.0,
    "equal": True,
}  # fmt: skip


def good(setup, **settings):
    return VALUES


def bad(setup, **settings):
    raise RuntimeError("out of | luck\nhere")


def test_a_failure_is_recorded_and_the_next_row_runs(gpu):
    status, rows, table = gpu({"one": (1, bad), "two": (1, good)})
    assert status == 1
    assert rows["one"]["status"] == "failed"
    assert rows["one"]["reason"] == "RuntimeError: out of | luck here"
    assert rows["two"]["status"] == "done"
    assert "| Losses | one | failed | RuntimeError: out of \\| luck here |" in table
    # The next call tries it again, after what was not tried before.
    order = []

    def mended(setup):
        order.append("one")
        return VALUES

    def new(setup):
        order.append("three")
        return VALUES

    status, rows, table = gpu({"one": (1, mended), "two": (1, bad), "three": (1, new)})
    assert (status, order) == (0, ["three", "one"])
    assert {row["status"] for row in rows.values()} == {"done"}
    assert "Not measured" not in table


def test_what_does_not_fit_into_the_budget_is_skipped(gpu):
    status, rows, table = gpu({"long": (1000, bad), "short": (1, good)}, "--budget", "60")
    assert status == 0
    assert rows["short"]["status"] == "done"
    assert rows["long"]["status"] == "skipped"
    assert rows["long"]["attempts"] == 0
    assert rows["long"]["reason"].startswith("expected to take 1000 s, ")
    assert "of the budget of 60 s were left" in table


def test_a_row_that_hangs_is_stopped(gpu):
    def hang(setup):
        while True:
            try:
                time.sleep(60)
            except Exception:
                continue

    status, rows, _ = gpu({"hangs": (0.1, hang), "two": (1, good)})
    assert status == 1
    assert (rows["hangs"]["status"], rows["hangs"]["reason"]) == ("failed", "stopped after 0 s")
    assert rows["two"]["status"] == "done"


def test_done_rows_are_measured_again_where_their_settings_change_or_it_is_asked(gpu):
    calls = []

    def count(setup, **settings):
        calls.append(settings)
        return VALUES

    gpu({"one": (1, count)}, settings={"steps": 1})
    gpu({"one": (1, count)}, settings={"steps": 1})
    assert calls == [{"steps": 1}]
    gpu({"one": (1, count)}, settings={"steps": 2})
    gpu({"one": (1, count)}, "--again", settings={"steps": 2})
    assert calls == [{"steps": 1}, {"steps": 2}, {"steps": 2}]


def test_infinite_values_are_dashes(gpu):
    values = {**VALUES, "largest_relative_difference": float("nan"), "equal": False}
    _, rows, table = gpu({"one": (1, lambda setup: values)})
    assert rows["one"]["values"]["largest_relative_difference"] is None
    assert "| one | 2 | - | 1.0e-03 | 0.0e+00 | **no** |" in table


def test_a_killed_process_leaves_the_row_marked(gpu, tmp_path):
    def killed(setup):
        # What is on the disk at this moment is what SIGKILL would leave.
        rows = read(tmp_path / "rehearsal.json")
        assert rows["Losses: one"]["status"] == "interrupted"
        assert rows["Losses: two"]["reason"] == "not reached before the end"
        return VALUES

    status, _, _ = gpu({"one": (1, killed), "two": (1, good)})
    assert status == 0


def test_a_damaged_file_is_not_overwritten(gpu, tmp_path):
    (tmp_path / "rehearsal.json").write_text("{")
    with pytest.raises(SystemExit, match="cannot be read"):
        gpu({"one": (1, good)})
    assert (tmp_path / "rehearsal.json").read_text() == "{"


def test_without_a_gpu_it_says_how_to_rehearse(gpu, tmp_path, monkeypatch):
    import gpu_run
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="--rehearse"):
        gpu_run.main(["--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_differences_of_losses(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from types import SimpleNamespace as Trained

    from gpu_sections import compare_losses

    cpu = Trained(losses=[2.0, 1.0], norms=[4.0])
    near = compare_losses(cpu, Trained(losses=[2.002, 1.0], norms=[4.1]), 2e-3)
    assert near["largest_relative_difference"] == pytest.approx(1e-3)
    assert near["first_gradient_norm_difference"] == pytest.approx(0.025)
    assert near["equal"]
    assert not compare_losses(cpu, Trained(losses=[2.01, 1.0], norms=[4.0]), 2e-3)["equal"]
    assert not compare_losses(cpu, Trained(losses=[float("nan"), 1.0], norms=[4.0]), 2e-3)["equal"]
