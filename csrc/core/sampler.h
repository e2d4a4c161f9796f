// One row of logits to one token, in double precision: the twin that the device samplers are
// compared with.
//
// Temperature, top_k, top_p and min_p in Hugging Face's order, then Gumbel-max over the kept ids
// with the counter generator's uniforms. It knows no batch. Invariant: the token depends on the
// logits, the options and (seed, uid, step) alone.
#pragma once

#include <cstdint>
#include <vector>

namespace stagebeam {

struct SamplingOptions {
  double temperature = 1.0;  // 0 is argmax, ties to the lowest id
  int64_t top_k = 0;         // 0 or -1 is off; ties at the boundary are all kept
  double top_p = 1.0;        // 1 is off; of equal logits the lowest id is kept first
  double min_p = 0.0;        // 0 is off
};

struct SampledToken {
  int32_t token;
  float logprob;  // natural log, of the untempered and unfiltered distribution
};

// The ids that the filters keep, ascending; never none.
std::vector<int32_t> kept_ids(const float* logits, int64_t vocab_size,
                              const SamplingOptions& options);

SampledToken sample_row(const float* logits, int64_t vocab_size, const SamplingOptions& options,
                        uint64_t seed, uint64_t uid, uint32_t step);

}  // namespace stagebeam
