// Megatron's arrays for Python: checks of what arrives, fresh arrays out, the GIL released.
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "bind.h"
#include "greedy.h"
#include "greedy_plain.h"
#include "sample_idx.h"

namespace mixcore {
namespace {

constexpr std::int64_t kMaxSize = std::int64_t{1} << 48;
// From this many domains on their numbers are int32: Megatron's own limit of its int16.
constexpr py::ssize_t kWideDomains = 32767;

using Floats = py::array_t<double, py::array::c_style>;
using Ints = py::array_t<std::int64_t, py::array::c_style>;

std::int32_t CheckedNum(const char* name, py::ssize_t num) {
  if (num < 1) throw ValueError(std::string(name) + " must not be empty");
  CheckRange((std::string("the length of ") + name).c_str(), num, 1, 1 << 24);
  return static_cast<std::int32_t>(num);
}

Floats CheckedFloats(const py::object& value, const char* name, bool negative) {
  auto array = CheckedArray<double>(value, name, 1);
  for (py::ssize_t d = 0; d < array.size(); ++d) {
    const double x = array.data()[d];
    if (!std::isfinite(x) || (!negative && x < 0)) {
      throw ValueError(std::string(name) + "[" + std::to_string(d) + "] must be finite" +
                       (negative ? "" : " and not negative") + ", got " +
                       std::string(py::str(py::float_(x))));
    }
  }
  return array;
}

Ints CheckedSizes(const py::object& value) {
  auto array = CheckedArray<std::int64_t>(value, "sizes", 1);
  std::int64_t total = 0;
  for (py::ssize_t d = 0; d < array.size(); ++d) {
    CheckRange(("sizes[" + std::to_string(d) + "]").c_str(), array.data()[d], 1, kMaxSize);
    total += array.data()[d];
    CheckRange("the sum of sizes", total, 1, kMaxSize);
  }
  return array;
}

// Draw `size` times with `fill(domains, counts)` into new arrays of the right types.
template <typename Fill>
py::tuple NewPair(py::ssize_t num, std::int64_t size, const Fill& fill) {
  Ints counts(size);
  const auto run = [&](auto domains) {
    {
      auto* out = domains.mutable_data();
      auto* count_out = counts.mutable_data();
      const py::gil_scoped_release unlocked;
      fill(out, count_out);
    }
    return py::make_tuple(std::move(domains), std::move(counts));
  };
  if (num < kWideDomains) return run(py::array_t<std::int16_t>(size));
  return run(py::array_t<std::int32_t>(size));
}

void RunInto(Greedy& greedy, std::int64_t size, std::int32_t* domains, std::int64_t* counts) {
  greedy.Run(size, domains, counts);
}

void RunInto(Greedy& greedy, std::int64_t size, std::int16_t* domains, std::int64_t* counts) {
  std::vector<std::int32_t> wide(4096);
  for (std::int64_t at = 0; at < size;) {
    const std::int64_t n = std::min<std::int64_t>(size - at, 4096);
    greedy.Run(n, wide.data(), counts + at);
    std::transform(wide.begin(), wide.begin() + n, domains + at,
                   [](std::int32_t d) { return static_cast<std::int16_t>(d); });
    at += n;
  }
}

py::tuple Blend(const py::object& weights_in, std::int64_t size) {
  const Floats weights = CheckedFloats(weights_in, "weights", false);
  const std::int32_t num = CheckedNum("weights", weights.size());
  CheckRange("size", size, 0, kMaxSize);
  const double* w = weights.data();
  return NewPair(num, size, [&](auto* domains, std::int64_t* counts) {
    Greedy greedy(w, nullptr, num);
    RunInto(greedy, size, domains, counts);
  });
}

py::tuple BlendPlain(const py::object& weights_in, std::int64_t size) {
  const Floats weights = CheckedFloats(weights_in, "weights", false);
  const std::int32_t num = CheckedNum("weights", weights.size());
  CheckRange("size", size, 0, kMaxSize);
  const double* w = weights.data();
  return NewPair(num, size, [&](auto* domains, std::int64_t* counts) {
    PlainBlend(w, num, size, domains, counts);
  });
}

py::tuple Exhaust(const py::object& sizes_in) {
  const Ints sizes = CheckedSizes(sizes_in);
  const std::int32_t num = CheckedNum("sizes", sizes.size());
  const std::int64_t* s = sizes.data();
  std::int64_t total = 0;
  for (std::int32_t d = 0; d < num; ++d) total += s[d];
  std::vector<double> weights(static_cast<std::size_t>(num));
  for (std::int32_t d = 0; d < num; ++d) {
    weights[d] = static_cast<double>(s[d]) / static_cast<double>(total);
  }
  return NewPair(num, total, [&](auto* domains, std::int64_t* counts) {
    Greedy greedy(weights.data(), nullptr, num, s);
    RunInto(greedy, total, domains, counts);
  });
}

py::tuple ExhaustPlain(const py::object& sizes_in) {
  const Ints sizes = CheckedSizes(sizes_in);
  const std::int32_t num = CheckedNum("sizes", sizes.size());
  const std::int64_t* s = sizes.data();
  std::int64_t total = 0;
  for (std::int32_t d = 0; d < num; ++d) total += s[d];
  return NewPair(num, total, [&](auto* domains, std::int64_t* counts) {
    PlainExhaust(s, num, domains, counts);
  });
}

Isa IsaOf(const std::string& name) {
  if (name == "best") return BestIsa();
  if (name == "plain") return Isa::kPlain;
  const Isa isa = name == "avx2" ? Isa::kAvx2 : Isa::kAvx512;
  if (name != "avx2" && name != "avx512") {
    throw ValueError("isa must be best, plain, avx2 or avx512, got " + name);
  }
  if (BestIsa() < isa) throw ValueError("isa " + name + " is not supported by this processor");
  return isa;
}

// The class itself, for tests: any start, debts, the run cut into calls of `part` draws.
py::tuple RunGreedy(const py::object& weights_in, const py::object& debts_in, std::int64_t start,
                    const py::object& counts_in, std::int64_t n, const std::string& isa,
                    std::int64_t part) {
  const Floats weights = CheckedFloats(weights_in, "weights", false);
  const std::int32_t num = CheckedNum("weights", weights.size());
  const auto same_length = [num](const char* name, py::ssize_t length) {
    if (length != num) {
      throw ValueError(std::string(name) + " must have as many entries as weights, " +
                       std::to_string(num) + ", got " + std::to_string(length));
    }
  };
  CheckRange("start", start, 0, kMaxSize);
  CheckRange("n", n, 0, kMaxSize);
  CheckRange("part", part, 1, kMaxSize);
  Floats debts;
  const bool has_debts = !debts_in.is_none();
  if (has_debts) {
    debts = CheckedFloats(debts_in, "debts", true);
    same_length("debts", debts.size());
  }
  Greedy greedy(weights.data(), has_debts ? debts.data() : nullptr, num, nullptr, IsaOf(isa));
  if (!counts_in.is_none()) {
    const auto counts = CheckedArray<std::int64_t>(counts_in, "counts", 1);
    same_length("counts", counts.size());
    for (py::ssize_t d = 0; d < num; ++d) CheckRange("counts", counts.data()[d], 0, kMaxSize);
    greedy.Seek(start, counts.data());
  } else if (start != 0) {
    throw ValueError("start must be 0 where counts are not given, got " + std::to_string(start));
  }
  py::array_t<std::int32_t> domain(n);
  Ints count(n);
  for (std::int64_t at = 0; at < n; at += part) {
    greedy.Run(std::min(part, n - at), domain.mutable_data() + at, count.mutable_data() + at);
  }
  return py::make_tuple(domain, count);
}

template <typename T>
py::array SampleRows(const std::int32_t* lengths, const std::int32_t* documents,
                     const SampleIdxShape& shape, int threads, bool plain) {
  py::array_t<T> rows({static_cast<py::ssize_t>(shape.num_samples + 1), py::ssize_t{2}});
  T* out = rows.mutable_data();
  {
    const py::gil_scoped_release unlocked;
    if (plain) {
      PlainSampleIdx(lengths, documents, shape, out);
    } else {
      BuildSampleIdx(lengths, documents, shape, threads, out);
    }
  }
  return rows;
}

// `plain`: the sequential loop, which trusts its input; tests and timings give it checked arrays.
py::array SampleIdx(const py::object& sizes_in, const py::object& document_idx_in,
                    std::int64_t seq_length, std::int64_t num_epochs, std::int64_t tokens_per_epoch,
                    bool drop_last, std::int64_t extra, int bits, std::int64_t threads,
                    bool plain) {
  constexpr std::int64_t kMaxInt = 2147483647;
  const auto sizes = CheckedArray<std::int32_t>(sizes_in, "sizes", 1);
  const auto documents = CheckedArray<std::int32_t>(document_idx_in, "document_idx", 1);
  if (sizes.size() == 0) throw ValueError("sizes must not be empty");
  if (documents.size() == 0) throw ValueError("document_idx must not be empty");
  CheckRange("seq_length", seq_length, 1, kMaxInt - 1);
  CheckRange("num_epochs", num_epochs, 1, kMaxInt);
  CheckRange("tokens_per_epoch", tokens_per_epoch, 1, (std::int64_t{1} << 60) / num_epochs);
  CheckRange("add_extra_token_to_sequence", extra, 0, 1);
  CheckRange("threads", threads, 0, 4096);
  if (bits == 32 && documents.size() > kMaxInt) {
    throw ValueError("dtype int32 cannot number the " + std::to_string(documents.size()) +
                     " entries of document_idx");
  }
  SampleIdxShape shape{};
  shape.num_lengths = sizes.size();
  shape.num_documents = documents.size();
  shape.seq_length = static_cast<std::int32_t>(seq_length);
  shape.extra = static_cast<std::int32_t>(extra);
  shape.num_samples =
      NumSamples(num_epochs * tokens_per_epoch - extra, shape.seq_length, drop_last);
  CheckRange("the number of samples", shape.num_samples, 0, kMaxSize);
  const int workers = threads > 0
                          ? static_cast<int>(threads)
                          : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  const bool wide = bits == 64 || (bits == 0 && documents.size() > kMaxInt);
  return wide ? SampleRows<std::int64_t>(sizes.data(), documents.data(), shape, workers, plain)
              : SampleRows<std::int32_t>(sizes.data(), documents.data(), shape, workers, plain);
}

}  // namespace

void BindMegatron(py::module_& m) {
  m.def("build_blending_indices", &Blend, py::arg("weights"), py::arg("size"));
  m.def("build_exhaustive_blending_indices", &Exhaust, py::arg("sizes"));
  m.def("greedy_plain", &BlendPlain, py::arg("weights"), py::arg("size"));
  m.def("exhaustive_plain", &ExhaustPlain, py::arg("sizes"));
  m.def("greedy", &RunGreedy, py::arg("weights"), py::arg("debts"), py::arg("start"),
        py::arg("counts"), py::arg("n"), py::arg("isa") = "best", py::arg("part") = kMaxSize);
  m.def("build_sample_idx", &SampleIdx, py::arg("sizes"), py::arg("document_idx"),
        py::arg("seq_length"), py::arg("num_epochs"), py::arg("tokens_per_epoch"),
        py::arg("drop_last_partial_sequence"), py::arg("add_extra_token_to_sequence"),
        py::arg("bits"), py::arg("threads"), py::arg("plain") = false);
}

}  // namespace mixcore
