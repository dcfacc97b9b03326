"""AST: a DeiT that reads a map as a sequence of 16 x 16 patches (Gong et al., 2021; GAFX section 3.2)."""

from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from gafx import weights
from gafx.classifiers.base import Classifier, Shape
from gafx.errors import UsageError
from gafx.registry import CLASSIFIERS

PATCH = 16
PREFIX = 2  # class and distillation token
_NAMES = {size: f"deit_{size}_distilled_patch16_224" for size in ("tiny", "small", "base")}
Positions = Literal["ast", "timm"]
Grid = tuple[int, int]


@CLASSIFIERS.register
class AST(Classifier):
    """Audio Spectrogram Transformer on a distilled DeiT from timm, patches of 16 x 16 without overlap.

    `(batch, channels, frequency, time)` is cut into `frequency // 16` x `time // 16` patches (a remainder is dropped),
    which with class and distillation token run through the transformer; the embedding is the mean of those two tokens
    after the final norm, the head a LayerNorm and a Linear.

    Args:
        map_shape: (channels, frequency, time) that the positions are laid out for.
        num_classes: outputs.
        size: DeiT `tiny`, `small` or `base`.
        pretrained: ImageNet weights: `true` for timm's on the Hugging Face hub, or the path of a local `.safetensors`
            file or of a folder that holds `model.safetensors`. `false` starts at random. Weights that are asked for and
            not to be had are an error, never a random start.
        stem: how the RGB patch kernel becomes one for C channels: `mean` of the three (the paper) or their `sum` (AST's
            code and timm), repeated and divided by C.
        positions: how positions are resized: `ast` cuts the centre out of an axis that shrinks and interpolates one
            that grows bilinearly; `timm` resamples both axes bicubically with antialiasing.
        depth: transformer blocks; fewer than 12 take the first ones of the pretrained weights.

    Raises:
        UsageError: a map smaller than one patch, or weights that cannot be had or do not fit.
    """

    def __init__(
        self,
        map_shape: Shape,
        num_classes: int,
        /,
        *,
        size: Literal["tiny", "small", "base"] = "tiny",
        pretrained: bool | str = False,
        stem: Literal["mean", "sum"] = "mean",
        positions: Literal["ast", "timm"] = "ast",
        depth: int = 12,
    ):
        super().__init__()
        import timm  # takes seconds: only when a classifier is built

        if not 1 <= depth <= 12:
            raise UsageError(f"depth={depth} must lie between 1 and 12 (DeiT's)")
        channels, frequency, time = map_shape
        self.least_frames = PATCH
        self.map_shape, self.num_classes, self.positions = map_shape, num_classes, positions
        self.grid = _grid(frequency, time)
        deit: Any = timm.create_model(_NAMES[size], pretrained=False, num_classes=0, depth=depth)
        self.width = deit.embed_dim
        self.patches = nn.Conv2d(channels, self.width, PATCH, PATCH)
        self.cls_token, self.dist_token = deit.cls_token, deit.dist_token
        self.pos_embed = nn.Parameter(torch.empty(1, PREFIX + self.grid[0] * self.grid[1], self.width))
        self.blocks, self.norm = deit.blocks, deit.norm
        self.head_norm = nn.LayerNorm(self.width)
        self.output = nn.Linear(self.width, num_classes)
        for tensor in (self.patches.weight, self.pos_embed, self.output.weight):
            nn.init.trunc_normal_(tensor, std=0.02)
        for layer in (self.patches, self.output):
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        if pretrained is not False:
            self._load_imagenet(pretrained, _NAMES[size], stem)

    def embed(self, feature_map: Tensor) -> Tensor:
        """`(batch, channels, frequency, time)` -> `(batch, width)`."""
        if feature_map.ndim != 4 or feature_map.shape[1] != self.map_shape[0]:
            raise ValueError(
                f"a map of shape {tuple(feature_map.shape)} does not fit: this AST reads (batch, {self.map_shape[0]}, "
                "frequency, time)"
            )
        grid = _grid(*feature_map.shape[2:])
        x = self._tokens(feature_map, grid)
        prefix = torch.cat([self.cls_token, self.dist_token], dim=1).expand(len(x), -1, -1)
        x = torch.cat([prefix.to(x.dtype), x], dim=1) + fit_positions(self.pos_embed, self.grid, grid, self.positions)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, :PREFIX].mean(dim=1)

    def _tokens(self, feature_map: Tensor, grid: Grid) -> Tensor:
        """The patch convolution as a matrix product.

        `(batch, channels, frequency, time)` -> `(batch, rows * columns, width)`. Patches do not overlap, so cutting
        them out costs a copy and the product is what the convolution would be; oneDNN's own bfloat16 convolution of
        this shape gives NaN on narrow maps (torch 2.12 on AMX).
        """
        rows, columns = grid
        cut = feature_map[..., : rows * PATCH, : columns * PATCH]
        patches = rearrange(cut, "b c (row y) (column x) -> b (row column) (c y x)", y=PATCH, x=PATCH)
        return nn.functional.linear(patches, self.patches.weight.flatten(1), self.patches.bias)

    def head(self, embedding: Tensor) -> Tensor:
        """`(batch, width)` -> `(batch, classes)` logits."""
        return self.output(self.head_norm(embedding))

    def head_names(self) -> tuple[str, ...]:
        return ("output.",)

    def _load_imagenet(self, source: bool | str, name: str, stem: str) -> None:
        path = weights.find(source, f"timm/{name}.fb_in1k", key="classifier.pretrained")
        state = weights.read(path)
        try:
            if state["dist_token"].shape[-1] != self.width:
                raise UsageError(
                    f"{path} does not fit {name}: its width is {state['dist_token'].shape[-1]}, not {self.width}; "
                    "choose the matching classifier.size"
                )
            kernel = stem_kernel(state.pop("patch_embed.proj.weight"), self.map_shape[0], stem)
            grid = round((state["pos_embed"].shape[1] - PREFIX) ** 0.5)
            state = {
                "patches.weight": kernel,
                "patches.bias": state.pop("patch_embed.proj.bias"),
                "pos_embed": resize_positions(state.pop("pos_embed"), (grid, grid), self.grid, self.positions),
                **{key: value for key, value in state.items() if not key.startswith("head")},
            }
        except KeyError as error:
            raise UsageError(f"{path} holds no {error}: it is no distilled DeiT in timm's layout ({name})") from error
        own = {key: value for key, value in self.state_dict().items() if not key.startswith(("head_norm.", "output."))}
        # Blocks beyond `depth` are left out on purpose; anything else that does not match is an error.
        state = {key: value for key, value in state.items() if key in own or not key.startswith("blocks.")}
        unfit = [
            key
            for key in own.keys() | state.keys()
            if key not in own or key not in state or own[key].shape != state[key].shape
        ]
        if unfit:
            there = tuple(state[unfit[0]].shape) if unfit[0] in state else "missing"
            here = tuple(own[unfit[0]].shape) if unfit[0] in own else "none"
            raise UsageError(
                f"{path} does not fit {name}: {len(unfit)} tensors differ ({unfit[0]}: {there} in the file, {here} "
                "here); choose the matching classifier.size"
            )
        self.load_state_dict(state, strict=False)


def _grid(frequency: int, time: int) -> Grid:
    if frequency < PATCH or time < PATCH:
        raise UsageError(
            f"a map of {frequency} x {time} (frequency x time) is smaller than one {PATCH} x {PATCH} patch; use longer "
            "clips"
        )
    return frequency // PATCH, time // PATCH


def stem_kernel(kernel: Tensor, channels: int, stem: str) -> Tensor:
    """An RGB patch kernel `(width, 3, 16, 16)` as one for `channels` channels: mean or sum, repeated / channels."""
    single = kernel.mean(dim=1, keepdim=True) if stem == "mean" else kernel.sum(dim=1, keepdim=True)
    return single.expand(-1, channels, -1, -1) / channels


def resize_positions(positions: Tensor, old: Grid, new: Grid, how: Positions) -> Tensor:
    """Lay positions of one patch grid out on another; the two prefix tokens are kept.

    Args:
        positions: `(1, 2 + old rows * old columns, width)`.
        old: rows and columns (frequency, time) that they were made for.
        new: rows and columns wanted.
        how: `ast`: axis by axis, time first: the centre of an axis that shrinks, bilinear interpolation of one that
            grows. `timm`: bicubic with antialiasing on both axes at once.
    """
    if old == new:
        return positions
    if how == "timm":
        from timm.layers import resample_abs_pos_embed

        return resample_abs_pos_embed(positions, list(new), list(old), num_prefix_tokens=PREFIX)
    prefix, grid = positions[:, :PREFIX], positions[:, PREFIX:].float()
    grid = grid.transpose(1, 2).unflatten(2, old)
    for axis in (3, 2):
        have, want = grid.shape[axis], new[axis - 2]
        if want <= have:
            grid = grid.narrow(axis, have // 2 - want // 2, want)
        else:
            size = (grid.shape[2], want) if axis == 3 else (want, grid.shape[3])
            grid = nn.functional.interpolate(grid, size, mode="bilinear")
    return torch.cat([prefix, grid.flatten(2).transpose(1, 2).to(prefix.dtype)], dim=1)


def fit_positions(positions: Tensor, built: Grid, grid: Grid, how: Positions) -> Tensor:
    """Positions for a map other than the one built for.

    A shorter map takes the leading rows and columns (its clips begin where longer ones begin), a longer one resamples.
    """
    if grid == built:
        return positions
    larger = (max(built[0], grid[0]), max(built[1], grid[1]))
    positions = resize_positions(positions, built, larger, how)
    if larger == grid:
        return positions
    prefix, places = positions[:, :PREFIX], positions[:, PREFIX:].unflatten(1, larger)
    return torch.cat([prefix, places[:, : grid[0], : grid[1]].flatten(1, 2)], dim=1)
