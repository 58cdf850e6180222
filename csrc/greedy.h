// placeholder until the fast one lands
#pragma once
#include <algorithm>
#include <vector>

#include "portable.h"
namespace mixcore {
class Greedy {
 public:
  Greedy(const double* w, const double* debt, i32 n) : w_(w, w + n), c_(n, 0) {
    if (debt) debt_.assign(debt, debt + n);
  }
  void Seek(i64 i, const i64* counts) {
    i_ = i;
    std::copy(counts, counts + c_.size(), c_.begin());
  }
  void Run(i64 n, i32* domain, i64* count) {
    for (i64 k = 0; k < n; ++k, ++i_) {
      const double m = i_ > 1 ? static_cast<double>(i_) : 1.0;
      std::size_t best = 0;
      double top = 0;
      for (std::size_t d = 0; d < c_.size(); ++d) {
        double e = w_[d] * m - static_cast<double>(c_[d]);
        if (!debt_.empty()) e += debt_[d];
        if (d == 0 || e > top) {
          top = e;
          best = d;
        }
      }
      if (domain) domain[k] = static_cast<i32>(best);
      if (count) count[k] = c_[best];
      ++c_[best];
    }
  }
  i64 index() const { return i_; }
  const i64* counts() const { return c_.data(); }

 private:
  std::vector<double> w_, debt_;
  std::vector<i64> c_;
  i64 i_ = 0;
};
}  // namespace mixcore
