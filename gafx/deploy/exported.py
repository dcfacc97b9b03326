"""Models that `gafx export` wrote as ONNX, run by onnxruntime: arrays in, arrays out, without PyTorch."""

import json
import os
from pathlib import Path
from typing import Any

from gafx.audio.views import average_views
from gafx.config import build
from gafx.deploy.windows import Array, Layout, Run
from gafx.errors import UsageError, first_line, require
from gafx.saving.info import ModelInfo

SUFFIX = ".onnx"
INPUT, OUTPUT = "wave", "probabilities"
KEY = "gafx"  # of the description inside the files


class ExportedModel:
    """An exported model with calibrated probabilities of its labels as outputs, as `gafx.inference.Probabilities`.

    It is called with float32 `(batch, channels, samples)` at its rate, in [-1, 1], and gives float32 `(batch,
    classes)`.

    Args:
        path: of an ONNX file that `gafx export` wrote, or of its folder; the JSON file next to it is not needed.

    Attributes:
        info: labels, sampling rate, channels, length of the windows and calibration. Of the front-end and the
            classifier it has the names alone.
        sums_to_one: as of `Probabilities`.
        least_samples, most_samples: of a wave.

    Raises:
        UsageError: onnxruntime is not installed, there is no ONNX file, or not one that gafx wrote.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = _file(path)
        self._session = open_session(self.path)
        found = describe_session(self._session, self.path)
        try:
            self.least_samples, self.most_samples = int(found["least_samples"]), int(found["most_samples"])
            self.sums_to_one = bool(found["sums_to_one"])
            temperature = found["temperature"]  # files of earlier versions have no `calibration`
            self.info: ModelInfo = build(
                ModelInfo,
                {
                    "frontend": {"name": found["frontend"]}, "classifier": {"name": found["classifier"]},
                    "classes": found["classes"], "segment_seconds": found["window_seconds"],
                    "sample_rate": found["sample_rate"], "channels": found["channels"], "map_shape": [],
                    "objective": found["objective"],
                    "calibration": found.get("calibration", {"temperature": temperature} if temperature != 1 else {}),
                },
                str(self.path),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"the description inside {self.path} is damaged ({error!r}): export it again") from error
        outputs = {each.name: each.shape for each in self._session.get_outputs()}
        if outputs.get(OUTPUT, [None])[-1] != len(self.info.classes) or self.info.sample_rate < 1:
            raise UsageError(f"the description inside {self.path} does not fit the model: export it again")

    @property
    def classes(self) -> tuple[str, ...]:
        """Labels, in the order of the outputs."""
        return tuple(self.info.classes)

    def __call__(self, wave: Array) -> Array:
        found: Array = self._session.run([OUTPUT], {INPUT: wave})[0]
        return found

    def layout(self, *, overlap: float = 0.0, window_seconds: float | None = None) -> Layout:
        """The windows, see `gafx.deploy.windows.layout_for`; of the lengths that the file takes."""
        seconds = self.info.segment_seconds if window_seconds is None else window_seconds
        return Layout.of(
            self.info.sample_rate, self.info.channels, seconds, overlap=overlap, least=self.least_samples,
            most=self.most_samples,
        )  # fmt: skip

    def runner(self, device: str, precision: str, views: int) -> Run:
        """The model itself, averaged over `views` (`gafx.audio.views`).

        Raises:
            UsageError: another device than the CPU, or another precision than fp32.
        """
        if device not in ("auto", "cpu"):
            raise UsageError(
                f"device={device}: an exported model is run on the CPU; use device=auto, or the run that it was "
                "exported from"
            )
        if precision not in ("auto", "fp32"):
            raise UsageError(
                f"precision={precision}: an exported model computes in fp32, or in int8 as it was exported; use "
                "precision=fp32, or the run that it was exported from"
            )
        return average_views(self, views)


def is_exported(model: object) -> bool:
    """Whether this is an `ExportedModel`, or names an ONNX file or the folder of one."""
    return isinstance(model, ExportedModel) or (
        isinstance(model, (str, os.PathLike)) and _file(model).suffix.lower() == SUFFIX
    )


def _file(path: str | os.PathLike[str]) -> Path:
    """The ONNX file in a folder that `gafx export` wrote, of two the one in float32; any other path as it is."""
    path = Path(os.fsdecode(path)).expanduser()
    if (path / "config.json").exists():
        return path
    return next((file for name in ("model", "model_int8") if (file := path / f"{name}{SUFFIX}").is_file()), path)


def open_session(path: Path) -> Any:
    """Open an ONNX file with onnxruntime, on the CPU.

    Raises:
        UsageError: onnxruntime is not installed, or the file is missing or damaged.
    """
    onnxruntime = require("onnxruntime", "running an ONNX model")
    if not path.is_file():
        raise UsageError(f"there is no file {path}: `gafx export RUN` writes RUN/export/model.onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = _threads()
    # Threads would wait in loops between operations, and take the processor from the threads that read the files and
    # from other processes (docs/export.md has what this costs).
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's classes have no base of their own
        raise UsageError(f"{path} cannot be opened as an ONNX model ({first_line(error)})") from error


def describe_session(session: Any, path: Path) -> dict[str, Any]:
    """The description that `gafx export` stored inside an ONNX file.

    Raises:
        UsageError: there is none.
    """
    try:
        found = json.loads(session.get_modelmeta().custom_metadata_map[KEY])
    except (KeyError, ValueError) as error:
        raise UsageError(
            f"{path} was not written by gafx, which stores labels, sampling rate and length of the windows in the "
            "file: export a model with `gafx export RUN`"
        ) from error
    if not isinstance(found, dict):
        raise UsageError(f"the description inside {path} is damaged: export it again")
    return found


def _threads() -> int:
    """Threads of an operation: those of `OMP_NUM_THREADS`, as for PyTorch, else one for each available processor."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if wanted.isdigit() and int(wanted):
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
