#include "bandwidth.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <stdexcept>

#include "aligned_memory.h"

namespace stagebeam {
namespace {

constexpr size_t kLeastBytes = 512;  // for each thread
constexpr size_t kWordsAtOnce = 16;  // as many as the baseline's registers hold

// Sums whole runs of words: independent chains, so that only memory holds it up.
uint64_t sum(const uint64_t* words, size_t count) {
  uint64_t sums[kWordsAtOnce] = {};
  for (size_t i = 0; i + kWordsAtOnce <= count; i += kWordsAtOnce) {
    for (size_t j = 0; j < kWordsAtOnce; ++j) sums[j] ^= words[i + j];
  }
  uint64_t total = 0;
  for (const uint64_t value : sums) total ^= value;
  return total;
}

}  // namespace

double read_bandwidth(ThreadPool& pool, size_t num_bytes, int repeats) {
  if (num_bytes < kLeastBytes * pool.num_threads() || repeats < 1) {
    throw std::invalid_argument(
        "read_bandwidth needs at least 512 bytes for each thread and 1 repeat");
  }
  const auto free = [num_bytes](void* memory) { release(memory, num_bytes); };
  const std::unique_ptr<void, decltype(free)> memory(allocate_zeroed(num_bytes), free);
  auto* words = static_cast<uint64_t*>(memory.get());
  const size_t count = num_bytes / sizeof(uint64_t);
  std::atomic<uint64_t> total{0};
  double best = 0;
  for (int pass = 0; pass <= repeats; ++pass) {
    const auto start = std::chrono::steady_clock::now();
    pool.run([&](int part, int parts) {
      const size_t first = count * part / parts, end = count * (part + 1) / parts;
      if (pass == 0) std::fill(words + first, words + end, uint64_t{1});
      total += sum(words + first, end - first);
    });
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    if (pass > 0) best = std::max(best, static_cast<double>(num_bytes) / seconds.count() / 1e9);
  }
  return best;
}

}  // namespace stagebeam
