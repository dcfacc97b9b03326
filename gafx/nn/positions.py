"""The grid of patches of a map, and the conversion of position embeddings between grids.

Positions are `(1, prefix + rows * columns, width)`: those of the prefix, then the grid in row-major order (rows along
frequency, columns along time). The prefix is the class and the distillation token, or empty where there are none; each
function keeps it as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from gafx.errors import UsageError

PATCH = 16
PREFIX = 2  # class and distillation token, of a transformer that has them
Positions = Literal["ast", "timm"]
Grid = tuple[int, int]


@dataclass(frozen=True)
class Patches:
    """The patches of 16 x 16 that a map is cut into; incomplete patches are dropped.

    A map may consist of planes, equal parts concatenated along time. Patches may straddle their borders: a column of
    patches belongs to the plane that contains its centre.

    Attributes:
        frequency: bins of the map.
        frames: of the whole map with all planes; a multiple of `planes`.
        stride: of the patches along both axes, in bins and in frames.
        planes: number of planes.

    Raises:
        UsageError: the map is smaller than one patch.
        ValueError: the number of frames is not a multiple of `planes`.
    """

    frequency: int
    frames: int
    stride: int = PATCH
    planes: int = 1

    def __post_init__(self) -> None:
        if self.frequency < PATCH or self.frames < PATCH:
            raise UsageError(
                f"a map of {self.frequency} x {self.frames} (frequency x time) is smaller than one {PATCH} x {PATCH} "
                f"patch; use {'longer clips' if self.frames < PATCH else 'a front-end with more frequency bins'}"
            )
        if self.frames % self.planes:
            raise ValueError(f"a map of {self.frames} frames does not divide into {self.planes} planes of equal length")

    @property
    def grid(self) -> Grid:
        """Rows and columns of patches."""
        return (self.frequency - PATCH) // self.stride + 1, (self.frames - PATCH) // self.stride + 1

    @property
    def plane_frames(self) -> int:
        """Frames of one plane."""
        return self.frames // self.planes

    def locate(self, column: int) -> tuple[int, int]:
        """Return the plane of a column, and the offset in frames of its centre within the plane."""
        centre = column * self.stride + PATCH // 2
        return centre // self.plane_frames, centre % self.plane_frames

    def by_plane(self) -> list[range]:
        """Return the columns of each plane; a plane shorter than the stride may have none."""
        planes = [self.locate(column)[0] for column in range(self.grid[1])]
        starts = [sum(plane < p for plane in planes) for p in range(self.planes + 1)]
        return [range(start, stop) for start, stop in pairwise(starts)]


def split_positions(positions: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Split positions into those of the prefix `(1, prefix, width)` and the grid `(1, rows, columns, width)`.

    Args:
        positions: `(1, prefix + rows * columns, width)`.
        grid: rows and columns.
    """
    prefix = positions.shape[1] - grid[0] * grid[1]
    return positions[:, :prefix], positions[:, prefix:].unflatten(1, grid)


def sum_positions(rows: Tensor, columns: Tensor) -> Tensor:
    """Add separate positions of rows `(1, rows, width)` and columns `(1, columns, width)`.

    Returns:
        A grid without a prefix, `(1, rows * columns, width)`.
    """
    return (rows[:, :, None] + columns[:, None]).flatten(1, 2)


def separate_positions(positions: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Compute the separate positions of rows and columns whose sum is closest to a grid, in least squares.

    These are the means over columns and over rows. The mean over both, which either could hold, is divided equally.

    Args:
        positions: `(1, prefix + rows * columns, width)`; the prefix is not used.
        grid: rows and columns.

    Returns:
        `(1, rows, width)` and `(1, columns, width)`.
    """
    _, cells = split_positions(positions, grid)
    half = cells.mean(dim=(1, 2))[:, None] / 2
    return cells.mean(dim=2) - half, cells.mean(dim=1) - half


def resize_positions(positions: Tensor, old: Grid, new: Grid, how: Positions) -> Tensor:
    """Resize positions to another grid of patches; those of the prefix are kept.

    Args:
        positions: `(1, prefix + old rows * old columns, width)`.
        old: rows and columns (frequency, time) of `positions`.
        new: rows and columns of the result.
        how: `ast`: axis by axis, time first: crop the centre of an axis that shrinks, interpolate one that grows
            bilinearly. `timm`: bicubic with antialiasing on both axes at once.
    """
    if old == new:
        return positions
    prefix, grid = split_positions(positions, old)
    grid = grid.float().permute(0, 3, 1, 2)
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
    """Interpolate positions at the centres of the same map's patches at another stride.

    Patches of both strides start at the same corner, so row `r` of stride `s` is at row `r * s / old.stride`, and
    columns likewise. Positions are interpolated linearly between rows and columns and constant beyond the last. The
    code of AST crops the centre of an axis with fewer patches, although these still span all bands and all frames.
    """
    if stride == old.stride:
        return positions
    prefix, grid = split_positions(positions, old.grid)
    for axis, count in ((1, old.grid[0]), (2, old.grid[1])):
        new = Patches(old.frequency, old.frames, stride).grid[axis - 1]
        grid = _read(grid, axis, [min(index * stride / old.stride, count - 1) for index in range(new)])
    return torch.cat([prefix, grid.flatten(1, 2)], dim=1)


def spread_positions(positions: Tensor, old: Grid, new: Patches, how: Positions) -> Tensor:
    """Resize positions of one plane for every plane of a map, each to its own number of columns.

    Arguments are those of `resize_positions`; with one plane the result is the same.
    """
    if new.planes == 1:
        return resize_positions(positions, old, new.grid, how)
    grids = [(new.grid[0], len(held)) for held in new.by_plane() if held]
    parts = [split_positions(resize_positions(positions, old, grid, how), grid)[1] for grid in grids]
    prefix, _ = split_positions(positions, old)
    return torch.cat([prefix, torch.cat(parts, dim=2).flatten(1, 2)], dim=1)


def fit_positions(positions: Tensor, built: Patches, new: Patches, how: Positions) -> Tensor:
    """Convert positions to a map of another size than they were built for.

    With one plane, a shorter map uses the leading rows and columns and a longer one is resampled. With several, columns
    are interpolated within their plane: in a shorter map at their own offset in the plane, in a longer one at that
    offset scaled by the ratio of the lengths.

    Args:
        positions: `(1, prefix + rows * columns, width)`.
        built: the patches that they belong to.
        new: the patches of the map, of the same stride and number of planes.
        how: how a longer axis is resampled, see `resize_positions`; within planes always linearly along time.
    """
    if built == new:
        return positions
    if built.planes > 1 and built.frames != new.frames:
        prefix, grid = split_positions(positions, built.grid)
        grid = _read(grid, 2, columns_in_planes(built, new))
        positions = torch.cat([prefix, grid.flatten(1, 2)], dim=1)
        built = Patches(built.frequency, new.frames, built.stride, built.planes)
    larger = (max(built.grid[0], new.grid[0]), max(built.grid[1], new.grid[1]))
    positions = resize_positions(positions, built.grid, larger, how)
    if larger == new.grid:
        return positions
    prefix, grid = split_positions(positions, larger)
    return torch.cat([prefix, grid[:, : new.grid[0], : new.grid[1]].flatten(1, 2)], dim=1)


def lead_positions(positions: Tensor, built: Patches, frames: int) -> Tensor:
    """Compute `fit_positions` for one plane and at most the number of frames built for, without a branch on it.

    It can be exported for all such lengths at once.

    Args:
        positions: `(1, prefix + rows * columns, width)`.
        built: the patches that they belong to.
        frames: of the map; a symbolic size during export.
    """
    assert built.planes == 1
    columns = (frames - PATCH) // built.stride + 1
    leading = torch.arange(columns, device=positions.device)
    prefix, grid = split_positions(positions, built.grid)
    return torch.cat([prefix, grid.index_select(2, leading).flatten(1, 2)], dim=1)


def columns_in_planes(built: Patches, new: Patches) -> list[float]:
    """Return, for each column of a map of another length, the fractional built column to interpolate at.

    It is between the first and the last column of the same plane. For a plane without columns in the built map, the
    nearest plane that has columns is used.
    """
    held = built.by_plane()
    scale = min(1.0, built.plane_frames / new.plane_frames)
    indices = []
    for column in range(new.grid[1]):
        plane, offset = new.locate(column)
        columns = held[plane] or held[min([(abs(p - plane), p) for p in range(built.planes) if held[p]])[1]]
        index = columns[0] + (offset * scale - built.locate(columns[0])[1]) / built.stride
        indices.append(min(max(index, columns[0]), columns[-1]))
    return indices


def _read(grid: Tensor, axis: int, indices: Sequence[float]) -> Tensor:
    """Interpolate a tensor linearly at fractional indices along one axis."""
    low = torch.tensor([int(index) for index in indices], device=grid.device)
    weight = torch.tensor([index % 1 for index in indices], dtype=grid.dtype, device=grid.device)
    high = (low + 1).clamp(max=grid.shape[axis] - 1)
    shape = [-1 if dimension == axis else 1 for dimension in range(grid.ndim)]
    return torch.lerp(grid.index_select(axis, low), grid.index_select(axis, high), weight.view(shape))
