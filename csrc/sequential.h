// Orders that are sequential by nature: `megatron` (greedy) and `random` (a draw number needs a
// prefix count). A look-up replays from the nearest checkpoint; checkpoints are O(D) each, a
// bounded number of them, spread over the positions visited so far.
#pragma once

#include <memory>
#include <vector>

#include "plan.h"

namespace mixcore {

class SequentialPlan : public Plan {
 public:
  void Picks(i64 start, i64 count, int threads, const Fields& out) override;
  void At(const i64* positions, i64 count, const Fields& out) override;
  std::vector<i64> Counts(i64 position) override;
  End FindEnd(i64 horizon) override;
  std::vector<CapEvent> CapEvents(i64 horizon) override;
  SegmentInfo Explain(i64 position) override;
  i64 MemoryBytes() override;
  std::vector<Checkpoint> Checkpoints() override;
  void Restore(Checkpoint checkpoint) override;

 protected:
  using Plan::Plan;

  // Makes ready to go on from `live_` under pieces_[index].
  virtual void Begin(std::size_t index) = 0;
  // Advances `live_` by n positions, all under the piece of the last Begin(); draws are counts
  // before each draw. Returns fewer than n where the run ends (`end_` is set then).
  virtual i64 Advance(i64 n, i32* domain, i64* draw) = 0;
  void Forget(i64 position) override;

  Checkpoint live_;
  End end_;

 private:
  void Seek(i64 position);
  i64 Run(i64 count, i32* domain, i64* draw);
  void Keep();
  bool MayEnd() const;
  i64 RunEnd(i64 last);

  std::vector<Checkpoint> checkpoints_;  // ascending
  i64 stride_ = i64{1} << 16;
  i64 endless_to_ = 0;  // the run is known not to end before this position
  i64 begun_ = -1;      // index of the piece of the last Begin(), -1: none
};

}  // namespace mixcore
