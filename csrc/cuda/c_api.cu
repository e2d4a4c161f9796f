// The launchers behind a C interface, for ctypes: raw pointers, an explicit stream, and a
// cudaError_t as int (0 is success). Formats are numbered: 0 float32, 1 float16, 2 bfloat16.
#include "copy_blocks.h"
#include "int8_linear.h"
#include "sample_step.h"

namespace {

using namespace stagebeam::cuda;

#ifdef __CUDACC__
constexpr int kSampleThreads = 1024;
#else
constexpr int kSampleThreads = 64;  // fibers take turns: fewer are faster
#endif

template <typename Logit>
int sample_step(const void* const* in, void* const* out, int num_rows, int vocab_size, int num_eos,
                void* stream) {
  const SampleStep<Logit> arguments = {static_cast<const Logit*>(in[0]),
                                       static_cast<const int64_t*>(in[1]),
                                       static_cast<const int64_t*>(in[2]),
                                       static_cast<const int32_t*>(in[3]),
                                       static_cast<const float*>(in[4]),
                                       static_cast<const int32_t*>(in[5]),
                                       static_cast<const float*>(in[6]),
                                       static_cast<const float*>(in[7]),
                                       static_cast<const int16_t*>(in[8]),
                                       static_cast<const int32_t*>(in[9]),
                                       static_cast<const int32_t*>(in[10]),
                                       static_cast<const int64_t*>(in[11]),
                                       static_cast<const int64_t*>(in[12]),
                                       static_cast<const bool*>(in[13]),
                                       static_cast<const int32_t*>(in[14]),
                                       static_cast<int64_t*>(out[0]),
                                       static_cast<float*>(out[1]),
                                       static_cast<int32_t*>(out[2]),
                                       static_cast<int8_t*>(out[3]),
                                       num_rows,
                                       vocab_size,
                                       num_eos};
  return launch_sample_step<kSampleThreads>(arguments, static_cast<cudaStream_t>(stream));
}

template <typename T>
int int8_linear(const void* x, const void* weight, const void* scale, void* y, int num_rows,
                int num_columns, int depth, void* stream) {
  return launch_int8_linear(static_cast<const T*>(x), static_cast<const int8_t*>(weight),
                            static_cast<const float*>(scale), static_cast<T*>(y), num_rows,
                            num_columns, depth, static_cast<cudaStream_t>(stream));
}

}  // namespace

extern "C" {

int stagebeam_cuda_copy_blocks(void* const* caches, int num_caches, const void* pairs,
                               int num_pairs, int64_t block_bytes, void* stream) noexcept {
  return launch_copy_blocks(caches, num_caches, static_cast<const int32_t*>(pairs), num_pairs,
                            block_bytes, static_cast<cudaStream_t>(stream));
}

// in: the op's 15 tensors in order; out: token_ids, logprobs, new_states, finish
int stagebeam_cuda_sample_step(int format, const void* const* in, void* const* out, int num_rows,
                               int vocab_size, int num_eos, void* stream) noexcept {
  switch (format) {
    case 0:
      return sample_step<float>(in, out, num_rows, vocab_size, num_eos, stream);
    case 1:
      return sample_step<float16>(in, out, num_rows, vocab_size, num_eos, stream);
    case 2:
      return sample_step<bfloat16>(in, out, num_rows, vocab_size, num_eos, stream);
  }
  return cudaErrorInvalidValue;
}

int stagebeam_cuda_int8_linear(int format, const void* x, const void* weight, const void* scale,
                               void* y, int num_rows, int num_columns, int depth,
                               void* stream) noexcept {
  switch (format) {
    case 1:
      return int8_linear<float16>(x, weight, scale, y, num_rows, num_columns, depth, stream);
    case 2:
      return int8_linear<bfloat16>(x, weight, scale, y, num_rows, num_columns, depth, stream);
  }
  return cudaErrorInvalidValue;
}

#ifndef __CUDACC__
// 0 forward, 1 backward, 2 shuffled: the turns of a block's fibers.
void stagebeam_host_set_order(int order) noexcept {
  stagebeam::cuda::host::set_order(static_cast<stagebeam::cuda::host::Order>(order));
}
#endif

}  // extern "C"
