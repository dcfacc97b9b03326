"""From YAML groups and command-line overrides to a checked configuration. The only importer of Hydra.

Hydra composes and nothing else: its compose interface writes no files, changes no folder and sets no logging up. Keys
are checked afterwards against the dataclasses and the parts' signatures, so every key can be overridden whether or not
a YAML file names it, and every mistake gets the same kind of message.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gafx.config import EvaluateConfig, TrainConfig, build
from gafx.errors import UsageError, did_you_mean

GROUPS = ("frontend", "classifier", "data", "objective", "experiment", "budget")


def compose_train(overrides: Sequence[str], config_folder: Path) -> TrainConfig:
    """Compose a training configuration from `train.yaml`, its groups and overrides such as `frontend=mel seed=1`.

    Raises:
        UsageError: unknown key, group choice or part; wrong type; malformed override.
    """
    return build(TrainConfig, compose("train", overrides, config_folder))


def compose_evaluate(overrides: Sequence[str], config_folder: Path) -> EvaluateConfig:
    """Likewise for `evaluate.yaml`."""
    return build(EvaluateConfig, compose("evaluate", overrides, config_folder))


def compose(name: str, overrides: Sequence[str], config_folder: Path) -> dict[str, Any]:
    """Compose `<config_folder>/<name>.yaml` as a plain mapping."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    if not (config_folder / f"{name}.yaml").is_file():
        raise UsageError(
            f"{config_folder} holds no {name}.yaml; run from a checkout of gafx, where configs/ lies beside train.py"
        )
    prepared = [_prepare(override, config_folder) for override in overrides]
    try:
        with initialize_config_dir(str(config_folder.resolve()), version_base="1.3"):
            config = hydra_compose(name, prepared)
            values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = error.full_key or "a key"
        raise UsageError(f"{key} is missing: what was chosen leaves it to you; add {key}=... to the command") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(f"the configuration cannot be composed: {' '.join(str(error).split())}") from error
    assert isinstance(values, dict)
    return values  # type: ignore[return-value]


def _prepare(override: str, config_folder: Path) -> str:
    """Check an override's form and group choice, and let it add keys that no YAML file names."""
    key, equals, value = override.partition("=")
    if not equals or not re.fullmatch(r"[+~]*[\w@./-]+", key):
        keys = [f"{group}=..." for group in GROUPS]
        raise UsageError(
            f"{override!r} is no override; write key=value, e.g. {keys[0]} or seed=1, without spaces around '='"
        )
    if key in GROUPS:
        folder = config_folder / key
        choices = sorted(path.stem for path in folder.glob("*.yaml"))
        if value not in choices and value not in ("null", ""):
            hint = did_you_mean(value, choices) or ";"
            raise UsageError(
                f"unknown {key} {value!r}{hint} choose one of: {', '.join(choices)} (files of {folder.name}/ in "
                f"{config_folder.name}/)"
            )
        return override
    return _quoted(override if key[0] in "+~" else f"++{override}")


def _quoted(override: str) -> str:
    """Quote a value that Hydra's grammar does not read as one: `My Music (live)`, `a,b`, a regular expression."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        if not OverridesParser.create().parse_override(override).is_sweep_override():
            return override
    except HydraException:
        pass
    key, _, value = override.partition("=")
    escaped = value.replace("'", "\\'")
    return f"{key}='{escaped}'"
