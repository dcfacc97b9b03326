"""Where the patches of a map lie, and positions for them: made for one grid of patches, wanted on another.

Positions are `(1, 2 + rows * columns, width)`: those of the class and the distillation token, then the grid row by row
(frequency), each row column by column (time).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from gafx.errors import UsageError

PATCH = 16
PREFIX = 2  # class and distillation token
Positions = Literal["ast", "timm"]
Grid = tuple[int, int]


@dataclass(frozen=True)
class Patches:
    """The patches of 16 x 16 that a map is cut into; what no longer makes a whole patch is dropped.

    A map may consist of planes, equal parts laid one after another along time. Patches know nothing of them: one may
    straddle a border. A column of patches belongs to the plane that holds its centre.

    Attributes:
        frequency: bins of the map.
        frames: of the whole map, all planes together; a multiple of `planes`.
        stride: from patch to patch along both axes, in bins and in frames.
        planes: number of planes.

    Raises:
        UsageError: the map is smaller than one patch.
        ValueError: the frames are no multiple of the planes.
    """

    frequency: int
    frames: int
    stride: int = PATCH
    planes: int = 1

    def __post_init__(self) -> None:
        if self.frequency < PATCH or self.frames < PATCH:
            raise UsageError(
                f"a map of {self.frequency} x {self.frames} (frequency x time) is smaller than one {PATCH} x {PATCH} "
                "patch; use longer clips"
            )
        if self.frames % self.planes:
            raise ValueError(f"a map of {self.frames} frames does not consist of {self.planes} planes of equal length")

    @property
    def grid(self) -> Grid:
        """Rows and columns of patches."""
        return (self.frequency - PATCH) // self.stride + 1, (self.frames - PATCH) // self.stride + 1

    @property
    def plane_frames(self) -> int:
        """Frames of one plane."""
        return self.frames // self.planes

    def place(self, column: int) -> tuple[int, int]:
        """The plane of a column, and how many frames its centre lies behind the plane's first."""
        centre = column * self.stride + PATCH // 2
        return centre // self.plane_frames, centre % self.plane_frames

    def by_plane(self) -> list[range]:
        """The columns of each plane; none where planes are so short that patches skip one."""
        planes = [self.place(column)[0] for column in range(self.grid[1])]
        starts = [sum(plane < p for plane in planes) for p in range(self.planes + 1)]
        return [range(start, stop) for start, stop in pairwise(starts)]


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
    prefix, grid = positions[:, :PREFIX], positions[:, PREFIX:].float()
    grid = grid.transpose(1, 2).unflatten(2, old)
    if how == "timm":
        grid = nn.functional.interpolate(grid, new, mode="bicubic", antialias=True)
    else:
        for axis in (3, 2):
            have, want = grid.shape[axis], new[axis - 2]
            if want <= have:
                grid = grid.narrow(axis, have // 2 - want // 2, want)
            else:
                size = (grid.shape[2], want) if axis == 3 else (want, grid.shape[3])
                grid = nn.functional.interpolate(grid, size, mode="bilinear")
    return torch.cat([prefix, grid.flatten(2).transpose(1, 2).to(prefix.dtype)], dim=1)


def restride_positions(positions: Tensor, old: Patches, stride: int) -> Tensor:
    """Positions of the same map's patches at another stride: each is read where the new patch has its centre.

    Patches of two strides begin at the same corner, so row `r` of stride `s` lies at row `r * s / old.stride`, and a
    column likewise; between two rows or columns the positions are interpolated linearly, beyond the last it holds. AST
    itself would cut the centre out of an axis of fewer patches, although those still reach from the lowest band to the
    highest and from the first frame to the last.
    """
    if stride == old.stride:
        return positions
    grid = positions[:, PREFIX:].unflatten(1, old.grid)
    for axis, count in ((1, old.grid[0]), (2, old.grid[1])):
        new = Patches(old.frequency, old.frames, stride).grid[axis - 1]
        grid = _read(grid, axis, [min(index * stride / old.stride, count - 1) for index in range(new)])
    return torch.cat([positions[:, :PREFIX], grid.flatten(1, 2)], dim=1)


def spread_positions(positions: Tensor, old: Grid, new: Patches, how: Positions) -> Tensor:
    """Lay positions of one plane out on a map: each of its planes gets them, resized for its own columns alone.

    Arguments are those of `resize_positions`; with one plane it is the same.
    """
    if new.planes == 1:
        return resize_positions(positions, old, new.grid, how)
    grids = [(new.grid[0], len(held)) for held in new.by_plane() if held]
    parts = [resize_positions(positions, old, grid, how)[:, PREFIX:].unflatten(1, grid) for grid in grids]
    return torch.cat([positions[:, :PREFIX], torch.cat(parts, dim=2).flatten(1, 2)], dim=1)


def fit_positions(positions: Tensor, built: Patches, new: Patches, how: Positions) -> Tensor:
    """Positions for a map other than the one they were built for.

    With one plane a shorter map takes the leading rows and columns (its clips begin where longer ones begin), a longer
    one resamples. With several a column never reads beyond its plane: of a shorter map it takes the position at its
    own offset within the plane, of a longer one at that offset scaled down by the two lengths.

    Args:
        positions: `(1, 2 + rows * columns, width)`.
        built: the patches that they belong to.
        new: the patches of the map at hand, of the same stride and number of planes.
        how: how a longer axis resamples, see `resize_positions`; within planes it is always linear along time.
    """
    if built == new:
        return positions
    if built.planes > 1 and built.frames != new.frames:
        grid = positions[:, PREFIX:].unflatten(1, built.grid)
        grid = _read(grid, 2, columns_in_planes(built, new))
        positions = torch.cat([positions[:, :PREFIX], grid.flatten(1, 2)], dim=1)
        built = Patches(built.frequency, new.frames, built.stride, built.planes)
    larger = (max(built.grid[0], new.grid[0]), max(built.grid[1], new.grid[1]))
    positions = resize_positions(positions, built.grid, larger, how)
    if larger == new.grid:
        return positions
    prefix, places = positions[:, :PREFIX], positions[:, PREFIX:].unflatten(1, larger)
    return torch.cat([prefix, places[:, : new.grid[0], : new.grid[1]].flatten(1, 2)], dim=1)


def lead_positions(positions: Tensor, built: Patches, frames: int) -> Tensor:
    """`fit_positions` for a map of one plane and at most the frames built for, without a branch on how many.

    What it computes can be exported for every such length at once.

    Args:
        positions: `(1, 2 + rows * columns, width)`.
        built: the patches that they belong to.
        frames: of the map at hand; while exporting a symbol.
    """
    assert built.planes == 1
    columns = (frames - PATCH) // built.stride + 1
    leading = torch.arange(columns, device=positions.device)
    grid = positions[:, PREFIX:].unflatten(1, built.grid).index_select(2, leading)
    return torch.cat([positions[:, :PREFIX], grid.flatten(1, 2)], dim=1)


def columns_in_planes(built: Patches, new: Patches) -> list[float]:
    """For each column of a map of another length: where along the built columns its position is read.

    A place between two columns of the same plane, never before its first nor behind its last. Where the built map was
    too short for a plane to hold a column, the nearest plane that does stands in.
    """
    held = built.by_plane()
    scale = min(1.0, built.plane_frames / new.plane_frames)
    places = []
    for column in range(new.grid[1]):
        plane, offset = new.place(column)
        columns = held[plane] or held[min([(abs(p - plane), p) for p in range(built.planes) if held[p]])[1]]
        place = columns[0] + (offset * scale - built.place(columns[0])[1]) / built.stride
        places.append(min(max(place, columns[0]), columns[-1]))
    return places


def _read(grid: Tensor, axis: int, places: Sequence[float]) -> Tensor:
    """Read a tensor along one axis at fractional indices, by linear interpolation."""
    low = torch.tensor([int(place) for place in places], device=grid.device)
    share = torch.tensor([place % 1 for place in places], dtype=grid.dtype, device=grid.device)
    high = (low + 1).clamp(max=grid.shape[axis] - 1)
    shape = [-1 if dimension == axis else 1 for dimension in range(grid.ndim)]
    return torch.lerp(grid.index_select(axis, low), grid.index_select(axis, high), share.view(shape))
