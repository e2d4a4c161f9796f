"""What pyproject cannot say: the packages behind the symlinks, and the C++ extension."""

import shutil
from glob import glob

from pybind11.setup_helpers import Pybind11Extension
from setuptools import find_namespace_packages, setup
from setuptools.command.build_ext import build_ext

core = Pybind11Extension(
    "stagebeam.bindings._core",
    ["bindings/core_module.cpp", *sorted(glob("csrc/core/*.cpp"))],
    depends=sorted([*glob("bindings/*.h"), *glob("csrc/core/*.h")]),
    cxx_std=20,
    extra_compile_args=["-O3", "-Wall", "-Wextra"],
)


class BuildExtension(build_ext):
    """Builds the extension, or says in one line what is missing."""

    def build_extensions(self) -> None:
        command = getattr(self.compiler, "compiler_cxx", None) or ["c++"]
        if self.compiler.compiler_type == "unix" and shutil.which(command[0]) is None:
            raise SystemExit(
                f"stagebeam needs a C++20 compiler to build its core, but {command[0]!r} was not "
                "found: install one (Debian, Ubuntu: apt-get install g++; macOS: xcode-select "
                "--install) or set CXX"
            )
        super().build_extensions()


setup(
    packages=find_namespace_packages(include=["stagebeam", "stagebeam.*"]),
    package_data={
        "": ["py.typed", "*.pyi", "*.html", "*.css", "*.js"],
        "stagebeam": ["assets/**/*"],
    },
    ext_modules=[core],
    cmdclass={"build_ext": BuildExtension},
)
