"""A run folder with one small trained network and made-up images, for the tests of verification."""

from types import MappingProxyType

import torch

from wellposed.data.records import ImageSet, Normalisation, Split
from wellposed.experiments.config import parse
from wellposed.experiments.datasets import Parts
from wellposed.experiments.workspace import WEIGHTS, Workspace
from wellposed.training.checkpoint import save_weights

CLASSES = 3


def images(count, seed):
    """Noise around one pattern a class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    patterns = torch.rand(CLASSES, 1, 4, 4, generator=torch.Generator().manual_seed(9)) * 255
    noise = 60 * torch.rand(count, 1, 4, 4, generator=generator) - 30
    return Split((patterns[labels] + noise).clamp(0, 255).to(torch.uint8), labels)


def make_work(folder, *, count=12, variants=("nemon",)):
    """A workspace whose networks were trained for a moment."""
    config = parse(
        {
            "name": "made-up",
            "seeds": [0],
            "model": {"states": 6},
            "variants": {name: {"model": {"kind": name, "states": 6}} for name in variants},
        }
    )
    work = Workspace(config, folder)
    source = ImageSet(
        "made-up", images(60, 1), images(count, 2), ("a", "b", "c"),
        Normalisation((0.5,), (0.3,)), MappingProxyType({"x": "0" * 64}),
    )  # fmt: skip
    work.__dict__["parts"] = Parts(source, source.train, None, source.test)
    for job in work.jobs():
        model = work.build(job)
        parameters = list(model.parameters())
        for _ in range(40):
            logits = model(source.train.floats())
            loss = torch.nn.functional.cross_entropy(logits, source.train.labels)
            slopes = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for weight, slope in zip(parameters, slopes, strict=True):
                    weight.sub_(0.3 * slope)
        save_weights(job.folder / WEIGHTS, model, {})
    return work
