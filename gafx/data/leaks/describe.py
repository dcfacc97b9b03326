"""Text for the results of leak checks, and the results of several folds merged into one.

Everything here takes records: `gafx.data.leaks.check.Leaks.as_dict`, also as read from run.json or result.json.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from gafx.report.format import fraction, plural

# Pairs listed in a record, and examples printed; all are counted.
LISTED, EXAMPLES = 200, 5
NAMES = {"train": "training", "val": "validation", "test": "test"}


def describe_pair(pair: Mapping[str, Any]) -> str:
    """Describe a pair of copies (`gafx.data.leaks.check.Pair`) in one line."""
    one, other = pair["labels"]
    labels = "" if one == other else f", labels differ: {one} and {other}"
    if pair["kind"] == "same bytes":
        return f"{pair['first']} = {pair['second']} (same bytes{labels})"
    shift = f", {pair['offset']:+.2f} s" if abs(pair["offset"]) > 0.03 else ""
    recording = ", one recording" if pair["one_recording"] else ""
    if (semitones := pair.get("semitones")) is not None:
        moved = f", {semitones:+d} semitones" if semitones else ""
        return (
            f"{pair['first']} ~ {pair['second']} ({fraction(1 - pair['error'], 0)} of the runs of notes are the same"
            f"{moved}{recording})"
        )
    return (
        f"{pair['first']} ~ {pair['second']} ({fraction(pair['error'], 0)} of bits differ over {pair['seconds']:.1f} s "
        f"of sound{shift}{labels}{recording})"
    )


def describe_copies(record: Mapping[str, Any]) -> str:
    """Describe the result of `gafx.data.leaks.check.list_copies` in one line."""
    same, near = record["same_bytes"], record["near_copies"]
    found = "no copies found"
    if same + near:
        found = (
            f"{plural(same, 'pair')} of the same bytes, {plural(near, 'near copy', 'near copies')}; "
            f"{record['one_recording']:,} of them in one recording, {record['labels_differ']:,} with different labels"
        )
    clips = f"{record['clips']:,} clips of {record['recordings']:,} recordings"
    return f"{clips}: {'; '.join([found, *_not_compared(record)])}"


def describe_check(record: Mapping[str, Any], *, examples: int | None = EXAMPLES) -> list[str]:
    """Describe the result of a check in lines, with at most `examples` pairs of copies (`None`: all)."""
    found = [f"leak check: {headline(record)}"]
    for number, pair in enumerate(record["listed"]):
        if number == examples:
            total = sum(between["same_bytes"] + between["near_copies"] for between in record["copies"])
            most = len(record["listed"])
            where = "listed in run.json" if total <= most else f"the first {most:,} in run.json, all by gafx leaks"
            found.append(f"  ... {total - number:,} more pairs, {where}")
            break
        found.append(f"  {describe_pair(pair)}")
    for text, named in _crossings(record):
        found.append(f"  {text}, e.g. {named[0]}")
    if record["names"]["count"]:
        found.append("  if those are parts of one recording: data.options.group_pattern='(.*)_part\\d+'")
    if record["unchecked"]:
        found.append(f"  not checked: {record['unchecked']}")
    return found


def headline(record: Mapping[str, Any]) -> str:
    """Describe the result of a check in one line: clips with copies in other parts, or that there are none."""
    clips = record["clips"]
    found = []
    for between in record["copies"]:
        if not between["clips"]:
            continue
        first, second = between["parts"]
        same, near, differ = between["same_bytes"], between["near_copies"], between["labels_differ"]
        kinds = [plural(same, "pair of the same bytes", "pairs of the same bytes")] if same else []
        kinds += [plural(near, "near copy", "near copies")] if near else []
        kinds += [f"{differ:,} with different labels"] if differ else []
        affected, all_clips = between["clips"], clips[first]
        found.append(
            f"{affected:,} of {all_clips:,} {NAMES[first]} clips ({fraction(affected / all_clips)}) "
            f"{'has' if affected == 1 else 'have'} copies among the {clips[second]:,} {NAMES[second]} clips "
            f"({', '.join(kinds)})"
        )
    found += [text for text, _ in _crossings(record)]
    if not found:
        counts = [f"{clips[part]:,} {NAMES[part]}" for part in ("test", "val", "train") if clips[part]]
        nothing = "no recording, file or numbered name on two sides" if record["unchecked"] else "nothing found"
        found = [f"{nothing} among {', '.join(counts[:-1])}{' and ' * (len(counts) > 1)}{counts[-1]} clips"]
    limits = [] if record["artists"] is not None else ["artists unknown"]
    limits += ["sound not compared"] if record["unchecked"] else []
    return "; ".join([*found, *limits, *_not_compared(record)])


def _not_compared(record: Mapping[str, Any]) -> list[str]:
    """Describe the clips that were not compared."""
    kinds = (("unreadable", "unreadable"), ("silent", "too silent or short to compare"))
    return [f"{record[key]:,} {text}" for key, text in kinds if record[key]]


def merge(records: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """Merge the checks of several folds; counts are summed. Return `None` if a fold was not checked."""
    known = [record for record in records if record]
    if not known or len(known) < len(records):
        return None
    if len(known) == 1:
        return dict(known[0])
    between: dict[tuple[str, ...], Counter[str]] = {}
    for entry in (entry for record in known for entry in record["copies"]):
        counts = {key: count for key, count in entry.items() if key != "parts"}
        between.setdefault(tuple(entry["parts"]), Counter()).update(counts)

    def merge_crossings(key: str) -> dict[str, Any] | None:
        each = [record[key] for record in known if record[key] is not None]
        examples = list(dict.fromkeys(example for entry in each for example in entry["examples"]))
        return {"count": sum(entry["count"] for entry in each), "examples": examples[:EXAMPLES]} if each else None

    merged = {
        "clips": {part: sum(record["clips"][part] for record in known) for part in NAMES},
        "copies": [{"parts": list(parts), **counts} for parts, counts in between.items()],
        "listed": [dict(pair) for record in known for pair in record["listed"]][:LISTED],
        **{key: merge_crossings(key) for key in ("recordings", "files", "names", "artists")},
        **{key: sum(record[key] for record in known) for key in ("unreadable", "silent")},
        "unchecked": next((record["unchecked"] for record in known if record["unchecked"]), ""),
        "elapsed": round(sum(record["elapsed"] for record in known), 2),
    }
    return {**merged, "words": describe_check(merged)}


def _crossings(record: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Describe recordings, files, names and artists with clips in several parts, each with examples."""
    kinds = {
        "recordings": ("recording has clips", "recordings have clips"),
        "files": ("file has segments", "files have segments"),
        "names": ("name has numbered parts", "names have numbered parts"),
        "artists": ("artist has clips", "artists have clips"),
    }
    found = [(record[key], kind) for key, kind in kinds.items() if record[key] and record[key]["count"]]
    return [(f"{plural(entry['count'], *kind)} on two sides", list(entry["examples"])) for entry, kind in found]
