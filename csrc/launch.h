// How a window becomes a launch: strategy, tiles, shared memory, blocks. Host only; the same for
// the GPU and for the test that walks the geometry on the CPU.
#pragma once

#include <algorithm>

#include "kernels.h"

namespace mixcore {

enum class Strategy { kAuto, kWalk, kSearch, kSlots };

// What a processor offers.
struct Limits {
  i64 shared;       // bytes of shared memory that one block may have
  i64 shared_unit;  // bytes that one multiprocessor has for all its blocks
};

// What may be tried for measurements and tests; 0 stands for the default.
struct Tuning {
  Strategy strategy = Strategy::kAuto;
  i32 threads = 0;
  i64 blocks = 0;
  i64 shared = 0;  // aim for a block's shared memory, bytes
};

constexpr i32 kSlotsAim = 2048;  // slots a tile: enough work between two barriers
constexpr i64 kMostSlots = 1 << 15;
constexpr i64 kPart = 8192;  // positions a tile, where batches are larger than a tile

struct Shape {
  Strategy strategy = Strategy::kWalk;
  Tiles tiles{};
  Layout layout;
  i32 kept = 0;
};

namespace launch_detail {

template <typename T>
i32 Take(i64 n, Layout* layout) {
  const i32 at = layout->bytes;
  layout->bytes += static_cast<i32>((n * static_cast<i64>(sizeof(T)) + 15) / 16 * 16);
  return at;
}

inline Layout EdgesLayout(const FlatSegment& seg, const Fields& out, i64 batches, bool slots) {
  Layout layout;
  layout.keys = Take<RoundKeys>(batches, &layout);
  layout.edges = Take<Edge>(batches * seg.leaves, &layout);
  if (!slots) return layout;
  const i64 n = batches * seg.batch;
  if (out.domain) layout.domain = Take<i32>(n, &layout);
  if (out.draw) layout.draw = Take<i64>(n, &layout);
  if (out.epoch) layout.epoch = Take<i64>(n, &layout);
  if (out.sample) layout.sample = Take<i64>(n, &layout);
  return layout;
}

// Bytes before anything is laid out: no overflow, whatever the batch.
inline i64 EdgesBytes(const FlatSegment& seg, const Fields& out, bool slots) {
  const i64 slot =
      (out.domain ? 4 : 0) + (out.draw ? 8 : 0) + (out.epoch ? 8 : 0) + (out.sample ? 8 : 0);
  return 64 + 16 + i64{16} * seg.leaves + (slots ? slot * seg.batch : 0);
}

}  // namespace launch_detail

// The largest part of the top of a tree that `shared` bytes hold.
inline i32 KeepNodes(i32 nodes, i64 shared, Layout* layout) {
  const i32 kept = static_cast<i32>(
      std::min<i64>(nodes, std::max<i64>(shared, 0) / static_cast<i64>(sizeof(Node))));
  if (kept > 0) layout->nodes = launch_detail::Take<Node>(kept, layout);
  return kept;
}

inline Shape ShapeOf(const WindowJob& job, const Tuning& tuning, const Limits& limits) {
  using namespace launch_detail;
  const FlatSegment& seg = job.segment;
  const i64 aim = tuning.shared > 0 ? std::min(tuning.shared, limits.shared)
                                    : std::min(limits.shared, limits.shared_unit / 3 - 1024);
  const i64 with_slots = EdgesBytes(seg, job.out, true), bare = EdgesBytes(seg, job.out, false);
  const bool slots_fit = seg.batch <= kMostSlots && with_slots <= limits.shared;
  const bool edges_fit = bare <= limits.shared;
  Shape shape;
  shape.strategy = tuning.strategy;
  if (shape.strategy == Strategy::kAuto) {
    // Splitting a node costs about what a sample's step down costs; a tree of more than four leaves
    // a sample is cheaper walked.
    const bool dense = seg.leaves <= 4 * seg.batch;
    shape.strategy = dense && slots_fit   ? Strategy::kSlots
                     : dense && edges_fit ? Strategy::kSearch
                                          : Strategy::kWalk;
  }
  if (shape.strategy == Strategy::kSlots && !slots_fit) shape.strategy = Strategy::kSearch;
  if (shape.strategy == Strategy::kSearch && !edges_fit) shape.strategy = Strategy::kWalk;
  if (shape.strategy == Strategy::kWalk) {
    shape.kept = KeepNodes(seg.nodes, aim - 16, &shape.layout);
    return shape;
  }
  const bool slots = shape.strategy == Strategy::kSlots;
  const i64 last = job.first + job.count - 1;
  Tiles& t = shape.tiles;
  t.first_batch = job.first / seg.batch;
  t.last_batch = last / seg.batch;
  t.parts = 1;
  t.batches = 1;
  if (slots) {
    const i64 most =
        std::min(std::max<i64>(kSlotsAim / seg.batch, 1), t.last_batch - t.first_batch + 1);
    t.batches = static_cast<i32>(std::clamp<i64>(aim / with_slots, 1, most));
    t.span = static_cast<i32>(t.batches * seg.batch);
    t.count = (t.last_batch - t.first_batch) / t.batches + 1;
  } else {
    t.span = static_cast<i32>(std::min(seg.batch, std::max(kPart, i64{4} * seg.leaves)));
    t.parts = (seg.batch - 1) / t.span + 1;
    t.first_part = job.first % seg.batch / t.span;
    t.count =
        (t.last_batch - t.first_batch) * t.parts + last % seg.batch / t.span - t.first_part + 1;
  }
  shape.layout = EdgesLayout(seg, job.out, t.batches, slots);
  // The nodes too, if two blocks still fit side by side.
  const i64 splits = i64{seg.nodes} * static_cast<i64>(sizeof(Split)) + 16;
  const i64 room =
      std::min(limits.shared, tuning.shared > 0 ? tuning.shared : limits.shared_unit / 2 - 1024);
  if (seg.nodes > 0 && shape.layout.bytes + splits <= room) {
    shape.layout.splits = Take<Split>(seg.nodes, &shape.layout);
  }
  return shape;
}

}  // namespace mixcore
