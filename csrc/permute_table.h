// Permutations in bulk: all values of one, or one value each of many.
#pragma once

#include <vector>

#include "permute.h"

namespace mixcore {

// Points of permutations that differ in everything but the number of rounds, which is 6, side by
// side. Fill in all lanes (1 for a and b where there is nothing to do), then RunNetworks().
struct PermuteLanes {
  static constexpr int kLanes = 64;
  u32 a[kLanes], b[kLanes], hi[kLanes], lo[kLanes];
  u32 even[kLanes], odd[kLanes], even_step[kLanes], odd_step[kLanes];

  // Whether a point of this permutation may be a lane: what ShortRoundHash() is good for.
  static bool Fits(const Radix& radix) { return radix.rounds == 6 && radix.n < u64{1} << 31; }
  void Set(int i, const Radix& radix, const RoundKeys& keys, u64 x) {
    const u64 high = radix.by_a.Div(x);
    a[i] = radix.a;
    b[i] = radix.b;
    hi[i] = static_cast<u32>(high);
    lo[i] = static_cast<u32>(x - high * radix.a);
    even[i] = keys.even;
    odd[i] = keys.odd;
    even_step[i] = keys.even_step;
    odd_step[i] = keys.odd_step;
  }
  void Clear(int i) { Set(i, Radix{}, RoundKeys{0, 0, 0, 0}, 0); }
};
void RunNetworks(PermuteLanes* lanes);

// table[x] = Permute(radix, keys, x) for x in [0, n); the table may be longer than n.
void PermuteTable(const Radix& radix, const RoundKeys& keys, std::vector<u32>* table);

}  // namespace mixcore
