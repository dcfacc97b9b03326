"""Times, shares and names as people read them."""

import os


def clock(seconds: float, step: float = 1.0) -> str:
    """`3:25`, or `1:02:03` from an hour on; with tenths where `step` is finer than a second."""
    whole, tenth = divmod(round(seconds * 10), 10) if step < 1 else (round(seconds), 0)
    minutes, left = divmod(whole, 60)
    said = f"{minutes // 60}:{minutes % 60:02}:{left:02}" if minutes >= 60 else f"{minutes}:{left:02}"
    return f"{said}.{tenth}" if step < 1 else said


def percent(share: float) -> str:
    """A share in whole percent, with a digit below ten and where 100 would be too much said."""
    value = 100 * share
    return f"{value:.0f} %" if 9.95 <= value < 99.5 or value < 0.05 or value >= 99.95 else f"{value:.1f} %"


def shown(text: str) -> str:
    r"""Text for a terminal's line: what would move its cursor or change its colours is told as `\x1b`, say."""
    return "".join(letter if letter.isprintable() or letter == " " else repr(letter)[1:-1] for letter in text)


def free_name(file: str, suffix: str, taken: set[str]) -> str:
    """A name for what is made of a file: its stem and a suffix, with a number where that is taken already.

    Args:
        file: path.
        suffix: with its dot.
        taken: names that were given before, in lower case; this one is added.
    """
    # So short that a file system takes it with a number and with what is put around it while it is written.
    stem = os.fsdecode(os.fsencode(os.path.splitext(os.path.basename(os.path.normpath(file)))[0] or "file")[:200])
    name, number = f"{stem}{suffix}", 1
    while name.lower() in taken:
        number += 1
        name = f"{stem}-{number}{suffix}"
    taken.add(name.lower())
    return name
