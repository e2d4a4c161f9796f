#include "attention.h"

#include <algorithm>

#include "prefetch.h"

namespace stagebeam::cpu {
namespace {

constexpr int64_t kLineFloats = 16;
constexpr int64_t kFoldsAhead = 4;    // bundles whose lines are asked for
constexpr int64_t kUnitsAhead = 4;    // units whose queries are asked for
constexpr int64_t kFirstTokens = 16;  // asked for at once: of a longer burst much is dropped

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

}  // namespace

void AttentionPlan::prepare_unit(const AttentionLayer& layer, int64_t unit,
                                 AttentionScratch& scratch) {
  const int64_t row = unit / shape_.num_kv_heads;
  if (layer.new_keys != nullptr) store_head(layer, row, unit % shape_.num_kv_heads, scratch);
  if (rows_[row].limit > 0) load_queries(layer, unit, 0, scratch);
}

void AttentionPlan::prepare_share(const AttentionLayer& layer, int share,
                                  AttentionScratch& scratch) {
  const uint8_t* uses = uses_.data() + share * num_units();
  for (int64_t unit = 0; unit < num_units(); ++unit) {
    const int64_t later = unit + kUnitsAhead;
    if (later < num_units() && uses[later] != 0) {  // the other thread wrote half of them
      const int64_t width = shape_.num_heads / shape_.num_kv_heads * shape_.head_dim;
      const float* q = layer.q + later / shape_.num_kv_heads * layer.q_stride +
                       later % shape_.num_kv_heads * width;
      for (int64_t d = 0; d < width; d += kLineFloats) __builtin_prefetch(q + d);
    }
    if ((uses[unit] & kStores) != 0 && layer.new_keys != nullptr) {
      store_head(layer, unit / shape_.num_kv_heads, unit % shape_.num_kv_heads, scratch);
    }
    if ((uses[unit] & kQueries) != 0) load_queries(layer, unit, share, scratch);
  }
}

void AttentionPlan::load_queries(const AttentionLayer& layer, int64_t unit, int share,
                                 AttentionScratch& scratch) {
  const int64_t row = unit / shape_.num_kv_heads, kv_head = unit % shape_.num_kv_heads;
  const int64_t group = shape_.num_heads / shape_.num_kv_heads, width = padded(shape_.head_dim);
  const int64_t first = (share * static_cast<int64_t>(rows_.size()) + row) * shape_.num_heads;
  for (int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
    load_query(layer, row, h, queries_.data() + (first + h) * width, scratch);
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
  if (total == 0) {
    std::fill_n(out, head_dim, 0.0f);
  } else {
    for (int64_t d = 0; d < head_dim; ++d) out[d] = state[d] / total;
  }
}

// The state of a bundle from those of its splits.
void AttentionPlan::fold_bundle(int64_t row, int64_t head, int64_t bundle) {
  const int64_t stride = state_size(shape_.head_dim), place = row * shape_.num_heads + head;
  const int64_t first = bundle * kBundleSplits;
  const int64_t count = std::min(kBundleSplits, splits_of(rows_[row].limit) - first);
  kernels().bundle_states(states_.data() + (place * max_splits_ + first) * stride, count,
                          shape_.head_dim,
                          bundles_.data() + (place * max_bundles_ + bundle) * stride);
}

void AttentionPlan::fold_unit(const AttentionLayer& layer, int64_t unit,
                              AttentionScratch& scratch) {
  const int64_t row = unit / shape_.num_kv_heads, kv_head = unit % shape_.num_kv_heads;
  const int64_t group = shape_.num_heads / shape_.num_kv_heads;
  const int64_t num_bundles = bundles_of(splits_of(rows_[row].limit));
  const int64_t stride = state_size(shape_.head_dim);
  scratch.folded.resize(kMaxTileQueries * stride);
  float* folded = scratch.folded.data();
  const float* out = layer.out + row * layer.out_stride + kv_head * group * shape_.head_dim;
  for (int64_t d = 0; d < group * shape_.head_dim; d += kLineFloats) ask_to_write(out + d);
  for (int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
    for (int64_t bundle = 0; bundle < num_bundles; ++bundle) {
      if (is_bundled_[row * max_bundles_ + bundle] == 0) fold_bundle(row, h, bundle);
    }
    clear_state(folded, shape_.head_dim);
    kernels().fold_states(bundles_.data() + (row * shape_.num_heads + h) * max_bundles_ * stride,
                          num_bundles, shape_.head_dim, folded);
    write_out(layer, row, h, folded);
  }
}

KvHead AttentionPlan::head_of(const AttentionLayer& layer, const int32_t* table,
                              int64_t first_token, int64_t first_slot, int64_t kv_head) const {
  const KvLayout layout = layout_of(layer);
  const int64_t offset = first_slot * layout.block_stride + kv_head * layout.head_dim;
  const int64_t bytes = offset * element_bytes(layout.format);
  const int64_t scale = first_slot * layout.scale_block_stride + kv_head;
  const KvCache& cache = layer.cache;
  return {at_bytes(cache.keys, bytes),
          at_bytes(cache.values, bytes),
          cache.key_scales == nullptr ? nullptr : cache.key_scales + scale,
          cache.value_scales == nullptr ? nullptr : cache.value_scales + scale,
          table,
          first_token};
}

// What a split of an item's first row reads: of the shared tokens where it has any.
TokensAhead AttentionPlan::tokens_of(const AttentionLayer& layer, const Item& item, int64_t split,
                                     int64_t kv_head) const {
  const Source& source = sources_[item.source];
  const Row& row = rows_[item.row_begin];
  const int64_t begin = split * kSplitTokens, end = begin + kSplitTokens;
  if (begin < source.length) {
    const int64_t slot = std::max<int64_t>(source.first_slot, 0);
    return {head_of(layer, source.table, 0, slot, kv_head), begin, std::min(end, source.length)};
  }
  return {head_of(layer, row.tail_table, source.length, 0, kv_head), begin,
          row.tail_table == nullptr ? begin : std::min(end, row.limit)};
}

void AttentionPlan::prefetch_share(const AttentionLayer& layer, int share) const {
  if (share_begin_[share] == share_begin_[share + 1]) return;
  const Item& item = items_[share_begin_[share]];
  const KvLayout layout = layout_of(layer);
  const TokensAhead first = tokens_of(layer, item, item.first_split, item.kv_begin);
  const int64_t end = std::min(first.end, first.begin + kFirstTokens);
  const int64_t bytes = element_bytes(layout.format);
  for (int64_t token = first.begin; token < end; ++token) {
    const int64_t index = token - first.head.first_token;
    const int32_t* table = first.head.table;
    const int64_t block = table == nullptr ? 0 : index / layout.block_size;
    const int64_t slot = table == nullptr ? 0 : table[block];
    const int64_t at =
        slot * layout.block_stride + (index - block * layout.block_size) * layout.token_stride;
    for (int64_t i = 0; i < layout.head_dim * bytes; i += 64) {
      __builtin_prefetch(at_bytes(first.head.keys, at * bytes + i), 0, 2);
      __builtin_prefetch(at_bytes(first.head.values, at * bytes + i), 0, 2);
    }
  }
}

void AttentionPlan::run_item(const AttentionLayer& layer, int64_t index, int64_t end, int share,
                             AttentionScratch& scratch) {
  const Item& item = items_[index];
  for (int64_t h = item.kv_begin; h < item.kv_end; ++h) {
    TokensAhead after{};
    if (item.first_split != kAll) {
      if (h + 1 < item.kv_end) {
        after = tokens_of(layer, item, item.first_split, h + 1);
      } else if (index + 1 < end) {
        const Item& next = items_[index + 1];
        after = tokens_of(layer, next, next.first_split, next.kv_begin);
      }
    }
    run_tiles(layer, item, h, after, share, scratch);
  }
}

// The bundles that the item has whole. Another thread may have read them, a layer ago.
void AttentionPlan::fold_tile(const Item& item, const Tile& tile, int64_t row, int64_t first_head) {
  const int64_t heads = std::min(shape_.num_heads / shape_.num_kv_heads, kMaxTileQueries);
  const int64_t bundle = item.first_split / kBundleSplits, stride = state_size(shape_.head_dim);
  auto place_of = [&](int64_t i) {
    const int64_t place = (row + i / heads) * shape_.num_heads + first_head + i % heads;
    return bundles_.data() + (place * max_bundles_ + bundle) * stride;
  };
  for (int64_t i = 0; i < tile.num_queries + kFoldsAhead; ++i) {
    if (i < tile.num_queries) {
      const float* state = place_of(i);
      for (int64_t d = 0; d < stride; d += kLineFloats) ask_to_write(state + d);
    }
    const int64_t ready = i - kFoldsAhead;
    if (ready < 0) continue;
    const int64_t splits = splits_of(tile.queries[ready].limit) - item.first_split;
    if (splits <= 0 || !has_whole_bundle(item, row + ready / heads)) continue;
    kernels().bundle_states(tile.queries[ready].state, std::min(kBundleSplits, splits),
                            shape_.head_dim, place_of(ready));
  }
}

// One KV head of an item: its splits, each to a state, or all of its rows' tokens. `after` is what
// the thread reads next.
void AttentionPlan::run_tiles(const AttentionLayer& layer, const Item& item, int64_t kv_head,
                              const TokensAhead& after, int share, AttentionScratch& scratch) {
  const AttentionShape& s = layer.shape;
  const Kernels& k = kernels();
  const KvLayout layout = layout_of(layer);
  const Source& source = sources_[item.source];
  const int64_t group = s.num_heads / s.num_kv_heads, width = padded(s.head_dim);
  const int64_t stride = state_size(s.head_dim);
  const int64_t first_slot = std::max<int64_t>(source.first_slot, 0);
  const KvHead shared = head_of(layer, source.table, 0, first_slot, kv_head);
  const float* own_queries =
      queries_.data() + share * static_cast<int64_t>(rows_.size()) * s.num_heads * width;
  const bool is_split = item.first_split != kAll;
  const bool is_kept = is_split && keeps_states(item);
  if (!is_kept) scratch.states.resize(kMaxTileQueries * kBundleSplits * stride);
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
        KvHead& tail = tails[r - row];
        tail = shared;
        tail.table = rows_[r].tail_table;
        tail.first_token = source.length;
        for (int64_t h = 0; h < heads; ++h, ++count) {
          const int64_t place = r * s.num_heads + kv_head * group + head + h;
          queries[count] = {own_queries + place * width, rows_[r].limit, has_tail ? &tail : nullptr,
                            is_kept
                                ? states_.data() + (place * max_splits_ + item.first_split) * stride
                                : scratch.states.data() + count * kBundleSplits * stride};
        }
        longest = std::max(longest, rows_[r].limit);
      }
      Tile tile{&layout, &shared, 0, 0, source.length, queries, count, {}, &scratch.lines_ahead};
      if (is_split) {
        tile.begin = item.first_split * kSplitTokens;
        tile.end = std::min(longest, item.end_split * kSplitTokens);
        tile.ahead = after;
        k.attend(tile);
        fold_tile(item, tile, row, kv_head * group + head);
        continue;
      }
      fold_all(layer, tile, longest, scratch);
      count = 0;
      for (int64_t r = row; r < end; ++r) {
        for (int64_t h = 0; h < heads; ++h, ++count) {
          write_out(layer, r, kv_head * group + head + h, scratch.folded.data() + count * stride);
        }
      }
    }
  }
}

// All splits of a tile's queries, folded as the states of decode items are, to scratch.folded.
void AttentionPlan::fold_all(const AttentionLayer& layer, Tile& tile, int64_t longest,
                             AttentionScratch& scratch) const {
  const Kernels& k = kernels();
  const int64_t head_dim = layer.shape.head_dim, stride = state_size(head_dim);
  scratch.bundle.resize(stride);
  scratch.folded.resize(kMaxTileQueries * stride);
  float *bundle = scratch.bundle.data(), *folded = scratch.folded.data();
  for (int64_t q = 0; q < tile.num_queries; ++q) clear_state(folded + q * stride, head_dim);
  const int64_t num_splits = splits_of(longest);
  for (int64_t first = 0; first < num_splits; first += kBundleSplits) {
    const int64_t count = std::min(kBundleSplits, num_splits - first);
    tile.begin = first * kSplitTokens;
    tile.end = std::min(tile.begin + count * kSplitTokens, longest);
    k.attend(tile);
    for (int64_t q = 0; q < tile.num_queries; ++q) {
      k.bundle_states(tile.queries[q].state, count, head_dim, bundle);
      k.fold_states(bundle, 1, head_dim, folded + q * stride);
    }
  }
}

}  // namespace stagebeam::cpu
