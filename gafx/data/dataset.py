"""Segments as samples: waveform, target and masks of one segment, read, augmented and turned into tensors."""

from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, replace

import numpy as np
import torch

from gafx.audio.read import Samples, fit_length, resample
from gafx.config import AugmentConfig
from gafx.data.augment import (
    CROP,
    OTHER,
    SILENCE,
    Mixup,
    add_noise,
    draw_between_class,
    draw_gain,
    draw_masks,
    draw_mixup,
    draw_number,
    draw_roll,
    draw_semitones,
    draw_speed,
    mix_between_classes,
    stream,
)
from gafx.data.manifest import Manifest, Skipped
from gafx.data.midi import TokenReader
from gafx.data.readers import Reader, clip_span
from gafx.data.segments import Segments
from gafx.errors import UnreadableAudio, UnreadableMidi

PADDING = -1  # index of a sample that fills a batch
_OTHER_DRAWS = 100  # until a segment is of another recording
_CROP_DRAWS = 8  # of which the first that is not mostly silent is taken (`augment.avoid_silence`)


@dataclass
class Sample:
    """One segment ready for a batch. `weight` is 0 for a clip that could not be read; `error` is then the reason."""

    wave: torch.Tensor  # (channels, samples)
    target: torch.Tensor  # (classes,)
    masks: torch.Tensor  # (masks, 2): start and width as fractions of the axis
    weight: float
    index: int
    error: Skipped | None = None
    number: int | None = None  # random, for the draws of the objective
    other: torch.Tensor | None = None  # of the wave's shape, from another recording


@dataclass(eq=False)
class ClipDataset(torch.utils.data.Dataset[Sample]):
    """Reads segments. A key is `(epoch, index)`; its sample does not depend on the worker that reads it.

    The index `PADDING` gives the first segment at weight 0.

    Augmentations apply in this order: crop, speed and roll, of which a clip's partner has its own, so that whole clips
    are not always mixed at one alignment; the mix; gain and noise of the mix. A gain of each clip would be undone by
    the loudness compensation of between-class learning, and the signal-to-noise ratio is to be that of what the model
    receives. Masks apply to the map, in the model.

    Args:
        manifest: the data set.
        segments: index i is the i-th of these.
        reader: gives the samples, at the model's rate and channel count.
        seed: of crops and augmentations.
        random_crop: draw each segment's start again every epoch, anywhere in its track, instead of `segments.start`.
        fixed_length: length in samples to which shorter tracks are extended (training); `None` keeps their own length
            (evaluation).
        pad: extend by zeros at the end instead of repeating the track.
        augment: augmentations; `None` for none.
        numbers: give each sample a random number, for an objective that draws (`Objective.takes_numbers`).
        others: give each sample a segment of another recording, of the same length (`Objective.takes_others`).
    """

    manifest: Manifest
    segments: Segments
    reader: Reader
    _: KW_ONLY
    seed: int = 0
    random_crop: bool = False
    fixed_length: int | None = None
    pad: bool = False
    augment: AugmentConfig | None = None
    numbers: bool = False
    others: bool = False

    def __len__(self) -> int:
        return len(self.segments)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        if index == PADDING:
            return replace(self[epoch, 0], weight=0.0, index=PADDING, error=None)
        masks, mixup = np.zeros((0, 2), np.float32), None
        if self.augment is not None:
            masks = draw_masks(self.augment, self.seed, epoch, index)
            mixup = self._draw_mix(self.augment, epoch, index)
        target, reading, error = self._target(index), index, None
        try:
            wave = self._wave(epoch, index)
            if mixup is not None:
                reading = mixup.partner
                wave = self._mix(wave, self._wave(epoch, reading), mixup.weight)
                target = mixup.weight * target + (1 - mixup.weight) * self._target(reading)
            if self.augment is not None:
                if (gain := draw_gain(self.augment, self.seed, epoch, index)) != 1:
                    wave = gain * wave
                wave = add_noise(self.augment, wave, self.seed, epoch, index)
        except (UnreadableAudio, UnreadableMidi) as reason:
            wave = np.zeros((self.reader.channels, int(self.segments.length[index])), np.float32)
            error = Skipped(self.manifest.relative_path(int(self.segments.row[reading])), str(reason))
        weight = 0.0 if error else 1.0
        number = draw_number(self.seed, epoch, index) if self.numbers else None
        other = self._other(epoch, index, wave) if self.others else None
        return Sample(torch.from_numpy(wave), target, torch.from_numpy(masks), weight, index, error, number, other)

    def _other(self, epoch: int, index: int, wave: Samples) -> torch.Tensor:
        """Read a random segment of another recording, cut or repeated to the length of `wave`; without any, `wave`."""
        rng, group, row = stream(OTHER, self.seed, epoch, index), self.manifest.group, self.segments.row
        for _ in range(_OTHER_DRAWS):
            candidate = int(rng.integers(len(self)))
            if group[row[candidate]] != group[row[index]]:
                with suppress(UnreadableAudio, UnreadableMidi):  # reported where it is the segment itself
                    return torch.from_numpy(fit_length(self._wave(epoch, candidate), wave.shape[1]))
        return torch.from_numpy(wave)

    def _target(self, index: int) -> torch.Tensor:
        target = torch.zeros(len(self.manifest.classes))
        target[torch.from_numpy(self.manifest.labels[int(self.segments.row[index])].astype(np.int64))] = 1.0
        return target

    def _draw_mix(self, augment: AugmentConfig, epoch: int, index: int) -> Mixup | None:
        """Draw a segment's partner; the two ways to mix exclude each other (`gafx.config`)."""
        if augment.between_class_probability <= 0:
            return draw_mixup(augment, len(self), self.seed, epoch, index)
        own = self._labels(index)
        return draw_between_class(augment, len(self), lambda other: self._labels(other) != own, self.seed, epoch, index)

    def _labels(self, index: int) -> set[int]:
        return set(self.manifest.labels[int(self.segments.row[index])].tolist())

    def _mix(self, first: Samples, second: Samples, weight: float) -> Samples:
        if self.augment is not None and self.augment.between_class_probability > 0:
            return mix_between_classes(first, second, weight, self.reader.sample_rate)
        return weight * first + (1 - weight) * second

    def _wave(self, epoch: int, index: int) -> Samples:
        """Read segment `index` as float32 `(channels, samples)`: crop, speed, roll; of MIDI crop, transposition."""
        length, rate = int(self.segments.length[index]), self.reader.sample_rate
        # Playback at another speed is resampling of a clip that was recorded at another rate.
        played = rate if self.augment is None else round(rate * draw_speed(self.augment, self.seed, epoch, index))
        wave = self._crop(epoch, index, -(-length * played // rate))
        if played != rate:
            wave = np.ascontiguousarray(resample(wave.T, played, rate).T)
        # Snapping moves a start back by less than one step of the rate ratio and can leave a length one sample off.
        wanted = self.fixed_length if self.fixed_length is not None else length
        if wave.shape[1] != wanted:
            # A length that is one sample off is no short track: its last samples are repeated either way.
            short = wanted - wave.shape[1] > 1
            wave = (
                np.pad(wave, ((0, 0), (0, wanted - wave.shape[1]))) if self.pad and short else fit_length(wave, wanted)
            )
        if self.augment is not None and (shift := draw_roll(self.augment, wanted, self.seed, epoch, index)):
            wave = np.roll(wave, shift, axis=1)
        if self.augment is not None and self.augment.transpose and isinstance(self.reader, TokenReader):
            tries = (self.reader.transpose(wave, by) for by in draw_semitones(self.augment, self.seed, epoch, index))
            wave = next(moved for moved in tries if moved is not None)  # by 0 semitones is one of them
        return wave

    def _crop(self, epoch: int, index: int, length: int) -> Samples:
        """Read `length` samples for segment `index`, fewer if its track is shorter."""
        row, start = int(self.segments.row[index]), int(self.segments.start[index])
        begin, end = clip_span(self.manifest, row, self.reader.sample_rate)
        room = end - begin - length
        if not self.random_crop:
            if length > self.segments.length[index]:  # of a faster playback: moved back where the track ends before
                start = max(0, min(start, room))
            return self.reader.read(row, start, length)
        if room <= 0:
            return self.reader.read(row, 0, length)
        rng = stream(CROP, self.seed, epoch, index)
        draws = _CROP_DRAWS if self.augment is not None and self.augment.avoid_silence else 1
        best, least = np.zeros((0, 0), np.float32), 2.0
        for _ in range(draws):
            wave = self.reader.read(row, int(rng.integers(room + 1)), length)
            silent = float(np.mean(np.abs(wave) < SILENCE)) if draws > 1 else 0.0
            if silent < least:
                best, least = wave, silent
            if silent <= 0.5:
                break
        return best
