"""A C++ host with many questions in flight: Python's tokens, every block back, memory flat."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stagebeam import Engine, SamplingParams, SearchParams
from stagebeam.bindings.locations import C_LIBRARY

ROOT = Path(__file__).resolve().parents[2]
COMPILER = os.environ.get("CXX", "g++")
SEARCH = SearchParams(beam_size=3)
LEAK_LIMIT = 1.02


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which(COMPILER) is None or not C_LIBRARY.exists():
        pytest.skip(f"no C++ compiler {COMPILER!r}, or no libstagebeam here")
    out = tmp_path_factory.mktemp("soak") / "soak"
    folder = C_LIBRARY.parent
    command = [COMPILER, "-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread"]
    command += [f"-I{folder}", f"-I{folder.parent / 'cpp'}"]
    command += [str(ROOT / "tests" / "embedding" / "programs" / "soak.cpp"), "-o", str(out)]
    command += [f"-L{folder}", "-lstagebeam", f"-Wl,-rpath,{folder}"]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return out


def run(program: Path, *arguments: object) -> list[dict[str, Any]]:
    """The program in this test's own environment."""
    env = {**os.environ, "STAGEBEAM_PYTHON": sys.executable, "HF_HUB_OFFLINE": "1"}
    command = [str(program), *map(str, arguments)]
    ran = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_sixteen_in_flight_get_pythons_tokens(
    program: Path, tiny_folder: Path, scene_path: Path
) -> None:
    *answers, left = run(program, tiny_folder, scene_path, 16, 16)
    assert len(answers) == 16
    with Engine(tiny_folder, kv_cache_bytes=4 << 20) as engine:
        for seed, found in enumerate(answers):
            sampling = SamplingParams(max_tokens=40, temperature=1.0, top_p=1.0, top_k=0, seed=seed)
            expected = engine.answer("how many?", scene_path, search=SEARCH, sampling=sampling)
            for stage, own in zip(found["answer"]["stages"], expected.stages, strict=True):
                assert stage["winner"] == own.winner
                ids = [candidate["token_ids"] for candidate in stage["candidates"]]
                assert ids == [list(candidate.token_ids) for candidate in own.candidates]
    assert left["num_questions"] == left["num_running"] == left["num_held_blocks"] == 0


@pytest.mark.parametrize("num_questions", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_nothing_is_left_of_many_questions(
    program: Path, tiny_folder: Path, scene_path: Path, num_questions: int
) -> None:
    """Questions of which some are cancelled and some dropped; the first fifth warms the process up."""
    *answers, left = run(program, tiny_folder, scene_path, num_questions, 16)
    assert len(answers) > num_questions // 2
    names = ("num_questions", "num_running", "num_held_blocks", "num_images_in_use")
    assert [left[name] for name in names] == [0, 0, 0, 0]
    readings = left["resident_bytes"]
    assert len(readings) == 10
    if num_questions >= 1000:
        assert max(readings[2:]) <= LEAK_LIMIT * readings[1], readings
