"""Rebuild docs/results.md from results/*.json; a figure without a file behind it is not shown."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TARGETS = ROOT / "tools" / "targets.toml"
NOTES = ROOT / "tools" / "shortfalls.md"
_HIDDEN = ("_accuracy@",)


def main(root: Path = ROOT) -> Path:
    """Write the page and return its path."""
    results = [json.loads(path.read_text()) for path in sorted((root / "results").glob("*.json"))]
    targets = tomllib.loads(TARGETS.read_text())["target"]
    page = root / "docs" / "results.md"
    page.parent.mkdir(exist_ok=True)
    page.write_text("\n".join([*head(), *against(results, targets), *tables(results)]) + "\n")
    return page


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
