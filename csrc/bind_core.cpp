// The module `mixcore._core`: one table of functions per bind_*.cpp.
#include "bind.h"

PYBIND11_MODULE(_core, m, pybind11::mod_gil_not_used()) {
  m.doc() =
      "Native core of mixcore: positions to (domain, draw, epoch, sample), and Megatron's arrays.";
  mixcore::TranslateErrors();
#if defined(MIXCORE_SANITIZE)
  m.attr("sanitized") = true;
#else
  m.attr("sanitized") = false;
#endif
  m.attr("sources") = MIXCORE_SOURCES;
  mixcore::BindGrid(m);
  mixcore::BindMegatron(m);
  mixcore::BindPlan(m);
}
