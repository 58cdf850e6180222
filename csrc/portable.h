// What the compilers have in common: host/device qualifiers and 128-bit arithmetic.
// Everything that both the CPU and the GPU run is MIXCORE_HD and free of floating point.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define MIXCORE_HD __host__ __device__ __forceinline__
#else
#define MIXCORE_HD inline
#endif

#if !defined(__SIZEOF_INT128__)
#error "mixcore needs a 64-bit compiler with __int128 (g++, clang++ or nvcc)"
#endif

namespace mixcore {

using i32 = std::int32_t;
using u32 = std::uint32_t;
using i64 = std::int64_t;
using u64 = std::uint64_t;
__extension__ typedef __int128 i128;
__extension__ typedef unsigned __int128 u128;

// Shares in force sum to 2^62, so that share x length (at most 2^48) fits 128 bits with room for
// the sum over 2^16 domains.
constexpr int kShareBits = 62;
constexpr u64 kShareSum = u64{1} << kShareBits;
constexpr i64 kMaxPosition = i64{1} << 48;
constexpr i32 kMaxDomains = 65536;
constexpr i64 kMaxBatch = (i64{1} << 31) - 1;

MIXCORE_HD constexpr u64 MulHi(u64 a, u64 b) { return static_cast<u64>((u128{a} * b) >> 64); }

}  // namespace mixcore
