"""Weights files of an AST or a DeiT by gafx and others, converted to the tensor names of `AST`.

Known layouts, recognised by the names in the file:

- `DEIT`: timm's distilled DeiT, trained on ImageNet (https://github.com/huggingface/pytorch-image-models);
- `AUTHORS`: the models of AST's authors, saved as safetensors (https://github.com/YuanGongND/ast);
- `TRANSFORMERS`: the same models on the Hugging Face hub (`ASTModel`, `ASTForAudioClassification`);
- `GAFX`: a classifier or a whole model, saved by gafx.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from gafx.errors import UsageError
from gafx.nn.positions import (
    PATCH,
    PREFIX,
    Grid,
    Patches,
    Positions,
    fit_positions,
    restride_positions,
    separate_positions,
    split_positions,
    spread_positions,
    sum_positions,
)
from gafx.saving import weights

HEAD = ("head_norm.", "output.")
GRID, SEPARATE = "pos_embed", ("row_embed", "column_embed")  # positions of an AST
PREFIX_TOKENS = ("cls_token", "dist_token")


@dataclass(frozen=True)
class Layout:
    """Tensor names of one kind of file.

    Attributes:
        name: content of such a file, for messages.
        marker: prefix of names that only this layout has.
        block: name of a transformer block, with `{}` for its number.
        modules: name in AST -> names of modules and tokens in the file; others have the same name. Several are
            concatenated along their first axis.
        unused: prefixes of tensors that AST does not have.
    """

    name: str
    marker: str = ""
    block: str = "blocks.{}"
    modules: Mapping[str, Sequence[str]] = field(default_factory=dict)
    unused: tuple[str, ...] = ()

    def names(self, name: str) -> list[str]:
        """Return the names of a tensor of AST in such a file."""
        prefix = ""
        if name.startswith("blocks."):
            _, number, name = name.split(".", 2)
            prefix = self.block.format(number) + "."
        module, dot, kind = name.rpartition(".") if name.endswith((".weight", ".bias")) else (name, "", "")
        return [prefix + there + dot + kind for there in self.modules.get(module, (module,))]


_PREFIX = "audio_spectrogram_transformer."  # absent where the model was saved without its head
TRANSFORMERS = Layout(
    "AST as transformers saves it",
    marker="embeddings.",
    block="encoder.layer.{}",
    modules={
        "cls_token": ("embeddings.cls_token",),
        "dist_token": ("embeddings.distillation_token",),
        "pos_embed": ("embeddings.position_embeddings",),
        "patches": ("embeddings.patch_embeddings.projection",),
        "norm1": ("layernorm_before",),
        "attn.qkv": ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
        "attn.proj": ("attention.output.dense",),
        "norm2": ("layernorm_after",),
        "mlp.fc1": ("intermediate.dense",),
        "mlp.fc2": ("output.dense",),
        "norm": ("layernorm",),
        "head_norm": ("classifier.layernorm",),
        "output": ("classifier.dense",),
    },
)
AUTHORS = Layout(
    "AST as its authors save it",
    marker="v.",
    block="v.blocks.{}",
    modules={
        **{name: (f"v.{name}",) for name in ("cls_token", "dist_token", "pos_embed", "norm")},
        "patches": ("v.patch_embed.proj",),
        "head_norm": ("mlp_head.0",),
        "output": ("mlp_head.1",),
    },
    unused=("v.head.", "v.head_dist."),
)
GAFX = Layout("AST that gafx saved", marker="patches.")
# Last and without a marker, so that the error for an unknown file names the tensors that it lacks.
DEIT = Layout(
    "distilled DeiT as timm saves it", modules={"patches": ("patch_embed.proj",)}, unused=("head.", "head_dist.")
)
LAYOUTS = (TRANSFORMERS, AUTHORS, GAFX, DEIT)


def read(path: Path, wanted: Mapping[str, Tensor]) -> tuple[Layout, dict[str, Tensor]]:
    """Return the layout of a weights file, and its tensors under the names of AST.

    Args:
        path: a safetensors file.
        wanted: tensors of the AST by name. Those of the head may be missing; further blocks of the file are skipped.
            The result has the patch kernel, the positions and the tokens of the file, where these differ from those
            wanted by an option of the AST.

    Raises:
        UsageError: tensors are missing, have another number of dimensions, or belong to another kind of model.
    """
    state = weights.read(path)
    if any(name.startswith(_PREFIX) for name in state):
        state = {name.removeprefix(_PREFIX): tensor for name, tensor in state.items()}
    else:  # a whole model's classifier; the authors save theirs wrapped in DataParallel
        state = {name.removeprefix("module."): tensor for name, tensor in weights.part(state, "classifier").items()}
    layout = next(layout for layout in LAYOUTS if any(name.startswith(layout.marker) for name in [*state, ""]))
    wanted = _as_in_file(layout, state, wanted, path)
    names = {name: layout.names(name) for name in wanted}
    missing = [there for name in names if not name.startswith(HEAD) for there in names[name] if there not in state]
    depth = len({name.split(".")[1] for name in wanted if name.startswith("blocks.")})
    if missing:
        raise UsageError(
            f"{path} lacks {_listed(missing)}: it is no {layout.name} with {depth} blocks. classifier.pretrained "
            f"reads {', '.join(layout.name for layout in LAYOUTS)}; classifier.depth may be lower"
        )
    # Blocks after the last one wanted are skipped on purpose; any other unexpected tensor is an error.
    known = {there for name in names for there in names[name]}
    blocks = tuple(layout.block.format(number) + "." for number in range(depth))
    strange = [
        name
        for name in state.keys() - known
        if not name.startswith(layout.unused) and (name.startswith(blocks) or not name.startswith(layout.block[:-2]))
    ]
    if strange:
        raise UsageError(
            f"{path} also contains {_listed(sorted(strange))}, which AST does not have: it is no {layout.name}"
        )
    found = {name: [state[each] for each in there] for name, there in names.items() if state.keys() >= set(there)}
    for name, tensors in found.items():
        if any(tensor.ndim != wanted[name].ndim for tensor in tensors):
            raise UsageError(
                f"{path} is no {layout.name}: {names[name][0]} is {tuple(tensors[0].shape)} in the file, {name} is "
                f"{tuple(wanted[name].shape)} here"
            )
    return layout, {name: torch.cat(each) if len(each) > 1 else each[0] for name, each in found.items()}


def _as_in_file(
    layout: Layout, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path
) -> dict[str, Tensor]:
    """Return `wanted` with the names that the options of the model in the file give; a tensor has the right `ndim`."""
    ours = layout is GAFX
    stem, separate = ours and "patches.weight" not in state, ours and "row_embed" in state
    tokens = not ours or any(name in state for name in PREFIX_TOKENS)
    if stem and "patches.weight" in wanted:
        raise UsageError(f"{path} has a stem of convolutions, no patch kernel: use classifier.patch=conv")
    if not tokens and PREFIX_TOKENS[0] in wanted:
        raise UsageError(f"{path} has no class and distillation token: use classifier.pooling=mean")
    changed = dict(wanted)
    position = next(wanted[name] for name in (*SEPARATE, GRID) if name in wanted)
    if not stem and "patches.weight" not in wanted:
        changed = {name: tensor for name, tensor in wanted.items() if not name.startswith("patches.")}
        changed |= {"patches.weight": torch.empty(0, 0, PATCH, PATCH), "patches.bias": torch.empty(0)}
    for name in (*SEPARATE, GRID):
        changed.pop(name, None)
    changed |= dict.fromkeys(SEPARATE if separate else (GRID,), position)
    return changed | dict.fromkeys(PREFIX_TOKENS if tokens else (), position)


def lay_positions(
    layout: Layout, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], new: Patches, how: Positions, path: Path
) -> dict[str, Tensor]:
    """Convert the position embeddings and the tokens of a file to those of an AST and to the patches of a map.

    See `AST` for its options, and `_lay_grid` for the patches.

    Args:
        layout: of the file.
        state: tensors of the file as `read` returns them.
        wanted: tensors of the AST by name.
        new: patches of the map.
        how: see `resize_positions`.
        path: of the file, for messages.

    Returns:
        `state` with other positions and tokens.

    Raises:
        UsageError: no grid has this number of positions.
    """
    state = dict(state)
    tokens = [state.pop(name) for name in PREFIX_TOKENS if name in state]
    parts = [state.pop(name) for name in SEPARATE if name in state]
    if parts:
        grid: Grid | None = (parts[0].shape[1], parts[1].shape[1])
        positions, prefix = sum_positions(*parts), 0
    else:
        grid, positions, prefix = None, state.pop(GRID), len(tokens)
    laid = _lay_grid(layout, positions, prefix, grid, new, how, path)
    own, cells = split_positions(laid, new.grid)
    if GRID in wanted:
        if not prefix:  # separate positions have none for the tokens
            own = cells.new_zeros(1, PREFIX if PREFIX_TOKENS[0] in wanted else 0, cells.shape[-1])
        elif PREFIX_TOKENS[0] not in wanted:
            own = own[:, :0]
        state[GRID] = torch.cat([own, cells.flatten(1, 2)], dim=1)
    else:
        # Exactly as saved where the map has the same patches.
        same = len(parts) > 0 and grid == new.grid and torch.equal(laid, positions)
        state |= zip(SEPARATE, parts if same else separate_positions(laid, new.grid), strict=True)
        if prefix:
            tokens = [token + own[:, index : index + 1] for index, token in enumerate(tokens)]
    if PREFIX_TOKENS[0] in wanted:
        state |= zip(PREFIX_TOKENS, tokens, strict=True)
    return state


def _lay_grid(
    layout: Layout, positions: Tensor, prefix: int, grid: Grid | None, new: Patches, how: Positions, path: Path
) -> Tensor:
    """Convert the position embeddings of a file to the patches of a map.

    - Those of DeiT belong to a square image: they are resized, within each plane.
    - Those of AST belong to 128 x 1024 (frequency x time) at the stride that gives their number. For another stride
      they are first interpolated at the centres of the new patches, then resized.
    - Those saved by gafx are used as in the model that they come from: see `fit_positions`.

    Args:
        layout: of the file.
        positions: `(1, prefix + patches, width)`.
        prefix: number of positions before the grid.
        grid: rows and columns; None if the file does not tell them.
        new: patches of the map.
        how: see `resize_positions`.
        path: of the file, for messages; the `config.json` next to a model saved by gafx has the shape of its map.

    Raises:
        UsageError: no grid has this number of positions.
    """
    count = positions.shape[1] - prefix
    if layout is DEIT:
        side = math.isqrt(max(count, 0))
        if side < 1 or side**2 != count:
            raise UsageError(f"{path} is no {layout.name}: its {count} positions (pos_embed) do not form a square")
        return spread_positions(positions, (side, side), new, how)
    if layout is GAFX:
        old = _saved_patches(path, count, grid, new)
    else:
        published = (Patches(128, 1024, stride) for stride in range(1, PATCH + 1))
        fitting = [patches for patches in published if math.prod(patches.grid) == count]
        if not fitting:
            raise UsageError(
                f"{path} is {layout.name}, but its {count} positions ({layout.names('pos_embed')[0]}) do not fit a "
                "map of 128 x 1024 (frequency x time); choose a model that was trained on AudioSet"
            )
        old = fitting[0]
    if old.planes == 1:
        positions = restride_positions(positions, old, new.stride)
        old = Patches(old.frequency, old.frames, new.stride)
    if layout is GAFX and old.planes == new.planes:
        return fit_positions(positions, old, new, how)
    return spread_positions(positions, old.grid, new, how)


def _saved_patches(path: Path, count: int, grid: Grid | None, new: Patches) -> Patches:
    """Return the patches of the map that a classifier saved by gafx was built for.

    Without `config.json` their number must be that of `new`, or a multiple of its rows (a map of another length).
    """
    try:
        info = json.loads(path.with_name("config.json").read_text(encoding="utf-8"))
        _, frequency, frames = info["map_shape"]
        planes = new.planes if frames % new.planes == 0 else 1
        old = Patches(frequency, frames, info["classifier"].get("stride", PATCH), planes)
        fits = math.prod(old.grid) == count and grid in (None, old.grid)
        if fits and (planes == 1 or old.stride == new.stride):
            return old
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # no such file, or not of gafx
    rows, columns = new.grid
    if count == rows * columns and grid in (None, new.grid):
        return new
    if new.planes == 1 and count > 0 and count % rows == 0 and (grid is None or grid[0] == rows):
        return Patches(new.frequency, PATCH + (count // rows - 1) * new.stride, new.stride)
    there = f"pos_embed is for {count}" if grid is None else f"its positions are for {grid[0]} x {grid[1]}"
    raise UsageError(
        f"{path} does not fit: {there} patches in the file, for {rows} x {columns} here; build the "
        "classifier with the stride, the front-end and the length of clips that it was saved with"
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
