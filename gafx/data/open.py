"""From a configuration to a manifest and its parts."""

from gafx.config import DataConfig
from gafx.data.manifest import Manifest, check_readable
from gafx.data.sources.base import load_manifest
from gafx.data.splits import Split, split
from gafx.errors import UsageError


def open_split(config: DataConfig, *, multi_label: bool, objective: str) -> tuple[Manifest, Split]:
    """Read a data set and divide it by its protocol.

    Args:
        config: which data, which protocol.
        multi_label: whether the objective reads several labels a clip.
        objective: its name, for messages.

    Raises:
        UsageError: see `load_manifest`, `check_readable` and `split`; or labels that the objective cannot read.
    """
    manifest = load_manifest(config.name, config.root, **config.options)
    check_readable(manifest, max_unreadable=config.max_unreadable, strict=config.strict)
    if manifest.multi_label and not multi_label:
        row = int((manifest.labels.lengths() != 1).argmax())
        raise UsageError(
            f"{manifest.relative_path(row)!r} has {len(manifest.labels[row])} labels, and objective {objective!r} "
            "reads exactly one a clip; use objective=tag"
        )
    parts = split(
        manifest,
        config.protocol,
        fold=config.fold,
        folds=config.folds,
        seed=config.split_seed,
        test_share=config.test_share,
        val_share=config.val_share,
    )
    return manifest, parts
