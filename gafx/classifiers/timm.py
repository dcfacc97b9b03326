"""A backbone of timm that reads the map as an image (https://github.com/huggingface/pytorch-image-models)."""

import itertools
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from gafx.classifiers.base import Classifier, Shape, check_rates, find_weights
from gafx.errors import UsageError, did_you_mean, first_line
from gafx.registry import CLASSIFIERS
from gafx.report.format import plural
from gafx.saving import weights

_log = logging.getLogger("gafx")
_COUNTER = "num_batches_tracked"  # of batch norm; not in every file, and not used in evaluation
_PICKLES = (".pt", ".pth")
_TOP = "pre_logits"  # the dense layers of a VGG before its output layer
# The dense layers of a VGG in torchvision, whose other names are timm's; in timm the first two are convolutions.
_TORCHVISION_TOP = {"classifier.0": f"{_TOP}.fc1", "classifier.3": f"{_TOP}.fc2", "classifier.6": "head.fc"}
_MAP_STD = 0.5  # of maps after `MapNorm`


@CLASSIFIERS.register
class TimmClassifier(Classifier):
    """A network of timm without its own output layer, then dense layers, the last of which gives the logits.

    The map `(batch, channels, frequency, time)` is the image. Networks for images of one size, as most transformers of
    timm are, are refused; `classifier=ast` is a transformer for maps. On CPUs the network runs in the type of its
    weights, without autocast: with AMX, oneDNN's bfloat16 convolutions can give NaN on narrow maps (torch 2.12).

    Args:
        map_shape: (channels, frequency, time) of the maps.
        num_classes: number of outputs.
        backbone: name of a network in `timm.list_models()`, e.g. `resnet18`; a tag selects one of several pretrained
            weights, e.g. `resnet18.tv_in1k`.
        in_channels: `map`: the network has one input channel for each channel of the map; RGB kernels of pretrained
            weights are converted as timm does: their sum for one channel, else repeated and scaled. `rgb`: the network
            has three, which a map of one channel is repeated to; a map of three is used as it is, others are refused.
        pretrained: weights to start from, or `false` for a random start. `true`: timm's weights for this name and tag,
            from the Hugging Face hub. Or the path of a `.safetensors` file or of a folder with a `model.safetensors`,
            or an id on the hub: weights of timm, or a model saved by gafx. Or a plain state dict as `.pt` or `.pth`,
            from which only tensors are read. All tensors of the network must be in the file under their names. A
            `.pt` or `.pth` file without any of these names is loaded by order, if the kinds (weight, bias, running
            mean or variance) and shapes of all its tensors are those of the network. That is no proof: tensors of one
            shape in another order, or a network that differs in its activations or padding, are not noticed. The
            output layer (with `hidden`: all dense layers) is loaded if the number of classes agrees, else it stays
            random.
        hidden: units of dense layers with ReLU between the embedding and the output layer, e.g. `(256,)`.
        top: false leaves out what the network has of its own between the mean of its last map and its output layer: the
            two layers of 4096 units of a VGG, 120 of 134 million parameters (as Keras's `include_top=False`). Other
            networks have no such layers.
        frozen: train the dense layers after the backbone alone: the backbone keeps its weights, and is in evaluation
            mode in training as well (statistics of batch norm, no dropout), as with Keras's `trainable=False`.
        image_std: std of the values that the network reads. Maps arrive with mean 0 and std 0.5
            (`gafx.nn.maps.MapNorm`) and are scaled to it. That of images is about 1 where timm normalises by the mean
            and std of ImageNet, and about 0.5 where it takes 0.5 for both (`timm.get_pretrained_cfg(name).std`).
        drop_rate: probability that a value of the embedding or of a hidden layer is set to zero in training, in [0, 1).
        drop_path: stochastic depth of the network in training, as timm's `drop_path_rate`, in [0, 1).

    Raises:
        UsageError: `backbone` is unknown or cannot read this map, an argument is out of range, or the weights cannot be
            loaded or do not fit.
    """

    published: ClassVar = {True: "timm"}
    hash_if_changed: ClassVar = ("hidden", "top", "frozen", "image_std")

    def __init__(
        self,
        map_shape: Shape,
        num_classes: int,
        /,
        *,
        backbone: str = "mobilenetv2_100",
        in_channels: Literal["map", "rgb"] = "map",
        pretrained: bool | str = False,
        hidden: tuple[int, ...] = (),
        top: bool = True,
        frozen: bool = False,
        image_std: float = 0.5,
        drop_rate: float = 0.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        check_rates(drop_rate=drop_rate, drop_path=drop_path)
        if any(units < 1 for units in hidden):
            raise UsageError(f"classifier.hidden={list(hidden)} must be numbers of units of at least 1")
        if not 0 < image_std < math.inf:
            raise UsageError(f"classifier.image_std={image_std} must be positive")
        self.map_shape, self.num_classes, self.top, self.frozen = map_shape, num_classes, top, frozen
        self.scale = image_std / _MAP_STD
        channels = map_shape[0]
        if in_channels == "rgb" and channels not in (1, 3):
            raise UsageError(f"in_channels=rgb takes maps of 1 or 3 channels, not {channels}: use in_channels=map")
        self.rgb = in_channels == "rgb"
        self.backbone, found = _create(backbone, 3 if self.rgb else channels, drop_rate, drop_path)
        if not top and hasattr(self.backbone, _TOP):
            setattr(self.backbone, _TOP, nn.Identity())
        self.width, self.min_frames = self._probe(backbone)
        widths = (self.width, *hidden)
        layers = ((nn.Linear(*pair), nn.ReLU(), nn.Dropout(drop_rate)) for pair in itertools.pairwise(widths))
        self.hidden = nn.Sequential(*itertools.chain.from_iterable(layers))
        self.output = nn.Linear(widths[-1], num_classes)
        nn.init.trunc_normal_(self.output.weight, std=0.02)
        nn.init.zeros_(self.output.bias)
        if pretrained is not False:
            self._load(pretrained, backbone, found)
        if frozen:
            self.backbone.requires_grad_(False)
            self.train()

    def train(self, mode: bool = True) -> Self:
        """Set training mode, in which a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def embed(self, feature_map: Tensor) -> Tensor:
        """Compute the embedding of a map. `(batch, channels, frequency, time)` -> `(batch, width)`."""
        self.check_input(feature_map)
        if self.rgb:
            feature_map = feature_map.expand(-1, 3, -1, -1)
        if self.scale != 1:
            feature_map = feature_map * self.scale
        with torch.autocast("cpu", enabled=False):
            return self.backbone(feature_map.to(next(self.backbone.parameters()).dtype))

    def head(self, embedding: Tensor) -> Tensor:
        """Compute logits from an embedding. `(batch, width)` -> `(batch, classes)`."""
        return self.output(self.hidden(embedding))

    def head_names(self) -> tuple[str, ...]:
        """Return the name prefixes of the parameters of the output layer."""
        return ("output.",)

    def no_weight_decay(self) -> set[str]:
        """Return the parameters that the network of timm names."""
        names: set[str] = getattr(self.backbone, "no_weight_decay", set)()
        return {f"backbone.{name}" for name in names}

    @torch.no_grad()
    def _probe(self, name: str) -> tuple[int, int]:
        """Return the size of an embedding, and a number of frames from which on maps are accepted: 1, 2, 4, ...

        Raises:
            UsageError: maps of the shape that the classifier is built for are not accepted.
        """
        _, frequency, frames = self.map_shape
        device = next(self.backbone.parameters()).device
        self.backbone.eval()
        lengths = [2**power for power in range(frames.bit_length()) if 2**power < frames]
        for length in [*lengths, frames]:
            try:
                image = torch.zeros(1, 3 if self.rgb else self.map_shape[0], frequency, length, device=device)
                embedding = self.backbone(image)
            except (RuntimeError, AssertionError, ValueError) as error:
                reason = first_line(error)
                continue
            self.backbone.train()
            if embedding.ndim != 2:
                raise UsageError(f"classifier.backbone={name} gives {tuple(embedding.shape)}, not one embedding a clip")
            return embedding.shape[1], length
        raise UsageError(
            f"classifier.backbone={name} cannot read a map of {frequency} x {frames} (frequency x time): {reason}. "
            "Choose another, e.g. resnet18, or a front-end with more frequency bins, or longer clips"
        )

    def _load(self, source: bool | str, name: str, found: Any) -> None:
        """Load pretrained weights in place.

        Args:
            source: argument `pretrained`.
            name: of the network.
            found: timm's `PretrainedCfg` of it.

        Raises:
            UsageError: they cannot be read or do not fit.
        """
        path = find_weights(source, found.hf_hub_id, suffixes=(".safetensors", *_PICKLES))
        pickled = path.suffix in _PICKLES
        state = weights.read_state_dict(path) if pickled else weights.read(path)
        own = self.backbone.state_dict()
        # Saved by gafx. In a file of timm, `classifier.` may be the output layer.
        if any(key.startswith(("classifier.backbone.", "backbone.")) for key in state):
            state = weights.part(state, "classifier")
            head = {key: tensor for key, tensor in state.items() if key.startswith(("hidden.", "output."))}
            body = weights.part(state, "backbone")
        else:
            state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
            if pickled and not state.keys() & own.keys():
                state = self._by_order(state, found, path)
            if hasattr(self.backbone, _TOP):
                state = _name_top(state, own)
            layers = (found.classifier,) if isinstance(found.classifier, str) else tuple(found.classifier or ())
            body = {
                key: tensor
                for key, tensor in state.items()
                if key in own or not key.startswith(tuple(f"{layer}." for layer in layers))
            }
            head = {}
            if len(layers) == 1:
                start = f"{layers[0]}."
                head = {"output." + key.removeprefix(start): t for key, t in state.items() if key.startswith(start)}
            body = {key: self._adapt(key, tensor, found) for key, tensor in body.items()}
        if not self.top:
            body = {key: tensor for key, tensor in body.items() if not key.startswith(f"{_TOP}.")}
        # Older files lack the counters of batch norm, which start at 0.
        body = {**{key: tensor for key, tensor in own.items() if key.endswith(_COUNTER)}, **body}
        weights.fit(self.backbone, body, path, cure=f"choose weights of {name}, or the network that they belong to")
        # The output layer reads what the hidden layers give: it is loaded only with them.
        dense = {key: tensor for key, tensor in self.state_dict().items() if key.startswith(("hidden.", "output."))}
        if head.keys() == dense.keys() and all(head[key].shape == dense[key].shape for key in dense):
            weights.fit(self, {**self.state_dict(), **head}, path)
            self.head_labels = weights.labels(path)
        self.record_source(path, source)

    def _adapt(self, key: str, tensor: Tensor, found: Any) -> Tensor:
        """Convert the RGB kernel of a first convolution to the channels of the map; return others unchanged."""
        from timm.models import adapt_input_conv

        first = (found.first_conv,) if isinstance(found.first_conv, str) else tuple(found.first_conv or ())
        channels = 3 if self.rgb else self.map_shape[0]
        if key not in {f"{layer}.weight" for layer in first} or tensor.ndim != 4 or channels == tensor.shape[1]:
            return tensor
        try:
            return adapt_input_conv(channels, tensor)
        except NotImplementedError:
            return tensor  # does not fit, which is reported with both shapes

    def _by_order(self, state: Mapping[str, Tensor], found: Any, path: Path) -> dict[str, Tensor]:
        """Name the tensors of another project's state dict as the network's at the same position.

        The two after the last, an output layer, get the name of the network's.

        Raises:
            UsageError: their number, a kind or a shape differs.
        """
        there = [(key, tensor) for key, tensor in state.items() if not key.endswith(_COUNTER)]
        here = {key: tensor for key, tensor in self.backbone.state_dict().items() if not key.endswith(_COUNTER)}
        extra = len(there) - len(here)
        if extra not in (0, 2):
            raise UsageError(
                f"{path} does not fit: none of its tensors has a name of the network, and it has {len(there)} of them, "
                f"where the network has {len(here)}"
            )
        named = {}
        for (key, tensor), (own, target) in zip(there, here.items(), strict=False):
            shape = self._adapt(own, tensor, found).shape
            if key.rpartition(".")[2] != own.rpartition(".")[2] or shape != target.shape:
                raise UsageError(
                    f"{path} does not fit, by order: {key} is {tuple(tensor.shape)} in the file, and {own} here is "
                    f"{tuple(target.shape)}"
                )
            named[own] = tensor
        layer = found.classifier if isinstance(found.classifier, str) else "classifier"
        for key, tensor in there[len(here) :]:
            kind = key.rpartition(".")[2]
            if tensor.ndim != {"weight": 2, "bias": 1}.get(kind):
                raise UsageError(f"{path} does not fit, by order: {key} is no output layer")
            if isinstance(found.classifier, str):
                named[f"{layer}.{kind}"] = tensor
        _log.info(
            "%s: none of its tensors has a name of the network; %s loaded by order and shape, so that tensors of one "
            "shape in another order would not be noticed", path, plural(len(named), "tensor"),
        )  # fmt: skip
        return named


def _name_top(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the dense layers of a VGG in a state dict of torchvision the names and shapes that they have in `own`."""
    named = {}
    for key, tensor in state.items():
        layer, _, kind = key.rpartition(".")
        name = f"{_TORCHVISION_TOP[layer]}.{kind}" if layer in _TORCHVISION_TOP else key
        if name != key and name in own and own[name].numel() == tensor.numel():
            tensor = tensor.reshape(own[name].shape)
        named[name] = tensor
    return named


def _create(name: str, channels: int, drop_rate: float, drop_path: float) -> tuple[nn.Module, Any]:
    """Create a network of timm without an output layer, at random weights; return it and its `PretrainedCfg`.

    Raises:
        UsageError: it is unknown, is for images of one size, or has no stochastic depth.
    """
    import timm  # takes seconds, so only when the classifier is built

    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        hint = did_you_mean(name, timm.list_models()) or "; timm.list_models() lists them"
        raise UsageError(f"classifier.backbone={name!r} is no network of timm{hint}")
    try:
        found = timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
    except RuntimeError as error:
        tags = ", ".join(timm.list_pretrained(f"{architecture}.*")) or "none"
        raise UsageError(f"classifier.backbone={name!r}: no such pretrained weights; there are {tags}") from error
    if found.fixed_input_size:
        size = " x ".join(map(str, found.input_size[1:]))
        raise UsageError(
            f"classifier.backbone={name} reads images of {size} only, and a map can have any length: choose a "
            "convolutional network, e.g. resnet18, or classifier=ast"
        )
    rates = {"drop_rate": drop_rate, "drop_path_rate": drop_path}
    options: dict[str, Any] = {key: rate for key, rate in rates.items() if rate}
    try:
        return timm.create_model(name, pretrained=False, in_chans=channels, num_classes=0, **options), found
    except TypeError as error:
        if not options:
            raise
        raise UsageError(
            f"classifier.backbone={name} does not take {' and '.join(options)}: set classifier.drop_rate and "
            f"classifier.drop_path to 0 ({first_line(error)})"
        ) from error
