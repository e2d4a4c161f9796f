// The one function of libstagebeam_python that libstagebeam calls.
#pragma once

#include <string>

#include "../../csrc/embed/backend.h"

namespace stagebeam::embed {

// executable: the interpreter to start where none runs, "" for libpython's own choice
// package_root: a folder with the package, for an environment that lacks it; or ""
struct PythonSetup {
  std::string executable;
  std::string package_root;
};

struct StartedPython {
  Status status;
  Backend* backend = nullptr;  // never destroyed
  bool was_running = false;    // the host had started it
};

// Starts the interpreter where none runs and imports the engine.
using StartPython = void (*)(const PythonSetup& setup, void (*at_exit)(), StartedPython& started);

constexpr const char* kStartPython = "stagebeam_start_python";

}  // namespace stagebeam::embed
