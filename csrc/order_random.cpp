// Order `random`: every position draws its domain independently, by one Philox word of 62 bits
// against the cumulative shares (exact: the shares sum to 2^62). The draw number is a prefix count.
#include <algorithm>

#include "philox.h"
#include "sequential.h"
#include "shares.h"

namespace mixcore {
namespace {

class RandomPlan final : public SequentialPlan {
 public:
  RandomPlan(u64 order_key, OnCap on_cap) : SequentialPlan(order_key, on_cap) {}

 protected:
  void Begin(std::size_t index) override {
    piece_ = pieces_[index];
    Prepare();
  }

  i64 Advance(i64 n, i32* domain, i64* draw) override {
    if (end_.position <= live_.position) return 0;
    for (i64 i = 0; i < n; ++i) {
      const Philox4 w = Words(order_key_, static_cast<u64>(live_.position), 0, Purpose::kDraw);
      const u64 u = (u64{w.x1} << 32 | w.x0) >> (64 - kShareBits);
      std::size_t k = guide_[u >> (kShareBits - guide_bits_)];
      while (upper_[k] <= u) ++k;
      const i32 d = active_[k];
      i64& count = live_.counts[static_cast<std::size_t>(d)];
      const i64 cap = domains_[static_cast<std::size_t>(d)].cap;
      if (count >= cap) return Stop(d), i;  // not reached under redistribute
      if (domain) domain[i] = d;
      if (draw) draw[i] = count;
      ++count;
      ++live_.position;
      if (count == cap && on_cap_ == OnCap::kRedistribute) {
        live_.capped_at.resize(domains_.size(), 0);
        live_.capped_at[static_cast<std::size_t>(d)] = live_.position;
        Prepare();
        if (end_.position <= live_.position) return i + 1;
      }
    }
    return n;
  }

 private:
  // The run ends at the last full batch before a position that cannot be filled.
  void Stop(i32 domain) {
    end_ = {live_.position - (live_.position - piece_->start) % piece_->batch, domain};
  }

  // The cumulative shares of the domains that still have something to give, and a guide table
  // that starts the search at most a few entries early.
  void Prepare() {
    std::vector<u64> mass = piece_->shares;
    bool spent = false, any = false;
    for (std::size_t d = 0; d < mass.size(); ++d) {
      if (on_cap_ == OnCap::kRedistribute && mass[d] > 0 && live_.counts[d] >= domains_[d].cap) {
        mass[d] = 0;
        spent = true;
      }
      any = any || mass[d] > 0;
    }
    if (!any) return Stop(-1);
    const std::vector<u64> shares = spent ? SharesOfMasses(mass) : std::move(mass);
    active_.clear();
    upper_.clear();
    u64 sum = 0;
    for (std::size_t d = 0; d < shares.size(); ++d) {
      if (shares[d] == 0) continue;
      active_.push_back(static_cast<i32>(d));
      upper_.push_back(sum += shares[d]);
    }
    guide_bits_ = 4;
    while ((std::size_t{1} << guide_bits_) < 2 * upper_.size()) ++guide_bits_;
    guide_.resize(std::size_t{1} << guide_bits_);
    u32 k = 0;
    for (std::size_t g = 0; g < guide_.size(); ++g) {
      while (upper_[k] <= static_cast<u64>(g) << (kShareBits - guide_bits_)) ++k;
      guide_[g] = k;
    }
  }

  std::shared_ptr<const Piece> piece_;
  std::vector<i32> active_;
  std::vector<u64> upper_;
  std::vector<u32> guide_;
  int guide_bits_ = 4;
};

}  // namespace

std::unique_ptr<Plan> MakeRandomPlan(u64 order_key, OnCap on_cap) {
  return std::make_unique<RandomPlan>(order_key, on_cap);
}

}  // namespace mixcore
