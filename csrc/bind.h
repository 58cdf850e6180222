// What the binding files share: error messages with name and value, and numpy arrays that own a
// vector's memory. The only headers that know Python are this one and pybind11's.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <exception>
#include <string>

#include "errors.h"

namespace mixcore {

namespace py = pybind11;

// Each bind_*.cpp adds its table to the module.
void BindGrid(py::module_& m);
void BindMegatron(py::module_& m);
void BindPlan(py::module_& m);

// Each exception of errors.h becomes the class of mixcore/errors.py.
inline void TranslateErrors() {
  py::register_local_exception_translator([](std::exception_ptr p) {
    const auto raise = [](const char* name, const std::exception& e) {
      PyErr_SetString(py::module_::import("mixcore.errors").attr(name).ptr(), e.what());
    };
    try {
      std::rethrow_exception(p);
    } catch (const ValueError& e) {
      raise("ArgumentError", e);
    } catch (const TypeError& e) {
      raise("ArgumentTypeError", e);
    } catch (const LedgerError& e) {
      raise("LedgerError", e);
    } catch (const CapError& e) {
      raise("CapError", e);
    } catch (const DistanceError& e) {
      raise("DistanceError", e);
    } catch (const DeviceError& e) {
      raise("DeviceError", e);
    }
  });
}

// A C-contiguous array of exactly T with `ndim` axes; anything else is refused with the argument's
// name and what came instead. Nothing is ever converted to a temporary behind the caller's back.
template <typename T>
py::array_t<T, py::array::c_style> CheckedArray(const py::handle& value, const char* name,
                                                int ndim) {
  if (!py::isinstance<py::array>(value)) {
    throw TypeError(std::string(name) + " must be a numpy array, got " +
                    std::string(py::str(py::type::of(value).attr("__name__"))));
  }
  auto array = py::reinterpret_borrow<py::array>(value);
  if (!py::isinstance<py::array_t<T>>(value)) {
    throw TypeError(std::string(name) + " must have dtype " +
                    std::string(py::str(py::dtype::of<T>())) + ", got " +
                    std::string(py::str(array.dtype())));
  }
  if (array.ndim() != ndim) {
    throw ValueError(std::string(name) + " must have " + std::to_string(ndim) + " axes, got " +
                     std::to_string(array.ndim()));
  }
  if (!(array.flags() & py::array::c_style)) {
    throw ValueError(std::string(name) + " must be C-contiguous");
  }
  return py::reinterpret_borrow<py::array_t<T, py::array::c_style>>(value);
}

inline void CheckRange(const char* name, std::int64_t value, std::int64_t low, std::int64_t high) {
  if (value < low || value > high) {
    throw ValueError(std::string(name) + " must be in [" + std::to_string(low) + ", " +
                     std::to_string(high) + "], got " + std::to_string(value));
  }
}

}  // namespace mixcore
