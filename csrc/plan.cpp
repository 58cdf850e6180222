// What all orders share: the list of pieces, errors at the end of a run, epochs and samples.
#include "plan.h"

#include "errors.h"

namespace mixcore {

void Plan::AddDomain(Domain domain) {
  const std::unique_lock lock(mutex_);
  const u64 size = static_cast<u64>(domain.size == 0 ? 1 : domain.size);
  views_.push_back({domain.key, domain.size, Divider::Of(size), Radix::Of(size)});
  domains_.push_back(std::move(domain));
}

void Plan::Append(Piece piece) {
  const std::unique_lock lock(mutex_);
  while (!pieces_.empty() && pieces_.back()->start >= piece.start) pieces_.pop_back();
  Forget(piece.start);
  pieces_.push_back(std::make_shared<const Piece>(std::move(piece)));
}

void Plan::Restore(Checkpoint) { throw ValueError("this order has no checkpoints to restore"); }

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

void Plan::FillSamples(const i32* domain, const i64* draw, i64 count, const Fields& out) const {
  // Keys change once an epoch, so a window reuses them; one slot a domain, filled at first use.
  struct Slot {
    i64 epoch = -1;
    RoundKeys keys;
  };
  thread_local std::vector<Slot> slots;
  const bool cached = out.sample != nullptr && count >= static_cast<i64>(views_.size());
  if (cached) slots.assign(views_.size(), Slot{});
  for (i64 i = 0; i < count; ++i) {
    const DomainView& d = views_[static_cast<std::size_t>(domain[i])];
    const i64 epoch = EpochOf(d, draw[i]);
    if (out.epoch) out.epoch[i] = epoch;
    if (!out.sample) continue;
    if (!cached) {
      out.sample[i] = SampleOf(d, EpochKeys(d, epoch), draw[i], epoch);
      continue;
    }
    Slot& slot = slots[static_cast<std::size_t>(domain[i])];
    if (slot.epoch != epoch) slot = {epoch, EpochKeys(d, epoch)};
    out.sample[i] = SampleOf(d, slot.keys, draw[i], epoch);
  }
}

}  // namespace mixcore
