"""Saved models, in a folder or on the hub: `config.json`, `model.safetensors` and the model card.

This module does not build models, and nothing that it reads is executed.
"""

import dataclasses
import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from gafx import io
from gafx._version import __version__
from gafx.config import read_mapping
from gafx.errors import UsageError, did_you_mean, first_line
from gafx.registry import check_type
from gafx.saving import weights
from gafx.saving.card import model_card
from gafx.saving.catalogue import CATALOGUE, find
from gafx.saving.info import ModelInfo, file_digest

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, WEIGHTS, CARD = "config.json", weights.FILE, "README.md"
_OURS = {CONFIG, WEIGHTS, CARD, weights.OBJECTIVE_FILE}
# Limits of the sizes in a config.json; above them building the model would exhaust the memory. The first is of a
# single argument of a part (no rate, width or length comes near), the second of the product of the two largest, such as
# mel bins and samples of a transform, the third of the depth where the file has fewer tensors.
_MAX_ARGUMENT = 2**20
_MAX_TABLE = 2**27
_MAX_DEPTH = 64
# Types of what the model card is made from.
_SCORE = {"value": float | None, "low": float | None, "high": float | None, "interval": str | None}
_EVALUATED_ON = {"data": str, "protocol": str, "part": str, "tracks": int, "recordings": int}
_CALIBRATION = {"temperature": float, "part": str, "tracks": int, "weights": str}


def write(
    state: "Mapping[str, Tensor]", info: ModelInfo, folder: str | os.PathLike[str], source: str | None = None,
    objective: "Mapping[str, Tensor] | None" = None,
) -> Path:  # fmt: skip
    """Write a model to `folder` atomically.

    Scores and calibration in `info` that belong to other weights are omitted, with a warning.

    Args:
        state: tensors by name.
        info: description of the model.
        folder: new, empty, or one that contains an earlier model and nothing else, which is replaced.
        source: the argument of `gafx.load` in the model card; by default a placeholder for the folder.
        objective: tensors of the training objective that are no part of the model, for a file of their own.

    Raises:
        UsageError: it cannot be written, or `folder` contains other files; its content is unchanged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    folder = Path(folder).expanduser().absolute()
    _check_target(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with io.atomic_folder(folder, replace=True) as part:
            save_file(_separate(state), part / WEIGHTS, _header(info))
            io.apply_umask(part / WEIGHTS)
            if objective:
                save_file(_separate(objective), part / weights.OBJECTIVE_FILE)
                io.apply_umask(part / weights.OBJECTIVE_FILE)
            info = drop_stale_metadata(info, part / WEIGHTS, "saved")
            _write_texts(part, dataclasses.replace(info, gafx_version=__version__), source)
    except (OSError, SafetensorError) as error:
        raise UsageError(
            f"the model cannot be written into {folder} ({error}): make room or choose another folder; a training run "
            "resumes from its last checkpoint when its command is repeated"
        ) from error
    return folder


def drop_stale_metadata(info: ModelInfo, path: Path, what: str) -> ModelInfo:
    """Remove scores and calibration whose weight digest does not match the file, with a warning.

    Args:
        info: of the model.
        path: of its weights.
        what: past participle for the warning: "saved" or "loaded".
    """
    if not (info.scores or info.calibration):
        return info
    digest = file_digest(path)
    if info.scores and info.evaluated_on.get("weights") != digest:
        warnings.warn(f"the scores are those of other weights; they are left out of what is {what}", stacklevel=4)
        info = dataclasses.replace(info, scores={}, evaluated_on={})
    if info.calibration and info.calibration.get("weights") != digest:
        warnings.warn(f"the calibration is that of other weights; it is left out of what is {what}", stacklevel=4)
        info = dataclasses.replace(info, calibration={})
    return info


def rename_digests(info: ModelInfo, state: "Mapping[str, Tensor]") -> ModelInfo:
    """Return a copy whose scores and calibration belong to the file that `write` would make of `state`.

    For weights of an earlier version: their tensors were renamed, so the file, and its digest, differ when saved again.
    """
    from safetensors.torch import save

    now = {"weights": io.digest(save(_separate(state), _header(info)), size=16)}
    return dataclasses.replace(
        info,
        evaluated_on=info.evaluated_on and info.evaluated_on | now,
        calibration=info.calibration and info.calibration | now,
    )


def _header(info: ModelInfo) -> dict[str, str]:
    """Metadata of the weights file, so that the file alone, without config.json, records its sampling rate."""
    about = {"sample_rate": info.sample_rate, "frontend": info.frontend.get("name"), "objective": info.objective}
    return {weights.ABOUT: json.dumps(about)}


def _check_target(folder: Path) -> None:
    """Raise `UsageError` unless `folder` is new, empty or a saved model."""
    if folder.is_dir():
        others = sorted(path.name for path in folder.iterdir() if path.name not in _OURS or path.is_dir())
        if others:
            named = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
            raise UsageError(
                f"{folder} holds other things ({named}), and saving replaces the whole folder: name a new one, e.g. "
                f"{folder / 'model'}"
            )
    elif folder.exists() or folder.is_symlink():
        raise UsageError(f"{folder} is a file: name a folder to save the model in")


def _separate(state: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Tensors on the CPU without shared memory: the file format stores each separately, tied ones twice."""
    separate: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        separate[name] = tensor
    return separate


def _write_texts(folder: Path, info: ModelInfo, source: str | None = None) -> None:
    """Write config.json and the model card. Bytes of labels that are not UTF-8 (from file names) are escaped."""
    config = json.dumps(info.as_dict(), indent=2, ensure_ascii=False) + "\n"
    for name, text in ((CONFIG, config), (CARD, model_card(info, source or "path/to/this/folder"))):
        io.write_bytes(folder / name, text.encode("utf-8", errors="backslashreplace"))


def write_scores(folder: Path, scores: Mapping[str, Any], evaluated_on: Mapping[str, Any]) -> None:
    """Write scores into config.json and card of a saved model; the weights are not touched.

    Raises:
        UsageError: no model there.
        OSError: the folder cannot be written.
    """
    with _changed(folder) as info:
        info.scores = json.loads(json.dumps(scores))
        info.evaluated_on = {**evaluated_on, "weights": file_digest(folder / WEIGHTS)}


def write_calibration(folder: Path, calibration: Mapping[str, Any]) -> None:
    """Write a calibration into config.json and card of a saved model; errors as of `write_scores`."""
    with _changed(folder) as info:
        info.calibration = {**json.loads(json.dumps(calibration)), "weights": file_digest(folder / WEIGHTS)}


@contextmanager
def _changed(folder: Path) -> Iterator[ModelInfo]:
    """Read a saved model's info and write it back when the block ends; of several processes one after the other."""
    lock = folder.with_name(f".{folder.name}.lock")
    with io.locked(lock, f"waiting for another process that changes {folder}", remove=True):
        info = read_info(folder / CONFIG)
        yield info
        _write_texts(folder, info)


def check_source(source: object) -> None:
    """Raise `UsageError` for what can name no model."""
    if not isinstance(source, (str, os.PathLike)) or not os.fspath(source).strip():
        raise UsageError(
            f"{source!r} names no model: give the path of a run or a model, a hub repository (<owner>/<name>) or a "
            "name of gafx list --pretrained"
        )


def locate(source: str | os.PathLike[str], **download: Unpack[weights.Download]) -> tuple[Path, Path]:
    """Return the paths of config.json and model.safetensors of a saved model.

    Args:
        source: a folder that `GAFX.save` wrote, a run's folder (its `model/`), or a hub repository as `owner/name`:
            only then these two files are downloaded, both of the same commit. A path that does not exist is never
            asked of the hub: see `gafx.saving.weights.is_remote`.
        **download: see `gafx.saving.weights.Download`; not used for a folder.

    Raises:
        UsageError: no model there, or the hub cannot be reached.
    """
    folder = weights.local_path(source)
    if (folder / "model" / CONFIG).is_file():
        folder = folder / "model"
    if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
        return folder / CONFIG, folder / WEIGHTS
    if isinstance(source, str) and weights.is_remote(source):
        config = weights.fetch_named(source, [CONFIG], **download)
        same: weights.Download = {**download, "revision": config.parent.name}
        return config, weights.fetch(source, [WEIGHTS], **same)
    if not folder.exists():
        if str(source) in CATALOGUE:  # a Path
            raise UsageError(f"there is no path {source}; the published model is loaded by its name, {str(source)!r}")
        hint = did_you_mean(str(source), CATALOGUE)
        raise UsageError(
            f"{str(source)!r} does not exist{hint.rstrip('?') or weights.models_near(folder)}; write the path of a run "
            "or a model, the id of a hub repository, <owner>/<name>, where no folder <owner> is, or a name of gafx "
            "list --pretrained"
        )
    if folder.suffix == ".onnx":
        raise UsageError(
            f"{str(source)!r} is an exported model, with which gafx predict and gafx listen label; for everything else "
            "name the run or the saved model that it was exported from"
        )
    if folder.is_file():
        raise UsageError(f"{str(source)!r} is a file: name the folder of the run or the model, which also has {CONFIG}")
    weights.refuse_shards(folder)
    raise UsageError(
        f"{str(source)!r} holds no model: expected {CONFIG} and {WEIGHTS} in it or in its sub-folder model/ (a run "
        "writes them when it is finished), or the id of a hub repository, <owner>/<name>"
    )


def check_exists(source: str | os.PathLike[str]) -> None:
    """Raise the `UsageError` of `locate` for a path where nothing is, before torch is imported to load it."""
    check_source(source)
    remote = isinstance(source, str) and weights.is_remote(source)
    if find(source) is None and not remote and not weights.local_path(source).exists():
        locate(source)


def saved_seconds(source: object) -> float | None:
    """Return the clip length of the model on this machine that `source` names, also by its weights; None if unknown."""
    path = weights.local_path(source)
    for folder in (path, path / "model", path.parent):
        if (folder / CONFIG).is_file():
            with suppress(UsageError):  # another project's
                return read_info(folder / CONFIG).segment_seconds
    return None


def read_info(path: Path) -> ModelInfo:
    """Read the `ModelInfo` in a config.json.

    Every `pretrained` in it, at any depth, is set to false: the weights are in the file next to it, and a downloaded
    configuration must not choose other files to read or fetch.

    Raises:
        UsageError: the file is damaged, or has an unknown key or an invalid value.
    """
    values = read_mapping(path)
    known = [*(f.name for f in dataclasses.fields(ModelInfo)), "started_from", "imagenet"]
    unknown = [str(key) for key in values if key not in known]
    if unknown:
        hint = written_by_newer(values.get("gafx_version")) or did_you_mean(unknown[0], known)
        raise UsageError(f"{path} has the key {unknown[0]!r}, which gafx {__version__} does not know{hint}")
    info = ModelInfo.from_dict(values, str(path))
    info.frontend, info.classifier = without_pretrained(info.frontend), without_pretrained(info.classifier)
    for key, part in (("frontend", info.frontend), ("classifier", info.classifier)):
        if not isinstance(part.get("name"), str):
            raise UsageError(f"{path} names no {key}: {key} should hold its name and its arguments")
        for number in _numbers_in(part):
            if abs(number) > _MAX_ARGUMENT:
                raise UsageError(f"{path}: {key} has an argument of {number:.4g}; the limit is {_MAX_ARGUMENT}")
    check_classes(info.classes, str(path))
    _check_records(info, str(path))
    return info


def _check_records(info: ModelInfo, path: str) -> None:
    """Raise `UsageError` for scores or a calibration of another form than gafx writes."""
    for key, score in info.scores.items():
        if not isinstance(score, Mapping) or "value" not in score:
            raise UsageError(f"{path}: scores.{key}={score!r} must hold value, low, high and interval")
        _check_values(score, _SCORE, f"{path}: scores.{key}")
        if (score.get("low") is None) != (score.get("high") is None):
            raise UsageError(f"{path}: scores.{key} must hold both low and high, or neither")
    if info.scores:
        _check_values(info.evaluated_on, _EVALUATED_ON, f"{path}: evaluated_on")
    if info.calibration:
        _check_values(info.calibration, _CALIBRATION, f"{path}: calibration")
        if not 0.01 <= info.temperature <= 100:
            raise UsageError(f"{path}: calibration.temperature={info.temperature!r} must be between 0.01 and 100")
        for key in ("before", "after"):
            values = info.calibration.get(key, {})
            if not isinstance(values, Mapping) or not all(isinstance(v, (int, float)) for v in values.values()):
                raise UsageError(f"{path}: calibration.{key}={values!r} must hold numbers by name")


def _check_values(values: Mapping[str, Any], types: Mapping[str, Any], where: str) -> None:
    for key, annotation in types.items():
        value = values.get(key)
        check_type(value, annotation, f"{where}.{key}")


def check_arguments(part: Mapping[str, Any], tensors: int) -> None:
    """Raise `UsageError` for arguments that define more layers than the file has tensors, or for a huge table."""
    sizes = [abs(value) for key, value in part.items() if key != "sample_rate" and type(value) is int]
    first, second = sorted([1, 1, *sizes])[:-3:-1]
    if first * second > _MAX_TABLE:
        raise UsageError(f"{part['name']} has arguments of {first} and {second}: a table of that size is refused")
    depth = part.get("depth")
    if type(depth) is int and depth > max(tensors, _MAX_DEPTH):
        raise UsageError(f"{part['name']} has depth {depth}, but its file has only {tensors} tensors")


def _numbers_in(values: Any) -> Iterator[float]:
    if isinstance(values, (int, float)):
        yield values
    elif isinstance(values, (Mapping, list)):
        for value in values.values() if isinstance(values, Mapping) else values:
            yield from _numbers_in(value)


def check_classes(classes: Any, where: str) -> list[str]:
    """Return labels as a list; raise `UsageError` unless they are distinct strings, at least one."""
    if isinstance(classes, (str, bytes)) or not isinstance(classes, Iterable):
        raise UsageError(f"{where}: classes={classes!r} is no list of labels; write e.g. classes=['dog', 'rain']")
    classes = list(classes)
    if not classes or not all(isinstance(label, str) for label in classes) or len(set(classes)) < len(classes):
        raise UsageError(f"{where}: classes must be distinct labels, at least one, each a string; got {classes[:5]}")
    return classes


def written_by_newer(version: object) -> str:
    """Return a hint for messages if `version` is newer than this one, else an empty string."""
    theirs, ours = _numbers(version), _numbers(__version__)
    return f"; it was written by gafx {version}: install that version or a newer one" if theirs > ours else ""


def _numbers(version: object) -> list[int]:
    return [int(number) for number in re.findall(r"\d{1,9}", version)[:3]] if isinstance(version, str) else []


def without_pretrained(values: Any) -> Any:
    """Return a copy in which every `pretrained`, at any depth, is false."""
    if isinstance(values, Mapping):
        return {key: False if key == "pretrained" else without_pretrained(value) for key, value in values.items()}
    return [without_pretrained(value) for value in values] if isinstance(values, (list, tuple)) else values


def own_repository(name: str, token: str | None) -> str:
    """Return the id of the repository of that name of the token's user, `owner/name`.

    Raises:
        UsageError: no login, or the hub cannot be reached.
    """
    import huggingface_hub

    token = _token(token)
    try:
        owner = huggingface_hub.HfApi(token=token).whoami()["name"]
    except Exception as error:  # as in `push`
        raise UsageError(f"the hub does not name the token's user ({first_line(error)}); give repo_id=...") from error
    return f"{owner}/{name}"


def _token(token: str | None) -> str:
    import huggingface_hub

    token = token or huggingface_hub.get_token()
    if token is None:
        raise UsageError("not logged in to the hub: run `hf auth login` once, set HF_TOKEN, or pass token=...")
    return token


def push(
    folder: Path, repo: str, *, private: bool | None, token: str | None, message: str, branch: str | None = None,
    create_pr: bool = False,
) -> str:  # fmt: skip
    """Upload a saved model to the hub and return the repository's address; a missing repository or branch is created.

    Raises:
        UsageError: a malformed name, no login, no permission to write there, or the hub cannot be reached.
    """
    import huggingface_hub

    if not weights.is_repo(repo):
        raise UsageError(f"{repo!r} is no name of a hub repository: write <owner>/<name>, e.g. 'me/my-model'")
    api = huggingface_hub.HfApi(token=_token(token))
    try:
        url = api.create_repo(repo, private=private, exist_ok=True)
        if branch is not None:
            api.create_branch(repo, branch=branch, exist_ok=True)
        api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message=message, allow_patterns=sorted(_OURS), revision=branch,
            create_pr=create_pr,
        )  # fmt: skip
    except Exception as error:  # the client's network library, and so its exceptions, differ between versions
        raise UsageError(
            f"{repo} could not be pushed to {api.endpoint} ({first_line(error)}): check the name, the token's right to "
            "write there, and the network; or keep the model with save(folder)"
        ) from error
    return str(url)
