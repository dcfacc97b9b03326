"""Base of front-ends and classifiers: the properties of a part that the rest of gafx reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from gafx.saving.info import WeightSource


class Part(nn.Module):
    """A front-end or a classifier.

    Attributes:
        renamed: earlier names of arguments -> their names. Saved models are read under either; in a configuration the
            earlier one is an error that names the new one. A literal, since it is read without importing the module.
        hash_if_changed: arguments that were added in a later version: they enter a run's id only where they differ from
            their default, so that earlier runs keep their id. A literal, as `renamed`.
        published: values of the argument `pretrained` that select published weights -> their name in reports, e.g.
            `{True: "ImageNet"}`.
        fsdp_units: classes of its modules that FSDP shards as units of their own; all else is part of one more unit.
        fixed_length: reason why an exported model accepts one length only; None if it accepts others.
        not_exportable: reason why a model with it cannot be exported; None if it can be.
        designed: whether its initial weights are computed, e.g. as mel filters, rather than random.
        weight_source: origin of the weights, set when they are read from a file; None at a random start.
    """

    renamed: ClassVar[Mapping[str, str]] = {}
    hash_if_changed: ClassVar[tuple[str, ...]] = ()
    published: ClassVar[Mapping[bool | str, str]] = {}
    fsdp_units: tuple[type[nn.Module], ...] = ()
    fixed_length: str | None = None
    not_exportable: str | None = None
    designed: bool = False
    weight_source: WeightSource | None = None

    @classmethod
    def source_of(cls, arguments: Mapping[str, Any]) -> WeightSource:
        """Return the origin of the weights of a part with these arguments, without building it."""
        return WeightSource.from_argument(arguments.get("pretrained", False), cls.published)

    def record_source(self, path: Path, asked: object) -> None:
        """Set `weight_source`: weights were read from `path`, which the user named `asked`."""
        self.weight_source = WeightSource.from_file(path, asked, self.published)

    def no_weight_decay(self) -> set[str]:
        """Return names of parameters with two or more dimensions that take no weight decay; smaller ones never do."""
        return set()
