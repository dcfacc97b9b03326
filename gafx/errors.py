"""Errors that are meant for the person at the keyboard: one sentence with the value, the choices and the cure."""

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """A value from outside (configuration, command line, file, folder) that cannot be used.

    The scripts print its message as one sentence and exit with status 2; in library use it is a plain `ValueError`.
    """


class UnreadableAudio(UsageError):
    """An audio file that cannot be decoded, or whose samples cannot be used. The message is the reason alone."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the closest choice, or an empty string where nothing is close."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
