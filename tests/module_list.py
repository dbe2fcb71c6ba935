"""Lists every module with the first sentence of its docstring, as `docs/modules.md`.

    python -m tests.module_list > docs/modules.md

The page is generated from the code; `make docs` writes it, and a test compares the two.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = (
    *("core", "imaging", "io", "tasks", "models", "inference", "sources", "database", "reports"),
    *(
        "data",
        "evaluation",
        "explanations",
        "registry",
        "compression",
        "outliers",
        "exports",
        "importing",
        "sharded",
        "batch",
        "packing",
    ),
    *("training", "scheduling", "serving", "client", "clusters", "cli"),
)
"""The packages of `lib/eagleray` from the lowest up; each imports only those before it."""


def first_sentence(file: Path) -> str:
    """Return the first paragraph of a module's docstring, on one line."""
    docstring = ast.get_docstring(ast.parse(file.read_text())) or ""
    return " ".join(docstring.split("\n\n")[0].split())


def modules(folder: Path) -> list[Path]:
    """Return the modules of a folder in the order of their names, without package files."""
    return sorted(file for file in folder.rglob("*.py") if file.name != "__init__.py")


def render() -> str:
    """Return the page."""
    folders = [ROOT / "lib/eagleray" / name for name in PACKAGES] + [ROOT / "jobs", ROOT / "serve"]
    lines = [
        "# Modules",
        "",
        "Generated from the docstrings by `make docs`. A package of `lib/eagleray` imports only",
        "what stands before it on this page; `jobs` and `serve` import all of them.",
    ]
    for folder in folders:
        lines += ["", f"## `{folder.relative_to(ROOT)}`", ""]
        lines += [first_sentence(folder / "__init__.py"), "", "| module | purpose |", "|---|---|"]
        for file in modules(folder):
            name = file.relative_to(folder).with_suffix("").as_posix().replace("/", ".")
            lines.append(f"| `{name}` | {first_sentence(file)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(render())
