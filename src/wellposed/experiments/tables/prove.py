"""What is proved of a trained network of a table, from the weights as they lie on the disk.

The order: the sign of the slope in each feature. The Lipschitz constants: between norms of all
features together, and one slope ``|df/dx_i|`` a feature, which is what one can read where the
features have different units.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from wellposed.certify.lipschitz import lipschitz
from wellposed.certify.order import order
from wellposed.experiments.tables.workspace import TableWorkspace, Trial


def prove(work: TableWorkspace, trial: Trial) -> dict[str, Any]:
    """Prove order and constants of a trial and write ``proof.json``.

    Returns:
        ``features``, an object each with `name`, `asked` and `proved` (+1, -1, 0; nothing where the
        sign is not known) and `slope`, a bound of ``|df/dx_i|`` in the units of target and feature;
        ``lipschitz``, certificates from the 1-norm to the max norm and in the max norm;
        ``parameters``, ``assumes`` and the digest of the ``weights``.

    Raises:
        NotCertifiableError: A sign that is asked for is not proved.
        CheckpointError: It has not been trained, or the file is damaged.
    """
    network, weights = work.trained(trial)
    table = work.table(trial.seed)
    d = len(table.signs)
    signs = order(network, in_shape=(d,))
    signs.require(table.signs)
    bounds = [
        lipschitz(network, norm_in="1", norm_out="max", in_shape=(d,), method="componentwise"),
        lipschitz(network, norm_in="max", in_shape=(d,)),
    ]
    rows = zip(table.train.features, table.signs, signs.signs[0].tolist(), strict=True)
    content = {
        "features": [
            {
                "name": name,
                "asked": asked,
                "proved": None if proved != proved else int(proved),  # noqa: PLR0124 - NaN
                "slope": slope(network, i, d),
            }
            for i, (name, asked, proved) in enumerate(rows)
        ],
        "lipschitz": [bound.to_dict() for bound in bounds],
        "parameters": parameters(network),
        "assumes": list(signs.assumes),
        "weights": weights,
    }
    trial.write("proof", content)
    return content


def slope(network: nn.Sequential, place: int, inputs: int) -> float:
    """A proved bound ``|df/dx_i|``: the constant of the network along one axis.

    Args:
        network: From `inputs` features to one number.
        place: ``i``.
        inputs: Number of features.

    Raises:
        NotCertifiableError: Some module has no rule.
    """
    axis = nn.Linear(1, inputs, bias=False)
    with torch.no_grad():
        axis.weight.zero_()[place] = 1.0
    along = nn.Sequential(axis, *network)
    # of one number all norms are the same, and this one is the cheapest to bound in
    return lipschitz(along, norm_in="max", in_shape=(1,), method="componentwise").value


def parameters(network: nn.Module) -> int:
    """How many numbers were trained: the zeros beside the blocks of a mean network were not."""
    return sum(int((p != 0).sum()) for p in network.parameters() if p.requires_grad)


def proof_metrics(proof: dict[str, Any]) -> dict[str, float]:
    """The numbers of a proof that are published."""
    asked = [row for row in proof["features"] if row["asked"]]
    first, second = (float(bound["value"]) for bound in proof["lipschitz"])
    return {
        "features": len(proof["features"]),
        "signs_asked": len(asked),
        "signs_proved": sum(row["proved"] in (0, row["asked"]) for row in asked),
        "parameters": proof["parameters"],
        "lipschitz_1_to_max": first,
        "lipschitz_max": second,
    }
