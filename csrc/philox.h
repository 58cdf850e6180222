// Philox4x32-10: a counter-based random function, result = f(counter, key), no state.
// Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
// Not for cryptography. The static_asserts are the paper's published known answers: a wrong edit
// does not compile, on any compiler.
#pragma once

#include "portable.h"

namespace mixcore {

struct Philox4 {
  u32 x0, x1, x2, x3;
};

MIXCORE_HD constexpr Philox4 Philox(Philox4 c, u32 k0, u32 k1) {
  for (int round = 0; round < 10; ++round) {
    const u64 p0 = u64{0xD2511F53u} * c.x0;
    const u64 p1 = u64{0xCD9E8D57u} * c.x2;
    c = {static_cast<u32>(p1 >> 32) ^ c.x1 ^ k0, static_cast<u32>(p1),
         static_cast<u32>(p0 >> 32) ^ c.x3 ^ k1, static_cast<u32>(p0)};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

// The purposes that a stream is asked for; the last counter word, so that no two ever collide.
enum class Purpose : u32 { kEpoch = 1, kBatch = 2, kDraw = 3 };

// Words for (key, ordinal, attempt) and a purpose. `key` is a 64-bit hash of (seed, name).
MIXCORE_HD constexpr Philox4 Words(u64 key, u64 ordinal, u32 attempt, Purpose purpose) {
  return Philox({static_cast<u32>(ordinal), static_cast<u32>(ordinal >> 32), attempt,
                 static_cast<u32>(purpose)},
                static_cast<u32>(key), static_cast<u32>(key >> 32));
}

namespace philox_known_answers {
constexpr bool Equal(Philox4 a, Philox4 b) {
  return a.x0 == b.x0 && a.x1 == b.x1 && a.x2 == b.x2 && a.x3 == b.x3;
}
constexpr u32 kOnes = 0xFFFFFFFFu;
static_assert(Equal(Philox({0, 0, 0, 0}, 0, 0),
                    {0x6627E8D5u, 0xE169C58Du, 0xBC57AC4Cu, 0x9B00DBD8u}));
static_assert(Equal(Philox({kOnes, kOnes, kOnes, kOnes}, kOnes, kOnes),
                    {0x408F276Du, 0x41C83B0Eu, 0xA20BC7C6u, 0x6D5451FDu}));
static_assert(Equal(Philox({0x243F6A88u, 0x85A308D3u, 0x13198A2Eu, 0x03707344u}, 0xA4093822u,
                           0x299F31D0u),
                    {0xD16CFE09u, 0x94FDCCEBu, 0x5001E420u, 0x24126EA1u}));
}  // namespace philox_known_answers

}  // namespace mixcore
