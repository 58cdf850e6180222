// The module `mixcore._core`: error translation here, one table of functions per bind_*.cpp.
#include "bind.h"

namespace {

void Raise(const char* name, const char* what) {
  namespace py = pybind11;
  const py::object cls = py::module_::import("mixcore.errors").attr(name);
  PyErr_SetString(cls.ptr(), what);
}

}  // namespace

PYBIND11_MODULE(_core, m, pybind11::mod_gil_not_used()) {
  m.doc() =
      "Native core of mixcore: positions to (domain, draw, epoch, sample), and Megatron's arrays.";
  pybind11::register_local_exception_translator([](std::exception_ptr p) {
    try {
      std::rethrow_exception(p);
    } catch (const mixcore::ValueError& e) {
      Raise("ArgumentError", e.what());
    } catch (const mixcore::TypeError& e) {
      Raise("ArgumentTypeError", e.what());
    } catch (const mixcore::LedgerError& e) {
      Raise("LedgerError", e.what());
    } catch (const mixcore::CapError& e) {
      Raise("CapError", e.what());
    } catch (const mixcore::DistanceError& e) {
      Raise("DistanceError", e.what());
    }
  });
#if defined(MIXCORE_SANITIZE)
  m.attr("sanitized") = true;
#else
  m.attr("sanitized") = false;
#endif
  mixcore::BindMegatron(m);
  mixcore::BindPlan(m);
}
