// A model's text decoder as a list of operations over packed weights, run by a pool of threads.
//
// Built once from a checkpoint; a pass (a decode step or prefill chunks) is one parallel region,
// from token ids to sampled tokens or hidden states. It knows caches by address, not who owns them.
// Invariant: a row's result depends on its own tokens alone, bit for bit: not on the rows beside
// it, the number of threads, or how its prompt was cut into chunks.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "aligned_memory.h"
#include "attention.h"
#include "linear.h"
#include "packed_matrix.h"
#include "sample.h"
#include "thread_pool.h"
#include "weight_streams.h"

namespace stagebeam::cpu {

struct ProgramShape {
  int64_t hidden_size;
  int64_t vocab_size;
  int64_t num_heads;
  int64_t num_kv_heads;
  int64_t head_dim;
  float eps;
  const float* cos_sin;  // [max_positions, head_dim]
};

// Which rows an operation works on; the others keep what they have.
enum class RowSet { kAll, kWithImage, kWithImageMlp };

// One pass over num_rows rows. Exactly one of `branches` and `prefill` is set.
struct Pass {
  int64_t num_rows = 0;
  const int64_t* token_ids = nullptr;
  const int64_t* positions = nullptr;
  const int32_t* slots = nullptr;
  const BranchRows* branches = nullptr;
  const PrefillRows* prefill = nullptr;
  const CrossRows* cross = nullptr;  // null where no row has an image
  const bool* has_mlp = nullptr;     // [num_rows], beside `cross`
  // Hidden states after the final norm of some rows, [num_outputs, hidden_size] ...
  const int64_t* output_rows = nullptr;
  int64_t num_outputs = 0;
  float* hidden = nullptr;
  // ... or, where `sampling` is set, the next token of every row.
  const TagTables* tables = nullptr;
  const SampleRows* sampling = nullptr;
  SampleOutput sampled{};
};

class StepProgram {
 public:
  StepProgram(const ProgramShape& shape, std::shared_ptr<ThreadPool> pool);

  // Weights; an index names them in the operations below. Vectors are copied.
  int64_t add_matrix(int64_t out_features, int64_t in_features, WeightFormat format,
                     RowOrder order);
  int64_t add_vector(const float* values, int64_t count);
  PackedMatrix& matrix(int64_t index) { return matrices_.at(index); }

  // The list of operations, in order. `stream` is the residual stream, [num_rows, hidden_size].
  // wide = matrix * rms_norm(stream); a kGateUp matrix gives silu(gate) * up
  void add_norm_linear(int64_t norm, int64_t matrix, RowSet rows);
  // attended = attention of wide's queries; wide's keys and values go to the next cache first
  void add_self_attention();
  // attended = attention of wide's normed queries over the image slots of the next cross cache
  void add_cross_attention(int64_t q_norm);
  // stream += scale * (matrix * (attended or wide))
  void add_residual_linear(int64_t matrix, bool is_from_attended, float scale, RowSet rows);
  void set_ends(int64_t embedding, int64_t final_norm, int64_t head);

  void bind_caches(std::vector<KvCache> self, std::vector<KvCache> cross);

  // Runs a pass; one at a time. Throws std::invalid_argument where caches are missing or ids are
  // out of range.
  void run(const Pass& pass);

  // out[r, i] = logit of token ids[r, i] for hidden[r], a row of [num_rows, hidden_size].
  void logits_of(const float* hidden, int64_t num_rows, const int64_t* ids, int64_t per_row,
                 float* out) const;

  // All logits of rows after the final norm: out [num_rows, rows of the head].
  void logits(const float* hidden, int64_t num_rows, float* out);
  // The logits that the last pass with sampling chose from: out [num_rows, vocab_size].
  void copy_last_logits(int64_t num_rows, float* out) const;
  int64_t num_head_rows() const { return matrices_.at(head_).out_features(); }

  int64_t packed_bytes() const;
  // Bytes of weights that a decode step reads, without and with an image.
  int64_t decode_bytes(bool has_image) const;
  // Cache bytes that the last pass's attention read.
  int64_t last_kv_bytes() const {
    return num_self_ > 0 && !self_caches_.empty()
               ? num_self_ * self_plan_.kv_bytes(self_caches_.front().format)
               : 0;
  }
  const ThreadPool& pool() const { return *pool_; }

 private:
  enum class Kind { kNormLinear, kSelfAttention, kCrossAttention, kResidualLinear };
  struct Op {
    Kind kind;
    int64_t vector;
    int64_t matrix;
    int64_t cache;
    bool is_from_attended;
    float scale;
    RowSet rows;
  };
  struct RowRun {
    int64_t begin, end;
  };
  // Runs by RowSet.
  struct RowSets {
    std::vector<RowRun> all, with_image, with_mlp;
    void clear();
    void add(RowSet rows, int64_t row);
  };
  struct Worker {
    LineFloats normed;
    AttentionScratch attention;
    SampleScratch sampling;
  };

  void check(const Pass& pass) const;
  void prepare(const Pass& pass);
  void mark_outputs(const Pass& pass);
  void work(const Pass& pass, int part, int parts);
  // A barrier; a part that waits asks for the weights that it reads after operation `index`.
  void meet(size_t index, int part, int parts);
  void point_ahead(size_t index, int part, int parts);
  void run_norm_linear(const Op& op, int part, int parts, size_t index);
  void run_residual_linear(const Op& op, int part, int parts, size_t index);
  void run_self_attention(const Op& op, const Pass& pass, int part, int parts, size_t index);
  void run_cross_attention(const Op& op, int part, int parts, size_t index);
  void attend(AttentionPlan& plan, const AttentionLayer& layer, int part, int parts, size_t index);
  void finish(const Pass& pass, int part, int parts);
  // After the last self-attention nobody reads a row but the outputs: a prefill drops the others.
  bool is_for_outputs(size_t index) const { return has_few_outputs_ && index >= last_self_; }
  const std::vector<RowRun>& runs(size_t index) const;
  // The norms of rows begin .. end - 1 of `source`: every thread's own copy of a few rows, one
  // shared copy (with a barrier) of many.
  const float* normed(const float* source, int64_t norm, const RowRun& run, int part, int parts);

  ProgramShape shape_;
  std::shared_ptr<ThreadPool> pool_;
  WeightStreams streams_;
  std::deque<PackedMatrix> matrices_;
  std::deque<std::vector<float>> vectors_;
  std::vector<Op> ops_;
  int64_t embedding_ = -1, final_norm_ = -1, head_ = -1;
  int64_t num_self_ = 0, num_cross_ = 0, wide_width_ = 0;
  size_t last_self_ = 0;  // the last self-attention's place in ops_
  std::vector<KvCache> self_caches_, cross_caches_;

  // Of the running pass.
  LineFloats stream_, wide_, attended_, normed_, logits_;
  std::vector<LogitSummary> summaries_;
  RowSets row_sets_, output_sets_;
  bool has_few_outputs_ = false;
  std::vector<uint8_t> is_output_;  // [num_rows], where has_few_outputs_
  AttentionPlan self_plan_, cross_plan_;
  std::unique_ptr<std::atomic<int64_t>[]> next_item_;
  std::vector<Worker> workers_;
};

}  // namespace stagebeam::cpu
