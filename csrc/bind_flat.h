// What the bindings of the kernels' bodies share: a flat segment from a numpy array, and the words
// for what may be tuned.
#pragma once

#include <cstring>
#include <string>

#include "bind.h"
#include "launch.h"

namespace mixcore {

// The first bytes of a flat segment.
inline FlatSegment HeadOf(const py::array_t<std::uint8_t, py::array::c_style>& flat) {
  FlatSegment segment;
  if (flat.size() < static_cast<py::ssize_t>(sizeof(segment))) {
    throw ValueError("this is no segment: it has " + std::to_string(flat.size()) + " bytes");
  }
  std::memcpy(&segment, flat.data(), sizeof(segment));
  return segment;
}

inline Tuning TuningOf(const std::string& strategy, int threads, i64 blocks, i64 shared) {
  CheckRange("threads", threads, 0, kMaxThreads);
  CheckRange("blocks", blocks, 0, (i64{1} << 31) - 1);
  CheckRange("shared", shared, 0, i64{1} << 30);
  Tuning tuning{Strategy::kAuto, threads, blocks, shared};
  if (strategy == "walk") tuning.strategy = Strategy::kWalk;
  if (strategy == "search") tuning.strategy = Strategy::kSearch;
  if (strategy == "slots") tuning.strategy = Strategy::kSlots;
  if (tuning.strategy == Strategy::kAuto && strategy != "auto") {
    throw ValueError("strategy must be 'auto', 'walk', 'search' or 'slots', got '" + strategy +
                     "'");
  }
  return tuning;
}

inline const char* NameOf(Strategy strategy) {
  return strategy == Strategy::kWalk     ? "walk"
         : strategy == Strategy::kSearch ? "search"
         : strategy == Strategy::kSlots  ? "slots"
                                         : "auto";
}

}  // namespace mixcore
