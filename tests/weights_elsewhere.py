"""A small network as a file, labelled inputs, and properties of it."""

import numpy as np
import torch

from wellposed.certify.equilibria import equilibrium
from wellposed.certify.wellposed import wellposedness
from wellposed.core.network import Network
from wellposed.verify.weights import export_network

INPUTS, OUTPUTS, NEURONS = 3, 4, 10


def network(seed=0):
    torch.manual_seed(seed)
    W = torch.randn(NEURONS, NEURONS, dtype=torch.float64)
    W = 0.8 * W / W.abs().sum(1, keepdim=True)
    U, C = torch.randn(NEURONS, INPUTS), torch.randn(OUTPUTS, NEURONS)
    return Network.of(W, U, 0.3 * torch.randn(NEURONS), C, 0.1 * torch.randn(OUTPUTS))


def outputs(net, x):
    return net.output(equilibrium(net, x, wellposedness(net)).z, x)


def write_files(folder, count=8):
    """``net.npz`` and ``data.npz``; returns network, inputs, labels."""
    net = network()
    export_network(net, folder / "net.npz")
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(count, INPUTS, generator=generator, dtype=torch.float64)
    y = outputs(net, x).argmax(1)
    np.savez(folder / "data.npz", x=x.numpy(), y=y.numpy())
    return net, x, y


def declarations(x, eps):
    """Constants and a box around one input."""
    lines = [f"(declare-const X_{i} Real)" for i in range(INPUTS)]
    lines += [f"(declare-const Y_{i} Real)" for i in range(OUTPUTS)]
    for i, value in enumerate(x.tolist()):
        lines.append(f"(assert (>= X_{i} {value - eps!r}))")
        lines.append(f"(assert (<= X_{i} {value + eps!r}))")
    return "\n".join(lines) + "\n"
