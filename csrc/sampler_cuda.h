// The GPU's side of the sampler, without CUDA's own headers: jobs whose pointers are device memory,
// launched on a stream of the caller's. Nothing here waits for the GPU.
#pragma once

#include <string>
#include <vector>

#include "launch.h"

namespace mixcore {

struct GpuInfo {
  std::string name;
  int major, minor;  // compute capability
  int multiprocessors;
  i64 memory;       // bytes
  i64 shared;       // bytes a block may have
  i64 shared_unit;  // bytes a multiprocessor has
};

// What was launched.
struct Launched {
  Strategy strategy;
  i64 blocks;
  i32 threads;
  i32 shared;
};

// GPUs that the driver shows; 0 and a reason where there is no driver or no GPU.
int GpuCount(std::string* why);
GpuInfo InfoOf(int gpu);
int DriverVersion();   // newest CUDA that the driver knows, 1000 * major + 10 * minor; 0: no driver
int RuntimeVersion();  // of the CUDA that this was built with

// Throw DeviceError with what CUDA says. stream: a cudaStream_t of that GPU.
Launched LaunchPicks(int gpu, const WindowJob& job, const Tuning& tuning, void* stream);
// nodes: of the only segment, 0 if there are several.
Launched LaunchAt(int gpu, const AtJob& job, i32 nodes, const Tuning& tuning, void* stream);

}  // namespace mixcore
