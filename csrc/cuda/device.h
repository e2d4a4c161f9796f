// What the kernels need of the machine, once for a GPU and once for the host's grid of fibers:
// number formats held as bits, warp reductions, the 16 x 8 x 16 matrix product of a warp, and the
// launch.
//
// A kernel file includes this and nothing else of CUDA, so it compiles with nvcc and with any C++20
// compiler alike.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "host/grid.h"
#endif

namespace stagebeam::cuda {

inline constexpr int kWarpSize = 32;
inline constexpr unsigned kWholeWarp = 0xFFFFFFFFu;

// Two bytes as they lie in memory; arithmetic is float32.
struct float16 {
  uint16_t bits;
};
struct bfloat16 {
  uint16_t bits;
};

// Four neighbours, read by one load.
template <typename T>
struct alignas(4 * sizeof(T)) Quad {
  T values[4];
};

template <typename To, typename From>
__device__ __forceinline__ To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

__device__ __forceinline__ float to_float(float x) {
  return x;
}
__device__ __forceinline__ float to_float(bfloat16 x) {
  return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16);
}
__device__ __forceinline__ float to_float(float16 x) {
#ifdef __CUDACC__
  return __half2float(__ushort_as_half(x.bits));
#else
  return static_cast<float>(bit_cast<_Float16>(x.bits));
#endif
}

// Rounded to nearest, ties to even.
template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ bfloat16 from_float<bfloat16>(float x) {
#ifdef __CUDACC__
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
#else
  if (x != x) return {0x7FC0};
  const auto bits = bit_cast<uint32_t>(x);
  return {static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1)) >> 16)};
#endif
}
template <>
__device__ __forceinline__ float16 from_float<float16>(float x) {
#ifdef __CUDACC__
  return {__half_as_ushort(__float2half_rn(x))};
#else
  return {bit_cast<uint16_t>(static_cast<_Float16>(x))};
#endif
}

// Signed bytes `low` and `low + 1` of a word as two numbers of T, the first in the low half. Exact.
// A byte in the mantissa of 2^23 is an integer float: a subtraction instead of a slow conversion.
template <typename T>
__device__ __forceinline__ uint32_t pair_of_bytes(uint32_t word, int low) {
  const uint32_t biased = (word ^ 0x80808080u) >> (8 * low);
  const float first = bit_cast<float>(0x4B000000u | (biased & 0xFFu)) - 8388736.0f;
  const float second = bit_cast<float>(0x4B000000u | ((biased >> 8) & 0xFFu)) - 8388736.0f;
  return from_float<T>(first).bits | static_cast<uint32_t>(from_float<T>(second).bits) << 16;
}

// d += a b on one warp: a [16, 16], b [16, 8], d [16, 8] in mma.sync's fragments (PTX ISA,
// "mma.m16n8k16"): lane = 4 * group + member holds the rows group and group + 8 of a and d.
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2], bfloat16) {
#ifdef __CUDACC__
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  host::multiply_add(d, a, b, [](uint16_t bits) { return to_float(bfloat16{bits}); });
#endif
}
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2], float16) {
#ifdef __CUDACC__
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  host::multiply_add(d, a, b, [](uint16_t bits) { return to_float(float16{bits}); });
#endif
}

// Run `kernel` on a grid of blocks; never waits for it.
template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, unsigned num_threads,
                   [[maybe_unused]] cudaStream_t stream, Arguments... arguments) {
#ifdef __CUDACC__
  kernel<<<grid, num_threads, 0, stream>>>(arguments...);
  return cudaPeekAtLastError();
#else
  return host::launch(grid, num_threads, [&] { kernel(arguments...); });
#endif
}

}  // namespace stagebeam::cuda
