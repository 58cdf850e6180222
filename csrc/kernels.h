// The bodies of the kernels: which thread computes what, and what its block shares. What a position
// *is* stands in blend.h. Two ways to the same bytes:
//
//   walk   each thread takes its position down the tree (two 128-bit products a level);
//   edges  a block works out once, for a few batches, where the batch of every leaf begins: its
//          first draw and its first slot. A node is split once a batch, by one thread, not once a
//          sample. A position's slot is then searched among the leaves. Where whole batches fit
//          ("slots"), the search and all that follows from it is done slot by slot, so that
//          neighbouring threads look at the same leaf, and the in-batch permutation only fetches
//          the finished slot; where they do not ("search"), each position searches.
//
// Integer instructions a pick, estimated from this source for batches of 1,024: walk about 160
// (keys and permutation of the batch) + 36 a level; slots about 155 at 32 leaves and 290 at 2,048.
// Epoch and sample add about 200. Which is faster where is for bench/bench_cuda.py to say.
#pragma once

#include "flat.h"
#include "grid.h"
#include "portable.h"

namespace mixcore {

// One segment's part of a window.
struct WindowJob {
  FlatSegment segment;
  const char* data;  // the segment's bytes, where the kernel can read them
  const DomainView* domains;
  u64 order_key;
  i64 first;  // position relative to the segment's start
  i64 count;
  Fields out;
};

// One leaf's part of one batch: its samples [a, a + n) since the segment's start go to the slots
// [slot, slot + n) of the batch. While the tree is split: the same of a subtree.
struct alignas(16) Edge {
  i64 a;
  u32 n;
  u32 slot;
};

MIXCORE_HD void SplitEdge(const Split& v, Edge* edges) {
  const Edge e = edges[v.left_at];
  i64 la = 0;
  u32 ln = 0;
  if (e.n != 0) {  // below a subtree that gets nothing, no leaf is ever found
    la = Left(v.p, v.phi, e.a);
    ln = static_cast<u32>(Left(v.p, v.phi, e.a + e.n) - la);
  }
  edges[v.left_at] = {la, ln, e.slot};
  edges[v.right_at] = {e.a - la, e.n - ln, e.slot + ln};
}

// The last leaf that begins at or before a slot: those before it that begin there too are empty.
MIXCORE_HD i32 LeafOf(const Edge* edges, i32 leaves, u32 slot) {
  i32 low = 0;
  for (i32 high = leaves; high - low > 1;) {
    const i32 mid = (low + high) >> 1;
    (edges[mid].slot <= slot ? low : high) = mid;
  }
  return low;
}

// How a block's shared memory is divided: byte offsets, all multiples of 16; -1: not there.
struct Layout {
  i32 keys = -1;
  i32 edges = -1;
  i32 splits = -1;
  i32 domain = -1, draw = -1, epoch = -1, sample = -1;  // of the slots
  i32 nodes = -1;
  i32 bytes = 0;
};

template <typename T>
MIXCORE_HD T* SharedAt(char* shared, i32 at) {
  return at < 0 ? nullptr : reinterpret_cast<T*>(shared + at);
}

// A tile is what a block does at a time: `batches` whole batches, or one of `parts` parts of one.
struct Tiles {
  i64 first_batch;  // of the first tile
  i64 first_part;   // in units of `span` from that batch's start
  i64 last_batch;
  i64 count;
  i64 parts;    // tiles a batch; 1 if a tile holds whole batches
  i32 batches;  // batches a tile; 1 if it holds a part of one
  i32 span;     // positions a tile
};

struct EdgesKernel {
  WindowJob job;
  Tiles tiles;
  Layout layout;

  template <typename Block>
  MIXCORE_HD void Run(const Block& block) const {
    const FlatSegment& seg = job.segment;
    char* const shared = block.shared();
    RoundKeys* const keys = SharedAt<RoundKeys>(shared, layout.keys);
    Edge* const edges = SharedAt<Edge>(shared, layout.edges);
    const Fields slots{SharedAt<i32>(shared, layout.domain), SharedAt<i64>(shared, layout.draw),
                       SharedAt<i64>(shared, layout.epoch), SharedAt<i64>(shared, layout.sample)};
    const i32* const levels = seg.Levels(job.data);
    const i32* const leaf_domain = seg.LeafDomain(job.data);
    const i64* const base = seg.Base(job.data);
    const Split* splits = seg.Splits(job.data);
    if (layout.splits >= 0) {
      Split* const kept = SharedAt<Split>(shared, layout.splits);
      block.ForEach(seg.nodes, [&](i32 i) { kept[i] = splits[i]; });
      splits = kept;
    }
    const u32 size = static_cast<u32>(seg.batch);
    const auto pick = [&](u32 batch, u32 slot) -> Pick {
      const Edge* const here = edges + static_cast<i64>(batch) * seg.leaves;
      const i32 leaf = LeafOf(here, seg.leaves, slot);
      const i32 domain = leaf_domain[leaf];
      return {domain, base[domain] + here[leaf].a + (slot - here[leaf].slot)};
    };
    for (i64 tile = block.index(); tile < tiles.count; tile += block.blocks()) {
      const i64 part = tiles.first_part + tile;
      const i64 j = tiles.first_batch + part / tiles.parts * tiles.batches;
      const i64 left = tiles.last_batch + 1 - j;
      const i32 batches = left < tiles.batches ? static_cast<i32>(left) : tiles.batches;
      block.ForEach(batches, [&](i32 k) {
        const i64 a = (j + k) * seg.batch;
        keys[k] = BatchKeys(job.order_key, seg.start + a);
        edges[static_cast<i64>(k) * seg.leaves] = {a, size, 0};
      });
      for (i32 level = 0; level < seg.depth; ++level) {
        const i32 first = levels[level], width = levels[level + 1] - first;
        block.ForEach(width * batches, [&](i32 i) {
          const i32 k = batches == 1 ? 0 : i / width;
          SplitEdge(splits[first + i - k * width], edges + static_cast<i64>(k) * seg.leaves);
        });
      }
      const bool whole =
          layout.domain >= 0 || layout.draw >= 0 || layout.epoch >= 0 || layout.sample >= 0;
      if (whole) {
        block.ForEach(batches * static_cast<i32>(size), [&](i32 i) {
          const u32 k = batches == 1 ? 0 : seg.by_batch.Div(static_cast<u32>(i));
          Put(slots, i, pick(k, static_cast<u32>(i) - k * size), job.domains);
        });
      }
      // What the window holds of the tile, counted from the segment's start.
      const i64 begin = j * seg.batch, from = begin + part % tiles.parts * tiles.span;
      const i64 end = begin + batches * seg.batch, to = from + tiles.span;
      const i64 low = from > job.first ? from : job.first;
      i64 high = to < end ? to : end;
      high = high < job.first + job.count ? high : job.first + job.count;
      block.ForEach(static_cast<i32>(high - low), [&](i32 i) {
        const u32 x = static_cast<u32>(low - begin) + static_cast<u32>(i);
        const u32 k = batches == 1 ? 0 : seg.by_batch.Div(x);
        const u32 slot = Permute(seg.radix, keys[k], x - k * size);
        const i64 at = low - job.first + i;
        if (!whole) return Put(job.out, at, pick(k, slot), job.domains);
        const u32 from_slot = k * size + slot;
        if (slots.domain) job.out.domain[at] = slots.domain[from_slot];
        if (slots.draw) job.out.draw[at] = slots.draw[from_slot];
        if (slots.epoch) job.out.epoch[at] = slots.epoch[from_slot];
        if (slots.sample) job.out.sample[at] = slots.sample[from_slot];
      });
    }
  }
};

// The walk of blend.h with the top of the tree, its first `kept` nodes, in faster memory.
MIXCORE_HD Pick AtWithTop(const SegmentView& seg, u64 order_key, i64 t, const Node* top, i32 kept) {
  Walk w = Enter(seg, order_key, t);
  while (!w.AtLeaf()) w.Down(w.node < kept ? top[w.node] : seg.nodes[w.node]);
  return Arrive(seg, w);
}

template <typename Block>
MIXCORE_HD const Node* KeepTop(const Block& block, const Layout& layout, const Node* nodes,
                               i32 kept) {
  Node* const top = SharedAt<Node>(block.shared(), layout.nodes);
  if (kept > 0) block.ForEach(kept, [&](i32 i) { top[i] = nodes[i]; });
  return top;
}

struct WalkKernel {
  WindowJob job;
  Layout layout;
  i32 kept;  // nodes in shared memory

  template <typename Block>
  MIXCORE_HD void Run(const Block& block) const {
    const SegmentView seg = job.segment.View(job.data);
    const Node* const top = KeepTop(block, layout, seg.nodes, kept);
    const i64 first = seg.start + job.first;
    block.GridStride(job.count, [&](i64 i) {
      Put(job.out, i, AtWithTop(seg, job.order_key, first + i, top, kept), job.domains);
    });
  }
};

// Any positions, in any order. Segments are searched only where there are several.
struct AtJob {
  const i64* starts;         // i64[segments], ascending
  const char* const* datas;  // the segments' bytes
  const DomainView* domains;
  u64 order_key;
  i64 segments;
  i64 end;  // of the run: no position at or after it
  const i64* positions;
  i64 count;
  Fields out;
};

struct AtKernel {
  AtJob job;
  Layout layout;
  i32 kept;  // nodes in shared memory; 0 where there are several segments

  template <typename Block>
  MIXCORE_HD void Run(const Block& block) const {
    const char* const data = job.datas[0];
    const FlatSegment& only = *FlatSegment::Array<FlatSegment>(data, 0);
    const Node* const top = KeepTop(block, layout, only.Nodes(data), kept);
    block.GridStride(job.count, [&](i64 i) {
      const i64 t = job.positions[i];
      if (t < job.starts[0] || t >= job.end) {  // no GPU can raise: the answer is -1
        if (job.out.domain) job.out.domain[i] = -1;
        if (job.out.draw) job.out.draw[i] = -1;
        if (job.out.epoch) job.out.epoch[i] = -1;
        if (job.out.sample) job.out.sample[i] = -1;
        return;
      }
      i64 low = 0;
      for (i64 high = job.segments; high - low > 1;) {
        const i64 mid = (low + high) / 2;
        (job.starts[mid] <= t ? low : high) = mid;
      }
      const char* const here = job.datas[low];
      const SegmentView seg = FlatSegment::Array<FlatSegment>(here, 0)->View(here);
      Put(job.out, i, AtWithTop(seg, job.order_key, t, top, kept), job.domains);
    });
  }
};

}  // namespace mixcore
