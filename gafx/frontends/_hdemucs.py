"""HDemucs without its last inverse STFT, and its published weights in their two layouts.

The network is the class of demucs (Défossez, 2021; MIT licence). The loaders of demucs are not used: they import the
class that a file names and fall back to unpickling. Here the class is fixed, the arguments in a file are compared with
those of the class, and only tensors are read.
"""

import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from demucs.demucs import LocalState
from demucs.hdemucs import HDecLayer, HDemucs, HEncLayer
from demucs.spec import spectro
from torch import Tensor, nn

from gafx.errors import UsageError
from gafx.nn.wrap import keep_float32, recompute
from gafx.saving import weights

SOURCES = ("drums", "bass", "other", "vocals")
REPOSITORY = "adefossez/Demucs-hdemucs_mmi"
# The signature of the one model in hdemucs_mmi, then the name under which gafx and others save.
FILES = ("75fc33f5.safetensors", weights.FILE)
# torchaudio's HDEMUCS_HIGH_MUSDB_PLUS, and the path where torchaudio caches it.
BUNDLE = "models/hdemucs_high_trained.pt"
BUNDLE_ADDRESS = "https://download.pytorch.org/torchaudio/"

# Arguments of HDemucs that change neither its tensors nor its computation: initial values, other outputs, labels.
_NEUTRAL = {
    "sources", "samplerate", "segment", "rescale", "dconv_init", "emb_smooth", "wiener_iters", "end_iters",
    "wiener_residual", "multi_freqs_depth",
}  # fmt: skip
_TORCHAUDIO = {"freq_encoder": "encoder", "time_encoder": "tencoder", "freq_decoder": "decoder",
               "time_decoder": "tdecoder"}  # fmt: skip
# A norm that torchaudio's class contains but does not use.
_UNUSED = ("time_encoder.4.norm1.weight", "time_encoder.4.norm1.bias")


class _Spectrum:
    """Stand-in for the wave of the spectral branch: adding the waves of the temporal branch to it returns both."""

    def __init__(self, spectrum: Tensor):
        self.spectrum = spectrum

    def to(self, device: torch.device) -> "_Spectrum":
        return _Spectrum(self.spectrum.to(device))

    def __radd__(self, waves: Tensor) -> tuple[Tensor, Tensor]:
        return self.spectrum, waves


class SpectralHDemucs(HDemucs):
    """HDemucs without its last inverse STFT: both branches as complex spectra.

    HDemucs ends in `waves of the temporal branch + inverse STFT of the spectral branch`. Here the inverse STFT returns
    its input, and the waves are transformed instead, by the same STFT.

    Args:
        width: channels of the first layer, HDemucs' `channels`; 48 as released.
        checkpointing: recompute each layer in the backward pass.

    Attributes:
        layer_types: classes of the encoder's and decoder's layers.
    """

    layer_types = (HEncLayer, HDecLayer)

    def __init__(self, width: int, *, checkpointing: bool):
        super().__init__(list(SOURCES), channels=width)
        for module in self.modules():
            # It counts distances between frames in the dtype of the activations, and bfloat16 is exact up to 256 only.
            if isinstance(module, LocalState):
                keep_float32(module)
        if checkpointing:
            for layers in (self.encoder, self.tencoder, self.decoder, self.tdecoder):
                for layer in layers:
                    recompute(layer)

    def _spec(self, x: Tensor) -> Tensor:
        """STFT of demucs: `(batch, channels, samples)` -> complex `(batch, channels, 2048, ceil(samples / 1024))`.

        demucs' own version ends in an assertion that the padding has not changed the wave. That synchronises with the
        GPU, and it fails for NaN, which would end training without reporting or skipping the step.
        """
        samples, frames = x.shape[-1], -(-x.shape[-1] // self.hop_length)
        before = 3 * self.hop_length // 2
        after = before + frames * self.hop_length - samples
        # Reflection needs more samples than it adds: a short wave is zero-padded first, at its end as far as possible.
        missing = max(0, max(before, after) - samples + 1)
        behind = min(after, missing)
        x = nn.functional.pad(x, (missing - behind, behind))
        x = nn.functional.pad(x, (before - (missing - behind), after - behind), mode="reflect")
        return spectro(x, self.nfft, self.hop_length)[..., :-1, 2 : 2 + frames]

    def _ispec(self, z: Tensor, length: int | None = None, scale: int = 0) -> Any:
        return _Spectrum(z)

    def forward(self, mix: Tensor) -> Tensor:
        """`(batch, 2, samples)` -> complex `(batch, 4 sources, 2, 2048, ceil(samples / 1024))`."""
        spectrum, waves = super().forward(mix)
        # Sources are moved to the batch: reflection in `_spec` supports (batch, channels, samples) only.
        added = self._spec(waves.flatten(0, 1))
        return spectrum + added.unflatten(0, waves.shape[:2])


def find_weights(source: bool | str, key: str) -> Path:
    """Return the path of the file that `source` names, see `pretrained` of `GAFXU`.

    Raises:
        UsageError: it does not exist or cannot be downloaded.
    """
    if source == "torchaudio":
        return _bundle(key)
    asked = True if source == "hdemucs_mmi" else source
    return weights.find(asked, REPOSITORY, key=key, files=FILES, suffixes=(".safetensors", ".pt"))


def read_weights(path: Path, width: int) -> dict[str, Tensor]:
    """Read a state dict for `SpectralHDemucs` from a file in the layout of demucs, torchaudio or gafx.

    Raises:
        UsageError: the file is damaged, or contains another class or a network built with other arguments.
    """
    if path.suffix == ".pt":
        state = weights.read_state_dict(path)
    else:
        state = weights.read(path)
        _check_arguments(path, width)
    state = weights.part(weights.part(state, "frontend"), "hdemucs")
    if any(name.startswith("freq_encoder.") for name in state):
        state = {
            ".".join([_TORCHAUDIO.get(first, first), *rest]): tensor
            for name, tensor in state.items()
            if name not in _UNUSED
            for first, *rest in [name.split(".")]
        }
    return state


def _check_arguments(path: Path, width: int) -> None:
    """Compare the class and arguments in the metadata of a safetensors file with those of `SpectralHDemucs`.

    The metadata is compared only; nothing that it names is imported or called.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata: Mapping[str, str] = file.metadata() or {}
    if "klass" not in metadata:
        return
    if metadata["klass"] != "demucs.hdemucs.HDemucs" or "structure" in metadata:
        packed = " in packed form" if "structure" in metadata else ""
        raise UsageError(
            f"{path} holds a {metadata['klass']}{packed}, and GAFX-U reads demucs.hdemucs.HDemucs; the released one is "
            "hdemucs_mmi"
        )
    parameters = inspect.signature(HDemucs).parameters
    try:
        values = json.loads(metadata.get("args", "[]"))
        arguments: dict[str, Any] = dict(zip(parameters, values, strict=False))
        arguments |= json.loads(metadata.get("kwargs", "{}"))
        sources = [] if arguments.get("sources", SOURCES) is None else list(arguments.get("sources", SOURCES))
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"{path} has damaged metadata ({error}); download it again") from error
    if unknown := sorted(set(arguments) - set(parameters)):
        raise UsageError(f"{path} names arguments that HDemucs does not have: {', '.join(unknown)}")
    ours = {name: parameter.default for name, parameter in parameters.items()} | {"channels": width}
    for name, value in arguments.items():
        # Empty values differ: `multi_freqs` is [] in the released file and None by default.
        if name not in _NEUTRAL and (value or None) != (ours[name] or None):
            cure = f"; set frontend.width={value}" if name == "channels" else ""
            raise UsageError(
                f"{path} was built with {name}={value!r}, and GAFX-U has {name}={ours[name]!r}: the "
                f"outputs would differ{cure}"
            )
    if len(sources) != len(SOURCES):
        raise UsageError(f"{path} separates {len(sources)} sources, and GAFX-U reads {len(SOURCES)}")


def _bundle(key: str) -> Path:
    """Return the path of torchaudio's bundle, downloaded once into torchaudio's cache."""
    path = Path(torch.hub.get_dir(), "torchaudio", BUNDLE)
    if not path.is_file():
        from huggingface_hub.errors import OfflineModeIsEnabled

        try:
            if weights.is_offline():
                raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set")
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(BUNDLE_ADDRESS + BUNDLE, os.fspath(path), progress=False)
        except OSError as error:
            raise UsageError(
                f"{key}=torchaudio: {BUNDLE_ADDRESS + BUNDLE} could not be fetched ({error}). Other ways: "
                f"{key}=<file>.pt fetched elsewhere, {key}=true (the hub's {REPOSITORY}), or {key}=false for a random "
                "start"
            ) from error
    return path
