"""Samplers and loaders: which segments an optimiser step reads on which rank, and batches of tensors."""

import itertools
import mmap
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, InitVar, dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Sampler

from gafx.data.augment import ORDER, stream
from gafx.data.dataset import PADDING, ClipDataset, Sample
from gafx.data.manifest import Manifest, Skipped

Key = tuple[int, int]

# Batches that a worker has read ahead, is reading or is to read.
_AHEAD = 4


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


def collate(samples: list[Sample], out: torch.Tensor | None = None) -> Batch:
    """Stack samples of one length, their waves into `out`."""
    first = samples[0].other
    return Batch(
        wave=torch.stack([sample.wave for sample in samples], out=out),
        target=torch.stack([sample.target for sample in samples]),
        masks=torch.stack([sample.masks for sample in samples]),
        weight=torch.tensor([sample.weight for sample in samples]),
        index=torch.tensor([sample.index for sample in samples]),
        errors={sample.index: sample.error for sample in samples if sample.error is not None},
        numbers=None if samples[0].number is None else torch.tensor([sample.number for sample in samples]),
        others=None if first is None else torch.stack([sample.other for sample in samples if sample.other is not None]),
    )


@dataclass(eq=False)
class Loader:
    """Batches of segments in order, read in this process or ahead by worker processes.

    Workers write waves into memory that they share with this process and use again. torch's way, new shared memory for
    every tensor, takes six times as long (docs/performance.md): for 10 MB the kernel clears and maps 2,500 pages in
    each process.

    Args:
        clips: the segments.
        batches: keys of the batches.
        clips_per_batch: largest number of clips of a batch.
        workers: processes; with 0 a batch is read when it is asked for.
        pin: return page-locked memory, from which copies to a GPU are asynchronous.
    """

    clips: ClipDataset
    batches: Sampler[list[Key]]
    clips_per_batch: int
    workers: int = 0
    pin: bool = False

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Batch]:
        # One slot for each batch under way, and one for that which is being copied out.
        ring = _Ring(self.workers * _AHEAD + 1, self._wave_samples() if self.workers else 0)
        batches = DataLoader(
            _Batches(self.clips, ring),
            batch_size=None,
            sampler=_Numbered(self.batches, ring.slots),
            num_workers=self.workers,
            collate_fn=_unchanged,
            pin_memory=self.pin,
            prefetch_factor=_AHEAD if self.workers else None,
            # Forked workers share the manifest's columns; Python 3.14 would send each of them a copy.
            multiprocessing_context="fork" if self.workers and sys.platform == "linux" else None,
            # A separate generator: drawing from the global one would change the random numbers of a resumed run.
            generator=torch.Generator().manual_seed(0),
        )
        return map(_received, batches)

    def _wave_samples(self) -> int:
        """Samples of the largest batch."""
        length = self.clips.fixed_length or int(self.clips.segments.length.max(initial=0))
        return self.clips_per_batch * self.clips.reader.channels * length


class _Ring:
    """Slots for waves of `samples` float32 each, in memory shared with workers that are forked later.

    Not a file in /dev/shm, which has 64 MB in a container of Docker. Pages take memory from their first use on. Where
    there is none, as in workers that are not forked, `slot` returns None and waves go through a pipe.
    """

    _rings: ClassVar["weakref.WeakValueDictionary[int, _Ring]"] = weakref.WeakValueDictionary()
    _numbers: ClassVar = itertools.count()

    def __init__(self, slots: int, samples: int):
        self.slots, self.samples, self.number = slots, samples, next(self._numbers)
        self._memory: torch.Tensor | None = None
        if samples and sys.platform == "linux":
            with suppress(OSError, OverflowError):
                memory = mmap.mmap(-1, 4 * slots * samples)
                self._memory = torch.frombuffer(memory, dtype=torch.float32).view(slots, samples)
        self._rings[self.number] = self

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_memory": None}

    def slot(self, number: int, shape: Sequence[int]) -> torch.Tensor | None:
        """Return a slot as a tensor of a shape, None if it has no room for it."""
        size = int(np.prod(shape))
        return self._memory[number, :size].view(*shape) if self._memory is not None and size <= self.samples else None

    @classmethod
    def of(cls, number: int) -> "_Ring":
        """Return a ring of this process by its number."""
        return cls._rings[number]


@dataclass
class _Sent:
    """A batch as a worker sends it: arrays, since tensors would be moved to shared memory one by one.

    Attributes:
        ring, slot, shape: where the waves are, and their shape; None if they are among the arrays.
        arrays: the other fields of the batch.
        errors: of the batch.
    """

    ring: int
    slot: int
    shape: tuple[int, ...] | None
    arrays: dict[str, npt.NDArray[Any] | None]
    errors: dict[int, Skipped]

    def received(self, pin: bool = False) -> Batch:
        """Return the batch, its waves copied out of the slot."""
        tensors = {name: None if array is None else torch.from_numpy(array) for name, array in self.arrays.items()}
        if self.shape is not None:
            held = _Ring.of(self.ring).slot(self.slot, self.shape)
            assert held is not None
            tensors["wave"] = torch.empty(self.shape, pin_memory=pin).copy_(held)
        return Batch(**tensors, errors=self.errors)  # type: ignore[arg-type]

    def pin_memory(self) -> Batch:
        """Called by the DataLoader, in a thread."""
        return self.received(pin=True).pin_memory()


@dataclass(eq=False)
class _Batches(torch.utils.data.Dataset[Any]):
    """Batches by slot and keys; in a worker in the form in which they are sent."""

    clips: ClipDataset
    ring: _Ring

    def __getitem__(self, numbered: tuple[int, list[Key]]) -> Any:
        slot, keys = numbered
        samples = [self.clips[key] for key in keys]
        if torch.utils.data.get_worker_info() is None:
            return collate(samples)
        plain = all(sample.wave.dtype == torch.float32 for sample in samples)
        room = self.ring.slot(slot, (len(samples), *samples[0].wave.shape)) if plain else None
        batch = collate(samples, room)
        arrays = {
            name: None if value is None else value.numpy()
            for name, value in vars(batch).items()
            if name != "errors" and not (name == "wave" and room is not None)
        }
        return _Sent(self.ring.number, slot, None if room is None else tuple(room.shape), arrays, batch.errors)


@dataclass(eq=False)
class _Numbered(Sampler[tuple[int, list[Key]]]):
    """Keys of batches with the slots that they are read into, in turn."""

    batches: Sampler[list[Key]]
    slots: int

    def __iter__(self) -> Iterator[tuple[int, list[Key]]]:
        return zip(itertools.cycle(range(self.slots)), self.batches)


def _unchanged(batch: Any) -> Any:
    return batch


def _received(batch: Any) -> Batch:
    return batch.received() if isinstance(batch, _Sent) else batch


def training_loader(clips: ClipDataset, order: TrainingOrder, *, workers: int, pin: bool = False) -> Loader:
    """Return the batches of one rank in the order of `order`; an optimiser step takes `order.grad_accumulation`."""
    return Loader(clips, order, -(-order.batch_size // (order.grad_accumulation * order.world)), workers, pin)


def evaluation_loader(
    clips: ClipDataset, *, batch_size: int, workers: int = 0, pin: bool = False, rank: int = 0, world: int = 1
) -> Loader:
    """Return every segment once, over all ranks, in batches of equal length."""
    batches = EqualLengthBatches(clips.segments.length, batch_size, rank, world)
    return Loader(clips, batches, batch_size, workers, pin)


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
