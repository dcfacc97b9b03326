"""The training loop, from the first step to a finished run folder."""

from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

from gafx.config import TrainConfig
from gafx.data.batches import Batch, training_loader
from gafx.data.leaks.describe import describe_check
from gafx.data.manifest import Skipped, check_readable
from gafx.data.open import open_reader, open_split
from gafx.inference import calibrate
from gafx.memory import peak_memory
from gafx.model import create_model
from gafx.objectives.base import Objective
from gafx.registry import OBJECTIVES
from gafx.saving.hub import without_pretrained, write_calibration
from gafx.training import build, checkpoint, distributed, run_dir
from gafx.training.learner import Learner, run
from gafx.training.nonfinite import nonfinite_step
from gafx.training.optim import WeightAverage, rate_factor
from gafx.training.throughput import Pace
from gafx.training.trackers import MetricsLog, Progress, start_trackers
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
        self.accelerator, self.precision = distributed.start_accelerator(config)
        self.main, self.device = self.accelerator.is_main_process, self.accelerator.device
        self.skipped: dict[str, Skipped] = {}
        self.nonfinite_steps = 0
        self.pace = Pace(self.accelerator)
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
            distributed.finish(self.accelerator)
            return self.folder
        self._build()
        # Not before: a command that is refused leaves no folder behind.
        lock = build.claim_folder(self.folder) if self.main else None
        step = self._resume()
        distributed.agree(step, "the checkpoint of step", "output_dir must lie where all machines see it")
        self.order.start_step = step
        self.leaks = run_dir.check_leaks(self.config, self.manifest, self.parts) if self.main else None
        # One loader serves all epochs, so that its workers read ahead across their borders.
        self.batches = iter(
            training_loader(self.clips, self.order, workers=self.config.workers, pin=self.device.type == "cuda")
        )
        if self.main:
            run_dir.write_config(self.config)
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
            self.manifest, self.parts = open_split(
                self.config.data, multi_label=objective.multi_label, objective=name, reads_labels=objective.reads_labels
            )
        self.skipped = {clip.path: clip for clip in self.manifest.skipped}
        distributed.agree(
            self.manifest.fingerprint(), "data of the fingerprint", "all machines must read the same data"
        )
        run_dir.check_same_data(self.folder, self.manifest)

    def _build(self) -> None:
        config = self.config
        set_seed(config.seed)
        frontend, classifier, provenance = config.frontend, config.classifier, None
        if checkpoint.exists(self.folder / "checkpoints"):
            provenance = run_dir.read_provenance(config)
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
        self.clips = build.training_clips(config, self.manifest, self.parts.train, self.reader, model)
        self.info = model.info = build.model_info(config, model, provenance)
        self.objective: Objective = build.create_objective(config, self.clips, model).to(self.device)
        if self.accelerator.num_processes > 1 and self.device.type == "cuda":
            self.objective = nn.SyncBatchNorm.convert_sync_batchnorm(self.objective)
        self.learner = Learner(self.objective, config, self.accelerator, self.precision)
        self.order = build.training_order(config, self.clips, self.accelerator)
        self.steps_per_epoch = self.order.steps_per_epoch
        all_steps = config.epochs * self.steps_per_epoch
        self.total_steps = min(all_steps, config.max_steps or all_steps)
        self.environment = build.environment(self.accelerator, self.precision)

    def _resume(self) -> int:
        """Load the newest checkpoint, or prepare a fresh start; return the number of steps that are done."""
        found = checkpoint.read_latest(self.folder / "checkpoints")
        if found is None:
            build.fit_statistics(self.objective.model, self.clips, self.device)
            set_seed(self.config.seed + 1 + self.accelerator.process_index)
            self.learner.start_epoch(0)
            self._start_average(None)
            return 0
        weights, average, state = found
        self.objective.model.load_state_dict(weights)
        self.pace = Pace(self.accelerator, state["seconds"])
        self.best, self.nonfinite_steps = state["best"], state["nonfinite_steps"]
        self.skipped |= {path: Skipped(path, reason) for path, reason in state["skipped"]}
        if warning := run_dir.changed_conditions(state["environment"], self.environment):
            self._say(warning)
        step: int = state["step"]
        self.learner.start_epoch(min(step, self.total_steps - 1) // self.steps_per_epoch)
        self.learner.load_state(state["optimizer"])
        self._start_average(average)
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if len(state["random"]) == self.accelerator.num_processes:
            checkpoint.restore_random_state(state["random"][self.accelerator.process_index])
        return step

    def _start_average(self, values: dict[str, Tensor] | None) -> None:
        if self.config.optim.ema_decay is not None:
            self.average = WeightAverage(self.learner.live.model, self.config.optim.ema_decay, values)

    # -- training ------------------------------------------------------------------------------------------------------

    def _epoch(self, step: int, progress: Progress) -> int:
        """Train from `step` to the end of its epoch or run, validate, write a checkpoint; return the next step."""
        config = self.config
        epoch = step // self.steps_per_epoch
        end = min((epoch + 1) * self.steps_per_epoch, self.total_steps)
        self.learner.start_epoch(epoch)
        self.learner.train()
        losses = []
        self.pace.start()
        while step < end:
            batches = self.pace.wait(lambda: list(islice(self.batches, config.grad_accumulation)))
            rate = config.optim.lr * rate_factor(config.optim, step, self.steps_per_epoch, self.total_steps)
            loss, norm = self._step(batches, rate, step)
            losses.append(loss)
            self.pace.step(self.order.clips_of(step))
            step += 1
            progress.step()
            if step % config.tracking.log_steps == 0 or step == end:
                values = {
                    "step": step, "epoch": epoch, "loss": float(np.mean(losses)), "rate": rate, "gradient_norm": norm,
                    **self.pace.read(),
                }  # fmt: skip
                self._log(values)
                progress.update(epoch, values)
                losses = []
            if config.checkpoint_steps and step % config.checkpoint_steps == 0 and step < end:
                self._checkpoint(step)
                self.pace.start()
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
        optimizer = self.learner.optimizer
        loss = torch.zeros((), device=self.device)
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            with nullcontext() if last else self.learner.alone():
                part = self.learner.loss(batch)
                self.accelerator.backward(part * (self.accelerator.num_processes / total))
            loss += part.detach()
        loss = self.accelerator.reduce(loss, "sum") / total
        norm = self.learner.clip(self.config.optim.clip_norm or float("inf"))
        values = torch.stack([loss, norm.to(loss)]).tolist()
        # In fp16 an infinite gradient is the scaler's daily business: it skips the step and lowers its scale.
        scaled = self.accelerator.scaler is not None
        finite = np.isfinite(values[0]) and (np.isfinite(values[1]) or scaled)
        if finite or scaled:
            optimizer.step()
        if not finite:
            self._nonfinite(batches, step)
        elif self.average is not None:
            self.average.update(self.learner.live.model, step)
        optimizer.zero_grad()
        return values[0], values[1]

    def _nonfinite(self, batches: list[Batch], step: int) -> None:
        """Stop with the step, the clips and the culprit named, or count the step and go on."""
        self.nonfinite_steps += 1
        self.learner.restore_buffers()  # batch norm's running statistics have seen the bad batch
        if not self.config.stop_on_nonfinite:
            return
        self.learner.collect()

        def repeat() -> Tensor:
            with self.accelerator.autocast():
                return torch.stack([run(self.objective, batch, self.config) for batch in batches]).sum()

        raise nonfinite_step(step, batches, self.clips, self.objective, repeat)

    # -- beside the loop -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _validate(self, epoch: int, step: int) -> None:
        """Score the validation part with the weights that would be kept, and keep them if they are the best so far."""
        model, world = self.objective.model, self.accelerator.num_processes
        clips = build.evaluation_clips(self.config, self.manifest, self.parts.val, self.reader, model)
        self.learner.present(self.average)
        values, segments = validate(
            self.objective, clips, batch_size=max(1, 4 * self.config.batch_size // world), workers=self.config.workers,
            rank=self.accelerator.process_index, world=world, device=self.device, precision=self.precision,
        )  # fmt: skip
        self.skipped |= {clip.path: clip for clip in segments.skipped}
        score = values[f"validation_{self.objective.metric}"] * (1 if self.objective.higher_is_better else -1)
        if not self.best or score > self.best["score"] or np.isnan(self.best["score"]):
            self.best = {"score": score, "epoch": epoch, "step": step}
            self.info.training["steps"] = step
            if self.main:
                model.save(self.folder / "checkpoints" / "best")
                if calibration := calibrate(segments, self.manifest, self.objective):
                    write_calibration(self.folder / "checkpoints" / "best", calibration)
        self.learner.withdraw(self.average)
        self._log({"step": step, "epoch": epoch, **values})

    def _check_readable(self, *, strict: bool) -> None:
        """Stop if too many files could not be read so far."""
        limit = self.config.data.max_unreadable
        check_readable(self.manifest, max_unreadable=limit, strict=strict, skipped=self.skipped.values())

    def _share_skipped(self) -> None:
        """Let every rank know the files that any of them could not read."""
        for skipped in distributed.gather_object(list(self.skipped.values())):
            self.skipped |= {clip.path: clip for clip in skipped}

    def _checkpoint(self, step: int) -> None:
        self._share_skipped()
        random = distributed.gather_object(checkpoint.random_state())
        # Under FSDP all ranks take part in making these whole.
        self.learner.collect()
        optimizer = self.learner.state()
        average = self.average.whole() if self.average else None
        if self.main:
            scaler = self.accelerator.scaler
            state = {
                "step": step, "seconds": self.pace.seconds, "best": self.best, "nonfinite_steps": self.nonfinite_steps,
                "skipped": [[clip.path, clip.reason] for clip in self.skipped.values()],
                "environment": self.environment, "random": random, "optimizer": optimizer,
                "scaler": scaler.state_dict() if scaler else None,
            }  # fmt: skip
            weights = self.objective.model.state_dict()
            checkpoint.write(self.folder / "checkpoints", step, weights, average, state, self.config.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def _finish(self, step: int) -> None:
        """Write the model that the run is for; a run with a `model` folder is a finished run."""
        pace = self.pace.summary()
        self.learner.present(self.average)
        if self.main:
            self._write_record(step, **pace)
            if self.best:
                (self.folder / "checkpoints" / "best").rename(self.folder / "model")
            else:
                self.info.training["steps"] = step
                self.objective.model.save(self.folder / "model")
            self.log.close()
        distributed.finish(self.accelerator)
        self._say(
            f"finished: {self.folder} ({step} steps, {self.pace.seconds:.0f} s of training, "
            f"{pace['clips_per_second']:.1f} clips/s, data wait {100 * pace['data_wait_share']:.0f} %, "
            f"{len(self.skipped)} files skipped)"
        )

    def _announce(self, step: int) -> None:
        training = (
            f"{self.total_steps} steps of {self.config.batch_size} clips, {self.precision} on {self.device}, "
            f"{self.accelerator.num_processes} process(es){distributed.words(self.accelerator)}"
            f"{f', resumed at step {step}' if step else ''}"
        )
        model, info = self.objective.model, self.info
        self._say(
            run_dir.announcement(
                self.config, model, info, self.manifest, self.parts, skipped=len(self.skipped), training=training
            )
        )
        if self.leaks:
            self._say("\n".join(describe_check(self.leaks)))

    def _write_record(self, step: int, **pace: float) -> None:
        run_dir.write_record(
            self.config, self.manifest, self.parts, segments=len(self.clips), environment=self.environment,
            provenance=self.info.provenance, skipped=self.skipped.values(), steps=step, total_steps=self.total_steps,
            train_seconds=round(self.pace.seconds, 2), peak_memory_bytes=peak_memory(self.device),
            nonfinite_steps=self.nonfinite_steps, best=self.best or None,
            leaks=self.leaks, **pace,
        )  # fmt: skip

    def _log(self, values: dict[str, Any]) -> None:
        if self.main:
            self.log.write(values)
        self.accelerator.log({key: value for key, value in values.items() if key != "step"}, step=values["step"])

    def _say(self, text: str) -> None:
        if self.main:
            build.say(text)
