// libstagebeam's backend: the Python engine, whose libraries are loaded when the first engine
// opens.
//
// libstagebeam itself links no Python. libpython is loaded for all to see (RTLD_GLOBAL), because
// Python's own extension modules take its symbols from there; in a host that runs Python it is
// there already.
#include "open_registry.h"

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>
#include <mutex>

#include "python_backend.h"
#include "python_place.h"
#include "stagebeam.h"

namespace stagebeam::embed {

namespace {

const std::string kVersion = STAGEBEAM_PYTHON_VERSION;

Status no_environment(std::string message) {
  return {StatusCode::kEnvironment, std::move(message)};
}

std::string loader_error() {
  const char* message = dlerror();
  return message ? message : "unknown error";
}

std::filesystem::path own_path() {
  Dl_info info{};
  if (!dladdr(reinterpret_cast<const void*>(&stagebeam_abi_version), &info)) return {};
  std::error_code ignored;
  const auto absolute = std::filesystem::absolute(info.dli_fname, ignored);
  return absolute.lexically_normal();
}

const char* running_version() {
  using GetVersion = const char* (*)();
  const auto get = reinterpret_cast<GetVersion>(dlsym(RTLD_DEFAULT, "Py_GetVersion"));
  return get ? get() : nullptr;
}

Status load_libpython(const PythonPlace& place) {
  const std::string name = "libpython" + kVersion + ".so.1.0";
  dlopen(name.c_str(), RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD);  // one that the host keeps to itself
  if (const char* version = running_version()) {
    if (std::string(version).starts_with(kVersion + ".")) return {};
    return no_environment("this process runs Python " + std::string(version) +
                          ", but this libstagebeam was built for Python " + kVersion);
  }
  if (!place.missing.empty()) {
    return no_environment("no Python interpreter at " + place.missing + " (from " + place.reason +
                          "); give an interpreter's path or an environment's folder");
  }
  std::string tried;
  for (const std::string& library : place.libraries) {
    if (dlopen(library.c_str(), RTLD_NOW | RTLD_GLOBAL)) return {};
    tried += "\n  " + loader_error();
  }
  return no_environment("no shared " + name + " for " + place.reason +
                        "; install it (Debian, Ubuntu: apt-get install libpython" + kVersion +
                        ") or set STAGEBEAM_LIBPYTHON to its path. Tried:" + tried);
}

class PythonBackend final : public Backend {
 public:
  Status open(const EngineSpec& spec, std::unique_ptr<HostedEngine>& engine) noexcept override {
    Status status = start(spec.python);
    return status.is_ok() ? backend_->open(spec, engine) : status;
  }

 private:
  Status start(const std::string& asked) {
    const std::lock_guard guard(mutex_);
    if (backend_) return {};
    const auto library = own_path();
    const PythonPlace place = find_python(asked, library, kVersion);
    Status status = load_libpython(place);
    if (!status.is_ok()) return status;
    const auto plugin = library.parent_path() / "libstagebeam_python.so";
    void* loaded = dlopen(plugin.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!loaded) return no_environment("cannot load " + plugin.string() + ": " + loader_error());
    const auto start_python = reinterpret_cast<StartPython>(dlsym(loaded, kStartPython));
    if (!start_python) return no_environment(plugin.string() + " is of another version");
    StartedPython started;
    const auto close_all = [] { open_registry().close_all(); };
    start_python({place.executable, package_root(library)}, close_all, started);
    if (!started.status.is_ok()) {
      status = started.status;
      status.message +=
          " (Python: " + (started.was_running ? "the host's own" : place.reason) + ")";
      return status;
    }
    // The engines' threads must end before the libraries' static objects do.
    if (!started.was_running) std::atexit(close_all);
    backend_ = started.backend;
    return {};
  }

  std::mutex mutex_;
  Backend* backend_ = nullptr;
};

}  // namespace

Registry& open_registry() {
  static auto* registry = new Registry(*new PythonBackend);
  return *registry;
}

}  // namespace stagebeam::embed
