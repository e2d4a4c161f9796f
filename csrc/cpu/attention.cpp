#include "attention.h"

#include <algorithm>
#include <utility>

#include "prefetch.h"

namespace stagebeam::cpu {
namespace {

constexpr int64_t kLineFloats = 16;
constexpr int64_t kUnitsAhead = 4;  // units whose queries are asked for

template <typename T>
T* at_bytes(T* base, int64_t bytes) {
  return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(base) + bytes);
}

KvLayout layout_of(const AttentionLayer& layer) {
  const KvCache& cache = layer.cache;
  const int64_t head_dim = layer.shape.head_dim, scale_stride = cache.token_stride / head_dim;
  return {cache.format,       head_dim,
          cache.block_size,   cache.block_size * cache.token_stride,
          cache.token_stride, cache.block_size * scale_stride,
          scale_stride};
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
  const int64_t place = slot * cache.token_stride + kv_head * cache.head_stride;
  const int64_t bytes = place * element_bytes(cache.format), scale = place / s.head_dim;
  const int64_t from = row * layer.new_stride + kv_head * s.head_dim;
  scratch.head.resize(s.head_dim);
  std::copy_n(layer.new_keys + from, s.head_dim, scratch.head.data());
  if (layer.cos_sin != nullptr) {
    k.rotate(scratch.head.data(), layer.cos_sin + layer.positions[row] * s.head_dim, s.head_dim);
  }
  const bool is_scaled = cache.key_scales != nullptr;
  k.store_head(scratch.head.data(), s.head_dim, cache.format, at_bytes(cache.keys, bytes),
               is_scaled ? cache.key_scales + scale : nullptr);
  k.store_head(layer.new_values + from, s.head_dim, cache.format, at_bytes(cache.values, bytes),
               is_scaled ? cache.value_scales + scale : nullptr);
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

void AttentionPlan::fold_unit(const AttentionLayer& layer, int64_t unit,
                              AttentionScratch& scratch) {
  const int64_t row = unit / shape_.num_kv_heads, kv_head = unit % shape_.num_kv_heads;
  const int64_t group = shape_.num_heads / shape_.num_kv_heads;
  const int64_t num_splits = splits_of(rows_[row].limit), stride = state_size(shape_.head_dim);
  scratch.folded.resize(kMaxTileQueries * stride);
  float* folded = scratch.folded.data();
  const float* out = layer.out + row * layer.out_stride + kv_head * group * shape_.head_dim;
  for (int64_t d = 0; d < group * shape_.head_dim; d += kLineFloats) ask_to_write(out + d);
  for (int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
    clear_state(folded, shape_.head_dim);
    kernels().fold_states(states_.data() + (row * shape_.num_heads + h) * max_splits_ * stride,
                          num_splits, shape_.head_dim, folded);
    write_out(layer, row, h, folded);
  }
}

KvHead AttentionPlan::head_of(const AttentionLayer& layer, const int32_t* table,
                              int64_t first_token, int64_t first_slot, int64_t kv_head) const {
  const KvLayout layout = layout_of(layer);
  const KvCache& cache = layer.cache;
  const int64_t place = first_slot * layout.block_stride + kv_head * cache.head_stride;
  const int64_t bytes = place * element_bytes(layout.format), scale = place / layout.head_dim;
  return {at_bytes(cache.keys, bytes),
          at_bytes(cache.values, bytes),
          cache.key_scales == nullptr ? nullptr : cache.key_scales + scale,
          cache.value_scales == nullptr ? nullptr : cache.value_scales + scale,
          table,
          first_token};
}

// What an item's first row reads: of the shared tokens where it has any.
TokensAhead AttentionPlan::tokens_of(const AttentionLayer& layer, const Item& item,
                                     int64_t kv_head) const {
  const Source& source = sources_[item.source];
  const Row& row = rows_[item.row_begin];
  const int64_t begin = item.split * kSplitTokens, end = begin + kSplitTokens;
  if (begin < source.length) {
    const int64_t slot = std::max<int64_t>(source.first_slot, 0);
    return {head_of(layer, source.table, 0, slot, kv_head), begin, std::min(end, source.length)};
  }
  return {head_of(layer, row.tail_table, source.length, 0, kv_head), begin,
          row.tail_table == nullptr ? begin : std::min(end, row.limit)};
}

// The tiles of a run of items: of each KV head of an item some rows' queries, as many as fit.
class AttentionPlan::ItemTiles : public TileSource {
 public:
  ItemTiles(AttentionPlan& plan, const AttentionLayer& layer, int64_t begin, int64_t end, int share,
            const uint8_t* is_marked, AttentionScratch& scratch)
      : TileSource(layout_of(layer), &scratch.lines_ahead),
        plan_(plan),
        layer_(layer),
        end_(end),
        is_marked_(is_marked),
        scratch_(scratch) {
    const int64_t width = padded(layer.shape.head_dim);
    const auto rows = static_cast<int64_t>(plan.rows_.size());
    queries_ = plan.queries_.data() + share * rows * layer.shape.num_heads * width;
    turn_to(begin);
  }

  const Tile* next() override {
    if (item_ == end_) return nullptr;
    const AttentionShape& s = layer_.shape;
    const int64_t group = s.num_heads / s.num_kv_heads;
    const int64_t rows_a_tile = std::max<int64_t>(1, kMaxTileQueries / group);
    const Item& item = plan_.items_[item_];
    int i = 0;
    while (slots_[i].is_used) ++i;
    Slot& slot = slots_[i];
    slot.is_used = true;
    slot.item = &item;
    slot.row = row_;
    slot.row_end = std::min<int64_t>(item.row_end, row_ + rows_a_tile);
    slot.first_head = kv_head_ * group + head_;
    slot.num_heads = std::min(group - head_, kMaxTileQueries);
    head_ += kMaxTileQueries;  // more heads than a tile holds
    if (head_ >= group) {
      head_ = 0;
      row_ = slot.row_end;
    }
    const int64_t kv_head = kv_head_;
    if (row_ == item.row_end && ++kv_head_ == item.kv_end) {
      turn_to(item_ + 1);
    } else if (row_ == item.row_end) {
      row_ = item.row_begin;
    }
    fill(slot, kv_head);
    return &slot.tile;
  }

  void done(const Tile& tile) override {
    int i = 0;
    while (&slots_[i].tile != &tile) ++i;
    Slot& slot = slots_[i];
    slot.is_used = false;
    if (!plan_.is_split_) plan_.fold_all(layer_, tile, slot.row, slot.first_head, scratch_);
  }

  TokensAhead after() const override {
    if (!plan_.is_split_ || item_ == end_) return {};
    return plan_.tokens_of(layer_, plan_.items_[item_], kv_head_);
  }

 private:
  struct Slot {
    bool is_used = false;
    const Item* item;
    int64_t row, row_end, first_head, num_heads;
    Tile tile;
    KvHead shared;
    Query queries[kMaxTileQueries];
    KvHead tails[kMaxTileQueries];
  };

  void turn_to(int64_t item) {
    while (item < end_ && is_marked_ != nullptr && !plan_.has_row_of(item, is_marked_)) ++item;
    item_ = item;
    if (item == end_) return;
    kv_head_ = plan_.items_[item].kv_begin;
    row_ = plan_.items_[item].row_begin;
    head_ = 0;
  }

  void fill(Slot& slot, int64_t kv_head) {
    const AttentionShape& s = layer_.shape;
    const Item& item = *slot.item;
    const Source& source = plan_.sources_[item.source];
    const int64_t width = padded(s.head_dim), stride = state_size(s.head_dim);
    slot.shared =
        plan_.head_of(layer_, source.table, 0, std::max<int64_t>(source.first_slot, 0), kv_head);
    int64_t count = 0, longest = 0;
    for (int64_t r = slot.row; r < slot.row_end; ++r) {
      const Row& row = plan_.rows_[r];
      KvHead& tail = slot.tails[r - slot.row];
      tail = slot.shared;
      tail.table = row.tail_table;
      tail.first_token = source.length;
      for (int64_t h = 0; h < slot.num_heads; ++h, ++count) {
        const int64_t place = r * s.num_heads + slot.first_head + h;
        float* state = plan_.is_split_ ? plan_.states_.data() +
                                             (place * plan_.max_splits_ + item.split) * stride
                                       : scratch_.states.data() + count * stride;
        for (int64_t d = 0; d < stride; d += kLineFloats) ask_to_write(state + d);
        slot.queries[count] = {queries_ + place * width, row.limit,
                               row.tail_table != nullptr ? &tail : nullptr, state};
      }
      longest = std::max(longest, row.limit);
    }
    slot.tile = {&layout_, &slot.shared, 0, longest, source.length, slot.queries, count};
    if (!plan_.is_split_) return;
    slot.tile.begin = item.split * kSplitTokens;
    slot.tile.end = std::min(longest, slot.tile.begin + kSplitTokens);
  }

  AttentionPlan& plan_;
  const AttentionLayer& layer_;
  int64_t item_, end_;
  int64_t kv_head_, row_, head_;  // of the next tile
  const uint8_t* is_marked_;
  AttentionScratch& scratch_;
  const float* queries_;
  Slot slots_[kMostTiles];
};

// A tile of a source of its own.
class OneTile : public TileSource {
 public:
  OneTile(const Tile& tile, LinesAhead* lines_ahead)
      : TileSource(*tile.layout, lines_ahead), tile_(&tile) {}
  const Tile* next() override { return std::exchange(tile_, nullptr); }
  void done(const Tile&) override {}

 private:
  const Tile* tile_;
};

void AttentionPlan::run_items(const AttentionLayer& layer, int64_t begin, int64_t end, int share,
                              const uint8_t* is_marked, AttentionScratch& scratch) {
  if (!is_split_) scratch.states.resize(kMaxTileQueries * state_size(shape_.head_dim));
  ItemTiles tiles(*this, layer, begin, end, share, is_marked, scratch);
  if (is_split_) return kernels().attend(tiles);
  each_tile(tiles, [](const Tile&) {});
}

// All splits of a tile's queries, folded as the states of decode items are, to their outputs.
void AttentionPlan::fold_all(const AttentionLayer& layer, const Tile& whole, int64_t row,
                             int64_t first_head, AttentionScratch& scratch) const {
  const Kernels& k = kernels();
  const int64_t head_dim = layer.shape.head_dim, stride = state_size(head_dim);
  const int64_t heads = std::min(shape_.num_heads / shape_.num_kv_heads, kMaxTileQueries);
  scratch.folded.resize(kMaxTileQueries * stride);
  float* folded = scratch.folded.data();
  for (int64_t q = 0; q < whole.num_queries; ++q) clear_state(folded + q * stride, head_dim);
  Tile tile = whole;
  for (tile.begin = 0; tile.begin < whole.end; tile.begin += kSplitTokens) {
    tile.end = std::min(tile.begin + kSplitTokens, whole.end);
    OneTile one(tile, &scratch.lines_ahead);
    k.attend(one);
    for (int64_t q = 0; q < tile.num_queries; ++q) {
      k.fold_states(tile.queries[q].state, 1, head_dim, folded + q * stride);
    }
  }
  for (int64_t q = 0; q < whole.num_queries; ++q) {
    write_out(layer, row + q / heads, first_head + q % heads, folded + q * stride);
  }
}

}  // namespace stagebeam::cpu
