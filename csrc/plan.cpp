// What all orders share: the list of pieces, errors at the end of a run, epochs and samples.
#include "plan.h"

#include <algorithm>

#include "errors.h"
#include "permute_table.h"

namespace mixcore {

namespace {

// Room for `more` entries, growing as push_back would: reserve() alone would move all every time.
template <typename T>
void Reserve(std::vector<T>* v, std::size_t more) {
  const std::size_t needed = v->size() + more;
  if (needed > v->capacity()) v->reserve(std::max(needed, 2 * v->capacity()));
}

}  // namespace

void Plan::Grow(std::vector<Domain> domains, std::vector<Piece> pieces) {
  std::vector<std::shared_ptr<const Piece>> made;
  for (Piece& piece : pieces) made.push_back(std::make_shared<const Piece>(std::move(piece)));
  const std::unique_lock lock(mutex_);
  Reserve(&domains_, domains.size());  // nothing below may fail half-way
  Reserve(&views_, domains.size());
  Reserve(&pieces_, made.size());
  for (Domain& domain : domains) {
    const u64 size = static_cast<u64>(domain.size == 0 ? 1 : domain.size);
    views_.push_back({domain.key, domain.size, Divider::Of(size), Radix::Of(size)});
    domains_.push_back(std::move(domain));
  }
  if (made.empty()) return;
  const i64 start = made.front()->start;
  while (!pieces_.empty() && pieces_.back()->start >= start) pieces_.pop_back();
  Forget(start);
  for (auto& piece : made) pieces_.push_back(std::move(piece));
}

void Plan::Restore(Checkpoint) { throw ValueError("this order has no checkpoints to restore"); }

std::vector<Span> Plan::Spans(i64, i64) { throw ValueError("this order has no segments"); }

std::vector<char> Plan::Flat(u64) { throw ValueError("this order has no segments"); }

void Plan::RaiseEnd(const End& end, i64 asked) const {
  std::string why = "every domain with a positive weight has reached its cap";
  if (end.domain >= 0) {
    const Domain& d = domains_[static_cast<std::size_t>(end.domain)];
    why = "domain '" + d.name + "' reaches its cap of " + std::to_string(d.cap) +
          " samples there (on_cap='" + (on_cap_ == OnCap::kStop ? "stop" : "error") + "')";
  }
  throw CapError("position " + std::to_string(asked) +
                 " is beyond the end of the run at position " + std::to_string(end.position) +
                 ": " + why);
}

namespace {

// Keys change once an epoch, so a window reuses them; one slot a domain, filled at first use.
struct KeySlot {
  i64 epoch = -1;
  RoundKeys keys;
};

const RoundKeys& KeysOf(const DomainView& d, i64 epoch, KeySlot* slot) {
  if (slot->epoch != epoch) *slot = {epoch, EpochKeys(d, epoch)};
  return slot->keys;
}

}  // namespace

void Plan::FillSamples(const i32* domain, const i64* draw, i64 count, const Fields& out) const {
  constexpr int kLanes = PermuteLanes::kLanes;
  thread_local std::vector<KeySlot> slots;
  const bool cached = out.sample != nullptr && count >= static_cast<i64>(views_.size());
  if (cached) slots.assign(views_.size(), KeySlot{});
  KeySlot single;
  PermuteLanes lanes;
  RoundKeys keys[kLanes];
  for (i64 start = 0; start < count; start += kLanes) {
    const int n = static_cast<int>(std::min<i64>(kLanes, count - start));
    u64 in_lane = 0;  // the others are done one by one
    for (int i = 0; i < n; ++i) {
      const i64 at = start + i;
      const std::size_t index = static_cast<std::size_t>(domain[at]);
      const DomainView& d = views_[index];
      const i64 epoch = EpochOf(d, draw[at]);
      if (out.epoch) out.epoch[at] = epoch;
      if (!out.sample) continue;
      single.epoch = -1;
      keys[i] = d.size == 0 ? RoundKeys{} : KeysOf(d, epoch, cached ? &slots[index] : &single);
      if (d.size == 0 || !PermuteLanes::Fits(d.radix)) {
        out.sample[at] = SampleOf(d, keys[i], draw[at], epoch);
        lanes.Clear(i);
        continue;
      }
      lanes.Set(i, d.radix, keys[i], static_cast<u64>(draw[at] - epoch * d.size));
      in_lane |= u64{1} << i;
    }
    if (in_lane == 0) continue;
    for (int i = n; i < kLanes; ++i) lanes.Clear(i);
    RunNetworks(&lanes);
    for (int i = 0; i < n; ++i) {
      if (!(in_lane >> i & 1)) continue;
      const Radix& radix = views_[static_cast<std::size_t>(domain[start + i])].radix;
      u64 y = u64{lanes.hi[i]} * lanes.a[i] + lanes.lo[i];
      if (y >= radix.n) y = Permute(radix, keys[i], y);  // the cycle walk goes on
      out.sample[start + i] = static_cast<i64>(y);
    }
  }
}

}  // namespace mixcore
