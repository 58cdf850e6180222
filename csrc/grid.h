// What the body of a kernel sees of its launch: its block, the number of blocks, and loops over the
// block's threads. A body is written once, as a template over this; sampler_cuda.cu runs it with
// CUDA's blocks and threads, and HostBlock walks the same geometry in plain loops, so that a wrong
// index or a race between threads shows on a machine without a GPU.
#pragma once

#include "portable.h"

namespace mixcore {

constexpr i32 kMaxThreads = 512;  // a block

// The order in which HostBlock lets the threads of one loop run. A body is right only if all
// orders give the same bytes.
enum class Turn { kForward, kBackward, kOddFirst };

class HostBlock {
 public:
  HostBlock(i64 index, i64 blocks, i32 threads, char* shared, Turn turn)
      : index_(index), blocks_(blocks), threads_(threads), shared_(shared), turn_(turn) {}

  i64 index() const { return index_; }
  i64 blocks() const { return blocks_; }
  char* shared() const { return shared_; }

  // f(i) for i in [0, n): thread t takes t, t + threads, ...; then all wait for one another.
  template <typename F>
  void ForEach(i32 n, const F& f) const {
    EachThread([&](i32 thread) {
      for (i32 i = thread; i < n; i += threads_) f(i);
    });
  }
  // f(i) for this block's part of [0, n), which all blocks share; nobody waits.
  template <typename F>
  void GridStride(i64 n, const F& f) const {
    EachThread([&](i32 thread) {
      for (i64 i = index_ * threads_ + thread; i < n; i += blocks_ * threads_) f(i);
    });
  }

 private:
  template <typename F>
  void EachThread(const F& f) const {
    for (i32 k = 0; k < threads_; ++k) {
      const i32 odds = threads_ / 2;
      const i32 odd_first = k < odds ? 2 * k + 1 : 2 * (k - odds);
      f(turn_ == Turn::kForward ? k : turn_ == Turn::kBackward ? threads_ - 1 - k : odd_first);
    }
  }

  i64 index_, blocks_;
  i32 threads_;
  char* shared_;
  Turn turn_;
};

#if defined(__CUDACC__)
// The same on the GPU. The members exist for the host compiler too, which sees the bodies' host
// version instantiated; it never runs.
class CudaBlock {
 public:
  MIXCORE_HD explicit CudaBlock(char* shared) : shared_(shared) {}
  MIXCORE_HD char* shared() const { return shared_; }
#if defined(__CUDA_ARCH__)
  MIXCORE_HD i64 index() const { return blockIdx.x; }
  MIXCORE_HD i64 blocks() const { return gridDim.x; }
  template <typename F>
  MIXCORE_HD void ForEach(i32 n, const F& f) const {
    for (i32 i = static_cast<i32>(threadIdx.x); i < n; i += static_cast<i32>(blockDim.x)) f(i);
    __syncthreads();
  }
  template <typename F>
  MIXCORE_HD void GridStride(i64 n, const F& f) const {
    const i64 step = i64{gridDim.x} * blockDim.x;
    for (i64 i = i64{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += step) f(i);
  }
#else
  MIXCORE_HD i64 index() const { return 0; }
  MIXCORE_HD i64 blocks() const { return 1; }
  template <typename F>
  MIXCORE_HD void ForEach(i32, const F&) const {}
  template <typename F>
  MIXCORE_HD void GridStride(i64, const F&) const {}
#endif

 private:
  char* shared_;
};
#endif

}  // namespace mixcore
