"""Dry run (`dry_run=true`): print what a run would be and cost, without training.

Clips, steps, parameters and the bytes of weights, gradients and moments are counted. Time and activations are measured
on the model itself: on a GPU at full size; on a CPU on longer and longer clips, until a pass takes about a second,
extrapolated to full size by floating-point operations (counted without computing) and samples. Nothing is written,
downloaded or packed.
"""

import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from gafx.config import TrainConfig
from gafx.data.batches import Batch
from gafx.data.manifest import Manifest
from gafx.data.open import file_reader, open_reader
from gafx.data.packing.cache import ABOUT, cache_folder, stored_lengths
from gafx.data.splits import Split
from gafx.errors import UsageError
from gafx.model import GAFX, provenance_of
from gafx.nn.flops import count_flops
from gafx.nn.precision import autocast
from gafx.objectives.base import Objective
from gafx.report.format import duration, plural, size
from gafx.training import build, checkpoint, distributed, run_dir
from gafx.training.learner import sum_of_losses
from gafx.training.optim import build_optimizer

# A measurement this long is extrapolated; a shorter one is repeated at twice the size.
_ENOUGH_SECONDS = 0.6


class Estimate(NamedTuple):
    """Cost of a step for one process: seconds of a whole optimiser step, bytes of activations kept between forward and
    backward pass, and what was measured."""

    seconds: float
    activations: float
    measured: str


def describe_run(config: TrainConfig) -> str | None:
    """Describe a run, with a measured step, in lines of text; return `None` on all ranks but the first.

    Raises:
        UsageError: whatever the run would raise before its first step, or data that it would make or download first.
    """
    accelerator, precision = distributed.start_accelerator(config)
    if not accelerator.is_main_process:
        return None
    manifest, parts = _open_data(config)
    model, missing = _build_model(config, manifest)
    source = _data_source(config, manifest, model)
    reader = file_reader(manifest, model.frontend.sample_rate, model.frontend.channels)
    clips = build.training_clips(config, manifest, parts.train, reader, model)
    objective = build.create_objective(config, clips, model).to(accelerator.device)
    order = build.training_order(config, clips, accelerator)
    steps, world = build.total_steps(config, order), accelerator.num_processes
    micro_batch = -(-config.batch_size // (config.grad_accumulation * world))
    held = _bytes_held(config, objective)
    on_disk = sum(count for name, count in held.items() if name != "gradients")
    if distributed.is_sharded(accelerator):
        held = {name: count / world for name, count in held.items()} | {"full copy": held["weights"]}
    parameters = "; ".join(_count_parameters(config, model, name) for name in ("frontend", "classifier"))
    samples = build.segment_samples(config.data, model)
    cost = measure(objective, config, micro_batch, samples, accelerator.device, precision)
    provenance = provenance_of(config.frontend, config.classifier, config.pretrained)
    lines = [
        ("run", f"{config.folder} ({_state(config)})"),
        ("model", run_dir.describe_model(model, provenance)),
        *([("", f"pretrained weights are not on this machine ({missing}): the run downloads them first, or fails")]
          if missing else []),
        ("parameters", parameters),
        ("data", run_dir.describe_data(config, manifest, parts, len(manifest.skipped))),
        ("", source),
        *[("", note) for note in manifest.notes],
        ("steps", f"{order.steps_per_epoch:,} per epoch of {len(clips):,} segments of {config.data.segment_seconds:g} "
                  f"{model.frontend.unit}, {steps:,} in all"),
        ("", f"{config.batch_size} clips per step = {plural(world, 'process', 'processes')} x "
             f"{plural(config.grad_accumulation, 'micro-batch', 'micro-batches')} x {plural(micro_batch, 'clip')}, "
             f"{precision} on {accelerator.device}{distributed.by_strategy(accelerator)}"),
        ("memory", f"about {size(sum(held.values()) + cost.activations)} per process: "
                   + "".join(f"{name} {size(count)}, " for name, count in held.items())
                   + f"activations {size(cost.activations)}"),
        ("time", f"about {duration(cost.seconds)} per step, {duration(cost.seconds * steps)} in all; validation and "
                 f"waiting for data{' and for other processes' if world > 1 else ''} not counted"),
        ("", f"estimated from {cost.measured}, measured just now"),
        ("disk", f"{size(on_disk)} per checkpoint, {config.keep_checkpoints} kept; {size(_free(config.folder))} free"),
    ]  # fmt: skip
    return "\n".join(f"{heading:<11} {text}" for heading, text in lines)


def measure(
    objective: Objective, config: TrainConfig, clips: int, samples: int, device: torch.device, precision: str
) -> Estimate:
    """Time forward and backward passes and an optimiser update, and count the bytes kept between the passes.

    Args:
        objective: on `device`; its weights are changed.
        config: of the run.
        clips, samples: size of a micro-batch of one process.
        device, precision: to compute on, and in.
    """
    objective.train()
    sizes = [(clips, samples)] if device.type == "cuda" else list(_sizes(objective.model, clips, samples))
    _pass(objective, sizes[0], config, device, precision)  # imports packages, and compiles
    for measured in sizes:
        seconds, kept = _pass(objective, measured, config, device, precision)
        if seconds < 5 * _ENOUGH_SECONDS or device.type == "cuda":  # the first pass of a shape includes preparations
            seconds = min(seconds, _pass(objective, measured, config, device, precision)[0])
        if seconds > _ENOUGH_SECONDS:
            break
    optimizer = build_optimizer(objective, config.optim, fused=precision != "fp16")
    optimizer.step()  # allocates the moments
    begin = _now(device)
    optimizer.step()
    update = _now(device) - begin
    optimizer.zero_grad()
    factor, text = 1.0, "a step at full size"
    if measured != (clips, samples):
        done, length = measured
        # Some bytes do not grow with the clips: copies of the weights in the precision of autocast.
        half = (done // 2, length) if done > 1 else (1, length // 2)
        less = _pass(objective, half, config, device, precision)[1]
        kept += (kept - less) / (done * length - half[0] * half[1]) * (clips * samples - done * length)
        full, part = _flops(objective, (clips, samples), device), _flops(objective, measured, device)
        counted = full > 0 and part > 0
        factor = full / part if counted else clips * samples / (done * length)
        of = duration(length / objective.model.frontend.sample_rate)
        text = (
            f"{plural(done, 'clip')} of {of} in {duration(seconds)}, times {factor:.1f} by "
            f"{'operations' if counted else 'samples'}"
        )
    return Estimate(seconds * factor * config.grad_accumulation + update, kept, text)


def _sizes(model: GAFX, clips: int, samples: int) -> Iterator[tuple[int, int]]:
    """Clips and samples of batches of growing size, from the shortest wave for the classifier to the full batch."""
    least = min(samples, 2 * model.min_samples())
    yield from ((1, length) for length in (samples >> power for power in range(12, 0, -1)) if length >= least)
    count = 1
    while count < clips:
        yield count, samples
        count *= 2
    yield clips, samples


def _pass(
    objective: Objective, shape: tuple[int, int], config: TrainConfig, device: torch.device, precision: str
) -> tuple[float, float]:
    """Seconds of a forward and backward pass over random clips, and bytes kept between the two."""
    (clips, samples), classes = shape, objective.model.classifier.num_classes
    wave, target = 0.1 * torch.randn(clips, objective.model.frontend.channels, samples), torch.ones(clips, classes)
    batch = Batch(wave, target / classes, torch.zeros(clips, 0, 2), torch.ones(clips), torch.arange(clips), {},
                  torch.arange(clips) if objective.takes_numbers else None)  # fmt: skip
    batch = batch.to(device)
    own = {p.untyped_storage().data_ptr() for p in [*objective.parameters(), *objective.buffers()]}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    begin = _now(device)
    with autocast(precision, device), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = sum_of_losses(objective, batch, config)
    loss.backward()
    return _now(device) - begin, float(sum(kept.values()))


def _flops(objective: Objective, shape: tuple[int, int], device: torch.device) -> float:
    """Floating-point operations of a forward pass, from shapes alone; 0 if a part needs values."""
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            wave = torch.empty(shape[0], objective.model.frontend.channels, shape[1], device=device)
            return count_flops(objective.model, wave)
    except Exception:  # a part of another package may look at values, and raise anything
        return 0.0


def _open_data(config: TrainConfig) -> tuple[Manifest, Split]:
    root, data = config.data.root, config.data
    if root is not None and not Path(root).expanduser().exists() and (data.download or data.name == "synthetic"):
        way = f"gafx synthesize {root}" if data.name == "synthetic" else "the same command without dry_run"
        raise UsageError(
            f"data.root={root!r} does not exist, and dry_run=true makes and downloads nothing: make it first ({way})"
        )
    return build.open_data(replace(config, data=replace(data, download=False)))


def _build_model(config: TrainConfig, manifest: Manifest) -> tuple[GAFX, str]:
    """Build the model, randomly initialised if its weights had to be downloaded first; then also return what."""
    classes = list(manifest.classes)
    try:
        return build.build_model(config, classes), ""
    except UsageError as error:
        if not _is_offline(error):
            raise
        return build.build_model(config, classes, plain=True), str(error).partition(": ")[0]


def _is_offline(error: BaseException | None) -> bool:
    """Return whether an error was caused by the hub's offline mode."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    while error is not None:
        if isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled)):
            return True
        error = error.__cause__
    return False


def _count_parameters(config: TrainConfig, model: GAFX, name: str) -> str:
    """Number of parameters of a part, and how many are trained from when on, as text."""
    parameters, frozen = list(getattr(model, name).parameters()), getattr(config.optim, name).frozen_epochs
    count, trained = sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)
    how = "none" if not count else "all trained" if trained == count else f"{trained:,} trained" if trained else "fixed"
    return f"{name} {count:,} ({how}{f' from epoch {frozen + 1} on' if trained and frozen else ''})"


def _data_source(config: TrainConfig, manifest: Manifest, model: GAFX) -> str:
    """Describe where samples are read from; raises `UsageError` for a cache that would be refused."""
    data, rate, channels = config.data, model.frontend.sample_rate, model.frontend.channels
    files = f"the {'files' if manifest.spans is None else 'shards'} under {manifest.root}"
    if data.cache is None:
        form = "as tokens" if manifest.scheme else f"at {rate:,} Hz, {plural(channels, 'channel')}"
        return f"read from {files}, {form}"
    target = cache_folder(Path(data.cache).expanduser(), rate, channels)
    if (target / ABOUT).is_file():
        open_reader(data, manifest, sample_rate=rate, channels=channels, build=False)
        return f"read from the cache {target}, which is packed"
    needed = size(2 * channels * int(stored_lengths(manifest, rate)[1].sum()))
    return f"read from the cache {target}, which the run packs first from {files}: {needed}, {size(_free(target))} free"


def _bytes_held(config: TrainConfig, objective: Objective) -> dict[str, float]:
    """Bytes of weights, gradients, Adam's moments and EMA."""
    weights = float(sum(tensor.nbytes for tensor in objective.state_dict().values()))
    gradients = float(sum(p.nbytes for p in objective.parameters() if p.requires_grad))
    held = {"weights": weights, "gradients": gradients, "optimiser": 2 * gradients}
    return held | ({"EMA": weights} if config.optim.ema_decay is not None else {})


def _state(config: TrainConfig) -> str:
    folder = config.folder
    if (folder / "model").is_dir():
        return "finished already"
    step = checkpoint.latest_step(folder / "checkpoints")
    if step is None and config.extend is not None:
        step = checkpoint.latest_step(Path(config.extend) / "checkpoints")
        return f"new, would continue {config.extend} at step {step or 0:,}"
    return "new" if step is None else f"would resume at step {step:,}"


def _free(folder: Path) -> float:
    """Free bytes on the disk of a folder, which need not exist."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return float(shutil.disk_usage(folder).free)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
