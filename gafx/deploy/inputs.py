"""Sound in any form that a Python user has it in: paths, encoded bytes, arrays, and collections of these.

Mistakes in the call (no sampling rate, a shape with several readings, another type of samples) are raised as
`UsageError`. What may happen to one of many clips (no samples, NaN, damaged bytes) is an error of that clip, as for
files: reading it raises `UnreadableAudio`.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from numbers import Real
from typing import Any

import numpy as np

from gafx.audio.decode import AudioSource, Encoded, Wave, check_rate
from gafx.deploy.files import find_files
from gafx.errors import UsageError, first_line

# Anything that `open_inputs` describes; a union type would have to name classes of packages that are not installed.
Inputs = Any

# Channels of a recording (7.1) where the shorter axis tells which one they are.
_MOST_CHANNELS = 8
# No clip is as short as this: a last axis of so few values has the channels.
_FEWEST_SAMPLES = 64
_FORMS = (
    "give a path, the bytes of a file, a file object, an array or tensor with sample_rate=, "
    "{'array': ..., 'sampling_rate': ...}, or a list or an iterator of these"
)


def open_inputs(inputs: Inputs, sample_rate: float | None = None) -> Iterable[AudioSource]:
    """Turn what a user has into sources of `gafx.deploy.windows.compute`.

    One sound is:

    - a path; a folder (all audio files below it) or a glob pattern gives several;
    - the bytes of an audio file, or a file object, read from its present position;
    - an array or tensor: `(samples,)`; `(batch, samples)`, except for 2 rows or rows of at most 64 values, which could
      also be the channels of one clip; `(batch, channels, samples)`. Floats in [-1, 1] of any precision (float16 and
      bfloat16 become float32), or PCM as int16, int32 or uint8, which is scaled as in a file;
    - one clip with its rate: a dict as of transformers and datasets, `{"array" or "raw", "sampling_rate"}` (`{"bytes"}`
      and `{"path"}` too); a pair `(array, rate)` as of torchaudio, librosa and soundfile, or `(rate, array)` as of
      SciPy; a torchcodec decoder. In two dimensions the axis of at most 8 values has the channels.

    Several are a list, a tuple, a set, or an array of paths; or any other iterable, which is read while the results
    are computed, so that memory does not grow with its length; an array that it gave must not be changed afterwards.
    Files found more than once in a list of paths alone are given once.

    Sounds without a name are called `clip <number>`, counted from 0 over everything that is given.

    Args:
        inputs: one or several.
        sample_rate: in Hz, of arrays without a rate of their own.

    Raises:
        UsageError: another form, shape or type of samples, no sampling rate or one that is not plausible, or one that
            nothing uses. For an iterable that is no list: when it is reached.
    """
    reader = _Reader(None if sample_rate is None else check_rate(sample_rate))
    if _is_array(inputs) and not hasattr(inputs, "detach") and np.asarray(inputs).dtype.kind in "OSUT":
        inputs = _objects(np.asarray(inputs))
    found: Iterable[AudioSource]
    if _is_sound(inputs) or not isinstance(inputs, Iterable):
        found = list(reader.read(inputs))
    elif not isinstance(inputs, (list, tuple, set, frozenset)):
        return reader.read_all(inputs)
    elif all(map(_is_path, inputs)):
        found = find_files([_path(item) for item in inputs]).files
    else:
        found = list(reader.read_all(inputs))
    if reader.sample_rate is not None and not reader.is_rate_used and found:
        raise UsageError(
            f"sample_rate={reader.sample_rate} is for arrays and tensors, and there are none: files state their own "
            "sampling rate, so leave it out"
        )
    return found


class _Reader:
    """Sources of one sound after the other, which it counts for their names.

    Args:
        sample_rate: of arrays without a rate of their own; None if there is none.
    """

    def __init__(self, sample_rate: int | None):
        self.sample_rate, self.is_rate_used, self.count = sample_rate, False, 0

    def read_all(self, items: Iterable[Any]) -> Iterator[AudioSource]:
        for position, item in enumerate(items):
            try:
                yield from self.read(item)
            except UsageError as error:
                raise UsageError(f"input {position}: {error}") from error

    def read(self, item: Any) -> Iterator[AudioSource]:
        for source in self._sources(item):
            self.count += 1
            yield source

    @property
    def _name(self) -> str:
        return f"clip {self.count}"

    def _sources(self, item: Any) -> Iterable[AudioSource]:
        if _is_path(item):
            return find_files([_path(item)]).files
        if isinstance(item, (bytes, bytearray, memoryview)):
            return [Encoded(bytes(item) if isinstance(item, memoryview) else item, self._name)]  # it may have strides
        if isinstance(item, Mapping):
            return self._mapping(item)
        if hasattr(item, "get_all_samples"):
            item = item.get_all_samples()
        if _is_array(item):
            return self._waves(item, None, is_clip=False)
        if hasattr(item, "data") and hasattr(item, "sample_rate"):
            return self._waves(item.data, item.sample_rate)
        if hasattr(item, "read"):
            return [self._file(item)]
        if _is_pair(item):
            samples, rate = item if _is_array(item[0]) else item[::-1]
            return self._waves(samples, rate)
        if isinstance(item, Real):
            raise UsageError(f"{item!r} is a number: give the samples as an array, np.array(samples, dtype='float32')")
        if isinstance(item, (list, tuple)):
            raise UsageError(
                f"a {_kind(item)} in a list or an iterator is no sound: give its items one by one, or of a loader's "
                "batches the waves alone, (batch[0] for batch in loader)"
            )
        raise UsageError(f"{_kind(item)} holds no sound: {_FORMS}")

    def _file(self, file: Any) -> Encoded:
        try:
            content = file.read()
        except ValueError as error:  # closed, or open for writing alone
            raise UsageError(f"{_kind(file)} cannot be read ({first_line(error)}): open it with mode 'rb'") from error
        if not isinstance(content, (bytes, bytearray, memoryview)):
            raise UsageError(f"{_kind(file)} gives {_kind(content)} and no bytes: open the file with mode 'rb'")
        if not len(content) and hasattr(file, "tell") and file.tell():
            raise UsageError(f"{_kind(file)} is at its end: rewind it with seek(0)")
        name = getattr(file, "name", None)
        return Encoded(content, name if isinstance(name, str) else self._name)

    def _mapping(self, item: Mapping[Any, Any]) -> Iterable[AudioSource]:
        path, content = item.get("path"), item.get("bytes")
        if path is not None and not _is_path(path):
            raise UsageError(f"a dict whose 'path' is {path!r} names no file: give a text")
        if content is not None and not isinstance(content, (bytes, bytearray, memoryview)):
            raise UsageError(f"a dict whose 'bytes' are {_kind(content)} holds no sound: give the bytes of a file")
        samples = item.get("array") if item.get("array") is not None else item.get("raw")
        if samples is not None:
            rate = item.get("sampling_rate", item.get("sample_rate"))
            samples = samples if _is_array(samples) else np.asarray(samples)
            return self._waves(samples, rate, "" if path is None else _path(path))
        if content is not None:
            return [Encoded(content, self._name if path is None else _path(path))]
        if path is not None:
            return [_path(path)]
        if empty := [key for key in ("array", "raw", "bytes", "path") if key in item]:
            raise UsageError(f"a dict whose {' and '.join(map(repr, empty))} is None holds no sound")
        inner = "; give its 'audio' alone, e.g. (row['audio'] for row in dataset)" if "audio" in item else ""
        raise UsageError(
            f"a dict with {', '.join(map(repr, item)) or 'nothing'} holds no sound: it needs 'array' (or 'raw') and "
            f"'sampling_rate', or 'bytes', or 'path'{inner}"
        )

    def _waves(self, samples: Any, rate: Any, name: str = "", *, is_clip: bool = True) -> Iterator[Wave]:
        if rate is None:
            if self.sample_rate is None:
                raise UsageError(
                    "an array has no sampling rate of its own: give it in Hz, as sample_rate= (e.g. 44100) or in "
                    "{'array': ..., 'sampling_rate': ...}; it need not be the model's"
                )
            rate = self.sample_rate
        rate = check_rate(rate)
        if self.sample_rate is not None:
            if rate != self.sample_rate:
                raise UsageError(f"it states a rate of {rate} Hz, and sample_rate={self.sample_rate}: leave one out")
            self.is_rate_used = True
        clips = _clips(to_numpy(samples), is_clip)
        for clip in clips:
            yield Wave(clip, rate, name if name and len(clips) == 1 else self._name)


def _clips(array: np.ndarray, is_clip: bool) -> list[np.ndarray]:
    """Clips `(samples, channels)` of an array; `is_clip` where in two dimensions it is known to be one."""
    shape = array.shape
    if array.ndim not in (1, 2, 3):
        raise UsageError(
            f"an array of shape {shape} has no reading: give (samples,), (batch, samples) or (batch, channels, samples)"
        )
    if array.ndim == 1:
        return [array[:, None]]
    if not shape[0] and (array.ndim == 3 or not is_clip):
        raise UsageError(f"an array of shape {shape} holds no clips")
    if array.ndim == 3:
        return [clip.T for clip in array]
    first, last = shape
    if not array.size:  # of one clip or of each: their error
        return [np.zeros((0, 1), np.float32)] * (1 if is_clip else first)
    if is_clip:
        if first == 1 or first <= _MOST_CHANNELS < last:
            return [array.T]
        if last <= _MOST_CHANNELS < first:
            return [array]
    elif first == 1 or (first != 2 and last > _FEWEST_SAMPLES):
        return [row[:, None] for row in array]
    raise UsageError(
        f"an array x of shape {shape} has three readings, so say which: {first} clips of one channel are x[:, None]; "
        f"one clip (channels, samples) is x[None]; one clip (samples, channels) is x.T[None]"
    )


def _objects(array: np.ndarray) -> list[Any]:
    """Items of an array of paths, or of arrays of several lengths."""
    if array.dtype.kind == "S":
        raise UsageError("an array of bytes could be of paths or of sounds: give paths as text, array.astype(str)")
    if array.ndim > 1:
        raise UsageError(f"an array of {array.dtype} of shape {array.shape}: give its items in a row, array.ravel()")
    return list(array.tolist()) if array.ndim else [array.item()]


def to_numpy(samples: Any) -> np.ndarray:
    """An array or a tensor as an array.

    Raises:
        UsageError: some samples are masked, or the tensor is not dense.
    """
    if not hasattr(samples, "detach"):
        if np.ma.is_masked(samples):
            raise UsageError("a masked array: give the masked samples a value, e.g. array.filled(0)")
        return np.asarray(samples)
    tensor = samples.detach()  # of PyTorch, perhaps on a GPU, or bfloat16, which NumPy does not have
    try:
        array: np.ndarray = (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()
    except (RuntimeError, TypeError) as error:  # sparse, quantised, without values (meta)
        kind = f"{tensor.dtype}, {tensor.layout}, device {tensor.device}"
        raise UsageError(f"a tensor ({kind}) has no array of samples ({first_line(error)}): make it dense") from error
    return array


def _is_path(item: object) -> bool:
    return isinstance(item, (str, os.PathLike))


def _path(item: Any) -> str:
    return os.fsdecode(item)


def _is_array(item: object) -> bool:
    return hasattr(item, "__array__") and hasattr(item, "shape") and not isinstance(item, Real)  # a number of NumPy


def _is_pair(item: object) -> bool:
    if not isinstance(item, tuple) or len(item) != 2 or _is_array(item[0]) == _is_array(item[1]):
        return False
    return not _is_sound(item[1] if _is_array(item[0]) else item[0])


def _is_sound(item: object) -> bool:
    if _is_path(item) or isinstance(item, (bytes, bytearray, memoryview, Mapping)) or _is_array(item) or _is_pair(item):
        return True
    return any(hasattr(item, name) for name in ("read", "get_all_samples")) or hasattr(item, "sample_rate")


def _kind(item: object) -> str:
    return "None" if item is None else type(item).__name__
