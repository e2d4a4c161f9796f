#include "attention.h"

#include <algorithm>
#include <limits>

namespace stagebeam::cpu {
namespace {

constexpr int64_t kPrefillRows = 16;  // rows of a prefill item: they share a read of their keys
constexpr int64_t kItemsPerThread = 16;

int64_t splits_of(int64_t tokens) {
  return (tokens + kSplitTokens - 1) / kSplitTokens;
}

template <typename T>
T* at_bytes(T* base, int64_t bytes) {
  return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(base) + bytes);
}

KvLayout layout_of(const AttentionLayer& layer) {
  const AttentionShape& s = layer.shape;
  const int64_t token = s.num_kv_heads * s.head_dim;
  return {layer.cache.format,
          s.head_dim,
          layer.cache.block_size,
          layer.cache.block_size * token,
          token,
          layer.cache.block_size * s.num_kv_heads,
          s.num_kv_heads};
}

void clear_state(float* state, int64_t head_dim) {
  std::fill_n(state, state_size(head_dim), 0.0f);
  state[padded(head_dim)] = -std::numeric_limits<float>::infinity();
}

}  // namespace

void AttentionPlan::reset(int64_t num_rows, const AttentionShape& shape, bool is_split) {
  shape_ = shape;
  sources_.clear();
  items_.clear();
  rows_.assign(num_rows, Row{0, nullptr});
  max_splits_ = 0;
  queries_.resize(num_rows * shape.num_heads * padded(shape.head_dim));
  const int64_t num_counters = is_split ? num_rows * shape.num_kv_heads : 0;
  if (num_counters > num_counters_) {
    num_done_ = std::make_unique<std::atomic<int32_t>[]>(num_counters);
    num_counters_ = num_counters;
  }
  for (int64_t i = 0; i < num_counters; ++i) num_done_[i].store(0, std::memory_order_relaxed);
}

void AttentionPlan::add_split_items(int32_t source, int32_t begin, int32_t end, int64_t split,
                                    bool by_head) {
  const auto heads = static_cast<int32_t>(shape_.num_kv_heads);
  const auto s = static_cast<int32_t>(split);
  if (!by_head) items_.push_back({source, begin, end, 0, heads, s});
  for (int32_t h = 0; by_head && h < heads; ++h)
    items_.push_back({source, begin, end, h, h + 1, s});
}

void AttentionPlan::plan_branches(const BranchRows& given, const AttentionShape& shape,
                                  int num_threads) {
  reset(given.num_rows, shape, true);
  int64_t num_splits = 0;
  for (int64_t g = 0; g < given.num_groups; ++g) {
    const int64_t trunk = given.trunk_width > 0 ? given.trunk_lens[g] : 0;
    sources_.push_back({given.trunk_tables + g * given.trunk_width, 0, trunk});
    num_splits += splits_of(trunk);
    for (int64_t r = given.group_offsets[g]; r < given.group_offsets[g + 1]; ++r) {
      rows_[r] = {trunk + given.tail_lens[r], given.tail_tables + r * given.tail_width};
      max_splits_ = std::max(max_splits_, splits_of(rows_[r].limit));
      num_splits += splits_of(rows_[r].limit) - trunk / kSplitTokens;
    }
  }
  const bool by_head = num_splits < kItemsPerThread * num_threads;
  for (int64_t g = 0; g < given.num_groups; ++g) {
    const auto source = static_cast<int32_t>(g);
    const int32_t begin = given.group_offsets[g], end = given.group_offsets[g + 1];
    if (begin == end) continue;
    const int64_t shared = splits_of(sources_[g].length);
    for (int64_t s = 0; s < shared; ++s) add_split_items(source, begin, end, s, by_head);
    for (int32_t r = begin; r < end; ++r) {
      const auto heads = static_cast<int32_t>(shape.num_kv_heads);
      if (rows_[r].limit == 0) items_.push_back({source, r, r + 1, 0, heads, kAll});
      for (int64_t s = shared; s < splits_of(rows_[r].limit); ++s) {
        add_split_items(source, r, r + 1, s, by_head);
      }
    }
  }
  states_.resize(given.num_rows * shape.num_heads * max_splits_ * state_size(shape.head_dim));
}

void AttentionPlan::plan_prefill(const PrefillRows& given, const AttentionShape& shape) {
  reset(given.num_seqs > 0 ? given.cu_seqlens_q[given.num_seqs] : 0, shape, false);
  for (int64_t s = 0; s < given.num_seqs; ++s) {
    const int64_t begin = given.cu_seqlens_q[s], end = given.cu_seqlens_q[s + 1];
    sources_.push_back({given.block_tables + s * given.table_width, 0, given.seq_lens[s]});
    for (int64_t r = begin; r < end; ++r) rows_[r] = {given.seq_lens[s] - (end - 1 - r), nullptr};
    for (int64_t r = begin; r < end; r += kPrefillRows) {
      const auto last = static_cast<int32_t>(std::min(end, r + kPrefillRows));
      for (int32_t h = 0; h < shape.num_kv_heads; ++h) {
        items_.push_back({static_cast<int32_t>(s), static_cast<int32_t>(r), last, h, h + 1, kAll});
      }
    }
  }
  // The longest first, so that no thread is left with one at the end.
  std::stable_sort(items_.begin(), items_.end(), [&](const Item& a, const Item& b) {
    return rows_[a.row_end - 1].limit > rows_[b.row_end - 1].limit;
  });
}

void AttentionPlan::plan_cross(const CrossRows& given, const AttentionShape& shape,
                               int num_threads) {
  const int64_t num_rows = given.num_groups > 0 ? given.group_offsets[given.num_groups] : 0;
  const bool is_split = num_rows <= kMaxTileQueries;
  reset(num_rows, shape, is_split);
  int64_t num_splits = 0;
  for (int64_t g = 0; g < given.num_groups; ++g) {
    int64_t longest = 0;
    for (int64_t r = given.group_offsets[g]; r < given.group_offsets[g + 1]; ++r) {
      rows_[r] = {given.group_slots[g] < 0 ? 0 : given.kv_lens[r], nullptr};
      longest = std::max(longest, rows_[r].limit);
    }
    sources_.push_back({nullptr, given.group_slots[g], longest});
    max_splits_ = std::max(max_splits_, splits_of(longest));
    num_splits += splits_of(longest);
  }
  const bool by_head = num_splits < kItemsPerThread * num_threads;
  for (int64_t g = 0; g < given.num_groups; ++g) {
    const auto source = static_cast<int32_t>(g);
    const int32_t begin = given.group_offsets[g], end = given.group_offsets[g + 1];
    if (is_split && begin < end) {
      for (int64_t s = 0; s < splits_of(sources_[g].length); ++s) {
        add_split_items(source, begin, end, s, by_head);
      }
    }
    const bool has_image = given.group_slots[g] >= 0;
    for (int32_t r = begin; r < end && !(is_split && has_image); r += kPrefillRows) {
      const auto last = std::min<int32_t>(end, r + kPrefillRows);
      for (int32_t h = 0; h < shape.num_kv_heads; ++h) {
        items_.push_back({source, r, last, h, h + 1, kAll});
      }
    }
  }
  if (is_split) {
    states_.resize(num_rows * shape.num_heads * max_splits_ * state_size(shape.head_dim));
  }
}

bool AttentionPlan::has_row_of(int64_t item, const uint8_t* is_marked) const {
  const Item& rows = items_[item];
  return std::any_of(is_marked + rows.row_begin, is_marked + rows.row_end,
                     [](uint8_t mark) { return mark != 0; });
}

void AttentionPlan::prepare_unit(const AttentionLayer& layer, int64_t unit,
                                 AttentionScratch& scratch) {
  const int64_t row = unit / shape_.num_kv_heads, kv_head = unit % shape_.num_kv_heads;
  if (layer.new_keys != nullptr) store_head(layer, row, kv_head, scratch);
  if (rows_[row].limit == 0) return;
  const int64_t group = shape_.num_heads / shape_.num_kv_heads, width = padded(shape_.head_dim);
  for (int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
    load_query(layer, row, h, queries_.data() + (row * shape_.num_heads + h) * width, scratch);
  }
}

void AttentionPlan::store_head(const AttentionLayer& layer, int64_t row, int64_t kv_head,
                               AttentionScratch& scratch) const {
  const int64_t slot = layer.slots[row];
  if (slot < 0) return;
  const AttentionShape& s = layer.shape;
  const KvCache& cache = layer.cache;
  const Kernels& k = kernels();
  const int64_t head = slot * s.num_kv_heads + kv_head;
  const int64_t bytes = head * s.head_dim * element_bytes(cache.format);
  const int64_t from = row * layer.new_stride + kv_head * s.head_dim;
  scratch.head.resize(s.head_dim);
  std::copy_n(layer.new_keys + from, s.head_dim, scratch.head.data());
  if (layer.cos_sin != nullptr) {
    k.rotate(scratch.head.data(), layer.cos_sin + layer.positions[row] * s.head_dim, s.head_dim);
  }
  const bool is_scaled = cache.key_scales != nullptr;
  k.store_head(scratch.head.data(), s.head_dim, cache.format, at_bytes(cache.keys, bytes),
               is_scaled ? cache.key_scales + head : nullptr);
  k.store_head(layer.new_values + from, s.head_dim, cache.format, at_bytes(cache.values, bytes),
               is_scaled ? cache.value_scales + head : nullptr);
}

void AttentionPlan::load_query(const AttentionLayer& layer, int64_t row, int64_t head, float* out,
                               AttentionScratch& scratch) const {
  const AttentionShape& s = layer.shape;
  const Kernels& k = kernels();
  const float* q = layer.q + row * layer.q_stride + head * s.head_dim;
  scratch.head.resize(s.head_dim);
  float* own = scratch.head.data();
  if (layer.q_norm != nullptr) {
    k.rms_norm(q, layer.q_norm, layer.eps, s.head_dim, own);
    q = own;
  }
  if (layer.cos_sin != nullptr) {
    if (q != own) std::copy_n(q, s.head_dim, own);
    k.rotate(own, layer.cos_sin + layer.positions[row] * s.head_dim, s.head_dim);
    q = own;
  }
  k.scale_padded(q, s.sm_scale, s.head_dim, out);
}

void AttentionPlan::write_out(const AttentionLayer& layer, int64_t row, int64_t head,
                              const float* state) const {
  const int64_t head_dim = layer.shape.head_dim;
  float* out = layer.out + row * layer.out_stride + head * head_dim;
  const float total = state[padded(head_dim) + 1];
  for (int64_t d = 0; d < head_dim; ++d) out[d] = total == 0 ? 0 : state[d] / total;
}

void AttentionPlan::finish_split(const AttentionLayer& layer, int64_t row, int64_t kv_head,
                                 AttentionScratch& scratch) {
  const AttentionShape& s = layer.shape;
  const int64_t group = s.num_heads / s.num_kv_heads, stride = state_size(s.head_dim);
  const int64_t num_splits = splits_of(rows_[row].limit);
  std::atomic<int32_t>& num_done = num_done_[row * s.num_kv_heads + kv_head];
  if (num_done.fetch_add(1, std::memory_order_acq_rel) + 1 < num_splits) return;
  num_done.store(0, std::memory_order_relaxed);
  for (int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
    float* folded = scratch.folded.data();
    clear_state(folded, s.head_dim);
    kernels().fold_states(states_.data() + (row * s.num_heads + h) * max_splits_ * stride,
                          num_splits, s.head_dim, folded);
    write_out(layer, row, h, folded);
  }
}

int64_t AttentionPlan::kv_bytes(const AttentionShape& shape, CacheFormat format) const {
  int64_t tokens = 0;  // times KV heads
  for (const Item& item : items_) {
    const int64_t heads = item.kv_end - item.kv_begin;
    const int64_t shared = sources_[item.source].length;
    int64_t longest = 0;
    for (int64_t r = item.row_begin; r < item.row_end; ++r) {
      longest = std::max(longest, rows_[r].limit);
    }
    const int64_t begin = item.split == kAll ? 0 : item.split * kSplitTokens;
    const int64_t end = item.split == kAll ? longest : std::min(begin + kSplitTokens, longest);
    tokens += heads * std::max<int64_t>(0, std::min(end, shared) - begin);
    for (int64_t r = item.row_begin; r < item.row_end; ++r) {
      tokens +=
          heads * std::max<int64_t>(0, std::min(end, rows_[r].limit) - std::max(begin, shared));
    }
  }
  const int64_t scale = format == CacheFormat::kInt8 ? sizeof(float) : 0;
  return 2 * tokens * (shape.head_dim * element_bytes(format) + scale);
}

void AttentionPlan::prefetch_item(const AttentionLayer& layer, int64_t index) const {
  if (index >= num_items() || items_[index].split == kAll) return;
  const Item& item = items_[index];
  const KvLayout layout = layout_of(layer);
  const Source& source = sources_[item.source];
  const int64_t bytes = element_bytes(layout.format);
  const int64_t width = (item.kv_end - item.kv_begin) * layout.head_dim * bytes;
  const int64_t begin = item.split * kSplitTokens;
  auto prefetch = [&](const int32_t* table, int64_t slot, int64_t first, int64_t end) {
    int64_t column = table == nullptr ? 0 : first / layout.block_size;
    int64_t in_block = first - column * layout.block_size;
    for (int64_t t = first; t < end; ++t, ++in_block) {
      if (table != nullptr && in_block == layout.block_size) {
        ++column;
        in_block = 0;
      }
      const int64_t block = table == nullptr ? slot : table[column];
      const int64_t at = (block * layout.block_stride + in_block * layout.token_stride +
                          item.kv_begin * layout.head_dim) *
                         bytes;
      for (int64_t i = 0; i < width; i += 64) {
        __builtin_prefetch(at_bytes(layer.cache.keys, at + i), 0, 2);
        __builtin_prefetch(at_bytes(layer.cache.values, at + i), 0, 2);
      }
    }
  };
  const int64_t shared_end = std::min(begin + kSplitTokens, source.length);
  prefetch(source.table, std::max<int64_t>(source.first_slot, 0), begin, shared_end);
  for (int64_t r = item.row_begin; r < item.row_end; ++r) {
    const int64_t end = std::min(begin + kSplitTokens, rows_[r].limit);
    if (rows_[r].tail_table == nullptr || end <= source.length) continue;
    prefetch(rows_[r].tail_table, 0, std::max(begin, source.length) - source.length,
             end - source.length);
  }
}

void AttentionPlan::run_item(const AttentionLayer& layer, int64_t index,
                             AttentionScratch& scratch) {
  const Item& item = items_[index];
  for (int64_t h = item.kv_begin; h < item.kv_end; ++h) run_tiles(layer, item, h, scratch);
}

void AttentionPlan::run_tiles(const AttentionLayer& layer, const Item& item, int64_t kv_head,
                              AttentionScratch& scratch) {
  const AttentionShape& s = layer.shape;
  const Kernels& k = kernels();
  const KvLayout layout = layout_of(layer);
  const Source& source = sources_[item.source];
  const int64_t group = s.num_heads / s.num_kv_heads, width = padded(s.head_dim);
  const int64_t stride = state_size(s.head_dim), bytes = element_bytes(layout.format);
  auto head_of = [&](const int32_t* table, int64_t first_token, int64_t slot) {
    const int64_t offset = slot * layout.block_stride + kv_head * s.head_dim;
    const int64_t scale = slot * layout.scale_block_stride + kv_head;
    const KvCache& cache = layer.cache;
    return KvHead{at_bytes(cache.keys, offset * bytes),
                  at_bytes(cache.values, offset * bytes),
                  cache.key_scales == nullptr ? nullptr : cache.key_scales + scale,
                  cache.value_scales == nullptr ? nullptr : cache.value_scales + scale,
                  table,
                  first_token};
  };
  const KvHead shared = head_of(source.table, 0, std::max<int64_t>(source.first_slot, 0));
  const bool is_split = item.split != kAll;
  scratch.states.resize(kMaxTileQueries * stride);
  scratch.folded.resize(kMaxTileQueries * stride);
  Query queries[kMaxTileQueries];
  KvHead tails[kMaxTileQueries];

  const int64_t rows_a_tile = std::max<int64_t>(1, kMaxTileQueries / group);
  for (int64_t row = item.row_begin; row < item.row_end; row += rows_a_tile) {
    const int64_t end = std::min<int64_t>(item.row_end, row + rows_a_tile);
    for (int64_t head = 0; head < group; head += kMaxTileQueries) {  // more heads than a tile holds
      const int64_t heads = std::min(group - head, kMaxTileQueries);
      int64_t count = 0, longest = 0;
      for (int64_t r = row; r < end; ++r) {
        const bool has_tail = rows_[r].tail_table != nullptr;
        tails[r - row] = head_of(rows_[r].tail_table, source.length, 0);
        for (int64_t h = 0; h < heads; ++h, ++count) {
          const int64_t place = r * s.num_heads + kv_head * group + head + h;
          queries[count] = {queries_.data() + place * width, rows_[r].limit,
                            has_tail ? &tails[r - row] : nullptr,
                            is_split ? states_.data() + (place * max_splits_ + item.split) * stride
                                     : scratch.states.data() + count * stride};
        }
        longest = std::max(longest, rows_[r].limit);
      }
      Tile tile{&layout, &shared, 0, 0, source.length, queries, count};
      if (is_split) {
        tile.begin = item.split * kSplitTokens;
        tile.end = std::min(tile.begin + kSplitTokens, longest);
        k.attend(tile);
        continue;
      }
      for (int64_t q = 0; q < count; ++q) {
        clear_state(scratch.folded.data() + q * stride, s.head_dim);
      }
      for (int64_t begin = 0; begin < longest; begin += kSplitTokens) {
        tile.begin = begin;
        tile.end = std::min(begin + kSplitTokens, longest);
        k.attend(tile);
        for (int64_t q = 0; q < count; ++q) {
          k.fold_states(queries[q].state, 1, s.head_dim, scratch.folded.data() + q * stride);
        }
      }
      count = 0;
      for (int64_t r = row; r < end; ++r) {
        for (int64_t h = 0; h < heads; ++h, ++count) {
          write_out(layer, r, kv_head * group + head + h, scratch.folded.data() + count * stride);
        }
      }
    }
  }
  for (int64_t r = item.row_begin; is_split && r < item.row_end; ++r) {
    if (item.split < splits_of(rows_[r].limit)) finish_split(layer, r, kv_head, scratch);
  }
}

}  // namespace stagebeam::cpu
