// From a row of logits to its next token, its tag state and whether it is finished.
//
// The fast twin of csrc/core/sampler.h: the same filters and the same uniforms, but no pass over
// the vocabulary that a row does not need. Invariant: a row's token depends on its own values
// alone.
#pragma once

#include <cstdint>
#include <vector>

#include "../core/sampler.h"

namespace stagebeam::cpu {

// Logits are summed up in chunks of this many, so that the sum does not depend on the threads.
constexpr int64_t kLogitChunk = 1024;

struct LogitSummary {
  float largest;
  int64_t place;  // of the first largest
  double sum;     // of exp(logit - largest)
};

constexpr int64_t num_logit_chunks(int64_t vocab_size) {
  return (vocab_size + kLogitChunk - 1) / kLogitChunk;
}
// `ahead` is the chunk that is summed up next; null for none.
LogitSummary summarize(const float* chunk, int64_t count, const float* ahead = nullptr);
LogitSummary combine(const LogitSummary* chunks, int64_t num_chunks);

// Working memory of `choose_token`, kept between rows.
struct SampleScratch {
  std::vector<float> maxima, ranked;
  std::vector<int32_t> ids;
  std::vector<double> weights;
};

int32_t choose_token(const float* logits, int64_t vocab_size, const LogitSummary& summary,
                     const SamplingOptions& options, uint64_t seed, uint64_t uid, uint32_t step,
                     SampleScratch& scratch);

// The tables and rows that decide when a branch ends; kernels/sample_step says what they hold.
struct TagTables {
  const int16_t* next_state;  // [num_states, vocab_size]
  const int32_t* accept_tag;  // [num_states]
  int64_t vocab_size;
  const int64_t* eos_ids;
  int64_t num_eos_ids;
};
struct SampleRows {
  const int64_t* seeds;
  const int64_t* uids;
  const int32_t* steps;
  const float* temperature;
  const int32_t* top_k;
  const float* top_p;
  const float* min_p;
  const int32_t* states;
  const int64_t* goal_masks;
  const bool* ignore_eos;
  const int32_t* max_tokens;
};
struct SampleOutput {
  int64_t* token_ids;
  float* logprobs;
  int32_t* states;
  int8_t* finish;
};

// Fills row `row` of the output; `chunks` are the row's num_logit_chunks summaries.
void sample_row(const float* logits, const LogitSummary* chunks, const TagTables& tables,
                const SampleRows& rows, int64_t row, const SampleOutput& out,
                SampleScratch& scratch);

}  // namespace stagebeam::cpu
