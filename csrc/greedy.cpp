#include "greedy.h"

#include <algorithm>
#include <cmath>

#include "greedy_kernels.h"

namespace mixcore {
namespace {

constexpr std::int64_t kChunk = 1024;  // draws at a time, the length of the scratch columns
constexpr double kLeastSlack = 1e-12;
constexpr double kInf = std::numeric_limits<double>::infinity();

double Multiplier(std::int64_t i) { return static_cast<double>(std::max<std::int64_t>(i, 1)); }

void Reserve(GreedyList& list, std::int32_t num) {
  const auto size = static_cast<std::size_t>(num) + 2 * kGreedyPad;
  list.weight.assign(size, 0.0);
  list.count.assign(size, kInf);
  list.debt.assign(size, 0.0);
  list.up.assign(size, 0);
  list.domain.assign(size, 0);
}

// Lanes behind the last domain: error -inf, so that whole vectors may be read.
void Pad(GreedyList& list) {
  for (std::int32_t k = list.num; k < list.num + kGreedyPad; ++k) {
    list.weight[k] = 0.0;
    list.count[k] = kInf;
    list.debt[k] = 0.0;
  }
}

// Numbers of the lists below the first: none where the first is short enough to scan, and one more
// for every factor of about thirty, so that a list is some ten times the next.
int Sieves(std::int32_t num, std::int32_t room) {
  return num <= room ? 0 : num <= 8 * room ? 1 : num <= 256 * room ? 2 : 3;
}

}  // namespace

Greedy::Greedy(const double* weights, const double* debts, std::int32_t num,
               const std::int64_t* limits, Isa isa)
    : counts_(static_cast<std::size_t>(num), 0),
      limits_(static_cast<std::size_t>(num), std::numeric_limits<std::int64_t>::max()),
      scratch_domain_(kChunk),
      scratch_count_(kChunk),
      isa_(isa),
      has_debts_(debts != nullptr) {
  if (limits != nullptr) std::copy(limits, limits + num, limits_.begin());
  const std::int32_t room = KernelsFor(isa_).room;
  const int sieves = Sieves(num, room);
  lists_.resize(static_cast<std::size_t>(sieves) + 1);
  for (GreedyList& list : lists_) Reserve(list, num);
  GreedyList& all = lists_[0];
  all.num = num;
  std::copy(weights, weights + num, all.weight.begin());
  if (has_debts_) std::copy(debts, debts + num, all.debt.begin());
  for (std::int32_t d = 0; d < num; ++d) all.up[d] = all.domain[d] = d;
  for (int l = 1; l <= sieves; ++l) {
    const double ratio = 2.0 * num / room;
    const double power = static_cast<double>(sieves - l) / sieves;
    lists_[l].span = std::max<std::int64_t>(4, std::llround(room / 2 * std::pow(ratio, power)));
    lists_[l].slack = 0.25;
  }
  Seek(0, counts_.data());
}

void Greedy::Seek(std::int64_t i, const std::int64_t* counts) {
  i_ = i;
  if (counts != counts_.data()) std::copy(counts, counts + counts_.size(), counts_.begin());
  for (std::size_t d = 0; d < counts_.size(); ++d) {
    const bool spent = counts_[d] >= limits_[d];
    lists_[0].count[d] = spent ? kInf : static_cast<double>(counts_[d]);
  }
  for (std::size_t l = 1; l < lists_.size(); ++l) {
    lists_[l].num = 0;
    lists_[l].end = i;
  }
  last_best_ = lowest_ = kInf;
}

void Greedy::Run(std::int64_t n, std::int32_t* domain_out, std::int64_t* count_out) {
  const GreedyKernels& kernels = KernelsFor(isa_);
  GreedyList& leaf = lists_.back();
  while (n > 0) {
    if (i_ >= leaf.end) Refresh();
    GreedyBlock block{};
    block.list = &leaf;
    block.first = i_;
    // Steps 0 and 1 share the multiplier 1; a block's multipliers are consecutive.
    block.steps = i_ == 0 ? 1 : std::min({n, kChunk, leaf.end - i_});
    block.counts = counts_.data();
    block.limits = limits_.data();
    block.domain_out = domain_out != nullptr ? domain_out : scratch_domain_.data();
    block.count_out = count_out != nullptr ? count_out : scratch_count_.data();
    block.lowest = kInf;
    const std::int64_t done = kernels.draw(block, has_debts_);
    last_best_ = block.last;
    lowest_ = std::min(lowest_, block.lowest);
    const std::int32_t drawn = done > 0 ? block.domain_out[done - 1] : -1;
    if (drawn >= 0 && counts_[drawn] == limits_[drawn]) {
      Retire(drawn);
    } else if (done < block.steps) {
      leaf.end = i_ + done;
    }
    i_ += done;
    n -= done;
    if (domain_out != nullptr) domain_out += done;
    if (count_out != nullptr) count_out += done;
  }
}

// Take a domain out of the running in every list that has it.
void Greedy::Retire(std::int32_t domain) {
  for (GreedyList& list : lists_) {
    const auto stop = list.domain.begin() + list.num;
    const auto place = std::lower_bound(list.domain.begin(), stop, domain);
    if (place != stop && *place == domain) list.count[place - list.domain.begin()] = kInf;
  }
}

// Hand the counts of a list on to the one above it.
void Greedy::Flush(std::size_t level) {
  const GreedyList& list = lists_[level];
  GreedyList& above = lists_[level - 1];
  for (std::int32_t k = 0; k < list.num; ++k) above.count[list.up[k]] = list.count[k];
}

void Greedy::Refresh() {
  const std::size_t last = lists_.size() - 1;
  std::size_t level = last;
  while (level > 1 && lists_[level - 1].end <= i_) --level;
  for (std::size_t l = last; l >= level; --l) Flush(l);
  while (level <= last) {
    if (Build(level)) {
      ++level;
    } else {
      --level;
      Flush(level);
    }
  }
  lowest_ = kInf;
}

// Build list `level` for the steps from i_ on. False if the best error of the list above is below
// that list's own floor: then the list above must be built anew.
bool Greedy::Build(std::size_t level) {
  const GreedyKernels& kernels = KernelsFor(isa_);
  const GreedyList& from = lists_[level - 1];
  GreedyList& to = lists_[level];
  const bool innermost = level + 1 == lists_.size();
  if (innermost && to.num > 0) {
    const double margin = lowest_ - to.floor;
    if (margin < 0) {
      to.slack *= 1.3;
    } else if (margin > 0.3 * to.slack) {
      to.slack = std::max(0.9 * to.slack, kLeastSlack);
    }
  }
  double floor = last_best_ - to.slack;
  for (;;) {
    to.floor = std::max(from.floor, floor);
    to.end = std::min(from.end, i_ + to.span);
    const double best =
        kernels.sieve(from, to, Multiplier(i_), Multiplier(to.end - 1), has_debts_);
    if (best < from.floor) {
      last_best_ = best;
      lists_[level - 1].slack *= 1.3;
      to.num = 0;
      return false;
    }
    if (best < to.floor) {
      floor = best - to.slack;
      continue;
    }
    if (!innermost) break;
    if (to.num > kernels.room && to.span > 4) {
      to.span /= 2;
      to.slack = std::max(to.slack / 2, kLeastSlack);
      floor = best - to.slack;
      continue;
    }
    if (to.num < kernels.room - kernels.room / 4) to.span += to.span / 8 + 1;
    break;
  }
  Pad(to);
  return true;
}

}  // namespace mixcore
