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
from gafx.nn.positions import PATCH, PREFIX, Patches, Positions, fit_positions, restride_positions, spread_positions
from gafx.saving import weights

HEAD = ("head_norm.", "output.")


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

    Raises:
        UsageError: tensors are missing, have another number of dimensions, or belong to another kind of model.
    """
    state = weights.read(path)
    if any(name.startswith(_PREFIX) for name in state):
        state = {name.removeprefix(_PREFIX): tensor for name, tensor in state.items()}
    else:  # a whole model's classifier; the authors save theirs wrapped in DataParallel
        state = {name.removeprefix("module."): tensor for name, tensor in weights.part(state, "classifier").items()}
    layout = next(layout for layout in LAYOUTS if any(name.startswith(layout.marker) for name in [*state, ""]))
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


def lay_positions(layout: Layout, positions: Tensor, new: Patches, how: Positions, path: Path) -> Tensor:
    """Convert the position embeddings of a file to the patches of a map.

    - Those of DeiT belong to a square image: they are resized, within each plane.
    - Those of AST belong to 128 x 1024 (frequency x time) at the stride that gives their number. For another stride
      they are first interpolated at the centres of the new patches, then resized.
    - Those saved by gafx are used as in the model that they come from: see `fit_positions`.

    Args:
        layout: of the file.
        positions: `(1, 2 + patches, width)`.
        new: patches of the map.
        how: see `resize_positions`.
        path: of the file, for messages; the `config.json` next to a model saved by gafx has the shape of its map.

    Raises:
        UsageError: no grid has this number of positions.
    """
    count = positions.shape[1] - PREFIX
    if layout is DEIT:
        side = math.isqrt(max(count, 0))
        if side < 1 or side**2 != count:
            raise UsageError(f"{path} is no {layout.name}: its {count} positions (pos_embed) do not form a square")
        return spread_positions(positions, (side, side), new, how)
    if layout is GAFX:
        old = _saved_patches(path, count, new)
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


def _saved_patches(path: Path, count: int, new: Patches) -> Patches:
    """Return the patches of the map that a classifier saved by gafx was built for.

    Without `config.json` their number must be that of `new`, or a multiple of its rows (a map of another length).
    """
    try:
        info = json.loads(path.with_name("config.json").read_text(encoding="utf-8"))
        _, frequency, frames = info["map_shape"]
        planes = new.planes if frames % new.planes == 0 else 1
        old = Patches(frequency, frames, info["classifier"].get("stride", PATCH), planes)
        if math.prod(old.grid) == count and (planes == 1 or old.stride == new.stride):
            return old
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # no such file, or not of gafx
    rows, columns = new.grid
    if count == rows * columns:
        return new
    if new.planes == 1 and count > 0 and count % rows == 0:
        return Patches(new.frequency, PATCH + (count // rows - 1) * new.stride, new.stride)
    raise UsageError(
        f"{path} does not fit: pos_embed is for {count} patches in the file, for {rows} x {columns} here; build the "
        "classifier with the stride, the front-end and the length of clips that it was saved with"
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
