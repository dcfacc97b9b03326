"""Audio Spectrogram Transformer: a DeiT on the 16 x 16 patches of a map (Gong et al., 2021; GAFX section 3.2)."""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from gafx.classifiers import _layouts
from gafx.classifiers.base import Classifier, Shape
from gafx.errors import UsageError
from gafx.nn.positions import PATCH, PREFIX, Patches, fit_positions, lead_positions
from gafx.nn.transformer import Block, DeiTEncoder
from gafx.registry import CLASSIFIERS, reads_labels
from gafx.saving import weights
from gafx.saving.info import AUDIOSET, IMAGENET

AUDIOSET_REPO = "MIT/ast-finetuned-audioset-10-10-0.4593"  # the authors' best single model, on the Hugging Face hub
_NAMES = {size: f"deit_{size}_distilled_patch16_224" for size in ("tiny", "small", "base")}
_SIZES = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}  # width, attention heads


@CLASSIFIERS.register
class AST(Classifier):
    """Audio Spectrogram Transformer: a distilled DeiT on patches of 16 x 16, with or without overlap.

    A map `(batch, channels, frequency, time)` is cut into `(length - 16) // stride + 1` patches along each axis; a
    remainder is dropped. Class token, distillation token and patches run through the transformer. The embedding is the
    mean of the two tokens after the final norm; the head is a LayerNorm and a linear layer.

    Args:
        map_shape: (channels, frequency, time) of the maps that the position embeddings are created for.
        num_classes: number of outputs.
        planes: equal parts that a map consists of, concatenated along time. Pretrained positions are resized within
            each plane, never across a border (`gafx.nn.positions`): all planes start with the same positions, and
            each learns its own.
        size: DeiT `tiny`, `small` or `base`.
        pretrained: weights to start from, or `false` for a random start. `true`: DeiT trained on ImageNet, from timm's
            repository on the Hugging Face hub. `audioset`: the published AST (mAP 0.459), also from the hub; only for
            size `base`, and with stride 10 and a map of 128 x 1024 exactly that model. Or the path of a `.safetensors`
            file or of a folder with a `model.safetensors`, or another id on the hub: a DeiT of timm, an AST of its
            authors or of transformers, or a model saved by gafx. The head is loaded if the number of classes agrees
            (527 for `audioset`), else it and its norm stay random. Weights that cannot be loaded are an error, never
            a random start.
        stride: distance between patches, in bins and in frames, 1 to 16: 16 is without overlap (GAFX), 10 is the
            published AST, with 2.4 times as many tokens. If the stride of AudioSet weights differs, their positions
            are interpolated linearly at the centres of the new patches, and then resized.
        stem: how the RGB patch kernel of a DeiT becomes a kernel for C channels: `mean` of the three (the paper) or
            their `sum` (AST's code and timm), repeated and divided by C. The kernel of an AST has one channel and is
            only repeated and divided.
        positions: how pretrained positions are resized: `ast` crops the centre of an axis that shrinks and
            interpolates an axis that grows bilinearly; `timm` resamples both axes bicubically with antialiasing.
        depth: number of transformer blocks, 1 to 12; fewer than 12 take the first blocks of the pretrained weights.

    Raises:
        UsageError: the map is smaller than one patch, `stride` or `depth` is out of range, or the weights cannot be
            loaded or do not fit.
        ValueError: the number of frames is not a multiple of `planes`.
    """

    fsdp_units = (Block,)
    takes_planes = True
    published: ClassVar = {True: IMAGENET, "audioset": AUDIOSET}

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
            raise UsageError(f"depth={depth} must be between 1 and 12 (the depth of DeiT)")
        if not 1 <= stride <= PATCH:
            raise UsageError(f"stride={stride} must be between 1 and {PATCH} (no overlap)")
        if pretrained == "audioset" and size != "base":
            raise UsageError(
                f"pretrained=audioset is a model of size base, not {size}: use classifier=ast_audioset or "
                "classifier.size=base"
            )
        channels, frequency, time = map_shape
        self.min_frames = PATCH
        self.map_shape, self.num_classes, self.positions = map_shape, num_classes, positions
        self.built = Patches(frequency, time, stride, planes)
        self.grid = self.built.grid
        self.tokens = PREFIX + self.grid[0] * self.grid[1]
        if planes > 1:
            self.fixed_length = "the positions of a map with several planes are computed for one length"
        self.width, num_heads = _SIZES[size]
        encoder = DeiTEncoder(self.width, depth, num_heads)
        self.patches = nn.Conv2d(channels, self.width, PATCH, stride)
        self.cls_token, self.dist_token = encoder.cls_token, encoder.dist_token
        self.pos_embed = nn.Parameter(torch.empty(1, self.tokens, self.width))
        self.blocks, self.norm = encoder.blocks, encoder.norm
        self.head_norm = nn.LayerNorm(self.width)
        self.output = nn.Linear(self.width, num_classes)
        for tensor in (self.patches.weight, self.pos_embed, self.output.weight):
            nn.init.trunc_normal_(tensor, std=0.02)
        for layer in (self.patches, self.output):
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        if pretrained is not False:
            self._load(pretrained, size, stem)

    @classmethod
    def check_map(cls, map_shape: Shape) -> None:
        _, frequency, frames = map_shape
        Patches(frequency, frames)

    def embed(self, feature_map: Tensor) -> Tensor:
        """Compute the embedding of a map. `(batch, channels, frequency, time)` -> `(batch, width)`."""
        self.check_input(feature_map)
        positions = self._positions(*feature_map.shape[2:])
        x = self._tokens(feature_map)
        # x.shape[0] rather than len(x), an int that would fix the batch size of an exported model.
        prefix = torch.cat([self.cls_token, self.dist_token], dim=1).expand(x.shape[0], -1, -1)
        x = torch.cat([prefix.to(x.dtype), x], dim=1) + positions
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, :PREFIX].mean(dim=1)

    def _positions(self, frequency: int, frames: int) -> Tensor:
        """Position embeddings for a map of this size, `(1, 2 + rows * columns, width)`."""
        if not isinstance(frames, int):  # a symbolic size: the model is being exported with dynamic length
            return lead_positions(self.pos_embed, self.built, frames)
        patches = Patches(frequency, frames, self.built.stride, self.built.planes)
        return fit_positions(self.pos_embed, self.built, patches, self.positions)

    def _tokens(self, feature_map: Tensor) -> Tensor:
        """Embed the patches. `(batch, channels, frequency, time)` -> `(batch, rows * columns, width)`.

        The patch convolution is computed as a matrix product, because oneDNN's bfloat16 convolution of this shape
        gives NaN on narrow maps (torch 2.12 with AMX). It needs a copy of the map, 2.6 times its size at stride 10.
        """
        cut = feature_map.unfold(2, PATCH, self.built.stride).unfold(3, PATCH, self.built.stride)
        patches = cut.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        return nn.functional.linear(patches, self.patches.weight.flatten(1), self.patches.bias)

    def head(self, embedding: Tensor) -> Tensor:
        """Compute logits from an embedding. `(batch, width)` -> `(batch, classes)`."""
        return self.output(self.head_norm(embedding))

    def head_names(self) -> tuple[str, ...]:
        """Return the name prefixes of the parameters of the output layer."""
        return ("output.",)

    def no_weight_decay(self) -> set[str]:
        """Class token, distillation token and position embedding."""
        return {"cls_token", "dist_token", "pos_embed"}

    def _load(self, source: bool | str, size: str, stem: str) -> None:
        """Load pretrained weights in place; arguments as for the class. Raises `UsageError` if they do not fit."""
        name = _NAMES[size]
        path = weights.find(
            AUDIOSET_REPO if source == "audioset" else source, f"timm/{name}.fb_in1k", key="classifier.pretrained"
        )
        objective = weights.about(path).get("objective")
        if not reads_labels(objective):
            raise UsageError(
                f"{path} was trained with objective={objective}, which does not train the classifier: its weights "
                "are random. Load the front-end alone (frontend.pretrained), or pretrain with objective=tag"
            )
        own = self.state_dict()
        layout, state = _layouts.read(path, own)
        there, here = tuple(state["dist_token"].shape), tuple(own["dist_token"].shape)
        if there != here:
            fitting = next((size for size, (width, _) in _SIZES.items() if width == there[-1]), None)
            cure = f"use classifier.size={fitting}" if fitting else "no classifier.size has this width"
            raise UsageError(f"{path} does not fit {name}: dist_token is {there} in the file, {here} here; {cure}")
        if layout is not _layouts.GAFX:
            state["patches.weight"] = stem_kernel(state["patches.weight"], self.map_shape[0], stem)
        state["pos_embed"] = _layouts.lay_positions(layout, state["pos_embed"], self.built, self.positions, path)
        # A head for other classes is useless, and so is its norm, which was trained with it.
        head = [key for key in own if key.startswith(_layouts.HEAD)]
        if not all(key in state and state[key].shape == own[key].shape for key in head):
            state.update({key: own[key] for key in head})
        weights.fit(self, state, path, cure="use the classifier.size and the front-end that it was saved with")
        self.record_source(path, source)


def stem_kernel(kernel: Tensor, channels: int, stem: str) -> Tensor:
    """Convert a patch kernel `(width, 3, 16, 16)` to `(width, channels, 16, 16)`.

    Mean or sum over RGB, repeated and divided by `channels`. A kernel with one channel is its own mean and sum.
    """
    single = kernel.mean(dim=1, keepdim=True) if stem == "mean" else kernel.sum(dim=1, keepdim=True)
    return single.expand(-1, channels, -1, -1) / channels
