"""Each layer imports only what stands below it, and what needs no torch does not import it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("bindings", "kernels", "engine", "training", "benchmarks")  # the lowest first
# Inside the engine: plain data at the ground, and policy beside mechanism. They meet in the loop.
DATA = {
    *("arguments", "branch", "errors", "events", "handle", "messages", "outputs", "params"),
    *("report", "report_costs", "report_tree", "stages"),
}
POLICY = {"search", "judge"}
MECHANISM = {"memory", "models", "step", "tag_automaton"}
ASKER = "judge.asker"  # writes the judge's prompts with the checkpoint's tokenizer
TORCH_FREE = (
    *(f"engine.{name}" for name in sorted(DATA)),
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


def engine_imports(at_run_time: bool = True) -> dict[str, set[str]]:
    """Which engine modules each engine module imports, by name within the engine."""
    graph: dict[str, set[str]] = {}
    for path in (ROOT / "engine").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT / "engine").with_suffix("").parts)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if at_run_time:
            tree.body = [node for node in tree.body if not is_for_types(node)]
        modules = (node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
        prefix = "stagebeam.engine."
        graph[name] = {m.removeprefix(prefix) for m in modules if m.startswith(prefix)}
    return graph


def is_for_types(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def test_policy_and_mechanism_do_not_know_each_other() -> None:
    """The search never sees a block id, the cache never sees a score."""
    allowed = {
        **dict.fromkeys(DATA, DATA),
        **dict.fromkeys(POLICY, DATA | POLICY),
        **dict.fromkeys(MECHANISM, DATA | MECHANISM),
    }
    for name, imports in engine_imports().items():
        part = name.split(".")[0]
        if part in allowed and name != ASKER:
            found = {other.split(".")[0] for other in imports}
            assert found <= allowed[part], f"engine/{name} imports {found - allowed[part]}"


def test_data_and_engine_parts_form_no_circle() -> None:
    graph = engine_imports()
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"a circle of imports: {' -> '.join((*path, name))}"
        if name in done:
            return
        for other in graph.get(name, ()):
            visit(other, (*path, name))
        done.add(name)

    for name in graph:
        visit(name, ())
    assert len(done) > 50


def test_the_loop_is_where_they_meet() -> None:
    """Nothing below the public face imports it, and only it and sessions import the loop."""
    graph = engine_imports(at_run_time=False)
    assert {n for n, found in graph.items() if "loop" in found} == {"engine", "session"}
    assert {n.split(".")[0] for n, found in graph.items() if "engine" in found} <= {
        "async_engine",
        "cli",
        "server",
    }


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
