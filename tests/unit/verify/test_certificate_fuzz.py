"""Random damage to certificates: rejected, or what is claimed is still true."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_proofs import KINDS, exact_margin, made, write

from wellposed_check import RejectedError, check


@pytest.fixture(scope="module", params=KINDS)
def proved(request):
    return made(request.param, 7, 1e-4)


def test_whatever_is_still_accepted_is_still_true(tmp_path, proved):
    """Random changes of random fields; enumeration of all pieces is the judge."""
    net, cert = proved
    rng = np.random.default_rng(0)
    names = [name for name in cert if name not in ("format", "digest")]
    accepted = 0
    for _ in range(80):
        changed = dict(cert)
        for name in rng.choice(names, rng.integers(1, 3), replace=False):
            value = np.array(changed[name])
            index = tuple(rng.integers(0, size) for size in value.shape)
            if value.dtype.kind == "i":
                value[index] += rng.choice([-1, 1])
            else:
                step = rng.choice([1e-9, 1e-3, 0.1, 1.0])
                value[index] = rng.choice([-value[index], value[index] * 1.5,
                                           value[index] + step, value[index] - step])  # fmt: skip
            changed[name] = value
        try:
            check(*write(tmp_path, net, changed))
        except RejectedError:
            continue
        accepted += 1
        assert exact_margin(net, changed) > -1e-9
    assert 5 <= accepted < 60


def test_a_flipped_byte_of_the_file_is_noticed_or_does_not_matter(tmp_path, proved):
    net, cert = proved
    files = write(tmp_path, net, cert)
    path = tmp_path / "certificate.npz"
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.choice(len(data), 300, replace=False):
        broken = bytearray(data)
        broken[at] ^= 1 << rng.integers(8)
        path.write_bytes(broken)
        try:
            check(*files)
        except RejectedError:
            continue
        with np.load(path) as file:  # only dates and the like of the archive
            assert all(np.array_equal(file[name], value) for name, value in cert.items())
    for size in (0, 10, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(RejectedError):
            check(*files)
    path.unlink()
    with pytest.raises(RejectedError):
        check(*files)
