"""Rotary embedding: angles by hand, complex multiplication, and what rotations must keep."""

import pytest
import torch

from inspatio_core.star.rope import rope_table, rotate

from .plain import normal

FRAMES, ROWS, COLUMNS, WIDTH = 4, 3, 5, 28  # 14 pairs: 6 turn with time, 4 with the row, 4 with the column


def place(frame: int, row: int, column: int) -> int:
    return (frame * ROWS + row) * COLUMNS + column


def turned(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Elements 2j and 2j + 1 as a complex number, turned."""
    z = torch.view_as_complex(x.double().reshape(*x.shape[:-1], -1, 2)) * torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(z).flatten(-2)


def test_the_released_split_of_the_pairs() -> None:
    """Of 64 pairs, 22 turn with the frame, 21 with the row, 21 with the column."""
    table = rope_table(9, 30, 52, 128)
    assert table.cos.shape == table.sin.shape == (9 * 30 * 52, 64)
    for of, first, count in ((8 * 30 * 52, 0, 22), (29 * 52, 22, 21), (51, 43, 21)):  # the last of one axis, 0 else
        position = {0: 8, 22: 29, 43: 51}[first]
        expected = torch.zeros(64, dtype=torch.float64)
        expected[first : first + count] = position * 10000.0 ** (-torch.arange(count, dtype=torch.float64) / count)
        assert torch.equal(table.cos[of], expected.cos().float())
        assert torch.equal(table.sin[of], expected.sin().float())


def test_tables_are_float32_rounded_once_from_float64() -> None:
    table = rope_table(9, 30, 52, 128)
    assert table.cos.dtype == table.sin.dtype == torch.float32
    assert table.cos.is_contiguous() and table.sin.is_contiguous()
    assert (table.cos.double() ** 2 + table.sin.double() ** 2 - 1).abs().max() < 1.3e-7


def test_rotation_is_a_complex_multiplication() -> None:
    x = normal(2, FRAMES * ROWS * COLUMNS, 3, WIDTH)
    angles = torch.zeros(FRAMES * ROWS * COLUMNS, 14, dtype=torch.float64)
    for f in range(FRAMES):
        for r in range(ROWS):
            for c in range(COLUMNS):
                for position, first, count in ((f, 0, 6), (r, 6, 4), (c, 10, 4)):
                    for j in range(count):
                        angles[place(f, r, c), first + j] = position / 10000 ** (j / count)
    ours = rotate(x, rope_table(FRAMES, ROWS, COLUMNS, WIDTH))
    assert ours.dtype == x.dtype and ours.shape == x.shape
    torch.testing.assert_close(ours, turned(x, angles[:, None]), rtol=0, atol=2e-6)


def test_a_product_of_rotated_vectors_depends_on_the_distance_alone() -> None:
    q, k = normal(WIDTH, seed=1), normal(WIDTH, seed=2)
    table = rope_table(FRAMES, ROWS, COLUMNS, WIDTH)
    tokens = FRAMES * ROWS * COLUMNS
    q, k = (rotate(x.expand(1, tokens, 1, WIDTH), table)[0, :, 0] for x in (q, k))
    products = q @ k.T
    for a, b, c, d in (((0, 0, 0), (1, 1, 1), (2, 1, 3), (3, 2, 4)), ((3, 0, 2), (0, 1, 1), (3, 1, 4), (0, 2, 3))):
        assert products[place(*a), place(*b)] == pytest.approx(products[place(*c), place(*d)].item(), abs=1e-5)
    for axis in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        assert abs(products[0, place(*axis)] - products[0, 0]) > 1e-2
    torch.testing.assert_close(q.norm(dim=-1), q[0].norm().expand(tokens))


def test_the_first_token_is_left_as_it_is() -> None:
    x = normal(1, 1, 2, WIDTH, dtype=torch.float32)
    assert torch.equal(rotate(x, rope_table(1, 1, 1, WIDTH)), x)


def test_later_frames_are_rows_of_a_longer_table() -> None:
    table, later = rope_table(6, ROWS, COLUMNS, WIDTH), rope_table(2, ROWS, COLUMNS, WIDTH, first=4)
    rows = table.rows(4 * ROWS * COLUMNS, 6 * ROWS * COLUMNS)
    assert torch.equal(rows.cos, later.cos) and torch.equal(rows.sin, later.sin)
    assert rows.cos.data_ptr() == table.cos[4 * ROWS * COLUMNS :].data_ptr()


def test_bfloat16_is_turned_in_float32_and_rounded_once() -> None:
    x = normal(2, FRAMES * ROWS * COLUMNS, 3, WIDTH, dtype=torch.bfloat16)
    table = rope_table(FRAMES, ROWS, COLUMNS, WIDTH)
    assert torch.equal(rotate(x, table), rotate(x.float(), table).bfloat16())


@pytest.mark.parametrize("width", [6, 8, 20, 64])
def test_every_even_width_has_a_table(width: int) -> None:
    table = rope_table(2, 3, 4, width)
    assert table.cos.shape == (24, width // 2)
    assert torch.unique(torch.cat([table.cos, table.sin], 1), dim=0).shape[0] == 24  # every token its own
