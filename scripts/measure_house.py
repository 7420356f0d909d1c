"""Code metrics of the product's packages: lines, modules and hidden imports.

`python scripts/measure_house.py` prints the table of docs/architecture.md. An import counts as hidden where a
function's body imports one of the project's own packages; imports for type checking alone do not count.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("soundcap", "flowley", "pipelines", "miniature")


def hidden_imports(tree: ast.AST) -> int:
    """Number of first-party imports inside functions."""
    functions = (one for one in ast.walk(tree) if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef))
    count = 0
    for node in {node for function in functions for node in ast.walk(function)}:
        names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        count += any(name.split(".")[0] in PACKAGES for name in names)
    return count


def measure(package: str) -> tuple[int, int, int]:
    """Metrics of a package: (modules without `__init__.py`, lines, hidden imports)."""
    files = sorted((ROOT / package).rglob("*.py"))
    texts = [file.read_text() for file in files]
    modules = sum(file.name != "__init__.py" for file in files)
    return modules, sum(text.count("\n") for text in texts), sum(hidden_imports(ast.parse(text)) for text in texts)


def main() -> None:
    """Prints a Markdown table, one line per package and their sum."""
    print("| package | modules | lines | first-party imports inside functions |\n|---|---|---|---|")
    rows = {package: measure(package) for package in PACKAGES}
    for package, row in rows.items():
        print(f"| `{package}` | " + " | ".join(f"{value:,}" for value in row) + " |")
    print("| all | " + " | ".join(f"{sum(column):,}" for column in zip(*rows.values(), strict=True)) + " |")


if __name__ == "__main__":
    main()
