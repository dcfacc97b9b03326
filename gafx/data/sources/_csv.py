"""CSV files as other programs save them: in several encodings, and separated by commas, semicolons or tabs."""

import codecs
import csv
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from gafx.errors import UsageError

_CHUNK = 2**20
# Not every byte is a character of Windows-1252; Latin-1 decodes all.
_GUESSED = {"cp1252": "Windows-1252", "latin-1": "Latin-1"}
_MARKS = {  # UTF-32 first: its mark begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# Which of the first four bytes are NUL where the file begins with two ASCII characters.
_NULS: dict[tuple[bool, ...], str] = {
    (False, True, False, True): "utf-16-le",
    (True, False, True, False): "utf-16-be",
    (False, True, True, True): "utf-32-le",
    (True, True, True, False): "utf-32-be",
}


def open_csv(path: Path, notes: list[str]) -> tuple[TextIO, str]:
    """Open a CSV in its encoding; return it and its separator.

    The encoding is UTF-8, UTF-16 or UTF-32, with or without a byte order mark, else Windows-1252 or Latin-1. The
    separator is a comma or, where the first line has none, a semicolon or tab.

    Args:
        path: of an existing file.
        notes: is extended where the encoding is a guess.

    Raises:
        UsageError: the file cannot be decoded, or holds NUL characters.
    """
    with path.open("rb") as raw:
        start = raw.read(4)
    marked = next((encoding for mark, encoding in _MARKS.items() if start.startswith(mark)), None)
    encoding = marked or _NULS.get(tuple(not byte for byte in start), "")
    for candidate in [encoding] if encoding else ["utf-8-sig", *_GUESSED]:
        try:
            first = _first_line(path, candidate)
            break
        except UnicodeDecodeError as error:
            if encoding:
                raise UsageError(f"{path} is damaged {encoding.upper()} ({error}): save it as UTF-8") from None
    if candidate in _GUESSED:
        notes.append(f"{path.name} is not UTF-8, and was read as {_GUESSED[candidate]}")
    delimiter = "," if "," in first else next((each for each in ";\t" if each in first), ",")
    return path.open(newline="", encoding=candidate), delimiter


def _first_line(path: Path, encoding: str) -> str:
    """Return the first line of a file after decoding all of it, piece by piece: some lists have hundreds of MB."""
    with path.open(newline="", encoding=encoding) as file:
        text = first = file.readline()
        while text:
            if "\0" in text:
                raise UsageError(f"{path} holds NUL bytes: its encoding is unknown, or it is no text; save it as UTF-8")
            text = file.read(_CHUNK)
    return first


def table_rows(table: csv.DictReader, path: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of a table.

    Raises:
        UsageError: a line that is no CSV, or that has more fields than the header, of which some would be lost.
    """
    columns = len(table.fieldnames or ())
    try:
        for row in table:
            if any(row.get(None) or ()):
                raise UsageError(
                    f"{path}, line {table.line_num}: has more than the {columns} fields of the header; put a field "
                    f"that holds {table.reader.dialect.delimiter!r} between quotation marks"
                )
            yield row
    except csv.Error as error:
        raise UsageError(f"{path}, line {table.line_num}: {error}; is a quotation mark left open?") from None


def own_name(root: Path, path: str, encoding: str) -> str:
    """Return the name on the disk of a path in a CSV: the bytes of the CSV, where a file has them, or the text."""
    if encoding in _GUESSED and not path.isascii():
        raw = os.fsdecode(path.encode(encoding))
        return raw if os.path.lexists(root / raw) else path
    return path


def fold_number(text: str) -> int:
    """Return the number of a fold; pandas writes `1.0` where the column has gaps. Raise `ValueError` if it is none."""
    try:
        fold = float(text)
    except ValueError:
        fold = math.nan
    if not 1 <= fold < math.inf or fold != int(fold):
        raise ValueError(f"fold {text!r} must be a whole number: folds are counted from 1")
    return int(fold)
