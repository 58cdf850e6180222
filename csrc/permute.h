// A keyed bijection of [0, n) for any 1 <= n <= 2^48, evaluated at one point without a table.
//
// A Feistel network over mixed radix: x = hi * a + lo with a = ceil(sqrt(n)) and b = ceil(n / a);
// a round adds a keyed hash of one half to the other, modulo a or b. a * b exceeds n by less than
// a, so the cycle walk that brings a result >= n back into [0, n) is taken with probability below
// 1/sqrt(n) (a power-of-two network walks up to half of the time). Generalised Feistel ciphers and
// cycle walking: Black and Rogaway, "Ciphers with arbitrary finite domains" (2002).
// For shuffling training samples; not for cryptography.
#pragma once

#include "philox.h"
#include "portable.h"

namespace mixcore {

// Division by a number fixed beforehand: one high multiply and one correction, exact for x < 2^63.
struct Divider {
  u64 d = 1;
  u64 magic = ~u64{0};

  MIXCORE_HD static Divider Of(u64 d) { return {d, ~u64{0} / d}; }
  MIXCORE_HD u64 Div(u64 x) const {
    const u64 q = MulHi(x, magic);
    return q + (x - q * d >= d);  // q is at most one too small
  }
  // The same for 32 bits, where a quarter of the multiplications do: the upper half of the magic
  // number is below 2^32 / d by at most 1, so q is again at most one too small. d < 2^32.
  MIXCORE_HD u32 Div(u32 x) const {
    const u32 divisor = static_cast<u32>(d);
    const u32 q = static_cast<u32>((u64{x} * (magic >> 32)) >> 32);
    return q + (x - q * divisor >= divisor);
  }
};

// The shape of a permutation: depends on n alone.
struct Radix {
  u64 n = 1;
  u32 a = 1;  // low digit's base
  u32 b = 1;  // high digit's base
  i32 rounds = 6;
  Divider by_a;

  // Halves of a few values mix slowly. With these rounds, ordered pairs of images are uniform to
  // within 0.5 % at any n (tests/test_permute.py; six rounds are off by 22 % at n = 6).
  MIXCORE_HD static i32 Rounds(u64 n) { return n < 64 ? 24 : n < 1000 ? 8 : 6; }

  MIXCORE_HD static Radix Of(u64 n) {
    u64 a = 1;  // ceil(sqrt(n)) by bisection: no floating point, so every compiler agrees
    for (u64 low = 0, high = u64{1} << 25; high - low > 1;) {
      a = low + (high - low) / 2;
      (a * a >= n ? high : low) = a;
      a = high;
    }
    const u32 b = static_cast<u32>((n + a - 1) / a);
    return {n, static_cast<u32>(a), b, Rounds(n), Divider::Of(a)};
  }
};

// Round keys from four random words: two Weyl sequences, as Philox's own key schedule.
struct RoundKeys {
  u32 even, odd, even_step, odd_step;

  MIXCORE_HD static RoundKeys Of(Philox4 w) { return {w.x0, w.x1, w.x2 | 1, w.x3 | 1}; }
};

// A number in [0, m) from a half and a round key; the mixing constants are those of the 32-bit
// integer hash "lowbias32" (C. Wellons, public domain); the high bits, best mixed, choose.
MIXCORE_HD u32 RoundHash(u32 half, u32 key, u32 m) {
  u32 z = half + key;
  z ^= z >> 16;
  z *= 0x7FEB352Du;
  z ^= z >> 15;
  z *= 0x846CA68Bu;
  return static_cast<u32>((u64{z} * m) >> 32);
}

// (x + y) mod m for x, y < m <= 2^25. The subtraction wraps to a huge number when it must not be
// taken, so the smaller of the two is the answer: no branch, and compilers vectorise it.
MIXCORE_HD u32 AddMod(u32 x, u32 y, u32 m) {
  const u32 sum = x + y, less = sum - m;
  return sum < less ? sum : less;
}

// The network once, without the walk: a bijection of [0, a * b). `rounds` is even.
MIXCORE_HD u64 Network(u32 a, u32 b, i32 rounds, RoundKeys keys, u32 hi, u32 lo) {
  for (i32 i = 0; i < rounds; i += 2) {
    lo = AddMod(lo, RoundHash(hi, keys.even, a), a);
    hi = AddMod(hi, RoundHash(lo, keys.odd, b), b);
    keys.even += keys.even_step;
    keys.odd += keys.odd_step;
  }
  return u64{hi} * a + lo;
}

// The image of x, 0 <= x < n, under the permutation of [0, n) with these keys. X: u64, or u32 where
// n < 2^31 (so that a * b fits).
template <typename X>
MIXCORE_HD X Permute(const Radix& radix, const RoundKeys& keys, X x) {
  if (radix.n == 1) return 0;
  do {
    const X hi = radix.by_a.Div(x);
    const u32 lo = static_cast<u32>(x - hi * radix.a);
    x = static_cast<X>(Network(radix.a, radix.b, radix.rounds, keys, static_cast<u32>(hi), lo));
  } while (x >= radix.n);
  return x;
}

}  // namespace mixcore
