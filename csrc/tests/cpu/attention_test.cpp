#include "../../cpu/attention.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "../../cpu/isa.h"
#include "../check.h"

namespace stagebeam::cpu {
namespace {

constexpr int64_t kKvHeads = 2, kHeads = 6;

// Each thread's share of a plan in turn.
void run_shares(AttentionPlan& plan, const AttentionLayer& layer, int threads) {
  AttentionScratch scratch;
  for (int share = 0; share < threads; ++share) {
    plan.prepare_share(layer, share, scratch);
    plan.run_items(layer, plan.first_item(share), plan.first_item(share + 1), share, nullptr,
                   scratch);
  }
  for (int64_t unit = 0; unit < plan.num_units(); ++unit) plan.fold_unit(layer, unit, scratch);
}

// A trunk that all rows share and a tail a row, in blocks of bfloat16 that nothing lies behind.
class Branches {
 public:
  Branches(int64_t head_dim, int64_t block_size, int64_t trunk, int64_t num_rows)
      : shape_{kHeads, kKvHeads, head_dim, 1 / std::sqrt(static_cast<float>(head_dim))},
        block_size_(block_size),
        trunk_(static_cast<int32_t>(trunk)),
        width_((num_rows + 40 + block_size - 1) / block_size) {
    const int64_t trunk_blocks = (trunk + block_size - 1) / block_size;
    for (int64_t b = 0; b < trunk_blocks; ++b) trunk_table_.push_back(static_cast<int32_t>(b));
    for (int64_t r = 0; r < num_rows; ++r) {
      tail_lens_.push_back(static_cast<int32_t>(1 + r * 3 % 40));
      for (int64_t b = 0; b < width_; ++b) {
        tail_tables_.push_back(static_cast<int32_t>(trunk_blocks + r + b * num_rows));
      }
    }
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    auto fill = [&](std::vector<Bfloat16>& cache) {
      cache.resize((trunk_blocks + num_rows * width_) * block_size * kKvHeads * head_dim);
      for (Bfloat16& x : cache) x = to_bfloat16(normal(random));
    };
    fill(keys_);
    fill(values_);
    queries_.resize(num_rows * kHeads * head_dim);
    for (float& x : queries_) x = normal(random);
  }

  // The same numbers with each head's tokens side by side.
  void move_heads_apart() {
    const int64_t dim = shape_.head_dim;
    for (std::vector<Bfloat16>* cache : {&keys_, &values_}) {
      const std::vector<Bfloat16> from = *cache;
      const int64_t num_tokens = static_cast<int64_t>(from.size()) / (kKvHeads * dim);
      for (int64_t t = 0; t < num_tokens; ++t) {
        for (int64_t h = 0; h < kKvHeads; ++h) {
          std::copy_n(from.data() + (t * kKvHeads + h) * dim, dim,
                      cache->data() + (h * num_tokens + t) * dim);
        }
      }
    }
    has_heads_apart_ = true;
  }

  void grow() {
    for (int32_t& length : tail_lens_) ++length;
  }

  // Rows first .. first + count - 1 with each thread's share.
  std::vector<float> attend(int64_t first, int64_t count, int threads) {
    AttentionPlan plan;
    return attend(plan, first, count, threads);
  }
  // With a plan that may have been made for other lengths.
  std::vector<float> attend(AttentionPlan& plan, int64_t first, int64_t count, int threads) {
    const int32_t offsets[] = {0, static_cast<int32_t>(count)};
    plan.plan_branches(
        {count, 1, offsets, trunk_table_.data(), static_cast<int64_t>(trunk_table_.size()), &trunk_,
         tail_tables_.data() + first * width_, width_, tail_lens_.data() + first},
        shape_, threads);
    const int64_t width = kHeads * shape_.head_dim;
    std::vector<float> out(count * width);
    AttentionLayer layer{};
    layer.shape = shape_;
    const int64_t num_tokens = static_cast<int64_t>(keys_.size()) / (kKvHeads * shape_.head_dim);
    layer.cache = {CacheFormat::kBfloat16,
                   block_size_,
                   has_heads_apart_ ? shape_.head_dim : kKvHeads * shape_.head_dim,
                   has_heads_apart_ ? num_tokens * shape_.head_dim : shape_.head_dim,
                   keys_.data(),
                   values_.data(),
                   nullptr,
                   nullptr};
    layer.q = queries_.data() + first * width;
    layer.q_stride = layer.out_stride = width;
    layer.out = out.data();
    run_shares(plan, layer, threads);
    return out;
  }

 private:
  AttentionShape shape_;
  int64_t block_size_;
  bool has_heads_apart_ = false;
  int32_t trunk_;
  int64_t width_;
  std::vector<int32_t> trunk_table_, tail_tables_, tail_lens_;
  std::vector<Bfloat16> keys_, values_;
  std::vector<float> queries_;
};

double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    sum += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return std::sqrt(sum / norm);
}

TEST(attention_is_near_plain_cplusplus_and_the_same_bits_alone) {
  const Isa before = active_isa();
  constexpr int64_t kRows = 13;
  for (const int64_t head_dim : {64, 33, 80}) {
    for (const int64_t block_size : {16, 5}) {
      for (const int64_t trunk : {0, 63, 290}) {
        Branches branches(head_dim, block_size, trunk, kRows);
        Branches apart = branches;
        apart.move_heads_apart();
        set_active_isa(Isa::kScalar);
        const std::vector<float> plain = branches.attend(0, kRows, 1);
        for (const Isa isa : available_isas()) {
          set_active_isa(isa);
          const std::vector<float> all = branches.attend(0, kRows, 2);
          // Rounded queries and weights are within 2^-9 of theirs.
          CHECK(distance(all, plain) < 4e-3);
          CHECK(branches.attend(0, kRows, 3) == all);
          CHECK(apart.attend(0, kRows, 2) == all);
          const int64_t width = kHeads * head_dim;
          for (int64_t r = 0; r < kRows; r += 4) {
            const std::vector<float> alone = branches.attend(r, 1, 1);
            CHECK(std::equal(alone.begin(), alone.end(), all.begin() + r * width));
          }
        }
      }
    }
  }
  set_active_isa(before);
}

TEST(attention_plans_that_are_kept_give_the_bits_of_new_ones) {
  constexpr int64_t kRows = 5, kRowsLater = 4;
  for (const int64_t trunk : {0, 120, 250}) {
    Branches branches(32, 16, trunk, kRows);
    AttentionPlan plan;
    for (int step = 0; step < 35; ++step) {  // tails of 1 to 13 tokens and more: over splits' ends
      const int64_t rows = step < 30 ? kRows : kRowsLater;
      CHECK(branches.attend(plan, 0, rows, 2) == branches.attend(0, rows, 2));
      CHECK(branches.attend(plan, 0, rows, 2) == branches.attend(0, rows, 1));
      branches.grow();
    }
  }
}

// A thread a half of the rows where three heads' items would not go round.
TEST(attention_to_one_image_has_the_same_bits_in_groups_and_alone) {
  constexpr int64_t kTokens = 36, kImages = 2, kDim = 32, kWidth = 6 * kDim;
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::vector<Bfloat16> keys(kImages * kTokens * 3 * kDim), values(keys.size());
  for (Bfloat16& x : keys) x = to_bfloat16(normal(random));
  for (Bfloat16& x : values) x = to_bfloat16(normal(random));
  const std::vector<int32_t> slots = {1, 1, 0, 0, 0, -1, 0}, lens = {36, 20, 36, 7, 36, 36, 36};
  const auto num_rows = static_cast<int64_t>(slots.size());
  std::vector<float> queries(num_rows * kWidth);
  for (float& x : queries) x = normal(random);
  // [image, token, head] or [head, image, token].
  std::vector<Bfloat16> far_keys(keys.size()), far_values(keys.size());
  for (int64_t i = 0; i < kImages * kTokens * 3; ++i) {
    const int64_t place = (i % 3 * kImages * kTokens + i / 3) * kDim;
    std::copy_n(keys.data() + i * kDim, kDim, far_keys.data() + place);
    std::copy_n(values.data() + i * kDim, kDim, far_values.data() + place);
  }
  bool has_heads_apart = false;
  auto attend = [&](AttentionPlan& plan, int64_t first, int64_t count, int threads) {
    std::vector<int32_t> offsets(count + 1);
    for (int64_t i = 0; i <= count; ++i) offsets[i] = static_cast<int32_t>(i);
    AttentionLayer layer{};
    layer.shape = {6, 3, kDim, 0.2f};
    layer.cache = {CacheFormat::kBfloat16,
                   kTokens,
                   has_heads_apart ? kDim : 3 * kDim,
                   has_heads_apart ? kImages * kTokens * kDim : kDim,
                   has_heads_apart ? far_keys.data() : keys.data(),
                   has_heads_apart ? far_values.data() : values.data(),
                   nullptr,
                   nullptr};
    layer.q = queries.data() + first * kWidth;
    layer.q_stride = layer.out_stride = kWidth;
    std::vector<float> out(count * kWidth);
    layer.out = out.data();
    plan.plan_cross({count, offsets.data(), slots.data() + first, lens.data() + first}, layer.shape,
                    threads);
    run_shares(plan, layer, threads);
    return out;
  };
  AttentionPlan kept;
  for (int64_t first = 0; first < num_rows; ++first) {
    for (int64_t count = 1; first + count <= num_rows; ++count) {
      for (int threads = 1; threads <= 3; ++threads) {
        const std::vector<float> all = attend(kept, first, count, threads);
        CHECK(attend(kept, first, count, threads) == all);
        has_heads_apart = true;
        CHECK(attend(kept, first, count, threads) == all);
        has_heads_apart = false;
        for (int64_t r = 0; r < count; ++r) {
          AttentionPlan alone;
          const std::vector<float> row = attend(alone, first + r, 1, 1);
          CHECK(std::equal(row.begin(), row.end(), all.begin() + r * kWidth));
        }
      }
    }
  }
}

// Three queries a row: runs of 3 to 30 meet in tiles of 4, 8 and 16 columns, full and not.
TEST(attention_gives_the_same_bits_beside_any_number_of_queries) {
  const Isa before = active_isa();
  constexpr int64_t kRows = 10;
  for (const int64_t head_dim : {32, 64, 264}) {
    for (const int64_t trunk : {48, 128, 150, 300}) {
      Branches branches(head_dim, 16, trunk, kRows);
      set_active_isa(Isa::kScalar);
      const std::vector<float> plain = branches.attend(0, kRows, 1);
      for (const Isa isa : available_isas()) {
        set_active_isa(isa);
        const std::vector<float> all = branches.attend(0, kRows, 1);
        CHECK(distance(all, plain) < 4e-3);
        for (int64_t rows = 1; rows < kRows; ++rows) {
          const std::vector<float> few = branches.attend(0, rows, 1);
          CHECK(std::equal(few.begin(), few.end(), all.begin()));
        }
      }
    }
  }
  set_active_isa(before);
}

}  // namespace
}  // namespace stagebeam::cpu
