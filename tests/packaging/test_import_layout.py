"""The symlinked layout imports from a clone, an editable install and a wheel, inside and outside the
checkout, beside Hugging Face's `kernels`, and the type check really looks through the links."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

IMPORT_ALL = """
import importlib, pkgutil, sys
import stagebeam
names = ["stagebeam"]
for module in pkgutil.walk_packages(stagebeam.__path__, "stagebeam."):
    names.append(module.name)
for part in ("engine", "bindings", "training", "kernels"):
    package = importlib.import_module("stagebeam." + part)
    folders = list(package.__path__)
    names += [m.name for m in pkgutil.walk_packages(folders, package.__name__ + ".")]
optional = (".triton_", ".cuda.", ".flash_attn.")  # need packages that are no dependency
for name in dict.fromkeys(names):
    if not any(part in name + "." for part in optional):
        importlib.import_module(name)
print(len(set(names)), stagebeam.__file__)
"""


def run(command: list[str], cwd: Path, *paths: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def import_all(cwd: Path, *paths: Path, is_safe_path: bool = False) -> Path:
    """Import every module; returns where stagebeam came from."""
    flags = ["-P"] if is_safe_path else []
    done = run([sys.executable, *flags, "-c", IMPORT_ALL], cwd, *paths)
    assert done.returncode == 0, done.stderr
    count, file = done.stdout.split(maxsplit=1)
    assert int(count) > 50
    return Path(file.strip())


@pytest.fixture(scope="session")
def wheel_site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the wheel was installed into."""
    site = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    done = run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], site)
    assert done.returncode == 0, done.stderr
    return site


def test_imports_from_a_clone(clone: Path) -> None:
    assert import_all(clone) == clone / "stagebeam" / "__init__.py"


def test_imports_from_the_editable_install(tmp_path: Path) -> None:
    done = run([sys.executable, "-c", "import stagebeam"], tmp_path)
    if done.returncode != 0 and "No module named 'stagebeam'" in done.stderr:
        pytest.skip("stagebeam is not installed in this environment; `make test` installs it")
    assert import_all(tmp_path).resolve() == ROOT / "stagebeam" / "__init__.py"


def test_imports_from_a_wheel_outside_the_checkout(wheel_site: Path, tmp_path: Path) -> None:
    assert import_all(tmp_path, wheel_site) == wheel_site / "stagebeam" / "__init__.py"


def test_imports_from_a_wheel_inside_the_checkout(wheel_site: Path) -> None:
    found = import_all(ROOT, wheel_site, is_safe_path=True)
    assert found == wheel_site / "stagebeam" / "__init__.py"


def test_the_wheel_holds_what_is_not_code(wheel_site: Path) -> None:
    package = wheel_site / "stagebeam"
    assert (package / "py.typed").exists()
    assert (package / "bindings" / "_core.pyi").exists()
    assert (package / "assets" / "shapes" / "config.json").exists()
    assert not (package / "kernels" / "__init__.py").exists()


def test_imports_beside_hugging_faces_kernels(tmp_path: Path) -> None:
    """A regular package `kernels` at the checkout's root would break `import transformers`."""
    if find_spec("kernels") is not None and "site-packages" in str(find_spec("kernels").origin):  # type: ignore[union-attr]
        site: tuple[Path, ...] = ()
    else:
        pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
        done = run([*pip, "install", "--no-deps", "--target", str(tmp_path), "kernels"], tmp_path)
        if done.returncode != 0:
            pytest.skip("Hugging Face's kernels could not be installed from the package index")
        site = (tmp_path,)
    code = "import transformers.models.mllama.modeling_mllama, kernels; print(kernels.__file__)"
    done = run([sys.executable, "-c", code], ROOT, *site)
    assert done.returncode == 0, done.stderr
    assert import_all(ROOT, *site).resolve() == ROOT / "stagebeam" / "__init__.py"


def test_the_type_check_sees_through_the_links(clone: Path, tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    shutil.copytree(clone, planted, symlinks=True)
    with open(planted / "kernels" / "registry.py", "a", encoding="utf-8") as file:
        file.write('\n\ndef planted() -> int:\n    return "not an int"\n')
    check = [sys.executable, "-m", "mypy", "-p", "stagebeam.kernels", "-p", "stagebeam.bindings"]
    done = run(check, planted)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "kernels/registry.py" in done.stdout
    assert "return-value" in done.stdout
