"""Trained models as files that run without gafx, waves to calibrated probabilities: ONNX, or torch.export's format."""

import copy
import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gafx._version import __version__
from gafx.deploy import onnx_graph
from gafx.deploy.exported import INPUT, KEY, OUTPUT, SUFFIX, describe_session, open_session
from gafx.deploy.windows import Array, Run
from gafx.errors import UsageError, first_line, require
from gafx.inference import Probabilities
from gafx.io import atomic_path, write_text
from gafx.model import GAFX
from gafx.nn import exported
from gafx.nn.part import Part
from gafx.outputs import Outputs
from gafx.report.format import plural, size

FORMATS = {"onnx": SUFFIX, "torch_export": ".pt2"}
QUANTIZATIONS = ("int8",)
TOLERANCE = 1e-4
_BATCH = 16  # of the files on which the difference of 8 bits is measured
# protobuf's limit is 2 GiB for the whole file, nearly all of it weights.
_MAX_ONNX_BYTES = 2**31 - 2**24


@dataclass(frozen=True)
class Exported:
    """An exported model that agreed with PyTorch.

    Attributes:
        path: of the model.
        description: path of its JSON description.
        format: `onnx` or `torch_export`.
        window_samples: length of the clips that the model was built for, at its sampling rate.
        least_samples: shortest wave that the file accepts; equal to `window_samples` if the length is fixed.
        fixed: reason why the length is fixed; None if all from `least_samples` to `window_samples` are accepted.
        difference: largest absolute difference of any probability from eager PyTorch.
        checks: (batch, samples) -> largest difference at that size.
        quantization: `int8`, or None for float32.
    """

    path: Path
    description: Path
    format: str
    window_samples: int
    least_samples: int
    fixed: str | None
    difference: float
    checks: dict[tuple[int, int], float]
    quantization: str | None = None


def export(
    model: GAFX | Probabilities, path: str | os.PathLike[str], *, format: str = "onnx", audio: Sequence[Array] = (),
    quantize: str | None = None,
) -> Exported:  # fmt: skip
    """Export a model with a JSON description of its input and output, and compare it with PyTorch.

    The file maps `wave`, float32 `(batch, channels, samples)` in [-1, 1] at the model's rate, to `probabilities`,
    float32 `(batch, classes)`: the output of `Probabilities` in eval mode, temperature included. The batch size is
    dynamic; so is the length, up to that of the model's clips, if the front-end and the classifier allow it.

    Args:
        model: from `gafx.load`, or its `Probabilities`; it is not changed.
        path: of the file, `.onnx` or `.pt2`; its folder is created, an existing file is replaced.
        format: `onnx` (opset 20) or `torch_export`.
        audio: waves for the check, float32 `(channels, samples)` each at the model's rate; default: a synthetic signal.
        quantize: `int8` stores the weight matrices of an ONNX file's classifier in 8 bits (`gafx.deploy.onnx_graph`);
            the difference that this makes is measured on a window of each wave, and stored in the description.

    Raises:
        UsageError: packages are missing, the model predicts no labels, cannot be exported in this format, has nothing
            to quantize, or the file's output (before quantization) differs from eager PyTorch's by more than 1e-4. No
            file is left then, and an existing one is kept.
    """
    check_format(format, quantize)
    path = Path(path)
    if path.suffix != FORMATS[format]:
        raise UsageError(f"{path} must end in {FORMATS[format]} for format={format}")
    given = model if isinstance(model, Probabilities) else Probabilities(model)
    _check_exportable(given)
    exact = copy.deepcopy(given).cpu().float().eval()
    window, least, fixed = _lengths(exact)
    description = path.with_suffix(".json")
    outputs = Outputs()
    for each in (path, description):
        outputs.claim(each, "the exported file")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as part:
        with _quiet():
            with exported.for_onnx() if format == "onnx" else nullcontext():
                program, reason = _capture(exact, window, least)
            if reason is not None:
                least, fixed = window, reason
            text = _text(describe(exact, window, least, fixed))
            (_write_onnx if format == "onnx" else _write_program)(program, part, text, fixed is not None)
            run = (_open_onnx if format == "onnx" else _open_program)(part)
            checks = _compare(exact, run, _sizes(window, least), audio)
        difference = float(np.max(list(checks.values())))  # NaN if any is
        if not difference <= TOLERANCE:
            raise UsageError(
                f"the exported model's probabilities differ by up to {difference:.2g} from the model's, {TOLERANCE:g} "
                f"is allowed; no file is left. Try --format {next(name for name in FORMATS if name != format)}, or "
                "other versions of torch, onnxscript or onnxruntime"
            )
        if quantize is not None:
            with _quiet():
                products = onnx_graph.quantize(part)
                if not products:
                    raise UsageError(
                        f"quantize={quantize}: the classifier {exact.info.classifier.get('name')} has no matrix "
                        "products to quantize, and 8 bits make convolutions slower; export the model without"
                    )
                run = _open_onnx(part)
                checks = _compare(exact, run, _sizes(window, least), audio)
                for start in range(0, len(audio), _BATCH):
                    some = audio[start : start + _BATCH]
                    for key, value in _compare(exact, run, [(len(some), window)], some).items():
                        checks[key] = max(value, checks.get(key, 0.0))
            difference = float(np.max(list(checks.values())))
            on = plural(len(audio), "file") if audio else "a synthetic signal"
            found = {"type": quantize, "products": products, "largest_difference": difference, "measured_on": on}
            text = _text({**json.loads(text), "quantization": found})
            onnx_graph.describe_inside(part, KEY, text)
    write_text(description, text + "\n")
    return Exported(path, description, format, window, least, fixed, difference, checks, quantize)


def _text(description: dict[str, Any]) -> str:
    return json.dumps(description, indent=2)


def check_format(format: str, quantize: str | None = None) -> None:
    """Raise `UsageError` unless there is such a format, and the packages that write and run it are installed."""
    if format not in FORMATS:
        raise UsageError(f"format={format!r} must be one of {', '.join(FORMATS)}")
    if quantize is not None and (quantize not in QUANTIZATIONS or format != "onnx"):
        raise UsageError(
            f"quantize={quantize!r} with format={format}: only {', '.join(QUANTIZATIONS)}, and only with format=onnx"
        )
    for package in ("onnx", "onnxscript", "onnxruntime") if format == "onnx" else ():
        require(package, "export to ONNX")


def _check_exportable(model: Probabilities) -> None:
    """Raise `UsageError` for a model with a part that is no computation of PyTorch's."""
    for part, arguments in _parts(model):
        if part.not_exportable is not None:
            raise UsageError(
                f"a model with {arguments.get('name', type(part).__name__)} cannot be exported, since "
                f"{part.not_exportable}; use gafx.load and gafx predict instead"
            )


def _parts(model: Probabilities) -> tuple[tuple[Part, dict[str, Any]], ...]:
    """Front-end and classifier, with their arguments."""
    return (model.model.frontend, model.info.frontend), (model.model.classifier, model.info.classifier)


def describe(model: Probabilities, window: int, least: int, fixed: str | None) -> dict[str, Any]:
    """Description of an exported model for programs without gafx, stored in a JSON file next to it and inside it."""
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
        "calibration": info.calibration, "quantization": None,
        "frontend": info.frontend.get("name"), "classifier": info.classifier.get("name"),
    }  # fmt: skip


def read_description(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the description inside an exported file, in case its JSON file is lost."""
    if Path(path).suffix == FORMATS["onnx"]:
        return describe_session(open_session(Path(path)), Path(path))
    extra = {KEY: ""}
    torch.export.load(path, extra_files=extra)
    found: dict[str, Any] = json.loads(extra[KEY])
    return found


# --- writing ----------------------------------------------------------------------------------------------------------


def _lengths(model: Probabilities) -> tuple[int, int, str | None]:
    """Longest and shortest wave that the file is to accept, in samples, and the reason if they are equal."""
    frontend, classifier = model.model.frontend, model.model.classifier
    window = round(model.info.segment_seconds * frontend.sample_rate)
    for part, arguments in _parts(model):
        if part.fixed_length is not None:
            return window, window, f"{arguments.get('name', 'the front-end')}: {part.fixed_length}"
    # Two patches at least: torch.export specialises on axes of size 1.
    wanted = 2 * classifier.min_frames
    if frontend.output_shape(window)[2] <= wanted:
        return window, window, f"the model's clips are so short that a map has at most {wanted} frames"
    return window, model.model.min_samples(wanted), None


def _capture(model: Probabilities, window: int, least: int) -> tuple[Any, str | None]:
    """The model as a graph, for several lengths if possible; otherwise for one, with the reason."""
    reason = None
    if least < window:
        try:
            return _trace(model, window, least), None
        except Exception as error:  # a part of another package, and any error of torch's
            reason = f"its operations cannot be written for several ({first_line(error)})"
    try:
        return _trace(model, window, window), reason
    except Exception as error:
        name = model.info.frontend.get("name", "its front-end")
        raise UsageError(
            f"a model of {name} and {model.info.classifier.get('name')} cannot be exported: torch.export reports "
            f"{first_line(error)!r}; use gafx.load and gafx predict instead"
        ) from error


def _trace(model: Probabilities, window: int, least: int) -> Any:
    from torch.fx.experimental import _config

    config: Any = _config  # torch's stubs do not know its `patch`
    axes: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
    if least < window:
        axes[2] = torch.export.Dim("samples", min=least, max=window)
    example = torch.zeros(2, model.model.frontend.channels, (least + window) // 2)
    # Weights in channels-last format would make the layout, and so the graph, depend on whether the batch size is 1.
    plain: Any = copy.deepcopy(model).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    # Otherwise torch tests every dynamic axis for size 1, and specialises the graph on the answer.
    with torch.no_grad(), config.patch(backed_size_oblivious=True):
        return torch.export.export(plain, (example,), dynamic_shapes=(axes,), strict=False)


def _write_onnx(program: Any, path: Path, text: str, fixed: bool) -> None:
    tensors = (*program.state_dict.values(), *program.constants.values())
    total = sum({t.data_ptr(): t.nbytes for t in tensors if isinstance(t, Tensor)}.values())
    if total > _MAX_ONNX_BYTES:
        raise UsageError(f"the model's {size(total)} exceed the 2 GiB of an ONNX file; use --format torch_export")
    names = {0: "batch"} if fixed else {0: "batch", 2: "samples"}
    try:
        written = torch.onnx.export(
            program, (), dynamo=True, input_names=[INPUT], output_names=[OUTPUT], opset_version=onnx_graph.OPSET,
            verbose=False, external_data=False, dynamic_shapes=(names,),
            custom_translation_table=onnx_graph.translations(program),
        )  # fmt: skip
    except Exception as error:
        raise UsageError(
            f"the model cannot be written as ONNX: {first_line(error)!r}; try --format torch_export"
        ) from error
    assert written is not None
    onnx_graph.define_attention(written.model)
    written.model.metadata_props[KEY] = text
    written.save(os.fspath(path), external_data=False)


def _write_program(program: Any, path: Path, text: str, _: bool) -> None:
    with path.open("wb") as file:  # a path would have to end in .pt2
        torch.export.save(program, file, extra_files={KEY: text})


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporters' warnings about their own internals; errors are exceptions."""
    levels = {}
    for name in ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir", "root"):
        levels[name] = logging.getLogger(name).level
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


# --- checking ---------------------------------------------------------------------------------------------------------


def _open_onnx(path: Path) -> Run:
    session = open_session(path)
    return lambda wave: session.run([OUTPUT], {INPUT: wave})[0]


def _open_program(path: Path) -> Run:
    with path.open("rb") as file:
        module = torch.export.load(file).module()

    @torch.inference_mode()
    def run(wave: Array) -> Array:
        answer: Array = module(torch.from_numpy(wave)).numpy()
        return answer

    return run


def _sizes(window: int, least: int) -> list[tuple[int, int]]:
    """(batch, samples) of the checks."""
    if least == window:
        return [(1, window), (3, window)]
    return [(1, window), (2, window), (3, least), (2, (least + window) // 2), (1, (2 * least + window) // 3 + 1)]


def _compare(
    model: Probabilities, run: Run, sizes: Sequence[tuple[int, int]], audio: Sequence[Array]
) -> dict[tuple[int, int], float]:
    """Largest absolute difference between a file's probabilities and the model's, for each size."""
    channels, rate = model.model.frontend.channels, model.info.sample_rate
    found = {}
    for batch, samples in sizes:
        wave = _segments(audio, batch, samples) if audio else synthetic_signal(batch, channels, samples, rate)
        with torch.inference_mode():
            expected = model(torch.from_numpy(wave)).numpy()
        try:
            answer = run(wave)
        except Exception as error:
            raise UsageError(
                f"the exported model fails on {batch} x {samples} samples, and no file is left: {first_line(error)}"
            ) from error
        if answer.shape != expected.shape or answer.dtype != np.float32:
            raise UsageError(
                f"the exported model's output is {answer.shape} {answer.dtype} instead of {expected.shape} float32; no "
                "file is left"
            )
        found[batch, samples] = float(np.abs(answer - expected).max())
    return found


def _segments(audio: Sequence[Array], batch: int, samples: int) -> Array:
    """`(batch, channels, samples)` from the recordings round robin, at different positions; short ones are repeated."""
    rows = []
    for number in range(batch):
        wave = audio[number % len(audio)]
        wave = np.tile(wave, (1, -(-samples // wave.shape[1])))
        start = (wave.shape[1] - samples) * (number + 1) // (batch + 1)
        rows.append(wave[:, start : start + samples])
    return np.ascontiguousarray(np.stack(rows), dtype=np.float32)


def synthetic_signal(batch: int, channels: int, samples: int, sample_rate: int) -> Array:
    """Sweeps over all frequencies with noise bursts and pauses, different in each row and channel.

    float32 `(batch, channels, samples)` in [-1, 1].
    """
    rng = np.random.default_rng(samples)
    time = np.arange(samples) / max(samples, 1)
    rows = np.arange(batch)[:, None, None] + np.arange(channels)[None, :, None] / 2
    cycles = (0.02 + 0.4 * time / (1 + rows / 3)) * samples / 2 * time
    bursts = rng.standard_normal((batch, channels, samples)) * (np.sin(2 * np.pi * (3 + rows) * time) > 0.6)
    wave = 0.4 / (1 + rows) * np.sin(2 * np.pi * cycles) * (np.cos(2 * np.pi * 2 * time) > -0.8) + 0.1 * bursts
    return np.clip(wave, -1, 1).astype(np.float32)
