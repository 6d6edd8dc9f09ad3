"""Check that imports run downhill through the rooms of `src/wellposed` and that files stay small.

A room may import itself and the rooms to the right of it in ``LEVELS``; rooms that share a level
do not import each other. Imports inside functions count too.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

LEVELS: list[set[str]] = [
    {"__main__"},
    {"cli"},
    {"experiments"},
    {"report", "training"},
    {"data"},
    {"verify"},
    {"attacks", "certify"},
    {"nn"},
    {"cells"},
    {"gradients"},
    {"solvers"},
    {"core"},
    {"files"},
    {"errors"},
]
FREE = {"testing", "__init__"}  # the conformance kit and the list of public names may see all
LONGEST = 350
HEIGHT = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}


def imported_rooms(tree: ast.AST) -> list[tuple[int, str]]:
    """Line and room of every import of the package inside a module."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module]
            if node.module == "wellposed":
                names = [f"wellposed.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "wellposed":
                found.append((node.lineno, parts[1] if len(parts) > 1 else "__init__"))
    return found


def violations(root: Path) -> list[str]:
    """Every line that breaks the contract, in words."""
    out: list[str] = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        text = path.read_text(encoding="utf-8")
        length = text.count("\n")
        if length > LONGEST:
            out.append(f"{relative}: {length} lines, at most {LONGEST} are allowed")
        room = relative.parts[0].removesuffix(".py")
        if room in FREE:
            continue
        if room not in HEIGHT:
            out.append(f"{relative}: room '{room}' has no place in the contract")
            continue
        for line, target in imported_rooms(ast.parse(text)):
            if target == room:
                continue
            if target not in HEIGHT or HEIGHT[target] <= HEIGHT[room]:
                out.append(f"{relative}:{line}: '{room}' may not import '{target}'")
    return out


def main() -> int:
    """Print the violations; exit status 1 if there are any."""
    root = Path(__file__).resolve().parent.parent / "src" / "wellposed"
    found = violations(root)
    print("\n".join(found) or "import contract: kept")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
