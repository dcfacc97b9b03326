"""The training loop, from the first step to a finished run folder."""

import time
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

from gafx.config import TrainConfig
from gafx.data.loader import Batch, training_loader
from gafx.data.manifest import Skipped, check_readable
from gafx.data.open import open_reader, open_split
from gafx.hub import without_pretrained
from gafx.model import create_model
from gafx.objectives.base import Objective
from gafx.registry import OBJECTIVES
from gafx.training import checkpoint, record, setup
from gafx.training.diagnose import nonfinite_step
from gafx.training.learner import Learner
from gafx.training.optim import WeightAverage, rate_factor
from gafx.training.tracking import MetricsLog, Progress, start_trackers
from gafx.training.validation import validate


class Trainer:
    """One run: `Trainer(config).fit()` trains, or goes on where the run stopped, and returns the run's folder.

    The test part of the data is never learned from here. `paper`, `kfold` and `official` have no validation part: the
    last epoch's weights are the result. Under `*_val` and `fault_filtered` it is those of the epoch that scores best on
    the validation part.
    """

    def __init__(self, config: TrainConfig):
        self.config = config
        self.folder = config.folder
        self.accelerator, self.precision = setup.start_accelerator(config)
        self.main, self.device = self.accelerator.is_main_process, self.accelerator.device
        self.skipped: dict[str, Skipped] = {}
        self.nonfinite_steps = 0
        self.seconds = 0.0
        self.best: dict[str, float] = {}
        self.average: WeightAverage | None = None

    def fit(self) -> Path:
        """Train to the end and return the run folder; a run that is finished already returns at once."""
        finished = (self.folder / "model").is_dir()
        root = self.config.data.root
        if not finished or (root is not None and Path(root).expanduser().exists()):
            self._open_data()  # also where the run is finished: it may have been on other data
        if finished:
            self._say(
                f"{self.folder} is finished already; evaluate it, or change something (seed=1, say) for another run"
            )
            return self.folder
        self._build()
        # Not before: a command that is refused leaves no folder behind.
        lock = setup.claim_folder(self.folder) if self.main else None
        step = self._resume()
        self.order.start_step = step
        # One loader serves all epochs, so that its workers read ahead across their borders.
        self.batches = iter(
            training_loader(self.clips, self.order, workers=self.config.workers, pin=self.device.type == "cuda")
        )
        if self.main:
            record.write_config(self.config)
            self._write_record(step)
            self.log = MetricsLog(self.folder / "metrics.jsonl", step)
        start_trackers(self.accelerator, self.config)
        self._announce(step)
        progress = Progress(self.total_steps, step, self.main)
        try:
            while step < self.total_steps:
                step = self._epoch(step, progress)
        finally:
            progress.close()
        self._finish(step)
        if lock is not None:
            lock.close()
        return self.folder

    # -- before the first step -----------------------------------------------------------------------------------------

    def _open_data(self) -> None:
        name = self.config.objective["name"]
        objective: Any = OBJECTIVES.get(name)
        with self.accelerator.main_process_first():  # the built-in data set is made once
            self.manifest, self.parts = open_split(self.config.data, multi_label=objective.multi_label, objective=name)
        self.skipped = {clip.path: clip for clip in self.manifest.skipped}
        record.check_same_data(self.folder, self.manifest)

    def _build(self) -> None:
        config = self.config
        set_seed(config.seed)
        frontend, classifier = config.frontend, config.classifier
        if checkpoint.exists(self.folder / "checkpoints"):
            # It holds every weight: what the run started from may be gone by now.
            frontend, classifier = without_pretrained(frontend), without_pretrained(classifier)
        model = create_model(
            frontend, classifier, classes=list(self.manifest.classes), segment_seconds=config.data.segment_seconds
        )
        self.reader, unreadable = open_reader(
            config.data, self.manifest, sample_rate=model.frontend.sample_rate, channels=model.frontend.channels,
            build=True,
        )  # fmt: skip
        self.skipped |= {clip.path: clip for clip in unreadable}
        self.clips = setup.training_clips(config, self.manifest, self.parts.train, self.reader, model)
        self.info = model.info = setup.model_info(config, model)
        self.objective: Objective = setup.create_objective(config, self.clips, model).to(self.device)
        if self.accelerator.num_processes > 1 and self.device.type == "cuda":
            self.objective = nn.SyncBatchNorm.convert_sync_batchnorm(self.objective)
        self.learner = Learner(self.objective, config, self.accelerator, self.precision)
        self.order = setup.training_order(config, self.clips, self.accelerator)
        self.steps_per_epoch = self.order.steps_per_epoch
        all_steps = config.epochs * self.steps_per_epoch
        self.total_steps = min(all_steps, config.max_steps or all_steps)
        self.environment = setup.environment(self.accelerator, self.precision)

    def _resume(self) -> int:
        """Load the newest checkpoint, or prepare a fresh start; return the number of steps that are done."""
        found = checkpoint.read_latest(self.folder / "checkpoints")
        if found is None:
            setup.fit_statistics(self.objective.model, self.clips, self.device)
            set_seed(self.config.seed + 1 + self.accelerator.process_index)
            self._start_average({})
            self.learner.start_epoch(0)
            return 0
        weights, average, state = found
        self.objective.model.load_state_dict(weights)
        self._start_average(average or {})
        self.seconds, self.best, self.nonfinite_steps = state["seconds"], state["best"], state["nonfinite_steps"]
        self.skipped |= {path: Skipped(path, reason) for path, reason in state["skipped"]}
        if warning := record.changed_conditions(state["environment"], self.environment):
            self._say(warning)
        step: int = state["step"]
        self.learner.start_epoch(min(step, self.total_steps - 1) // self.steps_per_epoch)
        self.learner.load_state(state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if len(state["random"]) == self.accelerator.num_processes:
            checkpoint.restore_random_state(state["random"][self.accelerator.process_index])
        return step

    def _start_average(self, values: dict[str, Tensor]) -> None:
        if self.config.optim.ema_decay is not None:
            self.average = WeightAverage(self.objective.model, self.config.optim.ema_decay)
            for name, tensor in values.items():
                self.average.values[name].copy_(tensor)

    # -- training ------------------------------------------------------------------------------------------------------

    def _epoch(self, step: int, progress: Progress) -> int:
        """Train from `step` to the end of its epoch or run, validate, write a checkpoint; return the next step."""
        config = self.config
        epoch = step // self.steps_per_epoch
        end = min((epoch + 1) * self.steps_per_epoch, self.total_steps)
        self.learner.start_epoch(epoch)
        self.learner.train()
        window, clips, losses, waited = time.perf_counter(), 0, [], 0.0
        started = window
        while step < end:
            begin = time.perf_counter()
            step_batches = list(islice(self.batches, config.accumulate))
            waited += time.perf_counter() - begin
            rate = config.optim.rate * rate_factor(config.optim, step, self.steps_per_epoch, self.total_steps)
            loss, norm = self._step(step_batches, rate, step)
            step += 1
            losses.append(loss)
            clips += (
                config.batch_size
                if step % self.steps_per_epoch
                else len(self.clips) - (self.steps_per_epoch - 1) * config.batch_size
            )
            progress.step()
            if step % config.tracking.log_steps == 0 or step == end:
                now = time.perf_counter()
                values = {
                    "step": step, "epoch": epoch, "loss": float(np.mean(losses)), "rate": rate, "gradient_norm": norm,
                    "clips_per_second": clips / (now - window), "data_wait_share": waited / (now - window),
                }  # fmt: skip
                self._log(values)
                progress.update(epoch, values)
                window, clips, losses, waited = now, 0, [], 0.0
            if config.checkpoint_steps and step % config.checkpoint_steps == 0 and step < end:
                self.seconds += time.perf_counter() - started
                started = time.perf_counter()
                self._checkpoint(step)
        self.seconds += time.perf_counter() - started
        self._share_skipped()
        self._check_readable(strict=False)
        if len(self.parts.val):
            self._validate(epoch, step)
        self._checkpoint(step)
        return step

    def _step(self, batches: list[Batch], rate: float, step: int) -> tuple[float, float]:
        """One optimiser step over all passes and ranks; returns the loss and the gradient's norm."""
        for batch in batches:
            self.skipped |= {clip.path: clip for clip in batch.errors.values()}
        if self.config.data.strict:
            self._check_readable(strict=True)
        batches = [batch.without_weightless().to(self.device) for batch in batches]
        self.learner.remember_buffers()
        total = torch.stack([self.objective.share(batch.target, batch.weight).sum() for batch in batches]).sum()
        # The share of clips over all ranks: DDP averages gradients over ranks, whatever each of them holds.
        total = self.accelerator.reduce(total, "sum").clamp(min=1e-8)
        self.learner.set_rate(rate)
        module, optimizer = self.learner.module, self.learner.optimizer
        loss = torch.zeros((), device=self.device)
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            with nullcontext() if last else self.accelerator.no_sync(module):
                part = self._loss(module, batch)
                self.accelerator.backward(part * (self.accelerator.num_processes / total))
            loss += part.detach()
        loss = self.accelerator.reduce(loss, "sum") / total
        norm = self.accelerator.clip_grad_norm_(module.parameters(), self.config.optim.clip_norm or float("inf"))
        values = torch.stack([loss, torch.as_tensor(norm, device=self.device, dtype=loss.dtype)]).tolist()
        # In fp16 an infinite gradient is the scaler's daily business: it skips the step and lowers its scale.
        scaled = self.accelerator.scaler is not None
        finite = np.isfinite(values[0]) and (np.isfinite(values[1]) or scaled)
        if finite or scaled:
            optimizer.step()
        if not finite:
            self._nonfinite(batches, step)
        elif self.average is not None:
            self.average.update(self.objective.model, step)
        optimizer.zero_grad()
        return values[0], values[1]

    def _loss(self, objective: nn.Module, batch: Batch) -> Tensor:
        """Sum of the losses of a batch's clips."""
        return objective(batch.wave, batch.target, batch.weight, batch.masks, self.config.augment.time_masks)["loss"]

    def _nonfinite(self, batches: list[Batch], step: int) -> None:
        """Stop with the step, the clips and the culprit named, or count the step and go on."""
        self.nonfinite_steps += 1
        self.learner.restore_buffers()  # batch norm's running statistics have seen the bad batch
        if not self.config.stop_on_nonfinite:
            return

        def repeat() -> Tensor:
            with self.accelerator.autocast():
                return torch.stack([self._loss(self.objective, batch) for batch in batches]).sum()

        raise nonfinite_step(step, batches, self.clips, self.objective, repeat)

    # -- beside the loop -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _validate(self, epoch: int, step: int) -> None:
        """Score the validation part with the weights that would be kept, and keep them if they are the best so far."""
        model, world = self.objective.model, self.accelerator.num_processes
        clips = setup.evaluation_clips(self.config, self.manifest, self.parts.val, self.reader, model)
        if self.average is not None:
            self.average.swap(model)
        values, skipped = validate(
            self.objective, clips, batch_size=max(1, 4 * self.config.batch_size // world), workers=self.config.workers,
            rank=self.accelerator.process_index, world=world, device=self.device, precision=self.precision,
        )  # fmt: skip
        self.skipped |= {clip.path: clip for clip in skipped}
        score = values[f"validation_{self.objective.metric}"] * (1 if self.objective.higher_is_better else -1)
        if not self.best or score > self.best["score"] or np.isnan(self.best["score"]):
            self.best = {"score": score, "epoch": epoch, "step": step}
            self.info.training["steps"] = step
            if self.main:
                model.save(self.folder / "checkpoints" / "best")
        if self.average is not None:
            self.average.swap(model)
        self._log({"step": step, "epoch": epoch, **values})

    def _check_readable(self, *, strict: bool) -> None:
        """Stop if too many files could not be read so far."""
        limit = self.config.data.max_unreadable
        check_readable(self.manifest, max_unreadable=limit, strict=strict, skipped=self.skipped.values())

    def _share_skipped(self) -> None:
        """Let every rank know the files that any of them could not read."""
        for skipped in setup.gather_object(list(self.skipped.values())):
            self.skipped |= {clip.path: clip for clip in skipped}

    def _checkpoint(self, step: int) -> None:
        self._share_skipped()
        random = setup.gather_object(checkpoint.random_state())
        if self.main:
            scaler = self.accelerator.scaler
            state = {
                "step": step, "seconds": self.seconds, "best": self.best, "nonfinite_steps": self.nonfinite_steps,
                "skipped": [[clip.path, clip.reason] for clip in self.skipped.values()],
                "environment": self.environment, "random": random, "optimizer": self.learner.state(),
                "scaler": scaler.state_dict() if scaler else None,
            }  # fmt: skip
            weights, average = self.objective.model.state_dict(), self.average.values if self.average else None
            checkpoint.write(self.folder / "checkpoints", step, weights, average, state, self.config.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def _finish(self, step: int) -> None:
        """Write the model that the run is for; a run with a `model` folder is a finished run."""
        if self.average is not None:
            self.average.swap(self.objective.model)
        if self.main:
            self._write_record(step)
            if self.best:
                (self.folder / "checkpoints" / "best").rename(self.folder / "model")
            else:
                self.info.training["steps"] = step
                self.objective.model.save(self.folder / "model")
            self.log.close()
        self.accelerator.end_training()
        done = f"{step} steps, {self.seconds:.0f} s of training, {len(self.skipped)} files skipped"
        self._say(f"finished: {self.folder} ({done})")

    def _announce(self, step: int) -> None:
        training = (
            f"{self.total_steps} steps of {self.config.batch_size} clips, {self.precision} on {self.device}, "
            f"{self.accelerator.num_processes} process(es){f', resumed at step {step}' if step else ''}"
        )
        model, info = self.objective.model, self.info
        self._say(
            record.announcement(
                self.config, model, info, self.manifest, self.parts, skipped=len(self.skipped), training=training
            )
        )

    def _write_record(self, step: int) -> None:
        record.write_record(
            self.config, self.manifest, self.parts, pieces=len(self.clips), environment=self.environment,
            skipped=self.skipped.values(), steps=step, total_steps=self.total_steps,
            train_seconds=round(self.seconds, 2), nonfinite_steps=self.nonfinite_steps, best=self.best or None,
        )  # fmt: skip

    def _log(self, values: dict[str, Any]) -> None:
        if self.main:
            self.log.write(values)
        self.accelerator.log({key: value for key, value in values.items() if key != "step"}, step=values["step"])

    def _say(self, text: str) -> None:
        if self.main:
            setup.say(text)
