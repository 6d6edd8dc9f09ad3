"""What cannot be proved is never called verified: every kind of bad input."""

from math import inf

import pytest
import torch
from torch import nn

import wellposed as wp
from wellposed.certify.equilibria import equilibrium
from wellposed.certify.wellposed import wellposedness
from wellposed.core.network import Network
from wellposed.core.sets import Ball, Box
from wellposed.errors import ConfigError, NotCertifiableError, ShapeError
from wellposed.verify.branch import Budget
from wellposed.verify.cascade import verify
from wellposed.verify.classifier import Classifier
from wellposed.verify.property import judged, verify_statement, worst
from wellposed.verify.statement import Statement
from wellposed.verify.verdicts import Tier

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    net = nn.Sequential(wp.Equilibrium(wp.NemonCell(4, 6)), nn.Linear(6, 3))
    with torch.no_grad():
        net[1].weight *= 5
    return net.eval()


@pytest.fixture(scope="module")
def inputs(model):
    x = torch.rand(12, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return x, model(x).argmax(1)


def pixels(x, eps):
    return Box.around(x, eps).clip(0.0, 1.0)


def test_a_region_outside_of_the_domain_is_refused(model, inputs):
    x, y = inputs
    with pytest.raises(ShapeError, match="leaves the domain"):
        verify(model, x, y, Box.around(x, 0.5))
    with pytest.raises(ShapeError, match="leaves the domain"):
        verify(model, x, y, Ball(x, 2.0))
    found = verify(model, x, y, Box.around(x, 0.5), domain=None)
    assert len(found.verdicts) == len(x)


def test_a_radius_of_zero_is_the_input_itself(model, inputs):
    x, y = inputs
    assert verify(model, x, y, pixels(x, 0.0)).counts["verified"] == len(x)
    assert verify(model, x, y, Ball(x, 0.0, 0.0, 1.0)).counts["verified"] == len(x)
    # a wrong label is wrong at the input itself
    assert verify(model, x, (y + 1) % 3, pixels(x, 0.0)).counts["falsified"] == len(x)


@pytest.mark.parametrize("eps", [5.0, 1e6])
def test_a_huge_radius_is_the_whole_domain(model, inputs, eps):
    x, y = inputs
    assert len(y.unique()) > 1  # two classes occur, so no class holds everywhere
    found = verify(model, x, y, pixels(x, eps), budget=Budget(seconds=20))
    assert found.counts["verified"] == 0
    free = verify(model, x, y, Box.around(x, eps), domain=None, until=Tier.TIGHTENED)
    assert free.counts["verified"] == 0


def test_an_infinite_region_is_no_region(inputs):
    x, _ = inputs
    with pytest.raises(ShapeError, match="finite"):
        Box.around(x, inf)
    with pytest.raises(ShapeError, match="finite"):
        Ball(x, inf)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_out_of_range_is_refused(model, inputs, label):
    x, y = inputs
    with pytest.raises(ConfigError, match=f"label {label} is no class"):
        verify(model, x, torch.full_like(y, label), pixels(x, 0.01))


def test_labels_and_regions_of_other_shapes_are_refused(model, inputs):
    x, y = inputs
    with pytest.raises(ShapeError, match="labels"):
        verify(model, x, y[:3], pixels(x, 0.01))
    with pytest.raises(ShapeError, match="int64"):
        verify(model, x, y.float(), pixels(x, 0.01))
    with pytest.raises(ShapeError, match="regions"):
        verify(model, x, y, pixels(x[:3], 0.01))
    with pytest.raises(ShapeError):
        verify(model, x[:, :3], y, pixels(x[:, :3], 0.01))


@pytest.mark.parametrize("until", [Tier.ATTACK, Tier.BOXES, Tier.TIGHTENED, Tier.BRANCHING])
def test_a_misclassified_input_is_never_verified(model, inputs, until):
    x, y = inputs
    wrong = (y + 1) % 3
    for region in (pixels(x, 0.001), pixels(x, 0.2), Ball(x, 0.1, 0.0, 1.0)):
        found = verify(model, x, wrong, region, until=until)
        assert found.counts["verified"] == 0
        assert all((v.margin <= 0) for v in found.verdicts)


def test_witnesses_lie_in_their_regions_and_err(model, inputs):
    x, y = inputs
    region = pixels(x, 0.3)
    found = verify(model, x, y, region)
    fallen = [i for i, v in enumerate(found.verdicts) if v.status == "falsified"]
    assert fallen
    points = torch.tensor([found.verdicts[i].witness for i in fallen], dtype=torch.float64)
    assert bool(region.select(torch.tensor(fallen)).contains(points).all())
    with torch.no_grad():
        assert bool((model.double()(points).argmax(1) != y[fallen]).all())
    model.float()


def test_a_layer_without_a_rule_is_named(inputs):
    x, y = inputs
    net = nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)).eval()
    with pytest.raises(NotCertifiableError, match="Softmax"):
        verify(net, x, y, pixels(x, 0.01))


@pytest.mark.parametrize("scale", [1.01, 3.0])
def test_a_network_that_is_not_well_posed_is_refused(inputs, scale):
    x, y = inputs
    W = torch.tensor([[0.0, scale], [scale, 0.0]])  # relu(W z + q) has two solutions for some q
    net = Network.of(W, torch.ones(2, 4), torch.zeros(2), torch.randn(3, 2), torch.zeros(3))
    with pytest.raises(NotCertifiableError, match="well posed"):
        verify(net, x.double(), y, pixels(x, 0.01))


def test_a_cell_that_promises_nothing_is_refused(inputs):
    x, y = inputs
    step = nn.Linear(4, 4)

    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.step = step

        def forward(self, z, u):
            return torch.tanh(self.step(z)) + u

    cell = wp.FreeCell(Step())
    net = nn.Sequential(wp.Equilibrium(cell), nn.Linear(4, 3)).eval()
    with pytest.raises(NotCertifiableError, match="FreeCell"):
        verify(net, x, y, pixels(x, 0.01))


@pytest.mark.parametrize("budget", [Budget(seconds=0), Budget(nodes=0)])
def test_a_budget_of_nothing_leaves_unknown_what_needs_a_search(model, inputs, budget):
    x, y = inputs
    region, prepared = pixels(x, 0.3), Classifier.of(model, (4,))
    before = verify(prepared, x, y, region, until=Tier.TIGHTENED)
    found = verify(prepared, x, y, region, budget=budget)
    assert [v.status == "verified" for v in found.verdicts] == [
        v.status == "verified" for v in before.verdicts
    ]
    assert before.counts["unknown"] > 0
    assert verify(prepared, x, y, region).counts["unknown"] == 0


def test_no_inputs_are_no_verdicts(model, inputs):
    x, y = inputs
    found = verify(model, x[:0], y[:0], pixels(x[:0], 0.1))
    assert found.verdicts == ()
    assert found.certified == 0


def test_what_a_statement_says_the_judge_says(inputs):
    torch.manual_seed(3)
    W = torch.randn(5, 5, dtype=torch.float64)
    W = 0.7 * W / W.abs().sum(1, keepdim=True)
    net = Network.of(W, torch.randn(5, 4), torch.randn(5), torch.randn(3, 5), torch.randn(3),
                     D=torch.randn(3, 4))  # fmt: skip
    statement = Statement(
        torch.randn(6, 3).double(), 0.5 * torch.randn(6).double(), torch.tensor([0, 0, 0, 1, 2, 2])
    )
    x = 4 * torch.rand(30, 4).double() - 2
    outputs = net.output(equilibrium(net, x, wellposedness(net)).z, x)
    judge = judged(net, statement)
    verdict = judge.output(equilibrium(judge, x, wellposedness(judge)).z, x)
    assert verdict.shape == (30, 4)
    margin = (verdict[:, :1] - verdict[:, 1:]).amin(1)
    assert torch.allclose(margin, statement.margin(outputs), atol=1e-9)
    holds = statement.margin(outputs) > 0
    assert bool(holds.any())
    assert not bool(holds.all())
    # at a point a statement is decided, whatever its form
    found = verify_statement(net, Box(x, x), statement)
    assert [v.status == "verified" for v in found] == holds.tolist()
    assert [v.status == "falsified" for v in found] == (~holds).tolist()
    assert worst(found).status == "falsified"


def test_statements_over_regions_agree_with_samples():
    torch.manual_seed(4)
    W = torch.randn(4, 4, dtype=torch.float64)
    W = 0.7 * W / W.abs().sum(1, keepdim=True)
    net = Network.of(W, torch.randn(4, 2), torch.randn(4), torch.randn(2, 4), torch.zeros(2))
    witness = wellposedness(net)
    region = Box.around(4 * torch.rand(12, 2) - 2, 0.2)
    either = Statement(torch.tensor([[1.0, 0.3], [-0.2, 1.0]]).double(),
                       torch.tensor([-0.6, -0.7]).double(), torch.tensor([0, 0]))  # fmt: skip
    found = verify_statement(net, region, either, budget=Budget(seconds=20))
    assert {"verified", "falsified"} <= {v.status for v in found}
    for i, verdict in enumerate(found):
        share = torch.rand(300, 2).double()
        x = region.lower[i] + share * (region.upper[i] - region.lower[i])
        margin = either.margin(net.output(equilibrium(net, x, witness).z, x))
        if verdict.status == "verified":
            assert float(margin.min()) > 0
            assert verdict.margin <= float(margin.min())
        if verdict.witness is not None:
            point = torch.tensor([verdict.witness], dtype=torch.float64)
            assert bool(region.select(torch.tensor([i])).contains(point)[0])
            y = net.output(equilibrium(net, point, witness).z, point)
            assert float(either.margin(y)) <= 0


def test_statements_that_are_refused():
    net = Network.of(torch.zeros(2, 2), torch.ones(2, 3), torch.zeros(2), torch.ones(2, 2),
                     torch.zeros(2), activation=wp.LeakyReLU(0.1))  # fmt: skip
    rows = torch.eye(2).double()
    two = Statement(rows, torch.zeros(2).double(), torch.tensor([0, 0]))
    with pytest.raises(NotCertifiableError, match="leaky_relu"):
        judged(net, two)
    judged(net, Statement(rows, torch.zeros(2).double(), torch.tensor([0, 1])))
    with pytest.raises(ShapeError, match="3 outputs, the network has 2"):
        judged(net, Statement.of_label(0, 3))
