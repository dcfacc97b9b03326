"""From a configuration to a manifest, its parts and a reader of its clips."""

import sys
from pathlib import Path

from gafx.config import DataConfig
from gafx.data.manifest import Manifest, Skipped, check_readable
from gafx.data.packing.cache import Cache, CacheReader, cache_folder
from gafx.data.packing.pack import pack
from gafx.data.readers import FileReader, Reader
from gafx.data.segments import by_segment
from gafx.data.sources.base import load_manifest
from gafx.data.splits import Split, split
from gafx.errors import UsageError


def open_split(
    config: DataConfig, *, multi_label: bool, objective: str, reads_labels: bool = True
) -> tuple[Manifest, Split]:
    """Read a data set and divide it by its protocol.

    Args:
        config: which data, which protocol.
        multi_label: whether the objective reads several labels a clip.
        objective: its name, for messages.
        reads_labels: whether it reads labels at all; if not, the data need no two classes.

    Raises:
        UsageError: see `load_manifest`, `check_readable` and `split`; or labels that the objective cannot read.
    """
    manifest = load_manifest(config.name, config.root, download=config.download, **config.options)
    check_readable(manifest, max_unreadable=config.max_unreadable, strict=config.strict)
    if manifest.multi_label and not multi_label:
        row = int((manifest.labels.lengths() != 1).argmax())
        raise UsageError(
            f"{manifest.relative_path(row)!r} has {len(manifest.labels[row])} labels, and objective {objective!r} "
            "reads exactly one a clip; use objective=tag"
        )
    if config.group_by == "segment":
        manifest = by_segment(manifest, config.segment_seconds)
    parts = split(
        manifest,
        config.protocol,
        fold=config.fold,
        folds=config.folds,
        seed=config.split_seed,
        test_fraction=config.test_fraction,
        val_fraction=config.val_fraction,
        labels=reads_labels,
        every_class=not multi_label,
    )
    return manifest, parts


def open_reader(
    config: DataConfig, manifest: Manifest, *, sample_rate: int, channels: int, build: bool
) -> tuple[Reader, tuple[Skipped, ...]]:
    """The reader that a configuration asks for, and the clips that it already knows to be unreadable.

    Without `data.cache` the files are read. With it the packed cache is; where there is none it is packed first
    (`build`), or the files are read after all, with a warning.

    Args:
        config: which data.
        manifest: of these data.
        sample_rate: that the model reads, in Hz.
        channels: that the model reads.
        build: whether a missing cache is to be packed.

    Raises:
        UsageError: the cache is stale, damaged or of other data, or cannot be written; see also `check_readable`.
    """
    if config.cache is None:
        return FileReader(manifest, sample_rate, channels), ()
    folder = Path(config.cache).expanduser()
    if build:
        cache = pack(manifest, folder, sample_rate=sample_rate, channels=channels)
    elif (target := cache_folder(folder, sample_rate, channels)).is_dir():
        cache = Cache(target)
    else:
        print(
            f"warning: the cache {target} is gone; the files are read instead, which differs from it by the rounding "
            "to 16 bit and, where files are partly damaged, by the clips that count",
            file=sys.stderr,
        )
        return FileReader(manifest, sample_rate, channels), ()
    reader = CacheReader(cache, manifest)
    unreadable = tuple(Skipped(manifest.relative_path(row), why) for row, why in sorted(reader.unreadable.items()))
    check_readable(
        manifest, max_unreadable=config.max_unreadable, strict=config.strict, skipped=[*manifest.skipped, *unreadable]
    )
    return reader, unreadable
