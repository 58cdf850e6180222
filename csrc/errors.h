// Exceptions for people: the binding turns each into the Python class of the same name
// (mixcore/errors.py). Below the binding only std::logic_error is thrown besides, for a fault of
// this library itself; what the standard library throws (std::bad_alloc) passes through.
#pragma once

#include <stdexcept>
#include <string>

namespace mixcore {

struct ValueError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct TypeError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct LedgerError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct CapError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct DistanceError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct DeviceError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace mixcore
