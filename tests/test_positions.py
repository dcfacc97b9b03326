"""Positions of patches, by hand: resized, read at another stride, laid out within planes, fitted to other lengths."""

import numpy as np
import pytest
import timm
import torch
from torch.testing import assert_close

from gafx.nn.positions import (
    Patches,
    columns_in_planes,
    fit_positions,
    resize_positions,
    restride_positions,
    spread_positions,
)


def patches(rows, columns):
    """Patches side by side on the smallest map that holds so many."""
    return Patches(16 * rows, 16 * columns)


def positions_of(rows, prefix=((90.0, 91.0),)):
    """`(1, 2 + rows * columns, 1)` from prefix and grid as written in a test."""
    return torch.tensor([*prefix[0], *(float(v) for row in rows for v in row)])[None, :, None]


def grid_of(positions, rows):
    assert positions[0, :2, 0].tolist() == [90.0, 91.0]  # prefix tokens are kept
    return positions[0, 2:, 0].reshape(rows, -1).tolist()


HAND = {
    "time shrinks by an even number": ([[1, 2, 3, 4], [5, 6, 7, 8]], (2, 2), [[2, 3], [6, 7]]),  # start 4//2 - 2//2
    "time shrinks, odd to even": ([[1, 2, 3, 4, 5]], (1, 2), [[2, 3]]),  # start 5//2 - 2//2 = 1
    "time shrinks, odd to odd": ([[1, 2, 3, 4, 5]], (1, 3), [[2, 3, 4]]),
    "time shrinks, even to odd": ([[1, 2, 3, 4, 5, 6]], (1, 3), [[3, 4, 5]]),  # start 6//2 - 3//2 = 2
    "frequency shrinks": ([[1, 2], [3, 4], [5, 6], [7, 8]], (2, 2), [[3, 4], [5, 6]]),
    "time doubles": ([[0, 8], [8, 16]], (2, 4), [[0, 2, 6, 8], [8, 10, 14, 16]]),  # weights 1/4 and 3/4, edges held
    "time 2 to 3": ([[0, 6]], (1, 3), [[0, 3, 6]]),
    "frequency doubles": ([[0, 4], [8, 20]], (4, 2), [[0, 4], [2, 8], [6, 16], [8, 20]]),
    "both double": (
        [[0, 8], [16, 24]],
        (4, 4),
        [[0, 2, 6, 8], [4, 6, 10, 12], [12, 14, 18, 20], [16, 18, 22, 24]],
    ),
    "time grows, frequency shrinks": (
        [[0, 8], [16, 32], [32, 0], [4, 4]],
        (2, 4),
        [[16, 20, 28, 32], [32, 24, 8, 0]],  # rows 1 and 2
    ),
    "time shrinks, frequency grows": ([[1, 2, 3, 4], [5, 10, 15, 4]], (4, 2), [[2, 3], [4, 6], [8, 12], [10, 15]]),
}


@pytest.mark.parametrize("case", HAND)
def test_positions_the_way_of_ast_by_hand(case):
    rows, new, expected = HAND[case]
    resized = resize_positions(positions_of(rows), (len(rows), len(rows[0])), new, "ast")
    assert grid_of(resized, new[0]) == expected


def test_positions_of_deit_onto_30_seconds_by_linear_interpolation():
    grid = np.random.default_rng(0).standard_normal((14, 14))
    centres = (np.arange(206) + 0.5) * 14 / 206 - 0.5
    expected = np.stack([np.interp(centres, np.arange(14), row) for row in grid[3:11]])  # 14//2 - 8//2 = 3
    resized = resize_positions(positions_of(grid), (14, 14), (8, 206), "ast")
    np.testing.assert_allclose(grid_of(resized, 8), expected, atol=1e-5)


@pytest.mark.parametrize("how", ["ast", "timm"])
@pytest.mark.parametrize("new", [(2, 3), (5, 3), (2, 2), (4, 7), (8, 64)])
def test_a_constant_grid_stays_constant(how, new):
    resized = resize_positions(positions_of([[7.0] * 3] * 4), (4, 3), new, how)
    assert resized.shape == (1, 2 + new[0] * new[1], 1)
    assert_close(torch.tensor(grid_of(resized, new[0])), torch.full(new, 7.0))


@pytest.mark.parametrize("new", [(8, 64), (8, 206), (20, 9), (3, 3)])
def test_positions_the_way_of_timm(new):
    positions = torch.randn(1, 2 + 14 * 14, 5, generator=torch.Generator().manual_seed(1))
    expected = timm.layers.resample_abs_pos_embed(positions, list(new), [14, 14], num_prefix_tokens=2)
    resized = resize_positions(positions, (14, 14), new, "timm")
    assert torch.equal(resized, expected)
    plane = positions[:, 2:].transpose(1, 2).reshape(1, 5, 14, 14)
    plane = torch.nn.functional.interpolate(plane, new, mode="bicubic", antialias=True)
    assert_close(resized[:, 2:], plane.flatten(2).transpose(1, 2))
    assert (resized - resize_positions(positions, (14, 14), new, "ast")).abs().max() > 0.1


@pytest.mark.parametrize("how", ["ast", "timm"])
def test_positions_that_fit_are_left_alone(how):
    positions = torch.randn(1, 2 + 12, 4)
    assert torch.equal(resize_positions(positions, (3, 4), (3, 4), how), positions)
    assert torch.equal(fit_positions(positions, patches(3, 4), patches(3, 4), how), positions)


def test_a_shorter_map_takes_the_leading_columns():
    rows = [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert grid_of(fit_positions(positions_of(rows), patches(2, 4), patches(2, 3), "ast"), 2) == [[1, 2, 3], [5, 6, 7]]
    assert grid_of(fit_positions(positions_of(rows), patches(2, 4), patches(1, 2), "ast"), 1) == [[1, 2]]


def test_a_longer_map_resamples():
    rows = [[0, 8], [8, 16]]
    assert grid_of(fit_positions(positions_of(rows), patches(2, 2), patches(2, 4), "ast"), 2) == [
        [0, 2, 6, 8],
        [8, 10, 14, 16],
    ]
    # longer in time and lower in frequency: the leading rows of the longer grid
    assert grid_of(fit_positions(positions_of(rows), patches(2, 2), patches(1, 4), "ast"), 1) == [[0, 2, 6, 8]]


# --- positions of patches ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "stride", "grid"),
    [
        ((128, 1024), 16, (8, 64)),
        ((128, 1024), 10, (12, 101)),
        ((128, 1876), 16, (8, 117)),
        ((128, 3308), 10, (12, 330)),
        ((16, 16), 1, (1, 1)),
        ((17, 18), 1, (2, 3)),
        ((31, 32), 16, (1, 2)),
    ],
)
def test_grids(size, stride, grid):
    assert Patches(*size, stride).grid == grid


def test_a_column_belongs_to_the_plane_of_its_centre():
    assert Patches(16, 1876, planes=4).by_plane() == [range(29), range(29, 59), range(59, 88), range(88, 117)]
    # planes of 24 frames, centres at 8, 24 (the first frame of the second plane), 40
    assert Patches(16, 48, planes=2).by_plane() == [range(1), range(1, 3)]
    assert [Patches(16, 48, planes=2).locate(column) for column in range(3)] == [(0, 8), (1, 0), (1, 16)]
    assert Patches(16, 16, planes=4).by_plane() == [range(0), range(0), range(1), range(1, 1)]
    assert Patches(16, 60, 10, 2).by_plane() == [range(3), range(3, 5)]  # centres 8, 18, 28 and 38, 48
    assert Patches(16, 100).by_plane() == [range(6)]


@pytest.mark.parametrize(("frames", "planes"), [(100, 3), (17, 2)])
def test_planes_of_unequal_length_are_refused(frames, planes):
    with pytest.raises(ValueError, match=f"{frames} frames does not divide into {planes} planes"):
        Patches(16, frames, planes=planes)


# --- another stride ---------------------------------------------------------------------------------------------------


def test_another_stride_reads_where_the_new_patches_have_their_centres():
    rows = [[0, 10, 20, 30], [100, 110, 120, 130], [200, 210, 220, 230]]
    old = Patches(36, 46, 10)
    # 16: rows and columns 0 and 1.6
    assert_close(
        torch.tensor(grid_of(restride_positions(positions_of(rows), old, 16), 2)),
        torch.tensor([[0.0, 16.0], [160.0, 176.0]]),
    )
    # 15: the same places 0, 1.5 and, along time, 3
    assert grid_of(restride_positions(positions_of(rows), old, 15), 2) == [[0, 15, 30], [150, 165, 180]]
    # 5: twice as many, every other one as it was
    halves = grid_of(restride_positions(positions_of(rows), old, 5), 5)
    assert halves == [[50 * row + 5 * column for column in range(7)] for row in range(5)]
    assert grid_of(restride_positions(positions_of(rows), old, 10), 3) == rows


def test_a_last_row_beyond_the_old_ones_holds():
    old = Patches(128, 1024, 10)  # 12 x 101; at stride 16 the eighth row is at 11.2, the last column at 100.8
    grid = np.add.outer(100 * np.arange(12), np.arange(101))
    new = np.array(grid_of(restride_positions(positions_of(grid), old, 16), 8))
    assert new.shape == (8, 64)
    np.testing.assert_allclose(new[:, 0], [0, 160, 320, 480, 640, 800, 960, 1100], rtol=1e-5)
    np.testing.assert_allclose(new[0], [*(1.6 * np.arange(63)), 100], rtol=1e-5)


@pytest.mark.parametrize("stride", [1, 7, 10, 13, 16])
def test_another_stride_is_linear_interpolation(stride):
    old = Patches(100, 230, 10)
    grid = np.random.default_rng(0).standard_normal(old.grid)
    rows, columns = Patches(100, 230, stride).grid
    wide = np.stack([np.interp(np.arange(columns) * stride / 10, np.arange(old.grid[1]), row) for row in grid])
    expected = np.stack(
        [np.interp(np.arange(rows) * stride / 10, np.arange(old.grid[0]), column) for column in wide.T], axis=1
    )
    new = grid_of(restride_positions(positions_of(grid), old, stride), rows)
    np.testing.assert_allclose(new, expected, atol=1e-5)


# --- planes -----------------------------------------------------------------------------------------------------------


def test_each_plane_gets_the_pretrained_axis_for_itself():
    new = Patches(32, 2 * 56, planes=2)  # centres 8, 24, 40 and 56, 72, 88, 104: three columns and four
    spread = spread_positions(positions_of([[0, 6], [6, 12]]), (2, 2), new, "ast")
    assert grid_of(spread, 2) == [[0, 3, 6, 0, 1.5, 4.5, 6], [6, 9, 12, 6, 7.5, 10.5, 12]]
    cut = spread_positions(positions_of([[1, 2, 3, 4, 5]]), (1, 5), Patches(16, 112, planes=2), "ast")
    assert grid_of(cut, 1) == [[2, 3, 4, 1, 2, 3, 4]]  # the centre: from 5//2 - 3//2 = 1, from 5//2 - 4//2 = 0


@pytest.mark.parametrize("how", ["ast", "timm"])
def test_planes_start_alike(how):
    positions = torch.randn(1, 2 + 14 * 14, 3, generator=torch.Generator().manual_seed(0))
    new = Patches(128, 1876, planes=4)
    spread = spread_positions(positions, (14, 14), new, how)
    grid = spread[:, 2:].unflatten(1, new.grid)
    for held in new.by_plane():
        own = resize_positions(positions, (14, 14), (8, len(held)), how)[:, 2:].unflatten(1, (8, len(held)))
        assert torch.equal(grid[:, :, held.start : held.stop], own)
    one = Patches(128, 1876)
    assert torch.equal(
        spread_positions(positions, (14, 14), one, how), resize_positions(positions, (14, 14), (8, 117), how)
    )


BUILT = Patches(16, 2 * 56, planes=2)  # centres at offsets 8, 24, 40 and 0, 16, 32, 48
OTHER = {
    # planes of 40: centres 8, 24 | 40, 56, 72 at offsets 0, 16, 32
    "shorter": (80, [0, 1, 3, 4, 5]),
    # planes of 44: centres 8, 24, 40 | 56, 72 at offsets 12, 28, that is 3/4 of a column behind 0 and 16
    "shorter, in between": (88, [0, 1, 2, 3.75, 4.75]),
    # planes of 50: centres 8, 24, 40 | 56 at 6, 72 at 22, 88 at 38; three eighths
    "shorter, by six": (100, [0, 1, 2, 3.375, 4.375, 5.375]),
    # planes of 112: offsets 8, 24, ..., 104 are read at 4, 12, 20, ..., 52; the first and the last are clamped
    "twice as long": (224, [0, 0.25, 0.75, 1.25, 1.75, 2, 2, 3.25, 3.75, 4.25, 4.75, 5.25, 5.75, 6]),
    "the length built for": (112, [0, 1, 2, 3, 4, 5, 6]),
    # planes of 10: one centre, at 8, in the first
    "hardly anything": (20, [0]),
}


@pytest.mark.parametrize("case", OTHER)
def test_columns_in_planes_by_hand(case):
    frames, expected = OTHER[case]
    assert columns_in_planes(BUILT, Patches(16, frames, planes=2)) == pytest.approx(expected)
    values = [10.0, 20, 40, 1000, 1010, 1030, 1070]
    table = positions_of([values])
    fitted = fit_positions(table, BUILT, Patches(16, frames, planes=2), "ast")
    assert grid_of(fitted, 1)[0] == pytest.approx(list(np.interp(expected, np.arange(7), values)))
    if frames == 112:
        assert fitted is table


def test_columns_of_gafx_u_after_ten_seconds():
    """4 x 469 frames built for, 4 x 157 at hand: the same moments of each source have the same positions."""
    built, new = Patches(128, 1876, planes=4), Patches(128, 628, planes=4)
    places = columns_in_planes(built, new)
    assert places[:10] == list(range(10))
    for column, place in enumerate(places):
        plane, offset = new.locate(column)
        held = built.by_plane()[plane]
        assert held[0] <= place <= held[-1]
        meant = 16 * place + 8 - 469 * plane
        assert meant == pytest.approx(offset) or place in (held[0], held[-1])


@pytest.mark.parametrize("planes", [2, 3, 4])
@pytest.mark.parametrize("stride", [10, 16])
@pytest.mark.parametrize("length", [8, 15, 16, 19, 20, 37, 64, 117, 118, 119, 300])
def test_positions_never_cross_into_another_plane(planes, stride, length):
    built, new = Patches(48, planes * 118, stride, planes), Patches(48, planes * length, stride, planes)
    grid = np.zeros(built.grid)
    for plane, held in enumerate(built.by_plane()):
        grid[:, held.start : held.stop] = plane
    fitted = np.array(grid_of(fit_positions(positions_of(grid), built, new, "ast"), new.grid[0]))
    expected = [new.locate(column)[0] for column in range(new.grid[1])]
    assert fitted.tolist() == [expected] * new.grid[0]


def test_a_plane_that_was_too_short_for_a_column_reads_from_the_nearest():
    built = Patches(16, 4 * 10, planes=4)  # centres 8 and 24: planes 0 and 2
    assert [len(held) for held in built.by_plane()] == [1, 0, 1, 0]
    places = columns_in_planes(built, Patches(16, 4 * 32, planes=4))
    assert places == [0, 0, 0, 0, 1, 1, 1, 1]


def test_planes_and_another_number_of_rows():
    table = positions_of([[0, 1, 2, 3, 4, 5, 6], [10, 11, 12, 13, 14, 15, 16]])
    built = Patches(32, 112, planes=2)
    assert grid_of(fit_positions(table, built, Patches(16, 112, planes=2), "ast"), 1) == [[0, 1, 2, 3, 4, 5, 6]]
    assert grid_of(fit_positions(table, built, Patches(16, 80, planes=2), "ast"), 1) == [[0, 1, 3, 4, 5]]
    taller = grid_of(fit_positions(table, built, Patches(64, 80, planes=2), "ast"), 4)
    assert [row[0] for row in taller] == [0, 2.5, 7.5, 10]


def test_gradients_reach_the_positions_that_were_read():
    table = torch.zeros(1, 2 + 7, 1, requires_grad=True)
    fit_positions(table, BUILT, Patches(16, 88, planes=2), "ast").sum().backward()
    assert table.grad[0, :, 0].tolist() == [1, 1, 1, 1, 1, 0.25, 1, 0.75, 0]
