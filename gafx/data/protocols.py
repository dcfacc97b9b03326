"""Evaluation protocols: how a data set is divided into training, validation and test part, as facts and as text.

A protocol is a scheme, with or without a validation part cut from the training recordings:

`paper`           a stratified fraction (20 %) tests, drawn by seed (GAFX section 4.1.1)
`kfold`           stratified folds drawn by seed; fold k is the test part
`official`        the data set's own folds or parts
`fault_filtered`  GTZAN without its known faults: published training, validation and test parts, the rest is left out
`*_val`           one of the first three with a validation part, drawn by seed

`gafx.data.splits` draws the parts. This module imports neither numpy nor the configuration, so that both can use it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from gafx.errors import UsageError, did_you_mean
from gafx.report.format import fraction

Scheme = Literal["paper", "kfold", "official", "fault_filtered"]

_DESCRIPTIONS: dict[Scheme, str] = {
    "paper": "{train} of the tracks train and {test} test, drawn by seed and stratified by class",
    "kfold": "stratified folds by seed, each tested once by a model trained on the others, all tracks pooled",
    "official": "the data set's own folds or parts",
    "fault_filtered": "GTZAN without its known faults: 443 training, 197 validation and 290 test tracks, as published",
}


@dataclass(frozen=True)
class Protocol:
    """One protocol.

    Attributes:
        name: as in `data.protocol`.
        scheme: how the test part is found.
        draws_validation: whether a validation part is cut from the training recordings by seed (`*_val`).
    """

    name: str
    scheme: Scheme
    draws_validation: bool = False

    @classmethod
    def parse(cls, name: str, key: str = "data.protocol") -> "Protocol":
        """Return the protocol of this name; `key` is where the name was given, for the error.

        Raises:
            UsageError: there is none.
        """
        if name not in PROTOCOLS:
            hint = did_you_mean(name, PROTOCOLS) or ";"
            raise UsageError(f"unknown {key} {name!r}{hint} choose one of: {', '.join(PROTOCOLS)}")
        return PROTOCOLS[name]

    @property
    def draws_test(self) -> bool:
        """True if the test part is drawn at random, not published with the data set."""
        return self.scheme in ("paper", "kfold")

    @property
    def is_seeded(self) -> bool:
        """True if the parts depend on `data.split_seed`."""
        return self.draws_test or self.draws_validation

    @property
    def has_validation(self) -> bool:
        """True if there is a validation part to choose the epoch and the temperature on."""
        return self.draws_validation or self.scheme == "fault_filtered"

    @property
    def has_folds(self) -> bool:
        """True if `data.fold` can choose the test part; of `official`, whether it does depends on the data set."""
        return self.scheme in ("kfold", "official")

    @property
    def settings(self) -> tuple[str, ...]:
        """Keys of `data`, besides `fold`, that the parts depend on."""
        drawn = {"paper": ("test_fraction",), "kfold": ("folds",)}.get(self.scheme, ())
        validation = ("val_fraction",) if self.draws_validation else ()
        return (*(("split_seed",) if self.is_seeded else ()), *drawn, *validation)

    @property
    def with_validation(self) -> str:
        """Name of the protocol of this scheme that has a validation part."""
        return self.name if self.has_validation else f"{self.scheme}_val"

    def folds(self, count: int, official: Sequence[int] | Callable[[], Sequence[int]] = ()) -> list[int]:
        """Return the numbers of the folds, counted from 1; none where the protocol has no folds.

        Args:
            count: `data.folds`, used by `kfold`.
            official: the data set's own fold numbers, or a function that reads them; used by `official` alone.
        """
        if self.scheme == "kfold":
            return list(range(1, count + 1))
        if self.scheme == "official":
            return list(official() if callable(official) else official)
        return []

    def check_fold(self, fold: int, count: int) -> None:
        """Refuse a `data.fold` that the protocol cannot have, as far as is known without the data set.

        Raises:
            UsageError: it has no folds, or not so many.
        """
        if self.scheme == "kfold" and not 1 <= fold <= count:
            raise UsageError(f"data.fold={fold} must be between 1 and data.folds={count}; folds are counted from 1")
        if self.scheme == "paper" and fold != 1:
            raise UsageError(
                f"data.fold={fold}: protocol {self.name!r} has no folds; for another split set data.split_seed"
            )
        if self.scheme == "fault_filtered" and fold != 1:
            raise UsageError(f"data.fold={fold}: protocol {self.name!r} has parts, not folds; leave data.fold at 1")

    def label(self, split_seed: int | None) -> str:
        """Return `protocol <name>`, with the split seed where the parts depend on it."""
        return f"protocol {self.name}" + (f" (split seed {split_seed})" if self.is_seeded else "")

    def describe(self, *, test_fraction: float = 0.2, val_fraction: float = 0.1) -> str:
        """Return the name and one clause on each part, e.g. for the notes below a table."""

        train, test = fraction(1 - test_fraction, 0), fraction(test_fraction, 0)
        text = _DESCRIPTIONS[self.scheme].format(train=train, test=test)
        if self.draws_validation:
            text += f"; {fraction(val_fraction, 0)} of the training recordings validate"
        elif not self.has_validation:
            text += "; no validation part"
        return f"{self.name}: {text}"


_DRAWN: tuple[Scheme, ...] = ("paper", "kfold", "official")
_ALL = [Protocol(scheme + "_val" * draws, scheme, draws) for scheme in _DRAWN for draws in (False, True)]
PROTOCOLS = {protocol.name: protocol for protocol in (*_ALL, Protocol("fault_filtered", "fault_filtered"))}


def comparability(data: str, protocol: str, published_data: str | None, published_protocol: str | None) -> str:
    """Describe why published numbers cannot be compared with ours; empty where data and protocol are the same.

    Args:
        data: name of the data set of our numbers.
        protocol: of our numbers.
        published_data: data set of the published ones; `None` where it is not known.
        published_protocol: any text that describes their protocol; `None` where it is not known.
    """
    if published_data is not None and published_data != data:
        return (
            f"The published numbers were measured on {published_data}, ours on {data}: there is nothing to compare "
            "between them."
        )
    if published_protocol is None:
        return "Under which protocol the published numbers were measured is not known here, so nothing can be compared."
    if protocol == published_protocol:
        return ""
    text = (
        f"The published numbers were measured under {published_protocol}, ours under {protocol}: other test tracks, "
        "and another number of training tracks. A difference between them is no evidence about the models."
    )
    if data != "gtzan":
        return text
    return (
        f"{text} How much a protocol alone can be worth on GTZAN: the same features and classifier (Jukebox and an "
        "SVM) are reported at 92.5 % in random 10-fold and at 79.7 % on the fault-filtered parts, since replicas, "
        "versions and tracks of one artist are in both parts of a random split."
    )
