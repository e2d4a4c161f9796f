#include "sample.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "../core/philox.h"
#include "kernels.h"

namespace stagebeam::cpu {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kLargestGumbel = 16.64;                // of u = 1 - 2^-24, rounded up
constexpr int64_t kLargestBlock = 64, kLeastBlock = 8;  // logits of a block that has a maximum
constexpr int64_t kFirstCandidates = 128;  // tried first for rows that only top_p filters

enum Finish : int8_t { kRunning = 0, kTag = 1, kEos = 2, kLength = 3, kWrongTag = 4 };

// The best score so far; ties go to the id that came first.
struct Best {
  uint64_t seed, uid;
  uint32_t step;
  double temperature;
  double score = -kInfinity;
  int32_t id = -1;

  double scaled(float logit) const { return logit / temperature; }
  void offer(float logit, int32_t candidate) {
    const double u = token_uniform(seed, step, uid, static_cast<uint32_t>(candidate));
    const double score_of = scaled(logit) - std::log(-std::log(u));
    if (score_of > score || (score_of == score && candidate < id)) {
      score = score_of;
      id = candidate;
    }
  }
};

// Ids whose logits are at least the `count`-th largest block maximum: they hold the `count` largest
// logits and all their ties.
void gather_candidates(const float* logits, int64_t vocab_size, int64_t count,
                       SampleScratch& scratch) {
  int64_t size = kLargestBlock;
  while (size > kLeastBlock && vocab_size < 2 * count * size) size /= 2;
  const int64_t num_blocks = (vocab_size + size - 1) / size;
  scratch.ids.clear();
  if (count >= num_blocks) {
    for (int64_t id = 0; id < vocab_size; ++id) scratch.ids.push_back(static_cast<int32_t>(id));
    return;
  }
  std::vector<float>&maxima = scratch.maxima, &ranked = scratch.ranked;
  maxima.resize(num_blocks);
  for (int64_t b = 0; b < num_blocks; ++b) {
    maxima[b] = kernels().largest(logits + b * size, std::min(size, vocab_size - b * size));
  }
  ranked = maxima;
  std::nth_element(ranked.begin(), ranked.begin() + count - 1, ranked.end(), std::greater<>());
  const float least = ranked[count - 1];
  for (int64_t b = 0; b < num_blocks; ++b) {
    if (!(maxima[b] >= least)) continue;
    for (int64_t id = b * size; id < std::min((b + 1) * size, vocab_size); ++id) {
      if (logits[id] >= least) scratch.ids.push_back(static_cast<int32_t>(id));
    }
  }
}

void sort_candidates(const float* logits, std::vector<int32_t>& ids) {
  std::sort(ids.begin(), ids.end(), [logits](int32_t a, int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  });
}

// Leaves the kept ids in scratch.ids, the most likely first.
void filter(const float* logits, int64_t vocab_size, const LogitSummary& summary,
            const SamplingOptions& options, SampleScratch& scratch) {
  std::vector<int32_t>& ids = scratch.ids;
  auto weight = [&](int32_t id) {
    return std::exp((double{logits[id]} - summary.largest) / options.temperature);
  };
  std::vector<double>& weights = scratch.weights;
  auto find_weights = [&] {
    weights.clear();
    for (const int32_t id : ids) weights.push_back(weight(id));
  };
  double mass = 0;
  if (options.top_k > 0 && options.top_k < vocab_size) {
    gather_candidates(logits, vocab_size, options.top_k, scratch);
    auto kth = ids.begin() + options.top_k - 1;
    std::nth_element(ids.begin(), kth, ids.end(),
                     [logits](int32_t a, int32_t b) { return logits[a] > logits[b]; });
    const float least = logits[*kth];
    std::erase_if(ids, [&](int32_t id) { return logits[id] < least; });
    sort_candidates(logits, ids);
    find_weights();
    for (const double weight : weights) mass += weight;
  } else {
    mass = kernels().exp_sum(logits, vocab_size, summary.largest,
                             static_cast<float>(options.temperature));
    for (int64_t count = kFirstCandidates;; count *= 4) {
      gather_candidates(logits, vocab_size, count, scratch);
      double held = 0;
      for (const int32_t id : ids) held += weight(id);
      if (held > options.top_p * mass || static_cast<int64_t>(ids.size()) == vocab_size) break;
    }
    sort_candidates(logits, ids);
    find_weights();
  }
  size_t num_kept = 1;
  if (options.top_p < 1) {
    double before = weights[0];
    while (num_kept < ids.size() && before < options.top_p * mass) before += weights[num_kept++];
  } else {
    num_kept = ids.size();
  }
  while (num_kept > 1 && weights[num_kept - 1] < options.min_p) --num_kept;
  ids.resize(num_kept);
}

}  // namespace

LogitSummary summarize(const float* chunk, int64_t count, const float* ahead) {
  LogitSummary summary{};
  kernels().log_sum_exp(chunk, count, ahead != nullptr ? ahead : chunk, &summary.largest,
                        &summary.place, &summary.sum);
  return summary;
}

LogitSummary combine(const LogitSummary* chunks, int64_t num_chunks) {
  LogitSummary all{-std::numeric_limits<float>::infinity(), 0, 0};
  for (int64_t c = 0; c < num_chunks; ++c) {
    if (chunks[c].largest > all.largest) {
      all.largest = chunks[c].largest;
      all.place = c * kLogitChunk + chunks[c].place;
    }
  }
  for (int64_t c = 0; c < num_chunks; ++c) {
    all.sum += chunks[c].sum * std::exp(double{chunks[c].largest} - all.largest);
  }
  return all;
}

int32_t choose_token(const float* logits, int64_t vocab_size, const LogitSummary& summary,
                     const SamplingOptions& options, uint64_t seed, uint64_t uid, uint32_t step,
                     SampleScratch& scratch) {
  if (options.temperature == 0) return static_cast<int32_t>(summary.place);
  Best best{seed, uid, step, options.temperature};
  if ((options.top_k > 0 && options.top_k < vocab_size) || options.top_p < 1) {
    filter(logits, vocab_size, summary, options, scratch);
    for (const int32_t id : scratch.ids) best.offer(logits[id], id);
    return best.id;
  }
  best.offer(summary.largest, static_cast<int32_t>(summary.place));
  // What even the luckiest draw cannot lift above the best, or min_p removes, needs no draw.
  const double removed =
      options.min_p > 0 ? std::log(options.min_p) * options.temperature : -kInfinity;
  auto least = [&] {
    const double needed = (best.score - kLargestGumbel) * options.temperature;
    return static_cast<float>(std::max(needed, summary.largest + removed - 1e-3));
  };
  float bound = least();
  for (int64_t id = 0; id < vocab_size; ++id) {
    if (!(logits[id] >= bound)) continue;
    if (options.min_p > 0 &&
        std::exp((double{logits[id]} - summary.largest) / options.temperature) < options.min_p) {
      continue;
    }
    best.offer(logits[id], static_cast<int32_t>(id));
    bound = least();
  }
  return best.id;
}

void sample_row(const float* logits, const LogitSummary* chunks, const TagTables& tables,
                const SampleRows& rows, int64_t row, const SampleOutput& out,
                SampleScratch& scratch) {
  const int64_t vocab_size = tables.vocab_size;
  const LogitSummary summary = combine(chunks, num_logit_chunks(vocab_size));
  const SamplingOptions options{rows.temperature[row], rows.top_k[row], rows.top_p[row],
                                rows.min_p[row]};
  const int32_t token = choose_token(
      logits, vocab_size, summary, options, static_cast<uint64_t>(rows.seeds[row]),
      static_cast<uint64_t>(rows.uids[row]), static_cast<uint32_t>(rows.steps[row]), scratch);
  const int32_t state = tables.next_state[rows.states[row] * vocab_size + token];
  const int32_t tag = tables.accept_tag[state];
  int8_t finish = rows.steps[row] + 1 >= rows.max_tokens[row] ? kLength : kRunning;
  if (tag >= 0) finish = (rows.goal_masks[row] >> tag & 1) != 0 ? kTag : kWrongTag;
  const int64_t* eos_end = tables.eos_ids + tables.num_eos_ids;
  if (!rows.ignore_eos[row] && std::find(tables.eos_ids, eos_end, token) != eos_end) finish = kEos;
  out.token_ids[row] = token;
  out.logprobs[row] =
      static_cast<float>(double{logits[token]} - summary.largest - std::log(summary.sum));
  out.states[row] = state;
  out.finish[row] = finish;
}

}  // namespace stagebeam::cpu
