import pytest
import torch
from torch import nn

from wellposed.cells.nemon import NemonCell
from wellposed.nn.equilibrium import Equilibrium
from wellposed.training import Examples, Recipe


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_model():
    def make(states: int = 6, dropout: float = 0.2) -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Flatten(),
            nn.Dropout(dropout),
            Equilibrium(NemonCell(36, states)),
            nn.Linear(states, 3),
        )

    return make


@pytest.fixture
def examples():
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(3, 1, 6, 6, generator=generator)
    labels = torch.randint(0, 3, (100,), generator=generator)
    noise = torch.randn(100, 1, 6, 6, generator=generator)
    return Examples(centres[labels] + 0.3 * noise, labels)


@pytest.fixture
def recipe():
    return Recipe(epochs=3, batch=16, lr=1e-2, averaging=0.9, clip=1.0, shift=1)
