#include "../../cpu/decode_steps.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <deque>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

#include "../../cpu/isa.h"
#include "../check.h"

namespace stagebeam::cpu {
namespace {

// Odd sizes everywhere: no width fills a vector, a panel or a group of scales.
constexpr int64_t kHidden = 42, kInner = 50, kVocab = 77, kHeads = 4, kKvHeads = 2, kHeadDim = 12;
constexpr int64_t kLayers = 2, kBlockSize = 4, kNumBlocks = 160, kMaxPositions = 300;
// The trunk ends within a split of attention; steps go past its end.
constexpr int64_t kTrunk = 188, kSteps = 70;

// A random Llama of two layers with its caches.
class Model {
 public:
  Model(WeightFormat weights, CacheFormat cache, int threads)
      : cos_sin_(random(kMaxPositions * kHeadDim)),
        program_({kHidden, kVocab, kHeads, kKvHeads, kHeadDim, 1e-5f, cos_sin_.data()},
                 std::make_shared<ThreadPool>(threads)) {
    const int64_t embedding = matrix(kVocab, kHidden, weights);
    std::vector<KvCache> caches;
    for (int64_t i = 0; i < kLayers; ++i) {
      program_.add_norm_linear(norm(), matrix((kHeads + 2 * kKvHeads) * kHeadDim, kHidden, weights),
                               RowSet::kAll);
      program_.add_self_attention();
      program_.add_residual_linear(matrix(kHidden, kHeads * kHeadDim, weights), true, 1,
                                   RowSet::kAll);
      program_.add_norm_linear(norm(), matrix(2 * kInner, kHidden, weights, RowOrder::kGateUp),
                               RowSet::kAll);
      program_.add_residual_linear(matrix(kHidden, kInner, weights), false, 1, RowSet::kAll);
      caches.push_back(make_cache(cache));
    }
    program_.set_ends(embedding, norm(), embedding);
    program_.bind_caches(caches, {});
  }

  StepProgram& program() { return program_; }

  // Caches kTrunk tokens in the first blocks.
  void prefill_trunk() {
    std::vector<int64_t> ids(kTrunk), positions(kTrunk);
    std::vector<int32_t> slots(kTrunk), table(kTrunk / kBlockSize);
    for (int64_t i = 0; i < kTrunk; ++i) {
      ids[i] = (i * 31) % kVocab;
      positions[i] = i;
      slots[i] = static_cast<int32_t>(i);
    }
    for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<int32_t>(i);
    const int32_t offsets[] = {0, kTrunk}, lengths[] = {kTrunk};
    const PrefillRows rows{1, offsets, lengths, table.data(), static_cast<int64_t>(table.size())};
    Pass pass;
    pass.num_rows = kTrunk;
    pass.token_ids = ids.data();
    pass.positions = positions.data();
    pass.slots = slots.data();
    pass.prefill = &rows;
    program_.run(pass);
  }

 private:
  std::vector<float> random(int64_t count) {
    std::normal_distribution<float> normal;
    std::vector<float> values(count);
    for (float& value : values) value = normal(engine_) * 0.5f;
    return values;
  }
  int64_t norm() { return program_.add_vector(random(kHidden).data(), kHidden); }
  int64_t matrix(int64_t out, int64_t in, WeightFormat format, RowOrder order = RowOrder::kPlain) {
    const int64_t index = program_.add_matrix(out, in, format, order);
    const auto values = random(out * in);
    program_.matrix(index).pack_rows(0, out, values.data(), SourceType::kFloat32, in);
    return index;
  }
  KvCache make_cache(CacheFormat format) {
    const int64_t heads = kNumBlocks * kBlockSize * kKvHeads;
    // int8's heads lie apart, the others' side by side.
    const bool is_apart = format == CacheFormat::kInt8;
    KvCache cache{format,
                  kBlockSize,
                  is_apart ? kHeadDim : kKvHeads * kHeadDim,
                  is_apart ? kNumBlocks * kBlockSize * kHeadDim : kHeadDim,
                  nullptr,
                  nullptr,
                  nullptr,
                  nullptr};
    auto bytes = [&] {
      memory_.emplace_back(heads * kHeadDim * element_bytes(format));
      return memory_.back().data();
    };
    cache.keys = bytes();
    cache.values = bytes();
    if (format == CacheFormat::kInt8) {
      scales_.emplace_back(heads);
      cache.key_scales = scales_.back().data();
      scales_.emplace_back(heads);
      cache.value_scales = scales_.back().data();
    }
    return cache;
  }

  std::mt19937 engine_{5};
  std::vector<float> cos_sin_;
  StepProgram program_;
  std::deque<std::vector<std::byte>> memory_;
  std::deque<std::vector<float>> scales_;
};

struct Sampled {
  std::vector<int64_t> ids;
  std::vector<float> logprobs;
};

// Decodes rows `rows` (of five), the first three behind the shared trunk, `max_steps` a call.
std::vector<Sampled> decode(Model& model, const std::vector<int64_t>& rows, int64_t max_steps,
                            int32_t max_tokens = 1 << 20) {
  const auto n = static_cast<int64_t>(rows.size());
  constexpr int64_t kTail = kSteps / kBlockSize + 1, kTrunkWidth = kTrunk / kBlockSize;
  std::vector<int64_t> ids(n), positions(n), seeds(n, 3), uids(n), goals(n, 0);
  std::vector<int32_t> steps(n), states(n), top_k(n), limits(n, max_tokens), lens, offsets{0};
  std::vector<int32_t> tails(n * kTail), trunks;
  std::vector<float> temperature(n, 0.8f), top_p(n, 1), min_p(n);
  std::vector<uint8_t> ignore(n, 1);
  for (int64_t i = 0; i < n; ++i) {
    const bool has_trunk = rows[i] < 3;
    ids[i] = rows[i] * 7 + 1;
    uids[i] = rows[i];
    positions[i] = has_trunk ? kTrunk : 0;
    for (int64_t j = 0; j < kTail; ++j) {
      tails[i * kTail + j] = static_cast<int32_t>(kTrunkWidth + rows[i] * kTail + j);
    }
    if (i == 0 || (rows[i - 1] < 3) != has_trunk) {
      if (i > 0) offsets.push_back(static_cast<int32_t>(i));
      lens.push_back(has_trunk ? kTrunk : 0);
      for (int32_t j = 0; j < kTrunkWidth; ++j) trunks.push_back(has_trunk ? j : -1);
    }
  }
  offsets.push_back(static_cast<int32_t>(n));
  const std::vector<int16_t> next_state(kVocab, 0);
  const int32_t accept[] = {-1};
  std::vector<int64_t> out_ids(max_steps * n);
  std::vector<float> out_logprobs(max_steps * n);
  std::vector<int32_t> out_states(max_steps * n);
  std::vector<int8_t> out_finish(max_steps * n);
  const DecodeBatch batch{
      kBlockSize,
      {n, static_cast<int64_t>(lens.size()), offsets.data(), trunks.data(), kTrunkWidth,
       lens.data(), tails.data(), kTail, nullptr},
      nullptr,
      ids.data(),
      positions.data(),
      steps.data(),
      states.data(),
      {seeds.data(), uids.data(), nullptr, temperature.data(), top_k.data(), top_p.data(),
       min_p.data(), nullptr, goals.data(), reinterpret_cast<const bool*>(ignore.data()),
       limits.data()},
      {next_state.data(), accept, kVocab, nullptr, 0},
      {out_ids.data(), out_logprobs.data(), out_states.data(), out_finish.data()}};
  DecodeLoop loop;
  std::vector<Sampled> result(n);
  for (int64_t done = 0; done < std::min<int64_t>(kSteps, max_tokens);) {
    const int64_t left = kSteps - done;
    const int64_t count = loop.run(model.program(), batch, std::min(max_steps, left));
    for (int64_t step = 0; step < count; ++step) {
      for (int64_t i = 0; i < n; ++i) {
        result[i].ids.push_back(out_ids[step * n + i]);
        result[i].logprobs.push_back(out_logprobs[step * n + i]);
      }
    }
    done += count;
  }
  return result;
}

bool is_same(const Sampled& a, const Sampled& b) {
  return a.ids == b.ids && a.logprobs == b.logprobs;
}

TEST(decode_steps_do_not_depend_on_other_rows_threads_or_steps_a_call) {
  for (const Isa isa : available_isas()) {
    set_active_isa(isa);
    for (const auto& [weights, cache] : {std::pair{WeightFormat::kFloat32, CacheFormat::kFloat32},
                                         std::pair{WeightFormat::kBf16, CacheFormat::kBfloat16},
                                         std::pair{WeightFormat::kInt8, CacheFormat::kInt8},
                                         std::pair{WeightFormat::kInt4, CacheFormat::kBfloat16}}) {
      Model model(weights, cache, 3);
      model.prefill_trunk();
      const auto together = decode(model, {0, 1, 2, 3, 4}, 16);
      CHECK(std::isfinite(together[4].logprobs.back()));
      CHECK(!is_same(together[0], together[1]));
      Model lone(weights, cache, 1);
      lone.prefill_trunk();
      for (const int64_t row : {0, 2, 4}) {
        CHECK(is_same(decode(lone, {row}, row + 1).front(), together[row]));
      }
    }
  }
}

TEST(a_call_of_decode_steps_ends_with_the_first_finished_row) {
  Model model(WeightFormat::kBf16, CacheFormat::kBfloat16, 2);
  model.prefill_trunk();
  CHECK(decode(model, {0, 3}, 16, 5).front().ids.size() == 5);
}

TEST(decode_steps_refuse_a_row_without_a_block) {
  Model model(WeightFormat::kInt8, CacheFormat::kFloat32, 2);
  const int32_t offsets[] = {0, 1}, lens[] = {0}, tails[] = {-1};
  int64_t id = 1, position = 0;
  int32_t step = 0, state = 0;
  DecodeBatch batch{};
  batch.block_size = kBlockSize;
  batch.branches = {1, 1, offsets, nullptr, 0, lens, tails, 1, nullptr};
  batch.token_ids = &id;
  batch.positions = &position;
  batch.steps = &step;
  batch.states = &state;
  DecodeLoop loop;
  CHECK_THROWS(loop.run(model.program(), batch, 1));
}

}  // namespace
}  // namespace stagebeam::cpu
