// libstagebeam_python: hosts the Python engine for the C ABI.
//
// Python.h lives here and not in libstagebeam. Every entry takes the GIL for itself; nothing of the
// host's is called while it is held but EventSink::push, which never waits. The interpreter is
// started at most once and never finalised, so every Python object held here is let go under the
// GIL or not at all.
#include "python_backend.h"

#include <pybind11/embed.h>
#include <pybind11/pybind11.h>

#include <exception>
#include <utility>

#include "python_events.h"

namespace stagebeam::embed {

namespace py = pybind11;
using namespace pybind11::literals;

namespace {

// The engine's Python classes and functions, looked up once.
struct EngineModule {
  py::object engine, search_params, sampling_params, judge_params, replace, image;
  py::object invalid, image_error, checkpoint_error, capacity_error, cancelled_error;
  EventReader events;

  EngineModule() {
    const py::module_ public_names = py::module_::import("stagebeam");
    engine = public_names.attr("Engine");
    search_params = public_names.attr("SearchParams");
    sampling_params = public_names.attr("SamplingParams");
    judge_params = public_names.attr("JudgeParams");
    replace = py::module_::import("dataclasses").attr("replace");
    image = py::module_::import("PIL.Image");
    const py::module_ errors = py::module_::import("stagebeam.engine.errors");
    invalid = py::module_::import("builtins").attr("ValueError");
    image_error = errors.attr("ImageError");
    checkpoint_error = errors.attr("CheckpointError");
    capacity_error = errors.attr("CapacityError");
    cancelled_error = errors.attr("CancelledError");
  }

  Status status_of(const py::error_already_set& error) const {
    StatusCode code = StatusCode::kInternal;
    if (error.matches(image_error)) {
      code = StatusCode::kImage;
    } else if (error.matches(checkpoint_error)) {
      code = StatusCode::kCheckpoint;
    } else if (error.matches(capacity_error)) {
      code = StatusCode::kCapacity;
    } else if (error.matches(cancelled_error)) {
      code = StatusCode::kCancelled;
    } else if (error.matches(invalid)) {
      code = StatusCode::kInvalidArgument;
    }
    if (code == StatusCode::kInternal) return {code, error.what()};  // with its traceback
    return {code, py::str(error.value()).cast<std::string>()};
  }
};

// Runs `work` under the GIL and turns what it throws into a status.
template <typename Work>
Status with_python(const EngineModule* module, Work&& work) noexcept {
  if (!Py_IsInitialized())
    return {StatusCode::kEnvironment, "the host's Python has been finalised"};
  const py::gil_scoped_acquire gil;
  try {
    work();
    return {};
  } catch (const py::error_already_set& error) {
    if (module) return module->status_of(error);
    return {StatusCode::kEnvironment,
            "cannot import stagebeam: " + py::str(error.value()).cast<std::string>()};
  } catch (const std::exception& error) {
    return {StatusCode::kInternal, error.what()};
  }
}

template <typename T>
void set(py::dict& arguments, const char* name, const std::optional<T>& value) {
  if (value) arguments[name] = *value;
}

void set(py::dict& arguments, const char* name, const std::string& value) {
  if (!value.empty()) arguments[name] = value;
}

// A Python object that is let go under the GIL.
class Held {
 public:
  explicit Held(py::object object) : object_(object.release()) {}
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;
  ~Held() {
    if (!Py_IsInitialized()) return;
    const py::gil_scoped_acquire gil;
    object_.dec_ref();
  }
  py::handle get() const { return object_; }

 private:
  py::handle object_;
};

class PythonQuestion final : public RunningQuestion {
 public:
  PythonQuestion(const EngineModule& module, py::object handle)
      : module_(module), handle_(std::move(handle)) {}
  void cancel() noexcept override {
    with_python(&module_, [this] { handle_.get().attr("cancel")(); });
  }

 private:
  const EngineModule& module_;
  const Held handle_;
};

class PythonEngine final : public HostedEngine {
 public:
  PythonEngine(const EngineModule& module, py::object engine)
      : module_(module), engine_(std::move(engine)) {}
  ~PythonEngine() override { close(); }

  Status submit(const QuestionSpec& spec, std::shared_ptr<EventSink> sink,
                std::unique_ptr<RunningQuestion>& question) noexcept override {
    return with_python(&module_, [&] {
      py::cpp_function listener([sink = std::move(sink), events = &module_.events](
                                    const py::handle event) { sink->push(events->read(event)); });
      py::object handle = engine_.get().attr("submit")(
          spec.text, image(spec.image), "search"_a = search(spec), "sampling"_a = sampling(spec),
          "judge"_a = judge(spec), "has_events"_a = false, "on_event"_a = listener,
          "deadline_seconds"_a =
              spec.deadline_seconds ? py::object(py::float_(*spec.deadline_seconds)) : py::none());
      question = std::make_unique<PythonQuestion>(module_, std::move(handle));
    });
  }

  Status stats(EngineStats& stats) noexcept override {
    return with_python(&module_, [&] {
      const py::dict counts = engine_.get().attr("stats")();
      const auto count = [&](const char* name) { return counts[name].cast<int64_t>(); };
      stats.num_blocks = count("num_blocks");
      stats.num_free_blocks = count("num_free");
      stats.num_reserved_blocks = count("num_reserved");
      stats.num_sequences = count("num_sequences");
      stats.num_image_slots = count("num_image_slots");
      stats.num_images_in_use = count("num_images_in_use");
    });
  }

  void close() noexcept override {
    with_python(&module_, [this] { engine_.get().attr("close")(); });
  }

 private:
  py::object image(const ImageView& view) const {
    const auto bytes = [&view] {
      return py::bytes(reinterpret_cast<const char*>(view.data), view.size);
    };
    switch (view.kind) {
      case ImageKind::kNone:
        break;
      case ImageKind::kPath:
        return py::str(view.path);
      case ImageKind::kEncoded:
        return bytes();
      case ImageKind::kRgb:
        return module_.image.attr("frombytes")("RGB", py::make_tuple(view.width, view.height),
                                               bytes(), "raw", "RGB", view.stride_bytes);
    }
    return py::none();
  }

  py::object search(const QuestionSpec& spec) const {
    py::dict arguments;
    set(arguments, "strategy", spec.strategy);
    set(arguments, "beam_size", spec.beam_size);
    return arguments.empty() ? py::none() : module_.search_params(**arguments);
  }

  py::object sampling(const QuestionSpec& spec) const {
    py::dict arguments;
    set(arguments, "temperature", spec.temperature);
    set(arguments, "top_p", spec.top_p);
    set(arguments, "top_k", spec.top_k);
    set(arguments, "min_p", spec.min_p);
    set(arguments, "max_tokens", spec.max_tokens);
    set(arguments, "seed", spec.seed);
    if (arguments.empty()) return py::none();
    return module_.replace(engine_.get().attr("default_sampling"), **arguments);
  }

  py::object judge(const QuestionSpec& spec) const {
    py::dict arguments;
    set(arguments, "mode", spec.judge_mode);
    set(arguments, "tournament", spec.tournament);
    return arguments.empty() ? py::none() : module_.judge_params(**arguments);
  }

  const EngineModule& module_;
  const Held engine_;
};

class PythonBackend final : public Backend {
 public:
  explicit PythonBackend(const EngineModule& module) : module_(module) {}

  Status open(const EngineSpec& spec, std::unique_ptr<HostedEngine>& engine) noexcept override {
    return with_python(&module_, [&] {
      if (spec.num_threads) py::module_::import("torch").attr("set_num_threads")(*spec.num_threads);
      py::dict arguments;
      set(arguments, "path", spec.path);
      set(arguments, "device", spec.device);
      set(arguments, "dtype", spec.dtype);
      set(arguments, "backend", spec.backend);
      set(arguments, "max_model_len", spec.max_model_len);
      set(arguments, "kv_cache_bytes", spec.kv_cache_bytes);
      set(arguments, "max_branches", spec.max_branches);
      set(arguments, "seed", spec.seed);
      engine = std::make_unique<PythonEngine>(module_, module_.engine(**arguments));
    });
  }

 private:
  const EngineModule& module_;
};

// Signals stay the host's; PYTHONPATH and the environment's site-packages work as in `python`.
void start_interpreter(const std::string& executable) {
  PyConfig config;
  PyConfig_InitPythonConfig(&config);
  config.install_signal_handlers = 0;
  config.parse_argv = 0;
  if (!executable.empty()) {
    const PyStatus status =
        PyConfig_SetBytesString(&config, &config.executable, executable.c_str());
    if (PyStatus_Exception(status)) {
      PyConfig_Clear(&config);
      throw std::runtime_error("cannot use the interpreter " + executable);
    }
  }
  py::initialize_interpreter(&config, 0, nullptr, false);
  PyEval_SaveThread();
}

const EngineModule* import_engine(const PythonSetup& setup, bool was_running, void (*at_exit)()) {
  const bool is_found =
      !py::module_::import("importlib.util").attr("find_spec")("stagebeam").is_none();
  if (!is_found && !setup.package_root.empty()) {
    py::module_::import("site").attr("addsitedir")(setup.package_root);
  }
  auto* module = new EngineModule;
  if (was_running) py::module_::import("atexit").attr("register")(py::cpp_function(at_exit));
  return module;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) void stagebeam_start_python(
    const PythonSetup& setup, void (*at_exit)(), StartedPython& started) {
  static bool has_started = false;  // the caller holds a lock
  started.was_running = Py_IsInitialized() && !has_started;
  if (!Py_IsInitialized()) {
    try {
      start_interpreter(setup.executable);
    } catch (const std::exception& error) {
      started.status = {StatusCode::kEnvironment, error.what()};
      return;
    }
    has_started = true;
  }
  started.status = with_python(nullptr, [&] {
    started.backend = new PythonBackend(*import_engine(setup, started.was_running, at_exit));
  });
}

}  // namespace stagebeam::embed
