"""A folder that is being written, for the packers: resumed after an interruption, renamed when it is complete."""

import contextlib
import json
import logging
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from gafx.errors import UsageError
from gafx.io import flush, is_disk_full, publish, write_text

_log = logging.getLogger("gafx")
_PLAN = "plan.json"


class Unfinished:
    """The hidden folder in which `target` is written. It stays when the process is interrupted.

    Args:
        target: the folder to create.

    Attributes:
        path: `.<name>.packing` in the same folder.
    """

    def __init__(self, target: Path):
        self.target, self.path = target, target.with_name(f".{target.name}.packing")

    def begin(self, plan: dict[str, Any]) -> None:
        """Create the folder; first delete what an earlier attempt has written by another plan.

        Args:
            plan: everything that the content depends on, as JSON.
        """
        if self.path.exists() and read_json(self.path / _PLAN) != plan:
            _log.info("%s was started with other clips or settings; starting over", self.path)
            shutil.rmtree(self.path)
        self.path.mkdir(exist_ok=True)
        if not (self.path / _PLAN).exists():
            write_text(self.path / _PLAN, json.dumps(plan))

    def finish(self, names: Collection[str]) -> None:
        """Delete all but these files and give the folder its name. The files themselves are on the disk already."""
        for path in self.path.iterdir():
            if path.name not in names:
                path.unlink()
        flush(self.path)
        if self.target.exists():
            self.target.rmdir()  # empty
        publish(self.path, self.target, sync=True)

    @contextlib.contextmanager
    def explain_full_disk(self, what: str, progress: Callable[[], str] = str) -> Iterator[None]:
        """Turn the error of a full disk into a `UsageError`; `progress()` is appended to its reason."""
        try:
            yield
        except OSError as error:
            if not is_disk_full(error):
                raise
            raise UsageError(
                f"no room for the {what} in {self.target.parent}: {error.strerror}{progress()}. Make room (or raise "
                "the file-size limit) and give the command again: it continues from there"
            ) from error


def check_target(folder: Path, data: Path, what: str) -> None:
    """Raise `UsageError` if a folder to write is a file or is inside the data."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{what} {str(folder)!r} is a file; name a folder")
    if data.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise UsageError(f"{what} {str(folder)!r} is inside the data ({data}); name a folder outside")


def read_json(path: Path) -> Any:
    """Return a JSON file's content; None if it is missing or malformed."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_text(encoding="utf-8"))
    return None


def write_last(path: Path, about: dict[str, Any]) -> None:
    """Write the JSON file that completes a folder, through to the disk."""
    write_text(path, json.dumps(about, indent=1, ensure_ascii=False) + "\n", sync=True)
