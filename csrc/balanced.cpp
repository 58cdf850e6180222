// Derivation of segments from pieces and caps, and the questions asked of them.
#include "balanced.h"

#include <algorithm>
#include <cstdlib>
#include <thread>

#include "errors.h"
#include "shares.h"

namespace mixcore {

std::vector<i64> BaseAt(const Segment& segment, i64 x) {
  std::vector<i64> base = segment.base;
  AddCounts(segment.tree, x - segment.start, base.data());
  return base;
}

std::vector<i128> IdealAt(const Segment& segment, i64 x) {
  if (segment.exact) return segment.ideal_after;  // x is its end: nothing opens inside a batch
  std::vector<i128> ideal = segment.ideal;
  const i128 length = x - segment.start;
  for (std::size_t d = 0; d < ideal.size(); ++d) {
    ideal[d] += length * static_cast<i128>((*segment.shares)[d]);
  }
  return ideal;
}

namespace {

// The composition of a batch that serves debts first: one sample after another goes to the domain
// with the largest debt, ties to the lower number. debt: exact ideals at the batch's end minus the
// draws before it; domains with share 0 take no part.
std::vector<i64> Settle(const std::vector<u64>& shares, const std::vector<i128>& debt, i64 batch) {
  const std::size_t n = shares.size();
  std::vector<i64> count(n, 0);
  i64 sum = 0;
  for (std::size_t d = 0; d < n; ++d) {
    if (shares[d] > 0 && debt[d] > 0) count[d] = static_cast<i64>(debt[d] >> kShareBits);
    sum += count[d];
  }
  const auto rest = [&](u32 d) { return debt[d] - (static_cast<i128>(count[d]) << kShareBits); };
  std::vector<u32> candidates;
  while (sum != batch) {  // at most one sample a domain and round; two rounds are rare
    const bool give = sum < batch;
    candidates.clear();
    for (u32 d = 0; d < n; ++d) {
      if (shares[d] > 0 && (give || count[d] > 0)) candidates.push_back(d);
    }
    const i64 step = std::min<i64>(static_cast<i64>(candidates.size()), std::abs(batch - sum));
    const auto first = [&](u32 x, u32 y) {
      const i128 a = rest(x), b = rest(y);
      return a != b ? (give ? a > b : a < b) : x < y;
    };
    const auto edge = candidates.begin() + step;
    if (edge != candidates.end())
      std::nth_element(candidates.begin(), edge, candidates.end(), first);
    for (auto d = candidates.begin(); d != edge; ++d) count[*d] += give ? 1 : -1;
    sum += give ? step : -step;
  }
  return count;
}

}  // namespace

void BalancedPlan::PushExact(i64 x, const char* kind, std::shared_ptr<const Piece> piece,
                             std::shared_ptr<const std::vector<u64>> shares, std::vector<i64> base,
                             const std::vector<i64>& count, std::vector<i128> ideal_after) {
  auto segment = std::make_unique<Segment>();
  segment->start = x;
  segment->cap_end = x + piece->batch;
  segment->exact = true;
  segment->kind = kind;
  segment->by_batch = Divider::Of(static_cast<u64>(piece->batch));
  segment->radix = Radix::Of(static_cast<u64>(piece->batch));
  segment->piece = std::move(piece);
  segment->shares = std::move(shares);
  segment->base = std::move(base);
  segment->ideal_after = std::move(ideal_after);
  segment->tree = BuildExactTree(count);
  segments_.push_back(std::move(segment));
}

// Opens a segment at x: the piece's shares, less the domains that are used up.
void BalancedPlan::Open(i64 x, std::shared_ptr<const Piece> piece, std::vector<i64> base,
                        std::vector<i128> ideal) {
  base.resize(piece->shares.size());
  ideal.resize(piece->shares.size());
  auto segment = std::make_unique<Segment>();
  segment->start = x;
  segment->shares = std::shared_ptr<const std::vector<u64>>(piece, &piece->shares);
  segment->piece = std::move(piece);
  std::vector<u64> mass = *segment->shares;
  i128 forgiven = 0;  // a used-up domain's debt goes to the others
  bool used_up = false, any = false;
  for (std::size_t d = 0; d < mass.size(); ++d) {
    if (mass[d] > 0 && base[d] >= domains_[d].cap) {
      if (on_cap_ != OnCap::kRedistribute) {
        end_ = {x, static_cast<i32>(d)};
        return;
      }
      const i128 drawn = static_cast<i128>(base[d]) << kShareBits;
      forgiven += ideal[d] - drawn;
      ideal[d] = drawn;
      mass[d] = 0;
      used_up = true;
      const auto same = [&](const CapEvent& e) { return e.domain == static_cast<i32>(d); };
      if (std::none_of(events_.begin(), events_.end(), same)) {
        events_.push_back({x, static_cast<i32>(d)});
      }
    }
    any = any || mass[d] > 0;
  }
  if (!any) {
    end_ = {x, -1};
    return;
  }
  if (used_up) {
    segment->shares = std::make_shared<const std::vector<u64>>(SharesOfMasses(mass));
    segment->kind = "redistributed";
    Apportion(*segment->shares, forgiven, &ideal);
  }
  const std::vector<u64>& shares = *segment->shares;
  std::vector<i128> debt(base.size());
  bool settle = false;
  for (std::size_t d = 0; d < debt.size(); ++d) {
    debt[d] = ideal[d] - (static_cast<i128>(base[d]) << kShareBits);
    const i128 one = static_cast<i128>(kShareSum);
    settle = settle || (shares[d] > 0 && (debt[d] > one || debt[d] < -one));
  }
  // A tree corrects a sum of debts, not each of them: a domain that is owed may starve among others
  // that are ahead. Where a change finds a debt of more than one sample, its first batch is dealt
  // out domain by domain.
  const i64 batch = segment->batch();
  if (settle && x == segment->piece->start) {
    std::vector<i128> after = ideal;
    for (std::size_t d = 0; d < after.size(); ++d) {
      const i128 due = static_cast<i128>(shares[d]) * batch;
      after[d] += due;
      debt[d] += due;
    }
    const std::vector<i64> count = Settle(shares, debt, batch);
    bool fits = true;
    for (std::size_t d = 0; d < base.size(); ++d) {
      fits = fits && (count[d] == 0 || count[d] <= domains_[d].cap - base[d]);
    }
    if (fits) {
      return PushExact(x, "settle", segment->piece, segment->shares, std::move(base), count,
                       std::move(after));
    }
    for (std::size_t d = 0; d < debt.size(); ++d) debt[d] -= static_cast<i128>(shares[d]) * batch;
  }
  segment->base = std::move(base);
  segment->ideal = std::move(ideal);
  segment->by_batch = Divider::Of(static_cast<u64>(batch));
  segment->radix = Radix::Of(static_cast<u64>(batch));
  segment->tree = BuildTree(*segment->shares, debt.data());
  segment->cap_end = CapEnd(*segment);
  segments_.push_back(std::move(segment));
}

// The last segment's next batch would draw some domain past its cap. Ends the run there, or adds
// the batch that draws exactly what is left and fills up from the other domains.
void BalancedPlan::ReachCap() {
  const Segment& last = *segments_.back();
  const i64 x = last.cap_end, batch = last.batch();
  const std::vector<i64> base = BaseAt(last, x), after = BaseAt(last, x + batch);
  const std::vector<i128> ideal = IdealAt(last, x);
  const std::size_t n = base.size();
  std::vector<char> over(n, 0);
  bool some_left = false;
  for (std::size_t d = 0; d < n; ++d) {
    over[d] = (*last.shares)[d] > 0 && after[d] > domains_[d].cap;
    if (over[d] && on_cap_ != OnCap::kRedistribute) {
      end_ = {x, static_cast<i32>(d)};
      return;
    }
    some_left = some_left || (over[d] && base[d] < domains_[d].cap);
  }
  if (!some_left) return Open(x, last.piece, base, ideal);
  for (;;) {  // filling up may draw a further domain past its cap: at most n rounds
    std::vector<i64> count(n, 0);
    std::vector<i128> next = ideal;
    std::vector<u64> mass = last.piece->shares;
    i64 rest = batch;
    i128 forgiven = 0;
    bool any = false;
    for (std::size_t d = 0; d < n; ++d) {
      if (mass[d] > 0 && (over[d] || base[d] >= domains_[d].cap)) {
        count[d] = domains_[d].cap - base[d];
        rest -= count[d];
        forgiven += ideal[d] - (static_cast<i128>(base[d]) << kShareBits);
        next[d] = static_cast<i128>(domains_[d].cap) << kShareBits;
        mass[d] = 0;
      }
      any = any || mass[d] > 0;
    }
    if (rest > 0 && !any) {
      end_ = {x, -1};
      return;
    }
    bool again = false;
    if (any) {
      const std::vector<u64> shares = SharesOfMasses(mass);
      Apportion(shares, forgiven, &next);
      std::vector<i128> debt(n);
      for (std::size_t d = 0; d < n; ++d) {
        debt[d] = next[d] - (static_cast<i128>(base[d]) << kShareBits);
        next[d] += static_cast<i128>(shares[d]) * rest;
      }
      if (rest > 0) AddCounts(BuildTree(shares, debt.data()), rest, count.data());
      for (std::size_t d = 0; d < n; ++d) {
        if (mass[d] > 0 && base[d] + count[d] > domains_[d].cap) over[d] = again = true;
      }
    }
    if (again) continue;
    return PushExact(x, "cap", last.piece, last.shares, base, count, std::move(next));
  }
}

// First batch that would draw a domain past its cap. The estimate brackets it; counts decide.
i64 BalancedPlan::CapEnd(const Segment& segment) const {
  const i64 batch = segment.batch();
  const double top = static_cast<double>((kMaxPosition - segment.start) / batch + 1);
  double low = top, high = top;
  bool capped = false;
  for (std::size_t d = 0; d < segment.base.size(); ++d) {
    const u64 share = (*segment.shares)[d];
    if (share == 0 || domains_[d].cap == kNever) continue;
    capped = true;
    const double left = static_cast<double>(domains_[d].cap - segment.base[d]);
    const double per_batch =
        std::ldexp(static_cast<double>(share), -kShareBits) * static_cast<double>(batch);
    low = std::min(low, std::max(0.0, (left - 8) / per_batch - 2));
    high = std::min(high, (left + 8) / per_batch + 2);
  }
  if (!capped) return kNever;
  const auto over = [&](i64 j) {
    const std::vector<i64> count = BaseAt(segment, segment.start + (j + 1) * batch);
    for (std::size_t d = 0; d < count.size(); ++d) {
      if ((*segment.shares)[d] > 0 && count[d] > domains_[d].cap) return true;
    }
    return false;
  };
  const i64 limit = static_cast<i64>(top);
  i64 no = static_cast<i64>(low) - 1, yes = static_cast<i64>(high);
  while (no >= 0 && over(no)) no = no / 2 - 1;
  while (yes < limit && !over(yes)) yes = std::min(limit, 2 * yes + 1);
  while (yes - no > 1) {  // invariant: !over(no) (or no == -1), over(yes) (or yes == limit)
    const i64 mid = no + (yes - no) / 2;
    (over(mid) ? yes : no) = mid;
  }
  return yes >= limit ? kNever : segment.start + yes * batch;
}

void BalancedPlan::Extend(i64 position) {
  if (pieces_.empty()) throw LedgerError("the plan has no piece yet");
  while (end_.position == kNever) {
    const i64 next = next_piece_ < pieces_.size() ? pieces_[next_piece_]->start : kNever;
    if (segments_.empty()) {
      Open(next, pieces_[next_piece_++], {}, {});
      continue;
    }
    const Segment& last = *segments_.back();
    if (position < std::min(last.cap_end, next)) return;
    const auto same = [&] {  // a change that changes nothing: not a single count may move
      return pieces_[next_piece_]->batch == last.piece->batch &&
             pieces_[next_piece_]->shares == last.piece->shares;
    };
    if (next <= last.cap_end && same()) {
      ++next_piece_;
    } else if (next <= last.cap_end) {
      Open(next, pieces_[next_piece_++], BaseAt(last, next), IdealAt(last, next));
    } else if (last.exact) {
      Open(last.cap_end, last.piece, BaseAt(last, last.cap_end), IdealAt(last, last.cap_end));
    } else {
      ReachCap();
    }
  }
}

bool BalancedPlan::Covered(i64 position) const {
  if (position >= end_.position) return true;  // as far as it ever will be
  if (segments_.empty()) return false;
  const i64 next = next_piece_ < pieces_.size() ? pieces_[next_piece_]->start : kNever;
  return position < std::min(segments_.back()->cap_end, next);
}

std::shared_lock<std::shared_mutex> BalancedPlan::Derived(i64 last) {
  for (;;) {
    std::shared_lock lock(mutex_);
    if (Covered(last)) return lock;
    lock.unlock();
    const std::unique_lock alone(mutex_);
    Extend(last);
  }
}

void BalancedPlan::Forget(i64 position) {
  while (!segments_.empty() && segments_.back()->start >= position) segments_.pop_back();
  while (!events_.empty() && events_.back().position >= position) events_.pop_back();
  next_piece_ = std::min(next_piece_, pieces_.size());
  if (end_.position >= position) end_ = End{};
}

std::size_t BalancedPlan::Find(i64 position) const {
  const auto after =
      std::upper_bound(segments_.begin(), segments_.end(), position,
                       [](i64 x, const std::unique_ptr<Segment>& s) { return x < s->start; });
  return static_cast<std::size_t>(after - segments_.begin()) - 1;
}

void BalancedPlan::PicksOfRange(i64 start, i64 count, const Fields& out) const {
  std::vector<i32> domain;
  std::vector<i64> draw;
  for (i64 done = 0; done < count;) {
    const std::size_t index = Find(start + done);
    const i64 stop = index + 1 < segments_.size() ? segments_[index + 1]->start : kNever;
    i64 n = std::min(count - done, stop - start - done);
    n = std::min(n, std::max<i64>(1 << 14, segments_[index]->batch()));  // stay in the cache
    const Fields here = out.At(done);
    i32* d = here.domain;
    i64* x = here.draw;
    if (d == nullptr) domain.resize(static_cast<std::size_t>(n)), d = domain.data();
    if (x == nullptr) draw.resize(static_cast<std::size_t>(n)), x = draw.data();
    BulkPicks(*segments_[index], order_key_, start + done, n, d, x);
    if (out.epoch || out.sample) FillSamples(d, x, n, here);
    done += n;
  }
}

void BalancedPlan::Picks(i64 start, i64 count, int threads, const Fields& out) {
  if (count == 0) return;
  const auto lock = Derived(start + count - 1);
  if (start + count > end_.position) RaiseEnd(end_, start + count - 1);
  constexpr i64 kLeast = 1 << 15;  // below this a thread costs more than it saves
  const i64 parts = std::clamp<i64>(count / kLeast, 1, threads);
  std::vector<std::thread> pool;
  for (i64 i = 1; i < parts; ++i) {
    const i64 from = count * i / parts, to = count * (i + 1) / parts;
    pool.emplace_back([=, &out] { PicksOfRange(start + from, to - from, out.At(from)); });
  }
  PicksOfRange(start, count / parts, out);
  for (std::thread& t : pool) t.join();
}

void BalancedPlan::At(const i64* positions, i64 count, const Fields& out) {
  if (count == 0) return;
  const i64 last = *std::max_element(positions, positions + count);
  const auto lock = Derived(last);
  if (last >= end_.position) RaiseEnd(end_, last);
  constexpr int kLanes = 16;  // walks side by side hide one another's latency
  std::size_t index = Find(positions[0]);
  i32 domain[kLanes];
  i64 draw[kLanes];
  for (i64 done = 0; done < count; done += kLanes) {
    const int n = static_cast<int>(std::min<i64>(kLanes, count - done));
    Walk walk[kLanes];
    const Segment* segment[kLanes];
    for (int i = 0; i < n; ++i) {
      const i64 t = positions[done + i];
      const bool here = segments_[index]->start <= t &&
                        (index + 1 == segments_.size() || t < segments_[index + 1]->start);
      if (!here) index = Find(t);
      segment[i] = segments_[index].get();
      walk[i] = Enter(segment[i]->View(), order_key_, t);
    }
    for (bool more = true; more;) {
      more = false;
      for (int i = 0; i < n; ++i) {
        if (walk[i].AtLeaf()) continue;
        walk[i].Down(segment[i]->tree.nodes.data());
        more = true;
      }
    }
    for (int i = 0; i < n; ++i) {
      const Pick pick = Arrive(segment[i]->View(), walk[i]);
      domain[i] = pick.domain;
      draw[i] = pick.draw;
      if (out.domain) out.domain[done + i] = pick.domain;
      if (out.draw) out.draw[done + i] = pick.draw;
    }
    if (out.epoch || out.sample) FillSamples(domain, draw, n, out.At(done));
  }
}

std::vector<i64> BalancedPlan::Counts(i64 position) {
  std::vector<i64> counts(domains_.size(), 0);
  if (position == 0) return counts;
  const auto lock = Derived(position - 1);
  if (position > end_.position) RaiseEnd(end_, position - 1);
  const Segment& segment = *segments_[Find(position - 1)];
  const i64 rest = (position - segment.start) % segment.batch();
  const std::vector<i64> base = BaseAt(segment, position - rest);
  std::copy(base.begin(), base.end(), counts.begin());
  constexpr i64 kChunk = 1 << 16;  // a batch may be as large as 2^31 samples
  std::vector<i32> domain(static_cast<std::size_t>(std::min(rest, kChunk)));
  std::vector<i64> draw(domain.size());
  for (i64 done = 0; done < rest; done += kChunk) {
    const i64 n = std::min(rest - done, kChunk);
    BulkPicks(segment, order_key_, position - rest + done, n, domain.data(), draw.data());
    for (i64 i = 0; i < n; ++i)
      ++counts[static_cast<std::size_t>(domain[static_cast<std::size_t>(i)])];
  }
  return counts;
}

End BalancedPlan::FindEnd(i64 horizon) {
  const auto lock = Derived(horizon);
  return end_.position <= horizon ? end_ : End{};
}

std::vector<CapEvent> BalancedPlan::CapEvents(i64 horizon) {
  const auto lock = Derived(horizon);
  std::vector<CapEvent> events;
  for (const CapEvent& e : events_) {
    if (e.position <= horizon) events.push_back(e);
  }
  return events;
}

SegmentInfo BalancedPlan::Explain(i64 position) {
  const auto lock = Derived(position);
  if (position >= end_.position) RaiseEnd(end_, position);
  const std::size_t index = Find(position);
  const Segment& s = *segments_[index];
  const i64 next_piece = next_piece_ < pieces_.size() ? pieces_[next_piece_]->start : kNever;
  const i64 end =
      index + 1 < segments_.size() ? segments_[index + 1]->start : std::min(s.cap_end, next_piece);
  const double bound = s.exact ? 0.0 : DeviationBound(s.tree, *s.shares);
  return {s.start, std::min(end, end_.position), s.batch(), s.kind, *s.shares, s.base, bound};
}

i64 BalancedPlan::MemoryBytes() {
  const std::shared_lock lock(mutex_);
  std::size_t bytes = 0;
  for (const auto& p : pieces_) bytes += sizeof(Piece) + p->shares.capacity() * sizeof(u64);
  for (const auto& s : segments_) {
    bytes += sizeof(Segment) + s->base.capacity() * sizeof(i64);
    bytes += (s->ideal.capacity() + s->ideal_after.capacity()) * sizeof(i128);
    bytes += s->tree.nodes.capacity() * sizeof(Node);
    if (s->shares.get() != &s->piece->shares) bytes += s->shares->capacity() * sizeof(u64);
  }
  return static_cast<i64>(bytes);
}

std::unique_ptr<Plan> MakeBalancedPlan(u64 order_key, OnCap on_cap) {
  return std::make_unique<BalancedPlan>(order_key, on_cap);
}

}  // namespace mixcore
