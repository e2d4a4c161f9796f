"""Each layer imports only what stands below it, and what needs no torch does not import it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("bindings", "kernels", "engine", "training", "benchmarks")  # the lowest first
TORCH_FREE = (
    "engine.errors",
    "engine.params",
    "engine.stages",
    "engine.branch",
    "engine.outputs",
    "engine.events",
    "engine.scheduler",
    "engine.search.policies",
    "engine.judge.tournament",
    "engine.judge.prompts",
    "engine.judge.verdict",
)


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_only_what_is_below(layer: str) -> None:
    allowed = LAYERS[: LAYERS.index(layer) + 1]
    files = list((ROOT / layer).rglob("*.py"))
    assert files
    for path in files:
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "stagebeam":
                assert len(parts) > 1, f"{path}: imports the public package"
                assert parts[1] in allowed, f"{path}: {layer} must not import {name}"


def test_what_needs_no_torch_does_not_import_it() -> None:
    # The package's public names bring torch in, so the parts are imported without them.
    code = (
        "import sys, types, importlib\n"
        f"package = types.ModuleType('stagebeam'); package.__path__ = [{str(ROOT / 'stagebeam')!r}]\n"
        "sys.modules['stagebeam'] = package\n"
        f"[importlib.import_module('stagebeam.' + name) for name in {TORCH_FREE!r}]\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
