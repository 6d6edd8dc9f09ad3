"""Inverses of convolutions by frequency, against dense ones; and the memory for inverses."""

import copy
import pickle

import pytest
import torch

from wellposed.core.fourier import centred_symbols, torus
from wellposed.core.inverse import Memo, inverse_of
from wellposed.core.operators import Convolution, Dense
from wellposed.errors import ConfigError


def rand(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def operator(image, padding, kernel=(5, 3), channels=3):
    return Convolution(0.3 * rand(channels, channels, *kernel, seed=1), image, padding)


SIZES = [(5, 6), (7, 4), (5, 5), (8, 8), (3, 2)]


@pytest.mark.parametrize("image", SIZES)
@pytest.mark.parametrize("padding", ["zeros", "circular"])
def test_the_inverse_is_the_dense_one_on_the_torus(image, padding):
    conv = operator(image, padding)
    grid = torus(conv)
    whole = Convolution(conv.kernel, grid, "circular")
    steps = rand(3, 1, 1, seed=2).abs() + 0.5
    eye = torch.eye(3 * grid[0] * grid[1], dtype=torch.float64)
    scale = steps.expand(3, *grid).reshape(-1, 1)
    dense = torch.linalg.inv(eye + scale * (eye - whole.materialise()))
    found = inverse_of(conv, steps)
    h = rand(4, 3, *grid, seed=3)
    assert torch.allclose(found.apply(h).flatten(1), h.flatten(1) @ dense.mT, atol=1e-11)
    turned = torch.linalg.inv(eye + scale * (eye - whole.materialise().mT))
    assert torch.allclose(found.adjoint(h).flatten(1), h.flatten(1) @ turned.mT, atol=1e-11)


@pytest.mark.parametrize("image", SIZES)
def test_nothing_wraps_around_on_the_torus_of_a_padded_image(image):
    conv = operator(image, "zeros")
    found = inverse_of(conv, torch.ones(3, 1, 1, dtype=torch.float64))
    whole = Convolution(conv.kernel, torus(conv), "circular")
    z = rand(2, 3, *image, seed=4)
    assert torch.allclose(found.leave(whole.apply(found.enter(z))), conv.apply(z), atol=1e-12)
    assert torch.equal(found.leave(found.enter(z)), z)


def test_a_dense_inverse_and_its_transpose():
    A, steps = 0.4 * rand(6, 6), rand(6, seed=1).abs() + 0.1
    eye = torch.eye(6, dtype=torch.float64)
    found, h = inverse_of(Dense(A), steps), rand(3, 6, seed=2)
    for matrix, value in ((A, found.apply(h)), (A.mT, found.adjoint(h))):
        assert torch.allclose(value @ (eye + steps[:, None] * (eye - matrix)).mT, h, atol=1e-12)


def test_symbols_are_hermitian_for_symmetric_kernels():
    kernel = rand(3, 3, 5, 3)
    kernel = kernel + kernel.transpose(0, 1).flip((2, 3))
    found = centred_symbols(kernel, (6, 5))
    assert torch.allclose(found, found.mH, atol=1e-12)


def test_strides_and_other_channels_have_no_inverse():
    for conv in (
        Convolution(rand(2, 2, 3, 3), (4, 4), stride=2),
        Convolution(rand(3, 2, 3, 3), (4, 4)),
    ):
        with pytest.raises(ConfigError, match="no inverse"):
            torus(conv)


class Count:
    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return inverse_of(Dense(0.1 * rand(3, 3)), torch.ones(3, dtype=torch.float64))


def test_the_memo_knows_the_same_weights_through_other_tensors():
    memo, make, weight = Memo(), Count(), rand(3, 3)
    first = memo.get(Dense(weight), 1.0, make)
    assert memo.get(Dense(weight.detach()), 1.0, make) is first
    assert make.calls == 1
    memo.get(Dense(weight), 2.0, make)
    weight.add_(1)
    memo.get(Dense(weight), 2.0, make)
    memo.get(Dense(weight.clone()), 2.0, make)
    assert make.calls == 4


def test_the_memo_does_not_trust_storage_that_is_used_again():
    memo, make = Memo(), Count()
    for seed in range(5):
        # freed at once: an address alone would come back with other numbers
        memo.get(Dense(rand(3, 3, seed=seed)), 1.0, make)
    assert make.calls == 5


def test_the_memo_keeps_nothing_in_inference_mode_and_in_copies():
    memo, make = Memo(), Count()
    with torch.inference_mode():
        weight = rand(3, 3)
        memo.get(Dense(weight), 1.0, make)
        weight.add_(1)
        memo.get(Dense(weight), 1.0, make)
    assert make.calls == 2
    memo.get(Dense(rand(3, 3)), 1.0, make)
    assert copy.deepcopy(memo)._held is None
    assert pickle.loads(pickle.dumps(memo))._held is None
