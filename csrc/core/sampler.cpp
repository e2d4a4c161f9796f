#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>

#include "philox.h"

namespace stagebeam {
namespace {

void require(bool ok, const char* name, const char* expected, double got) {
  if (ok) return;
  throw std::invalid_argument(std::string("sample_row: ") + name + " must be " + expected +
                              ", got " + std::to_string(got));
}

// The first of the largest logits; also refuses rows that have no answer.
int64_t argmax(const float* logits, int64_t vocab_size) {
  require(vocab_size >= 1 && vocab_size <= std::numeric_limits<int32_t>::max(), "the row",
          "1 to 2**31 - 1 logits long", static_cast<double>(vocab_size));
  const int64_t best = std::max_element(logits, logits + vocab_size) - logits;
  require(std::isfinite(logits[best]), "the largest logit", "finite", logits[best]);
  return best;
}

void validate(const SamplingOptions& options) {
  require(std::isfinite(options.temperature) && options.temperature >= 0, "temperature",
          "a finite number >= 0", options.temperature);
  require(options.top_k >= -1, "top_k", "at least -1", static_cast<double>(options.top_k));
  require(options.top_p > 0 && options.top_p <= 1, "top_p", "in (0, 1]", options.top_p);
  require(options.min_p >= 0 && options.min_p <= 1, "min_p", "in [0, 1]", options.min_p);
}

}  // namespace

std::vector<int32_t> kept_ids(const float* logits, int64_t vocab_size,
                              const SamplingOptions& options) {
  validate(options);
  const auto best = static_cast<int32_t>(argmax(logits, vocab_size));
  if (options.temperature == 0) return {best};
  auto scaled = [&](int32_t id) { return logits[id] / options.temperature; };

  double least = -std::numeric_limits<double>::infinity();
  if (options.top_k > 0 && options.top_k < vocab_size) {
    std::vector<float> ranked(logits, logits + vocab_size);
    std::nth_element(ranked.begin(), ranked.begin() + options.top_k - 1, ranked.end(),
                     std::greater<>());
    least = ranked[options.top_k - 1];
  }
  std::vector<int32_t> kept;
  for (int32_t id = 0; id < vocab_size; ++id) {
    if (logits[id] >= least && std::isfinite(logits[id])) kept.push_back(id);
  }

  if (options.top_p < 1) {
    std::stable_sort(kept.begin(), kept.end(),
                     [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
    double total = 0;
    for (int32_t id : kept) total += std::exp(scaled(id) - scaled(best));
    // From the least likely up, as HF: a token goes while the mass up to and with it is small.
    double mass = 0;
    while (kept.size() > 1) {
      mass += std::exp(scaled(kept.back()) - scaled(best)) / total;
      if (mass > 1 - options.top_p) break;
      kept.pop_back();
    }
    std::sort(kept.begin(), kept.end());
  }

  if (options.min_p > 0) {
    std::erase_if(kept,
                  [&](int32_t id) { return std::exp(scaled(id) - scaled(best)) < options.min_p; });
  }
  return kept;
}

SampledToken sample_row(const float* logits, int64_t vocab_size, const SamplingOptions& options,
                        uint64_t seed, uint64_t uid, uint32_t step) {
  const std::vector<int32_t> kept = kept_ids(logits, vocab_size, options);
  int32_t token = kept[0];
  if (options.temperature > 0) {
    double best_score = -std::numeric_limits<double>::infinity();
    for (int32_t id : kept) {
      const double u = token_uniform(seed, step, uid, static_cast<uint32_t>(id));
      const double score = logits[id] / options.temperature - std::log(-std::log(u));
      if (score > best_score) {
        best_score = score;
        token = id;
      }
    }
  }
  const double largest = logits[argmax(logits, vocab_size)];
  double total = 0;
  for (int64_t id = 0; id < vocab_size; ++id) total += std::exp(logits[id] - largest);
  return {token, static_cast<float>(logits[token] - largest - std::log(total))};
}

}  // namespace stagebeam
