"""AST: a DeiT that reads a map as a sequence of 16 x 16 patches (Gong et al., 2021; GAFX section 3.2)."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from gafx.classifiers import _layouts
from gafx.classifiers.base import Classifier, Shape
from gafx.errors import UsageError
from gafx.nn.positions import PATCH, PREFIX, Patches, fit_positions, lead_positions
from gafx.registry import CLASSIFIERS
from gafx.saving import weights

AUDIOSET = "MIT/ast-finetuned-audioset-10-10-0.4593"  # the authors' best single model, on the Hugging Face hub
_NAMES = {size: f"deit_{size}_distilled_patch16_224" for size in ("tiny", "small", "base")}
_WIDTHS = {192: "tiny", 384: "small", 768: "base"}


@CLASSIFIERS.register
class AST(Classifier):
    """Audio Spectrogram Transformer on a distilled DeiT from timm, patches of 16 x 16 without overlap or with.

    `(batch, channels, frequency, time)` is cut into `(size - 16) // stride + 1` patches along each axis (a remainder is
    dropped), which with class and distillation token run through the transformer; the embedding is the mean of those
    two tokens after the final norm, the head a LayerNorm and a Linear.

    Args:
        map_shape: (channels, frequency, time) that the positions are laid out for.
        num_classes: outputs.
        planes: equal parts that lie one after another along the map's time. Positions are laid out within each, never
            across (`gafx.nn.positions`): planes start alike and learn apart.
        size: DeiT `tiny`, `small` or `base`.
        pretrained: weights to start from, or `false` for a random start. `true`: DeiT, trained on ImageNet, as timm has
            it on the Hugging Face hub. `audioset`: the published AST (mAP 0.459), also from the hub; only for size
            `base`, and with stride 10 and a map of 128 x 1024 exactly that model. Or the path of a `.safetensors` file
            or of a folder that holds `model.safetensors`, or another id on the hub: a DeiT of timm, an AST of its
            authors or of transformers, or what gafx saved. The head is loaded where the number of classes agrees (527
            for `audioset`), else it stays random with its norm. Weights that are asked for and not to be had are an
            error, never a random start.
        stride: distance of patches, in bins and in frames, 1 to 16: 16 is without overlap (GAFX), 10 the published AST,
            at 2.4 times as many tokens. AudioSet's positions are read at the new patches' centres by linear
            interpolation where the stride differs from theirs, and then resized.
        stem: how the RGB patch kernel of a DeiT becomes one for C channels: `mean` of the three (the paper) or their
            `sum` (AST's code and timm), repeated and divided by C. An AST's kernel has one channel and is only repeated
            and divided.
        positions: how pretrained positions are resized: `ast` cuts the centre out of an axis that shrinks and
            interpolates one that grows bilinearly; `timm` resamples both axes bicubically with antialiasing.
        depth: transformer blocks; fewer than 12 take the first ones of the pretrained weights.

    Raises:
        UsageError: a map smaller than one patch, a stride or depth out of range, or weights that cannot be had or do
            not fit.
        ValueError: frames that are no multiple of the planes.
    """

    def __init__(
        self,
        map_shape: Shape,
        num_classes: int,
        planes: int = 1,
        /,
        *,
        size: Literal["tiny", "small", "base"] = "tiny",
        pretrained: bool | str = False,
        stride: int = 16,
        stem: Literal["mean", "sum"] = "mean",
        positions: Literal["ast", "timm"] = "ast",
        depth: int = 12,
    ):
        super().__init__()
        if not 1 <= depth <= 12:
            raise UsageError(f"depth={depth} must lie between 1 and 12 (DeiT's)")
        if not 1 <= stride <= PATCH:
            raise UsageError(f"stride={stride} must lie between 1 and {PATCH} (patches side by side)")
        if pretrained == "audioset" and size != "base":
            raise UsageError(
                f"pretrained=audioset is a model of size base, not {size}: choose classifier=ast_audioset or "
                "classifier.size=base"
            )
        import timm  # takes seconds: only when a classifier is built

        channels, frequency, time = map_shape
        self.min_frames = PATCH
        self.map_shape, self.num_classes, self.positions = map_shape, num_classes, positions
        self.built = Patches(frequency, time, stride, planes)
        self.grid = self.built.grid
        deit: Any = timm.create_model(_NAMES[size], pretrained=False, num_classes=0, depth=depth)
        self.width = deit.embed_dim
        self.patches = nn.Conv2d(channels, self.width, PATCH, stride)
        self.cls_token, self.dist_token = deit.cls_token, deit.dist_token
        self.pos_embed = nn.Parameter(torch.empty(1, PREFIX + self.grid[0] * self.grid[1], self.width))
        self.blocks, self.norm = deit.blocks, deit.norm
        self.fsdp_units = (type(self.blocks[0]),)
        self.head_norm = nn.LayerNorm(self.width)
        self.output = nn.Linear(self.width, num_classes)
        for tensor in (self.patches.weight, self.pos_embed, self.output.weight):
            nn.init.trunc_normal_(tensor, std=0.02)
        for layer in (self.patches, self.output):
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        if pretrained is not False:
            self._load(pretrained, size, stem)

    def embed(self, feature_map: Tensor) -> Tensor:
        """`(batch, channels, frequency, time)` -> `(batch, width)`."""
        if feature_map.ndim != 4 or feature_map.shape[1] != self.map_shape[0]:
            raise ValueError(
                f"a map of shape {tuple(feature_map.shape)} does not fit: this AST reads (batch, {self.map_shape[0]}, "
                "frequency, time)"
            )
        positions = self._positions(*feature_map.shape[2:])
        x = self._tokens(feature_map)
        # Not len(x): that is a number, and an exported model would read batches of that number alone.
        prefix = torch.cat([self.cls_token, self.dist_token], dim=1).expand(x.shape[0], -1, -1)
        x = torch.cat([prefix.to(x.dtype), x], dim=1) + positions
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, :PREFIX].mean(dim=1)

    def _positions(self, frequency: int, frames: int) -> Tensor:
        """`(1, 2 + rows * columns, width)` for the patches of a map of this size."""
        if not isinstance(frames, int):  # a symbol: the model is being exported for several lengths
            return lead_positions(self.pos_embed, self.built, frames)
        patches = Patches(frequency, frames, self.built.stride, self.built.planes)
        return fit_positions(self.pos_embed, self.built, patches, self.positions)

    def _tokens(self, feature_map: Tensor) -> Tensor:
        """The patch convolution as a matrix product.

        `(batch, channels, frequency, time)` -> `(batch, rows * columns, width)`. Cutting the patches out costs a copy
        of the map, 2.6-fold at stride 10, and the product is what the convolution would be; oneDNN's own bfloat16
        convolution of this shape gives NaN on narrow maps (torch 2.12 on AMX).
        """
        cut = feature_map.unfold(2, PATCH, self.built.stride).unfold(3, PATCH, self.built.stride)
        patches = cut.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        return nn.functional.linear(patches, self.patches.weight.flatten(1), self.patches.bias)

    def head(self, embedding: Tensor) -> Tensor:
        """`(batch, width)` -> `(batch, classes)` logits."""
        return self.output(self.head_norm(embedding))

    def head_names(self) -> tuple[str, ...]:
        return ("output.",)

    def no_weight_decay(self) -> set[str]:
        """Class token, distillation token and position embedding."""
        return {"cls_token", "dist_token", "pos_embed"}

    def _load(self, source: bool | str, size: str, stem: str) -> None:
        name = _NAMES[size]
        path = weights.find(
            AUDIOSET if source == "audioset" else source, f"timm/{name}.fb_in1k", key="classifier.pretrained"
        )
        if weights.about(path).get("objective") == "mel_regression":
            raise UsageError(
                f"{path} was trained by objective=mel_regression, in which the classifier does not learn: its own is "
                "random. Hand over the front-end alone (frontend.pretrained), or pretrain with objective=tag"
            )
        own = self.state_dict()
        layout, state = _layouts.read(path, own)
        there, here = tuple(state["dist_token"].shape), tuple(own["dist_token"].shape)
        if there != here:
            fitting = _WIDTHS.get(there[-1])
            cure = f"choose classifier.size={fitting}" if fitting else "no classifier.size has this width"
            raise UsageError(f"{path} does not fit {name}: dist_token is {there} in the file, {here} here; {cure}")
        if layout is not _layouts.GAFX:
            state["patches.weight"] = stem_kernel(state["patches.weight"], self.map_shape[0], stem)
        state["pos_embed"] = _layouts.lay_positions(layout, state["pos_embed"], self.built, self.positions, path)
        # A head for other classes is of no use, nor is its norm, which was trained with it.
        head = [key for key in own if key.startswith(_layouts.HEAD)]
        if not all(key in state and state[key].shape == own[key].shape for key in head):
            state.update({key: own[key] for key in head})
        weights.fit(self, state, path, cure="choose the classifier.size and the front-end that it was made with")


def stem_kernel(kernel: Tensor, channels: int, stem: str) -> Tensor:
    """A patch kernel `(width, 3, 16, 16)` as one for `channels` channels: mean or sum over RGB, repeated / channels.

    A kernel for a single channel is its own mean and sum.
    """
    single = kernel.mean(dim=1, keepdim=True) if stem == "mean" else kernel.sum(dim=1, keepdim=True)
    return single.expand(-1, channels, -1, -1) / channels
