"""Errors meant for the person at the keyboard: one sentence with the value, the choices and the cure."""

import sys
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from types import ModuleType
from typing import Any, get_args

# Keys and values of earlier versions -> their names now. Messages suggest the new name; `run_id` hashes the old one, so
# that runs finished before the change are still found.
RENAMED = {
    "rate": "lr", "rate_scale": "lr_scale", "decay": "lr_gamma", "accumulate": "grad_accumulation",
    "test_share": "test_fraction", "val_share": "val_fraction", "time_mask_share": "time_mask_fraction",
    "frequency_mask_share": "frequency_mask_fraction", "least_seconds": "min_seconds", "pieces": "segments",
    "piece": "segment",
}  # fmt: skip

# Optional packages by the name that is imported -> gafx's extra that installs them, and their name on the index.
EXTRAS = {
    "accelerate": ("train", "accelerate"), "hydra": ("train", "hydra-core"), "omegaconf": ("train", "omegaconf"),
    "jinja2": ("train", "jinja2"), "matplotlib": ("train", "matplotlib"), "scipy": ("train", "scipy"),
    "tensorboard": ("train", "tensorboard"), "wandb": ("train", "wandb"), "demucs": ("u", "demucs"),
    "timm": ("timm", "timm"), "torchvision": ("timm", "torchvision"), "sklearn": ("fit", "scikit-learn"),
    "umap": ("pictures", "umap-learn"), "onnx": ("export", "onnx"), "onnxscript": ("export", "onnxscript"),
    "onnxruntime": ("export", "onnxruntime"), "gradio": ("demo", "gradio"), "pyarrow": ("data", "pyarrow"),
    "av": ("formats", "av"), "sounddevice": ("listen", "sounddevice"), "fastapi": ("serve", "fastapi"),
    "uvicorn": ("serve", "uvicorn"), "python_multipart": ("serve", "python-multipart"),
    "pandas": ("pandas", "pandas"), "librosa": ("classical", "librosa"), "shap": ("classical", "shap"),
    "skops": ("classical", "skops"), "xgboost": ("classical", "xgboost"), "transformers": ("codec", "transformers"),
    "vector_quantize_pytorch": ("codec", "vector-quantize-pytorch"), "symusic": ("midi", "symusic"),
}  # fmt: skip


class UsageError(ValueError):
    """A value from outside (configuration, command line, file, folder) that cannot be used.

    The commands print its message as one sentence and exit with status 2; in library use it is a plain `ValueError`.
    """


class UnreadableAudio(UsageError):
    """An audio file that cannot be decoded, or whose samples cannot be used. The message is the reason alone."""


class UnreadableMidi(UsageError):
    """A MIDI file that cannot be read, or has no notes. The message is the reason alone."""


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the closest choice, or an empty string where none is close.

    A choice that had another name in an earlier version is also found by that one (see `RENAMED`).

    Args:
        name: the given name.
        choices: valid names; of dotted keys such as `optim.lr` the last part may have been renamed.
    """
    import difflib  # only where there is a mistake, as `inspect` below

    choices = list(choices)
    names = {choice: choice for choice in choices}
    for old, new in RENAMED.items():
        for choice in choices:
            if choice == new or choice.endswith(f".{new}"):
                names.setdefault(choice.removesuffix(new) + old, choice)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean {names[close[0]]!r}?" if close else ""


def check_options(options: Mapping[str, Any], function: Callable[..., Any], name: str) -> None:
    """Check keyword arguments that are passed on to a function.

    Args:
        options: the keyword arguments.
        function: takes them; those that are annotated as `int` or `float` must be numbers.
        name: what the user called, for the message.

    Raises:
        UsageError: the function has no such keyword, or a number is none.
    """
    import inspect

    known = {key: one for key, one in inspect.signature(function).parameters.items() if one.kind is one.KEYWORD_ONLY}
    for key, value in options.items():
        if key not in known:
            raise UsageError(f"{name} has no option {key}{did_you_mean(key, known)}; it has {', '.join(known)}")
        kinds = get_args(known[key].annotation) or (known[key].annotation,)
        number = next((kind for kind in kinds if kind in (int, float)), None)
        if number and not isinstance(value, Integral if number is int else Real) and type(value) not in kinds:
            raise UsageError(f"{key}={value!r} must be {'a whole' if number is int else 'a'} number")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, at most 200 characters; the name of its type if it has none."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) <= 200 else f"{line[:197]}..."


def require(module: str, what: str) -> ModuleType:
    """Import an optional package.

    Args:
        module: name to import, e.g. `accelerate`.
        what: the command or feature that needs it, e.g. `gafx train`.

    Raises:
        UsageError: it is not installed; the message names the extra that installs it.
    """
    try:
        __import__(module)  # not importlib's function, which `python -X importtime` does not list
        return sys.modules[module]
    except ModuleNotFoundError as error:
        raise missing_package(error, what) from error


def missing_package(error: ModuleNotFoundError, what: str) -> UsageError:
    """The error that names the extra which installs a missing package; `error` itself is raised for any other module.

    Args:
        error: of an import.
        what: the command or feature that needs the package.
    """
    package = (error.name or "").partition(".")[0]
    if package == "torch":
        return UsageError(
            f"{what} needs PyTorch: pip install torch; without it, gafx predict and gafx listen take the .onnx file "
            "of an exported model"
        )
    if package not in EXTRAS:
        raise error
    extra, name = EXTRAS[package]
    return UsageError(f"{what} needs {name}: pip install 'gafx[{extra}]'")
