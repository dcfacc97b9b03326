"""The training loop, from the first step to a finished run folder."""

import time
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gafx.config import TrainConfig, run_id, to_dict
from gafx.data.loader import Batch, TrainingOrder, evaluation_loader, training_loader
from gafx.data.manifest import Skipped
from gafx.data.open import open_split
from gafx.errors import UsageError
from gafx.hub import describe, save
from gafx.inference import predict_pieces, to_tracks
from gafx.metrics import label_scores
from gafx.model import create_model
from gafx.objectives.base import Objective
from gafx.registry import OBJECTIVES
from gafx.training import checkpoint, setup
from gafx.training.diagnose import first_nonfinite
from gafx.training.optim import (
    WeightAverage,
    build_optimizer,
    freeze,
    load_named_state,
    named_state,
    rate_factor,
    set_rate,
)
from gafx.training.tracking import MetricsLog, Progress, start_trackers


class Trainer:
    """One run: `Trainer(config).fit()` trains, or goes on where the run stopped, and returns the run's folder.

    The test part of the data is never read here. `paper`, `kfold` and `official` have no validation part: the last epoch's
    weights are the result. Under `*_val` the epoch that scores best on the validation part is.
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

    def fit(self) -> Path:
        """Train to the end and return the run folder; a run that is finished already returns at once."""
        lock = setup.claim_folder(self.folder) if self.main else None
        self._open_data()
        if (self.folder / "model").is_dir():
            self._say(
                f"{self.folder} is finished already; evaluate it, or change something (seed=1, say) for another run"
            )
            return self.folder
        self._build()
        step = self._resume()
        self.order.start_step = step
        # One loader serves all epochs, so that its workers read ahead across their borders.
        self.batches = iter(
            training_loader(self.clips, self.order, workers=self.config.workers, pin=self.device.type == "cuda")
        )
        if self.main:
            setup.write_config(self.config)
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

    # -- before the first step ---------------------------------------------------------------------------------------

    def _open_data(self) -> None:
        objective: Any = OBJECTIVES.get(self.config.objective["name"])
        with self.accelerator.main_process_first():  # the built-in data set is made once
            self.manifest, self.parts = open_split(
                self.config.data, multi_label=objective.multi_label, objective=self.config.objective["name"]
            )
        self.skipped = {clip.path: clip for clip in self.manifest.skipped}
        record = setup.read_json(self.folder / "run.json")
        fingerprint = self.manifest.fingerprint()
        if record and record["data"]["fingerprint"] != fingerprint:
            raise UsageError(
                f"{self.folder} belongs to a run on other data: {record['data']['clips']} clips of {len(record['data']['classes'])} classes, "
                f"now {len(self.manifest)} of {len(self.manifest.classes)} under {self.manifest.root}. Start another run with name=<new name>, "
                "or bring the data back as they were"
            )

    def _build(self) -> None:
        config = self.config
        torch.manual_seed(config.seed)
        model = create_model(
            config.frontend,
            config.classifier,
            num_classes=len(self.manifest.classes),
            segment_seconds=config.data.segment_seconds,
        )
        self.clips = setup.training_clips(config, self.manifest, self.parts.train, model)
        self.info = describe(
            model, config.frontend, config.classifier, list(self.manifest.classes), config.data.segment_seconds,
            objective=config.objective["name"],
            training={
                "run_id": run_id(config), "data": config.data.name, "protocol": config.data.protocol, "fold": config.data.fold,
                "folds": config.data.folds, "split_seed": config.data.split_seed, "seed": config.seed,
            },
        )  # fmt: skip
        targets = self.manifest.targets()[self.clips.pieces.row]
        arguments = {key: value for key, value in config.objective.items() if key != "name"}
        self.objective: Objective = OBJECTIVES.create(
            config.objective["name"], model, targets.sum(axis=0).astype(np.int64), **arguments
        ).to(self.device)
        if self.accelerator.num_processes > 1 and self.device.type == "cuda":
            self.objective = nn.SyncBatchNorm.convert_sync_batchnorm(self.objective)
        self.order = TrainingOrder(
            len(self.clips), batch_size=config.batch_size, epochs=config.epochs, seed=config.seed, accumulate=config.accumulate,
            rank=self.accelerator.process_index, world=self.accelerator.num_processes, weights=setup.sampling_weights(config, self.clips),
        )  # fmt: skip
        self.steps_per_epoch = self.order.steps_per_epoch
        self.total_steps = min(
            config.epochs * self.steps_per_epoch, config.max_steps or config.epochs * self.steps_per_epoch
        )
        self.average: WeightAverage | None = None
        self.frozen: set[str] | None = None
        self.environment = setup.environment(self.accelerator, self.precision)

    def _resume(self) -> int:
        """Load the newest checkpoint, or prepare a fresh start; return the number of steps that are done."""
        found = checkpoint.read_latest(self.folder / "checkpoints")
        if found is None:
            setup.fit_statistics(self.objective.model, self.clips, self.device)
            step, optimizer_state = 0, {}
            torch.manual_seed(self.config.seed + 1 + self.accelerator.process_index)
        else:
            weights, average, state = found
            self.objective.model.load_state_dict(weights)
            step, optimizer_state = state["step"], state["optimizer"]
            self.seconds, self.best, self.nonfinite_steps = state["seconds"], state["best"], state["nonfinite_steps"]
            self.skipped |= {path: Skipped(path, reason) for path, reason in state["skipped"]}
            changed = [
                f"{k} {state['environment'][k]} -> {v}"
                for k, v in self.environment.items()
                if state["environment"].get(k) != v
            ]
            if changed:
                self._say(
                    f"warning: resumed under other conditions ({', '.join(changed)}): sound, but not bit-identical to one long run"
                )
        if self.config.optim.ema_decay is not None:
            self.average = WeightAverage(self.objective.model, self.config.optim.ema_decay)
            if found is not None and found[1] is not None:
                for name, tensor in found[1].items():
                    self.average.values[name].copy_(tensor)
        self._wrap(min(step, self.total_steps - 1) // self.steps_per_epoch)
        load_named_state(self.objective, self._bare(self.optimizer), optimizer_state)
        if found is not None:
            scaler = self.accelerator.scaler
            if scaler is not None and state["scaler"]:
                scaler.load_state_dict(state["scaler"])
            if len(state["random"]) == self.accelerator.num_processes:
                checkpoint.restore_random_state(state["random"][self.accelerator.process_index])
        return step

    def _wrap(self, epoch: int) -> None:
        """(Re)build what depends on which parts learn: requires_grad, optimiser groups, DDP wrapper, compilation."""
        optim = self.config.optim
        frozen = {
            name
            for name, part in (("frontend", optim.frontend), ("classifier", optim.classifier))
            if epoch < part.frozen_epochs
        }
        if frozen == self.frozen:
            return
        state = named_state(self.objective, self._bare(self.optimizer)) if self.frozen is not None else {}
        if self.frozen is not None:
            # DDP never syncs parameters that were frozen when it was wrapped around them.
            self.accelerator.unwrap_model(self.module, keep_fp32_wrapper=False)
            # Unwrapping took autocast off but leaves this mark, on which `prepare` would not put it on again.
            vars(self.objective).pop("_is_accelerate_prepared", None)
            self.accelerator.free_memory()
        self.frozen = frozen
        freeze(self.objective, frozen)
        if not any(p.requires_grad for p in self.objective.parameters()):
            raise UsageError(
                f"nothing learns in epoch {epoch + 1}: {' and '.join(sorted(frozen))} frozen; lower optim.frontend.frozen_epochs or "
                "optim.classifier.frozen_epochs"
            )
        if self.config.compile:
            self.objective.model.compile()
        optimizer = build_optimizer(self.objective, optim, fused=self.precision != "fp16")
        load_named_state(self.objective, optimizer, state)
        self.module, self.optimizer = self.accelerator.prepare(self.objective, optimizer)

    # -- training ----------------------------------------------------------------------------------------------------

    def _epoch(self, step: int, progress: Progress) -> int:
        """Train from `step` to the end of its epoch (or of the run), validate, write a checkpoint; return the next step."""
        config = self.config
        epoch = step // self.steps_per_epoch
        end = min((epoch + 1) * self.steps_per_epoch, self.total_steps)
        self._wrap(epoch)
        self._train_mode()
        window, clips, losses = time.perf_counter(), 0, []
        started = window
        while step < end:
            begin = time.perf_counter()
            step_batches = list(islice(self.batches, config.accumulate))
            waited = time.perf_counter() - begin
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
                record = {
                    "step": step, "epoch": epoch, "loss": float(np.mean(losses)), "rate": rate, "gradient_norm": norm,
                    "clips_per_second": clips / (now - window), "data_wait_share": waited / (now - begin),
                }  # fmt: skip
                self._log(record)
                progress.update(epoch, record)
                window, clips, losses = now, 0, []
            if config.checkpoint_steps and step % config.checkpoint_steps == 0 and step < end:
                self.seconds += time.perf_counter() - started
                started = time.perf_counter()
                self._checkpoint(step)
        self.seconds += time.perf_counter() - started
        self._check_unreadable()
        if len(self.parts.val):
            self._validate(epoch, step)
        self._checkpoint(step)
        return step

    def _step(self, batches: list[Batch], rate: float, step: int) -> tuple[float, float]:
        """One optimiser step over all passes and ranks; returns the loss and the gradient's norm."""
        for batch in batches:
            self.skipped |= {clip.path: clip for clip in batch.errors.values()}
        batches = [batch.to(self.device) for batch in batches]
        total = torch.stack([self.objective.share(batch.target, batch.weight).sum() for batch in batches]).sum()
        # The share of clips over all ranks: DDP averages gradients over ranks, whatever each of them holds.
        total = self.accelerator.reduce(total, "sum").clamp(min=1e-8)
        set_rate(self._bare(self.optimizer), rate)
        loss = torch.zeros((), device=self.device)
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.module):
                output = self._forward(batch)
                self.accelerator.backward(output["loss"] * (self.accelerator.num_processes / total))
            loss += output["loss"].detach()
        loss = self.accelerator.reduce(loss, "sum") / total
        norm = self.accelerator.clip_grad_norm_(self.module.parameters(), self.config.optim.clip_norm or float("inf"))
        values = torch.stack([loss, torch.as_tensor(norm, device=self.device, dtype=loss.dtype)]).tolist()
        # In fp16 an infinite gradient is the scaler's daily business: it skips the step and lowers its scale.
        finite = np.isfinite(values[0]) and (np.isfinite(values[1]) or self.precision == "fp16")
        if finite:
            self.optimizer.step()
            if self.average is not None:
                self.average.update(self.objective.model, step)
        else:
            self._nonfinite(batches, step)
        self.optimizer.zero_grad()
        return values[0], values[1]

    def _forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.module(batch.wave, batch.target, batch.weight, batch.masks, self.config.augment.time_masks)

    def _train_mode(self) -> None:
        self.module.train()
        for part in self.frozen or ():
            getattr(self.objective.model, part).eval()

    # -- beside the loop ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _validate(self, epoch: int, step: int) -> None:
        """Score the validation part with the weights that would be kept, and keep them if they are the best so far."""
        model = self.objective.model
        clips = setup.evaluation_clips(self.config, self.manifest, self.parts.val, model)
        loader = evaluation_loader(
            clips, batch_size=max(1, 4 * self.config.batch_size // self.accelerator.num_processes), workers=self.config.workers,
            rank=self.accelerator.process_index, world=self.accelerator.num_processes,
        )  # fmt: skip
        if self.average is not None:
            self.average.swap(model)
        pieces = predict_pieces(
            model, loader, clips.pieces, self.objective.probabilities, device=self.device, precision=self.precision
        )
        self.skipped |= {clip.path: clip for clip in pieces.skipped}
        tracks = to_tracks(pieces)
        scores = label_scores(
            tracks.probabilities, self.manifest.targets()[tracks.row], self.manifest.group[tracks.row],
            multi_label=self.objective.multi_label, resamples=0,
        )  # fmt: skip
        values = {f"validation_{name}": score.value for name, score in scores.items()}
        score = values[f"validation_{self.objective.metric}"] * (1 if self.objective.higher_is_better else -1)
        if not self.best or score > self.best["score"]:
            self.best = {"score": score, "epoch": epoch, "step": step}
            if self.main:
                save(model, self.info, self.folder / "checkpoints" / "best")
        if self.average is not None:
            self.average.swap(model)
        self._log({"step": step, "epoch": epoch, **values})

    def _checkpoint(self, step: int) -> None:
        random = setup.gather_object(checkpoint.random_state())
        if self.main:
            scaler = self.accelerator.scaler
            state = {
                "step": step, "seconds": self.seconds, "best": self.best, "nonfinite_steps": self.nonfinite_steps,
                "skipped": [[clip.path, clip.reason] for clip in self.skipped.values()], "environment": self.environment, "random": random,
                "optimizer": named_state(self.objective, self._bare(self.optimizer)), "scaler": scaler.state_dict() if scaler else None,
            }  # fmt: skip
            average = self.average.values if self.average else None
            checkpoint.write(
                self.folder / "checkpoints",
                step,
                self.objective.model.state_dict(),
                average,
                state,
                self.config.keep_checkpoints,
            )
        self.accelerator.wait_for_everyone()

    def _finish(self, step: int) -> None:
        """Write the model that the run is for; a run with a `model` folder is a finished run."""
        if self.average is not None:
            self.average.swap(self.objective.model)
        if self.main:
            self._write_record(step)
            self.info.training["steps"] = step
            if self.best:
                (self.folder / "checkpoints" / "best").rename(self.folder / "model")
            else:
                save(self.objective.model, self.info, self.folder / "model")
            self.log.close()
        self.accelerator.end_training()
        self._say(
            f"finished: {self.folder} ({step} steps, {self.seconds:.0f} s of training, {len(self.skipped)} files skipped)"
        )

    def _nonfinite(self, batches: list[Batch], step: int) -> None:
        """Stop with the step, the clips and the culprit named, or count the step and go on."""
        self.nonfinite_steps += 1
        if not self.config.stop_on_nonfinite:
            return

        def repeat() -> Tensor:
            with self.accelerator.autocast():
                batch = batches[0]
                return self.objective(
                    batch.wave, batch.target, batch.weight, batch.masks, self.config.augment.time_masks
                )["loss"]

        culprit = first_nonfinite(self.objective, repeat)
        rows = [int(self.clips.pieces.row[i]) for batch in batches for i in batch.index.tolist() if i >= 0]
        clips = ", ".join(self.manifest.relative_path(row) for row in rows[:8]) + (", ..." if len(rows) > 8 else "")
        raise UsageError(
            f"the loss or its gradient is not finite at step {step + 1} (first: {culprit}; clips: {clips}). Lower optim.rate, set "
            "optim.clip_norm=1.0, lengthen optim.warmup_steps, try precision=fp32, or skip such steps with stop_on_nonfinite=false"
        )

    def _check_unreadable(self) -> None:
        data = self.config.data
        if len(self.skipped) > data.max_unreadable * (len(self.manifest) + len(self.manifest.skipped)):
            listed = "; ".join(
                f"{s['path']}: {s['reason']}" for s in (clip.as_dict() for clip in list(self.skipped.values())[:5])
            )
            raise UsageError(
                f"{len(self.skipped)} files cannot be read, more than data.max_unreadable={data.max_unreadable}: {listed}"
            )

    def _announce(self, step: int) -> None:
        parameters = sum(p.numel() for p in self.objective.model.parameters()) / 1e6
        start = "ImageNet weights" if self.info.imagenet else "random start"
        counts = ", ".join(
            f"{len(rows)} {name}"
            for name, rows in (
                ("training", self.parts.train),
                ("validation", self.parts.val),
                ("test", self.parts.test),
            )
        )
        resumed = f", resumed at step {step}" if step else ""
        self._say(
            f"{self.folder}\n"
            f"  model     {self.info.frontend['name']} -> map {' x '.join(map(str, self.info.map_shape))} -> {self.info.classifier['name']} "
            f"({start}), {parameters:.2f} M parameters\n"
            f"  data      {self.config.data.name}, protocol {self.config.data.protocol}: {counts} tracks, {len(self.manifest.classes)} classes, "
            f"{len(self.manifest.skipped)} files skipped\n"
            f"  training  {self.total_steps} steps of {self.config.batch_size} clips, {self.precision} on {self.device}, "
            f"{self.accelerator.num_processes} process(es){resumed}"
        )

    def _write_record(self, step: int) -> None:
        """run.json: what the run was made from and what happened to it."""
        setup.write_json(
            self.folder / "run.json",
            {
                "run_id": run_id(self.config),
                "steps": step, "total_steps": self.total_steps, "train_seconds": round(self.seconds, 2),
                "nonfinite_steps": self.nonfinite_steps, "best": self.best or None,
                "data": {
                    "fingerprint": self.manifest.fingerprint(), "root": str(self.manifest.root), "clips": len(self.manifest),
                    "classes": list(self.manifest.classes), "train": len(self.parts.train), "val": len(self.parts.val),
                    "test": len(self.parts.test), "train_pieces": len(self.clips),
                },
                "environment": self.environment,
                "skipped": [clip.as_dict() for clip in self.skipped.values()],
                "config": to_dict(self.config),
            },
        )  # fmt: skip

    def _log(self, record: dict[str, Any]) -> None:
        if self.main:
            self.log.write(record)
        self.accelerator.log({key: value for key, value in record.items() if key != "step"}, step=record["step"])

    def _say(self, text: str) -> None:
        if self.main:
            setup.say(text)

    @staticmethod
    def _bare(optimizer: Any) -> torch.optim.Optimizer:
        """The optimiser inside Accelerate's wrapper."""
        return getattr(optimizer, "optimizer", optimizer)
