// Order `balanced` in bulk: whole batches walk down the tree together, so that a node is visited
// once for many batches and a leaf fills a run of slots; then each batch's permutation takes every
// position to its slot. The same function of a position as blend.h's At().
#include <algorithm>
#include <vector>

#include "balanced.h"
#include "permute_table.h"

namespace mixcore {
namespace {

// Samples [a, b) of batch k that have entered a node.
struct Flow {
  i64 a, b;
  i32 k;
};

struct Scratch {
  std::vector<Flow> flows;  // a stack of lists
  std::vector<i32> slot_domain;
  std::vector<i64> slot_draw;
  std::vector<i64> cursor;  // next free slot of each batch
  std::vector<u32> table;
};

// Slots of batches [j0, j0 + batches) of the segment, in the order of the tree's leaves.
void FillSlots(const Segment& segment, i64 j0, i32 batches, Scratch* s) {
  struct Visit {
    i32 node;
    i32 length;
    std::size_t from;
  };
  const i64 size = segment.batch();
  s->slot_domain.resize(static_cast<std::size_t>(size * batches));
  s->slot_draw.resize(static_cast<std::size_t>(size * batches));
  s->cursor.resize(static_cast<std::size_t>(batches));
  s->flows.resize(static_cast<std::size_t>(batches) *
                  (static_cast<std::size_t>(segment.tree.depth) + 2));
  Flow* const flows = s->flows.data();
  for (i32 k = 0; k < batches; ++k) {
    flows[k] = {(j0 + k) * size, (j0 + k + 1) * size, k};
    s->cursor[static_cast<std::size_t>(k)] = k * size;
  }
  std::vector<Visit> stack{{segment.tree.root, batches, 0}};
  while (!stack.empty()) {
    const Visit visit = stack.back();
    stack.pop_back();
    Flow* const here = flows + visit.from;
    if (visit.node < 0) {
      const i32 domain = ~visit.node;
      const i64 base = segment.base[static_cast<std::size_t>(domain)];
      for (i32 i = 0; i < visit.length; ++i) {
        const Flow f = here[i];
        i64& cursor = s->cursor[static_cast<std::size_t>(f.k)];
        i32* d = s->slot_domain.data() + cursor;
        i64* x = s->slot_draw.data() + cursor;
        const i64 n = f.b - f.a;
        cursor += n;
        for (i64 m = 0; m < n; ++m) {
          d[m] = domain;
          x[m] = base + f.a + m;
        }
      }
      continue;
    }
    const Node& v = segment.tree.nodes[static_cast<std::size_t>(visit.node)];
    Flow* const to_left = here + visit.length;  // the right list is compacted in place
    i32 lefts = 0, rights = 0;
    for (i32 i = 0; i < visit.length; ++i) {
      const Flow f = here[i];
      const i64 la = Left(v, f.a), lb = Left(v, f.b);
      to_left[lefts] = {la, lb, f.k};
      lefts += lb > la;
      here[rights] = {f.a - la, f.b - lb, f.k};
      rights += f.b - lb > f.a - la;
    }
    if (rights > 0) stack.push_back({v.right, rights, visit.from});
    if (lefts > 0) {
      stack.push_back({v.left, lefts, visit.from + static_cast<std::size_t>(visit.length)});
    }
  }
}

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
  const i64 group = std::clamp<i64>((1 << 14) / size, 1, 1 << 12);
  const i64 begin = first - segment.start, end = begin + count;
  for (i64 j = begin / size; j * size < end; j += group) {
    const i64 batches = std::min(group, (end - 1) / size - j + 1);
    FillSlots(segment, j, static_cast<i32>(batches), &scratch);
    for (i64 k = 0; k < batches; ++k) {
      const i64 a = (j + k) * size;
      const i64 from = std::max(begin, a), to = std::min(end, a + size);
      PermuteTable(segment.radix, BatchKeys(order_key, segment.start + a), &scratch.table);
      const u32* table = scratch.table.data() + (from - a);
      const i32* slot_domain = scratch.slot_domain.data() + k * size;
      const i64* slot_draw = scratch.slot_draw.data() + k * size;
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
