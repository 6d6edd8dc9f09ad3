"""2-norms of convolutions and matrices: what is proved, how fast, and what peers divide by."""

from __future__ import annotations

import time
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from benchmarks.common import Report, cpu_seconds, interleaved, note
from wellposed.core.any_size import any_size_bracket, spatial_bound
from wellposed.core.convolutions import convolution
from wellposed.core.gram import gram_bracket, gram_norm_bracket
from wellposed.core.layers import from_module
from wellposed.core.operators import Convolution
from wellposed.core.opnorm import operator_norm
from wellposed.core.schatten import gradient_distance, schatten_excess, schatten_norm
from wellposed.core.warm import WarmNorm
from wellposed.nn.rescale import spectral_rescale

CHANNELS, WIDE, SIDE = 64, 128, 32
VIOLATIONS = 2500
PADDED = 1000
GAUSSIANS = 1000


def run() -> None:
    """Time and check the engine on 64 channels, then measure what peers claim to be one."""
    report = Report(
        "norms",
        f"2-norm of a {CHANNELS}x{CHANNELS}x3x3 convolution on {SIDE}x{SIDE} pixels",
        ("what", "value", "CPU ms"),
    )
    torch.manual_seed(0)
    kernel = torch.randn(CHANNELS, CHANNELS, 3, 3)
    _convolution(report, kernel)
    _padding(report)
    _matrices(report)
    _gaussians(report)
    _training(report, kernel / 24)
    _peers(report)
    report.finish()


@torch.no_grad()
def _convolution(report: Report, kernel: Tensor) -> None:
    image = (SIDE, SIDE)
    circular = Convolution(kernel, image, "circular")
    times = interleaved(
        {
            "proved": lambda: operator_norm(circular, method="exact"),
            "half": lambda: torch.linalg.svdvals(_symbols(torch.fft.rfft2(kernel, s=image))),
            "full": lambda: torch.linalg.svdvals(_symbols(torch.fft.fft2(kernel, s=image))),
        },
        rounds=5,
    )
    exact = operator_norm(circular, method="exact")
    gram = gram_norm_bracket(circular, steps=6)
    same = operator_norm(Convolution(kernel, image), method="exact")
    size = any_size_bracket(kernel)
    spatial = spatial_bound(kernel)
    ms = {name: 1e3 * seconds for name, seconds in times.items()}
    report.metrics |= {
        "exact_ms": ms["proved"],
        "exact_ratio_to_full_svd": ms["proved"] / ms["full"],
        "half_svd_ratio_to_full_svd": ms["half"] / ms["full"],
        "exact_width": exact.upper / exact.lower - 1,
        "gram_6_error": gram.upper / exact.upper - 1,
        "zero_padding_looseness": same.upper / same.lower - 1,
        "any_size_over_exact": size.upper / exact.upper - 1,
        "spatial_3_over_exact": spatial / exact.upper - 1,
    }
    report.row("proved bracket, relative width", report.metrics["exact_width"], ms["proved"])
    report.row("singular values, half spectrum, float32, unproved", "", ms["half"])
    report.row("singular values, full spectrum, float32, unproved", "", ms["full"])
    rows: list[tuple[str, Any, str]] = [
        ("Gram, 6 steps: over the norm", lambda: gram_norm_bracket(circular, steps=6),
         "gram_6_error"),
        ("zeros outside: upper over lower bound",
         lambda: operator_norm(Convolution(kernel, image), method="exact"),
         "zero_padding_looseness"),
        ("any size, from 16 x 16 frequencies", lambda: any_size_bracket(kernel),
         "any_size_over_exact"),
        ("any size, spatial Gram, 3 steps", lambda: spatial_bound(kernel), "spatial_3_over_exact"),
    ]  # fmt: skip
    for what, action, metric in rows:
        report.row(what, report.metrics[metric], 1e3 * cpu_seconds(action, repeats=2))
    wide = Convolution(torch.randn(WIDE, WIDE, 3, 3), image, "circular")
    norm = operator_norm(wide, method="exact").upper
    excess = gram_norm_bracket(wide, steps=6).upper / norm - 1
    report.metrics[f"gram_6_error_{WIDE}"] = excess
    seconds = cpu_seconds(lambda: operator_norm(wide, method="exact"), repeats=2)
    report.row(f"{WIDE} channels: Gram, 6 steps: over the norm; time of the norm", excess,
               1e3 * seconds)  # fmt: skip


@torch.no_grad()
def _padding(report: Report) -> None:
    """Zeros outside: the bound against the matrix itself, on images that are small and large."""
    torch.manual_seed(4)
    missed, same_size = 0, 0
    for k in range(PADDED):
        side = (1, 2, 3, 5)[k % 4]
        kernel = torch.randn(1 + k % 3, 1 + k // 3 % 3, side, side, dtype=torch.float64)
        image = (1 + k % 8, 1 + k // 8 % 8)
        operator = convolution(kernel, image)
        norm = float(torch.linalg.matrix_norm(operator.materialise(), 2))
        found = operator_norm(operator, method="exact")
        # the reference is itself rounded
        missed += not found.lower <= norm * (1 + 1e-12) or not found.upper >= norm * (1 - 1e-12)
        if side <= min(image):
            symbols = _symbols(torch.fft.fft2(kernel, s=image))
            same_size += float(torch.linalg.svdvals(symbols).amax()) < norm * (1 - 1e-9)
    loose = 0.0
    for k in range(100):
        operator = convolution(torch.randn(1, 1 + k % 2, 3, 3).double(), (16 + k % 5,) * 2)
        norm = float(torch.linalg.matrix_norm(operator.materialise(), 2))
        loose = max(loose, operator_norm(operator, method="exact").upper / norm - 1)
    report.metrics |= {
        "zero_padding_cases": PADDED,
        "zero_padding_violations": missed,
        "zero_padding_same_size_violations": same_size,
        "zero_padding_worst_looseness_16": loose,
    }
    report.row(f"zeros outside, {PADDED} small images: norm outside of its bounds", str(missed), "")
    report.row("there, norm above the circular one of that size", str(same_size), "")
    report.row("zeros outside, n = 16 to 20, k = 3: largest upper bound over norm", loose, "")


@torch.no_grad()
def _matrices(report: Report) -> None:
    torch.manual_seed(1)
    Q = torch.linalg.qr(torch.randn(64, 64, dtype=torch.float64))[0]
    orthogonal = abs(gram_bracket(Q, 2).upper - 1)
    report.row("orthogonal matrix, 2 steps: error", orthogonal, "")
    proved, plain = 0, 0
    for k in range(VIOLATIONS // 50):
        G = torch.randn(50, 6 + k % 20, 5 + k % 7)
        sigma = torch.linalg.matrix_norm(G.double(), 2)
        plain += int((schatten_norm(G, 12) < sigma).sum())
        proved += sum(
            gram_bracket(one, 12).upper < float(norm) * (1 - 1e-15)
            for one, norm in zip(G, sigma, strict=True)
        )
    report.row(f"float32, below the norm, of {VIOLATIONS}: proved", str(proved), "")
    report.row(f"float32, below the norm, of {VIOLATIONS}: unproved value", str(plain), "")
    report.metrics |= {
        "orthogonal_2_steps_error": orthogonal,
        "float32_violations": proved,
        "float32_violations_unproved": plain,
    }


def _gaussians(report: Report) -> None:
    """How far six Gram steps are off on Gaussian matrices, with and without vectors taken out."""
    torch.manual_seed(5)
    value = torch.randn(GAUSSIANS, 64, 64, dtype=torch.float64)
    sigma = torch.linalg.svdvals(value)
    over = schatten_norm(value, 6) / sigma[:, 0] - 1
    begin = time.process_time()
    found = [gram_bracket(G, 6, 0.0) for G in value]
    cost = 1e3 * (time.process_time() - begin) / GAUSSIANS
    errors = torch.tensor([b.upper for b in found], dtype=torch.float64) / sigma[:, 0] - 1
    below = torch.tensor([b.lower for b in found], dtype=torch.float64) / sigma[:, 0] - 1
    report.row(
        f"{GAUSSIANS} Gaussian matrices, 6 steps, bracket: worst error", float(errors.max()), cost
    )
    report.metrics |= {
        "bracket_6_gaussian_median": float(errors.median()),
        "bracket_6_gaussian_worst": float(errors.max()),
        "bracket_6_gaussian_violations": int(((errors < -1e-13) | (below > 1e-13)).sum()),
    }
    tall = torch.randn(GAUSSIANS, 64, 48, dtype=torch.float64)
    U, s, Vh = torch.linalg.svd(tall, full_matrices=False)
    tall.requires_grad_()
    (gradient,) = torch.autograd.grad(schatten_norm(tall, 6).sum(), tall)
    off = torch.linalg.matrix_norm(gradient - U[:, :, :1] * Vh[:, :1])
    for key, what, found, bound, asked in (
        ("gram_6_gaussian", "upper error", over, schatten_excess(sigma, 6), 1e-4),
        ("gradient_6_gaussian", "distance of the gradient", off, gradient_distance(s, 6), 1e-3),
    ):
        share = float((found <= asked).double().mean())
        beyond = int((found > bound * (1 + 1e-6) + 1e-12).sum())
        report.metrics |= {
            f"{key}_median": float(found.median()),
            f"{key}_worst": float(found.max()),
            f"{key}_share_below_{asked:g}": share,
            f"{key}_beyond_proved": beyond,
        }
        name = f"{GAUSSIANS} Gaussian matrices, 6 steps, Schatten norm, {what}"
        report.row(f"{name}: median", float(found.median()), "")
        report.row(f"{name}: worst", float(found.max()), "")
        report.row(f"{name}: share below {asked:g}", share, "")
        report.row(f"{name}: above what the gap proves", str(beyond), "")


def _training(report: Report, kernel: Tensor) -> None:
    weight = kernel.clone().requires_grad_()
    operator = Convolution(weight, (SIDE, SIDE))
    warm = WarmNorm(operator, refresh=1_000_000)
    step = 1e3 * cpu_seconds(lambda: warm(operator))
    with torch.no_grad():
        weight += 1e-4 * torch.randn_like(weight)
    found = warm(operator).bracket
    refresh = 1e3 * cpu_seconds(lambda: operator_norm(operator), repeats=2)
    report.row("warm power step, bounds included", found.upper / found.lower - 1, step)
    report.row("its exact refresh", "", refresh)
    report.metrics |= {"warm_step_ms": step, "warm_refresh_ms": refresh}


def _peers(report: Report) -> None:
    """True 2-norms of layers that are meant to have norm one, on images of 16 x 16 pixels."""
    image = (16, 16)

    def measure(name: str, layer: nn.Module, key: str) -> None:
        weight: Any = layer.weight
        # the operator that the layer applies, its weight as it stands
        plain = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        with torch.no_grad():
            plain.weight.copy_(weight.detach())
        found = operator_norm(from_module(plain, (16, *image)), method="exact")
        report.row(name, f"{found.lower:.4f} to {found.upper:.4f}", "")
        report.metrics |= {f"{key}_lower": found.lower, f"{key}_upper": found.upper}

    torch.manual_seed(2)
    layer: Any = nn.Conv2d(16, 16, 3, padding=1, bias=False)
    parametrizations.spectral_norm(layer)
    for _ in range(50):
        layer(torch.randn(1, 16, *image))
    measure("torch spectral_norm, norm", layer.eval(), "torch_spectral_norm")
    for steps, name in ((1, "aol"), (3, "rescale_3")):
        torch.manual_seed(2)
        layer = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        measure(f"spectral rescaling, T = {steps}, norm", spectral_rescale(layer, steps), name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from deel import torchlip  # pyright: ignore
    except ImportError:
        note("deel-torchlip is not installed: left out")
        return
    for kind, key in (("SpectralConv2d", "torchlip_spectral"),
                      ("FrobeniusConv2d", "torchlip_frobenius")):  # fmt: skip
        torch.manual_seed(2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            layer = getattr(torchlip, kind)(16, 16, 3, padding=1, bias=False)
            for _ in range(50):
                layer(torch.randn(1, 16, *image))
            plain = layer.eval().vanilla_export()
        measure(f"deel-torchlip {kind}, norm", plain, key)


def _symbols(transform: Tensor) -> Tensor:
    return transform.permute(2, 3, 0, 1)
