"""Samplers and loaders: which segments an optimiser step reads on which rank, and batches of tensors."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Sampler

from gafx.data.augment import ORDER, stream
from gafx.data.dataset import PADDING, ClipDataset, Sample
from gafx.data.manifest import Manifest, Skipped

Key = tuple[int, int]


@dataclass
class Batch:
    """Stacked samples.

    Attributes:
        wave: `(clips, channels, samples)`.
        target: `(clips, classes)`.
        masks: `(clips, masks, 2)`.
        weight: `(clips,)`, 0 for clips that could not be read and for padding.
        index: `(clips,)`, -1 for padding.
        errors: reasons of the clips that could not be read, by index.
        numbers: `(clips,)` random numbers for the draws of the objective; None unless it takes them.
        others: of the shape of `wave`, a segment of another recording for each clip; None unless the objective takes
            them.
    """

    wave: torch.Tensor
    target: torch.Tensor
    masks: torch.Tensor
    weight: torch.Tensor
    index: torch.Tensor
    errors: dict[int, Skipped]
    numbers: torch.Tensor | None = None
    others: torch.Tensor | None = None

    @property
    def draws(self) -> dict[str, torch.Tensor]:
        """Keyword arguments of an objective's `forward` and `predict`: `numbers` and `others` if it takes them."""
        found = {"numbers": self.numbers, "others": self.others}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def without_weightless(self) -> "Batch":
        """Return the clips of weight above 0; if there are none the first clip, since every rank must run forward.

        Clips of weight 0 (unreadable ones, padding) must not reach batch norm.
        """
        kept = (self.weight > 0).nonzero().flatten()
        if len(kept) == len(self.weight):
            return self
        kept = kept if len(kept) else torch.zeros(1, dtype=torch.long)
        return self._each(lambda tensor: tensor[kept])

    def to(self, device: torch.device) -> "Batch":
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        changed: dict[str, Any] = {
            name: change(value) for name, value in vars(self).items() if name != "errors" and value is not None
        }
        return Batch(**changed, errors=self.errors)


@dataclass(eq=False)
class TrainingOrder(Sampler[list[Key]]):
    """Batch sampler of a training run, from any step on; its keys are a function of the seed alone.

    One optimiser step reads `batch_size` clips, divided over `grad_accumulation` micro-batches and `world` ranks; the
    last step of an epoch may be smaller. Every clip is read exactly once an epoch unless `weights` are given. Where a
    step cannot be divided evenly it is padded with keys of index -1, which become samples of weight 0.

    Args:
        clips: number of training segments.
        batch_size: clips per optimiser step, over all ranks and micro-batches.
        epochs: of the whole run.
        seed: of the shuffle.
        grad_accumulation: micro-batches per optimiser step.
        rank: of this process.
        world: number of processes.
        start_step: optimiser steps already done.
        weights: relative probability of each segment, for sampling with replacement; `None` for each once.
    """

    clips: int
    _: KW_ONLY
    batch_size: int
    epochs: int
    seed: int
    grad_accumulation: int = 1
    rank: int = 0
    world: int = 1
    start_step: int = 0
    weights: InitVar[npt.NDArray[np.float64] | None] = None

    def __post_init__(self, weights: npt.NDArray[np.float64] | None) -> None:
        self.probabilities = None if weights is None else weights / weights.sum()
        self.steps_per_epoch = -(-self.clips // self.batch_size)

    def __len__(self) -> int:
        return (self.epochs * self.steps_per_epoch - self.start_step) * self.grad_accumulation

    def clips_of(self, step: int) -> int:
        """Return how many clips an optimiser step (counted from 0) reads, over all ranks."""
        return min(self.batch_size, self.clips - step % self.steps_per_epoch * self.batch_size)

    def order(self, epoch: int) -> npt.NDArray[Any]:
        """Return the segments of one epoch, in order."""
        rng = stream(ORDER, self.seed, epoch)
        if self.probabilities is None:
            order = np.arange(self.clips, dtype=np.int32 if self.clips < 2**31 else np.int64)
            rng.shuffle(order)  # the draws of rng.permutation, in half the memory and, for millions, half the time
            return order
        return rng.choice(self.clips, self.clips, p=self.probabilities)

    def __iter__(self) -> Iterator[list[Key]]:
        for epoch in range(self.start_step // self.steps_per_epoch, self.epochs):
            order = self.order(epoch)
            first = self.start_step % self.steps_per_epoch if epoch == self.start_step // self.steps_per_epoch else 0
            for step in range(first, self.steps_per_epoch):
                indices = order[step * self.batch_size : (step + 1) * self.batch_size]
                batches = self.grad_accumulation * self.world
                size = -(-len(indices) // batches)
                padded = np.concatenate([indices, np.full(size * batches - len(indices), PADDING)])
                for micro_batch in range(self.grad_accumulation):
                    begin = (micro_batch * self.world + self.rank) * size
                    yield [(epoch, int(i)) for i in padded[begin : begin + size]]


class EqualLengthBatches(Sampler[list[Key]]):
    """Batches of segments of equal length, longest first.

    Nothing is padded, so a prediction never depends on the other segments of its batch.
    """

    def __init__(self, lengths: npt.NDArray[np.int64], batch_size: int, rank: int = 0, world: int = 1):
        order = np.lexsort((np.arange(len(lengths)), -lengths))
        edges = np.flatnonzero(np.diff(lengths[order])) + 1
        batches = [
            run[i : i + batch_size].tolist() for run in np.split(order, edges) for i in range(0, len(run), batch_size)
        ]
        self.batches: Sequence[list[int]] = batches[rank::world]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Key]]:
        for batch in self.batches:
            yield [(0, index) for index in batch]


def collate(samples: list[Sample]) -> Batch:
    """Stack samples of one length."""
    return Batch(
        **{name: torch.stack([getattr(sample, name) for sample in samples]) for name in ("wave", "target", "masks")},
        weight=torch.tensor([sample.weight for sample in samples]),
        index=torch.tensor([sample.index for sample in samples]),
        errors={sample.index: sample.error for sample in samples if sample.error is not None},
        numbers=None if samples[0].number is None else torch.tensor([sample.number for sample in samples]),
        others=None if samples[0].other is None else torch.stack([sample.other for sample in samples]),
    )


def training_loader(clips: ClipDataset, order: TrainingOrder, *, workers: int, pin: bool = False) -> DataLoader[Sample]:
    """Return the batches of one rank in the order of `order`; an optimiser step takes `order.grad_accumulation`."""
    return _loader(clips, order, workers, pin)


def evaluation_loader(
    clips: ClipDataset, *, batch_size: int, workers: int = 0, pin: bool = False, rank: int = 0, world: int = 1
) -> DataLoader[Sample]:
    """Return every segment once, over all ranks, in batches of equal length."""
    return _loader(clips, EqualLengthBatches(clips.segments.length, batch_size, rank, world), workers, pin)


def _loader(
    dataset: torch.utils.data.Dataset[Sample], batches: Sampler[list[Key]], workers: int, pin: bool
) -> DataLoader[Sample]:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin,
        prefetch_factor=4 if workers else None,
        # Forked workers share the manifest's columns; Python 3.14 would send each of them a copy.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        # A separate generator: drawing from the global one would change the random numbers of a resumed run.
        generator=torch.Generator().manual_seed(0),
    )


def class_balance(manifest: Manifest, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the sampling weight of each of `rows`: the sum over its labels of 1 / number of rows with that label.

    Rows without labels (a detector's negatives) are balanced as if they had one label of their own.
    """
    labels, counts = manifest.labels.take(rows), manifest.label_counts(rows)
    row = np.repeat(np.arange(len(rows)), labels.lengths())
    weights = np.bincount(row, 1.0 / np.maximum(counts, 1)[labels.values], minlength=len(rows)).astype(np.float64)
    without = labels.lengths() == 0
    weights[without] = 1.0 / max(int(without.sum()), 1)
    return weights
