"""What pyproject cannot say: the packages behind the symlinks, and the C++ extension."""

import shutil

from pybind11.setup_helpers import Pybind11Extension
from setuptools import find_namespace_packages, setup
from setuptools.command.build_ext import build_ext

CORE_SOURCES = ["block_pool", "sampler", "tag_matcher"]

core = Pybind11Extension(
    "stagebeam.bindings._core",
    ["bindings/core_module.cpp", *(f"csrc/core/{name}.cpp" for name in CORE_SOURCES)],
    depends=[f"csrc/core/{name}.h" for name in [*CORE_SOURCES, "philox"]],
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
