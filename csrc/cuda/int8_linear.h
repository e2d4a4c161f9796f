// int8_linear: y = x (weight * scale)^T for 1 to 16 rows of float16 or bfloat16.
//
// Decoding reads every weight once for a few rows, so the bytes must go from memory to the tensor
// core without a detour. A dot product does not mind the order of its terms: lane (group, member)
// takes 16 neighbouring bytes of weight row `group` and the same 16 numbers of x, and feeds them to
// four mma.sync as if they were the columns that its fragments want.
//
// Why not Triton: tl.dot fixes which lane holds which k, so int8 loaded 16 bytes at a time is first
// moved between lanes through shared memory (and x in its turn); the order of k cannot be chosen.
#pragma once

#include "device.h"

namespace stagebeam::cuda {

inline constexpr int kMaxInt8Rows = 16;
inline constexpr int kInt8Warps = 4;

// A block owns kTiles * 8 columns of y; its warps share out the k of each.
template <typename T, int kTiles>
__global__ void __launch_bounds__(kInt8Warps* kWarpSize)
    int8_linear_kernel(const T* x, const int8_t* weight, const float* scale, T* y, int num_rows,
                       int num_columns, int depth) {
  constexpr int kStep = 64;  // numbers of k a warp takes in a turn, 16 a member
  __shared__ float partial[kInt8Warps][kTiles][4][kWarpSize];
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int group = lane / 4, member = lane % 4;
  const int first_column = blockIdx.x * kTiles * 8;

  float d[kTiles][4] = {};
  for (int k = warp * kStep + member * 16; k - member * 16 < depth; k += kInt8Warps * kStep) {
    union Numbers {  // 16 of them
      uint4 loads[2];
      uint32_t pairs[8];
    };
    Numbers low = {}, high = {};  // rows `group` and `group + 8`
    if (k < depth && group < num_rows) {
      const auto* from = reinterpret_cast<const uint4*>(x + int64_t{group} * depth + k);
      low.loads[0] = from[0], low.loads[1] = from[1];
    }
    if (k < depth && group + 8 < num_rows) {
      const auto* from = reinterpret_cast<const uint4*>(x + int64_t{group + 8} * depth + k);
      high.loads[0] = from[0], high.loads[1] = from[1];
    }
    union Bytes {
      uint4 load;
      uint32_t words[4];
    };
    Bytes bytes[kTiles] = {};
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const int column = first_column + tile * 8 + group;
      if (k < depth && column < num_columns) {
        bytes[tile].load = *reinterpret_cast<const uint4*>(weight + int64_t{column} * depth + k);
      }
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        const uint32_t a[4] = {low.pairs[2 * s], high.pairs[2 * s], low.pairs[2 * s + 1],
                               high.pairs[2 * s + 1]};
        const uint32_t b[2] = {pair_of_bytes<T>(bytes[tile].words[s], 0),
                               pair_of_bytes<T>(bytes[tile].words[s], 2)};
        multiply_add(d[tile], a, b, T{});
      }
    }
  }
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) partial[warp][tile][i][lane] = d[tile][i];
  }
  __syncthreads();
  for (int at = threadIdx.x; at < kTiles * 4 * kWarpSize; at += kInt8Warps * kWarpSize) {
    const int tile = at / (4 * kWarpSize), i = at / kWarpSize % 4, owner = at % kWarpSize;
    float sum = 0;
    for (int w = 0; w < kInt8Warps; ++w) sum += partial[w][tile][i][owner];  // always in this order
    const int row = owner / 4 + 8 * (i / 2);
    const int column = first_column + tile * 8 + 2 * (owner % 4) + i % 2;
    if (row < num_rows && column < num_columns) {
      y[int64_t{row} * num_columns + column] = from_float<T>(sum * scale[column]);
    }
  }
}

// x: [num_rows, depth], weight: [num_columns, depth], scale: [num_columns], y: [num_rows,
// num_columns] written; 1 to 16 rows, depth a multiple of 16, x and weight aligned to 16 bytes.
template <typename T>
cudaError_t launch_int8_linear(const T* x, const int8_t* weight, const float* scale, T* y,
                               int num_rows, int num_columns, int depth, cudaStream_t stream) {
  const auto address = reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(weight);
  if (num_rows < 0 || num_rows > kMaxInt8Rows || num_columns < 0 || depth <= 0 || depth % 16 ||
      address % 16) {
    return cudaErrorInvalidValue;
  }
  if (num_rows == 0 || num_columns == 0) return cudaSuccess;
  // With few rows x is small and more blocks hide more latency; with many it is read less often.
  const int tiles = num_rows <= 4 ? 1 : 4;
  const dim3 grid{static_cast<unsigned>((num_columns + 8 * tiles - 1) / (8 * tiles)), 1, 1};
  const auto kernel = tiles == 1 ? int8_linear_kernel<T, 1> : int8_linear_kernel<T, 4>;
  return launch(kernel, grid, kInt8Warps * kWarpSize, stream, x, weight, scale, y, num_rows,
                num_columns, depth);
}

}  // namespace stagebeam::cuda
