"""Words of a command line that several commands read alike."""

from collections.abc import Sequence

from gafx.errors import UsageError


def read_options(words: Sequence[str]) -> dict[str, object]:
    """`key=value` words as a mapping; values are read as YAML, as on train.py's command line."""
    import yaml

    options: dict[str, object] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UsageError(f"--option {word!r} is no option; write KEY=VALUE, e.g. --option csv=list.csv")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            options[key] = value
    return options
