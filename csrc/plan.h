// A run's mixture as the core sees it: domains, the pieces that the ledger's decisions amount to,
// and the questions that can be asked of them. No Python, no torch below this line.
//
// A piece is "from this position on, these shares, this batch size". Segments are derived from
// pieces, lazily and up to the position asked for: a piece becomes several where domains reach
// their caps. Appending costs O(D), whatever the position.
#pragma once

#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <vector>

#include "blend.h"
#include "portable.h"

namespace mixcore {

constexpr i64 kNever = INT64_MAX;  // a position that is never reached; a domain without a cap

struct Domain {
  std::string name;  // for messages only
  u64 key;           // hash of (seed, name)
  i64 size;          // samples per epoch, 0: open-ended
  i64 cap;           // most draws, kNever: no cap
};

struct Piece {
  i64 start;
  i64 batch;
  std::vector<u64> shares;      // one per domain known at that time, sum 2^62
  std::vector<double> weights;  // order megatron only
};

enum class OnCap { kRedistribute, kStop, kError };

// One segment's part of a window: its positions [start, end) in the whole run. `serial` is never
// given again, so what was kept of a segment stays good while its serial number comes up.
struct Span {
  u64 serial;
  i64 start, end;
};

// The end of a run that has one: its first impossible position and the domain to blame.
struct End {
  i64 position = kNever;
  i32 domain = -1;  // -1: every domain in force is used up
};

struct CapEvent {
  i64 position;  // first position at which the domain is no longer drawn
  i32 domain;
};

// All that a replay of a sequential order needs in order to go on from a position.
struct Checkpoint {
  i64 position = 0;
  i64 piece_start = 0;         // start of the piece in force
  std::vector<i64> counts;     // draws of each domain before `position`
  std::vector<i64> at_start;   // order megatron: the same at piece_start
  std::vector<double> debt;    // order megatron: what earlier pieces owe each domain
  std::vector<i64> capped_at;  // order random: where each domain reached its cap, 0: not yet
};

// What explain and report show of one segment.
struct SegmentInfo {
  i64 start, end, batch;
  // "piece", "redistributed" (caps took part of its shares), or one batch of a given composition:
  // "cap" (draws what is left of a domain), "settle" (pays debts of more than one sample)
  std::string kind;
  std::vector<u64> shares;
  std::vector<i64> base;
  double bound;  // on a leaf's deviation, samples
};

class Plan {
 public:
  virtual ~Plan() = default;

  // Adds domains, drops every piece at or after the first new one's start, and appends the new
  // ones (ascending starts). One step for all who ask at the same time: they see all of it or none.
  void Grow(std::vector<Domain> domains, std::vector<Piece> pieces);

  // Positions [start, start + count), all below 2^48.
  virtual void Picks(i64 start, i64 count, int threads, const Fields& out) = 0;
  virtual void At(const i64* positions, i64 count, const Fields& out) = 0;
  virtual std::vector<i64> Counts(i64 position) = 0;
  // The end of the run if it lies at or before `horizon`, else {kNever, -1}.
  virtual End FindEnd(i64 horizon) = 0;
  virtual std::vector<CapEvent> CapEvents(i64 horizon) = 0;
  virtual SegmentInfo Explain(i64 position) = 0;
  virtual i64 MemoryBytes() = 0;
  // Sequential orders only; the others have none and refuse one.
  virtual std::vector<Checkpoint> Checkpoints() { return {}; }
  virtual void Restore(Checkpoint checkpoint);

  // For other processors; order balanced only, the others refuse. The segments that hold
  // [start, start + count); or, with count < 0, all from `start` on up to the end of the run.
  virtual std::vector<Span> Spans(i64 start, i64 count);
  // A segment as flat.h lays it out; empty if it has been forgotten since.
  virtual std::vector<char> Flat(u64 serial);
  std::vector<DomainView> Views() {
    const std::shared_lock lock(mutex_);
    return views_;
  }
  u64 order_key() const { return order_key_; }

  i64 num_domains() {
    const std::shared_lock lock(mutex_);
    return static_cast<i64>(domains_.size());
  }

 protected:
  Plan(u64 order_key, OnCap on_cap) : order_key_(order_key), on_cap_(on_cap) {}
  // Forgets what was derived at or after `position`. Called under the exclusive lock.
  virtual void Forget(i64 position) = 0;
  [[noreturn]] void RaiseEnd(const End& end, i64 asked) const;
  // Epochs and samples from domains and draws that are already in `domain` and `draw`.
  void FillSamples(const i32* domain, const i64* draw, i64 count, const Fields& out) const;

  std::shared_mutex mutex_;  // queries share it, derivation and appends hold it alone
  u64 order_key_;
  OnCap on_cap_;
  std::vector<Domain> domains_;
  std::vector<DomainView> views_;
  std::vector<std::shared_ptr<const Piece>> pieces_;
};

std::unique_ptr<Plan> MakeBalancedPlan(u64 order_key, OnCap on_cap);
std::unique_ptr<Plan> MakeMegatronPlan(u64 order_key);
std::unique_ptr<Plan> MakeRandomPlan(u64 order_key, OnCap on_cap);

}  // namespace mixcore
