"""Rebuild the tables of docs from results/*.json: no figure is shown without a file behind it."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TARGETS = ROOT / "tools" / "targets.toml"
NOTES = ROOT / "tools" / "shortfalls.md"
BEGIN, END = "<!-- compare:begin -->", "<!-- compare:end -->"
_HIDDEN = ("_accuracy@",)


def main(root: Path = ROOT) -> Path:
    """Write the page and return its path."""
    results = [json.loads(path.read_text()) for path in sorted((root / "results").glob("*.json"))]
    targets = tomllib.loads(TARGETS.read_text())["target"]
    page = root / "docs" / "results.md"
    page.parent.mkdir(exist_ok=True)
    page.write_text("\n".join([*head(), *against(results, targets), *tables(results)]) + "\n")
    choose(root / "docs" / "choosing.md", [r for r in results if r["name"].startswith("compare-")])
    return page


def choose(page: Path, comparisons: list[dict[str, Any]]) -> None:
    """Put the comparisons of families between the markers of a page."""
    before, found, rest = page.read_text().partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not (found and closed):
        raise SystemExit(f"{page} has lost its markers {BEGIN} and {END}.")
    lines = [line for comparison in comparisons for line in beside(comparison)]
    lines = lines or ["Nothing was recorded yet: `wellposed compare runs/... --record`.", ""]
    page.write_text("\n".join([before + BEGIN, *lines[:-1], END + after]))


def beside(comparison: dict[str, Any]) -> list[str]:
    """One table a comparison, and why a figure is missing."""
    columns = {
        "test accuracy": ("test_accuracy",),
        "parameters": ("parameters",),
        "evaluations, forward / adjoint": ("evaluations", "adjoint_evaluations"),
        "CPU s an epoch": ("epoch_cpu_seconds",),
        "Lipschitz, max norm": ("lipschitz_max", "lipschitz_max_attacked"),
        "2-norm": ("lipschitz_2", "lipschitz_2_attacked"),
    }
    for norm, name in (("max", "max norm"), ("2", "2-norm")):
        for radius in comparison["radii"][norm]:
            at = f"{norm}@{radius:g}"
            columns[f"accuracy within {radius:g}, {name}"] = (f"certified_{at}", f"attacked_{at}")
    lines = [
        f"On {comparison['data']['name']}, `{comparison['command']}`. Mean ± deviation over seeds,",
        "for Lipschitz constants the largest of all seeds; pairs are certified / attacked.",
        "",
        "| network | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for row in comparison["rows"]:
        cells = [" / ".join(brief(row, key) for key in keys) for keys in columns.values()]
        lines.append(f"| {row['label']} | " + " | ".join(cells) + " |")
    lines.append("")
    shown = {key for keys in columns.values() for key in keys}
    for row in comparison["rows"]:
        told = [*row["methods"].items(), *row["missing"].items()]
        grouped: dict[str, list[str]] = {}
        for key, text in told:
            if key in shown:
                grouped.setdefault(text, []).append(key.replace("_", " "))
        parts = [f"{', '.join(keys)}: {text}" for text, keys in grouped.items()]
        if parts:
            lines.append(f"- **{row['label']}** {'; '.join(parts)}")
    notes = [f"- {warning}" for warning in comparison["warnings"]]
    return [*lines, "", *notes, *([""] if notes else [])]


def brief(row: dict[str, Any], key: str) -> str:
    """A figure in few digits, shares as per cent; a dash where it is missing."""
    value = row["values"].get(key)
    if value is None:
        return "–"
    middle, spread = (value["mean"], value["std"]) if isinstance(value, dict) else (value, 0.0)
    share = "accuracy" in key or "@" in key
    factor, digits = (100, ".4g") if share else (1, ".3g" if middle < 1000 else ",.0f")
    text = f"{factor * middle:{digits}}"
    if spread:
        text += f" ± {factor * spread:.1g}"
    return text + (" %" if share else "")


def head() -> list[str]:
    """What the page is."""
    return [
        "# Results",
        "",
        "Written by `make results` from `results/*.json`; do not edit. Every file is written by",
        "the command that it names. Times are CPU seconds of the machine that is named with them",
        "and say little about another one; ratios measured in one process say more.",
        "",
    ]


def against(results: list[dict[str, Any]], targets: list[dict[str, Any]]) -> list[str]:
    """The table of targets."""
    metrics = {result["name"]: result["metrics"] for result in results}
    lines = ["## Targets", "", "| what | target | measured | reached | to compare |"]
    lines.append("|---|---|---|---|---|")
    for target in targets:
        value = metrics.get(target["result"], {}).get(target["metric"])
        bound = f"{'≥' if target['better'] == 'higher' else '≤'} {target['bound']:g}"
        lines.append(
            f"| {target['what']} | {bound} | {shown(value)} | "
            f"{verdict(value, target)} | {target.get('compare', '')} |"
        )
    return [*lines, "", *NOTES.read_text().splitlines(), ""]


def verdict(value: Any, target: dict[str, Any]) -> str:
    """Whether a value reaches its target."""
    if value is None:
        return "not measured"
    number = value["mean"] if isinstance(value, dict) else value
    higher = target["better"] == "higher"
    return "yes" if (number >= target["bound"] if higher else number <= target["bound"]) else "no"


def tables(results: list[dict[str, Any]]) -> list[str]:
    """One table a result."""
    lines: list[str] = []
    for result in results:
        where = result["environment"]
        lines += [f"## {result['name']}", "", f"`{result['command']}`", ""]
        lines += [
            f"Seeds {', '.join(map(str, result['seeds']))}; {where['processor']}, "
            f"{where['threads']} thread(s), torch {where['torch']}, Python {where['python']}, "
            f"commit {where['commit']}{' with changes' if where['dirty'] else ''}.",
            "",
            "| metric | value |",
            "|---|---|",
        ]
        lines += [
            f"| {key} | {shown(value)} |"
            for key, value in result["metrics"].items()
            if not any(part in key for part in _HIDDEN)
        ]
        lines.append("")
    return lines


def shown(value: Any) -> str:
    """A number, or mean and deviation."""
    if value is None:
        return "-"
    if isinstance(value, dict):
        return f"{value['mean']:.5g} ± {value['std']:.2g} (n = {value['n']})"
    return f"{value:.5g}" if isinstance(value, (int, float)) else str(value)


if __name__ == "__main__":
    print(main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT))
