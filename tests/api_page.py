"""The page of the Python interface: signatures and docstrings of what is public.

python -m tests.api_page      writes docs/api.md
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "api.md"
HEAD = """# Python

<!-- Written by python -m tests.api_page from the docstrings; a test compares. -->

`import tsugiki` loads nothing heavy; what is called loads what it needs. Scores are shares of 1.
"""
# Section: (module, names; for a class its methods after a colon).
PUBLIC = {
    "Running": ("__init__", ["run", "run_study", "read_run", "read_study"]),
    "What comes back": (
        "report/results",
        [
            "RunResult: compare frame figures",
            "StudyReport: statements run frame figures material folder",
        ],
    ),
    "A comparison of two runs": ("report/compare", ["Comparison:"]),
    "Listeners": (
        "runs/events",
        [
            "Listener: on_start on_begin on_train on_values on_validation on_score on_end on_scored"
            " on_note close"
        ],
    ),
    "Trackers: TensorBoard": ("trackers/tensorboard", ["TensorBoard:"]),
    "Trackers: Weights & Biases": ("trackers/wandb", ["WandB:"]),
    "Trackers: MLflow": ("trackers/mlflow", ["MLflow:"]),
}


def api_page() -> str:
    """The page as text. Modules are read, not imported: a tracker's package need not be there."""
    parts = [HEAD]
    for title, (module, names) in PUBLIC.items():
        path = ROOT / "src" / "tsugiki" / f"{module}.py"
        tree = ast.parse(path.read_text(encoding="utf-8"))
        known = {
            node.name: node
            for node in tree.body
            if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        }
        dotted = "tsugiki" if module == "__init__" else f"tsugiki.{module.replace('/', '.')}"
        parts.append(f"## {title}\n\n`{dotted}`\n")
        for entry in names:
            name, _, methods = entry.partition(":")
            parts.append(_described(known[name], f"{name}", "###"))
            inner = {
                node.name: node
                for node in ast.walk(known[name])
                if isinstance(node, ast.FunctionDef)
            }
            parts += [_described(inner[each], f".{each}", "####") for each in methods.split()]
    return "\n".join(parts)


def _described(node: ast.FunctionDef | ast.ClassDef, name: str, level: str) -> str:
    if isinstance(node, ast.ClassDef):
        made = [own for own in node.body if getattr(own, "name", "") == "__init__"]
        signature = _signature(made[0]) if made else ""  # type: ignore[arg-type]
    else:
        properties = {"property", "cached_property"}
        is_property = any(getattr(own, "id", "") in properties for own in node.decorator_list)
        signature = "" if is_property else _signature(node)
    said = inspect.cleandoc(ast.get_docstring(node) or "")
    return f"{level} `{name}{signature}`\n\n{_as_markdown(said)}\n"


def _signature(node: ast.FunctionDef) -> str:
    """Without types, which the text says in words."""
    arguments = node.args
    plain = [own.arg for own in arguments.args if own.arg not in ("self", "cls")]
    given = dict(zip(reversed(plain), map(ast.unparse, reversed(arguments.defaults)), strict=False))
    shown = [f"{own}={given[own]}" if own in given else own for own in plain]
    for own, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        shown += ["*"] if "*" not in shown else []
        shown.append(own.arg if default is None else f"{own.arg}={ast.unparse(default)}")
    return f"({', '.join(shown)})"


def _as_markdown(said: str) -> str:
    """Args, Returns and Raises as bold words, each argument as a point."""
    lines = []
    for line in said.splitlines():
        if re.fullmatch(r"(Args|Returns|Raises):", line):
            lines += [f"**{line[:-1]}**", ""]
        elif re.match(r"    \w+: ", line):
            name, _, text = line.strip().partition(": ")
            lines.append(f"- `{name}`: {text}")
        elif line.startswith("    "):
            lines.append(
                f"  {line.strip()}" if lines[-1].startswith(("- ", "  ")) else line.strip()
            )
        else:
            lines.append(line)
    return "\n".join(lines)


def main() -> None:
    PAGE.write_text(api_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
