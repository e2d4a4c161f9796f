#include "step_program.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <stdexcept>
#include <string>

namespace stagebeam::cpu {
namespace {

constexpr int64_t kPrivateRows = 32;  // rows whose norm each thread computes for itself
// Weights that attention asks for while it computes: they wait in the second cache.
constexpr int64_t kBytesAhead = 384 << 10;
constexpr int64_t kBytesAsked = 16 << 10;  // by a product behind what it read
constexpr int kLooksALine = 2;             // at a barrier: of a burst most requests are dropped

template <typename Values>
void grow(Values& values, int64_t size) {
  if (static_cast<int64_t>(values.size()) < size) values.resize(size);
}

}  // namespace

void StepProgram::RowSets::clear() {
  all.clear();
  with_image.clear();
  with_mlp.clear();
}

void StepProgram::RowSets::add(RowSet rows, int64_t row) {
  std::vector<RowRun>& runs = rows == RowSet::kAll         ? all
                              : rows == RowSet::kWithImage ? with_image
                                                           : with_mlp;
  if (!runs.empty() && runs.back().end == row) {
    ++runs.back().end;
  } else {
    runs.push_back({row, row + 1});
  }
}

StepProgram::StepProgram(const ProgramShape& shape, std::shared_ptr<ThreadPool> pool)
    : shape_(shape),
      pool_(std::move(pool)),
      streams_(pool_->num_threads()),
      workers_(pool_->num_threads()) {
  wide_width_ = 1;
}

int64_t StepProgram::add_matrix(int64_t out_features, int64_t in_features, WeightFormat format,
                                RowOrder order) {
  matrices_.emplace_back(out_features, in_features, format, order, Activations::kRounded,
                         &streams_);
  return static_cast<int64_t>(matrices_.size()) - 1;
}

int64_t StepProgram::add_vector(const float* values, int64_t count) {
  vectors_.emplace_back(values, values + count);
  return static_cast<int64_t>(vectors_.size()) - 1;
}

void StepProgram::add_norm_linear(int64_t norm, int64_t matrix, RowSet rows) {
  const PackedMatrix& weights = matrices_.at(matrix);
  const int64_t halves = weights.order() == RowOrder::kGateUp ? 2 : 1;
  wide_width_ = std::max(wide_width_, weights.out_features() / halves);
  ops_.push_back({Kind::kNormLinear, norm, matrix, -1, false, 1, rows});
}

void StepProgram::add_self_attention() {
  last_self_ = ops_.size();
  ops_.push_back({Kind::kSelfAttention, -1, -1, num_self_++, false, 1, RowSet::kAll});
}

void StepProgram::add_cross_attention(int64_t q_norm) {
  ops_.push_back({Kind::kCrossAttention, q_norm, -1, num_cross_++, false, 1, RowSet::kWithImage});
}

void StepProgram::add_residual_linear(int64_t matrix, bool is_from_attended, float scale,
                                      RowSet rows) {
  ops_.push_back({Kind::kResidualLinear, -1, matrix, -1, is_from_attended, scale, rows});
}

void StepProgram::set_ends(int64_t embedding, int64_t final_norm, int64_t head) {
  embedding_ = embedding;
  final_norm_ = final_norm;
  head_ = head;
  next_item_ = std::make_unique<std::atomic<int64_t>[]>(ops_.size());
}

void StepProgram::bind_caches(std::vector<KvCache> self, std::vector<KvCache> cross) {
  self_caches_ = std::move(self);
  cross_caches_ = std::move(cross);
}

int64_t StepProgram::packed_bytes() const {
  int64_t total = 0;
  for (const PackedMatrix& matrix : matrices_) total += static_cast<int64_t>(matrix.num_bytes());
  for (const auto& vector : vectors_) total += static_cast<int64_t>(vector.size() * sizeof(float));
  return total;
}

int64_t StepProgram::decode_bytes(bool has_image) const {
  auto bytes = [this](int64_t i) { return static_cast<int64_t>(matrices_[i].num_bytes()); };
  int64_t total = bytes(head_);
  for (const Op& op : ops_) {
    if (op.matrix >= 0 && (has_image || op.rows == RowSet::kAll)) total += bytes(op.matrix);
  }
  return total;
}

void StepProgram::check(const Pass& pass) const {
  if (static_cast<int64_t>(self_caches_.size()) != num_self_ ||
      (pass.cross != nullptr && static_cast<int64_t>(cross_caches_.size()) != num_cross_)) {
    throw std::invalid_argument("the program has " + std::to_string(num_self_) +
                                " self-attention and " + std::to_string(num_cross_) +
                                " cross-attention layers, got " +
                                std::to_string(self_caches_.size()) + " and " +
                                std::to_string(cross_caches_.size()) + " caches");
  }
  for (int64_t r = 0; r < pass.num_rows; ++r) {
    if (pass.token_ids[r] < 0 || pass.token_ids[r] >= matrices_[embedding_].out_features()) {
      throw std::invalid_argument("token id " + std::to_string(pass.token_ids[r]) +
                                  " is outside the embedding's " +
                                  std::to_string(matrices_[embedding_].out_features()) + " rows");
    }
  }
}

void StepProgram::prepare(const Pass& pass) {
  const AttentionShape shape{shape_.num_heads, shape_.num_kv_heads, shape_.head_dim,
                             1.0f / std::sqrt(static_cast<float>(shape_.head_dim))};
  const int num_threads = pool_->num_threads();
  grow(stream_, pass.num_rows * shape_.hidden_size);
  grow(wide_, pass.num_rows * wide_width_);
  grow(attended_, pass.num_rows * shape_.num_heads * shape_.head_dim);
  if (pass.num_rows > kPrivateRows) grow(normed_, pass.num_rows * shape_.hidden_size);
  row_sets_.clear();
  output_sets_.clear();
  row_sets_.all = {{0, pass.num_rows}};
  mark_outputs(pass);
  if (pass.branches != nullptr) {
    self_plan_.plan_branches(*pass.branches, shape, num_threads);
  } else {
    self_plan_.plan_prefill(*pass.prefill, shape);
  }
  if (pass.cross != nullptr) {
    cross_plan_.plan_cross(*pass.cross, shape, num_threads);
    auto add = [&](RowSet rows, int64_t row) {
      row_sets_.add(rows, row);
      if (has_few_outputs_ && is_output_[row]) output_sets_.add(rows, row);
    };
    for (int64_t g = 0; g < pass.cross->num_groups; ++g) {
      if (pass.cross->group_slots[g] < 0) continue;
      for (int64_t r = pass.cross->group_offsets[g]; r < pass.cross->group_offsets[g + 1]; ++r) {
        add(RowSet::kWithImage, r);
        if (pass.has_mlp[r]) add(RowSet::kWithImageMlp, r);
      }
    }
  }
  if (pass.sampling != nullptr) {
    grow(logits_, pass.num_rows * matrices_[head_].out_features());
    grow(summaries_, pass.num_rows * num_logit_chunks(shape_.vocab_size));
  }
  const bool has_shares = self_plan_.is_split() && (!pass.cross || cross_plan_.is_split());
  for (size_t i = 0; i < ops_.size() && !has_shares; ++i) {
    next_item_[i].store(0, std::memory_order_relaxed);
  }
}

void StepProgram::mark_outputs(const Pass& pass) {
  has_few_outputs_ = pass.prefill != nullptr && pass.num_outputs < pass.num_rows;
  if (!has_few_outputs_) return;
  is_output_.assign(pass.num_rows, 0);
  for (int64_t i = 0; i < pass.num_outputs; ++i) is_output_[pass.output_rows[i]] = 1;
  for (int64_t r = 0; r < pass.num_rows; ++r) {
    if (is_output_[r]) output_sets_.add(RowSet::kAll, r);
  }
}

void StepProgram::run(const Pass& pass) {
  if (pass.num_rows == 0) return;
  check(pass);
  prepare(pass);
  pool_->run([&](int part, int parts) { work(pass, part, parts); });
}

void StepProgram::work(const Pass& pass, int part, int parts) {
  for (int64_t r = part; r < pass.num_rows; r += parts) {
    matrices_[embedding_].unpack_rows(pass.token_ids[r], 1, &stream_[r * shape_.hidden_size],
                                      shape_.hidden_size);
  }
  pool_->barrier();
  for (size_t i = 0; i < ops_.size(); ++i) {
    const Op& op = ops_[i];
    if (runs(i).empty() && i != last_self_) continue;
    switch (op.kind) {
      case Kind::kNormLinear:
        run_norm_linear(op, part, parts, i);
        break;
      case Kind::kSelfAttention:
        run_self_attention(op, pass, part, parts, i);
        break;
      case Kind::kCrossAttention:
        run_cross_attention(op, part, parts, i);
        break;
      case Kind::kResidualLinear:
        run_residual_linear(op, part, parts, i);
        break;
    }
    meet(i, part, parts);
  }
  finish(pass, part, parts);
}

// What a thread reads next is one stream from its share of the next matrix on.
void StepProgram::point_ahead(size_t index, int part, int parts) {
  size_t next = index + 1;
  while (next < ops_.size() && (ops_[next].matrix < 0 || runs(next).empty())) ++next;
  const PackedMatrix& matrix = matrices_[next < ops_.size() ? ops_[next].matrix : head_];
  const std::byte* begin = matrix.share(part, parts);
  LinesAhead& lines = workers_[part].attention.lines_ahead;
  if (begin == nullptr) {
    lines = {};
    return;
  }
  const std::byte* end = begin + kBytesAhead;
  const bool is_within = !std::less<>()(lines.next, begin) && !std::less<>()(end, lines.next);
  lines = {is_within ? lines.next : begin, end};
}

void StepProgram::meet(size_t index, int part, int parts) {
  const uint32_t arrival = pool_->arrive();
  point_ahead(index, part, parts);
  LinesAhead& lines = workers_[part].attention.lines_ahead;
  if (ops_[index].matrix >= 0 && lines.end - lines.next == kBytesAhead) lines.next += kBytesAsked;
  int look = 0;
  while (pool_->can_spin() && !pool_->is_open(arrival) && lines.next < lines.end) {
    if (++look % kLooksALine != 0) continue;
    __builtin_prefetch(lines.next, 0, 2);
    lines.next += 64;
  }
  pool_->wait(arrival);
}

const std::vector<StepProgram::RowRun>& StepProgram::runs(size_t index) const {
  const RowSets& sets = is_for_outputs(index) ? output_sets_ : row_sets_;
  const RowSet rows = ops_[index].rows;
  return rows == RowSet::kAll         ? sets.all
         : rows == RowSet::kWithImage ? sets.with_image
                                      : sets.with_mlp;
}

const float* StepProgram::normed(const float* source, int64_t norm, const RowRun& run, int part,
                                 int parts) {
  const int64_t count = run.end - run.begin, width = shape_.hidden_size;
  const float* weight = vectors_[norm].data();
  const bool is_shared = count > kPrivateRows;
  LineFloats& own = workers_[part].normed;
  if (!is_shared) grow(own, kPrivateRows * width);
  float* out = is_shared ? &normed_[run.begin * width] : own.data();
  for (int64_t r = is_shared ? part : 0; r < count; r += is_shared ? parts : 1) {
    kernels().rms_norm(source + (run.begin + r) * width, weight, shape_.eps, width,
                       out + r * width);
  }
  if (is_shared) pool_->barrier();
  return out;
}

void StepProgram::run_norm_linear(const Op& op, int part, int parts, size_t index) {
  const PackedMatrix& weights = matrices_[op.matrix];
  const Epilogue epilogue =
      weights.order() == RowOrder::kGateUp ? Epilogue::silu_mul() : Epilogue::none();
  for (const RowRun& run : runs(index)) {
    const float* x = normed(stream_.data(), op.vector, run, part, parts);
    linear_part(weights, {x, shape_.hidden_size}, run.end - run.begin,
                {&wide_[run.begin * wide_width_], wide_width_}, part, parts, epilogue);
  }
}

void StepProgram::run_residual_linear(const Op& op, int part, int parts, size_t index) {
  const int64_t attended_width = shape_.num_heads * shape_.head_dim;
  const LineFloats& source = op.is_from_attended ? attended_ : wide_;
  const int64_t stride = op.is_from_attended ? attended_width : wide_width_;
  for (const RowRun& run : runs(index)) {
    float* stream = &stream_[run.begin * shape_.hidden_size];
    linear_part(matrices_[op.matrix], {&source[run.begin * stride], stride}, run.end - run.begin,
                {stream, shape_.hidden_size}, part, parts,
                Epilogue::add_residual({stream, shape_.hidden_size}, op.scale));
  }
}

void StepProgram::run_self_attention(const Op& op, const Pass& pass, int part, int parts,
                                     size_t index) {
  const int64_t q_size = shape_.num_heads * shape_.head_dim;
  AttentionLayer layer{};
  layer.shape = self_plan_.shape();
  layer.cache = self_caches_[op.cache];
  layer.q = wide_.data();
  layer.q_stride = wide_width_;
  layer.cos_sin = shape_.cos_sin;
  layer.positions = pass.positions;
  layer.new_keys = wide_.data() + q_size;
  layer.new_values = wide_.data() + q_size + shape_.num_kv_heads * shape_.head_dim;
  layer.new_stride = wide_width_;
  layer.slots = pass.slots;
  layer.out = attended_.data();
  layer.out_stride = q_size;
  attend(self_plan_, layer, part, parts, index);
}

void StepProgram::attend(AttentionPlan& plan, const AttentionLayer& layer, int part, int parts,
                         size_t index) {
  AttentionScratch& scratch = workers_[part].attention;
  const bool is_few = is_for_outputs(index);
  const uint8_t* is_marked = is_few ? is_output_.data() : nullptr;
  if (!plan.is_split()) {
    for (int64_t unit = part; unit < plan.num_units(); unit += parts) {
      plan.prepare_unit(layer, unit, scratch);
    }
    pool_->barrier();
    const int64_t num_items = plan.num_items();
    std::atomic<int64_t>& taken = next_item_[index];
    for (int64_t item = part; item < num_items;
         item = parts + taken.fetch_add(1, std::memory_order_relaxed)) {
      plan.run_items(layer, item, item + 1, 0, is_marked, scratch);
    }
    return;
  }
  plan.prepare_share(layer, part, scratch);
  point_ahead(index, part, parts);
  plan.run_items(layer, plan.first_item(part), plan.first_item(part + 1), part, is_marked, scratch);
  auto fold = [&](bool is_shared) {
    for (int64_t unit = 0; unit < plan.num_units(); ++unit) {
      if (plan.folder(unit) != part || plan.is_shared(unit) != is_shared) continue;
      if (is_few && is_output_[unit / shape_.num_kv_heads] == 0) continue;
      plan.fold_unit(layer, unit, scratch);
    }
  };
  if (!plan.has_shared_units()) {
    fold(false);
    return;
  }
  // Others' states are needed where a unit is shared alone: what is a thread's own is folded while
  // it would wait for them.
  const uint32_t arrival = pool_->arrive();
  fold(false);
  pool_->wait(arrival);
  fold(true);
}

void StepProgram::run_cross_attention(const Op& op, int part, int parts, size_t index) {
  AttentionLayer layer{};
  layer.shape = cross_plan_.shape();
  layer.cache = cross_caches_[op.cache];
  layer.q = wide_.data();
  layer.q_stride = wide_width_;
  layer.q_norm = vectors_[op.vector].data();
  layer.eps = shape_.eps;
  layer.out = attended_.data();
  layer.out_stride = shape_.num_heads * shape_.head_dim;
  attend(cross_plan_, layer, part, parts, index);
}

void StepProgram::finish(const Pass& pass, int part, int parts) {
  const int64_t width = shape_.hidden_size, vocab_size = shape_.vocab_size;
  for (int64_t i = part; i < pass.num_outputs; i += parts) {
    kernels().rms_norm(&stream_[pass.output_rows[i] * width], vectors_[final_norm_].data(),
                       shape_.eps, width, pass.hidden + i * width);
  }
  if (pass.sampling == nullptr) return;
  const float* x = normed(stream_.data(), final_norm_, row_sets_.all.front(), part, parts);
  // A tied head is the embedding's first vocab_size rows; rows after them are not sampled.
  const PackedMatrix& head = matrices_[head_];
  const int64_t stride = head.out_features(), num_chunks = num_logit_chunks(vocab_size);
  linear_part(head, {x, width}, pass.num_rows, {logits_.data(), stride}, part, parts);
  auto sum_up = [&](int64_t row, int64_t chunk, const float* ahead) {
    const int64_t begin = chunk * kLogitChunk, count = std::min(kLogitChunk, vocab_size - begin);
    summaries_[row * num_chunks + chunk] = summarize(&logits_[row * stride + begin], count, ahead);
  };
  // Whose share of the head holds a whole chunk of logits; -1 where it crosses a border.
  auto owner = [&](int64_t chunk) {
    const int64_t begin = chunk * kLogitChunk, end = std::min(begin + kLogitChunk, vocab_size);
    for (int share = 0; share < parts; ++share) {
      if (begin >= head.first_panel(share, parts) * kPanelRows &&
          end <= head.first_panel(share + 1, parts) * kPanelRows) {
        return share;
      }
    }
    return -1;
  };
  for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
    if (owner(chunk) != part) continue;
    for (int64_t r = 0; r < pass.num_rows; ++r) {
      const bool is_last = r + 1 == pass.num_rows;
      const int64_t row = is_last ? 0 : r + 1, next = std::min(chunk + is_last, num_chunks - 1);
      sum_up(r, chunk, &logits_[row * stride + next * kLogitChunk]);
    }
  }
  pool_->barrier();
  for (int64_t r = part; r < pass.num_rows; r += parts) {
    const bool is_last = r + parts >= pass.num_rows;
    for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
      if (owner(chunk) >= 0) continue;
      sum_up(r, chunk, is_last ? nullptr : &logits_[(r + parts) * stride + chunk * kLogitChunk]);
    }
    sample_row(&logits_[r * stride], &summaries_[r * num_chunks], *pass.tables, *pass.sampling, r,
               pass.sampled, workers_[part].sampling);
    matrices_[embedding_].ask_for_row(pass.sampled.token_ids[r]);
  }
}

void StepProgram::logits(const float* hidden, int64_t num_rows, float* out) {
  pool_->run([&](int part, int parts) {
    linear_part(matrices_[head_], {hidden, shape_.hidden_size}, num_rows, {out, num_head_rows()},
                part, parts);
  });
}

void StepProgram::copy_last_logits(int64_t num_rows, float* out) const {
  const int64_t stride = num_head_rows();
  if (num_rows * stride > static_cast<int64_t>(logits_.size())) {
    throw std::invalid_argument("the last pass had fewer than " + std::to_string(num_rows) +
                                " rows of logits");
  }
  for (int64_t r = 0; r < num_rows; ++r) {
    std::copy_n(&logits_[r * stride], shape_.vocab_size, out + r * shape_.vocab_size);
  }
}

void StepProgram::logits_of(const float* hidden, int64_t num_rows, const int64_t* ids,
                            int64_t per_row, float* out) const {
  std::vector<float> column(shape_.hidden_size);
  for (int64_t i = 0; i < num_rows * per_row; ++i) {
    matrices_[head_].unpack_rows(ids[i], 1, column.data(), shape_.hidden_size);
    out[i] =
        kernels().dot(hidden + i / per_row * shape_.hidden_size, column.data(), shape_.hidden_size);
  }
}

}  // namespace stagebeam::cpu
