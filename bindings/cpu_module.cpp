// Python bindings of csrc/cpu: stagebeam.bindings._cpu (types in _cpu.pyi).
#include "cpu_bindings.h"

namespace stagebeam::bindings {
void bind_cpu_linear(pybind11::module_& m);
}  // namespace stagebeam::bindings

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "The native CPU backend: instruction sets, threads, packed weights and their products.";
  stagebeam::bindings::bind_cpu_linear(m);
  stagebeam::bindings::bind_cpu_kernels(m);
  stagebeam::bindings::bind_cpu_step(m);
}
