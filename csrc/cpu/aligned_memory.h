// Zeroed memory for weights and caches, from the system in huge pages where it has them.
//
// Streams of weights cross a small page every few hundred nanoseconds, and each crossing stops the
// prefetcher: huge pages are worth several per cent of the read bandwidth.
#pragma once

#include <cstddef>
#include <new>
#include <vector>

namespace stagebeam {

// At least 64-byte aligned; null for 0 bytes. Throws std::bad_alloc.
void* allocate_zeroed(size_t num_bytes);
void release(void* memory, size_t num_bytes) noexcept;

// Vectors that begin with a cache line: what one thread writes and another reads should cross in
// whole lines, each written by one thread.
template <typename T>
struct LineAllocator {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};

  LineAllocator() = default;
  template <typename U>
  LineAllocator(const LineAllocator<U>&) {}
  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kLine)); }
  void deallocate(T* memory, size_t) noexcept { ::operator delete(memory, kLine); }
  bool operator==(const LineAllocator&) const { return true; }
};
using LineFloats = std::vector<float, LineAllocator<float>>;

}  // namespace stagebeam
