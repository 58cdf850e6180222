// The two inner loops of greedy.cpp, written once per instruction set.
#pragma once

#include <cstdint>

#include "greedy.h"

namespace mixcore {

// Draws decided within one list.
struct GreedyBlock {
  GreedyList* list;
  std::int64_t first, steps;   // first >= 1, or steps == 1
  std::int64_t* counts;        // by domain, updated
  const std::int64_t* limits;  // by domain; the block ends after the draw that reaches one
  std::int32_t* domain_out;
  std::int64_t* count_out;
  double lowest, last;  // out: smallest and last best error
};

struct GreedyKernels {
  // Returns the draws made: fewer than `steps` if the best error fell below the list's floor (the
  // draw is not made) or a limit was reached (the draw is the last one made).
  std::int64_t (*draw)(GreedyBlock& block, bool debts);
  // Copy to `to` the domains of `from` whose error at multiplier `last` reaches to.floor; returns
  // the best error at multiplier `first` in `from`.
  double (*sieve)(const GreedyList& from, GreedyList& to, double first, double last, bool debts);
  std::int32_t room;  // the longest list that `draw` is quick on
};

const GreedyKernels& KernelsFor(Isa isa);

inline constexpr std::int32_t kGreedyPad = 8;  // lanes of the widest vector

}  // namespace mixcore
