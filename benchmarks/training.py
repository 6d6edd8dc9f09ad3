"""Training cost: CPU time of an epoch against a plain MLP and against peers, same loader."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.common import Report, interleaved, mnist, nemon, note, train
from benchmarks.published import PublishedNemon

BATCH, STEPS = 100, 60


class TorchdeqNet(nn.Module):
    """``relu(Wz + Ux + b)`` under torchdeq, implicit differentiation, as in its own examples."""

    def __init__(self, n: int, gradient: dict[str, object]) -> None:
        super().__init__()
        from torchdeq import get_deq
        from torchdeq.norm import apply_norm, reset_norm

        self.W, self.U, self.head = nn.Linear(n, n, bias=False), nn.Linear(784, n), nn.Linear(n, 10)
        apply_norm(self.W, "weight_norm")
        self.reset = reset_norm
        self.deq = get_deq(
            f_solver="fixed_point_iter", b_solver="fixed_point_iter", f_max_iter=50, b_max_iter=50,
            f_tol=1e-3, b_tol=1e-3, f_stop_mode="rel", b_stop_mode="rel", **gradient,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        self.reset(self.W)
        u = self.U(x)
        z, _ = self.deq(lambda z: torch.relu(self.W(z) + u), torch.zeros_like(u))
        return self.head(z[-1])


def run() -> None:
    """Warm every network up for one epoch, then time the same steps of each in turn."""
    x, y, *_ = mnist()
    torch.manual_seed(0)
    models: dict[str, nn.Module] = {
        "plain MLP 784-100-10": nn.Sequential(nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10)),
        "wellposed NEMON n=100": nemon(100),
        "averaged iteration, n=100": nn.Sequential(PublishedNemon(784, 100), nn.Linear(100, 10)),
    }
    try:
        models["torchdeq implicit, n=100"] = TorchdeqNet(100, {"ift": True})
        models["torchdeq one-step, n=100"] = TorchdeqNet(100, {"grad": 1})
    except ImportError:
        note("torchdeq is not installed: its rows are left out (make bench installs it)")
    report = Report(
        "training",
        "Training cost, batch 100, one thread, after one epoch of training",
        ("network", "CPU ms a step", "CPU s an epoch", "ratio to MLP"),
    )
    steps = {}
    for name, model in models.items():
        note(f"warming up {name}")
        train(model, x, y, epochs=1, batch=BATCH)
        rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
        part = rows[: BATCH * STEPS]
        steps[name] = lambda model=model, part=part: train(
            model, x[part], y[part], epochs=1, batch=BATCH
        )
    times = interleaved(steps, rounds=15)
    base = times["plain MLP 784-100-10"]
    for name, seconds in times.items():
        report.row(name, 1e3 * seconds / STEPS, seconds / STEPS * 600, seconds / base)
    report.metrics = {
        "epoch_cpu_seconds": times["wellposed NEMON n=100"] / STEPS * 600,
        "epoch_cpu_ratio_to_mlp": times["wellposed NEMON n=100"] / base,
        "epoch_cpu_ratio_averaged_to_mlp": times["averaged iteration, n=100"] / base,
    }
    if "torchdeq implicit, n=100" in times:
        report.metrics["epoch_cpu_ratio_torchdeq_to_mlp"] = times["torchdeq implicit, n=100"] / base
    report.finish()
