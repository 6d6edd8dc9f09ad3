"""An approximate equilibrium of a network for one input a sample: semismooth Newton steps."""

from __future__ import annotations

import torch
from torch import Tensor

from wellposed.certify.system import Neurons
from wellposed.core.network import Network


@torch.no_grad()
def approximate_equilibrium(network: Network, x: Tensor, steps: int = 40) -> Tensor:
    """A preactivation ``v`` with small ``F(v) = v - W phi(v) - U x - b``; nothing is proved.

    Newton steps with the slopes of ``phi`` at ``v`` as they are taken by autograd, halved until the
    residual shrinks.

    Args:
        network: The weights.
        x: Inputs, shape (B, d).
        steps: At most so many.

    Returns:
        Shape (B, n), float64; the iterate of smallest residual, finite.
    """
    neurons = Neurons(network.activation, network.linear)
    q = torch.addmm(network.b, x.double(), network.U.mT)
    eye = torch.eye(network.n, dtype=torch.float64)

    def residual(v: Tensor, offset: Tensor) -> Tensor:
        return v - neurons(v) @ network.W.mT - offset

    v = q.clone()
    best, best_size = v.clone(), residual(v, q).norm(dim=1)
    active = torch.arange(len(v))
    for _ in range(steps):
        goal = 1e-15 * (1 + q.norm(dim=1) + best.norm(dim=1))
        active = active[best_size[active] > goal[active]]
        if not len(active):
            break
        at, offset = v[active], q[active]
        gap = residual(at, offset)
        slope = torch.where(network.linear, 1.0, network.activation.slope(at))
        step, _ = torch.linalg.solve_ex(eye - network.W * slope[:, None, :], gap)
        step = torch.where(torch.isfinite(step), step, gap)
        # a kink may hold up every shorter step: the whole one is taken if none is better
        new, old = at - step, gap.norm(dim=1)
        size = residual(new, offset).norm(dim=1)
        for halving in range(1, 7):
            if bool((size < 0.9 * old).all()):
                break
            trial = at - step * 0.5**halving
            trial_size = residual(trial, offset).norm(dim=1)
            better = (trial_size < size) & (size >= 0.9 * old) & (trial_size < old)
            new = torch.where(better[:, None], trial, new)
            size = torch.where(better, trial_size, size)
        v[active] = new
        won = active[size < best_size[active]]
        best[won], best_size[won] = v[won], residual(v[won], q[won]).norm(dim=1)
    return best.nan_to_num(0.0)
