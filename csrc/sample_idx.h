// Megatron-Core's sample index: documents, laid end to end in a given order and cut every
// `seq_length` tokens; row k says in which place of that order and at which offset sample k starts.
// Source of the rule: build_sample_idx in megatron/core/datasets/helpers.cpp.
#pragma once

#include <cstdint>

namespace mixcore {

struct SampleIdxShape {
  std::int64_t num_lengths;    // documents that have a length
  std::int64_t num_documents;  // places in the order (documents x epochs)
  std::int64_t num_samples;    // rows are num_samples + 1
  std::int32_t seq_length;
  std::int32_t extra;  // 1: a sample also sees the first token of the next one; else 0
};

// Rows that Megatron writes for `tokens` tokens; without `drop_last` it rounds up, but through
// a 32-bit float, so that beyond 2^24 tokens the number may be a few too many or too few.
std::int64_t NumSamples(std::int64_t tokens, std::int32_t seq_length, bool drop_last);

// Fill rows (num_samples + 1, 2). T is int32_t or int64_t and must hold num_documents. Throws
// ValueError for a document number out of range or a negative length, wherever it stands.
template <typename T>
void BuildSampleIdx(const std::int32_t* lengths, const std::int32_t* documents,
                    const SampleIdxShape& shape, int threads, T* rows);

}  // namespace mixcore
