// Order `balanced` in bulk: whole batches walk down the tree together, so that a node is visited
// once for many batches and a leaf fills a run of slots; then each batch's permutation takes every
// position to its slot. The same function of a position as blend.h's At().
#include <algorithm>
#include <vector>

#include "balanced.h"
#include "permute_table.h"

namespace mixcore {
namespace {

// A leaf's run is written two slots at a time, so each batch has room for what that writes too
// much; the rest of the gap keeps batches of 2^k samples from falling on the same cache sets.
constexpr i64 kPair = 2, kGap = 24;

struct Scratch {
  std::vector<i64> edges;  // dense: a stack of lists of edges
  std::vector<i64> flows;  // sparse: a stack of lists of (a, b, batch)
  std::vector<i32> slot_domain;
  std::vector<i64> slot_draw;
  std::vector<i64> cursor;  // next free slot of each batch
  std::vector<u32> table;
};

// Slots of batches [j0, j0 + batches) of a segment, in the order of the tree's leaves.
class Filler {
 public:
  Filler(const Segment& segment, i64 j0, i64 batches, Scratch* scratch)
      : segment_(segment),
        j0_(j0),
        batches_(batches),
        stride_(segment.batch() + kGap),
        s_(*scratch) {
    const auto slots = static_cast<std::size_t>(stride_ * batches);
    if (s_.slot_domain.size() < slots) {
      s_.slot_domain.resize(slots);
      s_.slot_draw.resize(slots);
    }
    s_.cursor.resize(static_cast<std::size_t>(batches));
    for (i64 k = 0; k < batches; ++k) s_.cursor[static_cast<std::size_t>(k)] = k * stride_;
  }

  // Every node is visited with the edges of all batches: edge k is the number of samples that had
  // entered it when batch k began. One multiplication an edge, no branch. For trees that are not
  // much larger than a batch.
  void Dense() {
    const std::size_t list = static_cast<std::size_t>(batches_) + 1;
    s_.edges.resize(list * (static_cast<std::size_t>(segment_.tree.depth) + 2));
    i64* const edges = s_.edges.data();
    for (std::size_t k = 0; k < list; ++k)
      edges[k] = (j0_ + static_cast<i64>(k)) * segment_.batch();
    struct Visit {
      i32 node;
      std::size_t from;
    };
    std::vector<Visit> stack{{segment_.tree.root, 0}};
    while (!stack.empty()) {
      const Visit visit = stack.back();
      stack.pop_back();
      i64* const here = edges + visit.from;
      if (visit.node < 0) {
        for (std::size_t k = 0; k + 1 < list; ++k) Leaf(~visit.node, k, here[k], here[k + 1]);
        continue;
      }
      const Node v = segment_.tree.nodes[static_cast<std::size_t>(visit.node)];
      i64* const left = here + list;
      for (std::size_t k = 0; k < list; ++k) {
        const i64 n = here[k], l = Left(v, n);
        left[k] = l;
        here[k] = n - l;
      }
      stack.push_back({v.right, visit.from});
      stack.push_back({v.left, visit.from + list});
    }
  }

  // Lists hold only the batches that have samples in the node: for trees larger than a batch.
  void Sparse() {
    const std::size_t list = 3 * static_cast<std::size_t>(batches_);
    s_.flows.resize(list * (static_cast<std::size_t>(segment_.tree.depth) + 2));
    i64* const flows = s_.flows.data();
    for (i64 k = 0; k < batches_; ++k) {
      flows[3 * k] = (j0_ + k) * segment_.batch();
      flows[3 * k + 1] = flows[3 * k] + segment_.batch();
      flows[3 * k + 2] = k;
    }
    struct Visit {
      i32 node;
      i64 length;
      std::size_t from;
    };
    std::vector<Visit> stack{{segment_.tree.root, 3 * batches_, 0}};
    while (!stack.empty()) {
      const Visit visit = stack.back();
      stack.pop_back();
      i64* const here = flows + visit.from;
      if (visit.node < 0) {
        for (i64 i = 0; i < visit.length; i += 3) {
          Leaf(~visit.node, static_cast<std::size_t>(here[i + 2]), here[i], here[i + 1]);
        }
        continue;
      }
      const Node v = segment_.tree.nodes[static_cast<std::size_t>(visit.node)];
      i64* const to_left = here + visit.length;  // the right list is compacted in place
      i64 lefts = 0, rights = 0;
      for (i64 i = 0; i < visit.length; i += 3) {
        const i64 a = here[i], b = here[i + 1], k = here[i + 2];
        const i64 la = Left(v, a), lb = Left(v, b);
        to_left[lefts] = la;
        to_left[lefts + 1] = lb;
        to_left[lefts + 2] = k;
        lefts += lb > la ? 3 : 0;
        here[rights] = a - la;
        here[rights + 1] = b - lb;
        here[rights + 2] = k;
        rights += b - lb > a - la ? 3 : 0;
      }
      if (rights > 0) stack.push_back({v.right, rights, visit.from});
      if (lefts > 0) {
        stack.push_back({v.left, lefts, visit.from + static_cast<std::size_t>(visit.length)});
      }
    }
  }

 private:
  // Samples [a, b) of a domain go to the next slots of batch k.
  void Leaf(i32 domain, std::size_t k, i64 a, i64 b) {
    i64& cursor = s_.cursor[k];
    i32* const d = s_.slot_domain.data() + cursor;
    i64* const x = s_.slot_draw.data() + cursor;
    const i64 first = segment_.base[static_cast<std::size_t>(domain)] + a, n = b - a;
    for (i64 m = 0; m < kPair; ++m) {
      d[m] = domain;
      x[m] = first + m;
    }
    for (i64 m = kPair; m < n; ++m) {
      d[m] = domain;
      x[m] = first + m;
    }
    cursor += n;
  }

  const Segment& segment_;
  const i64 j0_, batches_, stride_;
  Scratch& s_;
};

}  // namespace

void BulkPicks(const Segment& segment, u64 order_key, i64 first, i64 count, i32* domain,
               i64* draw) {
  const i64 size = segment.batch();
  // A small part of a large batch: point by point, without making the whole batch.
  if (size > (1 << 20) || count * 8 < size) {
    const SegmentView view = segment.View();
    for (i64 i = 0; i < count; ++i) {
      const Pick pick = At(view, order_key, first + i);
      domain[i] = pick.domain;
      draw[i] = pick.draw;
    }
    return;
  }
  thread_local Scratch scratch;
  const i64 group = std::clamp<i64>((1 << 15) / size, 1, 1 << 12);
  const i64 begin = first - segment.start, end = begin + count;
  for (i64 j = begin / size; j * size < end; j += group) {
    const i64 batches = std::min(group, (end - 1) / size - j + 1);
    Filler filler(segment, j, batches, &scratch);
    if (static_cast<i64>(segment.tree.nodes.size()) <= 4 * size) {
      filler.Dense();
    } else {
      filler.Sparse();
    }
    for (i64 k = 0; k < batches; ++k) {
      const i64 a = (j + k) * size;
      const i64 from = std::max(begin, a), to = std::min(end, a + size);
      PermuteTable(segment.radix, BatchKeys(order_key, segment.start + a), &scratch.table);
      const u32* table = scratch.table.data() + (from - a);
      const i32* slot_domain = scratch.slot_domain.data() + k * (size + kGap);
      const i64* slot_draw = scratch.slot_draw.data() + k * (size + kGap);
      i32* d = domain + (from - begin);
      i64* x = draw + (from - begin);
      for (i64 r = 0; r < to - from; ++r) {
        d[r] = slot_domain[table[r]];
        x[r] = slot_draw[table[r]];
      }
    }
  }
}

}  // namespace mixcore
