"""Facts and texts of the protocols; what they draw is tested in test_splits.py."""

import subprocess
import sys

import pytest

from gafx.config import DataConfig
from gafx.data.protocols import PROTOCOLS, Protocol, comparability
from gafx.errors import UsageError


def test_names_and_facts():
    assert [(p.name, p.scheme, p.is_seeded, p.has_validation, p.has_folds) for p in PROTOCOLS.values()] == [
        ("paper", "paper", True, False, False),
        ("paper_val", "paper", True, True, False),
        ("kfold", "kfold", True, False, True),
        ("kfold_val", "kfold", True, True, True),
        ("official", "official", False, False, True),
        ("official_val", "official", True, True, True),
        ("fault_filtered", "fault_filtered", False, True, False),
    ]
    assert PROTOCOLS["kfold"].with_validation == PROTOCOLS["kfold_val"].with_validation == "kfold_val"
    assert PROTOCOLS["fault_filtered"].with_validation == "fault_filtered"


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=str)
def test_settings_are_keys_of_the_data(protocol):
    assert set(protocol.settings) <= set(DataConfig.__dataclass_fields__)
    assert ("split_seed" in protocol.settings) == protocol.is_seeded
    assert ("val_fraction" in protocol.settings) == protocol.draws_validation


def test_folds():
    assert PROTOCOLS["kfold_val"].folds(3, [7]) == [1, 2, 3]
    assert PROTOCOLS["official"].folds(3, [2, 4]) == PROTOCOLS["official"].folds(3, lambda: [2, 4]) == [2, 4]
    assert PROTOCOLS["official"].folds(3) == []  # a data set with parts

    def unread() -> list[int]:
        raise AssertionError("the data set need not be read")

    assert PROTOCOLS["paper"].folds(3, unread) == PROTOCOLS["fault_filtered"].folds(3, unread) == []
    PROTOCOLS["kfold"].check_fold(3, 3)
    for name, fold, message in (
        ("kfold", 4, r"data.fold=4 .* data.folds=3"),
        ("paper_val", 2, "'paper_val' has no folds"),
        ("fault_filtered", 2, "parts, not folds"),
    ):
        with pytest.raises(UsageError, match=message):
            PROTOCOLS[name].check_fold(fold, 3)


def test_texts():
    assert Protocol.parse("kfold_val").label(3) == "protocol kfold_val (split seed 3)"
    assert Protocol.parse("official").label(3) == "protocol official"
    described = Protocol.parse("paper_val").describe(test_fraction=0.5, val_fraction=0.07)
    assert described.startswith("paper_val: 50 % of the tracks train and 50 % test, ")
    assert described.endswith("7 % of the training recordings validate")
    assert Protocol.parse("kfold").describe().endswith("no validation part")
    assert "validate" not in Protocol.parse("fault_filtered").describe()
    with pytest.raises(UsageError, match="--protocol 'kfolds'; did you mean 'kfold'"):
        Protocol.parse("kfolds", "--protocol")


def test_comparability():
    assert "measured on gtzan, ours on esc" in comparability("esc", "kfold", "gtzan", "kfold")
    assert "is not known here" in comparability("gtzan", "paper", "gtzan", None)
    assert comparability("gtzan", "paper", "gtzan", "paper") == ""
    assert "79.7 %" in comparability("gtzan", "paper", "gtzan", "random 10-fold")
    assert "79.7 %" not in comparability("esc", "paper", "esc", "random 10-fold")


def test_imports_no_numpy():
    code = "import sys, gafx.data.protocols; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
