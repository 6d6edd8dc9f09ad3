"""Cases that hold no input are proved empty, whatever the ascent made of them before."""

from dataclasses import replace
from itertools import product

import torch
from small_nets import box, cells, network, output_rows, problem

from wellposed.verify.branch import Budget
from wellposed.verify.branch import _Search as Search


def test_astronomic_multipliers_are_left_behind():
    net, region = network(3, 5, skew=4.0), box(seed=3, radius=0.8)
    held, rows = problem(net, region), output_rows(net, shift=-3.0)
    met = {cell.on for cell in cells(net, region, rows)}
    search = Search(held, rows, Budget(seconds=20, batch=16), None, True)
    keep = search.reduced.keep.tolist()
    # stable neurons have one phase
    empty = [on for on in product((0, 1), repeat=5)
             if not any(all(on[i] == other[i] for i in keep) for other in met)]  # fmt: skip
    assert len(empty) >= 5
    phases = 2 * torch.tensor(empty, dtype=torch.int8)[:, keep] - 1
    nodes = search.open.select(torch.zeros(len(empty), dtype=torch.long))
    g = torch.Generator().manual_seed(0)
    p = 1e15 * torch.randn(phases.shape, generator=g, dtype=torch.float64)
    nodes = replace(nodes, phases=phases, p=p, bound=search.ascent.value(nodes.row, phases, p))
    nodes = nodes.select(nodes.bound < -1e9)
    assert len(nodes) >= 5
    proof = search._whole(search._decided(nodes))
    assert bool((search._prove(nodes, proof) > 0).all())
