// The parts of stagebeam.bindings._cpu that have files of their own, and what they share.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace stagebeam::bindings {

// An array's first element as Python knows it: torch's data_ptr(), 0 for none. Callers in
// stagebeam.kernels check shapes, types and contiguity, and hold the array during the call.
using Address = uintptr_t;

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

void bind_cpu_kernels(pybind11::module_& m);
void bind_cpu_step(pybind11::module_& m);

}  // namespace stagebeam::bindings
