"""Trained models as files that run without gafx: waves in, calibrated probabilities out; ONNX, or torch.export's."""

import copy
import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gafx._version import __version__
from gafx.errors import UsageError
from gafx.inference import Probabilities
from gafx.io import write_text
from gafx.model import GAFX

FORMATS = {"onnx": ".onnx", "torch_export": ".pt2"}
TOLERANCE = 1e-4
INPUT, OUTPUT = "wave", "probabilities"
_KEY = "gafx"  # of the description inside the files
_OPSET = 20  # the first with GELU as one operation
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# protobuf's own limit is 2 GiB for the whole file; weights are nearly all of it.
_LARGEST_ONNX = 2**31 - 2**24

Array = npt.NDArray[Any]
Run = Callable[[Array], Array]


@dataclass(frozen=True)
class Exported:
    """An exported model that was checked.

    Attributes:
        path: of the model.
        description: of the JSON beside it.
        format: `onnx` or `torch_export`.
        window_samples: length of the clips that the model was built for, at its sampling rate.
        least_samples: the shortest wave that the file takes; equal to `window_samples` where the length is fixed.
        fixed: why the length is fixed; None where any from `least_samples` to `window_samples` will do.
        difference: the largest difference between any probability and eager PyTorch's.
        checks: (batch, samples) -> the largest difference there.
    """

    path: Path
    description: Path
    format: str
    window_samples: int
    least_samples: int
    fixed: str | None
    difference: float
    checks: dict[tuple[int, int], float]


def export(
    model: GAFX | Probabilities, path: str | os.PathLike[str], *, format: str = "onnx", audio: Sequence[Array] = ()
) -> Exported:
    """Write a model, with a JSON of the same name beside it that says what goes in and comes out, and check it.

    The file takes `wave`, float32 `(batch, channels, samples)` in [-1, 1] at the model's rate, and answers
    `probabilities`, float32 `(batch, classes)`: what `Probabilities` gives in eval mode, temperature included. Any
    batch will do; so will any length up to the clips that the model was built for, where the front-end allows.

    Args:
        model: from `gafx.load`, or its `Probabilities`; it is not changed.
        path: of the file, `.onnx` or `.pt2`; its folder is made where it is missing, what lies there is replaced.
        format: `onnx` (opset 20) or `torch_export`.
        audio: what the file is checked on: float32 `(channels, samples)` each at the model's rate; default: a made
            signal.

    Raises:
        UsageError: packages are missing, the model tells no labels, cannot be written in this format, or answers
            otherwise than eager PyTorch by more than 1e-4. Then no file is left and an earlier one stays.
    """
    if format not in FORMATS:
        raise UsageError(f"format={format!r} is none of {', '.join(FORMATS)}")
    path = Path(path)
    if path.suffix != FORMATS[format]:
        raise UsageError(f"{path} must end in {FORMATS[format]} for format={format}")
    check_packages(format)
    given = model if isinstance(model, Probabilities) else Probabilities(model)
    exact = copy.deepcopy(given).cpu().float().eval()
    window, least, fixed = _lengths(exact)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".writing-{path.name}")  # torch wants .pt2 at the end
    try:
        with _quiet():
            program, failed = _capture(exact, window, least)
            if failed is not None:
                least, fixed = window, failed
            said = json.dumps(describe(exact, window, least, fixed), indent=2)
            (_write_onnx if format == "onnx" else _write_program)(program, aside, said, fixed is not None)
            run = (_open_onnx if format == "onnx" else _open_program)(aside)
            checks = _compare(exact, run, _sizes(window, least), audio)
        difference = float(np.max(list(checks.values())))  # NaN where any is
        if not difference <= TOLERANCE:
            raise UsageError(
                f"the exported model answers otherwise than the model itself: probabilities differ by up to "
                f"{difference:.2g}, allowed are {TOLERANCE:g}; no file is left. Other versions of torch, onnxscript or "
                f"onnxruntime may do better, and so may --format {_other(format)}"
            )
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    description = path.with_suffix(".json")
    write_text(description, said + "\n")
    return Exported(path, description, format, window, least, fixed, difference, checks)


def check_packages(format: str) -> None:
    """Raise `UsageError` unless what writes and checks this format is installed."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None] if format == "onnx" else []
    if missing:
        raise UsageError(f"export to ONNX needs {', '.join(missing)}: pip install 'gafx[export]'")


def describe(model: Probabilities, window: int, least: int, fixed: str | None) -> dict[str, Any]:
    """What a program without gafx must know of an exported model: the JSON beside it and inside it."""
    info = model.info
    return {
        "gafx_version": __version__,
        "input": {
            "name": INPUT, "type": "float32", "shape": ["batch", info.channels, "samples"], "range": [-1.0, 1.0],
        },
        "output": {"name": OUTPUT, "type": "float32", "shape": ["batch", len(info.classes)]},
        "sample_rate": info.sample_rate, "channels": info.channels, "classes": info.classes,
        "window_seconds": info.segment_seconds, "window_samples": window, "least_samples": least,
        "most_samples": window, "length": "dynamic" if fixed is None else "fixed", "length_fixed_because": fixed,
        "objective": info.objective, "sums_to_one": model.sums_to_one, "temperature": info.temperature,
        "frontend": info.frontend.get("name"), "classifier": info.classifier.get("name"),
    }  # fmt: skip


def read_description(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What is said inside an exported file itself, should the JSON beside it be lost."""
    if Path(path).suffix == FORMATS["onnx"]:
        import onnxruntime

        session = onnxruntime.InferenceSession(os.fspath(path), _options(), providers=["CPUExecutionProvider"])
        said = session.get_modelmeta().custom_metadata_map[_KEY]
    else:
        extra = {_KEY: ""}
        torch.export.load(path, extra_files=extra)
        said = extra[_KEY]
    found: dict[str, Any] = json.loads(said)
    return found


# --- writing ----------------------------------------------------------------------------------------------------------


def _lengths(model: Probabilities) -> tuple[int, int, str | None]:
    """The clips that the model was built for and the shortest that the file shall take, in samples; why they agree."""
    frontend = model.model.frontend
    window = round(model.info.segment_seconds * frontend.sample_rate)
    classifier = model.model.classifier
    for part, info in ((frontend, model.info.frontend), (classifier, model.info.classifier)):
        if part.fixed_length is not None:
            return window, window, f"{info.get('name', 'the front-end')}: {part.fixed_length}"
    # Of two patches at least: torch takes an axis of one for a case apart, and would write the file for it alone.
    wanted = 2 * classifier.min_frames
    if frontend.output_shape(window)[2] <= wanted:
        return window, window, f"the clips it was built for are so short that a map has at most {wanted} frames"
    return window, model.model.min_samples(wanted), None


def _capture(model: Probabilities, window: int, least: int) -> tuple[Any, str | None]:
    """The model as a graph; where it cannot be written for several lengths, for one, and then why."""
    if least < window:
        try:
            return _traced(model, window, least), None
        except Exception as error:  # a front-end or classifier from elsewhere, whatever torch says of it
            return _captured_whole(model, window), f"its operations cannot be written for several ({_first(error)})"
    return _captured_whole(model, window), None


def _captured_whole(model: Probabilities, window: int) -> Any:
    try:
        return _traced(model, window, window)
    except Exception as error:
        name = model.info.frontend.get("name", "its front-end")
        raise UsageError(
            f"a model of {name} and {model.info.classifier.get('name')} cannot be exported: torch.export says "
            f"{_first(error)!r}; use gafx.load and gafx predict instead"
        ) from error


def _traced(model: Probabilities, window: int, least: int) -> Any:
    from torch.fx.experimental import _config

    config: Any = _config  # torch's stubs know nothing of its `patch`
    channels = model.model.frontend.channels
    batch = torch.export.Dim("batch", min=1)
    axes: dict[int, Any] = {0: batch}
    if least < window:
        axes[2] = torch.export.Dim("samples", min=least, max=window)
    example = torch.zeros(2, channels, (least + window) // 2)
    # Weights with channels last would make the layout, and so the file, depend on whether the batch is 1.
    plain: Any = copy.deepcopy(model).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    # Else torch would ask, of every axis that may have any size, whether it is 1, and write the file for the answer.
    with torch.no_grad(), config.patch(backed_size_oblivious=True):
        return torch.export.export(plain, (example,), dynamic_shapes=(axes,), strict=False)


def _write_onnx(program: Any, path: Path, said: str, fixed: bool) -> None:
    numbers = {t.data_ptr(): t.nbytes for t in (*program.state_dict.values(), *program.constants.values())
               if isinstance(t, Tensor)}  # fmt: skip
    if sum(numbers.values()) > _LARGEST_ONNX:
        raise UsageError(
            f"the model's {sum(numbers.values()) / 2**30:.1f} GiB do not fit into one ONNX file, which holds 2; use "
            "--format torch_export"
        )
    names = {0: "batch"} if fixed else {0: "batch", 2: "samples"}
    try:
        written = torch.onnx.export(
            program, (), dynamo=True, input_names=[INPUT], output_names=[OUTPUT], opset_version=_OPSET, verbose=False,
            external_data=False, dynamic_shapes=(names,),
        )  # fmt: skip
    except Exception as error:
        raise UsageError(
            f"the model cannot be written as ONNX: {_first(error)!r}; try --format torch_export"
        ) from error
    assert written is not None
    written.model.metadata_props[_KEY] = said
    written.save(os.fspath(path), external_data=False)


def _write_program(program: Any, path: Path, said: str, fixed: bool) -> None:
    torch.export.save(program, path, extra_files={_KEY: said})


def _first(error: BaseException) -> str:
    """The first line of what torch says, which goes on for pages."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _other(format: str) -> str:
    return next(name for name in FORMATS if name != format)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what exporters remark on their own workings; errors are exceptions."""
    names = ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# --- checking ---------------------------------------------------------------------------------------------------------


def _open_onnx(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(os.fspath(path), _options(), providers=["CPUExecutionProvider"])
    return lambda wave: session.run([OUTPUT], {INPUT: wave})[0]


def _options() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    return options


def _open_program(path: Path) -> Run:
    module = torch.export.load(path).module()

    @torch.inference_mode()
    def run(wave: Array) -> Array:
        answer: Array = module(torch.from_numpy(wave)).numpy()
        return answer

    return run


def _sizes(window: int, least: int) -> list[tuple[int, int]]:
    """(batch, samples) that a file is checked at."""
    if least == window:
        return [(1, window), (3, window)]
    return [(1, window), (2, window), (3, least), (2, (least + window) // 2), (1, (2 * least + window) // 3 + 1)]


def _compare(
    model: Probabilities, run: Run, sizes: Sequence[tuple[int, int]], audio: Sequence[Array]
) -> dict[tuple[int, int], float]:
    """The largest difference between a file's probabilities and the model's, for each size."""
    channels, rate = model.model.frontend.channels, model.info.sample_rate
    found = {}
    for batch, samples in sizes:
        wave = _segments(audio, batch, samples) if audio else made_signal(batch, channels, samples, rate)
        with torch.inference_mode():
            expected = model(torch.from_numpy(wave)).numpy()
        try:
            answer = run(wave)
        except Exception as error:
            raise UsageError(
                f"the exported model fails on {batch} x {samples} samples, and no file is left: {_first(error)}"
            ) from error
        if answer.shape != expected.shape or answer.dtype != np.float32:
            raise UsageError(
                f"the exported model answers {answer.shape} {answer.dtype} instead of {expected.shape} float32; no "
                "file is left"
            )
        found[batch, samples] = float(np.abs(answer - expected).max())
    return found


def _segments(audio: Sequence[Array], batch: int, samples: int) -> Array:
    """`(batch, channels, samples)` out of the recordings in turn, from another place each; short ones are repeated."""
    rows = []
    for number in range(batch):
        wave = audio[number % len(audio)]
        wave = np.tile(wave, (1, -(-samples // wave.shape[1])))
        start = (wave.shape[1] - samples) * (number + 1) // (batch + 1)
        rows.append(wave[:, start : start + samples])
    return np.ascontiguousarray(np.stack(rows), dtype=np.float32)


def made_signal(batch: int, channels: int, samples: int, sample_rate: int) -> Array:
    """Sweeps over all frequencies with bursts of noise and pauses, other in every row and channel; in [-1, 1]."""
    rng = np.random.default_rng(samples)
    time = np.arange(samples) / max(samples, 1)
    rows = np.arange(batch)[:, None, None] + np.arange(channels)[None, :, None] / 2
    cycles = (0.02 + 0.4 * time / (1 + rows / 3)) * samples / 2 * time
    bursts = rng.standard_normal((batch, channels, samples)) * (np.sin(2 * np.pi * (3 + rows) * time) > 0.6)
    wave = 0.4 / (1 + rows) * np.sin(2 * np.pi * cycles) * (np.cos(2 * np.pi * 2 * time) > -0.8) + 0.1 * bursts
    return np.clip(wave, -1, 1).astype(np.float32)
