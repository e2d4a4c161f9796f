// Python arguments to numbers and arrays, or a ValueError that says what was expected and got.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "../csrc/core/block_pool.h"

namespace stagebeam::bindings {

namespace py = pybind11;

template <typename T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;
using Ids = std::vector<SeqId>;

[[noreturn]] inline void fail(const std::string& message) {
  throw std::invalid_argument(message);
}

inline std::string shape_text(const py::array& array) {
  return py::str(array.attr("shape")).cast<std::string>();
}

// An int of `bits` bits without a sign, or a ValueError that names it.
inline uint64_t to_unsigned(py::handle value, int bits, const char* name) {
  py::object index = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
  if (index) {
    const unsigned long long word = PyLong_AsUnsignedLongLong(index.ptr());
    if (!PyErr_Occurred() && (bits == 64 || word >> bits == 0)) return word;
  }
  PyErr_Clear();
  fail(std::string(name) + " must be an int in 0 .. 2**" + std::to_string(bits) + " - 1, got " +
       py::repr(value).cast<std::string>());
}

// A one-dimensional array of integers, whatever its width.
template <typename T>
Array<T> to_ids(py::handle values, const char* name) {
  py::array array = py::array::ensure(values);
  const bool is_empty = array && array.size() == 0;
  if (!array || array.ndim() != 1 ||
      (!is_empty && array.dtype().kind() != 'i' && array.dtype().kind() != 'u')) {
    PyErr_Clear();
    fail(std::string(name) + " must be a one-dimensional array of ints, got " +
         (array ? "shape " + shape_text(array) + " of " + py::str(array.dtype()).cast<std::string>()
                : py::repr(values).cast<std::string>()));
  }
  return Array<T>(array);
}

inline Ids to_seqs(py::handle values) {
  const auto array = to_ids<SeqId>(values, "seqs");
  return Ids(array.data(), array.data() + array.size());
}

}  // namespace stagebeam::bindings
