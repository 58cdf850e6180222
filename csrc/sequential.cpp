// Replay from checkpoints; the two orders themselves are in order_megatron.cpp, order_random.cpp.
#include "sequential.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "errors.h"

namespace mixcore {
namespace {

constexpr i64 kMostSteps = 1'000'000'000;        // a look-up that needs more is refused
constexpr i64 kCheckpointBytes = i64{64} << 20;  // held in all
constexpr i64 kChunk = 1 << 16;

}  // namespace

void SequentialPlan::Forget(i64 position) {
  while (!checkpoints_.empty() && checkpoints_.back().position > position) checkpoints_.pop_back();
  if (end_.position >= position) end_ = End{};
  endless_to_ = std::min(endless_to_, position);
  if (live_.position > position) live_ = Checkpoint{};
  begun_ = -1;
}

// Keeps the live state. Too many: every second one goes, and they come half as often from then on.
void SequentialPlan::Keep() {
  const auto after = std::upper_bound(checkpoints_.begin(), checkpoints_.end(), live_.position,
                                      [](i64 x, const Checkpoint& c) { return x < c.position; });
  if (after != checkpoints_.begin() && (after - 1)->position == live_.position) return;
  checkpoints_.insert(after, live_);
  const i64 each = static_cast<i64>(live_.counts.size() * 24 + sizeof(Checkpoint));
  const std::size_t most =
      static_cast<std::size_t>(std::clamp<i64>(kCheckpointBytes / each, 8, 4096));
  if (checkpoints_.size() <= most) return;
  std::vector<Checkpoint> kept;
  for (std::size_t i = 1; i < checkpoints_.size(); i += 2) kept.push_back(checkpoints_[i]);
  checkpoints_ = std::move(kept);
  stride_ *= 2;
}

// Advances the live state over pieces; stops short only at the end of the run.
i64 SequentialPlan::Run(i64 count, i32* domain, i64* draw) {
  i64 done = 0;
  while (done < count && live_.position < end_.position) {
    std::size_t index = begun_ < 0 ? 0 : static_cast<std::size_t>(begun_);
    while (index + 1 < pieces_.size() && pieces_[index + 1]->start <= live_.position) ++index;
    if (begun_ != static_cast<i64>(index)) {
      Begin(index);
      begun_ = static_cast<i64>(index);
    }
    const i64 stop = index + 1 < pieces_.size() ? pieces_[index + 1]->start : kNever;
    const i64 mark = (live_.position / stride_ + 1) * stride_;
    const i64 n = std::min({count - done, stop - live_.position, mark - live_.position});
    const i64 made = Advance(n, domain ? domain + done : nullptr, draw ? draw + done : nullptr);
    done += made;
    if (live_.position == mark) Keep();
    if (made < n) break;
  }
  return done;
}

// Brings the live state to `position`, from itself or from the nearest checkpoint before it.
void SequentialPlan::Seek(i64 position) {
  if (pieces_.empty()) throw LedgerError("the plan has no piece yet");
  const auto after = std::upper_bound(checkpoints_.begin(), checkpoints_.end(), position,
                                      [](i64 x, const Checkpoint& c) { return x < c.position; });
  const i64 nearest = after == checkpoints_.begin() ? 0 : (after - 1)->position;
  if (live_.position > position || live_.position < nearest) {
    live_ = after == checkpoints_.begin() ? Checkpoint{} : *(after - 1);
    begun_ = -1;
  }
  live_.counts.resize(domains_.size());
  const i64 steps = position - live_.position;
  if (steps > kMostSteps) {
    throw DistanceError("position " + std::to_string(position) + " is " + std::to_string(steps) +
                        " steps from the nearest checkpoint (" + std::to_string(live_.position) +
                        "); this order is sequential and replays at most " +
                        std::to_string(kMostSteps) + " steps a look-up");
  }
  Run(steps, nullptr, nullptr);
}

// Whether caps can end the run at all: not where some domain without a cap takes over.
bool SequentialPlan::MayEnd() const {
  return std::any_of(pieces_.begin(), pieces_.end(), [&](const auto& piece) {
    bool some = false, all = true;
    for (std::size_t d = 0; d < piece->shares.size(); ++d) {
      if (piece->shares[d] == 0) continue;
      const bool capped = domains_[d].cap != kNever;
      some = some || capped;
      all = all && capped;
    }
    return on_cap_ == OnCap::kRedistribute ? all : some;
  });
}

// Where the run ends if that is at or before `last`: it takes a replay to know, up to a batch
// boundary (the end is one) and some way ahead, so that a loader does not replay every batch.
i64 SequentialPlan::RunEnd(i64 last) {
  if (last >= endless_to_ && end_.position == kNever && MayEnd()) {
    Seek(last);  // if that is too far, the error names the position that was asked for
    const i64 ahead = std::max(last + 1, std::min(last + kChunk, kMaxPosition));
    std::size_t index = pieces_.size();
    while (index > 1 && pieces_[index - 1]->start > ahead) --index;
    const Piece& piece = *pieces_[index - 1];
    Seek(ahead + piece.batch - (ahead - piece.start) % piece.batch);
    endless_to_ = live_.position;
  }
  return end_.position;
}

void SequentialPlan::Picks(i64 start, i64 count, int, const Fields& out) {
  if (count == 0) return;
  const std::unique_lock lock(mutex_);
  if (start + count > RunEnd(start + count - 1)) RaiseEnd(end_, start + count - 1);
  Seek(start);
  std::vector<i32> domain(out.domain ? 0 : static_cast<std::size_t>(std::min(count, kChunk)));
  std::vector<i64> draw(out.draw ? 0 : static_cast<std::size_t>(std::min(count, kChunk)));
  for (i64 done = 0; done < count; done += kChunk) {
    const i64 n = std::min(count - done, kChunk);
    const Fields here = out.At(done);
    i32* d = here.domain ? here.domain : domain.data();
    i64* x = here.draw ? here.draw : draw.data();
    if (Run(n, d, x) != n) throw std::logic_error("a replay ended before the run's end");
    if (out.epoch || out.sample) FillSamples(d, x, n, here);
  }
}

void SequentialPlan::At(const i64* positions, i64 count, const Fields& out) {
  if (count == 0) return;
  const std::unique_lock lock(mutex_);
  std::vector<i64> order(static_cast<std::size_t>(count));
  std::iota(order.begin(), order.end(), i64{0});
  std::sort(order.begin(), order.end(), [&](i64 a, i64 b) { return positions[a] < positions[b]; });
  const i64 last = positions[order.back()];
  if (last >= RunEnd(last)) RaiseEnd(end_, last);
  i32 domain = 0;
  i64 draw = 0, at = -1;
  for (const i64 i : order) {
    if (positions[i] != at) {
      at = positions[i];
      Seek(at);
      if (Run(1, &domain, &draw) != 1)
        throw std::logic_error("a replay ended before the run's end");
    }
    if (out.domain) out.domain[i] = domain;
    if (out.draw) out.draw[i] = draw;
    if (out.epoch || out.sample) FillSamples(&domain, &draw, 1, out.At(i));
  }
}

std::vector<i64> SequentialPlan::Counts(i64 position) {
  const std::unique_lock lock(mutex_);
  if (position > 0 && position > RunEnd(position - 1)) RaiseEnd(end_, position - 1);
  Seek(position);
  std::vector<i64> counts = live_.counts;
  counts.resize(domains_.size());
  return counts;
}

End SequentialPlan::FindEnd(i64 horizon) {
  const std::unique_lock lock(mutex_);
  return RunEnd(horizon) <= horizon ? end_ : End{};
}

std::vector<CapEvent> SequentialPlan::CapEvents(i64 horizon) {
  const std::unique_lock lock(mutex_);
  std::vector<CapEvent> events;
  const bool capped = std::any_of(domains_.begin(), domains_.end(),
                                  [](const Domain& d) { return d.cap != kNever; });
  if (!capped) return events;
  Seek(std::min(horizon, RunEnd(horizon)));
  for (std::size_t d = 0; d < live_.capped_at.size(); ++d) {
    if (live_.capped_at[d]) events.push_back({live_.capped_at[d], static_cast<i32>(d)});
  }
  std::sort(events.begin(), events.end(),
            [](const CapEvent& a, const CapEvent& b) { return a.position < b.position; });
  return events;
}

SegmentInfo SequentialPlan::Explain(i64 position) {
  i64 start = 0;
  SegmentInfo info{};
  {
    const std::unique_lock lock(mutex_);
    if (position >= RunEnd(position)) RaiseEnd(end_, position);
    if (pieces_.empty()) throw LedgerError("the plan has no piece yet");
    std::size_t index = pieces_.size();
    while (index > 1 && pieces_[index - 1]->start > position) --index;
    const Piece& piece = *pieces_[index - 1];
    start = piece.start;
    const i64 end = index < pieces_.size() ? pieces_[index]->start : kNever;
    info = {start, std::min(end, end_.position), piece.batch, "piece", piece.shares, {}, 0.0};
  }
  info.base = Counts(start);
  return info;
}

i64 SequentialPlan::MemoryBytes() {
  const std::shared_lock lock(mutex_);
  std::size_t bytes = 0;
  for (const auto& p : pieces_) {
    bytes += sizeof(Piece) + p->shares.capacity() * sizeof(u64) + p->weights.capacity() * 8;
  }
  for (const Checkpoint& c : checkpoints_) {
    bytes += sizeof(c) + 8 * (c.counts.capacity() + c.at_start.capacity() + c.debt.capacity());
  }
  return static_cast<i64>(bytes);
}

std::vector<Checkpoint> SequentialPlan::Checkpoints() {
  const std::shared_lock lock(mutex_);
  std::vector<Checkpoint> all = checkpoints_;
  const i64 last = all.empty() ? 0 : all.back().position;
  if (live_.position > last) all.push_back(live_);
  return all;
}

void SequentialPlan::Restore(Checkpoint checkpoint) {
  const std::unique_lock lock(mutex_);
  const Checkpoint live = std::move(live_);
  live_ = std::move(checkpoint);
  Keep();
  live_ = live;
}

}  // namespace mixcore
