"""Who is probed: front-ends at a random start, built by name, and those of trained models."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gafx.errors import UsageError
from gafx.frontends.base import FrontEnd
from gafx.loading import load
from gafx.model import GAFX, create_frontend
from gafx.registry import FRONTENDS

# Front-ends with a `width` are probed at this one, that of configs/frontend/*_slim, unless another is asked for.
SLIM_WIDTH = 16


@dataclass
class Subject:
    """A front-end to probe, in eval mode.

    Attributes:
        name: on pages and in tables.
        said: how it was built and what its weights are, in words.
        frontend: the front-end itself.
        model: the whole model where it is that of one.
        folder: the run's or model's folder.
        digest: of the arguments and weights that the features depend on.
    """

    name: str
    said: str
    frontend: FrontEnd
    digest: str
    model: GAFX | None = None
    folder: Path | None = None


def cheap(name: str) -> dict[str, Any]:
    """A front-end's arguments for a probe on any machine: width 16 where it has one, else its own defaults.

    `fused` is the log-mel beside a GAFX-R of that width.
    """
    if name == "fused":
        return {"name": name, "parts": {part: cheap(part) for part in ("mel", "gafx_r")}}
    keywords = FRONTENDS.keywords(name)
    return {"name": name, **({"width": SLIM_WIDTH} if "width" in keywords else {})}


def read_frontend(words: str) -> dict[str, Any]:
    """`NAME` or `NAME:KEY=VALUE,KEY=VALUE` as a front-end's name and arguments; values are read as YAML.

    Raises:
        UsageError: an unknown name or argument, or words of another form.
    """
    import yaml

    name, _, rest = words.partition(":")
    FRONTENDS.check_name(name)
    arguments = cheap(name)
    for word in rest.split(",") if rest else []:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UsageError(f"--frontends {words!r}: {word!r} is no argument; write e.g. gafx_r:width=64,norm=group")
        try:
            arguments[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            arguments[key] = value
    return FRONTENDS.check_part(arguments, "frontend")


def random_subject(words: str, seed: int = 0) -> Subject:
    """A front-end by name with the weights it starts from (random ones, by seed, where it has any)."""
    arguments = read_frontend(words)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        front_end = create_frontend(**arguments).eval()
    learns = any(parameter.requires_grad for parameter in front_end.parameters())
    start = "nothing is learned"
    if learns:
        start = "its designed start" if front_end.designed else f"random start, seed {seed}"
    if arguments.get("pretrained", False) is not False:
        start = f"weights: {arguments['pretrained']}"
    return Subject(words, f"{_said(arguments)}; {start}", front_end, _digest(arguments, front_end))


def trained_subject(folder: Path) -> Subject:
    """The model in a run's or a model's folder.

    Raises:
        UsageError: no model there.
    """
    model = load(folder)
    assert model.info is not None
    trained = model.info.training
    where = ", ".join(f"{key} {trained[key]}" for key in ("data", "protocol", "fold", "steps") if key in trained)
    front_end = dict(model.info.frontend)
    said = f"{_said(front_end)}; trained{f' on {where}' if where else ''}"
    name = folder.parent.name if folder.name == "model" and folder.parent.name else folder.name
    digest = _digest({"frontend": front_end, "classifier": model.info.classifier}, model)
    return Subject(name, said, model.frontend, digest, model, folder)


def check_names(subjects: Sequence[Subject]) -> None:
    """Raise `UsageError` unless there are subjects, each with a name of its own."""
    names = [subject.name for subject in subjects]
    if not names:
        raise UsageError(f"nothing to probe: name front-ends (--frontends {' '.join(FRONTENDS.names())}) or --models")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"{', '.join(twice)} is given more than once: name each front-end and each run once")


def _said(arguments: Mapping[str, Any]) -> str:
    """Name and those arguments that are not the defaults."""
    name = str(arguments["name"])
    keywords, nested = FRONTENDS.keywords(name), FRONTENDS.signature(name).nested
    words = []
    for key, value in arguments.items():
        if key in ("name", "pretrained") or (key in keywords and keywords[key].default == value):
            continue
        inner = isinstance(value, Mapping) and key in nested
        words.append(" + ".join(_said(part) for part in value.values()) if inner else f"{key} {value}")
    return f"{name} ({', '.join(words)})" if words else name


def _digest(arguments: Mapping[str, Any], module: nn.Module) -> str:
    """Hash of arguments and weights."""
    hashed = hashlib.blake2b(repr(arguments).encode(), digest_size=12)
    for name, tensor in sorted(module.state_dict().items()):
        hashed.update(name.encode() + str(tensor.dtype).encode() + str(tuple(tensor.shape)).encode())
        hashed.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()
