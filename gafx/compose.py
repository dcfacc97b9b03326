"""From YAML groups and command-line overrides to a checked configuration. The only importer of Hydra.

Hydra only composes: its compose interface writes no files, changes no folder and sets up no logging. Keys are checked
afterwards against the dataclasses and the parts' signatures, so that every key can be overridden whether or not a YAML
file names it, and every mistake gets the same kind of message.

YAML files are searched in the user's folder (`--config-dir`) first, then in gafx's own, which a wheel has inside the
package and a clone has at its top level.
"""

import itertools
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from gafx.config import (
    EvaluateConfig,
    TrainConfig,
    build,
    changed_keys,
    nested_keys,
    read_config,
    text_type,
    to_dict,
)
from gafx.errors import UsageError, did_you_mean, require
from gafx.registry import CLASSIFIERS, FRONTENDS, OBJECTIVES, SOURCES, Registry, read_text
from gafx.saving import catalogue

_log = logging.getLogger("gafx")

GROUPS = ("frontend", "classifier", "data", "objective", "experiment", "budget")
# Folders of configs/ that are no groups: tables of runs, and files for launchers.
NOT_GROUPS = ("ablation", "accelerate", "slurm")
_PARTS: dict[str, Registry] = {
    "frontend": FRONTENDS, "classifier": CLASSIFIERS, "objective": OBJECTIVES, "data.options": SOURCES,
}  # fmt: skip
# Of `experiment=small`: the recipe that starts from a published model, and the name of that model.
_SMALL, _PRETRAINED, _PUBLISHED = "experiment=small", "experiment=small_pretrained", "audioset-crnn"
_START = "recipe.start=audioset"  # asks for that model
# Values of the keys of `recipe`, see configs/train.yaml; a part's YAML file tells one of them from all others.
_RECIPE = {
    "size": ("full", "small"), "start": ("own", "imagenet", "audioset", "random"), "gafx_a": ("ours", "plain"),
    "gafx_u": ("random", "released"),
}  # fmt: skip
_LISTED = 12  # keys in a message
_KEY = re.compile(r"(?P<sign>[+~]*)(?P<key>[\w@./-]+)")


@dataclass(frozen=True)
class Composed:
    """A composed configuration.

    Attributes:
        values: plain mapping, as `gafx.config.build` takes it.
        choices: group -> the YAML file chosen from it.
        searched: folders that YAML files were searched in.
    """

    values: dict[str, Any]
    choices: dict[str, str]
    searched: list[Path]


def packaged_configs() -> Path:
    """gafx's own YAML files: inside the installed package, or `configs/` of the clone."""
    package = Path(__file__).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def config_folders(config_dir: Path | None = None) -> list[Path]:
    """Folders that YAML files are searched in, in this order.

    Raises:
        UsageError: `config_dir` is no folder.
    """
    if config_dir is None:
        return [packaged_configs()]
    if not config_dir.is_dir():
        raise UsageError(f"--config-dir {config_dir} is no folder; name one that holds e.g. experiment/mine.yaml")
    return list(dict.fromkeys([config_dir.resolve(), packaged_configs()]))


def group_choices(folders: Sequence[Path]) -> dict[str, list[str]]:
    """Group -> names of its YAML files, in all folders together."""
    groups = [*GROUPS, *(path.name for folder in folders for path in folder.iterdir() if path.is_dir())]
    return {
        group: sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})
        for group in sorted(set(groups) - set(NOT_GROUPS))
    }


def compose_train(overrides: Sequence[str], config_dir: Path | None = None) -> TrainConfig:
    """Compose a training configuration from `train.yaml`, its groups and overrides such as `frontend=mel seed=1`.

    `experiment=small` starts from a published model if that is in the cache, see `with_start`, and the log says so.
    With `extend=<run>` it is that run's, with more epochs or steps.

    Args:
        overrides: in Hydra's syntax; `~key` takes a key out, so that its default holds.
        config_dir: the user's own folder of YAML files.

    Raises:
        UsageError: unknown key, group choice or part; wrong type; malformed override; an extended run that differs in
            more than its length.
    """
    try:
        chosen, reason = with_start(overrides, config_dir)
        if reason:
            _log.info("%s", reason)
        values = compose("train", chosen, config_dir).values
        return build(TrainConfig, values) if not values.get("extend") else _extended(values, chosen, config_dir)
    except UsageError as error:
        swept = [override for override in overrides if "=" in override and _is_sweep(override)]
        if not swept:
            raise
        raise UsageError(f"{error}; to run every value of {swept[0].partition('=')[0]}, add -m") from error


def with_start(overrides: Sequence[str], config_dir: Path | None = None) -> tuple[list[str], str]:
    """Resolve where `experiment=small` starts: from a published model if it is in the cache, otherwise at random.

    A run that was started either way is continued that way, whatever has entered or left the cache since.
    `recipe.start=audioset` asks for the published model, which is then fetched. Other overrides of the front-end, the
    classifier or `recipe` are about the random start, and so is a file of that name in the user's folder.

    Args:
        overrides: as for `compose_train`.
        config_dir: the user's folder.

    Returns:
        the overrides, with `experiment=small_pretrained` instead where that was chosen, and a sentence that says what
        was chosen and why; empty if there was no choice.
    """
    other = [override.lstrip("+~") for override in overrides if override != _SMALL]
    parts = [key for key in other if re.match(r"(frontend|classifier|recipe)[=.@/]", key)]
    own = config_dir is not None and (config_dir / "experiment" / "small.yaml").exists()
    if _SMALL not in overrides or own:
        return list(overrides), ""
    pretrained = [_PRETRAINED if override == _SMALL else override for override in overrides]
    if [each for each in other if each.startswith("recipe.start=")][-1:] == [_START]:
        return pretrained, f"{_SMALL}: is {_PRETRAINED}, since {_START} is given"
    if parts:
        return list(overrides), f"{_SMALL}: starts at random, since {parts[0]} is given"
    published = catalogue.CATALOGUE[_PUBLISHED]
    cached = published.is_cached
    folders = {
        start: build(TrainConfig, compose("train", given, config_dir).values).folder
        for start, given in ((True, pretrained), (False, overrides))
    }
    start = cached
    if folders[not cached].exists() and not folders[cached].exists():
        start = not cached
    why = f"which is {published.cache_state}" if start == cached else f"as {folders[start].name} did"
    if start:
        return pretrained, f"{_SMALL}: starts from {_PUBLISHED}, {why}; at random with recipe.start=random"
    return list(overrides), (
        f"{_SMALL}: starts at random, not from {_PUBLISHED}, {why}; {_PRETRAINED} fetches it (3.3 MB) and starts there"
    )


def _extended(values: dict[str, Any], overrides: Sequence[str], config_dir: Path | None) -> TrainConfig:
    """The configuration that continues a run: the run's own with the given keys, or that of the run's whole command."""
    run = Path(str(values["extend"])).expanduser().absolute()
    if not (run / "config.yaml").is_file():
        raise UsageError(f"extend={run} is no run folder (it lacks config.yaml): name the folder of a finished run")
    before = read_config(run / "config.yaml")
    if not (run / "model").is_dir():
        raise UsageError(f"extend={run}: it is not finished; run its own training command again, which continues it")
    choices = group_choices(config_folders(config_dir))
    forms = [form for override in overrides if (form := _KEY.fullmatch(override.partition("=")[0]))]
    given = {**values, "extend": str(run)}
    # A group sets many keys, and does not say which: with one, the overrides are the run's whole command.
    whole = any(form["key"].partition("@")[0] in choices or form["key"].startswith("recipe.") for form in forms)
    if not whole:
        given = to_dict(before) | {"output_dir": str(run.parent), "extend": str(run)}
        for *groups, name in (form["key"].split(".") for form in forms if form["key"] != "extend"):
            source, target = values, given
            for group in groups:
                source, target = source.get(group, {}), target.setdefault(group, {})
            target.pop(name, None)
            if name in source:
                target[name] = source[name]
    config = build(TrainConfig, given)
    length = {key: (getattr(before, key), getattr(config, key)) for key in ("epochs", "max_steps")}
    if changed := {key: pair for key, pair in changed_keys(before, config).items() if key not in length}:
        listed = [f"{key} was {old} and is {new}" for key, (old, new) in changed.items()]
        more = f"; and {len(listed) - _LISTED} more keys" if len(listed) > _LISTED else ""
        cure = "give the run's whole command, or no group at all" if whole else "leave these out"
        raise UsageError(
            f"extend={run} continues that run with more epochs or max_steps, all else equal, but "
            f"{'; '.join(listed[:_LISTED])}{more}: {cure}, or start a new run without extend"
        )
    most = [float("inf") if value is None else value for value in length["max_steps"]]
    if not (length["epochs"][1] > length["epochs"][0] or most[1] > most[0]):
        raise UsageError(
            f"extend={run}: the run has had its epochs={before.epochs}"
            f"{'' if before.max_steps is None else f' max_steps={before.max_steps}'}: set more, e.g. "
            f"epochs={2 * before.epochs}"
        )
    return config


def compose_evaluate(overrides: Sequence[str], config_dir: Path | None = None) -> EvaluateConfig:
    """Compose an evaluation configuration from `evaluate.yaml` and overrides; see `compose_train`."""
    return build(EvaluateConfig, compose("evaluate", overrides, config_dir).values)


def compose(name: str, overrides: Sequence[str], config_dir: Path | None = None) -> Composed:
    """Compose `<name>.yaml` of the first folder that has it."""
    require("hydra", f"gafx {name}")
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    folders = config_folders(config_dir)
    choices = group_choices(folders)
    prepared: list[str] = []
    texts: dict[str, Any] = {}
    for override in overrides:
        key, value, annotation = _text_override(override)
        texts.pop(key, None)  # the last of several counts
        if annotation is None:
            prepared += _prepare(override, choices)
        else:
            _prepare(f"{override.partition('=')[0]}=''", choices)  # checks its form
            texts[key] = read_text(value, annotation)
    _plugin().folders = folders[1:]
    OmegaConf.register_new_resolver("choose", _choose, replace=True)
    OmegaConf.register_new_resolver("samples", _samples, replace=True)
    OmegaConf.register_new_resolver("hop", _hop, replace=True)
    try:
        with initialize_config_dir(str(folders[0]), version_base="1.3"):
            config = hydra_compose(name, prepared, return_hydra_config=True)
            chosen = dict(config.hydra.runtime.choices)
            OmegaConf.set_struct(config, False)
            del config.hydra
            for key, value in texts.items():
                OmegaConf.update(config, key, value, force_add=True)
            values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = error.full_key or "a key"
        raise UsageError(f"{key} is missing and has no default; add {key}=... to the command") from error
    except (HydraException, OmegaConfBaseException) as error:
        hint = (
            "; to have ${ literally in a text, write \\${" if any("${" in str(text) for text in texts.values()) else ""
        )
        raise UsageError(f"the configuration cannot be composed: {' '.join(str(error).split())}{hint}") from error
    finally:
        _plugin().folders = []
    assert isinstance(values, dict)
    _check_recipe(values.pop("recipe", {}))
    groups = {group: str(choice) for group, choice in chosen.items() if group in choices and choice is not None}
    return Composed({str(key): value for key, value in values.items()}, groups, folders)


@cache
def _plugin() -> Any:
    """Hydra's hook that appends search folders behind the main one, which its own option cannot do for `train.yaml`."""
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class Folders(SearchPathPlugin):
        folders: Sequence[Path] = ()

        def manipulate_search_path(self, search_path: Any) -> None:
            for folder in type(self).folders:
                search_path.append("gafx", f"file://{folder}")

    Plugins.instance().register(Folders)
    return Folders


def sweep(overrides: Sequence[str], config_dir: Path | None = None) -> list[list[str]]:
    """The overrides of each run of a multirun: all combinations of `seed=0,1`, `choice()`, `range()` and `glob()`.

    Raises:
        UsageError: an override that is malformed, or a sweep without a finite list of values.
    """
    require("hydra", "gafx train")
    from hydra.core.override_parser.types import Glob

    choices = group_choices(config_folders(config_dir))
    axes = []
    for override in overrides:
        parsed = _parse(override)
        if parsed is None or not parsed.is_sweep_override():
            axes.append([override])
        elif parsed.is_discrete_sweep():
            value = parsed.value()
            names = choices.get(parsed.key_or_group, [])
            typed = override.partition("=")[2]
            listed = re.fullmatch(r"choice\((.*)\)|(?!\w+\()(.*)", typed, re.DOTALL)
            if _text_override(override)[2] is not None and listed:
                values = [item.strip() for item in re.findall(r"'[^']*'|\"[^\"]*\"|[^,]+", listed[1] or listed[2])]
            else:
                values = value.filter(names) if isinstance(value, Glob) else parsed.sweep_string_iterator()
            axes.append([f"{parsed.get_key_element()}={value}" for value in values])
        else:
            raise UsageError(
                f"{override!r} has no list of values to run: write key=a,b or key=range(1,4); optimising sweepers are "
                "not supported"
            )
    return [list(combination) for combination in itertools.product(*axes)]


def _text_override(override: str) -> tuple[str, str, Any]:
    """Key, value and type of an override of a text key, whose value is kept as typed; the type is None for other keys.

    Hydra would read `1.10` as a number and drop backslashes. Quotes around the whole value are removed, as Hydra does.
    """
    name, equals, value = override.partition("=")
    key = name.lstrip("+~")
    annotation = text_type(key) if equals and "~" not in name else None
    if re.fullmatch(r"'[^']*'|\"[^\"]*\"", value):
        return key, value[1:-1], str if annotation is not None else None
    return key, value, annotation


def _prepare(override: str, choices: dict[str, list[str]]) -> list[str]:
    """Check an override's form and group choice, and let it add keys that no YAML file names."""
    name, equals, value = override.partition("=")
    form = _KEY.fullmatch(name)
    if form is None or not (equals or "~" in form["sign"]):
        raise UsageError(
            f"{override!r} is no override; write key=value, e.g. {GROUPS[0]}=... or seed=1, without spaces around '='"
        )
    key = form["key"]
    if re.match(r"hydra[./]", key) or key == "hydra":
        raise UsageError(
            f"{override}: gafx names its run folders itself and has no sweeper or launcher plugins; use -m for a "
            "product of values, or gafx ablate for a table of runs, several at a time"
        )
    if key.startswith("recipe.") or (key in choices and "~" in form["sign"]):
        return [override]
    if key in choices:
        if value not in choices[key] and value not in ("null", ""):
            hint = did_you_mean(value, choices[key]) or ";"
            raise UsageError(
                f"unknown {key} {value!r}{hint} choose one of: {', '.join(choices[key])} (files of {key}/ in the "
                "configurations)"
            )
        return [override if key in GROUPS or form["sign"] else f"+{override}"]
    if "~" in form["sign"]:
        _check_known(key)
        # Hydra deletes only what a YAML file names; a key that is at its default is added first.
        return [override] if equals else [f"++{key}={{}}", override]
    return [_quoted(override if form["sign"] else f"++{override}")]


def _check_known(key: str) -> None:
    """Raise `UsageError` where a key to take out is no key of the configuration nor an argument of any part."""
    known = {**nested_keys(TrainConfig), **nested_keys(EvaluateConfig), "recipe": ""}
    for group, registry in _PARTS.items():
        known |= {f"{group}.{keyword}": "" for name in registry.names() for keyword in registry.keywords(name)}
    nested = key.startswith(("frontend.parts.", "data.options."))
    if key not in known and not nested:
        raise UsageError(f"unknown key {key} in ~{key}{did_you_mean(key, known) or '; gafx train --help lists them'}")


def _check_recipe(recipe: dict[str, Any]) -> None:
    """Raise `UsageError` for a value that no part knows: it would have the effect of another one."""
    for key, choices in _RECIPE.items():
        value = recipe.get(key, choices[0])
        if value not in choices:
            hint = did_you_mean(str(value), choices) or ";"
            raise UsageError(f"unknown recipe.{key}={value}{hint} choose one of: {', '.join(choices)}")


def _choose(value: Any, *cases: Any) -> Any:
    """Resolver `${choose:value,case,result,...,else}`: the result of the case that equals the value."""
    for case, result in zip(cases[::2], cases[1::2], strict=False):
        if value == case:
            return result
    return cases[-1]


def _samples(milliseconds: float, sample_rate: int) -> int:
    """Resolver `${samples:milliseconds,sample_rate}`: a length in samples, rounded to a multiple of 16."""
    return round(milliseconds * sample_rate / 16_000) * 16


def _hop(seconds: float, sample_rate: int, frames: int) -> int:
    """Resolver `${hop:seconds,sample_rate,frames}`: the hop in samples that gives a clip about so many frames."""
    return math.ceil(seconds * sample_rate / frames)


def _parse(override: str) -> Any:
    """An override parsed by Hydra, or `None` where its value is not in Hydra's grammar."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        return None


def _is_sweep(override: str) -> bool:
    parsed = _parse(override)
    return parsed is not None and parsed.is_sweep_override()


def _quoted(override: str) -> str:
    """Quote a value that Hydra's grammar does not read as one: `My Music (live)`, `a,b`, a regular expression."""
    if _parse(override) is not None and not _is_sweep(override):
        return override
    key, _, value = override.partition("=")
    return f"{key}={_quote(value)}"


def _quote(value: str) -> str:
    escaped = value.replace("'", "\\'")
    return f"'{escaped}'"
