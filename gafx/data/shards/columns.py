"""Convert shards' Arrow columns of labels, recordings and folds to NumPy arrays, whole columns at a time."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gafx.data.manifest import Ragged
from gafx.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

Rows = npt.NDArray[np.int64]


def plain_types(table: "pa.Table") -> "pa.Table":
    """Cast views and dictionaries, alone or in lists, to plain types: some Arrow functions do not accept them."""
    import pyarrow as pa

    schema = pa.schema([field.with_type(_plain(field.type)) for field in table.schema])
    return table if schema.equals(table.schema) else table.cast(schema)


def _plain(kind: "pa.DataType") -> "pa.DataType":
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_list(kind):
        return pa.list_(_plain(kind.value_type))
    if pa.types.is_large_list(kind) or pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        return pa.large_list(_plain(kind.value_type))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_plain(kind.value_type), kind.list_size)
    return kind


def read_labels(
    column: "pa.ChunkedArray",
    name: str,
    names: Sequence[str],
    known: Sequence[str] | None,
    *,
    empty_is_label: bool = False,
) -> tuple[Ragged, tuple[str, ...], dict[int, str]]:
    """Return the labels of all rows as class numbers.

    Args:
        column: class numbers, strings, or lists of either.
        name: of the column, for messages.
        names: of the classes that numbers refer to; empty if unknown.
        known: the classes, in their order; default: `names`, or all values that occur, sorted.
        empty_is_label: whether an empty list means that the clip has none of the classes; if not, it is unlabelled.

    Returns:
        The labels, each once per row; the classes; and the reasons of rows without a usable label, by row.

    Raises:
        UsageError: the column has another type.
    """
    import pyarrow as pa

    flat, lengths, unlabelled = _flatten(column, empty_is_label)
    row = np.repeat(np.arange(len(column)), lengths)
    given = tuple(known or names)
    if pa.types.is_string(flat.type) or pa.types.is_large_string(flat.type):
        classes, values = _class_of_strings(flat, given)
    elif pa.types.is_integer(flat.type):
        classes, values = _class_of_numbers(flat, given, names)
    elif pa.types.is_null(flat.type):
        classes, values = given, np.zeros(0, np.int64)
    else:
        raise UsageError(
            f"data.options.label={name!r}: the column is of type {column.type}, and labels are numbers of classes, "
            "strings, or lists of either"
        )
    reasons = {}
    for position in np.flatnonzero(values < 0).tolist():
        value = flat[position].as_py()
        none = value is None or value == -1
        text = f"its label {str(value)[:80]!r} is none of the {len(classes)} classes"
        reasons[int(row[position])] = "has no label" if none else text
    reasons.update(dict.fromkeys(np.flatnonzero(unlabelled).tolist(), "has no label"))
    good = values >= 0
    return Ragged.distinct(row[good], values[good], len(column)), classes, reasons


def _flatten(column: "pa.ChunkedArray", empty_is_label: bool) -> tuple["pa.ChunkedArray", Rows, npt.NDArray[np.bool_]]:
    """Return all values of a column of values or lists, their number per row, and which rows are unlabelled."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if any(test(column.type) for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)):
        counts = pc.list_value_length(column)
        lengths, flat = _numpy(pc.fill_null(counts, 0), np.int64), pc.list_flatten(column)
        unlabelled = _numpy(pc.is_null(counts), bool) if empty_is_label else lengths == 0
    else:
        unlabelled = ~_numpy(pc.is_valid(column), bool)
        lengths, flat = (~unlabelled).astype(np.int64), column.drop_null()
    if pa.types.is_dictionary(flat.type):
        flat = flat.cast(flat.type.value_type)
    return flat, lengths, unlabelled


def _class_of_strings(flat: "pa.ChunkedArray", given: tuple[str, ...]) -> tuple[tuple[str, ...], Rows]:
    """Return the classes (`given`, or all strings that occur) and each string's class number or -1."""
    import pyarrow as pa
    import pyarrow.compute as pc

    classes = given or tuple(sorted(value for value in pc.unique(flat).to_pylist() if value is not None))
    return classes, _numpy(pc.fill_null(pc.index_in(flat, pa.array(classes, flat.type)), -1), np.int64)


def _class_of_numbers(
    flat: "pa.ChunkedArray", given: tuple[str, ...], names: Sequence[str]
) -> tuple[tuple[str, ...], Rows]:
    """Return the classes (`given`, or all numbers that occur) and each number's class number or -1.

    Numbers refer to `names`, which may be in another order than `given`; without names, to `given` itself.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    numbers = _numpy(pc.fill_null(flat.cast(pa.int64()), -1), np.int64)
    if not given:
        found = np.unique(numbers[numbers >= 0])
        return tuple(map(str, found.tolist())), np.where(numbers >= 0, np.searchsorted(found, numbers), -1)
    table = {value: number for number, value in enumerate(given)}
    mapping = np.array([table.get(value, -1) for value in (names or given)], np.int64)
    inside = (numbers >= 0) & (numbers < len(mapping))
    return given, np.where(inside, mapping[np.where(inside, numbers, 0)], -1)


def read_names(column: "pa.ChunkedArray", name: str) -> Ragged:
    """Return a column of strings, or of values that can be cast to strings, as UTF-8; empty for null.

    Raises:
        UsageError: it has another type.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        text = pc.fill_null(column.cast(pa.large_string()), "")
    except pa.ArrowException:
        raise UsageError(f"column {name!r} of the shards is of type {column.type}, not of strings") from None
    lengths = _numpy(pc.binary_length(text), np.int64)
    content = b"".join(_bytes_of(chunk) for chunk in text.chunks)
    return Ragged(np.frombuffer(content, np.uint8), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def read_groups(column: "pa.ChunkedArray | None", name: str | None, count: int) -> Rows:
    """Return a number for each row's recording; a row without one is a separate recording."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if column is None:
        return np.arange(count, dtype=np.int64)
    try:
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        names = pc.unique(column.drop_null())
        numbers = _numpy(pc.fill_null(pc.index_in(column, names, skip_nulls=True), -1), np.int64)
    except pa.ArrowException:
        raise UsageError(
            f"data.options.group={name!r}: the column is of type {column.type}, and recordings are identified by "
            "strings or numbers"
        ) from None
    alone = numbers < 0
    numbers[alone] = len(names) + np.arange(int(alone.sum()))
    return numbers


def read_weights(column: "pa.ChunkedArray | None", count: int) -> npt.NDArray[np.float64]:
    """Return each row's sampling weight; 1 without a column or where its value is not usable."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if column is None or not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        return np.ones(count)
    weights = _numpy(pc.fill_null(column.cast(pa.float64()), 1.0), np.float64)
    return np.where(np.isfinite(weights) & (weights >= 0), weights, 1.0)


def read_numbers(column: "pa.ChunkedArray", option: str, name: str, least: int) -> npt.NDArray[np.int32]:
    """Return a column of integers, e.g. folds; -1 for null.

    Raises:
        UsageError: it has another type, or numbers below `least`.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        numbers = _numpy(pc.fill_null(column.cast(pa.int64()), -1), np.int64)
    except (pa.ArrowException, ValueError):
        raise UsageError(f"data.options.{option}={name!r}: the column is of type {column.type}, not numbers") from None
    if len(numbers) and (numbers.max() >= 2**31 or numbers[numbers != -1].min(initial=least) < least):
        raise UsageError(f"data.options.{option}={name!r}: {option}s are numbers from {least} to {2**31 - 1}")
    return numbers.astype(np.int32)


def _numpy(array: Any, dtype: Any) -> npt.NDArray[Any]:
    values = array.to_numpy(zero_copy_only=False) if not hasattr(array, "chunks") else array.to_numpy()
    return np.array(values, dtype)


def _bytes_of(chunk: Any) -> bytes:
    """Return the characters of an array of large strings."""
    _, offsets, content = chunk.buffers()
    ends = np.frombuffer(offsets, np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
    return b"" if content is None or not len(ends) else content[int(ends[0]) : int(ends[-1])].to_pybytes()
