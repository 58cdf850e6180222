// Order `balanced`: segments derived from pieces and caps, and the loops over blend.h.
#pragma once

#include <memory>
#include <vector>

#include "plan.h"
#include "tree.h"

namespace mixcore {

struct Segment {
  u64 serial = 0;
  i64 start = 0;
  i64 cap_end = kNever;  // the first position where a cap ends this segment
  bool exact = false;    // one batch of a given composition: what is left before a cap
  std::shared_ptr<const Piece> piece;
  std::shared_ptr<const std::vector<u64>> shares;  // the piece's, or redistributed ones
  std::vector<i64> base;                           // draws before start, one per domain
  std::vector<i128> ideal;        // exact share at start: sum of share x length, units of 2^-62
  std::vector<i128> ideal_after;  // exact segments have this instead: the same at start + batch
  Tree tree;
  const char* kind = "piece";
  Divider by_batch;
  Radix radix;

  i64 batch() const { return piece->batch; }
  SegmentView View() const {
    return {start, batch(), by_batch, radix, tree.nodes.data(), tree.root, base.data()};
  }
};

// Draws before position x (a batch boundary of the segment), and the exact ideals there.
std::vector<i64> BaseAt(const Segment& segment, i64 x);
std::vector<i128> IdealAt(const Segment& segment, i64 x);

// Fills domain and draw of [first, first + count), which lie inside one segment.
void BulkPicks(const Segment& segment, u64 order_key, i64 first, i64 count, i32* domain, i64* draw);

class BalancedPlan final : public Plan {
 public:
  BalancedPlan(u64 order_key, OnCap on_cap) : Plan(order_key, on_cap) {}

  void Picks(i64 start, i64 count, int threads, const Fields& out) override;
  void At(const i64* positions, i64 count, const Fields& out) override;
  std::vector<i64> Counts(i64 position) override;
  End FindEnd(i64 horizon) override;
  std::vector<CapEvent> CapEvents(i64 horizon) override;
  SegmentInfo Explain(i64 position) override;
  i64 MemoryBytes() override;
  std::vector<Span> Spans(i64 start, i64 count) override;
  std::vector<char> Flat(u64 serial) override;

 protected:
  void Forget(i64 position) override;

 private:
  // Derives segments until `position` is covered or the run has ended before it.
  void Extend(i64 position);
  bool Covered(i64 position) const;
  // A lock under which every position <= `last` is derived.
  std::shared_lock<std::shared_mutex> Derived(i64 last);
  void Open(i64 x, std::shared_ptr<const Piece> piece, std::vector<i64> base,
            std::vector<i128> ideal);
  void ReachCap();
  // Adds a segment of one batch that draws `count` of each domain.
  void PushExact(i64 x, const char* kind, std::shared_ptr<const Piece> piece,
                 std::shared_ptr<const std::vector<u64>> shares, std::vector<i64> base,
                 const std::vector<i64>& count, std::vector<i128> ideal_after);
  void Push(std::unique_ptr<Segment> segment);
  i64 CapEnd(const Segment& segment) const;
  // Index of the segment that holds `position`.
  std::size_t Find(i64 position) const;
  void PicksOfRange(i64 start, i64 count, const Fields& out) const;

  std::vector<std::unique_ptr<Segment>> segments_;
  u64 next_serial_ = 0;
  std::size_t next_piece_ = 0;
  End end_;
  std::vector<CapEvent> events_;
};

}  // namespace mixcore
