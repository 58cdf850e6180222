// All n values of a permutation at once, n below 2^31.
#pragma once

#include <vector>

#include "permute.h"

namespace mixcore {

// table[x] = Permute(radix, keys, x) for x in [0, n); the table may be longer than n.
void PermuteTable(const Radix& radix, const RoundKeys& keys, std::vector<u32>* table);

}  // namespace mixcore
