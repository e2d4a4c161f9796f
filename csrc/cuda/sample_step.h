// sample_step: filters, Gumbel-max choice, logprob, tag automaton and finish reason, one block a
// row.
//
// The vocabulary is never sorted: top-k and top-p are one question, "which logit is the last whose
// predecessors weigh less than a target", answered byte by byte of the logit's bits with a
// histogram of 256 bins (a radix select). Weights are fixed-point integers, so the order of the
// additions does not matter and a row gives the same token in any batch, on any machine.
//
// Beside the Triton twin: the histogram is shared-memory atomics on a computed bin, which Triton
// has not; there the same thresholds take a bisection, with several times as many passes over the
// row.
#pragma once

#include "../core/philox.h"
#include "device.h"

namespace stagebeam::cuda {

// The op's arguments; kernels/sample_step/__init__.py is the contract. V is vocab_size.
template <typename Logit>
struct SampleStep {
  const Logit* logits;  // [R, V]
  const int64_t *seeds, *uids;
  const int32_t* steps;
  const float* temperature;
  const int32_t* top_k;
  const float *top_p, *min_p;
  const int16_t* next_state;  // [S, V]
  const int32_t* accept_tag;  // [S]
  const int32_t* states;
  const int64_t *goal_masks, *eos_ids;
  const bool* ignore_eos;
  const int32_t* max_tokens;
  int64_t* token_ids;
  float* logprobs;
  int32_t* new_states;
  int8_t* finish;
  int num_rows, vocab_size, num_eos;
};

enum Finish : int8_t { kRunning = 0, kTag = 1, kEos = 2, kLength = 3, kWrongTag = 4 };

inline constexpr int kMaxSampledVocab = 1 << 19;  // so that a sum of weights fits in 64 bits
inline constexpr float kWeightOne = 0x1p44f;      // the weight of the most likely id
inline constexpr int kBins = 256;

// Bits that compare as unsigned integers like the floats they come from; 0.0 and -0.0 are equal.
__device__ __forceinline__ uint32_t ordered_bits(float x) {
  const auto bits = bit_cast<uint32_t>(x + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The largest value and its lowest id; `sum` of exp(value - largest).
struct Peak {
  float value;
  int id;
  float sum;
};

__device__ __forceinline__ Peak merge(Peak a, Peak b) {
  const bool takes_b = b.value > a.value || (b.value == a.value && b.id < a.id);
  const float top = takes_b ? b.value : a.value;
  const float of_a = a.value == top ? a.sum : a.sum * expf(a.value - top);
  const float of_b = b.value == top ? b.sum : b.sum * expf(b.value - top);
  return {top, takes_b ? b.id : a.id, of_a + of_b};
}

template <int kThreads>
struct SampleScratch {
  static constexpr int kWarps = kThreads / kWarpSize;
  Peak peaks[kWarps];
  unsigned long long bins[kBins];
  unsigned long long above, digit_weight;
  uint32_t prefix;
  int counts[kWarps];
  int cut;
};

// The block's merged peak, on every thread.
template <int kThreads>
__device__ Peak block_peak(Peak mine, SampleScratch<kThreads>& scratch) {
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) {
    const Peak other = {__shfl_xor_sync(kWholeWarp, mine.value, lanes),
                        __shfl_xor_sync(kWholeWarp, mine.id, lanes),
                        __shfl_xor_sync(kWholeWarp, mine.sum, lanes)};
    // In lane order, so that both lanes add alike.
    mine = threadIdx.x & lanes ? merge(other, mine) : merge(mine, other);
  }
  __syncthreads();  // the last use of `peaks` is over
  if (threadIdx.x % kWarpSize == 0) scratch.peaks[threadIdx.x / kWarpSize] = mine;
  __syncthreads();
  Peak all = scratch.peaks[0];
  for (int warp = 1; warp < scratch.kWarps; ++warp) all = merge(all, scratch.peaks[warp]);
  return all;
}

// One row as a kernel block sees it: its logits and how they are weighed.
template <typename Logit>
struct Row {
  const Logit* logits;
  int vocab_size;
  bool is_aligned;  // whole quads may be loaded at once
  float largest, temperature;

  __device__ __forceinline__ int num_quads() const { return (vocab_size + 3) / 4; }

  // Logits 4 * quad .. 4 * quad + 3; NaN past the end, which compares as false.
  __device__ __forceinline__ void load(int quad, float (&values)[4]) const {
    if (is_aligned) {
      const auto four = reinterpret_cast<const Quad<Logit>*>(logits)[quad];
#pragma unroll
      for (int i = 0; i < 4; ++i) values[i] = to_float(four.values[i]);
      return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int id = 4 * quad + i;
      values[i] = id < vocab_size ? to_float(logits[id]) : NAN;
    }
  }

  // exp((logit - largest) / temperature) as a share of kWeightOne.
  __device__ __forceinline__ unsigned long long weight(float value) const {
    return static_cast<unsigned long long>(expf((value - largest) / temperature) * kWeightOne);
  }

  __device__ __forceinline__ bool is_likely_enough(float value, float min_p) const {
    const float rough = expf((value - largest) / temperature);
    if (fabsf(rough - min_p) > 1e-4f * min_p) return rough > min_p;
    const double exact = exp((static_cast<double>(value) - largest) / temperature);
    return exact >= static_cast<double>(min_p);
  }
};

struct Threshold {
  uint32_t bits;            // the last kept logit's ordered bits
  unsigned long long ties;  // how many ids with these bits are kept, lowest first
  unsigned long long tied;  // how many there are
};

// Which ids weigh less than `target` together with all larger ones before them. Counts ids where
// kByMass is false (target ids), else weights (a share `top_p` of all), among bits >= least.
template <bool kByMass, int kThreads, typename Logit>
__device__ Threshold select(const Row<Logit>& row, uint32_t least, unsigned long long target,
                            float top_p, SampleScratch<kThreads>& scratch) {
  uint32_t prefix = 0, mask = 0;
  unsigned long long above = 0, digit_weight = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    __syncthreads();
    for (int bin = threadIdx.x; bin < kBins; bin += kThreads) scratch.bins[bin] = 0;
    __syncthreads();
    for (int quad = threadIdx.x; quad < row.num_quads(); quad += kThreads) {
      float values[4];
      row.load(quad, values);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (values[i] != values[i]) continue;
        const uint32_t bits = ordered_bits(values[i]);
        if (bits < least || (bits & mask) != prefix) continue;
        const unsigned long long weight = kByMass ? row.weight(values[i]) : 1ull;
        if (weight != 0) atomicAdd(&scratch.bins[(bits >> shift) & (kBins - 1)], weight);
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      if (kByMass && shift == 24) {
        unsigned long long total = 0;
        for (int bin = 0; bin < kBins; ++bin) total += scratch.bins[bin];
        target = static_cast<unsigned long long>(
            ceil(static_cast<double>(top_p) * static_cast<double>(total)));
        if (target == 0) target = 1;
      }
      int digit = kBins - 1;
      while (digit > 0 && above + scratch.bins[digit] < target) above += scratch.bins[digit--];
      scratch.prefix = prefix | static_cast<uint32_t>(digit) << shift;
      scratch.above = above;
      scratch.digit_weight = scratch.bins[digit];
    }
    __syncthreads();
    prefix = scratch.prefix;
    above = scratch.above;
    digit_weight = scratch.digit_weight;
    mask |= static_cast<uint32_t>(kBins - 1) << shift;
  }
  if (!kByMass) return {prefix, digit_weight, digit_weight};
  const auto sign = prefix & 0x80000000u ? prefix & 0x7FFFFFFFu : ~prefix;
  const unsigned long long each = row.weight(bit_cast<float>(sign));
  // `target` is thread 0's alone.
  if (threadIdx.x == 0) scratch.above = each ? (target - above + each - 1) / each : 0;
  __syncthreads();
  const unsigned long long ties = scratch.above;
  __syncthreads();
  return {prefix, ties, each ? digit_weight / each : 0};
}

// The id of the `rank`-th (from 0) logit, in id order, with these bits.
template <int kThreads, typename Logit>
__device__ int id_of_tie(const Row<Logit>& row, uint32_t bits, unsigned long long rank,
                         SampleScratch<kThreads>& scratch) {
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  if (threadIdx.x == 0) scratch.cut = row.vocab_size;
  unsigned long long before = 0;
  for (int first = 0; first < row.vocab_size && before <= rank; first += kThreads) {
    const int id = first + static_cast<int>(threadIdx.x);
    const bool is_tie = id < row.vocab_size && ordered_bits(to_float(row.logits[id])) == bits;
    const unsigned tied_lanes = __ballot_sync(kWholeWarp, is_tie);
    if (lane == 0) scratch.counts[warp] = __popc(tied_lanes);
    __syncthreads();
    unsigned long long mine = before + __popc(tied_lanes & ((1u << lane) - 1));
    for (int w = 0; w < scratch.kWarps; ++w) {
      if (w < warp) mine += scratch.counts[w];
      before += scratch.counts[w];
    }
    if (is_tie && mine == rank) scratch.cut = id;
    __syncthreads();
  }
  return scratch.cut;
}

template <typename Logit, int kThreads>
__global__ void __launch_bounds__(kThreads) sample_step_kernel(SampleStep<Logit> a) {
  __shared__ SampleScratch<kThreads> scratch;
  const int r = blockIdx.x;
  Row<Logit> row = {a.logits + int64_t{r} * a.vocab_size, a.vocab_size, false, 0.0f, 1.0f};
  row.is_aligned =
      a.vocab_size % 4 == 0 && reinterpret_cast<uintptr_t>(a.logits) % sizeof(Quad<Logit>) == 0;

  Peak best = {-INFINITY, a.vocab_size, 0.0f};
  for (int quad = threadIdx.x; quad < row.num_quads(); quad += kThreads) {
    float values[4];
    row.load(quad, values);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (values[i] == values[i]) best = merge(best, {values[i], 4 * quad + i, 1.0f});
    }
  }
  best = block_peak(best, scratch);
  int token = best.id;

  if (a.temperature[r] > 0) {
    row.largest = best.value;
    row.temperature = a.temperature[r];
    const int top_k = a.top_k[r];
    const float top_p = a.top_p[r], min_p = a.min_p[r];
    uint32_t least = 0;
    int last_tie = a.vocab_size;
    if (top_k > 0 && top_k < a.vocab_size) {
      least = select<false>(row, 0, static_cast<unsigned long long>(top_k), 0.0f, scratch).bits;
    }
    if (top_p < 1) {
      const Threshold kept = select<true>(row, least, 0, top_p, scratch);
      least = kept.bits;
      if (kept.ties < kept.tied) last_tie = id_of_tie(row, kept.bits, kept.ties - 1, scratch);
    }
    const auto seed = static_cast<uint64_t>(a.seeds[r]), uid = static_cast<uint64_t>(a.uids[r]);
    const auto step = static_cast<uint32_t>(a.steps[r]);
    Peak choice = {-INFINITY, best.id, 0.0f};
    for (int quad = threadIdx.x; quad < row.num_quads(); quad += kThreads) {
      float values[4];
      row.load(quad, values);
      bool is_kept[4], has_kept = false;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int id = 4 * quad + i;
        const uint32_t bits = ordered_bits(values[i]);
        is_kept[i] = values[i] == values[i] && bits >= least && (bits > least || id <= last_tie);
        if (is_kept[i] && min_p > 0) is_kept[i] = row.is_likely_enough(values[i], min_p);
        has_kept |= is_kept[i];
      }
      if (!has_kept) continue;
      const PhiloxCounter words = token_words(seed, step, uid, static_cast<uint32_t>(quad));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (!is_kept[i]) continue;
        const float score = values[i] / row.temperature - logf(-logf(uniform_of(words[i])));
        choice = merge(choice, {score, 4 * quad + i, 0.0f});
      }
    }
    token = block_peak(choice, scratch).id;
  }

  if (threadIdx.x != 0) return;
  a.token_ids[r] = token;
  a.logprobs[r] = to_float(row.logits[token]) - best.value - logf(best.sum);
  const int state = a.next_state[int64_t{a.states[r]} * a.vocab_size + token];
  a.new_states[r] = state;
  const int tag = a.accept_tag[state];
  int8_t finish = a.steps[r] + 1 >= a.max_tokens[r] ? kLength : kRunning;
  if (tag >= 0) finish = (a.goal_masks[r] >> tag) & 1 ? kTag : kWrongTag;
  if (!a.ignore_eos[r]) {
    for (int e = 0; e < a.num_eos; ++e) {
      if (a.eos_ids[e] == token) finish = kEos;
    }
  }
  a.finish[r] = finish;
}

// kThreads: threads a row, a multiple of 32
template <int kThreads, typename Logit>
cudaError_t launch_sample_step(const SampleStep<Logit>& arguments, cudaStream_t stream) {
  if (arguments.num_rows < 0 || arguments.vocab_size <= 0 ||
      arguments.vocab_size > kMaxSampledVocab || arguments.num_eos < 0) {
    return cudaErrorInvalidValue;
  }
  if (arguments.num_rows == 0) return cudaSuccess;
  const dim3 grid{static_cast<unsigned>(arguments.num_rows), 1, 1};
  return launch(sample_step_kernel<Logit, kThreads>, grid, kThreads, stream, arguments);
}

}  // namespace stagebeam::cuda
