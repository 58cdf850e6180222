// What a flat segment says of itself; and, for tests: the bodies of the CUDA kernels, run on the
// CPU. The geometry of a launch (grid, block, thread) is walked in plain loops; each block has
// shared memory of exactly the bytes asked for, filled with a pattern, so that the sanitizer sees a
// wrong index and a test sees an unwritten value.
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "bind_answer.h"
#include "bind_flat.h"

namespace mixcore {
namespace {

using Bytes = py::array_t<std::uint8_t, py::array::c_style>;

template <typename Kernel>
void RunOnHost(const Kernel& kernel, i64 blocks, i32 threads, i32 shared_bytes, Turn turn) {
  for (i64 b = 0; b < blocks; ++b) {
    const std::unique_ptr<char[]> shared(new char[static_cast<std::size_t>(shared_bytes)]);
    std::fill_n(shared.get(), shared_bytes, '\xCD');
    kernel.Run(HostBlock(b, blocks, threads, shared.get(), turn));
  }
}

Turn TurnOf(const std::string& name) {
  if (name == "forward") return Turn::kForward;
  if (name == "backward") return Turn::kBackward;
  if (name == "odd first") return Turn::kOddFirst;
  throw ValueError("turn must be 'forward', 'backward' or 'odd first', got '" + name + "'");
}

const DomainView* ViewsOf(const Bytes& views) {
  return reinterpret_cast<const DomainView*>(views.data());
}

const char* DataOf(const Bytes& flat) { return reinterpret_cast<const char*>(flat.data()); }

// What stands at the beginning of a flat segment.
py::dict Head(const Bytes& flat) {
  const FlatSegment segment = HeadOf(flat);
  py::dict d;
  d["start"] = segment.start;
  d["batch_size"] = segment.batch;
  d["nodes"] = segment.nodes;
  d["leaves"] = segment.leaves;
  d["depth"] = segment.depth;
  d["bytes"] = segment.bytes;
  d["head_bytes"] = sizeof(FlatSegment);
  return d;
}

// ((domain, draw, epoch, sample), strategy, tiles, bytes of shared memory) of positions
// [first, first + count), counted from the segment's start.
py::tuple Picks(const Bytes& flat, const Bytes& views, u64 order_key, i64 first, i64 count,
                int mask, const std::string& strategy, int threads, i64 blocks, i64 shared,
                const std::pair<i64, i64>& limits, const std::string& turn) {
  CheckRange("threads", threads, 1, kMaxThreads);
  CheckRange("blocks", blocks, 1, 1 << 20);
  CheckRange("count", count, 1, kMaxPosition);
  Answer answer(count, mask);
  const WindowJob job{HeadOf(flat), DataOf(flat), ViewsOf(views), order_key,
                      first,        count,        answer.fields};
  const Tuning tuning = TuningOf(strategy, threads, blocks, shared);
  const Shape shape = ShapeOf(job, tuning, {limits.first, limits.second});
  if (shape.layout.bytes > limits.first) throw std::logic_error("a block has too little memory");
  if (shape.strategy == Strategy::kWalk) {
    RunOnHost(WalkKernel{job, shape.layout, shape.kept}, blocks, threads, shape.layout.bytes,
              TurnOf(turn));
  } else {
    RunOnHost(EdgesKernel{job, shape.tiles, shape.layout}, blocks, threads, shape.layout.bytes,
              TurnOf(turn));
  }
  return py::make_tuple(answer.Tuple(), NameOf(shape.strategy), shape.tiles.count,
                        shape.layout.bytes);
}

py::tuple AtPositions(const std::vector<Bytes>& flats, const Bytes& views, u64 order_key, i64 end,
                      const py::object& value, int mask, int threads, i64 blocks, i64 shared,
                      const std::string& turn) {
  const auto positions = CheckedArray<i64>(value, "positions", 1);
  CheckRange("threads", threads, 1, kMaxThreads);
  CheckRange("blocks", blocks, 1, 1 << 20);
  Answer answer(positions.size(), mask);
  std::vector<i64> starts;
  std::vector<const char*> datas;
  for (const Bytes& flat : flats) {
    starts.push_back(HeadOf(flat).start);
    datas.push_back(DataOf(flat));
  }
  AtKernel kernel{
      {starts.data(), datas.data(), ViewsOf(views), order_key, static_cast<i64>(starts.size()), end,
       positions.data(), positions.size(), answer.fields},
      {},
      0};
  if (flats.size() == 1) {
    kernel.kept = KeepNodes(HeadOf(flats[0]).nodes, shared, &kernel.layout);
  }
  RunOnHost(kernel, blocks, threads, kernel.layout.bytes, TurnOf(turn));
  return answer.Tuple();
}

}  // namespace

void BindGrid(py::module_& m) {
  using py::arg;
  m.def("flat_head", &Head, arg("flat"), "What a segment from Plan.flat() says of itself.");
  m.def("grid_picks", &Picks, arg("flat"), arg("views"), arg("order_key"), arg("first"),
        arg("count"), arg("mask"), arg("strategy"), arg("threads"), arg("blocks"), arg("shared"),
        arg("limits"), arg("turn"), "For tests: a window's CUDA kernel, walked on the CPU.");
  m.def("grid_at", &AtPositions, arg("flats"), arg("views"), arg("order_key"), arg("end"),
        arg("positions"), arg("mask"), arg("threads"), arg("blocks"), arg("shared"), arg("turn"),
        "For tests: the CUDA kernel for any positions, walked on the CPU.");
}

}  // namespace mixcore
