#include "bind.h"

namespace mixcore {
void BindMegatron(py::module_&) {}
}  // namespace mixcore
