// Which Python the library starts, where the host process does not run one already.
//
// Pure file-system work: pyvenv.cfg files and the layout of an installation. Knows no Python.h.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace stagebeam::embed {

struct PythonPlace {
  std::string executable;              // "" leaves the choice to libpython
  std::vector<std::string> libraries;  // of libpython, in the order to try
  std::string reason;                  // why this one, for error messages
  std::string missing;                 // what the user named and is no interpreter; else ""
};

// The first of: `asked` (the engine's parameter), $STAGEBEAM_PYTHON, the environment that the
// library is installed in, a checkout's .venv, $VIRTUAL_ENV, and what libpython itself finds.
// library: the path of libstagebeam; version: "3.11"
PythonPlace find_python(const std::string& asked, const std::filesystem::path& library,
                        const std::string& version);

// The folder above the library that holds the package `stagebeam`; empty where there is none.
std::filesystem::path package_root(const std::filesystem::path& library);

}  // namespace stagebeam::embed
