// The network of permute.h over a whole range, once per instruction set: integers, so every set
// gives the same bytes, and the best one that the machine has is chosen at run time.
#include "permute_table.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(MIXCORE_SANITIZE)
#define MIXCORE_DISPATCH 1
#endif

namespace mixcore {
namespace {

// One row of the square: hi is fixed, lo runs over [0, a). Inlined into each caller below, where
// the compiler vectorises it for that caller's instruction set.
template <i32 kRounds>
__attribute__((always_inline)) inline void Row(const Radix& radix, const RoundKeys& keys, u32 hi0,
                                               u32 length, u32* out) {
  const u32 a = radix.a, b = radix.b;
  for (u32 lo0 = 0; lo0 < length; ++lo0) {
    u32 hi = hi0, lo = lo0;
    RoundKeys k = keys;
#pragma GCC unroll 24
    for (i32 i = 0; i < kRounds; i += 2) {
      lo = AddMod(lo, RoundHash(hi, k.even, a), a);
      hi = AddMod(hi, RoundHash(lo, k.odd, b), b);
      k.even += k.even_step;
      k.odd += k.odd_step;
    }
    out[lo0] = hi * a + lo;
  }
}

__attribute__((always_inline)) inline void Rows(const Radix& radix, const RoundKeys& keys,
                                                u32* out) {
  for (u32 hi = 0; hi < radix.b; ++hi, out += radix.a) {
    switch (radix.rounds) {
      case 24:
        Row<24>(radix, keys, hi, radix.a, out);
        break;
      case 8:
        Row<8>(radix, keys, hi, radix.a, out);
        break;
      default:
        Row<6>(radix, keys, hi, radix.a, out);
        break;
    }
  }
}

void RowsPlain(const Radix& radix, const RoundKeys& keys, u32* out) { Rows(radix, keys, out); }

#if MIXCORE_DISPATCH
__attribute__((target("avx2"))) void RowsAvx2(const Radix& radix, const RoundKeys& keys, u32* out) {
  Rows(radix, keys, out);
}
__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,prefer-vector-width=512"))) void
RowsAvx512(const Radix& radix, const RoundKeys& keys, u32* out) {
  Rows(radix, keys, out);
}
#endif

using RowsFunction = void (*)(const Radix&, const RoundKeys&, u32*);

RowsFunction Choose() {
#if MIXCORE_DISPATCH
  if (__builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw")) {
    return RowsAvx512;
  }
  if (__builtin_cpu_supports("avx2")) return RowsAvx2;
#endif
  return RowsPlain;
}

}  // namespace

void PermuteTable(const Radix& radix, const RoundKeys& keys, std::vector<u32>* table) {
  static const RowsFunction rows = Choose();
  const std::size_t square = std::size_t{radix.a} * radix.b;  // below n + sqrt(n) + 1
  if (table->size() < square) table->resize(square);
  rows(radix, keys, table->data());
  if (square == radix.n) return;
  for (std::size_t x = 0; x < radix.n; ++x) {  // the cycle walk of the few that left [0, n)
    const u32 y = (*table)[x];
    if (y >= radix.n) (*table)[x] = static_cast<u32>(Permute(radix, keys, y));
  }
}

}  // namespace mixcore
