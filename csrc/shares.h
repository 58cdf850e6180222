// Shares: 64-bit integers that sum to 2^62. What a float proposed is rounded here, once; nothing
// after it sees a float. Host only.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "portable.h"

namespace mixcore {

// Rounds the fractions `numerator[i] / denominator`, which sum to 2^62 up to rounding, to integers
// that sum to exactly 2^62: largest remainder, ties to the lower domain number. No positive
// numerator is rounded to a share of 0 (that would pause a domain silently); what it takes comes
// from the largest share, the lowest domain number on a tie.
inline std::vector<u64> RoundShares(const std::vector<u128>& numerator, u128 denominator) {
  const std::size_t n = numerator.size();
  std::vector<u64> share(n);
  std::vector<u128> rest(n);
  u64 sum = 0;
  for (std::size_t i = 0; i < n; ++i) {
    share[i] = static_cast<u64>(numerator[i] / denominator);
    rest[i] = numerator[i] - denominator * share[i];
    sum += share[i];
  }
  const std::size_t missing = kShareSum - sum;  // below n
  std::vector<u32> order(n);
  std::iota(order.begin(), order.end(), 0u);
  if (missing < n) {
    std::nth_element(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(missing),
                     order.end(),
                     [&](u32 x, u32 y) { return rest[x] != rest[y] ? rest[x] > rest[y] : x < y; });
  }
  for (std::size_t i = 0; i < missing; ++i) ++share[order[i]];
  const auto largest = std::max_element(share.begin(), share.end());
  for (std::size_t i = 0; i < n; ++i) {
    if (share[i] == 0 && numerator[i] > 0) {
      share[i] = 1;
      --*largest;
    }
  }
  return share;
}

// Shares in proportion to integer masses (each at most 2^62, at least one positive).
inline std::vector<u64> SharesOfMasses(const std::vector<u64>& mass) {
  u128 total = 0;
  for (const u64 m : mass) total += m;
  std::vector<u128> numerator(mass.size());
  for (std::size_t i = 0; i < mass.size(); ++i) numerator[i] = u128{mass[i]} << kShareBits;
  return RoundShares(numerator, total);
}

// Shares in proportion to weights: finite, non-negative, one positive (checked by the caller).
// The largest weight is scaled by a power of two to 62 bits, which is exact; the others are cut
// to integers on that scale.
inline std::vector<u64> SharesOfWeights(const double* weight, std::size_t n) {
  int exponent = 0;
  std::frexp(*std::max_element(weight, weight + n), &exponent);
  std::vector<u64> mass(n);
  for (std::size_t i = 0; i < n; ++i) {
    mass[i] = static_cast<u64>(std::ldexp(weight[i], kShareBits - exponent));
    if (mass[i] == 0 && weight[i] > 0) mass[i] = 1;
  }
  return SharesOfMasses(mass);
}

// The point `numerator / denominator` of the way from shares x to shares y, 0 <= numerator <=
// denominator <= 2^48.
inline std::vector<u64> SharesBetween(const std::vector<u64>& x, const std::vector<u64>& y,
                                      i64 numerator, i64 denominator) {
  std::vector<u128> mixed(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    mixed[i] = u128{x[i]} * static_cast<u64>(denominator - numerator) +
               u128{y[i]} * static_cast<u64>(numerator);
  }
  return RoundShares(mixed, static_cast<u128>(denominator));
}

// Adds `amount` (units of 2^-62 samples) to `target`, split in proportion to the shares; the
// rounding residue goes to the largest share, the lowest domain number on a tie.
inline void Apportion(const std::vector<u64>& share, i128 amount, std::vector<i128>* target) {
  const i128 whole = amount >> kShareBits;
  const i128 part = amount - (whole << kShareBits);  // 0 <= part < 2^62
  i128 given = 0;
  for (std::size_t i = 0; i < share.size(); ++i) {
    const i128 s = static_cast<i128>(share[i]);
    const i128 x = whole * s + ((part * s) >> kShareBits);
    (*target)[i] += x;
    given += x;
  }
  const auto largest = std::max_element(share.begin(), share.end()) - share.begin();
  (*target)[static_cast<std::size_t>(largest)] += amount - given;
}

}  // namespace mixcore
