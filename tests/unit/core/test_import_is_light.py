"""`import wellposed` brings in what a forward pass needs, and nothing that a later step does."""

import subprocess
import sys

import pytest

_HEAVY = (
    "cyclopts", "jinja2", "matplotlib", "PIL", "pydantic", "rich", "scipy.optimize",
    "scipy.sparse", "scipy.special", "torchvision",
)  # fmt: skip


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    code = "import sys, wellposed; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_the_package_is_loaded_with_its_public_names(loaded):
    assert {"wellposed", "wellposed.nn.equilibrium", "wellposed.verify.cascade"} <= loaded


@pytest.mark.parametrize("name", _HEAVY)
def test_start_up_leaves_out(loaded, name):
    assert name not in loaded, f"`import wellposed` imports {name}: import it where it is used."
