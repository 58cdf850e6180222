// The module `mixcore._cuda`: pointers, counts and a stream in, a launch out. Tensors are made by
// whoever calls (mixcore/device_plan.py); a pointer here is device memory as an integer.
#include <pybind11/stl.h>

#include <array>

#include "bind_flat.h"
#include "sampler_cuda.h"

namespace mixcore {
namespace {

using Pointers = std::array<std::uintptr_t, 4>;

Fields FieldsOf(const Pointers& out) {
  return {reinterpret_cast<i32*>(out[0]), reinterpret_cast<i64*>(out[1]),
          reinterpret_cast<i64*>(out[2]), reinterpret_cast<i64*>(out[3])};
}

template <typename T>
T At(std::uintptr_t pointer) {
  return reinterpret_cast<T>(pointer);
}

py::dict Shown(const Launched& launched) {
  py::dict d;
  d["strategy"] = NameOf(launched.strategy);
  d["blocks"] = launched.blocks;
  d["threads"] = launched.threads;
  d["shared"] = launched.shared;
  return d;
}

py::tuple Count() {
  std::string why;
  const int count = GpuCount(&why);
  return py::make_tuple(count, why);
}

py::dict Info(int gpu) {
  const GpuInfo info = InfoOf(gpu);
  py::dict d;
  d["name"] = info.name;
  d["capability"] = py::make_tuple(info.major, info.minor);
  d["multiprocessors"] = info.multiprocessors;
  d["memory"] = info.memory;
  d["shared"] = info.shared;
  d["shared_unit"] = info.shared_unit;
  return d;
}

// head: the first bytes of the segment, on the host; data: all of it, on the GPU.
py::dict Picks(int gpu, const py::array_t<std::uint8_t, py::array::c_style>& head,
               std::uintptr_t data, std::uintptr_t views, u64 order_key, i64 first, i64 count,
               const Pointers& out, std::uintptr_t stream, const std::string& strategy, int threads,
               i64 blocks, i64 shared) {
  const FlatSegment segment = HeadOf(head);
  CheckRange("first", first, 0, kMaxPosition);
  CheckRange("count", count, 1, kMaxPosition);
  const WindowJob job{
      segment, At<const char*>(data), At<const DomainView*>(views), order_key, first,
      count,   FieldsOf(out)};
  const Tuning tuning = TuningOf(strategy, threads, blocks, shared);
  return Shown(LaunchPicks(gpu, job, tuning, At<void*>(stream)));
}

py::dict AtPositions(int gpu, std::uintptr_t starts, std::uintptr_t datas, i64 segments, i32 nodes,
                     std::uintptr_t views, u64 order_key, i64 end, std::uintptr_t positions,
                     i64 count, const Pointers& out, std::uintptr_t stream, int threads, i64 blocks,
                     i64 shared) {
  CheckRange("segments", segments, 1, kMaxPosition);
  CheckRange("count", count, 1, kMaxPosition);
  const AtJob job{At<const i64*>(starts),
                  At<const char* const*>(datas),
                  At<const DomainView*>(views),
                  order_key,
                  segments,
                  end,
                  At<const i64*>(positions),
                  count,
                  FieldsOf(out)};
  const Tuning tuning = TuningOf("auto", threads, blocks, shared);
  return Shown(LaunchAt(gpu, job, segments == 1 ? nodes : 0, tuning, At<void*>(stream)));
}

}  // namespace
}  // namespace mixcore

PYBIND11_MODULE(_cuda, m, pybind11::mod_gil_not_used()) {
  namespace py = pybind11;
  using py::arg;
  m.doc() = "The sampler on NVIDIA GPUs: launches on the caller's stream.";
  mixcore::TranslateErrors();
  m.attr("sources") = MIXCORE_SOURCES;
  m.attr("archs") = MIXCORE_ARCHS;
  m.def("gpu_count", &mixcore::Count, "GPUs that the driver shows, and why there is none.");
  m.def("gpu_info", &mixcore::Info, arg("gpu"));
  m.def("driver_version", &mixcore::DriverVersion);
  m.def("runtime_version", &mixcore::RuntimeVersion);
  m.def("picks", &mixcore::Picks, arg("gpu"), arg("head"), arg("data"), arg("views"),
        arg("order_key"), arg("first"), arg("count"), arg("out"), arg("stream"),
        arg("strategy") = "auto", arg("threads") = 0, arg("blocks") = 0, arg("shared") = 0);
  m.def("at", &mixcore::AtPositions, arg("gpu"), arg("starts"), arg("datas"), arg("segments"),
        arg("nodes"), arg("views"), arg("order_key"), arg("end"), arg("positions"), arg("count"),
        arg("out"), arg("stream"), arg("threads") = 0, arg("blocks") = 0, arg("shared") = 0);
}
