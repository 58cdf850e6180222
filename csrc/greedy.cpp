#include "greedy.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <tuple>

#include "greedy_kernels.h"

namespace mixcore {
namespace {

constexpr std::int64_t kChunk = 1024;  // draws at a time, the length of the scratch columns
constexpr std::int64_t kLeastSpan = 4;
// Members of a queue tie, and ties cost more in long lists.
constexpr std::int32_t kQueuedRoom = 32;
constexpr double kLeastSlack = 1e-12;
constexpr double kInf = std::numeric_limits<double>::infinity();

double Multiplier(std::int64_t i) { return static_cast<double>(std::max<std::int64_t>(i, 1)); }

void Reserve(GreedyList& list, std::int32_t num) {
  const auto size = static_cast<std::size_t>(num) + 2 * kGreedyPad;
  list.weight.assign(size, 0.0);
  list.count.assign(size, kInf);
  list.debt.assign(size, 0.0);
  list.up.assign(size, 0);
  list.id.assign(size, 0);
}

// Lanes behind the last domain: error -inf, so that whole vectors may be read.
void Pad(GreedyList& list) {
  for (std::int32_t k = list.num; k < list.num + kGreedyPad; ++k) {
    list.weight[k] = 0.0;
    list.count[k] = kInf;
    list.debt[k] = 0.0;
  }
}

void SortById(GreedyList& list) {
  std::vector<std::int32_t> order(static_cast<std::size_t>(list.num));
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(),
            [&](std::int32_t a, std::int32_t b) { return list.id[a] < list.id[b]; });
  const auto permute = [&](auto& column) {
    const auto old = column;
    for (std::int32_t k = 0; k < list.num; ++k) column[k] = old[order[k]];
  };
  permute(list.weight);
  permute(list.count);
  permute(list.debt);
  permute(list.up);
  permute(list.id);
}

// Lists below the first: each is some ten times shorter than the one above it.
int Sieves(std::int32_t num, std::int32_t room) {
  return num <= 16 * room ? 1 : num <= 512 * room ? 2 : 3;
}

}  // namespace

Greedy::Greedy(const double* weights, const double* debts, std::int32_t num,
               const std::int64_t* limits, Isa isa)
    : members_(static_cast<std::size_t>(num)),
      weights_(weights, weights + num),
      debts_(static_cast<std::size_t>(num), 0.0),
      counts_(static_cast<std::size_t>(num), 0),
      limits_(static_cast<std::size_t>(num), std::numeric_limits<std::int64_t>::max()),
      scratch_domain_(kChunk),
      scratch_count_(kChunk),
      isa_(isa),
      has_debts_(debts != nullptr) {
  if (has_debts_) std::copy(debts, debts + num, debts_.begin());
  if (limits != nullptr) std::copy(limits, limits + num, limits_.begin());
  Seek(0, counts_.data());
}

void Greedy::Seek(std::int64_t i, const std::int64_t* counts) {
  i_ = i;
  if (counts != counts_.data()) std::copy(counts, counts + counts_.size(), counts_.begin());
  const auto num = static_cast<std::int32_t>(counts_.size());
  const std::int32_t room = KernelsFor(isa_).room;
  queues_.clear();
  std::iota(members_.begin(), members_.end(), 0);
  if (num > room) {
    MakeQueues();
  } else {
    for (std::int32_t d = 0; d < num; ++d) queues_.push_back({d, 1, 0, counts_[d]});
  }
  const auto entries = static_cast<std::int32_t>(queues_.size());
  const int sieves = num <= room ? 0 : Sieves(entries, room);
  lists_.assign(static_cast<std::size_t>(sieves) + 1, GreedyList());
  for (GreedyList& list : lists_) Reserve(list, &list == &lists_.back() ? num : entries);
  GreedyList& all = lists_[0];
  all.num = entries;
  for (std::int32_t q = 0; q < entries; ++q) {
    const std::int32_t domain = members_[queues_[q].begin + queues_[q].next];
    all.weight[q] = weights_[domain];
    all.debt[q] = debts_[domain];
    all.count[q] = CountOf(domain);
    all.id[q] = q;
  }
  for (int l = 1; l <= sieves; ++l) {
    const double ratio = std::max(1.0, 2.0 * entries / room);
    const double power = static_cast<double>(sieves - l) / sieves;
    lists_[l].span =
        std::max<std::int64_t>(kLeastSpan, std::llround(room / 2 * std::pow(ratio, power)));
    lists_[l].slack = 0.25;
    lists_[l].end = i;
  }
  if (sieves > 0 && entries < num) Reserve(sieved_, entries);
}

// Group the domains that take turns. Those are the ones with equal weights, debts and limits, as
// long as one draw more always means a smaller error: not so where the numbers are so large that
// a double does not tell them apart. The counts must look like turns taken, too.
void Greedy::MakeQueues() {
  const auto key = [this](std::int32_t d) {
    return std::make_tuple(weights_[d], debts_[d], limits_[d]);
  };
  std::sort(members_.begin(), members_.end(), [&](std::int32_t a, std::int32_t b) {
    return std::tuple_cat(key(a), std::make_tuple(a)) < std::tuple_cat(key(b), std::make_tuple(b));
  });
  const auto num = static_cast<std::int32_t>(members_.size());
  for (std::int32_t begin = 0, end = 0; begin < num; begin = end) {
    const std::int32_t first = members_[begin];
    while (end < num && key(members_[end]) == key(first)) ++end;
    const std::int64_t count = counts_[members_[end - 1]];
    std::int32_t next = begin;
    while (counts_[members_[next]] == count + 1) ++next;
    bool turns = weights_[first] <= 1.0 && std::abs(debts_[first]) <= 0x1p40;
    for (std::int32_t m = next; m < end; ++m) turns &= counts_[members_[m]] == count;
    if (turns) {
      queues_.push_back({begin, end - begin, next - begin, count});
    } else {
      for (std::int32_t m = begin; m < end; ++m) {
        queues_.push_back({m, 1, 0, counts_[members_[m]]});
      }
    }
  }
  // In order of their first members, so that the innermost list is (nearly) in order of domains.
  std::sort(queues_.begin(), queues_.end(), [this](const Queue& a, const Queue& b) {
    return members_[a.begin] < members_[b.begin];
  });
}

// The count as the lists have it: a domain that has reached its limit never wins.
double Greedy::CountOf(std::int32_t domain) const {
  return counts_[domain] < limits_[domain] ? static_cast<double>(counts_[domain]) : kInf;
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
    leaf.lowest = std::min(leaf.lowest, block.lowest);
    const std::int32_t drawn = done > 0 ? block.domain_out[done - 1] : -1;
    if (drawn >= 0 && counts_[drawn] == limits_[drawn]) {
      const auto ids = leaf.id.begin();
      leaf.count[std::lower_bound(ids, ids + leaf.num, drawn) - ids] = kInf;
    } else if (done < block.steps) {
      leaf.end = i_ + done;
      leaf.fell_short = true;
      leaf.lowest = leaf.floor;
    }
    i_ += done;
    n -= done;
    if (domain_out != nullptr) domain_out += done;
    if (count_out != nullptr) count_out += done;
  }
}

// Hand the counts of a list on to the one above it.
void Greedy::Flush(std::size_t level) {
  if (level + 1 == lists_.size()) return FlushLeaf();
  const GreedyList& list = lists_[level];
  GreedyList& above = lists_[level - 1];
  for (std::int32_t k = 0; k < list.num; ++k) above.count[list.up[k]] = list.count[k];
  above.lowest = std::min(above.lowest, list.lowest);
}

// The same for the innermost list, from domains to queues: whose turn is it now?
void Greedy::FlushLeaf() {
  const GreedyList& leaf = lists_.back();
  GreedyList& above = lists_[lists_.size() - 2];
  for (std::int32_t k = 0; k < leaf.num; ++k) {
    const std::int32_t place = leaf.up[k];
    Queue& queue = queues_[above.id[place]];
    if (queue.size > 1) {
      while (counts_[members_[queue.begin + queue.next]] != queue.count) {
        if (++queue.next == queue.size) {
          queue.next = 0;
          ++queue.count;
        }
      }
    }
    above.count[place] = CountOf(members_[queue.begin + queue.next]);
  }
  above.lowest = std::min(above.lowest, leaf.lowest);
}

// The innermost list from its queues: of each the members that can have their turn in `steps`.
void Greedy::Expand(const GreedyList& sieved, GreedyList& leaf, std::int64_t steps) {
  leaf.num = 0;
  bool ascending = true;
  for (std::int32_t k = 0; k < sieved.num; ++k) {
    const Queue& queue = queues_[sieved.id[k]];
    const auto taken = static_cast<std::int32_t>(std::min<std::int64_t>(queue.size, steps));
    for (std::int32_t m = 0, turn = queue.next; m < taken; ++m, ++turn) {
      if (turn == queue.size) turn = 0;
      const std::int32_t place = leaf.num++;
      leaf.weight[place] = sieved.weight[k];
      leaf.debt[place] = sieved.debt[k];
      leaf.up[place] = sieved.up[k];
      leaf.id[place] = members_[queue.begin + turn];
      leaf.count[place] = CountOf(leaf.id[place]);
      ascending &= place == 0 || leaf.id[place - 1] < leaf.id[place];
    }
  }
  if (!ascending) SortById(leaf);
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
}

// Build list `level` for the steps from i_ on. False if the best error of the list above is below
// that list's own floor: then the list above must be built anew.
bool Greedy::Build(std::size_t level) {
  const GreedyKernels& kernels = KernelsFor(isa_);
  const GreedyList& from = lists_[level - 1];
  GreedyList& to = lists_[level];
  const bool innermost = level + 1 == lists_.size();
  const bool queued = innermost && queues_.size() < members_.size();
  // Short of the end about one time in ten is cheapest: a longer list costs at every step.
  if (to.fell_short) {
    to.slack *= 1.3;
  } else if (to.lowest - to.floor > 0.25 * to.slack) {
    to.slack = std::max(0.97 * to.slack, kLeastSlack);
  }
  to.fell_short = false;
  const std::int32_t room = queued ? std::min(kernels.room, kQueuedRoom) : kernels.room;
  const std::int32_t wanted = room - room / 8;
  // The best error swings from step to step (a large weight lifts it), its low points hardly do.
  double floor = to.lowest - to.slack;
  for (;;) {
    to.floor = std::max(from.floor, floor);
    to.end = std::min(from.end, i_ + to.span);
    GreedyList& out = queued ? sieved_ : to;
    out.floor = to.floor;
    const double best =
        kernels.sieve(from, out, Multiplier(i_), Multiplier(to.end - 1), has_debts_);
    if (best < from.floor) {
      lists_[level - 1].fell_short = true;
      lists_[level - 1].lowest = from.floor;
      to.num = 0;
      return false;
    }
    if (best < to.floor) {
      floor = best - to.slack;
      continue;
    }
    if (!innermost) break;
    if (queued) Expand(sieved_, to, to.end - i_);
    if (to.num > room) {
      if (best - to.slack > to.floor) {  // the last low point was an exceptional one
        floor = best - to.slack;
        continue;
      }
      if (to.span > kLeastSpan) {
        to.span = std::max(kLeastSpan, to.span / 2);
        to.slack = std::max(0.7 * to.slack, kLeastSlack);
        floor = best - to.slack;
        continue;
      }
    }
    if (to.num < wanted) to.span += to.span / 16 + 1;
    if (to.num > wanted) to.span -= to.span / 16;
    break;
  }
  Pad(to);
  to.lowest = kInf;
  return true;
}

}  // namespace mixcore
