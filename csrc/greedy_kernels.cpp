#include "greedy_kernels.h"

#include <algorithm>

#if defined(__x86_64__) && defined(__GNUC__)
#define MIXCORE_X86 1
#include "greedy_x86.h"
#endif

namespace mixcore {
namespace {

// ---- any machine ----

inline double Error(const GreedyList& list, std::int32_t k, double drawn) {
  return list.weight[k] * drawn - list.count[k] + list.debt[k];
}

std::int64_t DrawPlain(GreedyBlock& b, bool) {
  GreedyList& list = *b.list;
  double drawn = static_cast<double>(std::max<std::int64_t>(b.first, 1));
  for (std::int64_t t = 0; t < b.steps; ++t, drawn += 1.0) {
    std::int32_t place = 0;
    double best = Error(list, 0, drawn);
    for (std::int32_t k = 1; k < list.num; ++k) {
      const double error = Error(list, k, drawn);
      place = error > best ? k : place;
      best = std::max(best, error);
    }
    if (best < list.floor) return t;
    b.lowest = std::min(b.lowest, best);
    list.count[place] += 1.0;
    if (Book(b, t, place)) return t + 1;
  }
  return b.steps;
}

double SievePlain(const GreedyList& from, GreedyList& to, double first, double last, bool) {
  double best = -kGreedyInf;
  to.num = 0;
  for (std::int32_t k = 0; k < from.num; ++k) {
    best = std::max(best, Error(from, k, first));
    if (Error(from, k, last) >= to.floor) Keep(from, to, k);
  }
  return best;
}

constexpr GreedyKernels kPlainKernels{DrawPlain, SievePlain, 24};
#ifdef MIXCORE_X86
constexpr GreedyKernels kAvx2Kernels{DrawAny256, Sieve256, 24};
constexpr GreedyKernels kAvx512Kernels{DrawAny512, SieveAny512, 64};
#endif

}  // namespace

Isa BestIsa() {
#ifdef MIXCORE_X86
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    return Isa::kAvx512;
  }
  if (__builtin_cpu_supports("avx2")) return Isa::kAvx2;
#endif
  return Isa::kPlain;
}

const GreedyKernels& KernelsFor(Isa isa) {
#ifdef MIXCORE_X86
  if (isa == Isa::kAvx512) return kAvx512Kernels;
  if (isa == Isa::kAvx2) return kAvx2Kernels;
#endif
  (void)isa;
  return kPlainKernels;
}

}  // namespace mixcore
