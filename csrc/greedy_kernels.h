// The two inner loops of greedy.cpp, written once per instruction set.
#pragma once

#include <cstdint>
#include <limits>

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
  double lowest;  // out: the smallest best error of a draw
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
inline constexpr double kGreedyInf = std::numeric_limits<double>::infinity();

// Book the draw of list place `k` at step t of the block; true if that was the domain's last one.
inline bool Book(GreedyBlock& b, std::int64_t t, std::int32_t k) {
  const std::int32_t domain = b.list->id[k];
  b.domain_out[t] = domain;
  const std::int64_t count = b.counts[domain]++;
  b.count_out[t] = count;
  return count + 1 == b.limits[domain];
}

// Append place `k` of one list to another.
inline void Keep(const GreedyList& from, GreedyList& to, std::int32_t k) {
  const std::int32_t place = to.num++;
  to.weight[place] = from.weight[k];
  to.count[place] = from.count[k];
  to.debt[place] = from.debt[k];
  to.up[place] = k;
  to.id[place] = from.id[k];
}

}  // namespace mixcore
