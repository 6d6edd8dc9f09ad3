"""Errors of equilibria: proved bounds hold for iterates stopped anywhere, and are tight."""

import pytest
import torch

from wellposed.certify.equilibria import equilibrium, logit_gaps, state_error
from wellposed.certify.wellposed import Wellposed, monotone_margin, wellposedness
from wellposed.core.activations import LeakyReLU, ReLU, Tanh
from wellposed.core.network import Network
from wellposed.errors import NotCertifiableError, ShapeError


def rand(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def monotone_net(n=12, d=3, seed=0, scale=1.0, activation=None, linear=None, margin=0.4):
    A, B = scale * rand(n, n, seed=seed), scale * rand(n, n, seed=seed + 1)
    W = (1 - margin) * torch.eye(n).double() - A.mT @ A / n + B - B.mT
    return Network.of(
        W,
        rand(n, d, seed=seed + 2),
        rand(n, seed=seed + 3),
        rand(4, n, seed=seed + 4),
        rand(4, seed=seed + 5),
        D=rand(4, d, seed=seed + 6),
        activation=activation,
        linear=linear,
    )


def contractive_net(n=12, d=3, seed=0):
    off = rand(n, n, seed=seed).fill_diagonal_(0)
    eta = (2 * rand(n, seed=seed + 9)).exp()
    W = off * eta[:, None] / eta + torch.diag(0.6 - off.abs().sum(1))
    return Network.of(W, rand(n, d, seed=1), rand(n, seed=2), rand(4, n, seed=3), rand(4, seed=4))


def scaled_net():
    net = monotone_net(seed=20)
    psi = rand(net.n, seed=5).exp()
    W = torch.eye(net.n).double() - psi[:, None] * (torch.eye(net.n).double() - net.W)
    return Network.of(W, net.U, net.b, net.C, net.c), Wellposed(
        "monotone", 1 / psi, monotone_margin(W, 1 / psi)
    )


def cases():
    mask = torch.zeros(12, dtype=torch.bool)
    mask[:3] = True
    for net in (
        monotone_net(),
        monotone_net(scale=3.0, seed=3),
        monotone_net(activation=LeakyReLU(0.3)),
        monotone_net(linear=mask),
        contractive_net(),
        contractive_net(seed=6),
    ):
        yield net, wellposedness(net)
    yield scaled_net()


@pytest.mark.parametrize("case", list(cases()))
def test_the_bound_holds_wherever_an_iteration_is_stopped(case):
    net, witness = case
    x = 3 * rand(40, net.d, seed=11)
    best = equilibrium(net, x, witness)
    assert float((best.error / (1 + best.z.abs().amax(1, keepdim=True))).max()) < 1e-8
    residual = best.z - net.phi(net.preactivation(best.z, x))
    assert float(residual.abs().max()) < 1e-9
    for trial in range(6):
        # from wild guesses to nearly exact states
        z = best.z + 10.0 ** (2 - 3 * trial) * rand(40, net.n, seed=trial)
        error = state_error(net, x, z, witness)
        assert bool(((z - best.z).abs() <= error + best.error).all())


def test_the_bound_is_attained_by_a_scalar():
    # z = relu(-z/2 + b): the residual of a point on the active piece is 3/2 of its error
    one = torch.ones(1, 1).double()
    net = Network.of(-0.5 * one, one, one[0], one, one[0])
    witness = Wellposed("max-norm", one[0], 1.5)
    z = torch.tensor([[1.0]]).double()
    error = state_error(net, torch.zeros(1, 1).double(), z, witness)
    assert float(error) == pytest.approx(0.5, rel=1e-9)
    # the 2-norm pays the residual once and W rho / margin once more: 1/2 + 1/4 / (3/2)
    other = state_error(net, torch.zeros(1, 1).double(), z, Wellposed("monotone", one[0], 1.5))
    assert float(other) == pytest.approx(0.5 + 0.25 / 1.5, rel=1e-9)


def test_a_layered_network_is_solved_exactly_and_its_error_stays_small():
    n = 10
    W = torch.zeros(3 * n, 3 * n).double()
    W[n : 2 * n, :n], W[2 * n :, n : 2 * n] = rand(n, n, seed=1), rand(n, n, seed=2)
    U = torch.zeros(3 * n, 4).double()
    U[:n] = rand(n, 4, seed=3)
    net = Network.of(W, U, rand(3 * n, seed=4), rand(2, 3 * n, seed=5), torch.zeros(2))
    x = rand(9, 4, seed=6)
    found = equilibrium(net, x, wellposedness(net))
    h = torch.relu(x @ U[:n].mT + net.b[:n])
    h = torch.relu(h @ W[n : 2 * n, :n].mT + net.b[n : 2 * n])
    h = torch.relu(h @ W[2 * n :, n : 2 * n].mT + net.b[2 * n :])
    assert torch.allclose(found.z[:, 2 * n :], h, atol=1e-11)
    assert float(found.error.max()) < 1e-10


def test_a_solver_that_did_one_step_is_charged_for_it():
    net = monotone_net(scale=2.0)
    witness, x = wellposedness(net), rand(8, 3, seed=1)
    z = torch.relu(x @ net.U.mT + net.b)
    error = state_error(net, x, z, witness)
    assert bool(((z - equilibrium(net, x, witness).z).abs() <= error).all())
    assert float(error.amin()) > 1e-3


def test_iterates_that_are_no_numbers_have_no_bound():
    for net in (monotone_net(), contractive_net()):
        witness = wellposedness(net)
        z = torch.full((1, net.n), torch.nan).double()
        assert bool((state_error(net, rand(1, 3), z, witness) == torch.inf).all())


def test_gaps_enclose_the_differences_of_logits():
    net = monotone_net()
    witness, x = wellposedness(net), rand(30, 3, seed=2)
    label = torch.arange(30) % 4
    box = logit_gaps(net, x, label, witness)
    y = net.output(equilibrium(net, x, witness).z, x)
    gap = y.gather(1, label[:, None]) - y
    assert bool(((box.lower <= gap) & (gap <= box.upper)).all())
    assert float((box.upper - box.lower).max()) < 1e-9
    assert bool((box.lower.gather(1, label[:, None]) == 0).all())


def test_gaps_tell_the_output_bias_apart():
    # dropping c would turn this verdict: both rows of C agree
    one = torch.ones(1, 1).double()
    net = Network.of(0 * one, one, one[0], torch.ones(2, 1), torch.tensor([0.0, 1.0]))
    box = logit_gaps(net, one, torch.tensor([0]), wellposedness(net))
    assert float(box.upper[0, 1]) == pytest.approx(-1)


def test_inputs_of_the_wrong_kind_are_refused():
    net = monotone_net()
    for x in (torch.zeros(2, 3), torch.zeros(2, 4).double(), torch.zeros(3).double()):
        with pytest.raises(ShapeError, match="float64 of shape"):
            equilibrium(net, x, wellposedness(net))
    assert equilibrium(net, torch.zeros(0, 3).double(), wellposedness(net)).z.shape == (0, 12)


def test_activation_of_the_network_is_respected():
    one = torch.ones(1, 1).double()
    for phi, value in ((ReLU(), 0.0), (LeakyReLU(0.5), -2 / 3)):
        # z = phi(z/2 - 1): the leaky piece has z = (z/2 - 1)/2
        net = Network.of(0.5 * one, one, -one[0], one, one[0], activation=phi)
        found = equilibrium(net, 0 * one, wellposedness(net))
        assert float(found.z) == pytest.approx(value)


def test_activations_without_a_rounding_bound_are_refused():
    net = monotone_net(activation=Tanh())
    with pytest.raises(NotCertifiableError, match="piecewise linear"):
        state_error(net, rand(2, 3), rand(2, 12), wellposedness(net))
