"""Join what `gafx predict`, `features` and `pack` have written with `--shard`, in memory of bounded size.

Apart from what is being copied, a digest of 16 bytes per file is held, which finds files that are in two parts.
"""

import csv
import itertools
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from gafx.data.packing.merge import cache_folders, merge_caches
from gafx.data.sharding import merge_order
from gafx.data.shards.merge import merge_shards
from gafx.errors import UsageError, first_line, require
from gafx.io import atomic_folder, atomic_path, atomic_write, digest
from gafx.outputs import Outputs
from gafx.report.format import printable

_log = logging.getLogger("gafx")
# Names of files that tell what a folder holds; `shard.json` and the key of the metadata are of `gafx features`.
INDEX, CACHE, SHARDS, ABOUT, METADATA = "index.csv", "cache.json", "shards.json", "shard.json", b"gafx"
POOLED = "embeddings.npy"
_TRACKS = re.compile(r"\.Table\.1\.selections\.txt$|\.txt$")
_KINDS = "CSV, JSON, JSON lines, a folder of label tracks, npy or Parquet features, a packed cache, or Parquet shards"


def merge(parts: Sequence[Path], out: Path) -> tuple[str, int]:
    """Join parts into one output that is as if it had been written without shards.

    Features, caches and Parquet shards say which shard they are: they may come in any order, and all must be there.
    Text (CSV, JSON, JSON lines) and label tracks say nothing, and are joined in the order given.

    Args:
        parts: outputs of one kind.
        out: file or folder to create; a file is replaced, a folder must be new or empty.

    Returns:
        what is counted (`rows`, `files`, `clips`) in the plural, and the number.

    Raises:
        UsageError: a part that is missing, damaged, truncated or of another kind, model or setting; a file that is in
            two parts; `out` is one of the parts, inside of one, or would destroy something else.
    """
    for part in parts:
        if not part.exists():
            raise UsageError(f"{part} does not exist: compute that shard, or name where it is")
    if len({part.resolve() for part in parts}) < len(parts):
        raise UsageError("a part is named twice: name each once")
    kinds = {part: _kind(part) for part in parts}
    names = list(dict.fromkeys(kind for kind in kinds.values() if not kind.startswith("empty")))
    if len(names) > 1:
        one, other = (next(part for part in parts if kinds[part] == name) for name in names[:2])
        raise UsageError(f"{one} is {names[0]} and {other} is {names[1]}: merge parts of one kind")
    is_folder = parts[0].is_dir()
    kind = names[0] if names else "label tracks" if is_folder else "JSON lines"
    # An empty file or folder is a shard without files, of the kinds that write nothing then.
    for part in parts:
        if kinds[part].startswith("empty") and (
            kind not in ("JSON lines", "label tracks") or part.is_dir() != is_folder
        ):
            raise UsageError(f"{part} is {kinds[part]}, which is no part of {kind}: compute that shard again")
    if is_folder:
        _check_folder(parts, out)
        if out.exists():
            out.rmdir()
        out.parent.mkdir(parents=True, exist_ok=True)
        return _FOLDERS[kind](parts, out)
    Outputs(parts).claim(out, "OUT")
    if kind in _IN_ORDER and (pair := _numbers_disagree(parts)) is not None:
        _log.warning(
            "%s comes before %s, and text is joined in the order given: name part-{1..16}, or a pattern of names with "
            "leading zeros", *pair
        )  # fmt: skip
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    return _FILES[kind](parts, out)


def _numbers_disagree(parts: Sequence[Path]) -> tuple[Path, Path] | None:
    """Two neighbours whose names are in another order by their numbers, as `part-10` before `part-2` in a pattern."""
    keys = [[int(text) if text.isdigit() else text for text in re.split(r"(\d+)", part.name)] for part in parts]
    for (one, first), (other, second) in itertools.pairwise(zip(parts, keys, strict=True)):
        alike = [type(item) for item in first] == [type(item) for item in second]
        if alike and first[::2] == second[::2] and first > second:
            return one, other
    return None


def _kind(part: Path) -> str:
    if part.is_dir():
        if (part / SHARDS).is_file():
            return "Parquet shards"
        if (part / INDEX).is_file():
            return "npy features"
        if cache_folders(part):
            return "a packed cache"
        names = [path.name for path in part.iterdir() if not path.name.startswith(".")]
        if not names:
            return "empty folder"
        if all(map(_TRACKS.search, names)):
            return "label tracks"
    else:
        with part.open("rb") as file:
            head = file.read(64)
        for begin, kind in ((b"PAR1", "Parquet features"), (b"[\n", "JSON"), (b"{", "JSON lines"), (b"file,", "CSV")):
            if head.startswith(begin):
                return kind
        if not head:
            return "empty file"
    raise UsageError(f"{part} is none of what gafx merge joins: {_KINDS}. The table of gafx predict is for reading")


def _check_folder(parts: Sequence[Path], out: Path) -> None:
    """Raise `UsageError` where a folder cannot be created without damage."""
    real = out.resolve()
    for part in map(Path.resolve, parts):
        if real == part or real.is_relative_to(part) or part.is_relative_to(real):
            raise UsageError(
                f"OUT {out} is one of the parts, or inside of one, or the other way round: name another folder"
            )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"OUT {out} exists and is not an empty folder: name a new one, or remove it")


class _Files:
    """The files of all parts, to refuse one that is in two of them."""

    def __init__(self) -> None:
        self._part_of: dict[bytes, int] = {}
        self._parts: list[Path] = []

    def begin(self, part: Path) -> None:
        """The following files are of this part."""
        self._parts.append(part)

    def add(self, name: str, *, once: bool = True) -> None:
        """Note a file; `once`: it has one entry only."""
        key, here = bytes.fromhex(digest(name, size=16)), len(self._parts) - 1
        before = self._part_of.get(key)
        if before is None:
            self._part_of[key] = here
        elif before != here:
            raise UsageError(
                f"{printable(name)} is in {self._parts[before]} and in {self._parts[here]}: each file is in one part"
            )
        elif once:
            raise UsageError(f"{printable(name)} is twice in {self._parts[here]}: it was changed; compute it again")


def _broken(part: Path, line: int, why: str) -> UsageError:
    return UsageError(f"{part}, line {line}: {why}; the part is incomplete or was changed: compute that shard again")


# --- text of gafx predict ---------------------------------------------------------------------------------------------


def _merge_csv(parts: Sequence[Path], out: Path) -> tuple[str, int]:
    files = _Files()
    count, shared = 0, None
    form: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    with atomic_write(out, **form) as target:
        for part in parts:
            files.begin(part)
            last = None
            for number, (row, text) in enumerate(_csv_rows(part)):
                if number == 0 and shared is None:
                    shared = row
                    if row[-2:] != ["error", "note"]:
                        raise UsageError(
                            f"{part} has not the columns of gafx predict --csv; of features, name the folder"
                        )
                    target.write(text)
                elif number == 0:
                    if row != shared:
                        raise UsageError(
                            f"{part} has other columns than {parts[0]}: use one model and the same options for all"
                        )
                else:
                    assert shared is not None
                    over_time = "start" in shared[:2]
                    if not (over_time and row[0] == last):
                        files.add(row[0])
                    last = row[0]
                    target.write(text)
                    count += 1
    return "rows", count


def _csv_rows(part: Path) -> Iterator[tuple[list[str], str]]:
    """Rows of a CSV file, the header first, each with its text as it is in the file."""
    lines: list[str] = []

    def read(file: IO[str]) -> Iterator[str]:
        for line in file:
            lines.append(line)
            yield line

    with part.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = csv.reader(read(file), strict=True)
        columns = None
        try:
            for row in rows:
                columns = len(row) if columns is None else columns
                if len(row) != columns or not lines[-1].endswith("\n"):
                    raise _broken(part, rows.line_num, f"{len(row)} of {columns} columns, or no end of the line")
                yield row, "".join(lines)
                lines.clear()
        except csv.Error as error:
            raise _broken(part, rows.line_num, str(error)) from error


def _merge_json_lines(parts: Sequence[Path], out: Path) -> tuple[str, int]:
    entries = _Entries()
    with atomic_write(out, "wb") as target:
        for part in parts:
            entries.begin(part)
            with part.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if not line.endswith(b"\n"):
                        raise _broken(part, number, "the line does not end")
                    entries.check(number, line)
                    target.write(line)
    return "entries", entries.count


def _merge_json(parts: Sequence[Path], out: Path) -> tuple[str, int]:
    entries = _Entries()
    with atomic_write(out, "wb") as target:
        target.write(b"[")
        for part in parts:
            entries.begin(part)
            for number, line in _json_lines(part):
                target.write((b"," if entries.count else b"") + b"\n" + line)
                entries.check(number, line)
        target.write(b"\n]\n")
    return "entries", entries.count


def _json_lines(part: Path) -> Iterator[tuple[int, bytes]]:
    """The entries of an array in the form that `gafx predict --json` writes: one a line."""
    with part.open("rb") as file:
        more = True  # a comma, or the beginning of the array, precedes
        closed = False
        for number, line in enumerate(file, 1):
            if number == 1:
                continue
            if closed or not line.endswith(b"\n"):
                raise _broken(part, number, "something follows the array, or the line does not end")
            if line == b"]\n":
                closed = not more or number == 2  # an empty array
                continue
            if not more:
                raise _broken(part, number, "a comma is missing")
            entry = line[:-1]
            more = entry.endswith(b",")
            yield number, entry.removesuffix(b",")
        if not closed:
            raise _broken(part, number, "the array does not end with ] on a line of its own")


class _Entries:
    """Checks the entries of `gafx predict --json`: complete, of one form, each file once."""

    def __init__(self) -> None:
        self.files, self.count = _Files(), 0
        self.form: tuple[Any, ...] | None = None

    def begin(self, part: Path) -> None:
        self.part = part
        self.files.begin(part)

    def check(self, number: int, line: bytes) -> None:
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise _broken(self.part, number, f"no valid JSON ({first_line(error)})") from error
        if not isinstance(entry, dict) or not isinstance(entry.get("file"), str):
            raise _broken(self.part, number, "no entry of gafx predict, which has a `file`")
        self.files.add(entry["file"])
        self.count += 1
        if "probabilities" not in entry:  # silent, or with an error
            return
        form = (len(entry["probabilities"]), "model_probabilities" in entry, "over_time" in entry)
        if form != (self.form or form):
            raise UsageError(
                f"{self.part}, line {number}: another number of labels, or other options, than in the entries before: "
                "use one model and the same options for all"
            )
        self.form = form


# --- features ---------------------------------------------------------------------------------------------------------


def _merge_parquet(parts: Sequence[Path], out: Path) -> tuple[str, int]:
    require("pyarrow", "merging Parquet files")
    import pyarrow as pa
    import pyarrow.parquet as pq

    opened = []
    for part in parts:
        try:
            opened.append(pq.ParquetFile(part))
        except (pa.ArrowException, OSError) as error:
            raise UsageError(f"{part} cannot be read ({first_line(error)}): compute that shard again") from error
    about = [json.loads((file.schema_arrow.metadata or {}).get(METADATA, b"{}")) for file in opened]
    records = [{name: each[name] for name in ("shard", "whole") if name in each} for each in about]
    settings = {name: value for name, value in about[0].items() if name not in ("shard", "whole")}
    for part, file, each in zip(parts, opened, about, strict=True):
        if not file.schema_arrow.equals(opened[0].schema_arrow) or "file" not in file.schema_arrow.names:
            raise UsageError(f"{part} has other columns than {parts[0]}, or none named file")
        if not settings.items() <= each.items():
            raise UsageError(f"{part} and {parts[0]} are of different models or settings: compute all with one command")
    schema = opened[0].schema_arrow.with_metadata({METADATA: json.dumps(settings)} if settings else None)
    files, count = _Files(), 0
    with atomic_path(out) as target, pq.ParquetWriter(target, schema, compression="zstd") as writer:
        for position in merge_order(parts, records):
            part, file = parts[position], opened[position]
            files.begin(part)
            for group in range(file.num_row_groups):
                try:
                    table = file.read_row_group(group)
                except (pa.ArrowException, OSError) as error:
                    raise UsageError(f"{part} is damaged ({first_line(error)}): compute that shard again") from error
                for name in table["file"].unique().to_pylist():
                    files.add(name, once=False)
                writer.write_table(table.replace_schema_metadata(schema.metadata))
                count += len(table)
    return "rows", count


def _merge_npy(parts: Sequence[Path], out: Path) -> tuple[str, int]:
    about = [_about(part) for part in parts]
    order = merge_order(parts, [{name: each[name] for name in ("shard", "whole") if name in each} for each in about])
    parts = [parts[position] for position in order]
    files, count, rows_before, shared = _Files(), 0, 0, None
    matrices: list[Path] = []
    with (
        atomic_folder(out) as folder,
        (folder / INDEX).open("w", encoding="utf-8", errors="surrogateescape", newline="") as index,
    ):  # fmt: skip
        writer = csv.writer(index, lineterminator="\n")
        for part in parts:
            files.begin(part)
            rows = _csv_rows(part / INDEX)
            header = next(rows, ([], ""))[0]
            if header[:2] != ["file", "npy"] or header != (shared or header):
                raise UsageError(f"{part / INDEX} has other columns than that of {parts[0]}, or none")
            if shared is None:
                writer.writerow(header)
            shared, pooled, here = header, header[2] == "row", 0
            for row, _ in rows:
                files.add(row[0])
                count += 1
                if row[1] and pooled:
                    row[2] = str(int(row[2]) + rows_before)
                    here += 1
                elif row[1]:
                    if (folder / row[1]).exists():
                        raise UsageError(
                            f"{part} and a part before have an array {row[1]}: with --shard of one command they have "
                            "different names"
                        )
                    _check_array(part / row[1], int(row[2]))
                    shutil.copyfile(part / row[1], folder / row[1])
                writer.writerow(row)
            if here:
                _check_array(part / POOLED, here)
                matrices.append(part / POOLED)
                rows_before += here
        if matrices:
            _join_arrays(matrices, folder / POOLED, rows_before)
    return "files", count


def _about(part: Path) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads((part / ABOUT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(f"{part / ABOUT} cannot be read ({first_line(error)}): compute that shard again") from error
    return about


def _check_array(path: Path, rows: int) -> None:
    try:
        found = len(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"{path} cannot be read ({first_line(error)}): compute that shard again") from error
    if found != rows:
        raise UsageError(f"{path} has {found} rows and its index {rows}: compute that shard again")


def _join_arrays(paths: Sequence[Path], target: Path, rows: int) -> None:
    first = np.load(paths[0], mmap_mode="r", allow_pickle=False)
    header = {"descr": first.dtype.str, "fortran_order": False, "shape": (rows, *first.shape[1:])}
    with target.open("wb") as out:
        np.lib.format.write_array_header_1_0(out, header)
        for path in paths:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            if (array.dtype, array.shape[1:]) != (first.dtype, first.shape[1:]):
                raise UsageError(f"{path} and {paths[0]} have embeddings of other widths: use one model for all")
            for begin in range(0, len(array), 4096):
                out.write(array[begin : begin + 4096].tobytes())


# --- folders ----------------------------------------------------------------------------------------------------------


def _merge_tracks(parts: Sequence[Path], out: Path) -> tuple[str, int]:
    origin: dict[str, Path] = {}
    suffix = None
    with atomic_folder(out) as folder:
        for part in parts:
            for path in sorted(part.iterdir()):
                found = _TRACKS.search(path.name)
                if found is None:
                    continue  # hidden
                suffix = suffix or found[0]
                if found[0] != suffix:
                    raise UsageError(f"{path} is a label track of another program than those before: merge one kind")
                if (before := origin.setdefault(path.name.lower(), path)) != path:
                    raise UsageError(
                        f"{before} and {path} have one name: those of one command with --shard have different ones"
                    )
                content = path.read_bytes()
                if content and (
                    not content.endswith(b"\n") or len({line.count(b"\t") for line in content[:-1].split(b"\n")}) > 1
                ):
                    raise UsageError(f"{path} is truncated: compute that shard again")
                shutil.copyfile(path, folder / path.name)
    return "files", len(origin)


def _merge_packed(parts: Sequence[Path], out: Path) -> tuple[str, int]:
    """Merge the caches of each rate and channel count; a part is the folder given to `gafx pack`, or a cache in it."""
    found = [{cache.name: cache for cache in cache_folders(part)} for part in parts]
    for part, caches in zip(parts, found, strict=True):
        if set(caches) != set(found[0]):
            raise UsageError(
                f"{part} has caches {', '.join(sorted(caches))} and {parts[0]} {', '.join(sorted(found[0]))}: pack all "
                "alike"
            )
    count = 0
    with atomic_folder(out) as folder:
        for name in sorted(found[0]):
            count += merge_caches([caches[name] for caches in found], folder / name)
    return "clips", count


def _merge_shard_folders(parts: Sequence[Path], out: Path) -> tuple[str, int]:
    return "clips", merge_shards(parts, out)


_IN_ORDER = ("CSV", "JSON", "JSON lines")
_Merge = Callable[[Sequence[Path], Path], tuple[str, int]]
_FILES: dict[str, _Merge] = {
    "CSV": _merge_csv, "JSON": _merge_json, "JSON lines": _merge_json_lines, "Parquet features": _merge_parquet,
}  # fmt: skip
_FOLDERS: dict[str, _Merge] = {
    "npy features": _merge_npy, "label tracks": _merge_tracks, "a packed cache": _merge_packed,
    "Parquet shards": _merge_shard_folders,
}  # fmt: skip
