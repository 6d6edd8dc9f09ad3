"""How the output answers to each feature with a sign, the others held at their medians.

What is drawn is compared with what is proved: a curve that falls where it was proved to rise, or is
steeper than its bound, is a false certificate and fails the run.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from wellposed.errors import AuditError
from wellposed.experiments.tables.workspace import TableWorkspace, Trial

POINTS = 81
SLACK = 1e-9  # of the largest value: what float64 may lose in differences


@torch.no_grad()
def respond(work: TableWorkspace, trial: Trial, proof: dict[str, Any]) -> dict[str, Any]:
    """Draw the curves of a trial, compare them with its proof, and write ``response.json``.

    Returns:
        ``curves``, an object for each feature with a sign: its `name` and `sign`, places `x`
        between the smallest and largest value of training, outputs `y` (of the target's units, or
        a probability), and `deciles` of the training rows; and ``median``, the row through which
        they go.

    Raises:
        AuditError: A curve contradicts its certificate.
        CheckpointError: It has not been trained, or the file is damaged.
    """
    network, _ = work.trained(trial)
    table = work.table(trial.seed)
    rows, middle = table.train.x, table.train.x.median(0).values
    exact = deepcopy(network).double()
    curves = list[dict[str, Any]]()
    for i, row in enumerate(proof["features"]):
        if not row["asked"]:
            continue
        column = rows[:, i]
        x = torch.linspace(float(column.min()), float(column.max()), POINTS, dtype=torch.float64)
        said = along(exact, middle, i, x)
        audit(trial.title, row, x, said)
        shown = said if table.task == "regression" else said.sigmoid()
        deciles = column.quantile(torch.linspace(0.1, 0.9, 9, dtype=torch.float64))
        curves.append(
            {
                "name": row["name"],
                "sign": row["asked"],
                "x": x.tolist(),
                "y": shown.tolist(),
                "deciles": deciles.tolist(),
            }
        )
    content = {
        "curves": curves,
        "median": dict(zip(table.train.features, middle.tolist(), strict=True)),
        "output": "target" if table.task == "regression" else "probability",
    }
    trial.write("response", content)
    return content


def along(network: nn.Sequential, middle: Tensor, place: int, x: Tensor) -> Tensor:
    """Outputs where one feature takes the values `x` and the others those of `middle`."""
    rows = middle.expand(len(x), -1).clone()
    rows[:, place] = x
    return network(rows).squeeze(-1)


def audit(title: str, row: dict[str, Any], x: Tensor, y: Tensor) -> None:
    """Compare the steps of a curve with the sign and the slope that are proved.

    Args:
        title: Of the trial.
        row: Of ``features`` in the proof.
        x: Places, rising.
        y: Outputs there, float64.

    Raises:
        AuditError: A step goes the wrong way or is too steep, beyond rounding.
    """
    step, slack = y.diff(), SLACK * (1 + float(y.abs().max()))
    wrong = float((row["asked"] * step).min())
    steep = float((step.abs() - row["slope"] * x.diff()).max())
    if wrong < -slack or steep > slack:
        what = (
            f"moves by {wrong:.3g} against its proved sign {row['asked']:+d}"
            if wrong < -slack
            else f"is steeper by {steep:.3g} a step than its proved slope {row['slope']:.3g}"
        )
        raise AuditError(f"{title}: the output along `{row['name']}` {what}.")
