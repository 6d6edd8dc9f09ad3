"""The largest singular value of a matrix that moves a little at a time, as in training."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from wellposed.core.spectral import largest_singular

ROOM = 2e-6
"""How far above the returned value the norm is proved not to lie, relatively."""
_FEW = 32  # below, all eigenvectors cost less
_STEPS = 16


@final
class Leading:
    """Finds the largest singular value from the vector of the last time, and proves it.

    With ``G = M M^T`` and ``s^2`` the Rayleigh quotient of that vector after some products, a
    Cholesky factorisation of ``t I - G``, ``t = (1 + ROOM)^2 s^2`` less rounding, proves that
    ``||M|| <= (1 + ROOM) s``. Two steps of inverse iteration with that factor, which raise ``s``,
    leave of a vector whose singular value is smaller by a fraction ``d`` at most ``(ROOM / d)^2``
    of what there was: the value is exact up to rounding unless ``d`` is as small. Where the
    factorisation fails everything is computed from nothing (`largest_singular`).

    A copy starts from nothing: the vector is a hint and no state of the module. What it starts from
    moves the last bits all the same, so that a checkpoint keeps it (`searches`).

    Attributes:
        vector: Of the last search, shape (n,), float64; `None` before the first.
    """

    def __init__(self) -> None:
        self.vector: Tensor | None = None

    @torch.no_grad()
    def find(self, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``s`` with ``s <= ||M|| <= (1 + ROOM) s`` up to rounding, and its two vectors.

        Args:
            matrix: In float64.
        """
        found = self._near(matrix)
        if found is None:
            found = largest_singular(matrix)
        self.vector = found[1]
        return found

    def _near(self, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        v, n = self.vector, len(matrix)
        if v is None or v.shape[0] != n or v.device != matrix.device or min(matrix.shape) < _FEW:
            return None
        gram = matrix @ matrix.mT
        for _ in range(_STEPS):
            v = torch.mv(gram, v)
        v = v / torch.linalg.vector_norm(v)
        square = float(torch.dot(v, torch.mv(gram, v)))
        if not 0 < square < 1e100:
            return None
        # the product and the factorisation err by n^2 and by n (n + 2) units of the trace at most
        unit = 4 * n * (n + 2) * torch.finfo(gram.dtype).eps
        gram.neg_().diagonal().add_(square * ((1 + ROOM) ** 2 - unit))
        factor, failed = torch.linalg.cholesky_ex(gram)
        if unit > ROOM or int(failed):
            return None
        for _ in range(2):
            v = torch.cholesky_solve(v[:, None], factor)[:, 0]
            v = v / torch.linalg.vector_norm(v)
        other = torch.mv(matrix.mT, v)
        norm = torch.linalg.vector_norm(other)
        return norm, v, other / norm

    def __deepcopy__(self, memo: object) -> Leading:
        return Leading()

    def __reduce__(self) -> tuple[type[Leading], tuple[()]]:
        return Leading, ()


def searches(model: nn.Module) -> dict[str, Leading]:
    """The searches of a model's modules (their attribute `leading`), by the modules' names."""
    found = ((name, getattr(module, "leading", None)) for name, module in model.named_modules())
    return {name: search for name, search in found if isinstance(search, Leading)}
