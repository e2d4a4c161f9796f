"""What pyproject cannot say: the packages behind the symlinks, the C++ and CUDA libraries."""

import os
import shutil
import sys
from glob import glob
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import Extension, find_namespace_packages, setup
from setuptools.command.build_ext import build_ext

# Half a gigabyte of memory for each file at once; MAKE_JOBS says otherwise.
ParallelCompile("MAKE_JOBS", default=min(os.cpu_count() or 1, 4)).install()

core = Pybind11Extension(
    "stagebeam.bindings._core",
    ["bindings/core_module.cpp", *sorted(glob("csrc/core/*.cpp"))],
    depends=sorted([*glob("bindings/*.h"), *glob("csrc/core/*.h")]),
    cxx_std=20,
    extra_compile_args=["-O3", "-Wall", "-Wextra"],
)

# Its files name the instruction sets that they need themselves: one build runs everywhere.
cpu = Pybind11Extension(
    "stagebeam.bindings._cpu",
    sorted([*glob("bindings/cpu_*.cpp"), *glob("csrc/core/*.cpp"), *glob("csrc/cpu/*.cpp")]),
    depends=sorted([*glob("bindings/*.h"), *glob("csrc/core/*.h"), *glob("csrc/cpu/*.h")]),
    cxx_std=20,
    extra_compile_args=["-O3", "-g0", "-Wall", "-Wextra", "-Wno-psabi"],
    extra_link_args=["-pthread"],
)

# The C interface: a library without Python in it, and the one that it loads to host the engine.
C_HEADERS = sorted([*glob("bindings/c/*.h"), *glob("csrc/embed/*.h")])
c_interface = [
    Extension(
        "stagebeam.bindings.c.libstagebeam",
        [
            "bindings/c/stagebeam.cpp",
            "bindings/c/open_registry.cpp",
            "bindings/c/python_place.cpp",
            *sorted(glob("csrc/embed/*.cpp")),
        ],
        depends=C_HEADERS,
        language="c++",
        define_macros=[
            ("STAGEBEAM_PYTHON_VERSION", '"{}.{}"'.format(*sys.version_info)),
        ],
        extra_compile_args=["-std=c++20", "-O2", "-g0", "-Wall", "-Wextra", "-fvisibility=hidden"],
        extra_link_args=["-pthread", "-Wl,-soname,libstagebeam.so", "-Wl,-z,defs", "-ldl"],
    ),
    Pybind11Extension(
        "stagebeam.bindings.c.libstagebeam_python",
        ["bindings/c/python_backend.cpp"],
        depends=C_HEADERS,
        cxx_std=20,
        extra_compile_args=["-O2", "-Wall", "-Wextra"],
    ),
]

CUDA_TARGETS = ("80", "90", "100")  # A100, H100, B200
# Not a Python module but a library with a C interface; without it the other kernels do its work.
cuda = Extension(
    "stagebeam.bindings.libstagebeam_cuda",
    ["csrc/cuda/c_api.cu"],
    depends=sorted([*glob("csrc/cuda/*.h"), "csrc/core/philox.h"]),
    optional=True,
)


def find_nvcc() -> str | None:
    """nvcc's path where a torch with CUDA is installed too: kernels that nothing can run are not built."""
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=f"{home}/bin" if home else None)
    if nvcc is None:
        return None
    try:
        from torch.version import cuda as version
    except ImportError:
        return None
    return nvcc if version else None


class BuildExtension(build_ext):
    """Builds the extensions, or says in one line what is missing."""

    def get_ext_filename(self, fullname: str) -> str:
        """Libraries for other languages have a plain name, without Python's version in it."""
        *folders, name = fullname.split(".")
        if name.startswith("lib"):
            return "/".join([*folders, f"{name}.so"])
        return super().get_ext_filename(fullname)

    def build_extension(self, ext: Extension) -> None:
        if ext is not cuda:
            super().build_extension(ext)
            return
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        command = [find_nvcc(), "-std=c++20", "-O3", "--expt-relaxed-constexpr", "-shared"]
        command += ["-Xcompiler=-fPIC", *ext.sources, "-o", str(target)]
        for number in CUDA_TARGETS:
            command.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        newest = CUDA_TARGETS[-1]
        command.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")
        self.spawn(command)

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
    packages=find_namespace_packages(
        include=["stagebeam", "stagebeam.*"],
        exclude=["stagebeam.benchmarks.suites*", "stagebeam.benchmarks.results*"],
    ),
    package_data={
        "": ["py.typed", "*.pyi", "*.html", "*.css", "*.js"],
        "stagebeam": ["assets/**/*"],
        "stagebeam.bindings.c": ["stagebeam.h"],
        "stagebeam.bindings.cpp": ["*.hpp"],
        "stagebeam.bindings.cmake": ["*.cmake"],
        "stagebeam.bindings.pkgconfig": ["*.pc"],
    },
    ext_modules=[
        core,
        cpu,
        *(c_interface if sys.platform == "linux" else []),
        *([cuda] if find_nvcc() else []),
    ],
    cmdclass={"build_ext": BuildExtension},
)
