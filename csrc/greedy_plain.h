// Megatron-Core's two blending rules and its sample index as plain loops: what the fast versions
// (greedy.cpp, sample_idx.cpp) must equal byte for byte, and the baseline of every timing.
// The rules are those of megatron/core/datasets/helpers.cpp; the code is ours.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "sample_idx.h"

namespace mixcore {

// Every step draws from the domain whose count lags most behind weight * max(step, 1). O(n * num).
template <typename Id>
void PlainBlend(const double* weights, std::int32_t num, std::int64_t n, Id* domain_out,
                std::int64_t* count_out) {
  std::vector<std::int64_t> counts(static_cast<std::size_t>(num), 0);
  for (std::int64_t i = 0; i < n; ++i) {
    const double drawn = static_cast<double>(std::max<std::int64_t>(i, 1));
    std::int32_t best = 0;
    double best_error = weights[0] * drawn - static_cast<double>(counts[0]);
    for (std::int32_t d = 1; d < num; ++d) {
      const double error = weights[d] * drawn - static_cast<double>(counts[d]);
      if (error > best_error) {
        best_error = error;
        best = d;
      }
    }
    domain_out[i] = static_cast<Id>(best);
    count_out[i] = counts[best]++;
  }
}

// The same with weights sizes / total, where a domain leaves once its count reaches its size.
template <typename Id>
void PlainExhaust(const std::int64_t* sizes, std::int32_t num, Id* domain_out,
                  std::int64_t* count_out) {
  std::int64_t total = 0;
  for (std::int32_t d = 0; d < num; ++d) total += sizes[d];
  std::vector<double> weights(static_cast<std::size_t>(num));
  for (std::int32_t d = 0; d < num; ++d) {
    weights[d] = static_cast<double>(sizes[d]) / static_cast<double>(total);
  }
  std::vector<std::int64_t> counts(static_cast<std::size_t>(num), 0);
  for (std::int64_t i = 0; i < total; ++i) {
    const double drawn = static_cast<double>(std::max<std::int64_t>(i, 1));
    std::int32_t best = -1;
    double best_error = 0;
    for (std::int32_t d = 0; d < num; ++d) {
      if (counts[d] == sizes[d]) continue;
      const double error = weights[d] * drawn - static_cast<double>(counts[d]);
      if (best < 0 || error > best_error) {
        best_error = error;
        best = d;
      }
    }
    domain_out[i] = static_cast<Id>(best);
    count_out[i] = counts[best]++;
  }
}

// Walk the documents once; a row is (index into documents, offset) where a sample starts. Trusts
// its input: every document number must be within `lengths`.
template <typename T>
void PlainSampleIdx(const std::int32_t* lengths, const std::int32_t* documents,
                    const SampleIdxShape& shape, T* rows) {
  std::int64_t at = 0, offset = 0;
  rows[0] = rows[1] = 0;
  for (std::int64_t k = 1; k <= shape.num_samples; ++k) {
    std::int64_t wanted = shape.seq_length + shape.extra;
    for (;;) {
      const std::int64_t left = lengths[documents[at]] - offset;
      if (left >= wanted) {  // the sample ends here; the next one starts `extra` tokens before
        offset += wanted - shape.extra;
        break;
      }
      wanted -= left;
      if (at + 1 == shape.num_documents) {  // no more text: this and every later row say "the end"
        offset = lengths[documents[at]] - shape.extra;
        break;
      }
      ++at;
      offset = 0;
    }
    rows[2 * k] = static_cast<T>(at);
    rows[2 * k + 1] = static_cast<T>(offset);
  }
}

}  // namespace mixcore
