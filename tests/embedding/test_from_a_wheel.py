"""The wheel in a clean environment, and programs that CMake alone builds on it: C, C++, a service."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from stagebeam import Engine, SearchParams

ROOT = Path(__file__).resolve().parents[2]
SCENE = ROOT / "assets" / "examples" / "scene.png"
QUESTIONS = ("How many big crosses are there?", "What shape is at the middle center?")
SEED = 7


@dataclass
class Installed:
    """A virtual environment with the wheel, and the examples built on it."""

    venv: Path
    build: Path

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(part) for part in command],
            cwd=self.build,
            env=clean_env(),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )


def clean_env() -> dict[str, str]:
    """Nothing that could lead to this test's own environment."""
    kept = ("PATH", "HOME", "LANG", "TMPDIR")
    return {name: os.environ[name] for name in kept if name in os.environ} | {"HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel's dependencies, PyTorch above all, are lent from the test's own environment."""
    if sys.platform != "linux":
        pytest.skip("the C interface is for Linux")
    for tool in ("cmake", "g++"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} here")
    folder = tmp_path_factory.mktemp("clean")
    here = Installed(folder / "venv", folder / "build")
    here.build.mkdir()
    made = here.run(sys.executable, "-m", "venv", "--without-pip", here.venv)
    assert made.returncode == 0, made.stderr
    python = here.venv / "bin" / "python"
    site = Path(
        here.run(python, "-c", "import site; print(site.getsitepackages()[0])").stdout.strip()
    )
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "-q",
        "--disable-pip-version-check",
        "--python",
        str(python),
    ]
    done = here.run(*pip, "install", "--no-deps", "--ignore-installed", wheel)
    assert done.returncode == 0, done.stderr
    where = here.run(python, "-c", "import stagebeam; print(stagebeam.__file__)").stdout.strip()
    assert where == str(site / "stagebeam" / "__init__.py")

    cmake_dir = here.run(here.venv / "bin" / "stagebeam", "--cmake-dir").stdout.strip()
    assert cmake_dir.startswith(str(here.venv))
    source = ROOT / "examples" / "cpp"
    options = [f"-Dstagebeam_DIR={cmake_dir}", "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror"]
    configured = here.run("cmake", "-S", source, "-B", here.build, *options)
    assert configured.returncode == 0, configured.stdout + configured.stderr
    built = here.run("cmake", "--build", here.build)
    assert built.returncode == 0, built.stdout + built.stderr
    return here


@pytest.fixture(scope="module")
def conclusions() -> list[str]:
    """What Python answers."""
    with Engine(kv_cache_bytes=64 << 20) as engine:
        return [
            engine.answer(
                question,
                SCENE,
                search=SearchParams(beam_size=2),
                sampling=replace(engine.default_sampling, max_tokens=100, seed=SEED),
            ).conclusion
            for question in QUESTIONS
        ]


def test_the_cpp_example_answers(installed: Installed, conclusions: list[str]) -> None:
    ran = installed.run("./ask", SCENE, *QUESTIONS)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert lines[:2] == [f"{q} {c}" for q, c in zip(QUESTIONS, conclusions, strict=True)]
    assert "<SUMMARY>" in ran.stdout  # the callback's tokens


def test_the_c_example_answers(installed: Installed, conclusions: list[str]) -> None:
    ran = installed.run("./answer", SCENE, QUESTIONS[0])
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == f"answer: {conclusions[0]}"


def test_ctypes_from_an_interpreter_without_stagebeam(
    installed: Installed, conclusions: list[str], tmp_path: Path
) -> None:
    """A host that runs Python: the library brings the package, the environment PyTorch."""
    library = next(installed.venv.glob("lib/*/site-packages/stagebeam/bindings/c/libstagebeam.so"))
    lent = tmp_path / "lent"
    made = installed.run(sys.executable, "-m", "venv", "--without-pip", lent)
    assert made.returncode == 0, made.stderr
    script = ROOT / "examples" / "ctypes" / "answer.py"
    ran = installed.run(lent / "bin" / "python", script, library, SCENE, QUESTIONS[0])
    assert ran.returncode == 0, ran.stderr
    assert f"answer: {conclusions[0]}" in ran.stdout.splitlines()


def test_a_wrong_environment_is_an_error_in_words(installed: Installed, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    made = installed.run(sys.executable, "-m", "venv", "--without-pip", empty)
    assert made.returncode == 0, made.stderr
    for python, words in (
        (tmp_path / "nothing", "no Python interpreter at"),
        (empty, "STAGEBEAM_PYTHON"),
    ):
        ran = installed.run(
            "env", f"STAGEBEAM_PYTHON={python}", "STAGEBEAM_LIBPYTHON=", "./ask", SCENE, "a?"
        )
        if ran.returncode == 0:  # the package's folder leads to all that it needs
            continue
        assert ran.returncode == 1
        assert words in ran.stderr, ran.stderr


@pytest.fixture
def service(installed: Installed) -> Iterator[str]:
    """The example service's address; SIGTERM must end it well."""
    if not (installed.build / "service").exists():
        pytest.skip("cpp-httplib is not here (apt-get install libcpp-httplib-dev pkg-config)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        ["./service", str(port)], cwd=installed.build, env=clean_env(), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        assert b"listening" in process.stdout.readline()
        yield f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def post(address: str, image: bytes, **query: object):
    url = f"{address}/ask?{urllib.parse.urlencode(query)}"
    headers = {"Content-Type": "image/png"}
    return urllib.request.urlopen(urllib.request.Request(url, image, headers), timeout=300)


def test_the_service_streams_and_frees(service: str, conclusions: list[str]) -> None:
    options = {"question": QUESTIONS[0], "beam_size": 2, "max_tokens": 100, "seed": SEED}
    with post(service, SCENE.read_bytes(), **options) as response:
        events = [json.loads(line) for line in response]
    assert events[0]["type"] == "stage_started"
    assert events[-1]["answer"]["conclusion"] == conclusions[0]
    with post(service, SCENE.read_bytes(), **{**options, "beam_size": 8}) as response:
        assert json.loads(response.readline())["type"] == "stage_started"
    # The connection is gone in the middle of the answer.
    for _ in range(200):
        with urllib.request.urlopen(f"{service}/stats", timeout=60) as response:
            stats = json.load(response)
        if stats["num_free_blocks"] == stats["num_blocks"]:
            break  # a destroyed question is not counted at once, its blocks are until they are free
        time.sleep(0.05)
    assert stats["num_running"] == 0
    assert stats["num_free_blocks"] == stats["num_blocks"]
    with pytest.raises(urllib.error.HTTPError, match="400"):
        post(service, b"not an image", **options)
    with urllib.request.urlopen(f"{service}/health", timeout=60) as response:
        assert response.read() == b"ok\n"
