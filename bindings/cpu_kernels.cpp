// Bindings of csrc/cpu's kernels, attention and sampling: the native twins in stagebeam.kernels.
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "../csrc/cpu/attention.h"
#include "../csrc/cpu/sample.h"
#include "cpu_bindings.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace stagebeam::bindings {
namespace {

using namespace stagebeam::cpu;

// (q, heads, KV heads, head_dim, scale) and a cache, as the attention twins hand them over.
AttentionLayer make_layer(Address q, int64_t q_stride, Address keys, Address values, Address out,
                          int format, int64_t block_size, int64_t num_heads, int64_t num_kv_heads,
                          int64_t head_dim, float sm_scale) {
  AttentionLayer layer{};
  layer.shape = {num_heads, num_kv_heads, head_dim, sm_scale};
  layer.cache = {static_cast<CacheFormat>(format),
                 block_size,
                 num_kv_heads * head_dim,
                 head_dim,
                 at<void>(keys),
                 at<void>(values),
                 nullptr,
                 nullptr};
  layer.q = at<const float>(q);
  layer.q_stride = q_stride;
  layer.out = at<float>(out);
  layer.out_stride = num_heads * head_dim;
  return layer;
}

void run_all(AttentionPlan& plan, const AttentionLayer& layer) {
  AttentionScratch scratch;
  if (plan.is_split()) {
    plan.prepare_share(layer, 0, scratch);
  } else {
    for (int64_t i = 0; i < plan.num_units(); ++i) plan.prepare_unit(layer, i, scratch);
  }
  plan.run_items(layer, 0, plan.num_items(), 0, nullptr, scratch);
  if (!plan.is_split()) return;
  for (int64_t i = 0; i < plan.num_units(); ++i) plan.fold_unit(layer, i, scratch);
}

template <typename T>
void merge(const T* out_a, const T* lse_a, const T* out_b, const T* lse_b, int64_t num_heads,
           int64_t head_dim, T* out, T* lse) {
  for (int64_t i = 0; i < num_heads; ++i) {
    const T top = std::max(lse_a[i], lse_b[i]);
    const bool is_empty = top == -std::numeric_limits<T>::infinity();
    const T share_a = is_empty ? 0 : std::exp(lse_a[i] - top);
    const T share_b = is_empty ? 0 : std::exp(lse_b[i] - top);
    const T total = share_a + share_b;
    lse[i] = is_empty ? top : top + std::log(total);
    for (int64_t d = i * head_dim; d < (i + 1) * head_dim; ++d) {
      const T a = share_a > 0 ? out_a[d] * (share_a / total) : 0;
      const T b = share_b > 0 ? out_b[d] * (share_b / total) : 0;
      out[d] = a + b;
    }
  }
}

void bind_rows(py::module_& m) {
  m.def(
      "rms_norm",
      [](Address x, Address weight, double eps, int64_t rows, int64_t cols, Address out) {
        const py::gil_scoped_release release;
        for (int64_t r = 0; r < rows; ++r) {
          kernels().rms_norm(at<float>(x) + r * cols, at<float>(weight), static_cast<float>(eps),
                             cols, at<float>(out) + r * cols);
        }
      },
      "x"_a, "weight"_a, "eps"_a, "rows"_a, "cols"_a, "out"_a);
  m.def(
      "layer_norm",
      [](Address x, Address weight, Address bias, double eps, int64_t rows, int64_t cols,
         Address out) {
        const py::gil_scoped_release release;
        for (int64_t r = 0; r < rows; ++r) {
          kernels().layer_norm(at<float>(x) + r * cols, at<float>(weight), at<float>(bias),
                               static_cast<float>(eps), cols, at<float>(out) + r * cols);
        }
      },
      "x"_a, "weight"_a, "bias"_a, "eps"_a, "rows"_a, "cols"_a, "out"_a);
  m.def(
      "add",
      [](Address x, Address y, int64_t count, Address out) {
        const py::gil_scoped_release release;
        kernels().add(at<float>(x), at<float>(y), count, at<float>(out));
      },
      "x"_a, "y"_a, "count"_a, "out"_a);
  m.def(
      "silu_mul",
      [](Address gate_up, int64_t rows, int64_t cols, Address out) {
        const py::gil_scoped_release release;
        for (int64_t r = 0; r < rows; ++r) {
          const float* gate = at<float>(gate_up) + 2 * r * cols;
          kernels().silu_mul(gate, gate + cols, cols, at<float>(out) + r * cols);
        }
      },
      "gate_up"_a, "rows"_a, "cols"_a, "out"_a);
  m.def(
      "rotate",
      [](Address x, int64_t row_stride, int64_t head_stride, int64_t rows, int64_t heads,
         int64_t head_dim, Address cos_sin, Address positions) {
        const py::gil_scoped_release release;
        for (int64_t r = 0; r < rows; ++r) {
          const float* angles = at<float>(cos_sin) + at<int64_t>(positions)[r] * head_dim;
          for (int64_t h = 0; h < heads; ++h) {
            kernels().rotate(at<float>(x) + r * row_stride + h * head_stride, angles, head_dim);
          }
        }
      },
      "x"_a, "row_stride"_a, "head_stride"_a, "rows"_a, "heads"_a, "head_dim"_a, "cos_sin"_a,
      "positions"_a);
  m.def(
      "scatter_rows",
      [](Address rows, int64_t row_bytes, Address slots, int64_t count, Address cache) {
        const py::gil_scoped_release release;
        for (int64_t r = 0; r < count; ++r) {
          const int64_t slot = at<int32_t>(slots)[r];
          if (slot < 0) continue;
          std::memcpy(at<char>(cache) + slot * row_bytes, at<char>(rows) + r * row_bytes,
                      row_bytes);
        }
      },
      "rows"_a, "row_bytes"_a, "slots"_a, "count"_a, "cache"_a,
      "Copy row r of `rows` to row slots[r] of `cache`; a slot below 0 skips.");
  m.def(
      "copy_rows",
      [](Address cache, int64_t row_bytes, int64_t num_pieces, int64_t piece_bytes, Address pairs,
         int64_t count) {
        const py::gil_scoped_release release;
        for (int64_t piece = 0; piece < num_pieces; ++piece) {
          char* rows = at<char>(cache) + piece * piece_bytes;
          const int32_t* pair = at<int32_t>(pairs);
          for (int64_t i = 0; i < count; ++i, pair += 2) {
            std::memcpy(rows + pair[1] * row_bytes, rows + pair[0] * row_bytes, row_bytes);
          }
        }
      },
      "cache"_a, "row_bytes"_a, "num_pieces"_a, "piece_bytes"_a, "pairs"_a, "count"_a,
      "In each of a cache's pieces, piece_bytes apart, copy row pairs[i][0] over row pairs[i][1].");
  m.def(
      "merge_states",
      [](Address out_a, Address lse_a, Address out_b, Address lse_b, int64_t num_heads,
         int64_t head_dim, bool is_double, Address out, Address lse) {
        const py::gil_scoped_release release;
        if (is_double) {
          merge(at<double>(out_a), at<double>(lse_a), at<double>(out_b), at<double>(lse_b),
                num_heads, head_dim, at<double>(out), at<double>(lse));
        } else {
          merge(at<float>(out_a), at<float>(lse_a), at<float>(out_b), at<float>(lse_b), num_heads,
                head_dim, at<float>(out), at<float>(lse));
        }
      },
      "out_a"_a, "lse_a"_a, "out_b"_a, "lse_b"_a, "num_heads"_a, "head_dim"_a, "is_double"_a,
      "out"_a, "lse"_a);
  m.def(
      "dot_rows",
      [](Address hidden, Address columns, int64_t rows, int64_t per_row, int64_t cols,
         Address out) {
        const py::gil_scoped_release release;
        for (int64_t i = 0; i < rows * per_row; ++i) {
          at<float>(out)[i] = kernels().dot(at<float>(hidden) + i / per_row * cols,
                                            at<float>(columns) + i * cols, cols);
        }
      },
      "hidden"_a, "columns"_a, "rows"_a, "per_row"_a, "cols"_a, "out"_a,
      "out[r, i] = hidden[r] . columns[r, i].");
}

void bind_attention(py::module_& m) {
  m.def(
      "branch_attention",
      [](Address q, int64_t q_stride, Address keys, Address values, Address out, int format,
         int64_t block_size, int64_t num_heads, int64_t num_kv_heads, int64_t head_dim,
         float sm_scale, int64_t num_rows, int64_t num_groups, Address group_offsets,
         Address trunk_tables, int64_t trunk_width, Address trunk_lens, Address tail_tables,
         int64_t tail_width, Address tail_lens) {
        const py::gil_scoped_release release;
        const AttentionLayer layer = make_layer(q, q_stride, keys, values, out, format, block_size,
                                                num_heads, num_kv_heads, head_dim, sm_scale);
        AttentionPlan plan;
        plan.plan_branches({num_rows, num_groups, at<int32_t>(group_offsets),
                            at<int32_t>(trunk_tables), trunk_width, at<int32_t>(trunk_lens),
                            at<int32_t>(tail_tables), tail_width, at<int32_t>(tail_lens)},
                           layer.shape, 1);
        run_all(plan, layer);
      },
      "q"_a, "q_stride"_a, "keys"_a, "values"_a, "out"_a, "format"_a, "block_size"_a, "num_heads"_a,
      "num_kv_heads"_a, "head_dim"_a, "sm_scale"_a, "num_rows"_a, "num_groups"_a, "group_offsets"_a,
      "trunk_tables"_a, "trunk_width"_a, "trunk_lens"_a, "tail_tables"_a, "tail_width"_a,
      "tail_lens"_a);
  m.def(
      "prefill_attention",
      [](Address q, int64_t q_stride, Address keys, Address values, Address out, int format,
         int64_t block_size, int64_t num_heads, int64_t num_kv_heads, int64_t head_dim,
         float sm_scale, int64_t num_seqs, Address cu_seqlens_q, Address seq_lens,
         Address block_tables, int64_t table_width) {
        const py::gil_scoped_release release;
        const AttentionLayer layer = make_layer(q, q_stride, keys, values, out, format, block_size,
                                                num_heads, num_kv_heads, head_dim, sm_scale);
        AttentionPlan plan;
        plan.plan_prefill({num_seqs, at<int32_t>(cu_seqlens_q), at<int32_t>(seq_lens),
                           at<int32_t>(block_tables), table_width},
                          layer.shape);
        run_all(plan, layer);
      },
      "q"_a, "q_stride"_a, "keys"_a, "values"_a, "out"_a, "format"_a, "block_size"_a, "num_heads"_a,
      "num_kv_heads"_a, "head_dim"_a, "sm_scale"_a, "num_seqs"_a, "cu_seqlens_q"_a, "seq_lens"_a,
      "block_tables"_a, "table_width"_a);
  m.def(
      "cross_attention",
      [](Address q, int64_t q_stride, Address keys, Address values, Address out, int format,
         int64_t vision_tokens, int64_t num_heads, int64_t num_kv_heads, int64_t head_dim,
         float sm_scale, int64_t num_groups, Address group_offsets, Address group_slots,
         Address kv_lens) {
        const py::gil_scoped_release release;
        const AttentionLayer layer =
            make_layer(q, q_stride, keys, values, out, format, vision_tokens, num_heads,
                       num_kv_heads, head_dim, sm_scale);
        AttentionPlan plan;
        plan.plan_cross({num_groups, at<int32_t>(group_offsets), at<int32_t>(group_slots),
                         at<int32_t>(kv_lens)},
                        layer.shape, 1);
        run_all(plan, layer);
      },
      "q"_a, "q_stride"_a, "keys"_a, "values"_a, "out"_a, "format"_a, "vision_tokens"_a,
      "num_heads"_a, "num_kv_heads"_a, "head_dim"_a, "sm_scale"_a, "num_groups"_a,
      "group_offsets"_a, "group_slots"_a, "kv_lens"_a);
}

void bind_sampling(py::module_& m) {
  m.def(
      "sample_step",
      [](Address logits, int64_t num_rows, int64_t vocab_size, Address seeds, Address uids,
         Address steps, Address temperature, Address top_k, Address top_p, Address min_p,
         Address next_state, Address accept_tag, Address states, Address goal_masks,
         Address eos_ids, int64_t num_eos_ids, Address ignore_eos, Address max_tokens,
         Address token_ids, Address logprobs, Address new_states, Address finish) {
        const py::gil_scoped_release release;
        const TagTables tables{at<int16_t>(next_state), at<int32_t>(accept_tag), vocab_size,
                               at<int64_t>(eos_ids), num_eos_ids};
        const SampleRows rows{
            at<int64_t>(seeds),     at<int64_t>(uids),      at<int32_t>(steps),
            at<float>(temperature), at<int32_t>(top_k),     at<float>(top_p),
            at<float>(min_p),       at<int32_t>(states),    at<int64_t>(goal_masks),
            at<bool>(ignore_eos),   at<int32_t>(max_tokens)};
        const SampleOutput out{at<int64_t>(token_ids), at<float>(logprobs), at<int32_t>(new_states),
                               at<int8_t>(finish)};
        SampleScratch scratch;
        std::vector<LogitSummary> chunks(num_logit_chunks(vocab_size));
        for (int64_t r = 0; r < num_rows; ++r) {
          const float* row = at<float>(logits) + r * vocab_size;
          for (int64_t c = 0; c < static_cast<int64_t>(chunks.size()); ++c) {
            const int64_t begin = c * kLogitChunk;
            chunks[c] = summarize(row + begin, std::min(kLogitChunk, vocab_size - begin));
          }
          sample_row(row, chunks.data(), tables, rows, r, out, scratch);
        }
      },
      "logits"_a, "num_rows"_a, "vocab_size"_a, "seeds"_a, "uids"_a, "steps"_a, "temperature"_a,
      "top_k"_a, "top_p"_a, "min_p"_a, "next_state"_a, "accept_tag"_a, "states"_a, "goal_masks"_a,
      "eos_ids"_a, "num_eos_ids"_a, "ignore_eos"_a, "max_tokens"_a, "token_ids"_a, "logprobs"_a,
      "new_states"_a, "finish"_a);
}

}  // namespace

void bind_cpu_kernels(py::module_& m) {
  m.attr("CACHE_FORMATS") =
      py::dict("float32"_a = 0, "bfloat16"_a = 1, "int8"_a = 2, "float16"_a = 3);
  bind_rows(m);
  bind_attention(m);
  bind_sampling(m);
}

}  // namespace stagebeam::bindings
