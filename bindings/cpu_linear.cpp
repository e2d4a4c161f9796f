// Bindings of csrc/cpu's machine facts, thread pool, packed matrices and products.
#include <pybind11/stl.h>

#include <optional>

#include "../csrc/cpu/aligned_memory.h"
#include "../csrc/cpu/bandwidth.h"
#include "../csrc/cpu/cpu_count.h"
#include "../csrc/cpu/isa.h"
#include "../csrc/cpu/linear.h"
#include "arguments.h"

using namespace pybind11::literals;

namespace stagebeam::bindings {
namespace {

using Floats = Array<float>;

void check_matrix(const py::array& array, int64_t columns, const char* name) {
  if (array.ndim() == 2 && array.shape(1) == columns) return;
  fail(std::string(name) + " must have shape [rows, " + std::to_string(columns) + "], got " +
       shape_text(array));
}

SourceType source_type(const py::array& rows) {
  if (py::isinstance<py::array_t<float>>(rows)) return SourceType::kFloat32;
  if (py::isinstance<py::array_t<uint16_t>>(rows)) return SourceType::kBf16;
  if (rows.dtype().kind() == 'f' && rows.dtype().itemsize() == 2) return SourceType::kFp16;
  fail("rows must be float32, float16, or uint16 with bfloat16's bits, got " +
       py::str(rows.dtype()).cast<std::string>());
}

void pack_rows(PackedMatrix& self, int64_t first_row, const py::array& rows) {
  check_matrix(rows, self.in_features(), "rows");
  if (!(rows.flags() & py::array::c_style)) fail("rows must be contiguous");
  const SourceType type = source_type(rows);
  const int64_t count = rows.shape(0);
  const void* source = rows.data();
  const py::gil_scoped_release release;
  self.pack_rows(first_row, count, source, type, self.in_features());
}

Floats unpack_rows(const PackedMatrix& self, int64_t first_row, int64_t num_rows) {
  if (num_rows < 0) fail("num_rows must be at least 0, got " + std::to_string(num_rows));
  Floats out({static_cast<py::ssize_t>(num_rows), static_cast<py::ssize_t>(self.in_features())});
  self.unpack_rows(first_row, num_rows, out.mutable_data(), self.in_features());
  return out;
}

Floats linear(ThreadPool& pool, const PackedMatrix& weights, const Floats& x,
              const std::optional<Floats>& residual, float scale) {
  check_matrix(x, weights.in_features(), "x");
  const bool is_gate_up = weights.order() == RowOrder::kGateUp;
  const int64_t rows = x.shape(0), columns = weights.out_features() / (is_gate_up ? 2 : 1);
  Epilogue epilogue = is_gate_up ? Epilogue::silu_mul() : Epilogue::none();
  if (residual) {
    check_matrix(*residual, columns, "residual");
    if (residual->shape(0) != rows || is_gate_up) {
      fail("residual must have x's number of rows, and the matrix plain order");
    }
    epilogue = Epilogue::add_residual({residual->data(), columns}, scale);
  }
  Floats out({static_cast<py::ssize_t>(rows), static_cast<py::ssize_t>(columns)});
  const ConstRows source{x.data(), weights.in_features()};
  const Rows target{out.mutable_data(), columns};
  const py::gil_scoped_release release;
  pool.run([&](int part, int parts) {
    linear_part(weights, source, rows, target, part, parts, epilogue);
  });
  return out;
}

}  // namespace

void bind_cpu_linear(py::module_& m) {
  m.def("available_isas", [] {
    std::vector<std::string> names;
    for (const Isa isa : available_isas()) names.push_back(isa_name(isa));
    return names;
  });
  m.def("active_isa", [] { return isa_name(active_isa()); });
  m.def(
      "set_active_isa", [](const std::string& name) { set_active_isa(parse_isa(name)); }, "name"_a);
  m.def("available_cpus", [] { return available_cpus(); });
  m.def("default_num_threads", [] { return default_num_threads(); });
  m.def(
      "zeroed_bytes",
      [](size_t num_bytes) {
        struct Memory {
          void* data;
          size_t num_bytes;
          ~Memory() { release(data, num_bytes); }
        };
        auto* memory = new Memory{allocate_zeroed(num_bytes), num_bytes};
        const py::capsule owner(memory, [](void* p) { delete static_cast<Memory*>(p); });
        return py::array_t<uint8_t>(num_bytes, static_cast<const uint8_t*>(memory->data), owner);
      },
      "num_bytes"_a);
  m.def("read_bandwidth", &read_bandwidth, "pool"_a, "num_bytes"_a = size_t{256} << 20,
        "repeats"_a = 5, py::call_guard<py::gil_scoped_release>());

  py::class_<ThreadPool>(m, "ThreadPool")
      .def(py::init<int, int>(), "num_threads"_a, "spin_us"_a = ThreadPool::kDefaultSpinUs)
      .def_property_readonly("num_threads", &ThreadPool::num_threads);

  py::class_<PackedMatrix>(m, "PackedMatrix")
      .def(py::init([](int64_t out_features, int64_t in_features, const std::string& format,
                       bool is_gate_up, bool rounds_activations) {
             return PackedMatrix(
                 out_features, in_features, parse_weight_format(format.c_str()),
                 is_gate_up ? RowOrder::kGateUp : RowOrder::kPlain,
                 rounds_activations ? Activations::kRounded : Activations::kFloat32);
           }),
           "out_features"_a, "in_features"_a, "format"_a, py::kw_only(), "is_gate_up"_a = false,
           "rounds_activations"_a = true)
      .def_property_readonly("out_features", &PackedMatrix::out_features)
      .def_property_readonly("in_features", &PackedMatrix::in_features)
      .def_property_readonly(
          "format", [](const PackedMatrix& self) { return weight_format_name(self.format()); })
      .def_property_readonly("num_bytes", &PackedMatrix::num_bytes)
      .def("pack_rows", &pack_rows, "first_row"_a, "rows"_a)
      .def("unpack_rows", &unpack_rows, "first_row"_a, "num_rows"_a);

  m.def("linear", &linear, "pool"_a, "weights"_a, "x"_a, "residual"_a = py::none(),
        "scale"_a = 1.0f);
}

}  // namespace stagebeam::bindings
