#include "python_place.h"

#include <cstdlib>
#include <fstream>
#include <system_error>
#include <tuple>
#include <utility>

namespace stagebeam::embed {

namespace fs = std::filesystem;

namespace {

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

bool has(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

// The interpreter of a folder (a virtual environment or a prefix); empty where it has none.
std::string interpreter_in(const fs::path& folder, const std::string& version) {
  for (const std::string& name :
       {"python" + version, std::string("python3"), std::string("python")}) {
    if (has(folder / "bin" / name)) return folder / "bin" / name;
  }
  return "";
}

// `home` of a pyvenv.cfg: the folder of the interpreter that made the environment.
std::string home_of(const fs::path& config) {
  std::ifstream file(config);
  for (std::string line; std::getline(file, line);) {
    const size_t equals = line.find('=');
    if (equals == std::string::npos) continue;
    const auto trimmed = [](std::string text) {
      const size_t from = text.find_first_not_of(" \t\r");
      const size_t to = text.find_last_not_of(" \t\r");
      return from == std::string::npos ? std::string() : text.substr(from, to - from + 1);
    };
    if (trimmed(line.substr(0, equals)) == "home") return trimmed(line.substr(equals + 1));
  }
  return "";
}

// Where an interpreter's libpython may be.
std::vector<std::string> libraries_of(const std::string& executable, const std::string& version) {
  const std::string name = "libpython" + version + ".so.1.0";
  if (const std::string asked = environment("STAGEBEAM_LIBPYTHON"); !asked.empty()) return {asked};
  std::vector<std::string> found;
  if (!executable.empty()) {
    const fs::path prefix = fs::path(executable).parent_path().parent_path();
    std::vector<fs::path> prefixes = {prefix};
    if (const std::string home = home_of(prefix / "pyvenv.cfg"); !home.empty()) {
      prefixes.push_back(fs::path(home).parent_path());
    }
    std::error_code ignored;
    const fs::path real = fs::canonical(executable, ignored);
    if (!ignored) prefixes.push_back(real.parent_path().parent_path());
    for (const fs::path& place : prefixes) {
      for (const char* folder : {"lib", "lib64"}) {
        if (has(place / folder / name)) found.push_back(place / folder / name);
      }
    }
  }
  found.push_back(name);  // the dynamic linker's own search
  return found;
}

std::pair<std::string, std::string> executable_for(const std::string& asked,
                                                   const fs::path& library,
                                                   const std::string& version) {
  const auto resolved = [&](const std::string& given) {
    std::error_code ignored;
    return fs::is_directory(given, ignored) ? interpreter_in(given, version) : given;
  };
  if (!asked.empty()) return {resolved(asked), "the engine's parameter `python`"};
  if (const std::string given = environment("STAGEBEAM_PYTHON"); !given.empty()) {
    return {resolved(given), "$STAGEBEAM_PYTHON"};
  }
  for (fs::path folder = library.parent_path(); folder != folder.root_path();
       folder = folder.parent_path()) {
    if (has(folder / "pyvenv.cfg")) {
      return {interpreter_in(folder, version), "the environment that holds " + library.string()};
    }
    if (has(folder / ".venv" / "pyvenv.cfg")) {
      return {interpreter_in(folder / ".venv", version), "the .venv beside " + library.string()};
    }
    if (folder.filename() == "python" + version && folder.parent_path().filename() == "lib") {
      const fs::path prefix = folder.parent_path().parent_path();
      const std::string own = interpreter_in(prefix, version);
      if (!own.empty()) return {own, "the installation that holds " + library.string()};
    }
  }
  if (const std::string active = environment("VIRTUAL_ENV"); !active.empty()) {
    return {interpreter_in(active, version), "$VIRTUAL_ENV"};
  }
  return {"", "the system's Python"};
}

}  // namespace

PythonPlace find_python(const std::string& asked, const fs::path& library,
                        const std::string& version) {
  PythonPlace place;
  std::tie(place.executable, place.reason) = executable_for(asked, library, version);
  const std::string named = asked.empty() ? environment("STAGEBEAM_PYTHON") : asked;
  if (!named.empty() && !has(place.executable)) place.missing = named;
  place.libraries = libraries_of(place.executable, version);
  return place;
}

fs::path package_root(const fs::path& library) {
  for (fs::path folder = library.parent_path(); folder != folder.root_path();
       folder = folder.parent_path()) {
    if (has(folder / "stagebeam" / "__init__.py")) return folder;
  }
  return {};
}

}  // namespace stagebeam::embed
