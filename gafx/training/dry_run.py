"""What a run would be and cost, without making it: `train.py ... dry_run=true`.

What can be counted is counted: clips, steps, parameters, bytes of weights, gradients and moments. Time and activations
are measured on the real model: at full size on a GPU; on a CPU on shorter clips until about a second is used, taken up
to full size by operations (counted without computing anything) and by samples. Nothing is written, fetched or packed.
"""

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from gafx.config import TrainConfig
from gafx.data.batches import Batch
from gafx.data.manifest import Manifest
from gafx.data.open import open_reader, open_split
from gafx.data.packing.cache import ABOUT, cache_folder, stored_lengths
from gafx.data.readers import FileReader
from gafx.data.splits import Split
from gafx.errors import UsageError
from gafx.frontends._hdemucs import BUNDLE
from gafx.model import GAFX, create_model, provenance_of
from gafx.nn.flops import count_flops
from gafx.nn.precision import autocast
from gafx.objectives.base import Objective
from gafx.registry import OBJECTIVES
from gafx.saving.hub import without_pretrained
from gafx.training import build, checkpoint, distributed
from gafx.training.learner import run
from gafx.training.optim import build_optimizer, freeze

# A measurement of so many seconds is long enough to be scaled up; shorter ones are made again at twice the size.
_ENOUGH_SECONDS = 0.6


@dataclass
class Estimate:
    """What a step costs a process.

    Attributes:
        seconds: of a whole optimiser step.
        activations: bytes kept between the forward and the backward pass.
        measured: on what, in words.
    """

    seconds: float
    activations: float
    measured: str


@dataclass
class Plan:
    """A run as it would be; `str` says it in lines.

    Attributes:
        steps_per_epoch, total_steps: optimiser steps.
        parameters, learning: number of parameters of each part, and of those that learn.
        bytes: that a process holds beside activations, by purpose.
        checkpoint_bytes: of one checkpoint on the disk.
        estimate: time and activations.
        lines: heading and text of each line.
    """

    steps_per_epoch: int
    total_steps: int
    parameters: dict[str, int]
    learning: dict[str, int]
    bytes: dict[str, float]
    checkpoint_bytes: float
    estimate: Estimate
    lines: list[tuple[str, str]]

    def __str__(self) -> str:
        return "\n".join(f"{heading:<11} {text}" for heading, text in self.lines)


def plan(config: TrainConfig) -> Plan | None:
    """Look at everything that the run would use, and measure a step of it; `None` on all ranks but the first.

    Raises:
        UsageError: what the run would raise before its first step; or data that it would have to make or fetch first.
    """
    accelerator, precision = distributed.start_accelerator(config)
    try:
        return _plan(config, accelerator, precision) if accelerator.is_main_process else None
    finally:
        distributed.leave(accelerator)  # the others at once: there is nothing to wait for


def _plan(config: TrainConfig, accelerator: Accelerator, precision: str) -> Plan:
    manifest, parts = _open_data(config)
    model, missing = _build_model(config, manifest)
    where = _data_words(config, manifest, model)
    reader = FileReader(manifest, model.frontend.sample_rate, model.frontend.channels)
    clips = build.training_clips(config, manifest, parts.train, reader, model)
    model.info = build.model_info(config, model, provenance_of(config.frontend, config.classifier))
    objective = build.create_objective(config, clips, model).to(accelerator.device)
    order = build.training_order(config, clips, accelerator)
    all_steps = config.epochs * order.steps_per_epoch
    steps = min(all_steps, config.max_steps or all_steps)
    world, samples = accelerator.num_processes, build.segment_samples(config.data, model)
    share = -(-config.batch_size // (config.grad_accumulation * world))

    named = {"frontend": model.frontend, "classifier": model.classifier}
    parameters = {name: _count(part.parameters()) for name, part in named.items()}
    learning = {name: _count(p for p in part.parameters() if p.requires_grad) for name, part in named.items()}
    held, on_disk = _bytes(config, objective, accelerator)
    fixed = {name for name, parameter in objective.named_parameters() if not parameter.requires_grad}
    # The most that ever learns at once: costs are those of the epochs in which no part is frozen.
    freeze(objective, (), fixed)
    estimate = measure(objective, config, share, samples, accelerator.device, precision)
    info = model.info
    assert info is not None
    channels, frequency, frames = info.map_shape
    tokens = model.classifier.tokens
    gigabytes = sum(held.values()) / 1e9
    lines = [
        ("run", f"{config.folder} ({_state_words(config.folder)})"),
        ("model", f"{info.frontend['name']} -> map {channels} x {frequency} x {frames} (channels x bins x frames) -> "
                  f"{info.classifier['name']}{f', {tokens:,} tokens' if tokens else ''}, {len(info.classes)} classes; "
                  f"start: {info.provenance.describe()}"),
        *[("", sentence) for sentence in missing],
        ("parameters", "; ".join(f"{name} {parameters[name]:,} ({_learns(config, name, parameters, learning)})"
                                 for name in named)),
        ("data", f"{config.data.name}, protocol {config.data.protocol}: {len(parts.train):,} training, "
                 f"{len(parts.val):,} validation, {len(parts.test):,} test tracks; {len(manifest.skipped):,} skipped, "
                 f"{manifest.missing:,} missing"),
        ("", where),
        *[("", note) for note in manifest.notes],
        ("steps", f"{order.steps_per_epoch:,} an epoch of {len(clips):,} segments of "
                  f"{config.data.segment_seconds:g} s, {steps:,} in all"),
        ("", f"{config.batch_size} clips a step = {world} process{'es' * (world > 1)} x {config.grad_accumulation} "
             f"pass{'es' * (config.grad_accumulation > 1)} x {share} clip{'s' * (share > 1)}, {precision} on "
             f"{accelerator.device}{distributed.words(accelerator)}"),
        ("memory", f"{gigabytes + estimate.activations / 1e9:.2f} GB a process, about: "
                   + ", ".join(f"{name} {size / 1e9:.2f}" for name, size in held.items())
                   + f", activations {estimate.activations / 1e9:.2f}"),
        ("time", f"{_seconds(estimate.seconds)} a step, {_seconds(estimate.seconds * steps)} in all, about; validation "
                 f"and waiting for data{' and for other processes' * (world > 1)} not counted"),
        ("", f"estimated from {estimate.measured}, measured just now"),
        ("disk", f"{on_disk / 1e9:.2f} GB a checkpoint, {config.keep_checkpoints} kept; "
                 f"{_free(config.folder) / 1e9:,.1f} GB free"),
    ]  # fmt: skip
    return Plan(order.steps_per_epoch, steps, parameters, learning, held, on_disk, estimate, lines)


def measure(
    objective: Objective, config: TrainConfig, clips: int, samples: int, device: torch.device, precision: str
) -> Estimate:
    """Time forward and backward passes and an optimiser's step, and weigh what is kept between them.

    Args:
        objective: on `device`; its weights are of no use afterwards.
        config: of the run.
        clips, samples: of the batch that a process computes at once.
        device, precision: where and how.
    """
    objective.train()
    classes = objective.model.classifier.num_classes
    sizes = [(clips, samples)] if device.type == "cuda" else _sizes(objective.model, clips, samples)
    seconds = kept = 0.0
    for size in sizes:
        batch = _batch(objective, *size, classes, device)
        seconds, kept = _pass(objective, batch, config, precision)
        if seconds < 5 * _ENOUGH_SECONDS or device.type == "cuda":  # the first pass of a shape also prepares for it
            seconds = min(seconds, _pass(objective, batch, config, precision)[0])
        if seconds > _ENOUGH_SECONDS:
            break
    optimizer = build_optimizer(objective, config.optim, fused=precision != "fp16")
    optimizer.step()  # the first one makes the moments
    begin = _now(device)
    optimizer.step()
    update = _now(device) - begin
    optimizer.zero_grad()
    done, length = size
    if (done, length) == (clips, samples):
        factor, words = 1.0, "a step at full size"
    else:
        # Part of it does not grow with the clips: copies of the weights in the precision of the arithmetic.
        half = (done // 2, length) if done > 1 else (1, length // 2)
        less = _pass(objective, _batch(objective, *half, classes, device), config, precision)[1]
        kept += (kept - less) / (done * length - half[0] * half[1]) * (clips * samples - done * length)
        full, part = (_flops(objective, n, s, device) for n, s in ((clips, samples), size))
        factor = full / part if full and part else clips * samples / (done * length)
        by = "operations" if full and part else "samples"
        rate = objective.model.frontend.sample_rate
        words = f"{done} clip{'s' * (done > 1)} of {length / rate:.1f} s in {seconds:.2f} s, times {factor:.1f} by {by}"
    return Estimate(seconds * factor * config.grad_accumulation + update, kept, words)


def _sizes(model: GAFX, clips: int, samples: int) -> list[tuple[int, int]]:
    """Batches of growing size, the last the full one; none too short for the classifier."""
    least = min(samples, 2 * model.min_samples())
    sizes = [(1, length) for length in (samples >> power for power in range(12, 0, -1)) if length >= least]
    while not sizes or sizes[-1][0] < clips:
        sizes.append((min(clips, 2 * sizes[-1][0]) if sizes and sizes[-1][1] == samples else 1, samples))
    return sizes


def _batch(objective: Objective, clips: int, samples: int, classes: int, device: torch.device) -> Batch:
    wave = 0.1 * torch.randn(clips, objective.model.frontend.channels, samples)
    target = torch.full((clips, classes), 1 / classes)
    empty = torch.zeros(clips, 0, 2)
    return Batch(wave, target, empty, torch.ones(clips), torch.arange(clips), {}).to(device)


def _pass(objective: Objective, batch: Batch, config: TrainConfig, precision: str) -> tuple[float, float]:
    """Seconds of a forward and backward pass, and bytes that lie between them."""
    device = batch.wave.device
    ours = {p.untyped_storage().data_ptr() for p in [*objective.parameters(), *objective.buffers()]}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in ours:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    begin = _now(device)
    with autocast(precision, device), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = run(objective, batch, config)
    loss.backward()
    return _now(device) - begin, float(sum(kept.values()))


def _flops(objective: Objective, clips: int, samples: int, device: torch.device) -> float:
    """Operations of a forward pass, from shapes alone; 0 where a part cannot be followed without computing."""
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            wave = torch.empty(clips, objective.model.frontend.channels, samples, device=device)
            return count_flops(objective.model, wave)
    except Exception:  # a front-end of another package may look at values, and then says so in any way
        return 0.0


def _open_data(config: TrainConfig) -> tuple[Manifest, Split]:
    root, data = config.data.root, config.data
    if root is not None and not Path(root).expanduser().exists() and (data.download or data.name == "synthetic"):
        way = f"gafx synthesize {root}" if data.name == "synthetic" else "the same command without dry_run"
        raise UsageError(
            f"data.root={root!r} is not there, and dry_run=true makes and fetches nothing: make it first ({way})"
        )
    kind: Any = OBJECTIVES.get(config.objective["name"])
    return open_split(
        replace(data, download=False), multi_label=kind.multi_label, objective=config.objective["name"],
        reads_labels=kind.reads_labels,
    )  # fmt: skip


def _build_model(config: TrainConfig, manifest: Manifest) -> tuple[GAFX, list[str]]:
    """The model, at a random start where its weights would have to be fetched first, which a sentence then says."""
    arguments: Any = {"classes": list(manifest.classes), "segment_seconds": config.data.segment_seconds}
    lacking = ""
    if _names_bundle(config.frontend) and not Path(torch.hub.get_dir(), "torchaudio", BUNDLE).is_file():
        lacking = f"torchaudio's {BUNDLE}"
    else:
        try:
            return create_model(config.frontend, config.classifier, **arguments), []
        except UsageError as error:
            if not _is_offline(error):
                raise
            lacking = str(error).partition(": ")[0]
    plain = without_pretrained(config.frontend), without_pretrained(config.classifier)
    return create_model(*plain, **arguments), [
        f"pretrained weights are not on this machine ({lacking}): the run fetches them first, or ends with an error"
    ]


def _names_bundle(frontend: Any) -> bool:
    """Whether a front-end, or a part of a fused one, is to start from torchaudio's bundle, which is no hub's."""
    if not isinstance(frontend, dict):
        return False
    return frontend.get("pretrained") == "torchaudio" or any(_names_bundle(value) for value in frontend.values())


def _is_offline(error: BaseException | None) -> bool:
    """Whether an error comes from the hub's being out of reach on purpose."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    while error is not None:
        if isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled)):
            return True
        error = error.__cause__
    return False


def _data_words(config: TrainConfig, manifest: Manifest, model: GAFX) -> str:
    """Where the samples come from; raises `UsageError` where a cache would be refused."""
    rate, channels = model.frontend.sample_rate, model.frontend.channels
    kind = "files" if manifest.spans is None else "shards"
    if config.data.cache is None:
        return f"read from the {kind} under {manifest.root}, at {rate:,} Hz, {channels} channel{'s' * (channels > 1)}"
    target = cache_folder(Path(config.data.cache).expanduser(), rate, channels)
    if (target / ABOUT).is_file():
        open_reader(config.data, manifest, sample_rate=rate, channels=channels, build=False)
        return f"read from the cache {target}, which is packed"
    size = 2 * channels * int(stored_lengths(manifest, rate)[1].sum())
    return (
        f"read from the cache {target}, which the run packs first from the {kind} under {manifest.root}: "
        f"{size / 1e9:.2f} GB, {_free(target) / 1e9:,.1f} GB free"
    )


def _bytes(config: TrainConfig, objective: Objective, accelerator: Accelerator) -> tuple[dict[str, float], float]:
    """What a process holds beside activations, in bytes, and what a checkpoint takes on the disk."""
    weights = sum(tensor.nbytes for tensor in objective.state_dict().values())
    learning = sum(p.nbytes for p in objective.parameters() if p.requires_grad)
    average = weights if config.optim.ema_decay is not None else 0
    held = {"weights": float(weights), "gradients": float(learning), "optimiser": 2.0 * learning}
    if average:
        held["average"] = float(average)
    if distributed.shards(accelerator):
        held = {name: size / accelerator.num_processes for name, size in held.items()}
        held["whole copy"] = float(weights)
    return held, float(weights + average + 2 * learning)


def _state_words(folder: Path) -> str:
    if (folder / "model").is_dir():
        return "finished already"
    step = checkpoint.latest_step(folder / "checkpoints")
    return "new" if step is None else f"would go on from step {step:,}"


def _learns(config: TrainConfig, name: str, parameters: dict[str, int], learning: dict[str, int]) -> str:
    frozen = getattr(config.optim, name).frozen_epochs
    if not parameters[name]:
        return "nothing to learn"
    if not learning[name]:
        return "fixed"
    some = "all learn" if learning[name] == parameters[name] else f"{learning[name]:,} learn"
    return some + (f" from epoch {frozen + 1} on" if frozen else "")


def _count(parameters: Any) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _free(folder: Path) -> float:
    """Free bytes on the disk that a folder lies on, or would."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return float(shutil.disk_usage(folder).free)


def _seconds(seconds: float) -> str:
    """A duration in the unit that fits."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{1000 * seconds:.1f} ms"


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
