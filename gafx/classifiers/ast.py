"""Audio Spectrogram Transformer: a DeiT on the 16 x 16 patches of a map (Gong et al., 2021; GAFX section 3.2)."""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from gafx.classifiers import _layouts
from gafx.classifiers.base import Classifier, Shape, check_rates, find_weights
from gafx.errors import UsageError
from gafx.nn import exported
from gafx.nn.conv import ConvStem
from gafx.nn.positions import PATCH, PREFIX, Patches, fit_positions, lead_positions, sum_positions
from gafx.nn.transformer import INIT_STD, Block, DeiTEncoder, dropout_layer, run_blocks
from gafx.registry import CLASSIFIERS
from gafx.saving import weights
from gafx.saving.info import AUDIOSET, IMAGENET

_AUDIOSET = ("audioset", "ast-audioset")  # the short name, and that in the catalogue
AUDIOSET_REPO = "MIT/ast-finetuned-audioset-10-10-0.4593"  # the authors' best single model, on the Hugging Face hub
# Mean and std of its maps (Kaldi's log-mel), as its authors normalise them: (x - mean) / (2 std).
AUDIOSET_SCALE = (-4.2677393, 4.5689974)
_NAMES = {size: f"deit_{size}_distilled_patch16_224" for size in ("tiny", "small", "base")}
_SIZES = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}  # width, attention heads


@CLASSIFIERS.register
class AST(Classifier):
    """Audio Spectrogram Transformer: a distilled DeiT on patches of 16 x 16, with or without overlap.

    A map `(batch, channels, frequency, time)` is cut into `(length - 16) // stride + 1` patches along each axis; a
    remainder is dropped. Class token, distillation token and patches run through the transformer. The embedding is the
    mean of the two tokens after the final norm; the head is a LayerNorm and a linear layer.

    The arguments from `patch` on depart from the published model. Pretrained weights without them are still accepted:
    all that such a file has and this model too is loaded, as described below.

    Args:
        map_shape: (channels, frequency, time) of the maps that the position embeddings are created for.
        num_classes: number of outputs.
        planes: equal parts that a map consists of, concatenated along time. Pretrained positions are resized within
            each plane, never across a border (`gafx.nn.positions`): all planes start with the same positions, and
            each learns its own.
        size: DeiT `tiny`, `small` or `base`.
        pretrained: weights to start from, or `false` for a random start. `true`: DeiT trained on ImageNet, from timm's
            repository on the Hugging Face hub. `audioset`, or `ast-audioset` as in the catalogue: the published AST
            (mAP 0.459), also from the hub; only for size `base`, and with stride 10 and a map of 128 x 1024 exactly
            that model; it sets `input_scale`. Or the path of a `.safetensors` file or of a folder with a
            `model.safetensors`, or another id on the hub: a DeiT of timm, an AST of its authors or of transformers, or
            a model saved by gafx. The head is loaded if the number of classes agrees (527 for `audioset`), else it and
            its norm stay random. Weights that cannot be loaded are an error, never a random start.
        stride: distance between patches, in bins and in frames, 1 to 16: 16 is without overlap (GAFX), 10 is the
            published AST, with 2.4 times as many tokens. If the stride of AudioSet weights differs, their positions
            are interpolated linearly at the centres of the new patches, and then resized.
        stem: how the RGB patch kernel of a DeiT becomes a kernel for C channels: `mean` of the three (the paper) or
            their `sum` (AST's code and timm), repeated and divided by C. The kernel of an AST has one channel and is
            only repeated and divided.
        positions: how pretrained positions are resized: `ast` crops the centre of an axis that shrinks and
            interpolates an axis that grows bilinearly; `timm` resamples both axes bicubically with antialiasing.
        depth: number of transformer blocks, 1 to 12; fewer than 12 take the first blocks of the pretrained weights.
        patch: how patches become tokens. `patch`: by one 16 x 16 kernel (the paper). `conv`: by a stem of four 3 x 3
            convolutions of stride 2 and a 1 x 1 convolution (Xiao et al., 2021), which has batch norm and gives the
            same grid as stride 16, the only stride that it accepts. The stem starts at random if the pretrained
            weights have a patch kernel, which is then not used; weights with a stem are refused for `patch`.
        pooling: `cls`: the embedding is the mean of class and distillation token (the paper). `mean`: it is the mean of
            the tokens of all patches, and there are no others; those of pretrained weights are not used, nor is the
            head that was trained on them. Weights without these tokens are refused for `cls`.
        position_embedding: `grid`: one for each patch (the paper). `separate`: the sum of one for its row (frequency)
            and one for its column (time), as in PaSST (Koutini et al., 2022). Pretrained positions of the other kind
            are converted: those of a grid to the separate ones whose sum is closest in least squares, and the positions
            of class and distillation token are added to the tokens; separate ones to the grid of their sums.
        drop_path: stochastic depth in training: probability that attention or MLP of the last block is left out for a
            clip, in [0, 1). It grows linearly from 0 in the first block, so that it has no effect if `depth` is 1.
        dropout: probability in training that a value is set to zero, in [0, 1): of the tokens with their positions, and
            in each block of the attention's output, of the MLP's hidden layer and of its output.

    Raises:
        UsageError: the map is smaller than one patch, `stride`, `depth`, `drop_path` or `dropout` is out of range,
            `stride` is not 16 with `patch=conv`, or the weights cannot be loaded or do not fit.
        ValueError: the number of frames is not a multiple of `planes`.
    """

    fsdp_units = (Block,)
    takes_planes = True
    published: ClassVar = {True: IMAGENET, "audioset": AUDIOSET, "ast-audioset": AUDIOSET}
    hash_if_changed: ClassVar[tuple[str, ...]] = ("patch", "pooling", "position_embedding", "drop_path", "dropout")

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
        patch: Literal["patch", "conv"] = "patch",
        pooling: Literal["cls", "mean"] = "cls",
        position_embedding: Literal["grid", "separate"] = "grid",
        drop_path: float = 0.0,
        dropout: float = 0.0,
    ):
        super().__init__()
        if not 1 <= depth <= 12:
            raise UsageError(f"depth={depth} must be between 1 and 12 (the depth of DeiT)")
        if not 1 <= stride <= PATCH:
            raise UsageError(f"stride={stride} must be between 1 and {PATCH} (no overlap)")
        if patch == "conv" and stride != PATCH:
            raise UsageError(f"stride={stride} with patch=conv: the stem of convolutions has stride {PATCH} only")
        check_rates(drop_path=drop_path, dropout=dropout)
        if pretrained in _AUDIOSET and size != "base":
            raise UsageError(
                f"pretrained={pretrained} is a model of size base, not {size}: use classifier=ast_audioset or "
                "classifier.size=base"
            )
        channels, frequency, time = map_shape
        self.min_frames = PATCH
        self.map_shape, self.num_classes, self.positions = map_shape, num_classes, positions
        self.built = Patches(frequency, time, stride, planes)
        self.grid = self.built.grid
        self.has_prefix = pooling == "cls"
        rows, columns = self.grid
        self.tokens = PREFIX * self.has_prefix + rows * columns
        if planes > 1:
            self.fixed_length = "the positions of a map with several planes are computed for one length"
        self.width, num_heads = _SIZES[size]
        encoder = DeiTEncoder(self.width, depth, num_heads, dropout=dropout, drop_path=drop_path)
        self.patches: nn.Conv2d | ConvStem
        if patch == "patch":
            self.patches = nn.Conv2d(channels, self.width, PATCH, stride)
        else:
            self.patches = ConvStem(channels, self.width)
        if self.has_prefix:
            self.cls_token, self.dist_token = encoder.cls_token, encoder.dist_token
        self.separate = position_embedding == "separate"
        if self.separate:
            self.row_embed = nn.Parameter(torch.empty(1, rows, self.width))
            self.column_embed = nn.Parameter(torch.empty(1, columns, self.width))
        else:
            self.pos_embed = nn.Parameter(torch.empty(1, self.tokens, self.width))
        self.dropout = dropout_layer(dropout)
        self.blocks, self.norm = encoder.blocks, encoder.norm
        self.head_norm = nn.LayerNorm(self.width)
        self.output = nn.Linear(self.width, num_classes)
        if isinstance(self.patches, nn.Conv2d):
            nn.init.trunc_normal_(self.patches.weight, std=INIT_STD)
            assert self.patches.bias is not None
            nn.init.zeros_(self.patches.bias)
        for tensor in (self.row_embed, self.column_embed) if self.separate else (self.pos_embed,):
            nn.init.trunc_normal_(tensor, std=INIT_STD)
        nn.init.trunc_normal_(self.output.weight, std=INIT_STD)
        nn.init.zeros_(self.output.bias)
        if pretrained is not False:
            self._load(pretrained, size, stem)

    @classmethod
    def check_map(cls, map_shape: Shape) -> None:
        _, frequency, frames = map_shape
        Patches(frequency, frames)

    def embed(self, feature_map: Tensor) -> Tensor:
        """Compute the embedding of a map. `(batch, channels, frequency, time)` -> `(batch, width)`."""
        self.check_input(feature_map)
        frequency, frames = feature_map.shape[2:]
        if isinstance(self.patches, ConvStem) and not isinstance(frames, int):
            # Frames counted from the tokens: nothing tells an export that what the convolutions leave of a symbolic
            # size is a sixteenth of it.
            x = self._tokens(feature_map)
            positions = self._positions(frequency, x.shape[1] // self.grid[0] * PATCH)
        else:
            positions = self._positions(frequency, frames)
            x = self._tokens(feature_map)
        if self.has_prefix:
            # x.shape[0] rather than len(x), an int that would fix the batch size of an exported model.
            prefix = torch.cat([self.cls_token, self.dist_token], dim=1).expand(x.shape[0], -1, -1)
            x = torch.cat([prefix.to(x.dtype), x], dim=1)
        x = self.dropout(x + positions)
        x = run_blocks(self.blocks, x, PREFIX) if self.has_prefix else self.blocks(x)
        return self.norm(x).mean(dim=1)

    def _positions(self, frequency: int, frames: int) -> Tensor:
        """Position embeddings for a map of this size, `(1, tokens, width)`."""
        if self.separate:
            positions = sum_positions(self.row_embed, self.column_embed)
            if self.has_prefix:  # a position of these tokens would be learned twice, since nothing moves them
                positions = nn.functional.pad(positions, (0, 0, PREFIX, 0))
        else:
            positions = self.pos_embed
        if not isinstance(frames, int):  # a symbolic size: the model is being exported with dynamic length
            return lead_positions(positions, self.built, frames)
        patches = Patches(frequency, frames, self.built.stride, self.built.planes)
        return fit_positions(positions, self.built, patches, self.positions)

    def _tokens(self, feature_map: Tensor) -> Tensor:
        """Embed the patches. `(batch, channels, frequency, time)` -> `(batch, rows * columns, width)`.

        The patch convolution is computed as a matrix product, because oneDNN's bfloat16 convolution of this shape
        gives NaN on narrow maps (torch 2.12 with AMX). It needs a copy of the map, 2.6 times its size at stride 10.
        """
        if isinstance(self.patches, ConvStem):
            frequency, frames = (size // PATCH * PATCH for size in feature_map.shape[2:])
            return self.patches(feature_map[:, :, :frequency, :frames]).flatten(2).transpose(1, 2)
        if exported.is_for_onnx():  # has a fast convolution, and copies each value of a patch by itself
            return self.patches(feature_map).flatten(2).transpose(1, 2)
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
        """Class token, distillation token and position embeddings."""
        names = ["cls_token", "dist_token"] if self.has_prefix else []
        return {*names, *(("row_embed", "column_embed") if self.separate else ("pos_embed",))}

    def _load(self, source: bool | str, size: str, stem: str) -> None:
        """Load pretrained weights in place; arguments as for the class. Raises `UsageError` if they do not fit."""
        name = _NAMES[size]
        path = find_weights(AUDIOSET_REPO if source in _AUDIOSET else source, f"timm/{name}.fb_in1k")
        own = self.state_dict()
        layout, state = _layouts.read(path, own)
        token = "dist_token" if self.has_prefix else "norm.weight"
        there, here = tuple(state[token].shape), tuple(own[token].shape)
        if there != here:
            fitting = next((size for size, (width, _) in _SIZES.items() if width == there[-1]), None)
            cure = f"use classifier.size={fitting}" if fitting else "no classifier.size has this width"
            raise UsageError(f"{path} does not fit {name}: {token} is {there} in the file, {here} here; {cure}")
        if isinstance(self.patches, ConvStem):
            if "patches.weight" in state:
                del state["patches.weight"], state["patches.bias"]
                state.update({key: own[key] for key in own if key.startswith("patches.")})
        elif layout is not _layouts.GAFX:
            state["patches.weight"] = stem_kernel(state["patches.weight"], self.map_shape[0], stem)
        # A head for other classes is useless, and so is its norm, which was trained with it.
        head = [key for key in own if key.startswith(_layouts.HEAD)]
        pooled_alike = ("cls_token" in state) == self.has_prefix
        if not pooled_alike or not all(key in state and state[key].shape == own[key].shape for key in head):
            state.update({key: own[key] for key in head})
        else:
            self.head_labels = weights.labels(path)
        state = _layouts.lay_positions(layout, state, own, self.built, self.positions, path)
        weights.fit(self, state, path, cure="use the classifier.size and the front-end that it was saved with")
        self.record_source(path, source)
        if source in _AUDIOSET:
            self.input_scale = AUDIOSET_SCALE


def stem_kernel(kernel: Tensor, channels: int, stem: str) -> Tensor:
    """Convert a patch kernel `(width, 3, 16, 16)` to `(width, channels, 16, 16)`.

    Mean or sum over RGB, repeated and divided by `channels`. A kernel with one channel is its own mean and sum.
    """
    single = kernel.mean(dim=1, keepdim=True) if stem == "mean" else kernel.sum(dim=1, keepdim=True)
    return single.expand(-1, channels, -1, -1) / channels
