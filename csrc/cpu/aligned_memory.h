// Zeroed memory for weights and caches, from the system in huge pages where it has them.
//
// Streams of weights cross a small page every few hundred nanoseconds, and each crossing stops the
// prefetcher: huge pages are worth several per cent of the read bandwidth.
#pragma once

#include <cstddef>

namespace stagebeam {

// At least 64-byte aligned; null for 0 bytes. Throws std::bad_alloc.
void* allocate_zeroed(size_t num_bytes);
void release(void* memory, size_t num_bytes) noexcept;

}  // namespace stagebeam
