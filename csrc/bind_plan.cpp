#include "bind.h"

namespace mixcore {
void BindPlan(py::module_&) {}
}  // namespace mixcore
