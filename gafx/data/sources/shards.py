"""Audio in Parquet shards, in the layout that Hugging Face `datasets` uses.

Layout: `<root>/any/depth/train-00000-of-00002.parquet`, `test-...`, or folders named `train`, `test`, ...; a column of
audio (struct{bytes, path}, or binary) and one of labels: class numbers, strings, or lists of either. The parts come
from the names of files and folders; if all have the same, there are no parts.

Shards are indexed once (`gafx.data.shards.index`); after that, opening takes the same time for any number of rows.
"""

from dataclasses import replace
from pathlib import Path

from gafx.data.download.install import install_from_hub
from gafx.data.manifest import Manifest
from gafx.data.shards.index import Selection, open_shards
from gafx.data.shards.layout import absent_shards, listed_reasons, part_of, shard_files
from gafx.data.sources.base import downloadable, require_root
from gafx.errors import UsageError
from gafx.registry import SOURCES

HOW = (
    "It must hold Parquet shards with audio in them (<root>/data/train-00000-of-00002.parquet, ...), as "
    "Dataset.push_to_hub of `datasets` and gafx pack --shards write them; with data.options.repo=<owner>/<name>, "
    "data.download=true fetches them from the Hugging Face hub into a new folder"
)


def download(root: Path, *, repo: str | None, config: str | None, revision: str | None) -> None:
    """Download the Parquet files of a data set on the hub into `root` unless it exists."""
    if repo is None:
        raise UsageError("data.download=true needs data.options.repo=<owner>/<name>: the data set on the hub")
    install_from_hub(repo, root, lambda files: _choose(files, repo, config), revision=revision)


def _choose(files: list[str], repo: str, config: str | None) -> list[str]:
    """Return the Parquet files of one configuration."""
    found = [path for path in files if path.lower().endswith(".parquet")]
    # Top-level folders that name neither a part nor are the usual `data`.
    folders = sorted(
        {path.split("/")[0] for path in found if "/" in path and part_of(path.split("/")[0]) < 0} - {"data"}
    )
    if config is not None:
        found = [path for path in found if f"/{path}".startswith(f"/{config.strip('/')}/")]
    elif len(folders) > 1:
        raise UsageError(
            f"data set {repo!r} has several configurations: choose one with data.options.config: {', '.join(folders)}"
        )
    if not found:
        raise UsageError(
            f"data set {repo!r} has no Parquet file{f' in a folder {config!r}' if config else ''} at this revision; "
            "data.options.revision=refs/convert/parquet names the hub's own conversion of it, where there is one"
            + (f"; folders: {', '.join(folders)}" if folders else "")
        )
    return found


@SOURCES.register
@downloadable(download)
def shards(
    root: Path | None,
    /,
    *,
    label: str | None = None,
    group: str | None = None,
    fold: str | None = None,
    index: str | None = None,
    repo: str | None = None,
    config: str | None = None,
    revision: str | None = None,
) -> Manifest:
    """Read a folder of Parquet shards.

    Args:
        root: folder of the shards, at any depth.
        label: column of labels; default: the first named label, labels, genre, genres, category, ...
        group: column of recordings; default: each row is its own recording, except in shards that `gafx pack` has
            written.
        fold: column of official folds, counted from 1.
        index: folder for the index, if `root` is read-only.
        repo: with `data.download=true`, the data set on the hub, e.g. `marsyas/gtzan`.
        config: the configuration (folder of `repo`) to download.
        revision: branch, tag or commit; `refs/convert/parquet` is the hub's own conversion of any data set.

    Raises:
        UsageError: missing root, no shard in it, a shard that cannot be read, a missing column.
    """
    root = require_root(root, HOW)
    files = shard_files(root)
    if not files:
        raise UsageError(f"data.root={str(root)!r} holds no Parquet file. {HOW}")
    splits = [part_of(path) for path in files]
    if len(set(splits)) == 1:
        splits = [-1] * len(files)
    selection = Selection(tuple(files), tuple(splits), label=label, group=group, fold=fold)
    manifest, *_ = open_shards(root, selection, index=None if index is None else Path(index).expanduser())
    if not len(manifest):
        raise UsageError(f"the shards under {root} hold no usable clip{listed_reasons(manifest.skipped)}. {HOW}")
    return replace(manifest, notes=(*manifest.notes, *absent_shards(files)))
