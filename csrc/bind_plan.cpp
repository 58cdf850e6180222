// `_core.Plan` and the integer functions around it. Arguments are checked here, once.
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "bind_answer.h"
#include "permute.h"
#include "plan.h"
#include "shares.h"

namespace mixcore {
namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

// Runs a question that may derive, replay or wait for a lock: other Python threads go on.
template <typename F>
auto WithoutGil(F&& question) {
  const py::gil_scoped_release release;
  return question();
}

OnCap OnCapOf(const std::string& name) {
  if (name == "redistribute") return OnCap::kRedistribute;
  if (name == "stop") return OnCap::kStop;
  if (name == "error") return OnCap::kError;
  throw ValueError("on_cap must be 'redistribute', 'stop' or 'error', got '" + name + "'");
}

std::unique_ptr<Plan> MakePlan(const std::string& order, u64 key, const std::string& on_cap) {
  if (order == "balanced") return MakeBalancedPlan(key, OnCapOf(on_cap));
  if (order == "megatron") return MakeMegatronPlan(key);
  if (order == "random") return MakeRandomPlan(key, OnCapOf(on_cap));
  throw ValueError("order must be 'balanced', 'megatron' or 'random', got '" + order + "'");
}

std::vector<u64> CheckedShares(const py::handle& value, const char* name) {
  const auto array = CheckedArray<u64>(value, name, 1);
  std::vector<u64> shares(array.data(), array.data() + array.size());
  u128 sum = 0;
  for (const u64 s : shares) sum += s;
  if (sum != kShareSum) throw ValueError(std::string(name) + " must sum to 2^62");
  return shares;
}

Domain CheckedDomain(const std::string& name, u64 key, i64 size, i64 cap) {
  CheckRange("size", size, 0, kMaxPosition);
  return {name, key, size, cap < 0 ? kNever : cap};
}

Piece CheckedPiece(i64 start, i64 batch, const py::handle& shares, const py::handle& weights,
                   i64 num_domains) {
  CheckRange("start", start, 0, kMaxPosition - 1);
  CheckRange("batch_size", batch, 1, kMaxBatch);
  Piece piece{start, batch, CheckedShares(shares, "shares"), {}};
  const auto check_length = [&](const char* name, i64 length) {
    if (length != num_domains) {
      throw ValueError(std::string(name) + " must have one entry a domain (" +
                       std::to_string(num_domains) + "), got " + std::to_string(length));
    }
  };
  check_length("shares", static_cast<i64>(piece.shares.size()));
  if (weights.is_none()) return piece;
  const auto array = CheckedArray<double>(weights, "weights", 1);
  check_length("weights", array.size());
  piece.weights.assign(array.data(), array.data() + array.size());
  for (const double w : piece.weights) {
    if (!(w >= 0) || !std::isfinite(w)) {
      throw ValueError("weights must be finite and >= 0, got " + std::to_string(w));
    }
  }
  return piece;
}

// All domains and pieces are checked before any of them is taken.
void Grow(Plan& plan, const std::vector<std::tuple<std::string, u64, i64, i64>>& new_domains,
          const std::vector<std::tuple<i64, i64, py::object, py::object>>& new_pieces) {
  std::vector<Domain> domains;
  for (const auto& [name, key, size, cap] : new_domains) {
    domains.push_back(CheckedDomain(name, key, size, cap));
  }
  const i64 num = WithoutGil([&] { return plan.num_domains(); }) + static_cast<i64>(domains.size());
  CheckRange("number of domains", num, 0, kMaxDomains);
  std::vector<Piece> pieces;
  for (const auto& [start, batch, shares, weights] : new_pieces) {
    if (!pieces.empty()) CheckRange("start", start, pieces.back().start + 1, kMaxPosition - 1);
    pieces.push_back(CheckedPiece(start, batch, shares, weights, num));
  }
  const py::gil_scoped_release release;
  plan.Grow(std::move(domains), std::move(pieces));
}

py::tuple Picks(Plan& plan, i64 start, i64 count, int threads, int mask) {
  CheckRange("start", start, 0, kMaxPosition);
  CheckRange("count", count, 0, kMaxPosition - start);
  CheckRange("threads", threads, 1, 1024);
  Answer answer(count, mask);
  {
    const py::gil_scoped_release release;
    plan.Picks(start, count, threads, answer.fields);
  }
  return answer.Tuple();
}

py::tuple AtPositions(Plan& plan, const py::object& value, int mask) {
  const auto positions = CheckedArray<i64>(value, "positions", 1);
  for (py::ssize_t i = 0; i < positions.size(); ++i) {
    if (positions.data()[i] < 0 || positions.data()[i] >= kMaxPosition) {
      CheckRange(("positions[" + std::to_string(i) + "]").c_str(), positions.data()[i], 0,
                 kMaxPosition - 1);
    }
  }
  Answer answer(positions.size(), mask);
  {
    const py::gil_scoped_release release;
    plan.At(positions.data(), positions.size(), answer.fields);
  }
  return answer.Tuple();
}

// [(serial, start, end)] of the segments that hold the window; all of them for count < 0.
std::vector<std::tuple<u64, i64, i64>> Spans(Plan& plan, i64 start, i64 count) {
  CheckRange("start", start, 0, kMaxPosition);
  CheckRange("count", count, -1, kMaxPosition - start);
  std::vector<std::tuple<u64, i64, i64>> spans;
  for (const Span& s : WithoutGil([&] { return plan.Spans(start, count); })) {
    spans.emplace_back(s.serial, s.start, s.end);
  }
  return spans;
}

Array<std::uint8_t> Flat(Plan& plan, u64 serial) {
  const std::vector<char> bytes = WithoutGil([&] { return plan.Flat(serial); });
  return Array<std::uint8_t>(static_cast<py::ssize_t>(bytes.size()),
                             reinterpret_cast<const std::uint8_t*>(bytes.data()));
}

Array<std::uint8_t> Views(Plan& plan) {
  const std::vector<DomainView> views = WithoutGil([&] { return plan.Views(); });
  return Array<std::uint8_t>(static_cast<py::ssize_t>(views.size() * sizeof(DomainView)),
                             reinterpret_cast<const std::uint8_t*>(views.data()));
}

template <typename T>
Array<T> ArrayOf(const std::vector<T>& values) {
  return Array<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

Array<i64> Counts(Plan& plan, i64 position) {
  CheckRange("position", position, 0, kMaxPosition);
  return ArrayOf(WithoutGil([&] { return plan.Counts(position); }));
}

py::object FindEnd(Plan& plan, i64 horizon) {
  CheckRange("horizon", horizon, 0, kMaxPosition);
  const End end = WithoutGil([&] { return plan.FindEnd(horizon); });
  if (end.position == kNever) return py::none();
  return py::make_tuple(end.position, end.domain);
}

py::list CapEvents(Plan& plan, i64 horizon) {
  CheckRange("horizon", horizon, 0, kMaxPosition);
  const auto events = WithoutGil([&] { return plan.CapEvents(horizon); });
  py::list list;
  for (const CapEvent& e : events) {
    list.append(py::make_tuple(e.position, e.domain));
  }
  return list;
}

py::dict Explain(Plan& plan, i64 position) {
  CheckRange("position", position, 0, kMaxPosition - 1);
  const SegmentInfo info = WithoutGil([&] { return plan.Explain(position); });
  py::dict d;
  d["start"] = info.start;
  d["end"] = info.end == kNever ? py::object(py::none()) : py::int_(info.end);
  d["batch_size"] = info.batch;
  d["kind"] = info.kind;
  d["shares"] = ArrayOf(info.shares);
  d["base"] = ArrayOf(info.base);
  d["bound"] = info.bound;
  return d;
}

// (position, piece_start, counts, at_start, debt, capped_at) of every checkpoint held.
py::list Checkpoints(Plan& plan) {
  const auto checkpoints = WithoutGil([&] { return plan.Checkpoints(); });
  py::list list;
  for (const Checkpoint& c : checkpoints) {
    list.append(py::make_tuple(c.position, c.piece_start, ArrayOf(c.counts), ArrayOf(c.at_start),
                               ArrayOf(c.debt), ArrayOf(c.capped_at)));
  }
  return list;
}

void Restore(Plan& plan, i64 position, i64 piece_start, const py::object& counts,
             const py::object& at_start, const py::object& debt, const py::object& capped_at) {
  const auto vector = [](const auto& array) {
    return std::vector(array.data(), array.data() + array.size());
  };
  CheckRange("position", position, 0, kMaxPosition);
  CheckRange("piece_start", piece_start, 0, position);
  Checkpoint c{position,
               piece_start,
               vector(CheckedArray<i64>(counts, "counts", 1)),
               vector(CheckedArray<i64>(at_start, "at_start", 1)),
               vector(CheckedArray<double>(debt, "debt", 1)),
               vector(CheckedArray<i64>(capped_at, "capped_at", 1))};
  const auto most = static_cast<std::size_t>(WithoutGil([&] { return plan.num_domains(); }));
  if (c.counts.size() > most || c.at_start.size() > most || c.debt.size() > most ||
      c.capped_at.size() > most) {
    throw ValueError("counts must have at most one entry a domain (" + std::to_string(most) +
                     "), got " + std::to_string(c.counts.size()));
  }
  const py::gil_scoped_release release;
  plan.Restore(std::move(c));
}

Array<u64> Shares(const py::object& weights) {
  const auto w = CheckedArray<double>(weights, "weights", 1);
  bool positive = false;
  for (py::ssize_t i = 0; i < w.size(); ++i) {
    const double x = w.data()[i];
    if (!(x >= 0) || !std::isfinite(x)) {
      throw ValueError("weights[" + std::to_string(i) + "] must be finite and >= 0, got " +
                       std::to_string(x));
    }
    positive = positive || x > 0;
  }
  if (!positive) throw ValueError("weights must have a positive sum, got all zeros");
  return ArrayOf(SharesOfWeights(w.data(), static_cast<std::size_t>(w.size())));
}

Array<u64> InterpolateShares(const py::object& x, const py::object& y, i64 numerator,
                             i64 denominator) {
  CheckRange("denominator", denominator, 1, kMaxPosition);
  CheckRange("numerator", numerator, 0, denominator);
  const std::vector<u64> from = CheckedShares(x, "x"), to = CheckedShares(y, "y");
  if (from.size() != to.size()) throw ValueError("x and y must have the same length");
  return ArrayOf(SharesBetween(from, to, numerator, denominator));
}

Array<i64> PermutationOf(i64 n, u64 key, i64 ordinal, int purpose, const py::object& points) {
  CheckRange("n", n, 1, kMaxPosition);
  CheckRange("ordinal", ordinal, 0, kMaxPosition);
  const auto x = CheckedArray<i64>(points, "points", 1);
  Array<i64> out(x.size());
  const Radix radix = Radix::Of(static_cast<u64>(n));
  const RoundKeys keys =
      RoundKeys::Of(Words(key, static_cast<u64>(ordinal), 0, static_cast<Purpose>(purpose)));
  const i64* points_at = x.data();
  const i64 size = x.size();
  for (i64 i = 0; i < size; ++i) CheckRange("points", points_at[i], 0, n - 1);
  i64* images = out.mutable_data();
  const py::gil_scoped_release release;  // for callers that share the points among threads
  for (i64 i = 0; i < size; ++i) {
    images[i] = static_cast<i64>(Permute(radix, keys, static_cast<u64>(points_at[i])));
  }
  return out;
}

py::tuple PhiloxWords(u32 c0, u32 c1, u32 c2, u32 c3, u32 k0, u32 k1) {
  const Philox4 w = Philox({c0, c1, c2, c3}, k0, k1);
  return py::make_tuple(w.x0, w.x1, w.x2, w.x3);
}

}  // namespace

void BindPlan(py::module_& m) {
  using py::arg;
  py::class_<Plan>(m, "Plan", "Domains and pieces, and the questions that can be asked of them.")
      .def(py::init(&MakePlan), arg("order"), arg("key"), arg("on_cap"))
      .def(
          "add_domain",
          [](Plan& plan, const std::string& name, u64 key, i64 size, i64 cap) {
            Grow(plan, {{name, key, size, cap}}, {});
          },
          arg("name"), arg("key"), arg("size"), arg("cap"))
      .def(
          "append",
          [](Plan& plan, i64 start, i64 batch, const py::object& shares,
             const py::object& weights) { Grow(plan, {}, {{start, batch, shares, weights}}); },
          arg("start"), arg("batch_size"), arg("shares"), arg("weights"))
      .def("extend", &Grow, arg("domains"), arg("pieces"))
      .def("picks", &Picks, arg("start"), arg("count"), arg("threads"), arg("mask"))
      .def("at", &AtPositions, arg("positions"), arg("mask"))
      .def("counts", &Counts, arg("position"))
      .def("find_end", &FindEnd, arg("horizon"))
      .def("cap_events", &CapEvents, arg("horizon"))
      .def("explain", &Explain, arg("position"))
      .def("checkpoints", &Checkpoints)
      .def("restore", &Restore, arg("position"), arg("piece_start"), arg("counts"), arg("at_start"),
           arg("debt"), arg("capped_at"))
      .def("spans", &Spans, arg("start"), arg("count"))
      .def("flat", &Flat, arg("serial"))
      .def("views", &Views)
      .def_property_readonly("order_key", &Plan::order_key)
      .def("memory_bytes",
           [](Plan& plan) { return WithoutGil([&] { return plan.MemoryBytes(); }); })
      .def_property_readonly(
          "num_domains", [](Plan& plan) { return WithoutGil([&] { return plan.num_domains(); }); });
  m.def("shares", &Shares, arg("weights"), "Weights (float64) to shares (uint64, sum 2^62).");
  m.def("interpolate_shares", &InterpolateShares, arg("x"), arg("y"), arg("numerator"),
        arg("denominator"));
  m.def("permutation", &PermutationOf, arg("n"), arg("key"), arg("ordinal"), arg("purpose"),
        arg("points"), "Images of points under a keyed permutation of [0, n).");
  m.def("philox", &PhiloxWords, arg("c0"), arg("c1"), arg("c2"), arg("c3"), arg("k0"), arg("k1"),
        "Philox4x32-10.");
}

}  // namespace mixcore
