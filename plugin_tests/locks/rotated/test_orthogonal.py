"""A random orthogonal matrix of any size: it mixes all numbers, and can be undone."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from fedml_keylock.locks.entropy import Stream
from fedml_keylock.locks.rotated import orthogonal as orthogonal_module
from fedml_keylock.locks.rotated.orthogonal import OrthogonalMatrix

SIZES = (1, 2, 300, 512, 513, 1000, 70_000)


class TestOrthogonalMatrix:
    """A random orthogonal matrix of any size."""

    @pytest.mark.parametrize("size", SIZES)
    def test_it_can_be_undone_from_both_sides_and_keeps_lengths_and_angles(self, size):
        matrix = OrthogonalMatrix(size, Stream(b"secret"))
        x, y = torch.randn(2, size, generator=torch.Generator().manual_seed(0)).double()
        kept = x.clone()
        rotated = matrix.apply(x)
        assert rotated.dtype == torch.float64
        assert rotated.shape == (size,)
        assert torch.equal(x, kept)  # a copy is rotated
        assert (matrix.undo(rotated) - x).abs().max() < 1e-10
        assert (matrix.apply(matrix.undo(x)) - x).abs().max() < 1e-10
        assert abs(rotated.norm() / x.norm() - 1) < 1e-10
        assert abs(rotated @ matrix.apply(y) - x @ y) < 1e-9 * x.norm() * y.norm()
        both = matrix.apply(2 * x - 3 * y)
        assert (both - 2 * rotated + 3 * matrix.apply(y)).abs().max() < 1e-9

    @pytest.mark.parametrize("size", [size for size in SIZES if size <= 1000])
    def test_its_matrix_is_orthogonal(self, size):
        matrix = OrthogonalMatrix(size, Stream(b"secret"))
        dense = torch.stack([matrix.apply(row) for row in torch.eye(size)])
        assert (dense @ dense.mT - torch.eye(size).double()).abs().max() < 1e-10

    @pytest.mark.parametrize("size", SIZES)
    def test_the_same_stream_gives_the_same_and_another_one_another(self, size):
        x = torch.randn(size, generator=torch.Generator().manual_seed(0))
        one, same = (OrthogonalMatrix(size, Stream(b"secret")).apply(x) for _ in range(2))
        assert torch.equal(one, same)
        if size == 1:  # there are two
            signs = {
                float((OrthogonalMatrix(1, Stream(bytes([n]))).apply(x) / x).round())
                for n in range(20)
            }
            assert signs == {-1.0, 1.0}
            return
        other = OrthogonalMatrix(size, Stream(b"another")).apply(x)
        assert (one - other).norm() > 0.1 * x.norm()

    @pytest.mark.parametrize("size", [513, 767, 1000, 2047, 65_535, 70_000])
    @pytest.mark.parametrize("at", [0, 300, -1])
    def test_every_number_goes_everywhere(self, size, at):
        """In a matrix of blocks a number may stay among its neighbours: here none does.

        Sizes just below whole blocks are the worst: a pass leaves the most out at an end.
        """
        unit = torch.zeros(size)
        unit[at] = 1
        for rotated in (
            OrthogonalMatrix(size, Stream(b"s")).apply(unit),
            OrthogonalMatrix(size, Stream(b"s")).undo(unit),
        ):
            assert float((rotated != 0).double().mean()) > 0.99
            # like a uniform direction's: normal, of this deviation
            assert float(rotated.abs().max()) < 8 * size**-0.5
            assert 0.8 < float(rotated.abs().median()) / (0.6745 * size**-0.5) < 1.2

    def test_a_matrix_of_more_numbers_has_more_passes(self, monkeypatch):
        """As one of over 256 ** 3 has: after five passes a number would be in 4 ** 5 places."""
        monkeypatch.setattr(orthogonal_module, "BLOCK", 4)
        unit = torch.zeros(5000)
        unit[0] = 1
        assert float((OrthogonalMatrix(5000, Stream(b"s")).apply(unit) != 0).double().mean()) > 0.99

    def test_each_pass_has_signs_a_block_and_an_order_of_its_own_that_count(self):
        """With any one of them another stream's or another pass's, the whole matrix is another."""
        size = 2048
        matrix, other = (
            OrthogonalMatrix(size, Stream(b"secret")),
            OrthogonalMatrix(size, Stream(b"another")),
        )
        x = torch.randn(size, generator=torch.Generator().manual_seed(0)).double()
        passes, rotated = matrix._passes, matrix.apply(x)
        assert len(passes) == 5
        for index, own in enumerate(passes):
            rest = [one for one in [*passes, *other._passes] if one is not own]
            for kind, one in product(range(3), rest):
                mixed = (*own[:kind], one[kind], *own[kind + 1 :])
                matrix._passes = [*passes[:index], mixed, *passes[index + 1 :]]
                assert (matrix.apply(x) - rotated).norm() > 0.5 * x.norm(), (index, kind)
                assert (matrix.undo(rotated) - x).norm() > 0.5 * x.norm(), (index, kind)
