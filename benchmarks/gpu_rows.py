"""Building blocks of the sections of gpu.py: common settings, a row, and a `Trainer` that is observed."""

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gafx.compose import compose_train
from gafx.data.packing.pack import pack
from gafx.data.sources.base import load_manifest
from gafx.memory import reset_peak_memory
from gafx.nn.precision import pick_device
from gafx.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
# Steps before the measured ones: compilation, first allocations, loaders that start. As in Trainer's own figures.
WARM_UP = 6


class Skip(Exception):
    """A row cannot be measured here; the message is the reason."""


@dataclass(frozen=True)
class Setup:
    """Settings common to all rows.

    Attributes:
        work: folder for data and runs.
        tiny: tiny models and few steps, for the rehearsal.
        everything: in the rehearsal also what takes long: compilation, FSDP2.
        peak: TFLOP/s of the card that count as the ceiling.
        seconds: measured time of a throughput row.
        workers: loader workers of a throughput row.
        esc10: root of ESC-10, if any.
    """

    work: Path
    tiny: bool = False
    everything: bool = False
    peak: float = 790.0
    seconds: float = 4.0
    workers: int = 4
    esc10: Path | None = None
    device: torch.device = field(default_factory=lambda: pick_device("auto"))

    def prepare(self) -> None:
        """Make the synthetic data set and pack it for the sampling rates in use; no-op the second time."""
        done = self.work / "prepared"
        if not done.exists():
            config = compose_train(self.data(), CONFIGS).data
            manifest = load_manifest(config.name, config.root, **config.options)
            for sample_rate, channels in ((22050, 1), (16000, 2), (44100, 1)):  # of GAFX-U; of mel_jukebox and vq
                pack(manifest, self.work / "cache", sample_rate=sample_rate, channels=channels)
            done.touch()

    def data(self) -> list[str]:
        """Overrides for the synthetic data set: 100 tracks of 30 s, 80 of them for training."""
        tracks, seconds = (4, 1.5) if self.tiny else (10, 30.0)
        return [
            "data=synthetic", f"data.root={self.work / 'synthetic'}", f"data.options.tracks={tracks}",
            f"data.options.seconds={seconds}", f"data.cache={self.work / 'cache'}", "data.leak_check=false",
            f"output_dir={self.work / 'runs' / str(time.time_ns())}", "stop_on_nonfinite=false",
            "keep_checkpoints=1",
        ]  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        section, name: together its key in the results.
        cost: expected duration on an H100 in seconds, start-up of the row included.
        order: rows of a lower number are measured first, whatever their section.
        settings: keyword arguments of `function`.
        function: measures; takes the `Setup` and the settings, returns the values.
        needs_data: whether it reads the synthetic data set.
    """

    section: str
    name: str
    cost: float
    order: int
    function: Callable[..., dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)
    needs_data: bool = True

    @property
    def key(self) -> str:
        return f"{self.section}: {self.name}"

    def measure(self, setup: Setup, **settings: Any) -> dict[str, Any]:
        return self.function(setup, **settings)


class ObservedTrainer(Trainer):
    """A `Trainer` that keeps the losses, counts steps skipped by loss scaling, and ends after some seconds.

    It writes neither checkpoints nor a model. Set `tracking.log_steps=1`.

    Args:
        overrides: of train.py.
        seconds: of training, counted after the first `WARM_UP` steps; None to train to the end.
    """

    def __init__(self, overrides: list[str], seconds: float | None = None):
        super().__init__(compose_train([*overrides, "tracking.log_steps=1"], CONFIGS))
        self.seconds, self.deadline = seconds, math.inf
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.skipped_steps = 0

    def observe(self) -> dict[str, float]:
        """Train, and return clips per second, data wait and seconds per step of all steps but the first five."""
        with suppress(_Enough):
            self.fit()
        return self.throughput.summary()

    def _step(self, *arguments: Any) -> tuple[float, float]:
        values = super()._step(*arguments)
        self.skipped_steps += int(self.learner.optimizer.step_was_skipped)
        return values

    def _log(self, values: dict[str, Any]) -> None:
        self.losses.append(values["loss"])
        self.norms.append(values["grad_norm"])
        if self.seconds is not None and len(self.losses) == WARM_UP:
            reset_peak_memory(self.device)  # compilation and the statistics of fixed front-ends need more
            self.deadline = time.perf_counter() + self.seconds
        if time.perf_counter() > self.deadline:
            raise _Enough

    def _checkpoint(self, step: int) -> None:
        pass

    def _finish(self, step: int) -> None:
        pass


class _Enough(Exception):
    """A trainer has been observed for as long as asked."""


def reset_accelerate() -> None:
    """Let the next `Trainer` of this process choose its own device and precision."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
