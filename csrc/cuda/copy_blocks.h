// copy_blocks: whole cache blocks of all layers, keys and values, in one launch.
//
// Why not Triton: the caches are 2 * num_layers separate tensors and a Triton kernel takes no array
// of pointers, so it would be a launch a layer (160 for 90B) or pointers smuggled through a tensor
// of integers, which loses their alignment and with it the 16-byte loads. Here the pointers travel
// by value in the kernel's parameters: nothing is uploaded, and a CUDA graph keeps them.
#pragma once

#include "device.h"

namespace stagebeam::cuda {

inline constexpr int kMaxCaches = 256;
inline constexpr int kCopyThreads = 256;

struct CachePointers {
  void* data[kMaxCaches];
};

// One word of 1, 2, 4, 8 or 16 bytes a thread and turn. Grid: (parts of a block, pairs, caches).
template <typename Word>
__global__ void __launch_bounds__(kCopyThreads)
    copy_blocks_kernel(CachePointers caches, const int32_t* pairs, int64_t words_per_block) {
  const int64_t source = pairs[2 * blockIdx.y], destination = pairs[2 * blockIdx.y + 1];
  if (source < 0 || destination < 0) return;  // a padding pair
  Word* cache = static_cast<Word*>(caches.data[blockIdx.z]);
  const Word* from = cache + source * words_per_block;
  Word* to = cache + destination * words_per_block;
  const int64_t stride = int64_t{gridDim.x} * kCopyThreads;
  for (int64_t i = int64_t{blockIdx.x} * kCopyThreads + threadIdx.x; i < words_per_block;
       i += stride) {
    to[i] = from[i];
  }
}

template <typename Word>
cudaError_t launch_copy_blocks_of(const CachePointers& caches, int num_caches, const int32_t* pairs,
                                  int num_pairs, int64_t block_bytes, cudaStream_t stream) {
  const int64_t words = block_bytes / static_cast<int64_t>(sizeof(Word));
  const int64_t parts = (words + 4 * kCopyThreads - 1) / (4 * kCopyThreads);
  const dim3 grid{static_cast<unsigned>(parts < 64 ? parts : 64), static_cast<unsigned>(num_pairs),
                  static_cast<unsigned>(num_caches)};
  return launch(copy_blocks_kernel<Word>, grid, kCopyThreads, stream, caches, pairs, words);
}

// caches:      num_caches device pointers, each to [num_blocks, block_bytes] bytes
// pairs:       [num_pairs, 2] (source, destination) block ids on the device, at most 65535; one
// with
//              a negative id is skipped
inline cudaError_t launch_copy_blocks(void* const* caches, int num_caches, const int32_t* pairs,
                                      int num_pairs, int64_t block_bytes, cudaStream_t stream) {
  if (num_caches < 0 || num_caches > kMaxCaches || num_pairs < 0 || num_pairs > 65535 ||
      block_bytes < 0) {
    return cudaErrorInvalidValue;
  }
  if (num_caches == 0 || num_pairs == 0 || block_bytes == 0) return cudaSuccess;
  CachePointers pointers = {};
  uint64_t alignment = static_cast<uint64_t>(block_bytes);
  for (int i = 0; i < num_caches; ++i) {
    pointers.data[i] = caches[i];
    alignment |= reinterpret_cast<uintptr_t>(caches[i]);
  }
  if (alignment % 16 == 0) {
    return launch_copy_blocks_of<uint4>(pointers, num_caches, pairs, num_pairs, block_bytes,
                                        stream);
  }
  if (alignment % 8 == 0) {
    return launch_copy_blocks_of<uint64_t>(pointers, num_caches, pairs, num_pairs, block_bytes,
                                           stream);
  }
  if (alignment % 4 == 0) {
    return launch_copy_blocks_of<uint32_t>(pointers, num_caches, pairs, num_pairs, block_bytes,
                                           stream);
  }
  if (alignment % 2 == 0) {
    return launch_copy_blocks_of<uint16_t>(pointers, num_caches, pairs, num_pairs, block_bytes,
                                           stream);
  }
  return launch_copy_blocks_of<uint8_t>(pointers, num_caches, pairs, num_pairs, block_bytes,
                                        stream);
}

}  // namespace stagebeam::cuda
