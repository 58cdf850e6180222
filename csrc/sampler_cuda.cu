// Launches and error checks; what a thread does stands in kernels.h. cudart is linked statically,
// so this loads on a machine without a driver, where every call says so.
#include <cuda_runtime.h>

#include "errors.h"
#include "sampler_cuda.h"

namespace mixcore {
namespace {

void Check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw DeviceError(std::string(what) + ": " + cudaGetErrorString(status));
}

// Makes a GPU current for as long as this lives.
class Current {
 public:
  explicit Current(int gpu) {
    Check(cudaGetDevice(&before_), "cudaGetDevice");
    if (before_ != gpu) Check(cudaSetDevice(gpu), "cudaSetDevice");
    changed_ = before_ != gpu;
  }
  ~Current() {
    if (changed_) cudaSetDevice(before_);
  }
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

int Attribute(cudaDeviceAttr attribute, int gpu) {
  int value = 0;
  Check(cudaDeviceGetAttribute(&value, attribute, gpu), "cudaDeviceGetAttribute");
  return value;
}

Limits LimitsOf(int gpu) {
  return {Attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, gpu),
          Attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, gpu)};
}

template <typename Kernel>
__global__ void __launch_bounds__(kMaxThreads, 2) Run(const __grid_constant__ Kernel kernel) {
  extern __shared__ __align__(16) char shared[];
  kernel.Run(CudaBlock(shared));
}

// As many blocks as the GPU holds at a time, but no more than there is work for: each goes on with
// the next piece, so what it keeps in shared memory is loaded once.
template <typename Kernel>
Launched Launch(int gpu, Kernel kernel, Strategy strategy, i64 pieces, const Tuning& tuning,
                void* stream) {
  const void* const function = reinterpret_cast<const void*>(&Run<Kernel>);
  const i32 threads = tuning.threads > 0 ? tuning.threads : kMaxThreads;
  const i32 bytes = kernel.layout.bytes;
  Check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
        "cudaFuncSetAttribute");
  i64 blocks = tuning.blocks;
  if (blocks == 0) {
    int side_by_side = 0;
    Check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&side_by_side, function, threads, bytes),
          "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
    if (side_by_side == 0) throw DeviceError("no block of this kernel fits on the GPU");
    blocks = i64{Attribute(cudaDevAttrMultiProcessorCount, gpu)} * side_by_side;
  }
  blocks = std::min(blocks, std::max<i64>(pieces, 1));
  void* arguments[] = {&kernel};
  Check(cudaLaunchKernel(function, dim3(static_cast<unsigned>(blocks)),
                         dim3(static_cast<unsigned>(threads)), arguments,
                         static_cast<std::size_t>(bytes), static_cast<cudaStream_t>(stream)),
        "cudaLaunchKernel");
  return {strategy, blocks, threads, bytes};
}

i64 PiecesOf(i64 count, const Tuning& tuning) {
  const i64 threads = tuning.threads > 0 ? tuning.threads : kMaxThreads;
  return (count + threads - 1) / threads;
}

}  // namespace

int GpuCount(std::string* why) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess && count > 0) return count;
  *why = status == cudaSuccess ? "the driver shows no GPU" : cudaGetErrorString(status);
  return 0;
}

GpuInfo InfoOf(int gpu) {
  cudaDeviceProp prop;
  Check(cudaGetDeviceProperties(&prop, gpu), "cudaGetDeviceProperties");
  const Limits limits = LimitsOf(gpu);
  return {prop.name,
          prop.major,
          prop.minor,
          prop.multiProcessorCount,
          static_cast<i64>(prop.totalGlobalMem),
          limits.shared,
          limits.shared_unit};
}

int DriverVersion() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

int RuntimeVersion() { return CUDART_VERSION; }

Launched LaunchPicks(int gpu, const WindowJob& job, const Tuning& tuning, void* stream) {
  const Current current(gpu);
  const Shape shape = ShapeOf(job, tuning, LimitsOf(gpu));
  if (shape.strategy == Strategy::kWalk) {
    return Launch(gpu, WalkKernel{job, shape.layout, shape.kept}, shape.strategy,
                  PiecesOf(job.count, tuning), tuning, stream);
  }
  return Launch(gpu, EdgesKernel{job, shape.tiles, shape.layout}, shape.strategy, shape.tiles.count,
                tuning, stream);
}

Launched LaunchAt(int gpu, const AtJob& job, i32 nodes, const Tuning& tuning, void* stream) {
  const Current current(gpu);
  AtKernel kernel{job, {}, 0};
  const Limits limits = LimitsOf(gpu);
  const i64 aim = tuning.shared > 0 ? tuning.shared : limits.shared_unit / 3 - 1024;
  kernel.kept = KeepNodes(nodes, std::min(aim, limits.shared) - 16, &kernel.layout);
  return Launch(gpu, kernel, Strategy::kWalk, PiecesOf(job.count, tuning), tuning, stream);
}

}  // namespace mixcore
