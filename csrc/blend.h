// Order `balanced`: the function of a position, host and device. The CPU and the GPU files are
// loops over what stands here; every decision of the order is in this header.
//
// A segment's shares form a binary tree. A node that n samples have entered since the segment's
// start has sent Left(n) = floor(n * p + phi) of them left, with p = left mass / mass in units of
// 2^-64 and phi the rounding offset that carries the debt of earlier segments. Left() grows by 0
// or 1 a step, so every count is a non-negative integer and counts add up by construction.
#pragma once

#include "permute.h"
#include "philox.h"
#include "portable.h"

namespace mixcore {

// A child >= 0 is a node, a child < 0 is the leaf of domain ~child.
struct Node {
  u64 p;
  u64 phi;
  i32 left;
  i32 right;
};

MIXCORE_HD i64 Left(u64 p, u64 phi, i64 n) {
  return static_cast<i64>((u128{static_cast<u64>(n)} * p + phi) >> 64);
}

MIXCORE_HD i64 Left(const Node& node, i64 n) { return Left(node.p, node.phi, n); }

// Flat view of one segment of order balanced.
struct SegmentView {
  i64 start;  // first position
  i64 batch;  // samples a step
  Divider by_batch;
  Radix radix;  // of the in-batch permutation
  const Node* nodes;
  i32 root;         // >= 0 a node, < 0 a single leaf
  const i64* base;  // draws of each domain before `start`
};

// What the sampler must know of a domain to turn a draw into (epoch, sample).
struct DomainView {
  u64 key;   // 64-bit hash of (seed, name)
  i64 size;  // samples per epoch; 0: open-ended
  Divider by_size;
  Radix radix;
};

struct Pick {
  i32 domain;
  i64 draw;
};

// Where the caller wants the answers: each pointer may be null.
struct Fields {
  i32* domain = nullptr;
  i64* draw = nullptr;
  i64* epoch = nullptr;
  i64* sample = nullptr;

  MIXCORE_HD Fields At(i64 offset) const {
    return {domain ? domain + offset : nullptr, draw ? draw + offset : nullptr,
            epoch ? epoch + offset : nullptr, sample ? sample + offset : nullptr};
  }
};

// Keys of the permutation inside the batch that begins at global position `first`. Named by
// position, not by segment: a change that changes nothing leaves every batch as it was.
MIXCORE_HD RoundKeys BatchKeys(u64 order_key, i64 first) {
  return RoundKeys::Of(Words(order_key, static_cast<u64>(first), 0, Purpose::kBatch));
}

// A walk down the tree: the s-th of the samples [a, b) that have entered `node`.
struct Walk {
  i64 a, b, s;
  i32 node;

  MIXCORE_HD bool AtLeaf() const { return node < 0; }
  // v: the node that the walk is at.
  MIXCORE_HD void Down(const Node& v) {
    const i64 la = Left(v, a), lb = Left(v, b), ln = lb - la;
    const bool left = s < ln;
    s -= left ? 0 : ln;
    a = left ? la : a - la;
    b = left ? lb : b - lb;
    node = left ? v.left : v.right;
  }
};

// The walk of global position t, t >= seg.start, before its first step down.
MIXCORE_HD Walk Enter(const SegmentView& seg, u64 order_key, i64 t) {
  const u64 r = static_cast<u64>(t - seg.start);
  const i64 a = static_cast<i64>(seg.by_batch.Div(r)) * seg.batch;
  const RoundKeys keys = BatchKeys(order_key, seg.start + a);
  const u32 s = Permute(seg.radix, keys, static_cast<u32>(r - static_cast<u64>(a)));
  return {a, a + seg.batch, i64{s}, seg.root};
}

MIXCORE_HD Pick Arrive(const SegmentView& seg, const Walk& w) {
  const i32 domain = ~w.node;
  return {domain, seg.base[domain] + w.a + w.s};
}

// (domain, draw) of global position t.
MIXCORE_HD Pick At(const SegmentView& seg, u64 order_key, i64 t) {
  Walk w = Enter(seg, order_key, t);
  while (!w.AtLeaf()) w.Down(seg.nodes[w.node]);
  return Arrive(seg, w);
}

MIXCORE_HD i64 EpochOf(const DomainView& d, i64 draw) {
  return d.size == 0 ? 0 : static_cast<i64>(d.by_size.Div(static_cast<u64>(draw)));
}

MIXCORE_HD RoundKeys EpochKeys(const DomainView& d, i64 epoch) {
  return RoundKeys::Of(Words(d.key, static_cast<u64>(epoch), 0, Purpose::kEpoch));
}

// The sample that `draw` takes inside its epoch; keys = EpochKeys(d, epoch).
MIXCORE_HD i64 SampleOf(const DomainView& d, const RoundKeys& keys, i64 draw, i64 epoch) {
  if (d.size == 0) return draw;
  return static_cast<i64>(Permute(d.radix, keys, static_cast<u64>(draw - epoch * d.size)));
}

// Writes to place `at` what the caller wants of a pick.
MIXCORE_HD void Put(const Fields& out, i64 at, const Pick& pick, const DomainView* domains) {
  if (out.domain) out.domain[at] = pick.domain;
  if (out.draw) out.draw[at] = pick.draw;
  if (!out.epoch && !out.sample) return;
  const DomainView& d = domains[pick.domain];
  const i64 epoch = EpochOf(d, pick.draw);
  if (out.epoch) out.epoch[at] = epoch;
  if (out.sample) out.sample[at] = SampleOf(d, EpochKeys(d, epoch), pick.draw, epoch);
}

}  // namespace mixcore
