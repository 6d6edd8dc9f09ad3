"""``wellposed compare``: several runs in one table and one page."""

from __future__ import annotations

from pathlib import Path

from wellposed.cli.shared import command_line, numbers


def compare(
    *runs: Path,
    name: str | None = None,
    out: Path | None = None,
    eps: str | None = None,
    radius: str | None = None,
    record: bool = False,
    samples: int = 0,
    steps: int = 20,
    seconds: float = 1.0,
) -> None:
    """Set finished runs on the same data beside each other: accuracy, cost, proofs, attacks.

    Runs on other images are refused; other seeds, budgets or machines are told on the page. A
    figure that does not exist is a dash with a reason. With --samples all networks are attacked
    and verified anew on the same images with the same budgets; what was measured so is kept in the
    run folders.

    Args:
        runs: Run folders.
        name: Of the comparison; by default compare-<data>.
        out: The page; by default <name>.html beside the first run.
        eps: Radii of the max norm to show, such as 0.01,0.02; by default the two most common ones.
        radius: Radii of the 2-norm to show; by default the two most common ones.
        record: Write the figures to results/<name>.json as well.
        samples: Test images on which robustness is measured anew; 0 takes what each run measured.
        steps: Gradient steps of that attack.
        seconds: Of search over phases an image, in that verification.
    """
    from rich.console import Console

    from wellposed.experiments.alike import Alike
    from wellposed.experiments.compare import Radii
    from wellposed.experiments.compare import compare as whole_compare
    from wellposed.files.atomic import write_atomic, write_json
    from wellposed.report.comparison import render

    radii = Radii(numbers(eps, "eps"), numbers(radius, "radius"))
    alike = Alike(samples, steps, seconds) if samples else None
    content = whole_compare(runs, name, radii, command_line(), alike)
    console = Console()
    for warning in content["warnings"]:
        console.print(f"note: {warning}", highlight=False, soft_wrap=True)
    page = out or runs[0].parent / f"{content['name']}.html"
    write_atomic(page, render(content))
    console.print(f"report: {page}", highlight=False, soft_wrap=True)
    if record:
        path = Path("results") / f"{content['name']}.json"
        write_json(path, content)
        console.print(f"results: {path}", highlight=False, soft_wrap=True)
