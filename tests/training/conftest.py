"""Fixtures of the trainer's tests: tiny model folders, made once a session."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def _load(name: str):
    """A module beside this file, importable by its name (tests are not a package)."""
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


tiny_models = _load("tiny_models")
tiny_run = _load("tiny_run")


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def mllama_dir(tmp_path_factory) -> Path:
    return tiny_models.save_mllama(tmp_path_factory.mktemp("mllama"))


@pytest.fixture(scope="session")
def llama_dir(tmp_path_factory) -> Path:
    return tiny_models.save_llama(tmp_path_factory.mktemp("llama"))
