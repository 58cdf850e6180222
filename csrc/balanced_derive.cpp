// Derivation of segments from pieces and caps.
#include <algorithm>
#include <cstdlib>

#include "balanced.h"
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

void BalancedPlan::Push(std::unique_ptr<Segment> segment) {
  segment->serial = next_serial_++;
  segments_.push_back(std::move(segment));
}

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
  Push(std::move(segment));
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
  std::vector<char> known;
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
      if (known.empty()) {  // which domains have had their event; rarely needed, so made here
        known.assign(domains_.size(), 0);
        for (const CapEvent& e : events_) known[static_cast<std::size_t>(e.domain)] = 1;
      }
      if (!known[d]) events_.push_back({x, static_cast<i32>(d)});
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
  Push(std::move(segment));
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

}  // namespace mixcore
