"""Published neural codecs: EnCodec and DAC through transformers' classes, and files of Jukebox's VQ-VAE.

Only safetensors and JSON are read, and Jukebox's own file with `torch.load(weights_only=True)`, which builds tensors
and plain values only.
"""

import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

from gafx.config import read_mapping
from gafx.errors import UsageError, first_line, require
from gafx.nn import bounded
from gafx.nn.codec import Codec
from gafx.nn.precision import Float32
from gafx.saving import weights

CONFIG = "config.json"
# A configuration may come from anywhere: bounds of layers and codebooks, and of sampling rates in Hz.
_MOST_LAYERS = 256
_MOST_HZ = 2**20
# Length and direction of a weight under torch's weight norm, by its earlier names, as in the released EnCodec, and now.
_WEIGHT_NORM = (
    (".weight_g", ".weight_v"), (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
)  # fmt: skip
# Files of Jukebox's VQ-VAE: its own, and the same tensors in safetensors.
JUKEBOX_FILES = (weights.FILE, "vqvae.safetensors", "vqvae.pth.tar")
JUKEBOX_RATE = 44100
JUKEBOX_SUFFIXES = (".safetensors", ".tar", ".pth", ".pt")


class TransformersCodec(Codec, Float32):
    """A codec of transformers with residual quantisers, frozen: no objective of gafx trains one.

    Args:
        config: values of transformers' configuration that differ from its defaults, see `settings`.
        quantizers: codebooks to use, the first ones.

    Attributes:
        name: of transformers' `model_type`, and of `frontend.codec`.
        repository: on the Hugging Face hub, of the default weights.
        classes: names of transformers' configuration and model.
        settings: values of the configuration that change the network or what it computes.
        strides: that one of them with the strides of the encoder's layers.
        counts: those that are numbers of layers or codebooks.
        config: the argument, without values that are the default.
        fixed_length: as of a front-end.
    """

    name: ClassVar[str]
    repository: ClassVar[str]
    classes: ClassVar[tuple[str, str]]
    settings: ClassVar[tuple[str, ...]]
    strides: ClassVar[str]
    counts: ClassVar[tuple[str, ...]]
    fixed_length = "the padding of a codec of transformers is computed for one length"

    def __init__(self, config: Mapping[str, Any] | None = None, *, quantizers: int = 1):
        super().__init__()
        transformers: Any = require("transformers", f"frontend.codec={self.name}")
        make_config, make_model = (getattr(transformers, name) for name in self.classes)
        given = dict(config or {})
        if unknown := [key for key in given if key not in self.settings]:
            raise UsageError(
                f"frontend.codec_config has the key {unknown[0]!r}; {self.name} has: {', '.join(self.settings)}"
            )
        try:
            values = make_config(**given)
            self._check(values)
            self.model = make_model(values)
            default = make_config()
        except UsageError:
            raise
        except Exception as error:  # transformers checks little, and each version raises errors of its own
            raise UsageError(f"frontend.codec_config={given} describes no {self.name} ({first_line(error)})") from error
        self.config = {key: given[key] for key in given if _plain(given[key]) != _plain(getattr(default, key))}
        self.sample_rate, self.num_codes = int(values.sampling_rate), int(values.codebook_size)
        self.hop_length, self.dim = int(values.hop_length), int(values.hidden_size)
        if not 1 <= quantizers <= len(self.layers):
            raise UsageError(
                f"frontend.quantizers={quantizers} must be between 1 and {len(self.layers)}, the codebooks of this "
                f"{self.name}"
            )
        self.quantizers = quantizers
        for module in list(self.model.modules()):
            if is_parametrized(module, "weight"):  # weight norm, computed anew at each pass: frozen weights need none
                remove_parametrizations(module, "weight")
        self.requires_grad_(False)

    @property
    def layers(self) -> Sequence[Any]:
        """Quantisers, one per codebook."""
        raise NotImplementedError

    def _check(self, values: Any) -> None:
        """Raise `UsageError` for a configuration of transformers that this class does not support.

        Numbers of layers and lengths in samples are bounded here; the sizes of tensors by `find`, since a network of
        these has at most as many elements as its file.
        """
        strides, rate = getattr(values, self.strides), values.sampling_rate
        if len(strides) <= _MOST_LAYERS and not 1 <= math.prod(strides) <= rate <= _MOST_HZ:
            raise UsageError(
                f"frontend.codec_config: {self.strides}={list(strides)} at sampling_rate={rate}: a frame must be at "
                f"most a second, and the rate at most {_MOST_HZ} Hz"
            )
        for key in (self.strides, *self.counts):
            count = len(strides) if key == self.strides else getattr(values, key)
            if count > _MOST_LAYERS:
                raise UsageError(f"frontend.codec_config: {count} layers by {key}; the limit is {_MOST_LAYERS}")

    def _encode(self, wave: Tensor) -> Tensor:
        """`(batch, 1, samples)` -> `(batch, dim, frames)`, not quantised."""
        encoded: Tensor = self.model.encoder(wave)
        return encoded

    def _quantize(self, layer: Any, residual: Tensor) -> tuple[Tensor, Tensor]:
        """`(batch, dim, frames)` -> codes `(batch, frames)` and their vectors `(batch, dim, frames)`."""
        raise NotImplementedError

    def _vectors(self, layer: Any, codes: Tensor) -> Tensor:
        """Codes `(batch, frames)` -> vectors `(batch, dim, frames)`."""
        raise NotImplementedError

    def codes(self, wave: Tensor) -> Tensor:
        # Codes are the index of a nearest vector: in half precision they would be those of another wave.
        with torch.no_grad(), torch.autocast(wave.device.type, enabled=False):
            residual, codes = self._encode(wave.to(next(self.model.parameters()).dtype)), []
            for layer in self.layers[: self.quantizers]:
                indices, vectors = self._quantize(layer, residual)
                residual = residual - vectors
                codes.append(indices)
            return torch.stack(codes, dim=1)

    def vectors(self, codes: Tensor) -> Tensor:
        parts = zip(self.layers, codes.unbind(dim=1), strict=False)
        return sum((self._vectors(layer, indices) for layer, indices in parts), torch.zeros((), device=codes.device))

    def decode(self, codes: Tensor) -> Tensor:
        wave = self.model.decoder(self.vectors(codes))
        return nn.functional.pad(wave, (0, codes.shape[-1] * self.hop_length - wave.shape[-1]))

    @classmethod
    def find(cls, source: bool | str) -> tuple[dict[str, Any], Path]:
        """Return the argument `config` that published or saved weights need, and their path.

        Args:
            source: `True` for `repository`; a folder or file in transformers' layout (config.json beside
                model.safetensors) or of a model that gafx saved with this codec; or a hub repository of either.

        Raises:
            UsageError: no weights there, no config.json beside them, or another kind of model.
        """
        path = weights.find(source, cls.repository, key="frontend.pretrained")
        config = path.with_name(CONFIG)
        if not config.exists() and isinstance(source, (bool, str)) and path.parent.parent.name == "snapshots":
            repository = cls.repository if source is True else str(source)
            config = weights.fetch(repository, [CONFIG], revision=path.parent.name)
        if not config.exists():
            raise UsageError(
                f"frontend.pretrained={source!r}: {path} lacks {CONFIG} beside it, which says how this {cls.name} is "
                "built; copy it from where the weights are from"
            )
        values = read_mapping(config)
        own = values.get("frontend")
        if isinstance(own, dict):  # of gafx
            kind, values = own.get("codec"), own.get("codec_config") or {}
        else:
            kind = values.get("model_type")
        if kind != cls.name or not isinstance(values, dict):
            raise UsageError(
                f"frontend.pretrained={source!r}: {config} describes {kind!r}, not the codec {cls.name!r}; set "
                f"frontend.codec, or frontend.pretrained=true for {cls.repository}"
            )
        found = {key: values[key] for key in cls.settings if key in values}
        try:
            bounded.elements(lambda: cls(found), cls.name, bounded.room(path))
        except UsageError as error:
            raise UsageError(f"frontend.pretrained={source!r}: {config}: {error}") from error
        return found, path

    @staticmethod
    def rename(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Name the tensors of a file of transformers as in this module; weights under weight norm become plain ones."""
        plain = dict(state)
        for length, direction in _WEIGHT_NORM:
            for name in [name.removesuffix(length) for name in state if name.endswith(length)]:
                if name + direction in plain:
                    plain[f"{name}.weight"] = torch._weight_norm(
                        plain.pop(name + direction), plain.pop(name + length), 0
                    )
        return {f"model.{name}": tensor for name, tensor in plain.items()}


class EnCodec(TransformersCodec):
    """EnCodec (Défossez et al., 2022) through transformers' `EncodecModel`: 24 kHz mono, 75 frames/s of up to 32 codes.

    The 48 kHz model is refused: it codes overlapping chunks of a second, each divided by its loudness, so that its
    codes are neither of one grid of frames nor decodable alone. Arguments as of `TransformersCodec`.
    """

    name = "encodec"
    repository = "facebook/encodec_24khz"
    classes = ("EncodecConfig", "EncodecModel")
    settings = (
        "target_bandwidths", "sampling_rate", "audio_channels", "normalize", "chunk_length_s", "overlap", "hidden_size",
        "num_filters", "num_residual_layers", "upsampling_ratios", "norm_type", "kernel_size", "last_kernel_size",
        "residual_kernel_size", "dilation_growth_rate", "use_causal_conv", "pad_mode", "compress", "num_lstm_layers",
        "trim_right_ratio", "codebook_size", "codebook_dim", "use_conv_shortcut",
    )  # fmt: skip
    strides = "upsampling_ratios"
    counts = ("num_residual_layers", "num_lstm_layers", "num_quantizers")

    def __init__(self, config: Mapping[str, Any] | None = None, *, quantizers: int = 1):
        super().__init__(config, quantizers=quantizers)
        for module in self.model.modules():
            if type(module).__name__ == "EncodecConv1d":
                _plain_padding(module)

    @property
    def layers(self) -> Sequence[Any]:
        layers: Sequence[Any] = self.model.quantizer.layers
        return layers

    def _check(self, values: Any) -> None:
        super()._check(values)
        if values.audio_channels != 1 or values.normalize or values.chunk_length_s is not None:
            raise UsageError(
                "frontend.codec=encodec reads mono models that code a clip as a whole, as facebook/encodec_24khz; this "
                f"one has audio_channels={values.audio_channels}, normalize={values.normalize}, "
                f"chunk_length_s={values.chunk_length_s} (as facebook/encodec_48khz)"
            )
        if values.codebook_dim != values.hidden_size:
            raise UsageError(
                f"frontend.codec_config: codebook_dim={values.codebook_dim} must equal hidden_size={values.hidden_size}"
            )
        widest = values.dilation_growth_rate ** max(0, values.num_residual_layers - 1)
        if widest > values.sampling_rate:
            raise UsageError(
                f"frontend.codec_config: dilation_growth_rate={values.dilation_growth_rate} and num_residual_layers="
                f"{values.num_residual_layers} make dilations of {widest:.3g} samples; the limit is a second"
            )

    def _quantize(self, layer: Any, residual: Tensor) -> tuple[Tensor, Tensor]:
        indices = layer.encode(residual)
        return indices, layer.decode(indices)

    def _vectors(self, layer: Any, codes: Tensor) -> Tensor:
        vectors: Tensor = layer.decode(codes)
        return vectors


class DAC(TransformersCodec):
    """Descript's audio codec (Kumar et al., 2023) through transformers' `DacModel`: 16, 24 or 44.1 kHz, mono.

    A wave is padded with zeros to whole frames, as transformers' feature extractor does. At 16 and 24 kHz the decoder
    ends some samples early, because of a stride of 5: these are zeros here. Arguments as of `TransformersCodec`.
    """

    name = "dac"
    repository = "descript/dac_44khz"
    classes = ("DacConfig", "DacModel")
    settings = (
        "encoder_hidden_size", "downsampling_ratios", "decoder_hidden_size", "n_codebooks", "codebook_size",
        "codebook_dim", "sampling_rate",
    )  # fmt: skip
    strides = "downsampling_ratios"
    counts = ("n_codebooks",)

    @property
    def layers(self) -> Sequence[Any]:
        layers: Sequence[Any] = self.model.quantizer.quantizers
        return layers

    def _encode(self, wave: Tensor) -> Tensor:
        return super()._encode(self.pad(wave))

    def _quantize(self, layer: Any, residual: Tensor) -> tuple[Tensor, Tensor]:
        vectors, _, _, indices, _ = layer(residual)
        return indices, vectors

    def _vectors(self, layer: Any, codes: Tensor) -> Tensor:
        vectors: Tensor = layer.out_proj(layer.codebook(codes).transpose(1, 2))
        return vectors


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _plain_padding(conv: Any) -> None:
    """Let a convolution of EnCodec compute its padding with ints.

    transformers holds the sizes in tensors and divides in float32: on a GPU each layer waits for the device, lengths
    above 2 ** 24 samples are rounded, and torch.export cannot follow.
    """
    kernel, stride, dilation = conv.conv.kernel_size[0], conv.conv.stride[0], conv.conv.dilation[0]
    sizes = {"kernel_size": (kernel - 1) * dilation + 1, "stride": stride}
    sizes["padding_total"] = sizes["kernel_size"] - stride
    for name, size in sizes.items():
        delattr(conv, name)
        setattr(conv, name, size)
    conv._get_extra_padding_for_conv1d = partial(_padding_to_stride, stride)


def _padding_to_stride(stride: int, hidden: Tensor) -> int:
    return -hidden.shape[-1] % stride


def find_vqvae(source: bool | str) -> Path:
    """Return the path of weights for a `VQVAE`, of gafx or of Jukebox, that `frontend.pretrained` names.

    Raises:
        UsageError: no weights there; `True`, since Jukebox's are in no repository of the Hugging Face hub.
    """
    return weights.find(source, key="frontend.pretrained", files=JUKEBOX_FILES, suffixes=JUKEBOX_SUFFIXES)


def read_vqvae(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file that `find_vqvae` found, by the names in it.

    Raises:
        UsageError: the file is damaged, or one of `torch.save` that is not of Jukebox.
    """
    if path.suffix == ".safetensors":
        return weights.read(path)
    state = weights.read_state_dict(path, under="model")
    if not is_jukebox(state):
        raise UsageError(f"{path} holds no VQ-VAE of Jukebox: it has no tensor bottleneck.level_blocks.<level>.k")
    return state


def is_jukebox(state: Mapping[str, Tensor]) -> bool:
    """Return whether the tensors are named as in Jukebox's code (github.com/openai/jukebox, `jukebox/vqvae`)."""
    return any(name.removeprefix("module.").startswith("bottleneck.level_blocks.") for name in state)


def rename_jukebox(state: Mapping[str, Tensor], stages: int, path: Path) -> dict[str, Tensor]:
    """Name the tensors of one of Jukebox's networks as in a `VQVAE`.

    Its file holds three, called levels, of 8, 32 and 128 samples per code and one, two and three stages. The first has
    64 channels and 8 residual blocks, the others 32 and 4.

    Args:
        state: of the file, with or without `module.` before each name.
        stages: of the network that is wanted.
        path: of the file, for messages.

    Raises:
        UsageError: the file lacks this network.
    """
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    level = stages - 1
    codebook = state.get(f"bottleneck.level_blocks.{level}.k")
    if codebook is None or codebook.ndim != 2:
        found = sorted({name.split(".")[1] for name in state if name.startswith("encoders.")})
        raise UsageError(
            f"{path} lacks level {level} of Jukebox's VQ-VAE, with its codebook: it has the levels "
            f"{', '.join(found) or 'none'}"
        )
    # k is the quotient of two moving averages, which Jukebox does not save.
    ours = {
        "quantizer._codebook.embed": codebook[None], "quantizer._codebook.embed_avg": codebook[None].clone(),
        "quantizer._codebook.cluster_size": codebook.new_ones(1, len(codebook)),
    }  # fmt: skip
    for name, tensor in state.items():
        # encoders.2.level_blocks.1.model.0.1.model.3.model.1.weight -> encoder.1.0.1.3.1.weight
        if match := re.fullmatch(rf"(encoder|decoder)s\.{level}\.(?:level_blocks\.(\d+)|out)\.(.+)", name):
            kind, block, rest = match.groups()
            if block is None:
                stage = stages  # the decoder's last convolution
            else:
                stage = int(block) if kind == "encoder" else stages - 1 - int(block)
            layers = [part for part in rest.split(".") if part != "model"]
            ours[".".join([kind, str(stage), *layers])] = tensor
    return ours
