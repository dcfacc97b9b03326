"""Maps, embeddings and codes of a library of files, window by window, in memory of bounded size."""

import csv
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from gafx.audio.read import AudioSource
from gafx.data.sharding import WHOLE, Shard, list_digest
from gafx.deploy.files import output_names
from gafx.deploy.inputs import Inputs, open_inputs
from gafx.deploy.windows import Computed, FileDone, Layout, compute, layout_for, on_device
from gafx.errors import UnreadableAudio, UsageError
from gafx.frontends.base import FrontEnd
from gafx.io import atomic_path, atomic_write, digest, write_json
from gafx.loading import load
from gafx.midi.tokens import TOKEN_RATE
from gafx.model import GAFX
from gafx.nn.precision import device_of, pick_device
from gafx.outputs import Outputs

Array = npt.NDArray[Any]
What = Literal["embeddings", "maps", "codes"]
# Bytes of rows that are held before they are written as a row group, and of a row besides its values, about.
_ROW_GROUP, _ROW = 2**25, 2**10
_FRONTEND_SECONDS = 10.0
# What an output says of itself: a file in an npy folder that is a shard, and a key in a Parquet file's metadata.
ABOUT, METADATA = "shard.json", b"gafx"


@dataclass(frozen=True)
class Features:
    """Maps, embeddings or codes of one file, or of one sound in memory.

    Attributes:
        file: path as given, or the name of a sound in memory (`clip 0`).
        seconds: length; None if the file could not be read.
        windows: `(windows, 2)` start and end of each window in seconds.
        values: `(windows, width)` float32 embeddings, `(windows, channels, frequency, time)` maps, or int32 codes, see
            `gafx.frontends.base.FrontEnd.codes`.
        error: reason why the file could not be read, or None; the arrays are None then.
        note: what is doubtful about the file, see `gafx.deploy.predict.Prediction`; None for a whole file.
    """

    file: str
    seconds: float | None = None
    windows: Array | None = None
    values: Array | None = None
    error: str | None = None
    note: str | None = None


class Extractor:
    """Computes embeddings, maps or codes of the windows of files.

    Args:
        source: a model as for `gafx.predict`, or a front-end (maps and codes only).
        what: `embeddings`: input of the classifier's head, `(width,)`. `maps`: input of the classifier, i.e. the
            normalised map of the front-end, `(channels, frequency, time)`; of a front-end alone its map as it is.
            `codes`: discrete codes of the front-end, `(frames,)` or `(quantizers, frames)`.
        overlap: of consecutive windows, as a fraction of a window in [0, 1).
        window_seconds: length of a window; default: that of the model's clips, 10 s for a front-end.
        device, precision: to compute on, and in, see `gafx.deploy.windows.on_device`.
        **options: of `gafx.deploy.windows.compute`: `batch_size`, `readers`, `progress`.

    Attributes:
        dtype: of the values, float32, or int32 of codes.
        notes: doubtful files of the last call, of which that is used which can be read, as `path: what is doubtful`.

    Raises:
        UsageError: no model there, embeddings of a front-end alone, or codes of a front-end that has none.
    """

    def __init__(
        self, source: str | os.PathLike[str] | GAFX | FrontEnd, what: What = "embeddings", *, overlap: float = 0.0,
        window_seconds: float | None = None, device: str = "auto", precision: str = "fp32", **options: Any,
    ):  # fmt: skip
        if what not in get_args(What):
            raise UsageError(f"what={what!r} must be one of {', '.join(get_args(What))}")
        self.what, self.device, self.precision, self.options = what, device, precision, options
        self.notes: list[str] = []
        self.dtype = np.dtype(np.int32 if what == "codes" else np.float32)
        self.run: Callable[[Tensor], Tensor]
        if isinstance(source, FrontEnd):
            if what == "embeddings":
                raise UsageError("a front-end alone has maps and no embeddings: use what=maps, or name a model")
            self.module: nn.Module = source
            seconds = _FRONTEND_SECONDS if window_seconds is None else window_seconds
            self.layout = Layout.of(source.sample_rate, source.channels, seconds, overlap=overlap, least=1)
            front_end, self.run = source, source
        else:
            model = source if isinstance(source, GAFX) else load(source)
            self.module = model
            self.layout = layout_for(model, overlap=overlap, window_seconds=window_seconds)
            front_end, self.run = model.frontend, model.embed if what == "embeddings" else model.features
        if front_end.sample_rate == TOKEN_RATE:
            raise UsageError("this model reads tokens of MIDI, and gafx features reads audio: name a model of waves")
        if what == "codes":
            if front_end.num_codes is None:
                raise front_end.no_codes()
            self.run = front_end.codes

    def __call__(self, files: Iterable[AudioSource]) -> Iterator[Computed | FileDone]:
        """Compute all windows of all files, see `gafx.deploy.windows.compute`."""
        self.module.eval().to(pick_device(self.device))
        run = on_device(self.run, self.device, self.precision)
        self.notes.clear()
        for found in compute(run, files, self.layout, **self.options):
            if isinstance(found, FileDone) and found.note is not None:
                self.notes.append(f"{found.name}: {found.note}")
            yield found

    def settings(self, *, pool: bool) -> dict[str, Any]:
        """Settings that the values depend on, as JSON; `module` is a digest of all weights and buffers."""
        state = self.module.state_dict()
        content = [part for key in sorted(state) for part in (key, state[key].cpu().contiguous().numpy().tobytes())]
        return {"what": self.what, "pool": pool, **asdict(self.layout), "module": digest(*content)}

    def span(self, found: Computed) -> tuple[float, float]:
        """Start and end of a window in seconds."""
        rate = self.layout.sample_rate
        return found.start / rate, (found.start + found.samples) / rate


def extract(
    inputs: Inputs, source: str | os.PathLike[str] | GAFX | FrontEnd, what: What = "embeddings", *,
    sample_rate: float | None = None, **options: Any,
) -> Iterator[Features]:  # fmt: skip
    """Compute maps, embeddings or codes of sounds, one at a time, in the order in which they are completed.

    All values of a sound are held until it is complete; `write_npy` and `write_parquet` write windows as they come.

    Args:
        inputs, sample_rate: as for `gafx.predict`.
        source, what, **options: of `Extractor`.
    """
    sources = open_inputs(inputs, sample_rate)
    return _by_file(Extractor(source, what, **options), sources)


def embed_file(
    model: GAFX, sound: Inputs, *, sample_rate: float | None = None, per_window: bool = False, **options: Any
) -> Array:
    """Embedding of one file or sound; see `GAFX.embed_file`."""
    sources = list(itertools.islice(open_inputs(sound, sample_rate), 2))
    if len(sources) != 1:
        raise UsageError(
            f"embed_file takes one file or clip, and {'several were' if sources else 'none was'} given: "
            "gafx.deploy.features.extract computes those of many"
        )
    options.setdefault("device", str(device_of(model)))
    was_training = model.training
    try:
        (found,) = _by_file(Extractor(model, **options), sources)
    finally:
        model.train(was_training)
    if found.values is None:
        raise UnreadableAudio(f"{found.file} {found.error}")
    return found.values if per_window else found.values.mean(axis=0, dtype=np.float64).astype(np.float32)


def _by_file(extractor: Extractor, files: Iterable[AudioSource]) -> Iterator[Features]:
    held: dict[int, list[Computed]] = {}
    for found in extractor(files):
        if isinstance(found, Computed):
            held.setdefault(found.file, []).append(found)
            continue
        windows = held.pop(found.file, [])
        if found.error is not None:
            yield Features(found.name, error=found.error)
            continue
        seconds = found.samples / extractor.layout.sample_rate
        spans = np.minimum(np.array([extractor.span(window) for window in windows]), seconds)
        values = np.stack([window.values for window in windows]).astype(extractor.dtype, copy=False)
        yield Features(found.name, seconds, spans, values, note=found.note)


def _means(stream: Iterable[Computed | FileDone]) -> Iterator[Computed | FileDone]:
    """Replace the windows of each readable file by one with the mean of their values."""
    sums: dict[int, tuple[Any, int]] = {}
    for found in stream:
        if isinstance(found, Computed):
            total, count = sums.get(found.file, (0.0, 0))
            sums[found.file] = total + found.values.astype(np.float64), count + 1
            continue
        total, count = sums.pop(found.file, (0.0, 0))
        if found.error is None:
            yield Computed(found.file, found.name, 0, found.samples, (total / count).astype(np.float32))
        yield found


def _computed(extractor: Extractor, files: list[str], pool: bool) -> Iterator[Computed | FileDone]:
    return _means(extractor(files)) if pool else extractor(files)


def _about(extractor: Extractor, files: list[str], pool: bool, shard: Shard) -> dict[str, Any]:
    """The settings, and which shard of which list it is."""
    settings = extractor.settings(pool=pool)
    return settings | shard.record(digest(list_digest(files), json.dumps(settings)))


def write_npy(
    extractor: Extractor, files: list[str], folder: Path, *, pool: bool = False, shard: Shard = WHOLE
) -> list[str]:
    """Write an array `(windows, ...)` per file as `.npy`, float32 or for codes int32, and `index.csv`, a row per file.

    Args:
        extractor: computes the values.
        files: paths.
        folder: created if missing; may hold earlier arrays: those of the same name are replaced.
        pool: embeddings only: one matrix `embeddings.npy`, `(files, width)`, with the mean over each file's windows.
        shard: of the files: the arrays have the names that they have without it, and `shard.json` says which it is.

    Returns:
        files that could not be read, as `path: reason`; the index has them, too.

    Raises:
        UsageError: a file that would be written is one of the inputs or of a model, see `gafx.outputs`.
    """
    outputs = Outputs(files)
    index_path = outputs.claim(folder / "index.csv", "--output")
    folder.mkdir(parents=True, exist_ok=True)
    names = output_names(files, ".npy")
    about = _about(extractor, files, pool, shard)
    (folder / ABOUT).unlink(missing_ok=True)  # of an earlier command
    arrays: dict[int, _GrowingArray] = {}  # by file; with pooling the only one has the key -1
    index: dict[int, list[object]] = {}  # rows of files that were completed before an earlier one
    turn, errors = 0, []
    rate, hop = extractor.layout.sample_rate, extractor.layout.hop
    header = ["file", "npy", "row" if pool else "windows", "seconds", "hop_seconds", "last_start", "error"]
    try:
        # Bytes of names that are no UTF-8 stay as they are, so that the index names the files that are on the disk.
        with atomic_write(index_path, newline="", errors="surrogateescape") as out:
            rows = csv.writer(out, lineterminator="\n")
            rows.writerow(header)
            for found in _computed(extractor, shard.of(files), pool):
                key = -1 if pool else found.file
                if isinstance(found, Computed):
                    if key not in arrays:
                        target = "embeddings.npy" if pool else names[found.name]
                        path = outputs.claim(folder / target, "--output")
                        arrays[key] = _GrowingArray(path, found.values.shape, extractor.dtype)
                    arrays[key].add(found)
                    continue
                array = arrays.get(key)
                if not pool and array is not None:
                    arrays.pop(key).close(keep=found.error is None)
                if found.error is None and array is not None:
                    row = [array.path.name, array.count - pool, f"{found.samples / rate:.3f}", f"{hop / rate:.6f}"]
                    index[found.file] = [found.name, *row, "" if pool else f"{array.last_start / rate:.6f}", ""]
                else:
                    index[found.file] = [found.name, "", "", "", "", "", found.error]
                    errors.append(f"{found.name}: {found.error}")
                while turn in index:
                    rows.writerow(index.pop(turn))
                    turn += 1
            for array in arrays.values():  # with pooling; otherwise each was closed with its file
                array.close()
    except BaseException:
        for array in arrays.values():
            array.close(keep=False)
        raise
    if "shard" in about:
        write_json(folder / ABOUT, about)
    outputs.report(folder)
    return errors


class _Discard(Exception):
    """Raised to leave an array's context without keeping its file."""


class _GrowingArray:
    """A `.npy` file whose first axis grows; it appears under its name once it is closed."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]):
        self.path, self.shape, self.dtype, self.count, self.last_start = path, shape, dtype.newbyteorder("<"), 0, 0
        self.stack = ExitStack()
        self.file = self.stack.enter_context(self.stack.enter_context(atomic_path(path)).open("wb"))
        self._write_header()

    def add(self, window: Computed) -> None:
        self.file.write(window.values.astype(self.dtype, copy=False).tobytes())
        self.count, self.last_start = self.count + 1, window.start

    def close(self, *, keep: bool = True) -> None:
        """Write the final header over the first one (numpy leaves room for more digits), or discard the file."""
        with suppress(_Discard), self.stack:
            if not keep:
                raise _Discard
            self.file.seek(0)
            self._write_header()

    def _write_header(self) -> None:
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.count, *self.shape)}
        np.lib.format.write_array_header_1_0(self.file, header)


def parquet_schema(dtype: np.dtype[Any]) -> Any:
    """The columns of `write_parquet` as a `pyarrow.Schema`."""
    import pyarrow as pa

    return pa.schema([
        ("file", pa.string()), ("start", pa.float64()), ("end", pa.float64()), ("shape", pa.list_(pa.int32())),
        ("values", pa.list_(pa.from_numpy_dtype(dtype))), ("error", pa.string()),
    ])  # fmt: skip


def write_parquet(
    extractor: Extractor, files: list[str], path: Path, *, pool: bool = False, shard: Shard = WHOLE
) -> list[str]:
    """Write one Parquet file with a row per window.

    Columns: `file`, `start` and `end` in seconds, `shape`, `values` (flat; float32, codes int32), `error`; the map of a
    window is `numpy.reshape(row["values"], row["shape"])`. A file that cannot be read has a row with an `error` and no
    values; if decoding failed in the middle, the rows of its earlier windows are there, too. Rows of files that are
    read at the same time (`readers`) may alternate.

    Args:
        extractor: computes the values.
        files: paths.
        path: of the Parquet file; replaced when the new one is complete.
        pool: embeddings only: a row per file with the mean over its windows.
        shard: of the files; the metadata, under `gafx` as JSON, have the settings and which shard it is.

    Returns:
        files that could not be read, as `path: reason`.

    Raises:
        UsageError: as of `write_npy`.
    """
    Outputs(files).claim(path, "--output")
    import pyarrow as pa
    import pyarrow.parquet as pq

    about = json.dumps(_about(extractor, files, pool, shard))
    schema = parquet_schema(extractor.dtype).with_metadata({METADATA: about})
    path.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    held, errors = 0, []
    with (
        atomic_path(Path(os.path.realpath(path))) as part, pq.ParquetWriter(part, schema, compression="zstd") as writer
    ):  # fmt: skip
        for found in _computed(extractor, shard.of(files), pool):
            row: dict[str, Any] = {"file": found.name.encode(errors="backslashreplace").decode()}
            if isinstance(found, Computed):
                row["start"], row["end"] = extractor.span(found)
                values = found.values.ravel().astype(extractor.dtype, copy=False)
                rows.append({**row, "shape": list(found.values.shape), "values": values})
                held += _ROW + values.nbytes
            elif found.error is not None:
                rows.append({**row, "error": found.error})
                held += _ROW
                errors.append(f"{found.name}: {found.error}")
            if held >= _ROW_GROUP:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows, held = [], 0
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema))
    return errors
