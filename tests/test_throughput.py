"""Clips a second, waiting for data, and the figures of a whole run."""

from types import SimpleNamespace

import pytest
import torch

from gafx.training.throughput import Throughput


class Ranks:
    """Two ranks, of which the other one waits for the given fraction of its time."""

    device = torch.device("cpu")

    def __init__(self, other=0.0):
        self.other = other

    def gather(self, own):
        return torch.cat([own, torch.tensor([[self.other, 0.0]])])


class Clock:
    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("gafx.training.throughput.time", clock)
    return clock


def run(throughput, clock, steps, took=0.02, waited=0.0):
    def pass_time(seconds):
        clock.now += seconds

    for _ in range(steps):
        throughput.wait(lambda: pass_time(waited))
        pass_time(took - waited)
        throughput.step(10)


def test_a_window(clock):
    throughput = Throughput(Ranks())
    run(throughput, clock, 4, waited=0.005)
    assert throughput.read() == pytest.approx({"clips_per_second": 500, "data_wait": 0.25, "seconds_per_step": 0.02})
    run(throughput, clock, 2, took=0.1)
    assert throughput.read() == pytest.approx({"clips_per_second": 100, "data_wait": 0, "seconds_per_step": 0.1})


def test_the_rank_that_waits_longest_counts(clock):
    throughput = Throughput(Ranks(other=0.75))
    run(throughput, clock, 2, waited=0.005)
    assert throughput.read()["data_wait"] == 0.75


def test_what_interrupts_training_does_not_count(clock):
    throughput = Throughput(Ranks(), seconds=100.0)
    run(throughput, clock, 2)
    clock.now += 5  # a checkpoint
    throughput.start()
    run(throughput, clock, 2)
    assert throughput.read()["seconds_per_step"] == pytest.approx(0.02)
    assert throughput.seconds == pytest.approx(100.08)


def test_a_run_leaves_its_first_steps_out(clock):
    throughput = Throughput(Ranks())
    run(throughput, clock, 2, took=0.3)
    assert throughput.summary()["seconds_per_step"] == 0.3  # there is nothing else yet
    run(throughput, clock, 3, took=0.3)
    assert throughput.summary()["seconds_per_step"] == 0.3
    run(throughput, clock, 4, took=0.01)
    assert throughput.summary()["seconds_per_step"] == 0.01


def test_a_finished_run_says_it(synthetic_root, tmp_path, caplog):
    import json

    from accelerate.state import AcceleratorState
    from runs import MEL, ROOT, SMALL, records

    from gafx.compose import compose_train
    from gafx.training.trainer import Trainer

    AcceleratorState._reset_state(True)
    caplog.set_level("INFO", logger="gafx")
    recipe = [*SMALL, *MEL, f"data.root={synthetic_root}", f"output_dir={tmp_path}", "device=cpu", "max_steps=7"]
    folder = Trainer(compose_train(recipe, ROOT / "configs")).fit()
    AcceleratorState._reset_state(True)
    record = SimpleNamespace(**json.loads((folder / "run.json").read_text()))
    assert f"{record.clips_per_second:.1f} clips/s, data wait {100 * record.data_wait:.0f} %" in caplog.text
    assert 0 < record.data_wait < 1
    assert all(line["seconds_per_step"] > 0 for line in records(folder) if "loss" in line)
