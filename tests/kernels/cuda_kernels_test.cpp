// The CUDA kernels on the host's grid of fibers, on memory that ends where the arrays end.
#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "core/sampler.h"
#include "cuda/copy_blocks.h"
#include "cuda/int8_linear.h"
#include "cuda/sample_step.h"
#include "tests/check.h"

using namespace stagebeam::cuda;

namespace {

constexpr host::Order kOrders[] = {host::Order::kForward, host::Order::kBackward,
                                   host::Order::kShuffled};

// Tokens of rows with every filter, by the kernel with `kThreads` threads and by the C++ sampler.
template <int kThreads>
void compare_samplers(int vocab_size, host::Order order) {
  constexpr int kRows = 8;
  std::mt19937 random(vocab_size);
  std::normal_distribution<float> normal(0, 2);
  std::vector<float> logits(kRows * vocab_size);
  for (float& x : logits) x = normal(random);
  const std::vector<float> temperature = {0, 1, .6f, 1, 2, .6f, 1, 1},
                           min_p = {0, 0, 0, .1f, 0, 0, 0, 0},
                           top_p = {1, 1, .9f, 1, .5f, 1, .9f, 1e-6f};
  const std::vector<int32_t> top_k = {0, 0, 50, -1, 3, 1, 0, 0}, steps(kRows, 5), states(kRows, 1),
                             accept = {-1, 0}, max_tokens(kRows, 6);
  const std::vector<int64_t> seeds(kRows, 11), uids = {0, 1, 2, 3, 4, 5, 6, 7}, goals(kRows, 1),
                                               eos;
  const std::vector<int16_t> next_state(2 * vocab_size, 1);
  const std::unique_ptr<bool[]> ignore(new bool[kRows]());
  std::vector<int64_t> tokens(kRows);
  std::vector<float> logprobs(kRows);
  std::vector<int32_t> new_states(kRows);
  std::vector<int8_t> finish(kRows);
  const SampleStep<float> arguments = {logits.data(),      seeds.data(),
                                       uids.data(),        steps.data(),
                                       temperature.data(), top_k.data(),
                                       top_p.data(),       min_p.data(),
                                       next_state.data(),  accept.data(),
                                       states.data(),      goals.data(),
                                       eos.data(),         ignore.get(),
                                       max_tokens.data(),  tokens.data(),
                                       logprobs.data(),    new_states.data(),
                                       finish.data(),      kRows,
                                       vocab_size,         0};
  host::set_order(order);
  CHECK(launch_sample_step<kThreads>(arguments, nullptr) == cudaSuccess);
  int same = 0;
  for (int r = 0; r < kRows; ++r) {
    stagebeam::SamplingOptions options;
    options.temperature = temperature[r], options.top_k = top_k[r], options.top_p = top_p[r],
    options.min_p = min_p[r];
    const auto expected =
        stagebeam::sample_row(&logits[r * vocab_size], vocab_size, options, 11, r, 5);
    same += expected.token == tokens[r];
    CHECK(expected.token != tokens[r] || std::abs(expected.logprob - logprobs[r]) < 2e-5f);
    CHECK(new_states[r] == 1 && finish[r] == kTag);
  }
  CHECK(same >= kRows - 1);  // a tie within a rounding may fall the other way
}

}  // namespace

TEST(cuda_sample_step) {
  for (host::Order order : kOrders) {
    for (int vocab_size : {1, 3, 4, 33, 257, 1000}) compare_samplers<64>(vocab_size, order);
  }
  compare_samplers<256>(1003, host::Order::kShuffled);
  compare_samplers<1024>(5000, host::Order::kForward);
}

TEST(cuda_copy_blocks) {
  for (int block_bytes : {16, 24, 12, 6, 7, 5000 * 16}) {
    std::vector<unsigned char> first(3 * block_bytes), second(3 * block_bytes);
    for (size_t i = 0; i < first.size(); ++i) first[i] = i * 7, second[i] = i * 11;
    const std::vector<int32_t> pairs = {2, 0, -1, 1, 1, -1};
    void* caches[] = {first.data(), second.data()};
    auto expected = second;
    std::copy_n(expected.begin() + 2 * block_bytes, block_bytes, expected.begin());
    CHECK(launch_copy_blocks(caches, 2, pairs.data(), 3, block_bytes, nullptr) == cudaSuccess);
    CHECK(second == expected);
  }
  CHECK(launch_copy_blocks(nullptr, kMaxCaches + 1, nullptr, 1, 16, nullptr) ==
        cudaErrorInvalidValue);
}

TEST(cuda_int8_linear) {
  for (host::Order order : kOrders) {
    host::set_order(order);
    for (int rows : {1, 5, 16}) {
      constexpr int kColumns = 9, kDepth = 80;
      std::mt19937 random(rows);
      std::vector<bfloat16> x(rows * kDepth), y(rows * kColumns);
      std::vector<int8_t> weight(kColumns * kDepth);
      std::vector<float> scale(kColumns, 0.25f);
      for (bfloat16& value : x) value = from_float<bfloat16>(static_cast<int>(random() % 9) - 4.0f);
      for (int8_t& value : weight) value = static_cast<int8_t>(random());
      CHECK(launch_int8_linear(x.data(), weight.data(), scale.data(), y.data(), rows, kColumns,
                               kDepth, nullptr) == cudaSuccess);
      for (int r = 0; r < rows; ++r) {
        for (int c = 0; c < kColumns; ++c) {
          float sum = 0;  // of small integers: exact
          for (int k = 0; k < kDepth; ++k) {
            sum += to_float(x[r * kDepth + k]) * weight[c * kDepth + k];
          }
          CHECK(y[r * kColumns + c].bits == from_float<bfloat16>(sum * 0.25f).bits);
        }
      }
    }
  }
}
