"""Training loop: from a configuration to a finished run folder."""

import logging
import shutil
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import Tensor, nn
from tqdm import tqdm

from gafx.config import TrainConfig
from gafx.data.batches import Batch, evaluation_loader, training_loader
from gafx.data.leaks.describe import describe_check
from gafx.data.manifest import Skipped, check_readable
from gafx.data.open import open_reader
from gafx.errors import UsageError
from gafx.evaluation.maps import map_pictures, spread_over_classes
from gafx.inference import calibrate, predict_segments, to_tracks, validate
from gafx.io import atomic_folder, publish, write_text
from gafx.loading import load
from gafx.memory import peak_memory
from gafx.objectives.base import Objective
from gafx.report import format as fmt
from gafx.report.format import duration, fraction, plural, scaled
from gafx.saving.hub import CONFIG, WEIGHTS, write_calibration
from gafx.training import build, checkpoint, distributed, run_dir
from gafx.training.ema import EMA
from gafx.training.learner import Learner, sum_of_losses
from gafx.training.nonfinite import nonfinite_step
from gafx.training.optim import lr_factor
from gafx.training.throughput import Throughput
from gafx.training.trackers import MetricsLog, log_media, progress_bar, start_trackers

_log = logging.getLogger("gafx")


class Trainer:
    """One run: `Trainer(config).fit()` trains or resumes, and returns the run's folder.

    The test part of the data is never used here. `paper`, `kfold` and `official` have no validation part: the model of
    the last epoch is kept. Under `*_val` and `fault_filtered` it is that of the epoch with the best validation score,
    and with `patience` training ends when that score has not risen for so many epochs.
    """

    def __init__(self, config: TrainConfig):
        self.config = config
        self.folder = config.folder
        self.extended = None if config.extend is None else Path(config.extend)
        self.accelerator, self.precision = distributed.start_accelerator(config)
        self.main, self.device = self.accelerator.is_main_process, self.accelerator.device
        self.skipped: dict[str, Skipped] = {}
        self.nonfinite_steps = 0
        self.throughput = Throughput(self.accelerator)
        self.best: dict[str, float] = {}
        self.ema: EMA | None = None

    def fit(self) -> Path:
        """Train to the end and return the run folder; of a finished run, return it at once."""
        finished = self._is_finished()
        root = self.config.data.root
        if not finished or (root is not None and Path(root).expanduser().exists()):
            self._open_data()  # of a finished run, too: it may have been on other data
        if finished:
            return self._leave_finished()
        self._build()
        # Only now: a refused command leaves no folder behind.
        with build.claim_folder(self.folder) if self.main else nullcontext():
            # Another process may have trained the run since it was looked at.
            if distributed.gather_object(self._is_finished())[0]:
                return self._leave_finished()
            run_dir.check_same_data(self.folder, self.manifest)
            if self.main:
                checkpoint.remove_unfinished(self.folder / "checkpoints")
            step = self._resume()
            distributed.check_equal(step, "the checkpoint of step", "all machines must share output_dir")
            self.order.start_step = step
            self.leaks = run_dir.check_leaks(self.config, self.manifest, self.parts) if self.main else None
            # One loader for all epochs, so that its workers read ahead across their ends.
            pin = self.device.type == "cuda"
            self.batches = iter(training_loader(self.clips, self.order, workers=self.config.workers, pin=pin))
            if self.main:
                run_dir.write_config(self.config)
                self._write_record(step)
                self.log = MetricsLog(self.folder / "metrics.jsonl", step)
            start_trackers(self.accelerator, self.config)
            self._announce(step)
            progress = progress_bar(self.total_steps, step, self.main)
            try:
                while step < self.total_steps and not self._out_of_patience(step):
                    step = self._epoch(step, progress)
            finally:
                progress.close()
            self._finish(step)
        return self.folder

    # -- before the first step -----------------------------------------------------------------------------------------

    def _is_finished(self) -> bool:
        return (self.folder / "model").is_dir()

    def _leave_finished(self) -> Path:
        self._info(
            "%s is finished; evaluate it, or change something (e.g. seed=1) for another run; extend=%s epochs=<more> "
            "continues it", self.folder, self.folder,
        )  # fmt: skip
        self._close()
        return self.folder

    def _open_data(self) -> None:
        with self.accelerator.main_process_first():  # the built-in data set is made once
            self.manifest, self.parts = build.open_data(self.config)
        self.skipped = {clip.path: clip for clip in self.manifest.skipped}
        distributed.check_equal(
            str(self.manifest.identity()), "data of the fingerprints", "all machines must read the same data"
        )
        for folder in (self.folder, self.extended):
            if folder is not None:
                run_dir.check_same_data(folder, self.manifest)

    def _build(self) -> None:
        config = self.config
        set_seed(config.seed)
        provenance, started = None, config
        self.resumes = checkpoint.latest_step(self.folder / "checkpoints") is not None
        if origin := self.folder if self.resumes else self.extended:
            provenance = run_dir.read_provenance(origin, config)
            started = replace(config, frontend=run_dir.read_frontend(origin, config))
        # A checkpoint holds every weight: pretrained ones may be gone by now.
        model = build.build_model(started, list(self.manifest.classes), plain=origin is not None)
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
        self.total_steps = build.total_steps(config, self.order)
        self.environment = build.environment(self.accelerator, self.precision)

    def _resume(self) -> int:
        """Load the newest checkpoint, or start from step 0; return the number of finished steps."""
        found = checkpoint.read_latest(self.folder / "checkpoints")
        if found is None and self.resumes:
            raise UsageError(f"the checkpoints in {self.folder} have gone while the run was opened: start it again")
        if found is None and self.extended is not None:
            found = self._read_extended(self.extended)
        if found is None:
            build.fit_statistics(self.objective.model, self.clips, self.device)
            set_seed(self.config.seed + 1 + self.accelerator.process_index)
            self.learner.start_epoch(0)
            self._start_ema(None)
            return 0
        weights, average, state = found
        self.objective.load_tensors(weights)
        self.throughput = Throughput(self.accelerator, state["seconds"])
        self.best, self.nonfinite_steps = state["best"], state["nonfinite_steps"]
        best = self.folder / "checkpoints" / "best"
        if self.main and self.best and not all((best / name).is_file() for name in (CONFIG, WEIGHTS)):
            raise UsageError(
                f"{best} is lost, the model of step {self.best['step']} with the best validation score so far: restore "
                "it, or delete the run's folder to train it again"
            )
        self.skipped |= {path: Skipped(path, reason) for path, reason in state["skipped"]}
        if self.main and (changes := run_dir.changed_conditions(state["environment"], self.environment)):
            _log.warning("%s", changes)
        step: int = state["step"]
        self.learner.start_epoch(min(step, self.total_steps - 1) // self.steps_per_epoch)
        self.learner.load_state(state["optimizer"])
        self._start_ema(average)
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if len(state["random"]) == self.accelerator.num_processes:
            checkpoint.restore_random_state(state["random"][self.accelerator.process_index])
        return step

    def _read_extended(self, run: Path) -> checkpoint.Checkpoint:
        """Read the last checkpoint of the run that is continued, and copy its best model and its log."""
        found = checkpoint.read_latest(run / "checkpoints")
        if found is None:
            raise UsageError(f"extend={run}: there is no checkpoint in its folder, from which it could continue")
        step, best = found[2]["step"], found[2]["best"]
        if step >= self.total_steps:
            raise UsageError(
                f"extend={run}: the run has had {step} steps, and epochs={self.config.epochs} "
                f"max_steps={self.config.max_steps} are {self.total_steps} in all: set more"
            )
        self.best = best
        if self._out_of_patience(step):
            raise UsageError(
                f"extend={run}: the run was ended by patience={self.config.patience} and would be ended at once; "
                "a new run with a larger patience has to start from its beginning"
            )
        if self.main:
            if best:
                (self.folder / "checkpoints").mkdir(exist_ok=True)
                with atomic_folder(self.folder / "checkpoints" / "best", replace=True) as part:
                    shutil.copytree(run / "model", part, dirs_exist_ok=True)
            write_text(self.folder / "metrics.jsonl", (run / "metrics.jsonl").read_text(encoding="utf-8"))
        self._info("%s", run_dir.describe_extension(self.config, step, self.steps_per_epoch, self.total_steps))
        return found

    def _start_ema(self, values: dict[str, Tensor] | None) -> None:
        if self.config.optim.ema_decay is not None:
            self.ema = EMA(self.learner.live.tensors(), self.config.optim.ema_decay, values)

    # -- training ------------------------------------------------------------------------------------------------------

    def _epoch(self, step: int, progress: tqdm) -> int:
        """Train from `step` to the end of its epoch or run, validate, write a checkpoint; return the next step."""
        config = self.config
        epoch = step // self.steps_per_epoch
        end = min((epoch + 1) * self.steps_per_epoch, self.total_steps)
        self.learner.start_epoch(epoch)
        self.learner.train()
        losses = []
        self.throughput.start()
        while step < end:
            batches = self.throughput.wait(lambda: list(islice(self.batches, config.grad_accumulation)))
            lr = config.optim.lr * lr_factor(config.optim, step, self.steps_per_epoch, self.total_steps)
            loss, norm = self._step(batches, lr, step)
            losses.append(loss)
            self.throughput.step(self.order.clips_of(step))
            step += 1
            progress.update()
            if step % config.tracking.log_steps == 0 or step == end:
                values = {
                    "step": step, "epoch": epoch, "loss": float(np.mean(losses)), "lr": lr, "grad_norm": norm,
                    **self.throughput.read(),
                }  # fmt: skip
                self._log(values)
                progress.set_postfix_str(
                    f"epoch {epoch + 1}, loss {values['loss']:.3f}, lr {lr:.1e}, "
                    f"{values['clips_per_second']:.1f} clips/s",
                    refresh=False,
                )
                losses = []
            if config.checkpoint_steps and step % config.checkpoint_steps == 0 and step < end:
                self._checkpoint(step)
                self.throughput.start()
        self._gather_skipped()
        self._check_readable(strict=False)
        if len(self.parts.val):
            self._validate(epoch, step)
        self._checkpoint(step)
        return step

    def _step(self, batches: list[Batch], lr: float, step: int) -> tuple[float, float]:
        """Take one optimiser step over all micro-batches and ranks; return its loss and gradient norm."""
        for batch in batches:
            self.skipped |= {clip.path: clip for clip in batch.errors.values()}
        if self.config.data.strict:
            self._check_readable(strict=True)
        batches = [batch.without_weightless().to(self.device) for batch in batches]
        self.learner.remember_buffers()
        total = torch.stack([self.objective.loss_weight(batch.target, batch.weight).sum() for batch in batches]).sum()
        # Summed over ranks: DDP averages their gradients, however many clips each of them has.
        total = self.accelerator.reduce(total, "sum").clamp(min=1e-8)
        self.learner.set_lr(lr)
        self.learner.at_step(step)
        optimizer = self.learner.optimizer
        loss = torch.zeros((), device=self.device)
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            with nullcontext() if last else self.learner.no_sync():
                part = self.learner.loss(batch)
                self.accelerator.backward(part * (self.accelerator.num_processes / total))
            loss += part.detach()
        loss = self.accelerator.reduce(loss, "sum") / total
        norm = self.learner.clip_grad_norm(self.config.optim.clip_norm or float("inf"))
        values = torch.stack([loss, norm.to(loss)]).tolist()
        # In fp16 infinite gradients are expected: the scaler skips the step and lowers its scale.
        scaled = self.accelerator.scaler is not None
        finite = np.isfinite(values[0]) and (np.isfinite(values[1]) or scaled)
        if finite or scaled:
            optimizer.step()
        if not finite:
            self._nonfinite(batches, step)
        elif self.ema is not None:
            self.ema.update(self.learner.live.tensors(), step)
        optimizer.zero_grad()
        return values[0], values[1]

    def _nonfinite(self, batches: list[Batch], step: int) -> None:
        """Stop with the step, its clips and the first bad tensor named, or count the step and continue."""
        self.nonfinite_steps += 1
        self.learner.restore_buffers()  # batch norm's running statistics include the bad batch
        if not self.config.stop_on_nonfinite:
            return
        self.learner.collect()

        def repeat() -> Tensor:
            with self.accelerator.autocast():
                return torch.stack([sum_of_losses(self.objective, batch, self.config) for batch in batches]).sum()

        raise nonfinite_step(step, batches, self.clips, self.objective, repeat)

    # -- validation, checkpoints, log ----------------------------------------------------------------------------------

    @torch.no_grad()
    def _validate(self, epoch: int, step: int) -> None:
        """Score the validation part with the weights that would be kept; save them if they are the best so far."""
        model, world = self.objective.model, self.accelerator.num_processes
        clips = build.evaluation_clips(self.config, self.manifest, self.parts.val, self.reader, model)
        self.learner.swap_in_ema(self.ema)
        values, segments = validate(
            self.objective, clips, batch_size=max(1, 4 * self.config.batch_size // world), workers=self.config.workers,
            rank=self.accelerator.process_index, world=world, device=self.device, precision=self.precision,
        )  # fmt: skip
        self.skipped |= {clip.path: clip for clip in segments.skipped}
        score = values[f"validation_{self.objective.metric}"] * (1 if self.objective.higher_is_better else -1)
        # Of equal scores, which are common on few validation clips, the later epoch has trained longer: it is kept, but
        # is no improvement.
        if not self.best or score >= self.best["score"] or np.isnan(self.best["score"]):
            equal = bool(self.best) and score == self.best["score"]
            improved = self.best.get("improved", self.best["epoch"]) if equal else epoch
            self.best = {"score": score, "epoch": epoch, "step": step, "improved": improved}
            self.info.training["steps"] = step
            if self.main:
                model.save(self.folder / "checkpoints" / "best", objective=self.objective.own_tensors())
                if calibration := calibrate(segments, self.manifest, self.objective):
                    write_calibration(self.folder / "checkpoints" / "best", calibration)
        self.learner.swap_out_ema(self.ema)
        self._log({"step": step, "epoch": epoch, **values})

    def _out_of_patience(self, step: int) -> bool:
        """Whether `patience` epochs have passed without improvement: a function of the checkpoint alone."""
        if self.config.patience is None or not self.best:
            return False
        return step // self.steps_per_epoch - 1 - self.best["improved"] >= self.config.patience

    def _check_readable(self, *, strict: bool) -> None:
        """Stop if too many files could not be read so far."""
        limit = self.config.data.max_unreadable
        check_readable(self.manifest, max_unreadable=limit, strict=strict, skipped=self.skipped.values())

    def _gather_skipped(self) -> None:
        """Gather the files that any rank could not read."""
        for skipped in distributed.gather_object(list(self.skipped.values())):
            self.skipped |= {clip.path: clip for clip in skipped}

    def _checkpoint(self, step: int) -> None:
        self._gather_skipped()
        random = distributed.gather_object(checkpoint.random_state())
        # Collectives under FSDP, so on all ranks.
        self.learner.collect()
        optimizer = self.learner.state()
        average = self.ema.state_dict() if self.ema else None
        if self.main:
            scaler = self.accelerator.scaler
            state = {
                "step": step, "seconds": self.throughput.seconds, "best": self.best,
                "nonfinite_steps": self.nonfinite_steps,
                "skipped": [[clip.path, clip.reason] for clip in self.skipped.values()],
                "environment": self.environment, "random": random, "optimizer": optimizer,
                "scaler": scaler.state_dict() if scaler else None,
            }  # fmt: skip
            weights = self.objective.tensors()
            checkpoint.write(self.folder / "checkpoints", step, weights, average, state, self.config.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def _finish(self, step: int) -> None:
        """Write the model; a run with a `model` folder is finished."""
        figures = self.throughput.summary()
        self._log_media(step)
        self.learner.swap_in_ema(self.ema)
        if self.main:
            self._write_record(step, **figures)
            if self.best:
                publish(self.folder / "checkpoints" / "best", self.folder / "model")
            else:
                self.info.training["steps"] = step
                self.objective.model.save(self.folder / "model", objective=self.objective.own_tensors())
            self.log.close()
        self._close()
        self._info(
            "finished: %s (%s, %s of training, %.1f clips/s, data wait %s, %s skipped)%s",
            self.folder, plural(step, "step"), duration(self.throughput.seconds), figures["clips_per_second"],
            fraction(figures["data_wait"], 0), plural(len(self.skipped), "file"), self._describe_kept(step),
        )  # fmt: skip

    def _log_media(self, step: int) -> None:
        """Log a few validation clips to the trackers, with the predictions of the model that is kept (collective)."""
        if not self.config.tracking.media or not self.best:
            return
        kept = load(self.folder / "checkpoints" / "best").to(self.device)
        rows = spread_over_classes(self.manifest, self.parts.val, self.config.tracking.media)
        clips = build.evaluation_clips(self.config, self.manifest, rows, self.reader, kept)
        loader = evaluation_loader(
            clips, batch_size=self.config.batch_size, workers=0, rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
        )  # fmt: skip
        objective = build.create_objective(self.config, self.clips, kept).to(self.device)
        objective.load_own(self.folder / "checkpoints" / "best")
        segments = predict_segments(
            kept, loader, clips.segments, objective.predict, device=self.device, precision=self.precision
        )
        if self.main and len(segments):
            pictures = map_pictures(type(objective), kept, clips, to_tracks(segments), len(rows))
            log_media(self.accelerator.trackers, pictures, kept.frontend.sample_rate, step)

    def _describe_kept(self, step: int) -> str:
        """Which epoch's model was kept, and whether training ended before its last step; empty without validation."""
        if not self.best:
            return ""
        epochs = -(-step // self.steps_per_epoch)
        ended = (
            f"; ended by patience={self.config.patience}, {plural(self.total_steps - step, 'step')} before the last"
            if step < self.total_steps
            else ""
        )
        metric, score = self.objective.metric, self.best["score"] * (1 if self.objective.higher_is_better else -1)
        kept = f"epoch {self.best['epoch'] + 1} of {epochs}"
        return f"; kept {kept}, validation {fmt.lowered(fmt.label(metric))} {fmt.number(score, metric)}{ended}"

    def _announce(self, step: int) -> None:
        """Log folder, model, data and training of the run, and the leak check."""
        config, model = self.config, self.objective.model
        texts = [
            f"{config.folder}",
            f"  model     {run_dir.describe_model(model, self.info.provenance)}, "
            f"{scaled(sum(p.numel() for p in model.parameters()))} parameters",
            f"  data      {run_dir.describe_data(config, self.manifest, self.parts, len(self.skipped))}"
            f"{f', from the cache {config.data.cache}' if config.data.cache else ''}",
            *[f"            {note}" for note in self.manifest.notes],
            f"  training  {'at most ' if config.patience else ''}{self.total_steps} steps of {config.batch_size} "
            f"clips, {self.precision} on {self.device}, "
            f"{plural(self.accelerator.num_processes, 'process', 'processes')}"
            f"{distributed.by_strategy(self.accelerator)}"
            f"{f', resumed at step {step}' if step else ''}",
            *(describe_check(self.leaks) if self.leaks else ()),
        ]  # fmt: skip
        self._info("%s", "\n".join(texts))

    def _write_record(self, step: int, **figures: float) -> None:
        run_dir.write_record(
            self.config, self.manifest, self.parts, segments=len(self.clips), environment=self.environment,
            provenance=self.info.provenance, frontend=self.info.frontend, skipped=self.skipped.values(), steps=step,
            total_steps=self.total_steps, train_seconds=round(self.throughput.seconds, 2),
            peak_memory_bytes=peak_memory(self.device), nonfinite_steps=self.nonfinite_steps, best=self.best or None,
            leaks=self.leaks, **figures,
        )  # fmt: skip

    def _log(self, values: dict[str, Any]) -> None:
        if self.main:
            self.log.write(values)
        self.accelerator.log({key: value for key, value in values.items() if key != "step"}, step=values["step"])

    def _info(self, text: str, *values: object) -> None:
        if self.main:
            _log.info(text, *values)

    def _close(self) -> None:
        """Close the trackers when all ranks are done; the process group is left to the end of the process."""
        self.accelerator.wait_for_everyone()
        for tracker in self.accelerator.trackers:
            tracker.finish()
