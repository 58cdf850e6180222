// Megatron's blending rule, bit-exact, without looking at every domain at every step.
//
//   error_d(i) = weight_d * max(i, 1) - count_d   [+ debt_d],   draw the largest, ties to the
//   lowest d
//
// in doubles, each operation rounded on its own. Between two draws of a domain its error only
// rises, in rounded arithmetic too (rounding is monotone), so the error it would have at the last
// step of a block without being drawn bounds it from above over the whole block. Each list below
// keeps the domains of the list above it whose bound reaches a floor; a step is decided by the
// innermost list as long as the best error there is at or above the floor, and then no other domain
// can have won. When it falls below, the lists are built anew with a lower floor. All comparisons
// are between the same doubles as in the plain loop (greedy_plain.h), hence the same bytes.
//
// Domains with equal weights and debts would all tie and fill the lists. They take turns in order
// of their numbers, so each such group is one entry, a queue, down to the innermost list, which
// takes no more members of it than it has steps.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

namespace mixcore {

// Which instructions the loops use; the results do not differ.
enum class Isa { kPlain, kAvx2, kAvx512 };
Isa BestIsa();

// Candidates as columns, padded with lanes whose error is minus infinity. In the innermost list
// they are domains, in ascending order; in the others they are queues (see Greedy).
struct GreedyList {
  std::vector<double> weight, count, debt;
  std::vector<std::int32_t> up;  // place in the list above
  std::vector<std::int32_t> id;  // the domain or the queue
  std::int32_t num = 0;
  double floor = -std::numeric_limits<double>::infinity();
  std::int64_t end = std::numeric_limits<std::int64_t>::max();  // good for steps before this one
  std::int64_t span = 0;                                        // steps to build for, adapted
  double slack = 0;  // how far below the best error the floor is put, adapted
  double lowest = std::numeric_limits<double>::infinity();  // best error since it was built
  bool fell_short = false;  // the best error went below the floor before `end`
};

class Greedy {
 public:
  // debts: nullptr for none. limits: draws after which a domain leaves; nullptr for none, and then
  // the caller must not run past their sum. Everything finite, weights not negative, num >= 1.
  Greedy(const double* weights, const double* debts, std::int32_t num,
         const std::int64_t* limits = nullptr, Isa isa = BestIsa());

  // Continue from step `i` (at most 2^48) with these counts (likewise).
  void Seek(std::int64_t i, const std::int64_t* counts);

  // The next n draws; count_out is the domain's count before the draw. Either may be nullptr.
  void Run(std::int64_t n, std::int32_t* domain_out, std::int64_t* count_out);

  std::int64_t index() const { return i_; }
  const std::int64_t* counts() const { return counts_.data(); }

 private:
  // Domains that take turns: members[begin .. begin + size), ascending. Those before `next` have
  // been drawn count + 1 times, the others count times. Most queues have one member.
  struct Queue {
    std::int32_t begin, size, next;
    std::int64_t count;
  };

  void MakeQueues();
  void Refresh();
  bool Build(std::size_t level);
  void Expand(const GreedyList& sieved, GreedyList& leaf, std::int64_t steps);
  void Flush(std::size_t level);
  void FlushLeaf();
  double CountOf(std::int32_t domain) const;

  std::vector<GreedyList> lists_;  // everything, then ever shorter lists for ever shorter spans
  GreedyList sieved_;              // the innermost list before its queues are expanded
  std::vector<Queue> queues_;
  std::vector<std::int32_t> members_;
  std::vector<double> weights_, debts_;
  std::vector<std::int64_t> counts_, limits_;
  std::vector<std::int32_t> scratch_domain_;
  std::vector<std::int64_t> scratch_count_;
  Isa isa_;
  bool has_debts_;
  std::int64_t i_ = 0;
};

}  // namespace mixcore
