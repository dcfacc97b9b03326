"""The `gafx` command, and what train.py and evaluate.py share with it. Imports no torch before a command needs it."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import gafx
from gafx.config import EvaluateConfig, TrainConfig
from gafx.errors import UsageError
from gafx.registry import CLASSIFIERS, FRONTENDS, OBJECTIVES, REQUIRED, SOURCES, Registry, type_name

if TYPE_CHECKING:
    from gafx.data.manifest import Manifest, Skipped

_KINDS: dict[str, Registry] = {
    "frontends": FRONTENDS,
    "classifiers": CLASSIFIERS,
    "objectives": OBJECTIVES,
    "data": SOURCES,
}
# Folders of configs/ that are for launchers.
_NO_GROUPS = ("accelerate", "slurm")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `gafx` command."""
    run_script(_command, list(sys.argv[1:] if arguments is None else arguments))


def run_script(command: Callable[[list[str]], None], arguments: list[str]) -> None:
    """Run a command; a `UsageError` ends it with one sentence and status 2, an interruption with status 130."""
    # Read by torch at its first allocation: large pages make bf16 training on a CPU up to a third faster.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        command(arguments)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        # Ranks that wait for this one must not be waited for: no orderly shutdown of the process group.
        if os.environ.get("WORLD_SIZE", "1") != "1":
            os._exit(2)
        sys.exit(2)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
        where = f"{error.filename}: " if error.filename else ""
        cure = "check that it exists, is writable and has room" if where else "make room on the disk and try again"
        print(f"error: {where}{error.strerror or error}; {cure}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(
            "interrupted; training continues from its last checkpoint, and packing where it was, when the command is "
            "given again",
            file=sys.stderr,
        )
        sys.exit(130)


def show_help(script: str, config_folder: Path) -> None:
    """Print what a script does, the choices of each group and every key with its default."""
    cls = TrainConfig if script == "train" else EvaluateConfig
    module = sys.modules["__main__"].__doc__ or ""
    print(module.strip(), end="\n\n")
    groups = [folder for folder in sorted(config_folder.iterdir()) if folder.is_dir()] if script == "train" else []
    for folder in groups:
        if folder.name in _NO_GROUPS:
            continue
        print(f"{folder.name}=  {', '.join(sorted(p.stem for p in folder.glob('*.yaml')))}")
    print("\nkeys (key=value):")
    for key, default in _flatten(dataclasses.asdict(cls())).items():
        print(f"  {key} = {default}")
    if script == "train":
        print("\n`gafx list` shows the arguments of front-ends, classifiers, objectives and data sets.")


def _flatten(values: dict, prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in values.items():
        flat.update(_flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value})
    return flat


def _command(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="gafx", description="End-to-end waveform deep learning: front-ends, AST, Accelerate."
    )
    parser.add_argument("--version", action="version", version=f"gafx {gafx.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    listing = commands.add_parser(
        "list", help="list front-ends, classifiers, objectives and data sets with their arguments"
    )
    listing.add_argument("kind", nargs="?", choices=sorted(_KINDS), help="only these")
    make = commands.add_parser("synthesize", help="make the built-in data set of synthetic music")
    make.add_argument("root", type=Path, help="folder to write to")
    make.add_argument("--tracks", type=int, default=40, help="tracks a genre (default 40)")
    make.add_argument("--seconds", type=float, default=10.0, help="length of a track (default 10)")
    make.add_argument("--seed", type=int, default=0)
    make.add_argument(
        "--vary", default="all", help="factors that differ between genres: all, rhythm, harmony, timbre, or one alone"
    )
    _pack_arguments(commands)
    parsed = parser.parse_args(arguments)
    if parsed.command == "list":
        _list([parsed.kind] if parsed.kind else list(_KINDS))
    elif parsed.command == "pack":
        _pack(parsed)
    else:
        from gafx.data.sources.synthetic import synthesize

        synthesize(parsed.root, tracks=parsed.tracks, seconds=parsed.seconds, seed=parsed.seed, vary=parsed.vary)
        print(parsed.root)


def _pack_arguments(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    pack = commands.add_parser(
        "pack",
        help="pack a data set for fast training: int16 at one sampling rate, memory-mapped; or as Parquet shards",
        description="Write every clip of a data set as int16 at one sampling rate into one flat file, which training "
        "reads with data.cache=OUT; or, with --shards, as Parquet shards in the layout of Hugging Face datasets, which "
        "training reads with data=shards data.root=OUT. An interrupted command continues where it stopped when it is "
        "given again. Prints the folder that it made.",
    )
    pack.add_argument("data", help=f"data set: {', '.join(SOURCES.names())}")
    pack.add_argument("root", type=Path, help="where it lies")
    pack.add_argument(
        "out", type=Path, help="folder to write to: of caches, one a rate and channel count, or of the shards"
    )
    pack.add_argument("--shards", choices=["flac", "opus"], help="write Parquet shards with the audio in this form")
    pack.add_argument("--rows-per-shard", type=int, metavar="N", help="default: what makes about 512 MB of samples")
    pack.add_argument("--rate", type=int, metavar="HZ", help="default: the front-end's; with --shards each clip's own")
    pack.add_argument("--channels", type=int, help="default: the front-end's; with --shards each clip's own")
    pack.add_argument("--frontend", default="gafx_r", help="whose rate and channels to take (names: gafx list)")
    pack.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="as data.options.KEY=VALUE")
    pack.add_argument("--workers", type=int, help="processes (default: one a processor)")
    pack.add_argument("--download", action="store_true", help="fetch the data set into root first if it is not there")
    pack.add_argument("--overwrite", action="store_true", help="replace a cache that is stale, damaged or foreign")
    pack.add_argument("--verify", action="store_true", help="also read a finished cache and compare its checksums")
    pack.add_argument("--max-unreadable", type=float, default=0.05, help="share of unreadable files that is an error")
    pack.add_argument("--strict", action="store_true", help="any unreadable file is an error")


def _pack(parsed: argparse.Namespace) -> None:
    from gafx.data.manifest import Skipped
    from gafx.data.pack import pack
    from gafx.data.sources.base import load_manifest

    for name in ("rate", "channels", "workers", "rows_per_shard"):
        if (value := getattr(parsed, name)) is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} {value} must be at least 1")
    if not 0 <= parsed.max_unreadable <= 1:
        raise UsageError(f"--max-unreadable {parsed.max_unreadable} must lie between 0 and 1")
    if parsed.shards is not None:
        _pack_shards(parsed)
        return
    if parsed.rows_per_shard is not None:
        raise UsageError("--rows-per-shard belongs to --shards flac or --shards opus")
    rate, channels = parsed.rate, parsed.channels
    if rate is None or channels is None:
        from gafx.model import create_frontend

        front_end = create_frontend(parsed.frontend)
        rate, channels = rate or front_end.sample_rate, channels or front_end.channels
    manifest = load_manifest(parsed.data, parsed.root, download=parsed.download, **_options(parsed.option))
    cache = pack(
        manifest, parsed.out, sample_rate=rate, channels=channels, workers=parsed.workers, overwrite=parsed.overwrite
    )
    if parsed.verify and (damaged := cache.verify()):
        raise UsageError(
            f"{len(damaged)} of the {len(cache)} clips in {cache.folder} no longer have the checksum they were packed "
            f"with (e.g. clip {damaged[0]}); pack again with --overwrite"
        )
    skipped = [*manifest.skipped, *(Skipped(manifest.relative_path(row), why) for row, why in cache.unreadable.items())]
    print(
        f"{len(cache) - len(cache.unreadable)} clips at {rate} Hz, {channels} channel(s), "
        f"{(cache.folder / 'samples.i16').stat().st_size / 1e6:,.0f} MB; {len(skipped)} unreadable"
        f"{':' if skipped else ''}",
        file=sys.stderr,
    )
    _report(manifest, skipped, parsed)
    print(cache.folder)


def _pack_shards(parsed: argparse.Namespace) -> None:
    from gafx.data.shards.write import write_shards
    from gafx.data.sources.base import load_manifest

    if parsed.verify:
        raise UsageError("--verify belongs to caches, not to --shards")
    manifest = load_manifest(parsed.data, parsed.root, download=parsed.download, **_options(parsed.option))
    written = write_shards(
        manifest, parsed.out, codec=parsed.shards, sample_rate=parsed.rate, channels=parsed.channels,
        rows_per_shard=parsed.rows_per_shard, workers=parsed.workers, overwrite=parsed.overwrite,
    )  # fmt: skip
    changes = []
    if written.rounded and parsed.shards == "flac":
        changes.append(f"{written.rounded} rounded to the bits that are kept")
    if written.scaled:
        changes.append(f"{written.scaled} scaled down because they overshoot full scale (listed in shards.json)")
    print(
        f"{written.clips} clips in {written.shards} shards, {written.bytes / 1e6:,.0f} MB"
        f"{''.join(f'; {change}' for change in changes)}; {len(written.unreadable)} unreadable"
        f"{':' if written.unreadable else ''}",
        file=sys.stderr,
    )
    _report(manifest, written.unreadable, parsed)
    print(written.folder)


def _report(manifest: "Manifest", skipped: "Sequence[Skipped]", parsed: argparse.Namespace) -> None:
    """List what could not be read, and refuse if it is too much."""
    from gafx.data.manifest import check_readable

    for clip in skipped:
        print("  {path}: {reason}".format(**clip.as_dict()), file=sys.stderr)
    check_readable(manifest, max_unreadable=parsed.max_unreadable, strict=parsed.strict, skipped=skipped)


def _options(words: Sequence[str]) -> dict[str, object]:
    """`key=value` words as a mapping; values are read as YAML, as on train.py's command line."""
    import yaml

    options: dict[str, object] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UsageError(f"--option {word!r} is no option; write KEY=VALUE, e.g. --option csv=list.csv")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            options[key] = value
    return options


def _list(kinds: list[str]) -> None:
    for kind in kinds:
        print(f"{kind}:")
        for name in _KINDS[kind].names():
            print(f"  {name}")
            for keyword in _KINDS[kind].keywords(name).values():
                default = "(required)" if keyword.default is REQUIRED else f"= {keyword.default}"
                print(f"    {keyword.name} {default}  ({type_name(keyword.annotation)})")


if __name__ == "__main__":
    main()
