"""Maps and embeddings of a library of files, window by window, in memory that no length fills."""

import csv
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from gafx.deploy.files import find_files
from gafx.deploy.windows import Computed, Finished, Layout, compute, layout_for
from gafx.deploy.words import free_name
from gafx.errors import UsageError
from gafx.frontends.base import FrontEnd
from gafx.loading import load
from gafx.model import GAFX
from gafx.nn.precision import pick_device

Array = npt.NDArray[Any]
What = Literal["embeddings", "maps"]
# Bytes of values that are held before they are written as a row group.
_ROW_GROUP = 2**25
_FRONTEND_SECONDS = 10.0


@dataclass(frozen=True)
class Features:
    """Maps or embeddings of one file.

    Attributes:
        file: as it was given.
        seconds: its length; None where it could not be read.
        windows: `(windows, 2)` begin and end of each window in seconds.
        values: `(windows, width)` float32 embeddings, or `(windows, channels, frequency, time)` maps.
        error: why the file could not be read, or None; the arrays are None then.
    """

    file: str
    seconds: float | None = None
    windows: Array | None = None
    values: Array | None = None
    error: str | None = None


class Extractor:
    """What is computed of each window, and how files are cut into windows.

    Args:
        source: a model as `gafx.predict` takes it, or a front-end (which has maps alone).
        what: `embeddings`: what the classifier's head reads, `(width,)`. `maps`: the front-end's map as the classifier
            reads it, normalised, `(channels, frequency, time)`; of a front-end alone, its map as it is.
        overlap: share of a window that the next one repeats, in [0, 1).
        window_seconds: length of a window; default: the model's, 10 s for a front-end.
        **how: of `gafx.deploy.windows.compute`: `batch_size`, `device`, `precision`, `readers`, `progress`.

    Raises:
        UsageError: no model there, or embeddings asked of a front-end.
    """

    def __init__(
        self, source: str | os.PathLike[str] | GAFX | FrontEnd, what: What = "embeddings", *, overlap: float = 0.0,
        window_seconds: float | None = None, **how: Any,
    ):  # fmt: skip
        if what not in ("embeddings", "maps"):
            raise UsageError(f"what={what!r} must be embeddings or maps")
        self.what, self.how = what, how
        self.run: Callable[[Tensor], Tensor]
        if isinstance(source, FrontEnd):
            if what == "embeddings":
                raise UsageError("a front-end alone has maps and no embeddings: ask for maps, or name a model")
            self.module: nn.Module = source
            seconds = _FRONTEND_SECONDS if window_seconds is None else window_seconds
            self.layout = Layout.of(source.sample_rate, source.channels, seconds, overlap=overlap, least=1)
            self.run = source
        else:
            model = source if isinstance(source, GAFX) else load(source)
            self.module = model
            self.layout = layout_for(model, overlap=overlap, window_seconds=window_seconds)
            self.run = model.embed if what == "embeddings" else model.features

    def __call__(self, names: dict[int, str], files: Iterable[str]) -> Iterator[Computed | Finished]:
        """Compute all windows; fills `names` with the file of each number as it is begun."""
        self.module.eval().to(pick_device(self.how.get("device", "auto")))

        def named() -> Iterator[str]:
            for number, file in enumerate(files):
                names[number] = file
                yield file

        return compute(self.run, named(), self.layout, **self.how)

    def span(self, found: Computed) -> tuple[float, float]:
        """Begin and end of a window in seconds."""
        rate = self.layout.sample_rate
        return found.start / rate, (found.start + found.samples) / rate


def extract(
    files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    source: str | os.PathLike[str] | GAFX | FrontEnd,
    what: What = "embeddings",
    **options: Any,
) -> Iterator[Features]:
    """Maps or embeddings of files, a file at a time, in the order in which they are done.

    All values of a file are held until it is done; `write_npy` and `write_parquet` write windows as they come.

    Args:
        files: as in `gafx.predict`.
        source, what, **options: of `Extractor`.
    """
    words = [files] if isinstance(files, (str, os.PathLike)) else list(files)
    extractor = Extractor(source, what, **options)
    return _by_file(extractor, find_files([os.fspath(word) for word in words]).files)


def _by_file(extractor: Extractor, files: Iterable[str]) -> Iterator[Features]:
    names: dict[int, str] = {}
    held: dict[int, list[Computed]] = {}
    for found in extractor(names, files):
        if isinstance(found, Computed):
            held.setdefault(found.file, []).append(found)
            continue
        file, windows = names.pop(found.file), held.pop(found.file, [])
        if found.error is not None:
            yield Features(file, error=found.error)
            continue
        seconds = found.samples / extractor.layout.sample_rate
        spans = np.minimum(np.array([extractor.span(window) for window in windows]), seconds)
        yield Features(file, seconds, spans, np.stack([window.values.numpy() for window in windows]))


def write_npy(extractor: Extractor, files: list[str], folder: Path, *, pool: bool = False) -> list[str]:
    """Write one `.npy` a file, `(windows, ...)` float32, and `index.csv`, which says what is where.

    Args:
        extractor: what is computed.
        files: paths.
        folder: is made; it may hold an earlier extract, whose files of the same name are replaced.
        pool: embeddings only: one matrix `embeddings.npy`, `(files, width)`, a row a file (the mean over its windows).

    Returns:
        what could not be read, `path: reason` each; it stands in the index, too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names: dict[int, str] = {}
    arrays: dict[int, _Growing] = {}
    means: dict[int, _Mean] = {}
    errors: list[str] = []
    taken: set[str] = set()
    index: dict[int, list[object]] = {}
    matrix = _Growing(folder / "embeddings.npy")
    rate, hop = extractor.layout.sample_rate, extractor.layout.hop
    try:
        for found in extractor(names, files):
            number = found.file
            if isinstance(found, Computed):
                if pool:
                    means.setdefault(number, _Mean()).add(found.values.numpy())
                    continue
                if number not in arrays:
                    arrays[number] = _Growing(_free_name(folder, names[number], taken))
                arrays[number].add(found.values.numpy(), found.start)
                continue
            file, mean, array = names.pop(number), means.pop(number, None), arrays.pop(number, None)
            if found.error is not None:
                if array is not None:
                    array.drop()
                errors.append(f"{file}: {found.error}")
                index[number] = [file, "", "", "", "", "", found.error]
                continue
            place: list[object] = []
            if mean is not None:
                matrix.add(mean.value(), 0)
                place = [matrix.path.name, matrix.count - 1, ""]
            elif array is not None:
                array.close()
                place = [array.path.name, array.count, f"{array.start / rate:.6f}"]
            index[number] = [file, *place[:2], f"{found.samples / rate:.3f}", f"{hop / rate:.6f}", *place[2:], ""]
        matrix.close()
    except BaseException:
        for array in [*arrays.values(), matrix]:
            array.drop()
        raise
    aside = folder / ".index.csv.writing"
    with aside.open("w", newline="", encoding="utf-8", errors="backslashreplace") as out:
        rows = csv.writer(out, lineterminator="\n")
        rows.writerow(["file", "npy", "row" if pool else "windows", "seconds", "hop_seconds", "last_start", "error"])
        rows.writerows(row for _, row in sorted(index.items()))
    os.replace(aside, folder / "index.csv")
    return errors


def _free_name(folder: Path, file: str, taken: set[str]) -> Path:
    """`<stem>.npy`, or `<stem>-2.npy` and so on where another file of this extract has that name."""
    return folder / free_name(file, ".npy", taken)


class _Growing:
    """A `.npy` whose first axis grows; it lies beside its place until it is whole."""

    def __init__(self, path: Path):
        self.path, self.count, self.start = path, 0, 0
        self.shape: tuple[int, ...] = ()
        self.file: IO[bytes] | None = None

    def add(self, values: Array, start: int) -> None:
        if self.file is None:
            self.shape = values.shape
            self.file = self._aside().open("wb")
            self._header()
        self.file.write(np.ascontiguousarray(values, np.float32).tobytes())
        self.count, self.start = self.count + 1, start

    def close(self) -> None:
        """Write the header anew, with the number that there are: numpy leaves room for it to grow."""
        if self.file is None:
            return
        self.file.seek(0)
        self._header()
        self.file.close()
        os.replace(self._aside(), self.path)

    def drop(self) -> None:
        if self.file is not None:
            self.file.close()
            self._aside().unlink(missing_ok=True)

    def _aside(self) -> Path:
        return self.path.with_name(f".{self.path.name}.writing")

    def _header(self) -> None:
        assert self.file is not None
        header = {"descr": "<f4", "fortran_order": False, "shape": (self.count, *self.shape)}
        np.lib.format.write_array_header_1_0(self.file, header)


class _Mean:
    """The mean over what is added."""

    def __init__(self) -> None:
        self.total: Array = np.zeros(())
        self.count = 0

    def add(self, values: Array) -> None:
        self.total = self.total + values.astype(np.float64)
        self.count += 1

    def value(self) -> Array:
        return self.total / self.count


def write_parquet(extractor: Extractor, files: list[str], path: Path, *, pool: bool = False) -> list[str]:
    """Write one Parquet file, a row a window.

    Columns: `file`, `start` and `end` in seconds, `shape`, `values` (flat float32), `error`.
    `numpy.reshape(row["values"], row["shape"])` gives a window's map back. A file that cannot be read has one row with
    an `error` and no values; where it broke in the middle, its earlier windows are there, too. Rows of files that are
    read at the same time (`readers`) may alternate.

    Args:
        extractor: what is computed.
        files: paths.
        path: of the file; it is replaced once the new one is whole.
        pool: embeddings only: a row a file, the mean over its windows.

    Returns:
        what could not be read, `path: reason` each.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([
        ("file", pa.string()), ("start", pa.float64()), ("end", pa.float64()), ("shape", pa.list_(pa.int32())),
        ("values", pa.list_(pa.float32())), ("error", pa.string()),
    ])  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path = Path(os.path.realpath(path))
    aside = path.with_name(f".gafx-{os.getpid()}.writing")
    names: dict[int, str] = {}
    means: dict[int, _Mean] = {}
    errors: list[str] = []
    try:
        with pq.ParquetWriter(aside, schema, compression="zstd") as writer:
            rows = _Rows(lambda columns: writer.write_table(pa.table(columns, schema=schema)))
            for found in extractor(names, files):
                name = names[found.file].encode(errors="backslashreplace").decode()
                if isinstance(found, Computed):
                    if pool:
                        means.setdefault(found.file, _Mean()).add(found.values.numpy())
                    else:
                        rows.add(name, *extractor.span(found), found.values.numpy())
                    continue
                mean = means.pop(found.file, None)
                if found.error is not None:
                    errors.append(f"{names[found.file]}: {found.error}")
                    rows.add(name, None, None, None, found.error)
                elif mean is not None:
                    rows.add(name, 0.0, found.samples / extractor.layout.sample_rate, mean.value())
                del names[found.file]
            rows.write()
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    return errors


@dataclass
class _Rows:
    """Rows of a Parquet file, written a group at a time."""

    write_group: Callable[[dict[str, list[Any]]], None]
    columns: dict[str, list[Any]] = field(default_factory=dict)
    bytes: int = 0

    def add(self, file: str, start: float | None, end: float | None, values: Array | None, error: str = "") -> None:
        flat = None if values is None else np.asarray(values, np.float32).ravel()
        shape = None if values is None else list(values.shape)
        row = {"file": file, "start": start, "end": end, "shape": shape, "values": flat, "error": error or None}
        for name, value in row.items():
            self.columns.setdefault(name, []).append(value)
        self.bytes += 0 if flat is None else flat.nbytes
        if self.bytes >= _ROW_GROUP:
            self.write()

    def write(self) -> None:
        if self.columns:
            self.write_group(self.columns)
        self.columns, self.bytes = {}, 0
