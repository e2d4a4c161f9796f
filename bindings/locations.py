"""Where the files for C and C++ programs are: headers, libstagebeam, CMake package, pkg-config file."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent

CMAKE_DIR = _HERE / "cmake"  # for CMake's -Dstagebeam_DIR
PKG_CONFIG_DIR = _HERE / "pkgconfig"  # for PKG_CONFIG_PATH
C_LIBRARY = _HERE / "c" / "libstagebeam.so"
