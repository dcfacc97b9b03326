"""Open the data of a configuration: manifest, split and reader."""

import logging
from pathlib import Path

from gafx.config import DataConfig
from gafx.data.manifest import Manifest, Skipped, check_readable
from gafx.data.midi import TokenReader
from gafx.data.packing.cache import Cache, CacheReader, cache_folder
from gafx.data.packing.pack import pack
from gafx.data.readers import FileReader, Reader
from gafx.data.segments import by_segment
from gafx.data.sources.base import load_manifest
from gafx.data.splits import Split, split
from gafx.errors import UsageError
from gafx.midi.tokens import TOKEN_RATE

# A data set up to this size, decoded, is kept in memory while training: 50 minutes of mono at 44.1 kHz.
_KEPT_BYTES = 2**29

_log = logging.getLogger("gafx")


def open_split(
    config: DataConfig, *, multi_label: bool, objective: str, reads_labels: bool = True
) -> tuple[Manifest, Split]:
    """Read a data set and divide it by its protocol.

    Args:
        config: data set and protocol.
        multi_label: whether the objective accepts several labels per clip.
        objective: its name, for messages.
        reads_labels: whether the objective uses labels at all; if not, one class is enough.

    Raises:
        UsageError: see `load_manifest`, `check_readable` and `split`; or labels that the objective does not accept.
    """
    manifest = load_manifest(config.name, config.root, download=config.download, **config.options)
    check_readable(manifest, max_unreadable=config.max_unreadable, strict=config.strict)
    if manifest.scheme:
        _check_midi(config, objective, reads_labels=reads_labels)
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
        train_clips=config.train_clips,
        labels=reads_labels,
        every_class=not multi_label,
    )
    return manifest, parts


def open_reader(
    config: DataConfig, manifest: Manifest, *, sample_rate: int, channels: int, build: bool
) -> tuple[Reader, tuple[Skipped, ...]]:
    """Return the reader of a configuration, and the clips already known to be unreadable.

    Without `data.cache` it reads the files, with it the packed cache. A missing cache is packed first (`build`) or
    replaced by the files, with a warning.

    Args:
        config: of the data.
        manifest: of these data.
        sample_rate: of the model, in Hz.
        channels: of the model.
        build: whether to pack a missing cache.

    Raises:
        UsageError: the cache is out of date, damaged or of other data, or cannot be written; see also `check_readable`.
    """
    if config.cache is None:
        return file_reader(manifest, sample_rate, channels, keep_bytes=_KEPT_BYTES if build else 0), ()
    folder = Path(config.cache).expanduser()
    if build:
        cache = pack(manifest, folder, sample_rate=sample_rate, channels=channels)
    elif (target := cache_folder(folder, sample_rate, channels)).is_dir():
        cache = Cache(target)
    else:
        _log.warning(
            "the cache %s does not exist any more; the audio files are read instead, which differs by the rounding to "
            "16 bit and, where files are partly damaged, by the clips that count",
            target,
        )
        return FileReader(manifest, sample_rate, channels), ()
    reader = CacheReader(cache, manifest)
    unreadable = tuple(Skipped(manifest.relative_path(row), why) for row, why in sorted(reader.unreadable.items()))
    check_readable(
        manifest, max_unreadable=config.max_unreadable, strict=config.strict, skipped=[*manifest.skipped, *unreadable]
    )
    return reader, unreadable


def file_reader(manifest: Manifest, sample_rate: int, channels: int, *, keep_bytes: int = 0) -> Reader:
    """Return the reader of a data set's files, audio or MIDI.

    Args:
        manifest: the data set.
        sample_rate: of the model, in Hz; `TOKEN_RATE` of a model of tokens.
        channels: of the model.
        keep_bytes: of audio, see `FileReader`.

    Raises:
        UsageError: a model of waves and MIDI files, or a model of tokens and audio.
    """
    if manifest.scheme and sample_rate == TOKEN_RATE:
        return TokenReader(manifest)
    if sample_rate == TOKEN_RATE:
        raise UsageError(
            f"frontend=tokens reads MIDI, and {manifest.root} holds audio: name a folder of MIDI files with data=midi"
        )
    return FileReader(manifest, sample_rate, channels, keep_bytes=keep_bytes)


def _check_midi(config: DataConfig, objective: str, *, reads_labels: bool) -> None:
    """Raise `UsageError` for settings that MIDI files do not have."""
    if reads_labels:
        raise UsageError(
            f"objective={objective} learns labels, and data={config.name} has none: objective=likelihood learns the "
            "tokens themselves"
        )
    if config.group_by == "segment":
        raise UsageError(f"data.group_by=segment cuts audio: data={config.name} is split by piece (recording)")
    if config.cache is not None:
        raise UsageError(
            f"data.cache={config.cache} keeps audio, and tokens of MIDI need none: leave it out (data.cache=null)"
        )
