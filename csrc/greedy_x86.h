// The kernels of greedy_kernels.h for x86: AVX2, and AVX-512 with its doubled registers. Each
// function names its instruction set; which is used is decided at run time. Included by one file
// only.
#pragma once

// GCC 12 takes "undefined" operands inside its own AVX-512 header for a mistake (its bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#include "greedy_kernels.h"

namespace mixcore {
namespace {

// ---- AVX2 ----

#define MIXCORE_AVX2 __attribute__((target("avx2,bmi,popcnt")))

MIXCORE_AVX2 inline __m256d AllMax(__m256d x) {
  x = _mm256_max_pd(x, _mm256_permute2f128_pd(x, x, 1));
  return _mm256_max_pd(x, _mm256_permute_pd(x, 5));
}

// V vectors hold the whole list, counts in registers: a step waits only for the last step's draw.
template <int V, bool kDebts>
MIXCORE_AVX2 __attribute__((always_inline)) inline std::int64_t Body256(GreedyBlock& b) {
  GreedyList& list = *b.list;
  __m256d count[V], error[V], best[V], hit[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) count[v] = _mm256_loadu_pd(&list.count[4 * v]);
  const __m256d one = _mm256_set1_pd(1.0);
  __m256d drawn = _mm256_set1_pd(static_cast<double>(std::max<std::int64_t>(b.first, 1)));
  const double floor = list.floor;
  double lowest = b.lowest;
  std::int64_t t = 0;
  for (bool spent = false; t < b.steps && !spent; ++t) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const __m256d product = _mm256_mul_pd(_mm256_loadu_pd(&list.weight[4 * v]), drawn);
      error[v] = _mm256_sub_pd(product, count[v]);
      if (kDebts) error[v] = _mm256_add_pd(error[v], _mm256_loadu_pd(&list.debt[4 * v]));
      best[v] = error[v];
    }
#pragma GCC unroll 3
    for (int half = 4; half >= 1; half /= 2) {
#pragma GCC unroll 4
      for (int v = 0; v < half; ++v) {
        if (v + half < V) best[v] = _mm256_max_pd(best[v], best[v + half]);
      }
    }
    const __m256d all = AllMax(best[0]);
    unsigned bits = 0;
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      hit[v] = _mm256_cmp_pd(error[v], all, _CMP_EQ_OQ);
      bits |= static_cast<unsigned>(_mm256_movemask_pd(hit[v])) << (4 * v);
    }
    const double top = _mm256_cvtsd_f64(all);
    if (top < floor) break;
    lowest = std::min(lowest, top);
    const int place = __builtin_ctz(bits);
    if (__builtin_expect((bits & (bits - 1)) != 0, 0)) {  // a tie: the lowest domain
      __m256i lane = _mm256_setr_epi64x(0, 1, 2, 3);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        hit[v] = _mm256_castsi256_pd(_mm256_cmpeq_epi64(lane, _mm256_set1_epi64x(place)));
        lane = _mm256_add_epi64(lane, _mm256_set1_epi64x(4));
      }
    }
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) count[v] = _mm256_add_pd(count[v], _mm256_and_pd(hit[v], one));
    drawn = _mm256_add_pd(drawn, one);
    spent = Book(b, t, place);
  }
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) _mm256_storeu_pd(&list.count[4 * v], count[v]);
  b.lowest = lowest;
  return t;
}

template <int V, bool kDebts>
MIXCORE_AVX2 std::int64_t Draw256(GreedyBlock& b) {
  return Body256<V, kDebts>(b);
}

MIXCORE_AVX2 inline __m256d Errors256(const GreedyList& list, std::int32_t k, __m256d drawn) {
  const __m256d product = _mm256_mul_pd(_mm256_loadu_pd(&list.weight[k]), drawn);
  const __m256d error = _mm256_sub_pd(product, _mm256_loadu_pd(&list.count[k]));
  return _mm256_add_pd(error, _mm256_loadu_pd(&list.debt[k]));
}

MIXCORE_AVX2 std::int64_t DrawLong256(GreedyBlock& b) {
  GreedyList& list = *b.list;
  double drawn = static_cast<double>(std::max<std::int64_t>(b.first, 1));
  for (std::int64_t t = 0; t < b.steps; ++t, drawn += 1.0) {
    const __m256d multiplier = _mm256_set1_pd(drawn);
    __m256d best = _mm256_set1_pd(-kGreedyInf), other = best;
    for (std::int32_t k = 0; k < list.num; k += 8) {  // the padding makes eights of every list
      best = _mm256_max_pd(best, Errors256(list, k, multiplier));
      other = _mm256_max_pd(other, Errors256(list, k + 4, multiplier));
    }
    best = AllMax(_mm256_max_pd(best, other));
    const double top = _mm256_cvtsd_f64(best);
    if (top < list.floor) return t;
    b.lowest = std::min(b.lowest, top);
    int bits = 0;
    std::int32_t k = 0;
    for (; bits == 0; k += 4) {
      const __m256d error = Errors256(list, k, multiplier);
      bits = _mm256_movemask_pd(_mm256_cmp_pd(error, best, _CMP_EQ_OQ));
    }
    const std::int32_t place = k - 4 + __builtin_ctz(static_cast<unsigned>(bits));
    list.count[place] += 1.0;
    if (Book(b, t, place)) return t + 1;
  }
  return b.steps;
}

template <bool kDebts>
std::int64_t DrawShort256(GreedyBlock& b) {
  switch ((b.list->num + 3) / 4) {
    case 0:
    case 1:
      return Draw256<1, kDebts>(b);
    case 2:
      return Draw256<2, kDebts>(b);
    case 3:
      return Draw256<3, kDebts>(b);
    case 4:
      return Draw256<4, kDebts>(b);
    case 5:
      return Draw256<5, kDebts>(b);
    case 6:
      return Draw256<6, kDebts>(b);
    case 7:
      return Draw256<7, kDebts>(b);
    case 8:
      return Draw256<8, kDebts>(b);
    default:
      return DrawLong256(b);
  }
}

std::int64_t DrawAny256(GreedyBlock& b, bool debts) {
  return debts ? DrawShort256<true>(b) : DrawShort256<false>(b);
}

MIXCORE_AVX2 double Sieve256(const GreedyList& from, GreedyList& to, double first, double last,
                             bool) {
  const __m256d m0 = _mm256_set1_pd(first), m1 = _mm256_set1_pd(last);
  const __m256d floor = _mm256_set1_pd(to.floor);
  __m256d best = _mm256_set1_pd(-kGreedyInf);
  to.num = 0;
  for (std::int32_t k = 0; k < from.num; k += 4) {
    best = _mm256_max_pd(best, Errors256(from, k, m0));
    const __m256d kept = _mm256_cmp_pd(Errors256(from, k, m1), floor, _CMP_GE_OQ);
    for (int bits = _mm256_movemask_pd(kept); bits != 0; bits &= bits - 1) {
      Keep(from, to, k + __builtin_ctz(static_cast<unsigned>(bits)));
    }
  }
  return _mm256_cvtsd_f64(AllMax(best));
}

// ---- AVX-512 ----

#define MIXCORE_AVX512 __attribute__((target("avx512f,avx512dq,avx512vl,bmi,popcnt")))

MIXCORE_AVX512 inline __m512d AllMax(__m512d x) {
  x = _mm512_max_pd(x, _mm512_shuffle_f64x2(x, x, 0x4E));
  x = _mm512_max_pd(x, _mm512_permutex_pd(x, 0x4E));
  return _mm512_max_pd(x, _mm512_permute_pd(x, 0x55));
}

// The same as Draw256, with more registers for it.
template <int V, bool kDebts>
MIXCORE_AVX512 std::int64_t Draw256On512(GreedyBlock& b) {
  return Body256<V, kDebts>(b);
}

// Vectors of eight: slower for lists that fit in eight vectors of four.
template <int V, bool kDebts>
MIXCORE_AVX512 std::int64_t Draw512(GreedyBlock& b) {
  GreedyList& list = *b.list;
  __m512d weight[V], count[V], debt[V], error[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) {
    weight[v] = _mm512_loadu_pd(&list.weight[8 * v]);
    count[v] = _mm512_loadu_pd(&list.count[8 * v]);
    if (kDebts) debt[v] = _mm512_loadu_pd(&list.debt[8 * v]);
  }
  const __m512d one = _mm512_set1_pd(1.0);
  __m512d drawn = _mm512_set1_pd(static_cast<double>(std::max<std::int64_t>(b.first, 1)));
  const double floor = list.floor;
  double lowest = b.lowest;
  std::int64_t t = 0;
  for (bool spent = false; t < b.steps && !spent; ++t) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      error[v] = _mm512_sub_pd(_mm512_mul_pd(weight[v], drawn), count[v]);
      if (kDebts) error[v] = _mm512_add_pd(error[v], debt[v]);
    }
    __m512d best[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) best[v] = error[v];
#pragma GCC unroll 3
    for (int half = 4; half >= 1; half /= 2) {
#pragma GCC unroll 4
      for (int v = 0; v < half; ++v) {
        if (v + half < V) best[v] = _mm512_max_pd(best[v], best[v + half]);
      }
    }
    const __m512d all = AllMax(best[0]);
    __mmask8 hit[V];
    std::uint64_t bits = 0;
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      hit[v] = _mm512_cmp_pd_mask(error[v], all, _CMP_EQ_OQ);
      bits |= static_cast<std::uint64_t>(hit[v]) << (8 * v);
    }
    const double top = _mm512_cvtsd_f64(all);
    if (top < floor) break;
    lowest = std::min(lowest, top);
    if (__builtin_expect((bits & (bits - 1)) != 0, 0)) {  // a tie: the lowest domain
      bits &= ~bits + 1;
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        const auto mask = static_cast<__mmask8>(bits >> (8 * v));
        count[v] = _mm512_mask_add_pd(count[v], mask, count[v], one);
      }
      // Keeps the compiler from merging this branch with the next, which would send the masks of
      // the usual case through general registers and back, on the path that every step waits for.
      asm volatile("" ::: "memory");
    } else {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) count[v] = _mm512_mask_add_pd(count[v], hit[v], count[v], one);
    }
    drawn = _mm512_add_pd(drawn, one);
    spent = Book(b, t, static_cast<std::int32_t>(__builtin_ctzll(bits)));
  }
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) _mm512_storeu_pd(&list.count[8 * v], count[v]);
  b.lowest = lowest;
  return t;
}

// Any length, counts in memory.
MIXCORE_AVX512 std::int64_t DrawLong512(GreedyBlock& b) {
  GreedyList& list = *b.list;
  const std::int32_t num = (list.num + 7) / 8 * 8;
  double drawn = static_cast<double>(std::max<std::int64_t>(b.first, 1));
  const auto errors = [&](std::int32_t k, __m512d multiplier) MIXCORE_AVX512 {
    const __m512d product = _mm512_mul_pd(_mm512_loadu_pd(&list.weight[k]), multiplier);
    const __m512d error = _mm512_sub_pd(product, _mm512_loadu_pd(&list.count[k]));
    return _mm512_add_pd(error, _mm512_loadu_pd(&list.debt[k]));
  };
  for (std::int64_t t = 0; t < b.steps; ++t, drawn += 1.0) {
    const __m512d multiplier = _mm512_set1_pd(drawn);
    __m512d best = _mm512_set1_pd(-kGreedyInf), other = best;
    std::int32_t k = 0;
    for (; k + 16 <= num; k += 16) {
      best = _mm512_max_pd(best, errors(k, multiplier));
      other = _mm512_max_pd(other, errors(k + 8, multiplier));
    }
    if (k < num) best = _mm512_max_pd(best, errors(k, multiplier));
    best = AllMax(_mm512_max_pd(best, other));
    const double top = _mm512_cvtsd_f64(best);
    if (top < list.floor) return t;
    b.lowest = std::min(b.lowest, top);
    unsigned bits = 0;
    for (k = 0; bits == 0; k += 8) {
      bits = _mm512_cmp_pd_mask(errors(k, multiplier), best, _CMP_EQ_OQ);
    }
    const std::int32_t place = k - 8 + __builtin_ctz(bits);
    list.count[place] += 1.0;
    if (Book(b, t, place)) return t + 1;
  }
  return b.steps;
}

template <bool kDebts>
std::int64_t DrawShort512(GreedyBlock& b) {
  switch ((b.list->num + 3) / 4) {
    case 0:
    case 1:
      return Draw256On512<1, kDebts>(b);
    case 2:
      return Draw256On512<2, kDebts>(b);
    case 3:
      return Draw256On512<3, kDebts>(b);
    case 4:
      return Draw256On512<4, kDebts>(b);
    case 5:
      return Draw256On512<5, kDebts>(b);
    case 6:
      return Draw256On512<6, kDebts>(b);
    case 7:
      return Draw256On512<7, kDebts>(b);
    case 8:
      return Draw256On512<8, kDebts>(b);
    case 9:
    case 10:
      return Draw512<5, kDebts>(b);
    case 11:
    case 12:
      return Draw512<6, kDebts>(b);
    case 13:
    case 14:
      return Draw512<7, kDebts>(b);
    case 15:
    case 16:
      return Draw512<8, kDebts>(b);
    default:
      return DrawLong512(b);
  }
}

std::int64_t DrawAny512(GreedyBlock& b, bool debts) {
  return debts ? DrawShort512<true>(b) : DrawShort512<false>(b);
}

template <bool kDebts>
MIXCORE_AVX512 double Sieve512(const GreedyList& from, GreedyList& to, double first, double last) {
  const __m512d m0 = _mm512_set1_pd(first), m1 = _mm512_set1_pd(last);
  const __m512d floor = _mm512_set1_pd(to.floor);
  __m512d best = _mm512_set1_pd(-kGreedyInf);
  __m256i place = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  std::int32_t num = 0;
  for (std::int32_t k = 0; k < from.num; k += 8) {
    const __m512d weight = _mm512_loadu_pd(&from.weight[k]);
    const __m512d count = _mm512_loadu_pd(&from.count[k]);
    __m512d early = _mm512_sub_pd(_mm512_mul_pd(weight, m0), count);
    __m512d late = _mm512_sub_pd(_mm512_mul_pd(weight, m1), count);
    __m512d debt;
    if (kDebts) {
      debt = _mm512_loadu_pd(&from.debt[k]);
      early = _mm512_add_pd(early, debt);
      late = _mm512_add_pd(late, debt);
    }
    best = _mm512_max_pd(best, early);
    const __mmask8 kept = _mm512_cmp_pd_mask(late, floor, _CMP_GE_OQ);
    _mm512_storeu_pd(&to.weight[num], _mm512_maskz_compress_pd(kept, weight));
    _mm512_storeu_pd(&to.count[num], _mm512_maskz_compress_pd(kept, count));
    if (kDebts) _mm512_storeu_pd(&to.debt[num], _mm512_maskz_compress_pd(kept, debt));
    const __m256i id = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(&from.id[k]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(&to.up[num]),
                        _mm256_maskz_compress_epi32(kept, place));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(&to.id[num]),
                        _mm256_maskz_compress_epi32(kept, id));
    place = _mm256_add_epi32(place, _mm256_set1_epi32(8));
    num += __builtin_popcount(kept);
  }
  to.num = num;
  return _mm512_cvtsd_f64(AllMax(best));
}

double SieveAny512(const GreedyList& from, GreedyList& to, double first, double last, bool debts) {
  return debts ? Sieve512<true>(from, to, first, last) : Sieve512<false>(from, to, first, last);
}

}  // namespace
}  // namespace mixcore
