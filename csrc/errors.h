// Exceptions for people: the binding turns each into the Python class of the same name
// (mixcore/errors.py). Below the binding nothing else is thrown on purpose.
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

}  // namespace mixcore
