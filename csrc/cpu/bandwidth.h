// The rate at which threads read memory: the floor under every decode step.
#pragma once

#include <cstddef>

#include "thread_pool.h"

namespace stagebeam {

// Bytes a second, in GB/s (10^9), that the pool's threads read together from `num_bytes` of memory,
// the best of `repeats` passes after one to touch it. Take more bytes than the caches hold. Throws
// std::invalid_argument for no bytes or repeats, std::bad_alloc.
double read_bandwidth(ThreadPool& pool, size_t num_bytes = size_t{256} << 20, int repeats = 5);

}  // namespace stagebeam
