"""Files that a command writes: what they would destroy is asked first."""

import logging
import os
from collections.abc import Iterable
from pathlib import Path

from gafx.audio.formats import is_audio_name
from gafx.errors import UsageError
from gafx.report.format import plural, printable

_log = logging.getLogger("gafx")
_BEGINNINGS = (b"RIFF", b"RIFX", b"RF64", b"riff", b"fLaC", b"OggS", b".snd", b"dns.", b"FORM", b"caff", b"ID3")


class Outputs:
    """Checks paths before they are written, and counts the files that are replaced.

    Args:
        inputs: files that the command reads.
    """

    def __init__(self, inputs: Iterable[str | os.PathLike[str]] = ()):
        self._inputs = {os.path.realpath(path) for path in inputs}
        self.replaced = 0

    def claim(self, path: Path, option: str, *, announce: bool = True) -> Path:
        """Return `path` if a file may be written there, and log that an existing one is replaced.

        Args:
            path: of the file; a link is followed. A pipe or a device may always be written to.
            option: that names it, for messages.
            announce: count and log an existing file; false for a check before the work begins.

        Raises:
            UsageError: it is a folder, is below a file, is one of the inputs, belongs to a saved model or to a run,
                or is an existing audio file.
        """
        if path.is_dir():
            raise UsageError(f"{option} {path} is a folder: name a file in it")
        above = next((folder for folder in path.absolute().parents if folder.exists()), Path("/"))
        if not above.is_dir():
            raise UsageError(f"{option} {path}: {above} is a file, not a folder")
        real = Path(os.path.realpath(path))
        if str(real) in self._inputs:
            raise UsageError(f"{option} {path} is one of the files that are read: name another file")
        for folder in real.parents:
            if (folder / "config.json").is_file() and (folder / "model.safetensors").is_file():
                raise UsageError(
                    f"{option} {path} is in the folder of a saved model, which would be damaged: name another file"
                )
            if (folder / "run.json").is_file() and (
                real.is_file() or real.relative_to(folder).parts[0] in ("model", "checkpoints")
            ):
                raise UsageError(f"{option} {path} belongs to a run, which would be damaged: name another file")
        if not real.is_file():
            return path
        if real.stat().st_size and (is_audio_name(str(real)) or self._begins_like_audio(real)):
            raise UsageError(f"{option} {path} is an audio file, and none is ever replaced: name another file")
        self.replaced += announce
        if announce and self.replaced == 1:
            _log.warning("%s %s exists and is replaced", option, printable(str(path)))
        return path

    def report(self, folder: Path) -> None:
        """Log how many files in a folder were replaced, after the first, which `claim` has logged."""
        if self.replaced > 1:
            _log.warning("%s in %s existed and were replaced", plural(self.replaced, "file"), printable(str(folder)))

    @staticmethod
    def keep_out(folder: Path, data: str | os.PathLike[str] | None, option: str) -> None:
        """Raise `UsageError` if an output folder is a data set's folder or inside it.

        Args:
            folder: of the output.
            data: the data set's folder; None for data that have none.
            option: that names the output, for messages.
        """
        if data is not None and Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(data)):
            raise UsageError(
                f"{option} {folder} is in the folder of the data, {data}, whose files could be replaced or taken for "
                "clips: name another folder"
            )

    @staticmethod
    def _begins_like_audio(path: Path) -> bool:
        try:
            with path.open("rb") as file:
                head = file.read(12)
        except OSError:
            return False  # writing will say why
        return head.startswith(_BEGINNINGS) or head[4:8] == b"ftyp" or (head[:1] == b"\xff" and head[1:2] >= b"\xe0")
