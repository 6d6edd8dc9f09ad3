"""Operators against their materialised matrices."""

import pytest
import torch

from wellposed.core.operators import Convolution, Dense
from wellposed.errors import ShapeError


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


CASES = {
    "dense": Dense(_random(4, 6)),
    **{
        f"{padding}-{kernel}-{stride}-{image}": Convolution(
            _random(3, 2, *kernel), image, padding, stride
        )
        for padding in ("zeros", "circular")
        for kernel in ((3, 3), (1, 1), (5, 3))
        for stride in (1, 2)
        for image in ((6, 4), (7, 5))
        if padding == "zeros" or not any(side % stride for side in image)
    },
}


@pytest.fixture(params=CASES, name="op")
def _op(request):
    return CASES[request.param]


def test_apply_adjoint_and_weight_gradient(op):
    M = op.materialise()
    x, y = _random(5, *op.in_shape, seed=1), _random(5, *op.out_shape, seed=2)
    assert torch.allclose(op.apply(x).flatten(1), x.flatten(1) @ M.mT)
    assert torch.allclose(op.adjoint(y).flatten(1), y.flatten(1) @ M)
    offset = _random(5, *op.out_shape, seed=3)
    assert torch.allclose(op.apply(x, offset), op.apply(x) + offset)
    back = _random(5, *op.in_shape, seed=3)
    assert torch.allclose(op.adjoint(y, back), op.adjoint(y) + back)
    weight = op.weight.clone().requires_grad_()
    (grad,) = torch.autograd.grad((op.with_weight(weight).apply(x) * y).sum(), weight)
    assert torch.allclose(op.weight_gradient(y, x), grad)


def test_absolute_and_row_scale(op):
    x = _random(2, *op.in_shape, seed=1)
    if isinstance(op, Dense):
        scale = torch.arange(1.0, 1 + op.out_shape[0], dtype=torch.float64)
        column = scale
    else:
        scale = torch.arange(1.0, 1 + op.out_shape[0], dtype=torch.float64)[:, None, None]
        column = scale
    assert torch.allclose(op.scale_rows(scale).apply(x), column * op.apply(x))
    # no two taps of these cases meet in one entry, so |M| is the operator of |weights|
    assert torch.allclose(op.absolute().materialise(), op.materialise().abs())
    assert op.terms >= int((op.materialise() != 0).sum(1).max())


@pytest.mark.parametrize("padding", ["zeros", "circular"])
def test_diagonal_of_a_square_convolution(padding):
    op = Convolution(_random(3, 3, 3, 3), (4, 5), padding)
    M = op.materialise()
    diagonal = op.diagonal().expand(op.out_shape).flatten()
    assert torch.allclose(diagonal, torch.diagonal(M))
    off = op.off_diagonal().materialise()
    assert torch.allclose(off, M - torch.diag(torch.diagonal(M)))
    assert op.square


def test_dense_diagonal():
    op = Dense(_random(4, 4))
    assert torch.allclose(op.off_diagonal().matrix + torch.diag(op.diagonal()), op.matrix)
    assert op.to(torch.float32).weight.dtype == torch.float32


def test_bad_shapes():
    with pytest.raises(ShapeError, match="matrix"):
        Dense(torch.ones(3))
    with pytest.raises(ShapeError, match="odd"):
        Convolution(torch.ones(1, 1, 2, 2), (4, 4))
    with pytest.raises(ShapeError, match="wraps"):
        Convolution(torch.ones(1, 1, 7, 7), (2, 2), "circular")
    with pytest.raises(ShapeError, match="divides"):
        Convolution(torch.ones(1, 1, 3, 3), (5, 5), "circular", 2)


def test_parts_are_not_joined_by_who_asks_for_leaves():
    rest, diagonal = torch.rand(3, 3).fill_diagonal_(0), torch.rand(3, requires_grad=True)
    operator = Dense.of_parts(rest, diagonal)
    assert operator.leaves == (rest, diagonal)
    assert operator.weight.requires_grad
    assert operator.leaves == (rest, diagonal)
    assert Dense(rest).leaves == (rest,)
