// The thread grid of a GPU on one host thread, so that kernels can be tested without one.
//
// Blocks run one after another; a block's threads are fibers that switch only where a GPU's threads
// wait for each other: at barriers and warp exchanges. Knows no kernel. A barrier that some threads
// never reach aborts with a message, and the order in which fibers run can be turned round or
// shuffled, so that a missing barrier shows as a wrong result.
#pragma once

#include <cstdint>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // one block at a time

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace stagebeam::cuda::host {

enum class Order { kForward, kBackward, kShuffled };

// The order in which the fibers of a block take turns, for the launches that follow.
void set_order(Order order);

// Run `body` once a thread of the grid.
cudaError_t launch(dim3 grid, unsigned num_threads, const std::function<void()>& body);

// Wait until every live thread of the block has come here.
void wait_for_block();

// Hand `size` bytes (at most 32) to the warp and wait for the other lanes; returns the 32 lanes'
// bytes, 32 a lane, which stay until this warp's next exchange but one.
const unsigned char* exchange(const void* mine, int size);

template <typename T>
T from_lane(T value, unsigned lane) {
  const unsigned char* lanes = exchange(&value, sizeof(T));
  T other;
  __builtin_memcpy(&other, lanes + 32 * (lane % 32), sizeof(T));
  return other;
}

// What mma.sync computes, each lane its own four numbers of d.
template <typename ToFloat>
void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], ToFloat to_float) {
  uint32_t mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  const unsigned char* lanes = exchange(mine, sizeof(mine));
  auto half = [&](unsigned lane, unsigned word, unsigned k) {
    uint32_t pair;
    __builtin_memcpy(&pair, lanes + 32 * lane + 4 * word, 4);
    return to_float(static_cast<uint16_t>(pair >> (16 * (k % 2))));
  };
  const unsigned lane = threadIdx.x % 32, group = lane / 4, member = lane % 4;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned column = 2 * member + i % 2;
    for (unsigned k = 0; k < 16; ++k) {
      const unsigned owner = k % 8 / 2, upper = k / 8;
      d[i] +=
          half(4 * group + owner, i / 2 + 2 * upper, k) * half(4 * column + owner, 4 + upper, k);
    }
  }
}

}  // namespace stagebeam::cuda::host

inline void __syncthreads() {
  stagebeam::cuda::host::wait_for_block();
}

inline unsigned __ballot_sync(unsigned, bool is_set) {
  const unsigned char* lanes = stagebeam::cuda::host::exchange(&is_set, 1);
  unsigned mask = 0;
  for (unsigned lane = 0; lane < 32; ++lane) mask |= unsigned{lanes[32 * lane] != 0} << lane;
  return mask;
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int lane_mask) {
  return stagebeam::cuda::host::from_lane(value, (threadIdx.x % 32) ^ lane_mask);
}

// Fibers switch at barriers only, so a plain addition cannot be cut in two.
template <typename T>
T atomicAdd(T* address, T value) {
  const T before = *address;
  *address += value;
  return before;
}

inline int __popc(unsigned x) {
  return __builtin_popcount(x);
}
