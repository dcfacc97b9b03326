"""Front-ends to probe: built by name with their initial weights, and those of trained models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch

from gafx.config import parse_values
from gafx.errors import UsageError
from gafx.fitting.features import weights_digest
from gafx.frontends.base import FrontEnd
from gafx.loading import load
from gafx.model import GAFX, create_frontend
from gafx.registry import FRONTENDS

# Front-ends with an argument `width` are probed at this one, that of configs/frontend/*_slim, unless another is given.
SLIM_WIDTH = 16


@dataclass
class Subject:
    """A front-end to probe, in eval mode.

    Attributes:
        name: in tables.
        description: how it was built, and the origin of its weights.
        frontend: the front-end.
        digest: of the arguments and weights that the features depend on.
        model: the whole model, if the front-end is part of a saved one.
        folder: of the run or model.
        device: that front-end and model are on.
    """

    name: str
    description: str
    frontend: FrontEnd
    digest: str
    model: GAFX | None = None
    folder: Path | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def to(self, device: torch.device) -> Self:
        """Move front-end and model to a device; return this subject."""
        (self.model or self.frontend).to(device)
        self.device = device
        return self

    def run_file(self, name: str) -> Path | None:
        """Return the path of a file of the run that the model comes from; None where the folder lacks it."""
        assert self.folder is not None
        paths = (folder / name for folder in (self.folder, self.folder.parent))
        return next((path for path in paths if path.is_file()), None)


def slim(name: str) -> dict[str, Any]:
    """Return a front-end's arguments for a probe on any machine: its defaults, but width 16 for it and its parts."""
    width = {"width": SLIM_WIDTH} if "width" in FRONTENDS.keywords(name) else {}
    parts: Mapping[str, Any] = FRONTENDS.get(name).default_parts  # type: ignore[attr-defined]
    nested = {key: {part: slim(parts[part]["name"]) for part in parts} for key in FRONTENDS.signature(name).nested}
    return {"name": name, **width, **nested}


def read_frontend(text: str) -> dict[str, Any]:
    """Parse `NAME` or `NAME:KEY=VALUE,KEY=VALUE` into a front-end's name and arguments; values are read as YAML.

    Raises:
        UsageError: an unknown name or argument, or text of another form.
    """
    name, _, rest = text.partition(":")
    FRONTENDS.check_name(name)
    values = parse_values(
        rest.split(",") if rest else (), f"--frontends {name}:", "width=64,norm=group", FRONTENDS.keywords(name)
    )
    return FRONTENDS.check_part({**slim(name), **values}, "frontend")


def random_subject(text: str, seed: int = 0) -> Subject:
    """Build a front-end by name with its initial weights (random ones, by seed, where it has any)."""
    arguments = read_frontend(text)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        front_end = create_frontend(**arguments).eval()
    source = front_end.weight_source or front_end.source_of(arguments)
    initial = "designed initial weights" if front_end.designed else f"random weights, seed {seed}"
    start = {"fixed": "no learned weights", "random": initial}
    origin = start.get(source.kind, f"weights: {source.describe()}")
    return Subject(text, f"{_describe(arguments)}; {origin}", front_end, weights_digest(arguments, front_end))


def trained_subject(folder: Path) -> Subject:
    """Load the model in a run's or a model's folder.

    Raises:
        UsageError: no model there.
    """
    model = load(folder)
    assert model.info is not None
    trained, front_end = model.info.training, dict(model.info.frontend)
    data = ", ".join(f"{key} {trained[key]}" for key in ("data", "protocol", "fold", "steps") if key in trained)
    description = f"{_describe(front_end)}; trained{f' on {data}' if data else ''}"
    name = folder.parent.name if folder.name == "model" and folder.parent.name else folder.name
    weights = weights_digest({"frontend": front_end, "classifier": model.info.classifier}, model)
    return Subject(name, description, model.frontend, weights, model, folder)


def check_names(subjects: Sequence[Subject]) -> None:
    """Raise `UsageError` unless there are subjects with distinct names."""
    names = [subject.name for subject in subjects]
    if not names:
        raise UsageError(f"nothing to probe: name front-ends (--frontends {' '.join(FRONTENDS.names())}) or --models")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"{', '.join(twice)} is given more than once: name each front-end and each run once")


def _describe(arguments: Mapping[str, Any]) -> str:
    """Name and arguments that are not the defaults."""
    name = str(arguments["name"])
    keywords, nested = FRONTENDS.keywords(name), FRONTENDS.signature(name).nested
    texts = []
    for key, value in arguments.items():
        if key in ("name", "pretrained") or (key in keywords and keywords[key].default == value):
            continue
        inner = key in nested and isinstance(value, Mapping)
        texts.append(" + ".join(map(_describe, value.values())) if inner else f"{key} {value}")
    return f"{name} ({', '.join(texts)})" if texts else name
