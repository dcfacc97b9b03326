"""Options that several commands have, and checks of their values."""

import argparse
import dataclasses
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gafx.audio.level import SILENCE
from gafx.data.protocols import PROTOCOLS, Protocol
from gafx.errors import UsageError
from gafx.registry import SOURCES

if TYPE_CHECKING:
    from gafx.config import DataConfig
    from gafx.data.sharding import Shard

_SPLIT = ("protocol", "folds", "split_seed", "max_unreadable")  # keys of `DataConfig` that `add_split` declares


def add_data(parser: argparse.ArgumentParser, root: str = "folder of the data set", **more: Any) -> None:
    """Declare a data set: its name and its folder."""
    parser.add_argument("data", help=f"data set: {', '.join(SOURCES.names())}")
    parser.add_argument("root", type=Path, help=root, **more)


def add_option(parser: Any) -> None:
    """Declare `--option`, the data set's own keywords; `read_options` reads it."""
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="as data.options.KEY=VALUE of gafx train, e.g. csv=list.csv (relative to the folder of the data)",
    )


def add_split(parser: argparse.ArgumentParser) -> Any:
    """Declare how a data set is split for a fit, and `--option`; `read_split` reads them. Returns their group."""
    data = parser.add_argument_group("data")
    data.add_argument("--protocol", help=f"{', '.join(PROTOCOLS)} (default: official folds or parts, otherwise kfold)")
    data.add_argument("--folds", type=int, help="folds of kfold (default 5, at most one per recording)")
    data.add_argument("--split-seed", type=int, help="seed of the split (default 0)")
    data.add_argument("--max-unreadable", type=float, default=0.05, metavar="FRACTION",
                      help="more unreadable files than this are an error (default 0.05)")  # fmt: skip
    add_option(data)
    return data


def read_split(parsed: argparse.Namespace) -> "DataConfig":
    """The data set and how it is split; without `--protocol` the protocol is empty.

    Raises:
        UsageError: one of the options is out of range, or the data set or the protocol unknown.
    """
    from gafx.config import DataConfig

    check_least(parsed, split_seed=0, folds=2)
    check_fractions(parsed, "max_unreadable")
    SOURCES.check_name(parsed.data)
    if parsed.protocol is not None:
        Protocol.parse(parsed.protocol, "--protocol")
    asked = {key: getattr(parsed, key) for key in _SPLIT if getattr(parsed, key) is not None}
    values = {"protocol": "", "options": read_options(parsed), **asked}
    return DataConfig(name=parsed.data, root=str(parsed.root), **values)


@contextmanager
def keys_as_options(data: str, root: str) -> Iterator[None]:
    """Name the options of a command in place of the configuration's keys in the message of a `UsageError`.

    Args:
        data: option or argument of the data set.
        root: of its folder.
    """
    try:
        yield
    except UsageError as error:
        message = re.sub(r"data\.options\.(\w+)", r"--option \1", str(error))
        message = message.replace("data.options", "--option").replace("data.root", root).replace("data.name", data)
        message = re.sub(rf"data\.({'|'.join(_SPLIT)})\b", lambda found: f"--{found[1].replace('_', '-')}", message)
        raise UsageError(message) from error


def add_model(parser: Any, name: str = "--model", **more: Any) -> None:
    """Declare a trained model."""
    parser.add_argument(
        name,
        metavar="RUN",
        **{"help": "run folder, model folder, hub id owner/name, or a name of gafx list --pretrained", **more},
    )


def check_model(source: str) -> None:
    """Raise `UsageError` for a model that does not exist, before torch is imported to load it."""
    from gafx.saving.hub import check_exists

    check_exists(source)


def add_offline(parser: Any) -> None:
    """Declare `--offline`; `gafx.cli` does it for all commands that load models."""
    parser.add_argument(
        "--offline", action=_Offline, nargs=0, default=False,
        help="fetch no model or weights from the network, as HF_HUB_OFFLINE=1 does",
    )  # fmt: skip


class _Offline(argparse.Action):
    def __call__(self, parser: Any, namespace: argparse.Namespace, *_: Any) -> None:
        # The hub's client, which is imported later, reads this variable, as the catalogue does.
        os.environ["HF_HUB_OFFLINE"] = "1"
        setattr(namespace, self.dest, True)


def add_silence(parser: Any) -> None:
    """Declare `--silence`."""
    parser.add_argument(
        "--silence", type=_decibels, default=SILENCE, metavar="DB",
        help=f"windows whose loudest 50 ms are below this level are silent: not labelled ({SILENCE:g} dBFS; off: none)",
    )  # fmt: skip


def add_device(parser: argparse.ArgumentParser) -> None:
    """Declare `--device`."""
    parser.add_argument("--device", type=_device, default="auto", help="auto (default), cpu, cuda, cuda:<index> or mps")


def add_server(parser: argparse.ArgumentParser, port: str) -> None:
    """Declare the address and the limits of a server; `port` says which is the default. `read_server` reads them."""
    parser.add_argument("--port", type=int, metavar="N", help=f"port to listen on (default: {port})")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine)")
    parser.add_argument("--max-mb", type=float, default=50, metavar="X", help="largest file in MB (default 50)")
    parser.add_argument(
        "--max-seconds", type=float, default=1200, metavar="X", help="longest file in seconds (default 1200)"
    )
    add_device(parser)


def read_server(parsed: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_server`, and the model's name, as keyword arguments.

    Raises:
        UsageError: one is out of range.
    """
    if parsed.port is not None and not 1 <= parsed.port <= 65535:
        raise UsageError(f"--port {parsed.port} must be between 1 and 65535")
    if not 1e-6 <= parsed.max_mb < 1e12:
        raise UsageError(f"--max-mb {parsed.max_mb:g} must be above 0, e.g. 50")
    if not 0 < parsed.max_seconds < float("inf"):
        raise UsageError(f"--max-seconds {parsed.max_seconds:g} must be above 0, e.g. 1200")
    return {
        "name": model_name(parsed.model), "host": parsed.host, "port": parsed.port,
        "max_bytes": int(parsed.max_mb * 1e6), "max_seconds": parsed.max_seconds, "device": parsed.device,
    }  # fmt: skip


def model_name(source: str) -> str:
    """Name of a model for a page: its run's, its file's, or the hub's."""
    path = Path(source).expanduser()
    if not path.exists():
        return source
    path = path.resolve()
    return path.parent.name if path.name == "model" and path.parent.name else path.name


def add_shard(parser: argparse.ArgumentParser, what: str) -> None:
    """Declare `--shard`; `what` is divided, in the plural."""
    parser.add_argument(
        "--shard", type=_shard, default="1/1", metavar="K/N",
        help=f"part K of N of the {what}, e.g. 3/16 on the third of 16 machines; gafx merge joins the outputs",
    )  # fmt: skip


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Declare `--precision` of inference."""
    parser.add_argument(
        "--precision", choices=["fp32", "auto", "bf16", "fp16"], default="fp32",
        help="fp32 (default) agrees with an exported model; auto is the fastest on this device",
    )  # fmt: skip


def add_batch_size(parser: argparse.ArgumentParser, what: str) -> None:
    """Declare `--batch-size`; `what` is one item of a batch, in the plural."""
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help=f"{what} per batch (default 16)")


def add_moved_root(parser: argparse.ArgumentParser) -> None:
    """Declare `--root`, the data's folder where it has moved since the training."""
    parser.add_argument("--root", help="folder of the data, if it has moved since the training")


def add_config_dir(parser: argparse.ArgumentParser) -> None:
    """Declare `--config-dir`."""
    parser.add_argument(
        "--config-dir", type=Path, metavar="DIR",
        help="your own YAML files, searched before gafx's: DIR/experiment/mine.yaml for experiment=mine",
    )  # fmt: skip


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Declare `--config-dir` and `--cfg`."""
    add_config_dir(parser)
    parser.add_argument(
        "--cfg", choices=["job", "all"],
        help="print the composed configuration as YAML and exit; all: also the chosen files and the folders searched",
    )  # fmt: skip


def configuration_yaml(
    name: str, config: Any, parsed: argparse.Namespace, overrides: Sequence[str] | None = None
) -> str:
    """Text that `--cfg` prints: every key of the configuration, defaults included.

    Args:
        name: of the primary YAML file, `train` or `evaluate`.
        config: the built configuration.
        parsed: the command's arguments.
        overrides: of the configuration; default: those of `parsed`.
    """
    import yaml

    from gafx.config import to_dict

    values = to_dict(config)
    if parsed.cfg == "all":
        from gafx.compose import compose

        given = list(parsed.overrides if overrides is None else overrides)
        found = compose(name, given, parsed.config_dir)
        values["hydra"] = {
            "overrides": given,
            "choices": found.choices,
            "searchpath": list(map(str, found.searched)),
        }
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def keys_help(cls: type) -> str:
    """Every key of a configuration dataclass with its default, one a line."""
    from gafx.config import flatten

    lines = [f"  {key} = {default}" for key, default in flatten(dataclasses.asdict(cls())).items()]
    return "\n".join(["keys (key=value):", *lines])


def check_least(parsed: argparse.Namespace, **least: float) -> None:
    """Raise `UsageError` where an option that is set is below its least value."""
    for name, bound in least.items():
        if (value := getattr(parsed, name)) is not None and value < bound:
            raise UsageError(f"{option_name(name)} {value} must be at least {bound}")


def check_fractions(parsed: argparse.Namespace, *names: str) -> None:
    """Raise `UsageError` where an option is not between 0 and 1."""
    for name in names:
        if not 0 <= getattr(parsed, name) <= 1:
            raise UsageError(f"{option_name(name)} {getattr(parsed, name)} must be between 0 and 1")


def option_name(name: str) -> str:
    """`--split-seed` for the attribute `split_seed`."""
    return f"--{name.replace('_', '-')}"


def read_options(parsed: argparse.Namespace) -> dict[str, Any]:
    """Parse the values of `--option` for the data set of `add_data`, see `gafx.config.parse_values`."""
    from gafx.config import parse_values

    return parse_values(parsed.option, "--option", "csv=list.csv", SOURCES.keywords(parsed.data))


def _device(text: str) -> str:
    from gafx.config import DEVICE

    if not DEVICE.allows(text):
        raise argparse.ArgumentTypeError(f"{text!r} must be {DEVICE.description}")
    return text


def _shard(text: str) -> "Shard":
    from gafx.data.sharding import Shard

    try:
        return Shard.parse(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _decibels(text: str) -> float | None:
    if text == "off":
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be a level in dBFS, at most 0, e.g. {SILENCE:g}; or off")
    return value
