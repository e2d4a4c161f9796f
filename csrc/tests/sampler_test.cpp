#include "../core/sampler.h"

#include <cmath>
#include <limits>

#include "check.h"

using namespace stagebeam;

namespace {

using Row = std::vector<float>;
using Kept = std::vector<int32_t>;

constexpr float kInf = std::numeric_limits<float>::infinity();

Kept kept(const Row& row, SamplingOptions options) {
  return kept_ids(row.data(), static_cast<int64_t>(row.size()), options);
}

}  // namespace

TEST(filters_keep_what_they_say) {
  const Row row{0, 2, 1, 2, 1};
  CHECK((kept(row, {}) == Kept{0, 1, 2, 3, 4}));
  CHECK((kept(row, {.top_k = 3}) == Kept{1, 2, 3, 4}));  // ties at the boundary
  CHECK((kept(row, {.top_k = -1}) == Kept{0, 1, 2, 3, 4}));
  CHECK((kept(row, {.top_k = 99}) == Kept{0, 1, 2, 3, 4}));
  CHECK((kept(row, {.top_p = 0.1}) == Kept{1}));  // the lowest id of the tie
  CHECK((kept(row, {.min_p = 0.3}) == Kept{1, 2, 3, 4}));
  CHECK((kept(row, {.min_p = 1}) == Kept{1, 3}));
  CHECK((kept(row, {.temperature = 0}) == Kept{1}));
  CHECK((kept({-kInf, 1, -kInf}, {}) == Kept{1}));
}

TEST(a_token_and_its_logprob) {
  const Row row{0, 3, -kInf};
  const SampledToken greedy = sample_row(row.data(), 3, {.temperature = 0}, 1, 2, 3);
  CHECK(greedy.token == 1);
  CHECK(std::abs(greedy.logprob + std::log1p(std::exp(-3.0f))) < 1e-6f);
  int count = 0;
  for (uint32_t step = 0; step < 4000; ++step) {
    const SampledToken sampled = sample_row(row.data(), 3, {.temperature = 3}, 9, 8, step);
    CHECK(sampled.token == 0 || sampled.token == 1);
    count += sampled.token == 1;
  }
  CHECK(std::abs(count - 4000 / (1 + std::exp(-1.0))) < 120);  // over 4 standard deviations
}

TEST(bad_rows_and_options_are_refused) {
  const Row row{0, 1};
  CHECK_THROWS(kept(row, {.temperature = -1}));
  CHECK_THROWS(kept(row, {.top_k = -2}));
  CHECK_THROWS(kept(row, {.top_p = 0}));
  CHECK_THROWS(kept(row, {.top_p = 1.5}));
  CHECK_THROWS(kept(row, {.min_p = -0.5}));
  CHECK_THROWS(kept({}, {}));
  CHECK_THROWS(kept({-kInf}, {}));
  CHECK_THROWS(kept({1, kInf}, {}));
  CHECK_THROWS(kept({std::nanf(""), 1}, {}));
}
