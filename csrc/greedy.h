// Megatron's blending rule, bit-exact, without looking at every domain at every step.
//
//   error_d(i) = weight_d * max(i, 1) - count_d   [+ debt_d],   draw the largest, ties to the lowest d
//
// in doubles, each operation rounded on its own. Between two draws of a domain its error only rises,
// in rounded arithmetic too (rounding is monotone), so the error it would have at the last step of
// a block without being drawn bounds it from above over the whole block. Each list below keeps
// the domains of the list above it whose bound reaches a floor; a step is decided by the innermost
// list as long as the best error there is at or above the floor, and then no other domain can have
// won. When it falls below, the lists are built anew with a lower floor. All comparisons are
// between the same doubles as in the plain loop (greedy_plain.h), hence the same bytes.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

namespace mixcore {

// Which instructions the loops use; the results do not differ.
enum class Isa { kPlain, kAvx2, kAvx512 };
Isa BestIsa();

// Domains in ascending order, as columns; padded with lanes whose error is minus infinity.
struct GreedyList {
  std::vector<double> weight, count, debt;
  std::vector<std::int32_t> up;  // place in the list above (in the first list: the domain)
  std::vector<std::int32_t> domain;
  std::int32_t num = 0;
  double floor = -std::numeric_limits<double>::infinity();
  std::int64_t end = std::numeric_limits<std::int64_t>::max();  // good for steps before this one
  std::int64_t span = 0;  // steps to build for, adapted
  double slack = 0;       // how far below the best error the floor is put, adapted
};

class Greedy {
 public:
  // debts: nullptr for none. limits: draws after which a domain leaves; nullptr for none, and then
  // the caller must not run past their sum. Everything finite, weights not negative, num >= 1.
  Greedy(const double* weights, const double* debts, std::int32_t num,
         const std::int64_t* limits = nullptr, Isa isa = BestIsa());

  // Continue from step `i` with these counts (at most 2^52 each).
  void Seek(std::int64_t i, const std::int64_t* counts);

  // The next n draws; count_out is the domain's count before the draw. Either may be nullptr.
  void Run(std::int64_t n, std::int32_t* domain_out, std::int64_t* count_out);

  std::int64_t index() const { return i_; }
  const std::int64_t* counts() const { return counts_.data(); }

 private:
  void Refresh();
  bool Build(std::size_t level);
  void Thin(const GreedyList& from, GreedyList& to, std::int64_t steps);
  void Flush(std::size_t level);
  void Retire(std::int32_t domain);

  std::vector<GreedyList> lists_;  // all domains, then ever shorter lists for ever shorter spans
  std::vector<std::int64_t> counts_, limits_;
  std::vector<std::int32_t> scratch_domain_;
  std::vector<std::int64_t> scratch_count_;
  Isa isa_;
  bool has_debts_;
  std::int64_t i_ = 0;
  double last_best_ = std::numeric_limits<double>::infinity();
  double lowest_ = std::numeric_limits<double>::infinity();  // best errors since the last Build
};

}  // namespace mixcore
