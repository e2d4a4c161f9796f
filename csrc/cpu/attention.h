// Attention of a whole layer as a list of items.
//
// A plan says who attends to what and is made once a pass, for all layers; running it needs a
// layer's arrays. Decode items are splits of the cache: a trunk's splits are read once for all
// branches of its group, and rows are folded from their splits' states behind a barrier. A thread's
// share of them lies side by side and is the same in every layer, so that it reads long streams and
// keeps its states to itself. Prefill items are rows, which threads take one by one.
// Invariant: a row's output depends on its tokens alone, not on its group or the number of threads.
#pragma once

#include <cstdint>
#include <vector>

#include "aligned_memory.h"
#include "kernels.h"

namespace stagebeam::cpu {

struct AttentionShape {
  int64_t num_heads;
  int64_t num_kv_heads;
  int64_t head_dim;
  float sm_scale;
  bool operator==(const AttentionShape&) const = default;
};

// A layer's cache: [num_blocks, block_size, num_kv_heads, head_dim], or image slots
// [num_slots, vision_tokens, num_kv_heads, head_dim]; int8 has [.., .., num_kv_heads] scales
// beside, in the same order. Strides are in elements between tokens and between heads; blocks lie
// one behind the other. A head's tokens side by side are read fastest.
struct KvCache {
  CacheFormat format;
  int64_t block_size;  // of image slots: vision_tokens
  int64_t token_stride;
  int64_t head_stride;
  void* keys;
  void* values;
  float* key_scales;
  float* value_scales;
};

// What a layer computes with. Strides are in elements between rows.
struct AttentionLayer {
  AttentionShape shape;
  KvCache cache;
  const float* q;  // [num_rows, num_heads, head_dim]
  int64_t q_stride;
  const float* q_norm = nullptr;  // [head_dim]: RMSNorm of each query head first
  float eps = 0;
  const float* cos_sin = nullptr;  // [max_positions, head_dim]: rotates queries and new keys
  const int64_t* positions = nullptr;
  const float* new_keys =
      nullptr;  // [num_rows, num_kv_heads, head_dim], stored before they are read
  const float* new_values = nullptr;
  int64_t new_stride = 0;
  const int32_t* slots = nullptr;  // where new keys and values go; -1 skips
  float* out = nullptr;            // [num_rows, num_heads * head_dim]
  int64_t out_stride = 0;
};

// The op contracts in kernels/{branch,prefill,cross}_attention say what these arrays hold.
struct BranchRows {
  int64_t num_rows;
  int64_t num_groups;
  const int32_t* group_offsets;
  const int32_t* trunk_tables;
  int64_t trunk_width;
  const int32_t* trunk_lens;
  const int32_t* tail_tables;
  int64_t tail_width;
  const int32_t* tail_lens;
};
struct PrefillRows {
  int64_t num_seqs;
  const int32_t* cu_seqlens_q;
  const int32_t* seq_lens;
  const int32_t* block_tables;
  int64_t table_width;
};
struct CrossRows {
  int64_t num_groups;
  const int32_t* group_offsets;
  const int32_t* group_slots;
  const int32_t* kv_lens;
};

constexpr int64_t splits_of(int64_t tokens) {
  return (tokens + kSplitTokens - 1) / kSplitTokens;
}

// A thread's working memory.
struct AttentionScratch {
  LineFloats states;  // of a tile's queries
  std::vector<float> folded, head;
  LinesAhead lines_ahead;
};

class AttentionPlan {
 public:
  // The arrays that a plan is made from must outlive it. A plan that still holds, as it does for
  // most steps of a decode, is kept.
  void plan_branches(const BranchRows& rows, const AttentionShape& shape, int num_threads);
  void plan_prefill(const PrefillRows& rows, const AttentionShape& shape);
  void plan_cross(const CrossRows& rows, const AttentionShape& shape, int num_threads);

  int64_t num_items() const { return static_cast<int64_t>(items_.size()); }
  const AttentionShape& shape() const { return shape_; }
  // Whether threads have shares of the items, and rows are folded after all of them.
  bool is_split() const { return is_split_; }
  int64_t first_item(int share) const { return share_begin_[share]; }  // share <= num_threads

  // A unit is a row and KV head. Unless is_split: makes its queries ready, and stores its new key
  // and value; all units run before any item, in any order, on any thread.
  int64_t num_units() const { return static_cast<int64_t>(rows_.size()) * shape_.num_kv_heads; }
  void prepare_unit(const AttentionLayer& layer, int64_t unit, AttentionScratch& scratch);
  // Where is_split: the same for what a share's items need, by the thread that runs them.
  void prepare_share(const AttentionLayer& layer, int share, AttentionScratch& scratch);

  // Runs items begin .. end - 1; every item runs once a layer, in any order, on any thread. `share`
  // is their share, 0 unless is_split. Items without a marked row, [num_rows], are left out; null
  // marks all.
  void run_items(const AttentionLayer& layer, int64_t begin, int64_t end, int share,
                 const uint8_t* is_marked, AttentionScratch& scratch);
  // Which share had better fold a unit, where is_split: the unit's states are near.
  int folder(int64_t unit) const { return folder_[unit]; }
  // Whether a unit, or any, has items of several shares.
  bool is_shared(int64_t unit) const { return is_shared_[unit] != 0; }
  bool has_shared_units() const { return has_shared_units_; }
  // Writes the output of a unit's row and KV head: after all its items.
  void fold_unit(const AttentionLayer& layer, int64_t unit, AttentionScratch& scratch);

  // Cache bytes that one layer's items read from memory, for measurements.
  int64_t kv_bytes(CacheFormat format) const;

 private:
  struct Source {  // tokens that rows share: a trunk, a prompt or an image
    const int32_t* table;
    int64_t first_slot;  // of an image; -1 for none
    int64_t length;
  };
  struct Row {
    int64_t limit;              // tokens attended to, 0 for none
    const int32_t* tail_table;  // null where all of them are shared
  };
  // Rows begin .. end - 1, KV heads kv_begin .. kv_end - 1, a split of their source; kAll stands
  // for all splits in order.
  struct Item {
    int32_t source, row_begin, row_end, kv_begin, kv_end, split;
  };
  class ItemTiles;
  static constexpr int32_t kAll = -1;
  enum class Kind { kNone, kBranches, kCross };  // what a plan may be kept for
  enum Use : uint8_t { kQueries = 1, kStores = 2 };

  void reset(int64_t num_rows, const AttentionShape& shape, bool is_split);
  void keep_for(Kind kind, int num_threads, int64_t num_groups, const int32_t* group_offsets);
  bool was_made_for(Kind kind, const AttentionShape& shape, int num_threads, int64_t num_rows,
                    int64_t num_groups, const int32_t* group_offsets) const;
  bool holds_for(const BranchRows& given, const AttentionShape& shape, int num_threads) const;
  bool holds_for(const CrossRows& given, const AttentionShape& shape, int num_threads) const;
  void add_split_items(int32_t source, int32_t begin, int32_t end, int32_t kv_head, int64_t first,
                       int64_t last);
  void add_image_items(const CrossRows& given, int num_threads);
  void share_items(int num_shares);
  void find_uses(int num_shares);
  void find_folders(int num_shares);
  int64_t cost_of(const Item& item) const;
  void store_head(const AttentionLayer& layer, int64_t row, int64_t kv_head,
                  AttentionScratch& scratch) const;
  void load_query(const AttentionLayer& layer, int64_t row, int64_t head, float* out,
                  AttentionScratch& scratch) const;
  void write_out(const AttentionLayer& layer, int64_t row, int64_t head, const float* state) const;
  KvHead head_of(const AttentionLayer& layer, const int32_t* table, int64_t first_token,
                 int64_t first_slot, int64_t kv_head) const;
  TokensAhead tokens_of(const AttentionLayer& layer, const Item& item, int64_t kv_head) const;
  void load_queries(const AttentionLayer& layer, int64_t unit, int share,
                    AttentionScratch& scratch);
  bool has_row_of(int64_t item, const uint8_t* is_marked) const;
  void fold_all(const AttentionLayer& layer, const Tile& whole, int64_t row, int64_t first_head,
                AttentionScratch& scratch) const;

  Kind kind_ = Kind::kNone;
  int num_threads_ = 0;
  AttentionShape shape_{};
  std::vector<int32_t> group_offsets_;
  std::vector<Source> sources_;
  std::vector<Row> rows_;
  std::vector<Item> items_;
  std::vector<int64_t> share_begin_;
  bool is_split_ = false;
  int64_t max_splits_ = 0;
  LineFloats queries_;              // [num_shares, num_rows, num_heads, padded(head_dim)]
  std::vector<uint8_t> uses_;       // [num_shares, num_units]: kQueries, and kStores for one share
  std::vector<int32_t> folder_;     // [num_units]: a share
  std::vector<uint8_t> is_shared_;  // [num_units]
  bool has_shared_units_ = false;
  LineFloats states_;  // [num_rows, num_heads, max_splits] states
};

}  // namespace stagebeam::cpu
