"""Smoothing: proved samples, warm starts without bias, honest confidence bounds."""

from math import comb

import pytest
import torch
from scipy.stats import norm

from wellposed.certify.equilibria import equilibrium, inject
from wellposed.core.network import Network
from wellposed.errors import ConfigError, NotCertifiableError, ShapeError
from wellposed.verify.binomial import agreeing_count, agreement_lower, proportion_lower
from wellposed.verify.smoothing import Smoothed, SmoothedClassifier, Smoothing


def rand(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def monotone_net(n=15, d=6, q=3, seed=0):
    A, B = rand(n, n, seed=seed), rand(n, n, seed=seed + 1)
    W = 0.5 * torch.eye(n).double() - A.mT @ A / n + B - B.mT
    return Network.of(
        W, rand(n, d, seed=2), rand(n, seed=3), rand(q, n, seed=4), 0.1 * rand(q, seed=5)
    )


def halfspace(offset):
    """Class 1 where ``x_0 + offset > 0``: everything about it is known in closed form."""
    one = torch.ones(2, 1).double()
    U = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    b = torch.tensor([offset, -offset])
    return Network.of(0 * one @ one.mT, U, b, torch.tensor([[0.0, 1.0], [1.0, 0.0]]), 0 * b)


def test_clopper_pearson_is_the_binomial_tail():
    for k, n, alpha in ((3, 10, 0.05), (10, 10, 0.01), (700, 1000, 0.001)):
        low = proportion_lower(k, n, alpha)
        tail = sum(comb(n, j) * low**j * (1 - low) ** (n - j) for j in range(k, n + 1))
        assert tail == pytest.approx(alpha, rel=1e-6)
    assert proportion_lower(0, 10, 0.05) == 0
    assert proportion_lower(10, 10, 0.05) == pytest.approx(0.05**0.1)


def test_an_agreement_of_nine_tenths_leaves_8100_of_10000():
    # to reduce the trials as well would leave the proportion of 9000 of 10000 as it was
    assert agreeing_count(9000, 0.9) == 8100
    honest = proportion_lower(agreeing_count(9000, 0.9), 10_000, 0.001)
    assert honest < 0.81 < proportion_lower(8100, 9000, 0.001) < 0.9
    both = agreement_lower(9000, 10_000, 900, 1000, 0.002)
    assert both < honest
    rate = proportion_lower(900, 1000, 0.001)
    assert both == proportion_lower(agreeing_count(9000, rate), 10_000, 0.001)


def test_counting_agreeing_successes_is_no_better_than_multiplying_two_bounds():
    for rate in (0.3, 0.8, 0.99):
        for k in (60, 90, 100):
            assert proportion_lower(agreeing_count(k, rate), 100, 0.01) <= (
                rate * proportion_lower(k, 100, 0.01) + 1e-12
            )


@pytest.mark.parametrize("bad", [(-1, 10, 0.1), (11, 10, 0.1), (1, 0, 0.1), (1, 2, 0.0)])
def test_counts_that_do_not_go_together_are_refused(bad):
    with pytest.raises(ConfigError):
        proportion_lower(*bad)
    with pytest.raises(ConfigError):
        agreeing_count(5, 1.5)


@pytest.mark.parametrize("offset", [0.4, -0.7])
def test_the_radius_of_a_halfspace_is_below_its_distance_and_close(offset):
    settings = Smoothing(0.5, samples=20_000, selection=50, batch=5000, alpha=1e-4)
    smoothed = SmoothedClassifier(halfspace(offset), (2,), settings)
    found = smoothed.certify(torch.zeros(2), generator=torch.Generator().manual_seed(0))
    assert found.label == int(offset > 0)
    # the smoothed classifier of a halfspace is the halfspace: its distance is the true radius
    assert 0.9 * abs(offset) < found.radius <= abs(offset)
    assert found.probability <= norm.cdf(abs(offset) / 0.5)
    assert found.proved == 1.0


def test_a_tie_abstains():
    settings = Smoothing(0.5, samples=2000, selection=50)
    found = SmoothedClassifier(halfspace(0.0), (2,), settings).certify(
        torch.zeros(2), generator=torch.Generator().manual_seed(1)
    )
    assert (found.label, found.radius) == (-1, 0.0)


def test_warm_and_cold_starts_prove_the_same_classes_and_warm_ones_sooner():
    net = monotone_net()
    smoothed = SmoothedClassifier(net, (6,), Smoothing(0.1))
    x = rand(1, 6, seed=9)
    points = x + 0.1 * rand(500, 6, seed=10)
    exact = equilibrium(net, points, smoothed.wellposed).z
    truth = net.output(exact, points).argmax(1)
    start = smoothed.resolvent.run(inject(net, x).value)[0]
    cold, spent = smoothed.classify(points)
    warm, less = smoothed.classify(points, start)
    assert torch.equal(cold, truth)
    assert torch.equal(warm, truth)
    assert int(less.sum()) < int(spent.sum())
    # whatever the start: a wrong one costs evaluations, never an answer
    wild, _ = smoothed.classify(points, 100 * rand(15, seed=3))
    assert torch.equal(wild, truth)


def test_samples_that_are_not_proved_count_against_the_class():
    # one evaluation proves nothing here: no sample may count, and nothing is certified
    net = monotone_net()
    settings = Smoothing(0.1, samples=300, selection=20, budget=1, warm=False)
    found = SmoothedClassifier(net, (6,), settings).certify(rand(6, seed=9))
    assert found.proved < 0.5
    assert found.count <= found.proved * 300
    assert (found.label, found.radius) == (-1, 0.0)
    assert found.evaluations == 1


def test_a_sample_on_the_boundary_is_never_proved():
    smoothed = SmoothedClassifier(halfspace(0.0), (2,), Smoothing(0.5, budget=64))
    label, spent = smoothed.classify(torch.tensor([[0.0, 1.0], [1e-3, 0.0]]))
    assert label.tolist() == [-1, 1]
    assert spent.tolist()[0] == 64


def test_noise_is_drawn_anew_and_the_same_for_a_seed():
    smoothed = SmoothedClassifier(halfspace(0.1), (2,), Smoothing(0.5, samples=400, batch=150))
    seen = []
    runs = [
        smoothed.certify(
            torch.zeros(2), generator=torch.Generator().manual_seed(s), watch=seen.append
        )
        for s in (0, 0, 1)
    ]
    assert runs[0] == runs[1] != runs[2]
    assert seen[:3] == [150, 300, 400]
    assert Smoothed.from_json(runs[0].to_json()) == runs[0]


@pytest.mark.parametrize(
    "bad", [{"sigma": 0.0}, {"alpha": 1.0}, {"samples": 0}, {"batch": 0}, {"budget": 0}]
)
def test_settings_that_mean_nothing_are_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        Smoothing(**{"sigma": 0.5, **bad})


def test_inputs_and_models_that_do_not_fit_are_refused():
    smoothed = SmoothedClassifier(halfspace(0.1), (2,), Smoothing(0.5))
    with pytest.raises(ShapeError, match="expected"):
        smoothed.certify(torch.zeros(3))
    one = torch.ones(1, 1).double()
    with pytest.raises(NotCertifiableError):
        SmoothedClassifier(Network.of(2 * one, one, one[0], one, one[0]), (1,), Smoothing(0.5))
