// New numpy arrays for the fields that were asked for.
#pragma once

#include <type_traits>

#include "bind.h"
#include "blend.h"

namespace mixcore {

// mask: bit 0 domain, 1 draw, 2 epoch, 3 sample; None stands for the others.
struct Answer {
  py::object arrays[4] = {py::none(), py::none(), py::none(), py::none()};
  Fields fields;

  Answer(i64 count, int mask) {
    const auto make = [&](int index, auto*& pointer) {
      if (!(mask >> index & 1)) return;
      using T = std::remove_reference_t<decltype(*pointer)>;
      py::array_t<T, py::array::c_style> array(count);
      pointer = array.mutable_data();
      arrays[index] = std::move(array);
    };
    make(0, fields.domain);
    make(1, fields.draw);
    make(2, fields.epoch);
    make(3, fields.sample);
  }
  py::tuple Tuple() const { return py::make_tuple(arrays[0], arrays[1], arrays[2], arrays[3]); }
};

}  // namespace mixcore
