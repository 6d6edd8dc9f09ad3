"""A run folder whose every number is made up."""

import base64
import json
from io import BytesIO
from math import exp

from PIL import Image

EPS = [0.0, 0.001, 0.01, 0.05, 0.1, 0.2, 0.3]
VARIANTS = {"nemon": (0.983, 260.0), "nemon-lipschitz": (0.974, 60.0), "mlp": (0.978, 300.0)}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def picture(shade):
    memory = BytesIO()
    image = Image.new("L", (28, 28), 0)
    image.paste(shade, (9, 4, 19, 24))
    image.save(memory, format="PNG")
    return "data:image/png;base64," + base64.b64encode(memory.getvalue()).decode()


def epochs(top, seed, *, implicit):
    return [
        {
            "epoch": e,
            "train_loss": 0.5 * exp(-0.3 * e) + 0.02 + 0.001 * seed,
            "train_accuracy": top + 0.01 - 0.1 * exp(-0.5 * e),
            "validation_accuracy": top - 0.1 * exp(-0.5 * e) - 0.001 * seed,
            "lr": 1e-3,
            "evaluations_mean": 4 + 0.15 * e if implicit else 0,
            "evaluations_max": 9,
            "adjoint_evaluations_mean": 5 + 0.1 * e if implicit else 0,
            "cpu_seconds": 3.0 + 0.1 * seed,
            "seconds": 3.2,
        }
        for e in range(1, 13)
    ]


def curve(top, steepness, seed):
    accuracy = [
        top * (1 + exp(-4)) / (1 + exp(steepness * (e - 4 / steepness))) - 0.002 * seed for e in EPS
    ]
    return {
        "norm": "max",
        "what": "A made-up curve.",
        "eps": EPS,
        "accuracy": [min(a, top) for a in accuracy],
        "spread": [0.005] * len(EPS),
        "samples": 1000,
        "draws": 1,
        "unsolved": [0] * len(EPS),
    }


def attacks(top, bound, seed):
    grid = [0.0, *[0.2 / bound * 1.25**k for k in range(14)]]
    share = [0.8 * top * max(0.0, 1 - (i / 14) ** 2) / (1 + 40 * grid[i]) for i in range(15)]
    return {
        "samples": 1000,
        "steps": 20,
        "restarts": 1,
        "seed": seed,
        "clean": top,
        "unsolved": 0,
        "curves": {
            name: curve(top, s, seed)
            for name, s in (("uniform-noise", 6), ("inversion", 12), ("fgsm", 30), ("pgd", 45))
        },
        "certified": {
            "norm": "max",
            "eps": grid,
            "accuracy": share,
            "samples": 1000,
            "median_radius": grid[9],
            "rule": "made up",
            "assumes": ["the map from inputs to equilibria, in exact arithmetic"],
        },
        "comparisons": 4321,
    }


def certificates(bound):
    def row(value, rule, region="everywhere"):
        return {
            "record": "Certificate", "claim": "lipschitz", "value": value, "norm_in": "max",
            "norm_out": "max", "rule": rule, "region": region,
            "assumes": ["the map from inputs to equilibria, in exact arithmetic"], "parts": [],
        }  # fmt: skip

    estimate = {
        "record": "Estimate", "claim": "lipschitz", "value": bound / 7, "norm_in": "max",
        "norm_out": "max", "method": "made-up search", "samples": 200,
    }  # fmt: skip
    euclidean = {**row(3 * bound, "composed"), "norm_in": "2", "norm_out": "2"}
    return [
        euclidean,
        row(9 * bound, "L0: norms and positive part of the logarithmic norm"),
        row(9 * bound, "L1: norms and logarithmic norm"),
        row(5 * bound, "L2: row by row"),
        row(bound, "L3: componentwise"),
        row(0.4 * bound, "L4: componentwise with slopes on a box", "box of inputs"),
        estimate,
    ]


def solvers():
    def race(rate, cost, count):
        reached = rate**count <= 1e-6
        return {
            "evaluations": list(range(1, count + 1)),
            "residual": [rate**k for k in range(1, count + 1)],
            "seconds": [cost * k for k in range(1, count + 1)],
            "reached": reached,
            "status": "the residual reached its tolerance" if reached else "the budget ran out",
            "total_evaluations": count,
            "total_seconds": cost * count,
            "distance": 1e-6,
        }

    return {
        "target": 1e-6,
        "budget": 300,
        "samples": 100,
        "dtype": "float32",
        "threads": 1,
        "solvers": {
            "jacobi": race(0.15, 1.2e-4, 8),
            "averaged": race(0.85, 1.1e-4, 86),
            "averaged-per-neuron": race(0.8, 1.3e-4, 62),
            "picard": race(1.02, 6e-5, 80),
            "peaceman-rachford": {"refused": "needs a matrix inverse <of> a map that has none"},
        },
        "histogram": {"evaluations": [5, 6, 7, 8], "samples": [40, 700, 240, 20]},
    }


def examples():
    def example(i):
        right = i < 10
        return {
            "index": 37 * i, "label": i % 10, "prediction": i % 10 if right else (i + 3) % 10,
            "probabilities": [[i % 10, 0.97], [(i + 1) % 10, 0.02], [(i + 2) % 10, 0.01]],
            "margin": 6.2 - i, "evaluations": 7, "certified_radius": 0.0031 if right else 0.0,
            "state_error": 4.1e-5, "image": picture(120 + 10 * i),
            "adversarial": {
                "distance": 0.061, "prediction": (i + 1) % 10, "probability": 0.52,
                "image": picture(200), "change": picture(90),
            } if right else None,
        }  # fmt: skip

    return {
        "norm": "max",
        "classes": [],
        "candidates": 1000,
        "examples": [example(i) for i in range(12)],
    }


def make_run(folder, seeds=(0, 1, 2)):
    """Write a complete run folder with made-up numbers."""
    write(folder / "config.toml", 'name = "made-up"\n\n[attacks]\neps = [0.0, 0.1]\n')
    write(
        folder / "environment.json",
        {"record": "Environment", "python": "3.11.2", "torch": "2.13.0", "cores": 2,
         "commit": "abc1234",
         "dirty": False, "packages": {"numpy": "2.1"}},
    )  # fmt: skip
    write(folder / "data.json", {"train-images-idx3-ubyte.gz": "f" * 64})
    summary = {"name": "nemon-mnist", "command": "wellposed run configs/nemon-mnist.toml",
               "environment": {}, "seeds": list(seeds), "variants": {}}  # fmt: skip
    for name, (top, bound) in VARIANTS.items():
        summary["variants"][name] = {}
        for seed in seeds:
            place = folder / name / f"seed-{seed}"
            metrics = {"test_accuracy": top + 0.0007 * seed, "parameters": 89710}
            summary["variants"][name][str(seed)] = metrics
            rows = epochs(top, seed, implicit=name != "mlp")
            write(place / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
            write(place / "metrics.json", metrics)
            write(place / "certificates.json", certificates(bound))
            write(place / "attacks.json", attacks(top, bound, seed))
            if seed != seeds[0]:
                continue  # a run races the solvers and describes examples once a variant
            none = {"none": "this network has no equilibrium layer"}
            write(place / "solvers.json", none if name == "mlp" else solvers())
            write(place / "examples.json", examples())
    write(folder / "summary.json", summary)
    return folder
