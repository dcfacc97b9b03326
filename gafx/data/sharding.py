"""One part of a list of files for each of many machines, and the order in which such parts are merged."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gafx.errors import UsageError
from gafx.io import digest

Items = TypeVar("Items", bound=Sequence[Any])


@dataclass(frozen=True)
class Shard:
    """Part `number` of `count`: a block of consecutive items, so that the parts in order are the whole.

    A function of the number of items alone: all machines that see the same list divide it in the same way. The sizes of
    two parts differ by one at most; with more parts than items some are empty.

    Attributes:
        number: from 1 to `count`.
        count: number of parts.
    """

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Read `3/16`.

        Raises:
            UsageError: it has another form, or a number out of range.
        """
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)
        number, count = map(int, found.groups()) if found else (0, 0)
        if not 1 <= number <= count:
            raise UsageError(
                f"{text!r} is no shard: write K/N, two whole numbers with K from 1 to N, e.g. 3/16 for the third of 16"
            )
        return cls(number, count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def span(self, total: int) -> slice:
        """Positions of this part among `total` items."""
        return slice((self.number - 1) * total // self.count, self.number * total // self.count)

    def of(self, items: Items) -> Items:
        """The items of this part."""
        return items[self.span(len(items))]  # type: ignore[return-value]

    def record(self, whole: str) -> dict[str, str]:
        """Record of this shard, stored in its output and read by `merge_order`; empty for the only part.

        Args:
            whole: digest of what all parts have in common: the list that was divided, and the settings.
        """
        return {} if self.count == 1 else {"shard": str(self), "whole": whole}


WHOLE = Shard()


def list_digest(files: Iterable[str]) -> str:
    """Digest of a list by its names without their folders, under which each machine may have the files elsewhere."""
    return digest("\0".join(os.path.basename(file) for file in files))


def merge_order(parts: Sequence[Path], records: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the positions of parts in the order of their shards; that of `parts` where none has a record.

    Args:
        parts: paths, for messages.
        records: the `Shard.record` of each; empty where it has none.

    Raises:
        UsageError: shards of different wholes, one twice, or one that is missing.
    """
    without = [part for part, record in zip(parts, records, strict=True) if not record]
    if len(without) == len(parts):
        return list(range(len(parts)))
    if without:
        raise UsageError(
            f"{without[0]} was written without --shard, unlike others of these parts: it is no part of one whole"
        )
    shards = [Shard.parse(str(record["shard"])) for record in records]
    at: dict[int, int] = {}
    for position, (part, shard) in enumerate(zip(parts, shards, strict=True)):
        if shard.count != shards[0].count:
            raise UsageError(
                f"{part} is shard {shard} and {parts[0]} is shard {shards[0]}: merge parts of one division"
            )
        if records[position]["whole"] != records[0]["whole"]:
            raise UsageError(
                f"{part} and {parts[0]} are not shards of one whole: their lists of files, settings or models differ; "
                "compute both with the same command, with the same files on both machines"
            )
        if shard.number in at:
            raise UsageError(f"{part} and {parts[at[shard.number]]} are the same shard, {shard}: name each once")
        at[shard.number] = position
    count = shards[0].count
    if missing := [f"{number}/{count}" for number in range(1, count + 1) if number not in at]:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise UsageError(f"{len(missing)} of {count} shards missing: {', '.join(missing[:5])}{more}; name all of them")
    return [at[number] for number in sorted(at)]
