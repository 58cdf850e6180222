// The network of permute.h over a whole range, once per instruction set: integers, so every set
// gives the same bytes, and the best one that the machine has is chosen at run time.
#include "permute_table.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(MIXCORE_SANITIZE)
#define MIXCORE_DISPATCH 1
#endif

namespace mixcore {
namespace {

// RoundHash() for m < 2^16, which n < 2^31 implies: the same high half of z * m from 32-bit
// products, which every vector unit has.
__attribute__((always_inline)) inline u32 ShortRoundHash(u32 half, u32 key, u32 m) {
  u32 z = half + key;
  z ^= z >> 16;
  z *= 0x7FEB352Du;
  z ^= z >> 15;
  z *= 0x846CA68Bu;
  return ((z >> 16) * m + (((z & 0xFFFFu) * m) >> 16)) >> 16;
}

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
      lo = AddMod(lo, ShortRoundHash(hi, k.even, a), a);
      hi = AddMod(hi, ShortRoundHash(lo, k.odd, b), b);
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

__attribute__((always_inline)) inline void Lanes(PermuteLanes* lanes) {
  PermuteLanes& v = *lanes;
  for (int i = 0; i < PermuteLanes::kLanes; ++i) {
    u32 hi = v.hi[i], lo = v.lo[i], even = v.even[i], odd = v.odd[i];
#pragma GCC unroll 3
    for (int round = 0; round < 6; round += 2) {
      lo = AddMod(lo, ShortRoundHash(hi, even, v.a[i]), v.a[i]);
      hi = AddMod(hi, ShortRoundHash(lo, odd, v.b[i]), v.b[i]);
      even += v.even_step[i];
      odd += v.odd_step[i];
    }
    v.hi[i] = hi;
    v.lo[i] = lo;
  }
}

void LanesPlain(PermuteLanes* lanes) { Lanes(lanes); }
void RowsPlain(const Radix& radix, const RoundKeys& keys, u32* out) { Rows(radix, keys, out); }

#if MIXCORE_DISPATCH
__attribute__((target("avx2"))) void LanesAvx2(PermuteLanes* lanes) { Lanes(lanes); }
__attribute__((target("avx2"))) void RowsAvx2(const Radix& radix, const RoundKeys& keys, u32* out) {
  Rows(radix, keys, out);
}
__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,prefer-vector-width=512"))) void
LanesAvx512(PermuteLanes* lanes) {
  Lanes(lanes);
}
__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,prefer-vector-width=512"))) void
RowsAvx512(const Radix& radix, const RoundKeys& keys, u32* out) {
  Rows(radix, keys, out);
}
#endif

struct Kernels {
  void (*rows)(const Radix&, const RoundKeys&, u32*);
  void (*lanes)(PermuteLanes*);
};

Kernels Choose() {
#if MIXCORE_DISPATCH
  if (__builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw")) {
    return {RowsAvx512, LanesAvx512};
  }
  if (__builtin_cpu_supports("avx2")) return {RowsAvx2, LanesAvx2};
#endif
  return {RowsPlain, LanesPlain};
}

const Kernels& Best() {
  static const Kernels kernels = Choose();
  return kernels;
}

}  // namespace

void RunNetworks(PermuteLanes* lanes) { Best().lanes(lanes); }

void PermuteTable(const Radix& radix, const RoundKeys& keys, std::vector<u32>* table) {
  const std::size_t square = std::size_t{radix.a} * radix.b;  // below n + sqrt(n) + 1
  if (table->size() < square) table->resize(square);
  Best().rows(radix, keys, table->data());
  if (square == radix.n) return;
  for (std::size_t x = 0; x < radix.n; ++x) {  // the cycle walk of the few that left [0, n)
    const u32 y = (*table)[x];
    if (y >= radix.n) (*table)[x] = static_cast<u32>(Permute(radix, keys, y));
  }
}

}  // namespace mixcore
