#include "sample_idx.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "errors.h"

namespace mixcore {
namespace {

// Documents per chunk: the lengths of one chunk stay in the second-level cache.
constexpr std::int64_t kChunk = std::int64_t{1} << 16;
constexpr std::int64_t kAhead = 64;  // random reads asked for in advance

inline void Prefetch(const void* address) {
#ifdef __GNUC__
  __builtin_prefetch(address);
#else
  (void)address;
#endif
}

// Threads take chunks in order. Gathering the lengths is the cost (random reads of `lengths`) and
// needs nothing from other chunks; then a thread waits for its turn, in which the tokens before its
// chunk are known, passes on the sum, and writes its rows while the next one has its turn.
template <typename T>
class Walk {
 public:
  Walk(const std::int32_t* lengths, const std::int32_t* documents, const SampleIdxShape& shape,
       T* rows)
      : lengths_(lengths), documents_(documents), shape_(shape), rows_(rows) {}

  void Work(std::vector<std::int32_t>& gathered) {
    for (;;) {
      const std::int64_t chunk = next_.fetch_add(1);
      const std::int64_t begin = chunk * kChunk;
      if (begin >= shape_.num_documents) return;
      const std::int64_t count = std::min(kChunk, shape_.num_documents - begin);
      std::int64_t tokens = 0;
      const bool good = Gather(begin, count, gathered.data(), &tokens);
      std::int64_t before;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        turned_.wait(lock, [&] { return turn_ == chunk; });
        if (!good && first_bad_ < 0) first_bad_ = begin;
        before = tokens_;
        tokens_ += tokens;
        ++turn_;
        turned_.notify_all();
      }
      Write(begin, count, gathered.data(), before, before + tokens);
    }
  }

  void Finish() {
    if (first_bad_ >= 0) Explain();
    // Rows past the last token: the plain loop stops at the last document and stays there.
    const std::int64_t last = shape_.num_documents - 1;
    const std::int64_t offset = lengths_[documents_[last]] - shape_.extra;
    for (std::int64_t k = FirstRow(tokens_); k <= shape_.num_samples; ++k) {
      rows_[2 * k] = static_cast<T>(last);
      rows_[2 * k + 1] = static_cast<T>(offset);
    }
    rows_[0] = rows_[1] = 0;  // row 0 does not skip empty documents, unlike all others
  }

 private:
  // Row k >= 1 is placed by the last token that sample k - 1 reads.
  std::int64_t LastToken(std::int64_t k) const { return k * shape_.seq_length + shape_.extra - 1; }

  // The first row >= 1 whose LastToken is at or after `token`.
  std::int64_t FirstRow(std::int64_t token) const {
    const std::int64_t need = token + 1 - shape_.extra;
    const std::int64_t row = (need + shape_.seq_length - 1) / shape_.seq_length;
    return std::max<std::int64_t>(row, 1);
  }

  // False, with nothing gathered and no tokens, where a document number or a length is bad. The
  // numbers are checked first, so that the loop over random addresses has nothing else to do and
  // may run ahead of itself.
  bool Gather(std::int64_t begin, std::int64_t count, std::int32_t* out, std::int64_t* sum) const {
    const std::int32_t* documents = documents_ + begin;
    const std::int32_t* lengths = lengths_;
    std::uint32_t largest = 0;  // a negative number is a large one
    for (std::int64_t j = 0; j < count; ++j) {
      largest = std::max(largest, static_cast<std::uint32_t>(documents[j]));
    }
    bool good = std::int64_t{largest} < std::min<std::int64_t>(shape_.num_lengths, 1LL << 31);
    std::int64_t tokens = 0;
    if (good) {
      std::int32_t sign = 0;
      const auto take = [&](std::int64_t j) {
        const std::int32_t length = lengths[documents[j]];
        sign |= length;
        out[j] = length;
        tokens += length;
      };
      std::int64_t j = 0;
      for (; j + kAhead < count; ++j) {
        Prefetch(&lengths[documents[j + kAhead]]);
        take(j);
      }
      for (; j < count; ++j) take(j);
      good = sign >= 0;
    }
    if (!good) {
      std::fill(out, out + count, 0);
      tokens = 0;
    }
    *sum = tokens;
    return good;
  }

  void Write(std::int64_t begin, std::int64_t count, const std::int32_t* gathered,
             std::int64_t before, std::int64_t after) {
    std::int64_t k = FirstRow(before);
    const std::int64_t stop = std::min(FirstRow(after), shape_.num_samples + 1);
    std::int64_t token = LastToken(k), start = before;
    for (std::int64_t j = 0; j < count && k < stop; ++j) {
      const std::int64_t end = start + gathered[j];
      // Written whether or not the row ends in this document: a later document overwrites it.
      // That is cheaper than a branch that is taken every third time.
      rows_[2 * k] = static_cast<T>(begin + j);
      rows_[2 * k + 1] = static_cast<T>(token + 1 - shape_.extra - start);
      const bool here = token < end;
      k += here;
      token += here ? shape_.seq_length : 0;
      for (; token < end && k < stop; ++k, token += shape_.seq_length) {
        rows_[2 * k] = static_cast<T>(begin + j);
        rows_[2 * k + 1] = static_cast<T>(token + 1 - shape_.extra - start);
      }
      start = end;
    }
  }

  [[noreturn]] void Explain() const {
    for (std::int64_t j = first_bad_;; ++j) {
      const std::int64_t document = documents_[j];
      if (document < 0 || document >= shape_.num_lengths) {
        throw ValueError("document_idx[" + std::to_string(j) + "] must be in [0, " +
                         std::to_string(shape_.num_lengths) + "), the length of sizes, got " +
                         std::to_string(document));
      }
      if (lengths_[document] < 0) {
        throw ValueError("sizes[" + std::to_string(document) + "] must not be negative, got " +
                         std::to_string(lengths_[document]));
      }
    }
  }

  const std::int32_t* lengths_;
  const std::int32_t* documents_;
  const SampleIdxShape shape_;
  T* rows_;
  std::atomic<std::int64_t> next_{0};
  std::mutex mutex_;
  std::condition_variable turned_;
  std::int64_t turn_ = 0;
  std::int64_t tokens_ = 0;      // in all chunks that had their turn
  std::int64_t first_bad_ = -1;  // first place of the first chunk with an error
};

}  // namespace

std::int64_t NumSamples(std::int64_t tokens, std::int32_t seq_length, bool drop_last) {
  if (drop_last) return tokens / seq_length;
  return static_cast<std::int64_t>(
      std::ceil(static_cast<float>(tokens) / static_cast<float>(seq_length)));
}

template <typename T>
void BuildSampleIdx(const std::int32_t* lengths, const std::int32_t* documents,
                    const SampleIdxShape& shape, int threads, T* rows) {
  const std::int64_t chunks = (shape.num_documents + kChunk - 1) / kChunk;
  const auto workers = static_cast<int>(std::min<std::int64_t>(threads, chunks));
  Walk<T> walk(lengths, documents, shape, rows);
  // Allocated here, where a failure can still be thrown to the caller.
  std::vector<std::vector<std::int32_t>> buffers(static_cast<std::size_t>(workers));
  for (auto& b : buffers) b.resize(static_cast<std::size_t>(std::min(kChunk, shape.num_documents)));
  std::vector<std::thread> others;
  others.reserve(buffers.size());
  try {
    for (int w = 1; w < workers; ++w) others.emplace_back([&, w] { walk.Work(buffers[w]); });
  } catch (const std::system_error&) {
    // The system gives no more threads: those that there are do all the work, only slower.
  }
  walk.Work(buffers[0]);
  for (std::thread& other : others) other.join();
  walk.Finish();
}

template void BuildSampleIdx(const std::int32_t*, const std::int32_t*, const SampleIdxShape&, int,
                             std::int32_t*);
template void BuildSampleIdx(const std::int32_t*, const std::int32_t*, const SampleIdxShape&, int,
                             std::int64_t*);

}  // namespace mixcore
