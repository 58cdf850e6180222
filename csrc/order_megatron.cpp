// Order `megatron`: the greedy blend of Megatron-Core, bit for bit (greedy.h). The first piece is
// Megatron's own arithmetic. A later piece of other weights starts the rule anew, with the index
// and the counts taken from its start, and carries what the run owes each domain as a constant in
// the error. One of the same weights (another batch size) changes nothing.
#include "errors.h"
#include "greedy.h"
#include "sequential.h"

namespace mixcore {
namespace {

class MegatronPlan final : public SequentialPlan {
 public:
  explicit MegatronPlan(u64 order_key) : SequentialPlan(order_key, OnCap::kRedistribute) {}

 protected:
  void Begin(std::size_t index) override {
    const std::size_t first = FirstOfWeights(index);
    const Piece& piece = *pieces_[first];
    const std::size_t n = piece.weights.size();
    live_.debt.resize(n, 0.0);
    live_.at_start.resize(n, 0);
    if (live_.position == piece.start) {
      if (first > 0) Owe(*pieces_[FirstOfWeights(first - 1)]);
      live_.piece_start = piece.start;
      live_.at_start = live_.counts;
      live_.at_start.resize(n);
    }
    // A weight of 0 pauses a domain: it is no candidate at all (in Megatron it would win ties).
    domains_of_.clear();
    std::vector<double> weight, debt;
    std::vector<i64> count;
    for (std::size_t d = 0; d < n; ++d) {
      if (piece.weights[d] == 0) continue;
      domains_of_.push_back(static_cast<i32>(d));
      weight.push_back(piece.weights[d]);
      debt.push_back(live_.debt[d]);
      count.push_back(live_.counts[d] - live_.at_start[d]);
    }
    const i32 active = static_cast<i32>(weight.size());
    greedy_ = std::make_unique<Greedy>(weight.data(), first > 0 ? debt.data() : nullptr, active);
    greedy_->Seek(live_.position - piece.start, count.data());
  }

  i64 Advance(i64 n, i32* domain, i64* draw) override {
    constexpr i64 kChunk = 4096;
    chosen_.resize(kChunk);
    for (i64 done = 0; done < n; done += kChunk) {
      const i64 m = std::min(kChunk, n - done);
      greedy_->Run(m, chosen_.data(), nullptr);
      for (i64 i = 0; i < m; ++i) {
        const i32 d = domains_of_[static_cast<std::size_t>(chosen_[static_cast<std::size_t>(i)])];
        i64& count = live_.counts[static_cast<std::size_t>(d)];
        if (domain) domain[done + i] = d;
        if (draw) draw[done + i] = count;
        ++count;
      }
    }
    live_.position += n;
    return n;
  }

 private:
  // The first of the pieces up to this one that have its weights, without others in between.
  std::size_t FirstOfWeights(std::size_t index) const {
    while (index > 0 && pieces_[index - 1]->weights == pieces_[index]->weights) --index;
    return index;
  }

  // Adds what a finished piece leaves owing: weight x length - draws, in this order of operations.
  void Owe(const Piece& before) {
    const double length = static_cast<double>(live_.position - before.start);
    for (std::size_t d = 0; d < before.weights.size(); ++d) {
      const double drawn = static_cast<double>(live_.counts[d] - live_.at_start[d]);
      live_.debt[d] += before.weights[d] * length - drawn;
    }
  }

  std::unique_ptr<Greedy> greedy_;
  std::vector<i32> domains_of_, chosen_;
};

}  // namespace

std::unique_ptr<Plan> MakeMegatronPlan(u64 order_key) {
  return std::make_unique<MegatronPlan>(order_key);
}

}  // namespace mixcore
