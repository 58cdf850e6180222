// The questions asked of an order balanced: locks, threads, look-ups.
#include "balanced.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <system_error>
#include <thread>

#include "errors.h"
#include "flat.h"

namespace mixcore {

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
    n = std::min(n, std::max<i64>(1 << 15, segments_[index]->batch()));  // stay in the cache
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
  // Threads take chunk after chunk, so that a core with other work to do holds nobody up. What a
  // thread throws is rethrown here; a thread that cannot be started is not missed.
  // Chunks are whole batches (of the first segment), which are cheaper than parts of batches.
  constexpr i64 kChunk = 1 << 16, kLargestWhole = 1 << 20;
  const Segment& first = *segments_[Find(start)];
  const i64 batch = first.batch(), lead = (start - first.start) % batch;
  const i64 chunk = batch > kLargestWhole ? kChunk : (kChunk + batch - 1) / batch * batch;
  const i64 chunks = (lead + count + chunk - 1) / chunk;
  const i64 workers = std::min<i64>(chunks, threads);
  std::atomic<i64> next{0};
  std::vector<std::exception_ptr> thrown(static_cast<std::size_t>(workers));
  const auto work = [&](i64 worker) noexcept {
    try {
      for (i64 i = next++; i < chunks; i = next++) {
        const i64 from = std::max<i64>(i * chunk - lead, 0);
        const i64 to = std::min((i + 1) * chunk - lead, count);
        if (from < to) PicksOfRange(start + from, to - from, out.At(from));
      }
    } catch (...) {
      thrown[static_cast<std::size_t>(worker)] = std::current_exception();
    }
  };
  std::vector<std::thread> pool;
  pool.reserve(static_cast<std::size_t>(workers));
  try {
    for (i64 i = 1; i < workers; ++i) pool.emplace_back(work, i);
  } catch (const std::system_error&) {  // no more threads to be had
  }
  work(0);
  for (std::thread& t : pool) t.join();
  for (const std::exception_ptr& e : thrown) {
    if (e) std::rethrow_exception(e);
  }
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
        walk[i].Down(segment[i]->tree.nodes[static_cast<std::size_t>(walk[i].node)]);
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
  const auto lock = Derived(std::max<i64>(position - 1, 0));
  std::vector<i64> counts(domains_.size(), 0);
  if (position == 0) return counts;
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
  const auto same = [&](const Piece& p) {
    return p.batch == s.piece->batch && p.shares == s.piece->shares;
  };
  std::size_t next = next_piece_;  // pieces that change nothing do not end a segment
  while (next < pieces_.size() && same(*pieces_[next])) ++next;
  const i64 next_piece = next < pieces_.size() ? pieces_[next]->start : kNever;
  const bool last = index + 1 == segments_.size();
  const i64 end = last ? std::min(s.cap_end, next_piece) : segments_[index + 1]->start;
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

std::vector<Span> BalancedPlan::Spans(i64 start, i64 count) {
  std::vector<Span> spans;
  if (count == 0) return spans;
  const i64 last = count < 0 ? kMaxPosition - 1 : start + count - 1;
  const auto lock = Derived(last);
  if (count > 0 && last >= end_.position) RaiseEnd(end_, last);
  const i64 stop = std::min(last + 1, end_.position);
  for (std::size_t i = segments_.empty() ? 0 : Find(start); i < segments_.size(); ++i) {
    const i64 from = std::max(start, segments_[i]->start);
    const i64 next = i + 1 < segments_.size() ? segments_[i + 1]->start : kNever;
    if (from >= stop) break;
    const i64 to = std::min(stop, next);
    if (from < to) spans.push_back({segments_[i]->serial, from, to});  // a cap may leave one empty
  }
  return spans;
}

std::vector<char> BalancedPlan::Flat(u64 serial) {
  const std::shared_lock lock(mutex_);
  const auto found =
      std::lower_bound(segments_.begin(), segments_.end(), serial,
                       [](const std::unique_ptr<Segment>& s, u64 x) { return s->serial < x; });
  if (found == segments_.end() || (*found)->serial != serial) return {};
  const Segment& s = **found;
  return Flatten(s.tree, s.base, s.start, s.batch());
}

std::unique_ptr<Plan> MakeBalancedPlan(u64 order_key, OnCap on_cap) {
  return std::make_unique<BalancedPlan>(order_key, on_cap);
}

}  // namespace mixcore
