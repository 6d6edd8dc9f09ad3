"""LipSDP-Neuron: the best multipliers, by a semidefinite programme; the solver is only a hint.

With ``xi = (dx, dz_1, ..., dz_k)``, the differences behind every layer of slopes in [a, b], all
other differences are linear in ``xi``: ``dv_i = G_i xi``. For multipliers ``lam_i >= 0``

    rho |dx|^2 - |dy|^2 - sum_i lam_i^T ( (dz_i - [a_i] dv_i) o ([b_i] dv_i - dz_i) )  >=  0

for all ``xi`` proves ``|dy|^2 <= rho |dx|^2`` [1]; the smallest ``rho`` is sought. ``1 / lam`` are
the ``D`` of `ellipsoid`, where they are checked by Cholesky factorisation with rounding.

References:
    [1] Fazlyab, Robey, Hassani, Morari, Pappas. Efficient and accurate estimation of Lipschitz
    constants for deep neural networks. NeurIPS 2019, arXiv 1906.04893.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wellposed.certify.eclipse import Multipliers, Proof, Scaled, best_proposal, prove
from wellposed.certify.ellipsoid import Opaque, Slope, Step, Weights, middle_radius
from wellposed.errors import ConfigError, NotCertifiableError

_LARGEST = 400  # unknowns of the quadratic form; interior-point methods need about n^6 operations
_INWARD = (1 + 1e-6, 1 + 1e-4, 1.01)


def lipsdp(size: int, steps: tuple[Step, ...], *, verbose: bool = False) -> Proof:
    """What the multipliers of the semidefinite programme prove.

    Args:
        size: Components of an input.
        steps: The chain, with at most 400 neurons.
        verbose: Let the solver talk.

    Raises:
        ConfigError: The extra ``sdp`` is not installed.
        NotCertifiableError: The chain is too large for a semidefinite programme, or the solver
            finds no multipliers.
    """
    chain = Scaled.of(size, steps)
    chain = chain.levelled(best_proposal(chain))
    multipliers = _solve(chain, verbose)
    proofs = [prove(chain, _moved(multipliers, factor)) for factor in _INWARD]
    return min(proofs, key=lambda proof: proof.two_norm())


def _moved(multipliers: Multipliers, factor: float) -> Multipliers:
    """Inwards: the solver ends on the boundary, or just beyond it."""
    return tuple(None if D is None else D * factor for D in multipliers)


def _solve(chain: Scaled, verbose: bool) -> Multipliers:
    cp = _cvxpy()
    form = _Form(chain)
    if form.width > _LARGEST:
        raise NotCertifiableError(
            f"The semidefinite programme of this network has {form.width} unknowns, expected at "
            f"most {_LARGEST}.",
            hint='`method="descent"` comes close to it at any size, `method="auto"` is fast.',
        )
    rho, lam = cp.Variable(nonneg=True), cp.Variable(len(form.columns), nonneg=True)
    entries = form.sparse.hstack(form.columns).tocsc() @ lam + rho * form.start - form.end
    whole = cp.reshape(entries, (form.width, form.width), order="F")
    problem = cp.Problem(cp.Minimize(rho), [whole >> 0])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an inaccurate solution is as good a hint
            problem.solve(solver=cp.CLARABEL, verbose=verbose)
    except cp.error.SolverError as error:
        raise NotCertifiableError(
            f"The solver gave up on the semidefinite programme: {error}.",
            hint='use `method="descent"`.',
        ) from error
    if lam.value is None or rho.value is None:
        raise NotCertifiableError(
            f"The solver found no multipliers; it says {problem.status}.",
            hint='use `method="descent"`.',
        )
    return form.multipliers(np.maximum(lam.value, 0.0), float(rho.value))


class _Form:
    """The quadratic form as a linear function of ``rho`` and the multipliers, flattened."""

    def __init__(self, chain: Scaled) -> None:
        # scipy is slow to import
        self.sparse = sparse = import_module("scipy.sparse")
        self._chain = chain
        first, rank = _compressed(chain)
        counts = [self._fresh(step) for step in chain.steps]
        self.width = rank + sum(counts)
        every = sparse.identity(self.width, format="csr")
        here = every[:rank]
        self.start = self._vector(here.T @ here).toarray().ravel()
        self.columns: list[Any] = []
        used = rank
        for number, (step, count) in enumerate(zip(chain.steps, counts, strict=True)):
            new = every[used : used + count]
            used += count
            match step:
                case Weights():
                    weight = first if first is not None and number == 0 else step.matrix
                    here = sparse.csr_matrix(weight.numpy()) @ here
                case Opaque():
                    here = self._constrain(here, new, 0.0, np.array([-(step.gain**2)]), tied=True)
                case Slope():
                    m, r, _ = middle_radius(step)
                    open_ = (r > 0).numpy()
                    middle, product = m.numpy(), (m * m - r * r).numpy()
                    free = sparse.diags(np.where(open_, 0.0, middle)) @ here
                    if count:
                        lift = sparse.identity(len(m), format="csr")[:, open_]
                        free = free + lift @ self._constrain(
                            here[open_], new, middle[open_], product[open_], tied=step.tied
                        )
                    here = free.tocsr()
        self.end = self._vector(here.T @ here).toarray().ravel()

    def _constrain(self, G: Any, E: Any, m: Any, product: Any, *, tied: bool) -> Any:
        """Add ``lam o ( dz o dz - 2 m dz o dv + a b dv o dv )``, one ``lam`` or one a component."""
        # ReLU has a b = 0: what vanishes must not fill the programme with zeros
        product = np.where(np.abs(product) < 1e-15, 0.0, product)
        if tied:
            own = E.T @ E + float(product[0]) * (G.T @ G)
            if np.any(m):
                cross = E.T @ self.sparse.diags(m) @ G
                own = own - cross - cross.T
            self.columns.append(self._vector(own))
            return E
        for j in range(E.shape[0]):
            e, g = E[j], G[j]
            cross = float(m[j]) * (e.T @ g)
            own = e.T @ e - cross - cross.T
            if product[j]:
                own = own + float(product[j]) * (g.T @ g)
            self.columns.append(self._vector(own))
        return E

    def _vector(self, matrix: Any) -> Any:
        whole = self.sparse.csc_matrix(matrix)
        return self.sparse.csc_matrix(whole.reshape((self.width * self.width, 1), order="F"))

    def _fresh(self, step: Step) -> int:
        match step:
            case Weights():
                return 0
            case Opaque():
                return step.size
            case Slope():
                return int((middle_radius(step)[1] > 0).sum())

    def multipliers(self, lam: Any, rho: float) -> Multipliers:
        """``D = rho / lam``, in the units in which inputs have length one."""
        values = torch.as_tensor(lam, dtype=torch.float64)
        found: list[Tensor | None] = []
        used = 0
        for step in self._chain.steps:
            own = None
            if isinstance(step, Opaque):
                used += 1  # its gain is used as it is
            elif isinstance(step, Slope):
                r = middle_radius(step)[1]
                open_ = r > 0
                count = int(open_.sum())
                if count:
                    taken = 1 if step.tied else count
                    weights = values[used : used + taken]
                    used += taken
                    weights = weights.clamp(min=1e-9 * float(weights.max()) + 1e-300)
                    own = torch.zeros_like(r).masked_scatter(open_, (rho / weights).expand(count))
            found.append(own)
        return tuple(found)


def _compressed(chain: Scaled) -> tuple[Tensor | None, int]:
    """First weights with the same ``W W^T`` and no more columns than rows, if that is fewer."""
    step = chain.steps[0]
    if not isinstance(step, Weights) or step.matrix.shape[0] >= chain.size:
        return None, chain.size
    upper = torch.linalg.qr(step.matrix.mT, mode="r")[1]
    return upper.mT, step.matrix.shape[0]


def _cvxpy() -> Any:
    try:
        cp = import_module("cvxpy")
        import_module("clarabel")
    except ImportError as error:
        raise ConfigError(
            'The method "lipsdp" needs cvxpy and clarabel, which are not installed.',
            hint="`pip install 'wellposed[sdp]'`, or use `method=\"descent\"`.",
        ) from error
    return cp
