// Who attends to what: the lists of items, their shares and what these need.
#include <algorithm>

#include "attention.h"

namespace stagebeam::cpu {
namespace {

constexpr int64_t kPrefillRows = 16;  // rows of a prefill item: they share a read of their keys
constexpr int64_t kFewItems = 4;      // a thread
constexpr int64_t kGrowth = 16;       // tokens that rows gain before costs are looked at again
static_assert(kSplitTokens % kGrowth == 0);

int64_t trunk_of(const BranchRows& rows, int64_t group) {
  return rows.trunk_width > 0 ? rows.trunk_lens[group] : 0;
}

int64_t limit_of(const CrossRows& rows, int64_t group, int64_t row) {
  return rows.group_slots[group] < 0 ? 0 : rows.kv_lens[row];
}

}  // namespace

void AttentionPlan::reset(int64_t num_rows, const AttentionShape& shape, bool is_split) {
  kind_ = Kind::kNone;
  shape_ = shape;
  sources_.clear();
  items_.clear();
  rows_.assign(num_rows, Row{0, nullptr});
  is_split_ = is_split;
  max_splits_ = 0;
  if (!is_split) queries_.resize(num_rows * shape.num_heads * padded(shape.head_dim));
}

void AttentionPlan::keep_for(Kind kind, int num_threads, int64_t num_groups,
                             const int32_t* group_offsets) {
  num_threads_ = num_threads;
  group_offsets_.assign(group_offsets, group_offsets + (num_groups > 0 ? num_groups + 1 : 0));
  kind_ = kind;
}

bool AttentionPlan::was_made_for(Kind kind, const AttentionShape& shape, int num_threads,
                                 int64_t num_rows, int64_t num_groups,
                                 const int32_t* group_offsets) const {
  return kind_ == kind && shape_ == shape && num_threads_ == num_threads &&
         static_cast<int64_t>(rows_.size()) == num_rows &&
         static_cast<int64_t>(sources_.size()) == num_groups &&
         std::equal(group_offsets_.begin(), group_offsets_.end(), group_offsets);
}

// Whether items, their shares and all that follows from them are still right for rows whose tails
// have grown a little.
bool AttentionPlan::holds_for(const BranchRows& given, const AttentionShape& shape,
                              int num_threads) const {
  if (!was_made_for(Kind::kBranches, shape, num_threads, given.num_rows, given.num_groups,
                    given.group_offsets)) {
    return false;
  }
  for (int64_t g = 0; g < given.num_groups; ++g) {
    const int64_t trunk = trunk_of(given, g);
    if (sources_[g].table != given.trunk_tables + g * given.trunk_width ||
        sources_[g].length != trunk) {
      return false;
    }
    for (int64_t r = given.group_offsets[g]; r < given.group_offsets[g + 1]; ++r) {
      const int64_t limit = trunk + given.tail_lens[r];
      if (rows_[r].tail_table != given.tail_tables + r * given.tail_width ||
          (rows_[r].limit + kGrowth - 1) / kGrowth != (limit + kGrowth - 1) / kGrowth) {
        return false;
      }
    }
  }
  return true;
}

bool AttentionPlan::holds_for(const CrossRows& given, const AttentionShape& shape,
                              int num_threads) const {
  const int64_t num_rows = given.num_groups > 0 ? given.group_offsets[given.num_groups] : 0;
  if (!was_made_for(Kind::kCross, shape, num_threads, num_rows, given.num_groups,
                    given.group_offsets)) {
    return false;
  }
  for (int64_t g = 0; g < given.num_groups; ++g) {
    if (sources_[g].first_slot != given.group_slots[g]) return false;
    for (int64_t r = given.group_offsets[g]; r < given.group_offsets[g + 1]; ++r) {
      if (rows_[r].limit != limit_of(given, g, r)) return false;
    }
  }
  return true;
}

// Splits first .. last - 1 of a KV head.
void AttentionPlan::add_split_items(int32_t source, int32_t begin, int32_t end, int32_t kv_head,
                                    int64_t first, int64_t last) {
  for (int64_t split = first; split < last; ++split) {
    items_.push_back({source, begin, end, kv_head, kv_head + 1, static_cast<int32_t>(split)});
  }
}

// About how long an item takes: a token's reading and unpacking, and its queries.
int64_t AttentionPlan::cost_of(const Item& item) const {
  constexpr int64_t kToken = 45, kTokenQuery = 5, kTile = 700;
  const int64_t group = shape_.num_heads / shape_.num_kv_heads,
                shared = sources_[item.source].length;
  const int64_t begin = item.split * kSplitTokens, end = begin + kSplitTokens;
  const int64_t rows = item.row_end - item.row_begin;
  const int64_t tokens = std::max<int64_t>(0, std::min(end, shared) - begin);
  int64_t cost = kTile + tokens * (kToken + kTokenQuery * group * rows);
  for (int64_t r = item.row_begin; r < item.row_end; ++r) {
    const int64_t own = std::min(end, rows_[r].limit) - std::max(begin, shared);
    if (own > 0) cost += kTile + own * (kToken + kTokenQuery * group);
  }
  return cost;
}

// Gives each thread a run of items of about equal cost; those that differ in the head alone become
// one.
void AttentionPlan::share_items(int num_shares) {
  int64_t total = 0, before = 0;
  for (const Item& item : items_) total += cost_of(item);
  share_begin_.assign(num_shares + 1, 0);
  size_t kept = 0;
  int share = 0;
  for (size_t i = 0; i < items_.size(); ++i) {
    const Item item = items_[i];
    const int64_t cost = cost_of(item);
    // An item belongs where its middle falls.
    bool is_new = i == 0;
    while (share + 1 < num_shares && (before + cost / 2) * num_shares >= total * (share + 1)) {
      share_begin_[++share] = static_cast<int64_t>(kept);
      is_new = true;
    }
    before += cost;
    Item* last = is_new ? nullptr : &items_[kept - 1];
    if (last != nullptr && last->row_begin == item.row_begin && last->row_end == item.row_end &&
        last->split == item.split && last->kv_end == item.kv_begin) {
      last->kv_end = item.kv_end;
    } else {
      items_[kept++] = item;
    }
  }
  items_.resize(kept);
  while (share < num_shares) share_begin_[++share] = static_cast<int64_t>(kept);

  const auto num_rows = static_cast<int64_t>(rows_.size());
  states_.resize(num_rows * shape_.num_heads * max_splits_ * state_size(shape_.head_dim));
  find_uses(num_shares);
  find_folders(num_shares);
}

// A unit is folded by a share that has items of it, of several by the one with the fewest units.
void AttentionPlan::find_folders(int num_shares) {
  std::vector<int64_t> counts(num_shares, 0);
  folder_.assign(num_units(), 0);
  is_shared_.assign(num_units(), 0);
  has_shared_units_ = false;
  for (int64_t unit = 0; unit < num_units(); ++unit) {
    int best = -1;
    for (int share = 0; share < num_shares; ++share) {
      if ((uses_[share * num_units() + unit] & kQueries) == 0) continue;
      is_shared_[unit] = best >= 0;
      if (best < 0 || counts[share] < counts[best]) best = share;
    }
    has_shared_units_ = has_shared_units_ || is_shared_[unit] != 0;
    folder_[unit] = std::max(best, 0);
    ++counts[folder_[unit]];
  }
}

// What each share needs of a row and KV head. The share that reads a row's last token stores it; of
// rows without tokens the first.
void AttentionPlan::find_uses(int num_shares) {
  const int64_t units = num_units(), heads = shape_.num_kv_heads;
  queries_.resize(num_shares * units / heads * shape_.num_heads * padded(shape_.head_dim));
  uses_.assign(num_shares * units, 0);
  for (int64_t unit = 0; unit < units; ++unit) {
    if (rows_[unit / heads].limit == 0) uses_[unit] = kStores;
  }
  for (int share = 0; share < num_shares; ++share) {
    for (int64_t i = share_begin_[share]; i < share_begin_[share + 1]; ++i) {
      const Item& item = items_[i];
      for (int64_t r = item.row_begin; r < item.row_end; ++r) {
        const int64_t last = splits_of(rows_[r].limit) - 1;
        const bool has_last = item.split == last;
        for (int64_t h = item.kv_begin; h < item.kv_end; ++h) {
          uses_[share * units + r * heads + h] |= kQueries | (has_last ? kStores : 0);
        }
      }
    }
  }
}

void AttentionPlan::plan_branches(const BranchRows& given, const AttentionShape& shape,
                                  int num_threads) {
  if (holds_for(given, shape, num_threads)) {
    for (int64_t g = 0; g < given.num_groups; ++g) {
      for (int64_t r = given.group_offsets[g]; r < given.group_offsets[g + 1]; ++r) {
        rows_[r].limit = sources_[g].length + given.tail_lens[r];
      }
    }
    return;
  }
  reset(given.num_rows, shape, true);
  for (int64_t g = 0; g < given.num_groups; ++g) {
    const int64_t trunk = trunk_of(given, g);
    sources_.push_back({given.trunk_tables + g * given.trunk_width, 0, trunk});
    const auto source = static_cast<int32_t>(g);
    const int32_t begin = given.group_offsets[g], end = given.group_offsets[g + 1];
    for (int32_t r = begin; r < end; ++r) {
      rows_[r] = {trunk + given.tail_lens[r], given.tail_tables + r * given.tail_width};
      max_splits_ = std::max(max_splits_, splits_of(rows_[r].limit));
    }
    // Head by head: few rows then have splits on two threads, which must read each other's states.
    for (int32_t h = 0; h < shape.num_kv_heads && begin < end; ++h) {
      const auto first = static_cast<int64_t>(items_.size());
      add_split_items(source, begin, end, h, 0, splits_of(trunk));
      const int64_t num_shared = static_cast<int64_t>(items_.size()) - first;
      for (int32_t r = begin; r < end; ++r) {
        add_split_items(source, r, r + 1, h, splits_of(trunk), splits_of(rows_[r].limit));
      }
      // Small items in the middle, where two threads' shares may meet.
      const auto shared = items_.begin() + first;
      std::rotate(shared + num_shared / 2, shared + num_shared, items_.end());
    }
  }
  share_items(num_threads);
  keep_for(Kind::kBranches, num_threads, given.num_groups, given.group_offsets);
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

// Neighbouring groups that look at one image are one item, since its keys are then read once. Where
// such items are few and do not go round, each thread has some of their rows.
void AttentionPlan::add_image_items(const CrossRows& given, int num_threads) {
  std::vector<int32_t> starts;  // first groups
  int64_t num_items = 0;
  for (int32_t g = 0; g < given.num_groups; ++g) {
    const bool is_new = starts.empty() || given.group_slots[g] < 0 ||
                        given.group_slots[g] != given.group_slots[starts.back()];
    if (is_new) starts.push_back(g);
    Source& source = sources_[starts.back()];
    source.length = std::max(source.length, sources_[g].length);
  }
  starts.push_back(static_cast<int32_t>(given.num_groups));
  const int64_t num_images = static_cast<int64_t>(starts.size()) - 1;
  for (int64_t i = 0; i < num_images; ++i) {
    num_items += shape_.num_kv_heads * splits_of(sources_[starts[i]].length);
  }
  const bool is_uneven = num_items < kFewItems * num_threads && num_items % num_threads != 0;
  for (int64_t i = 0; i < num_images; ++i) {
    const int32_t begin = given.group_offsets[starts[i]];
    const int32_t count = given.group_offsets[starts[i + 1]] - begin;
    const int32_t parts = std::min(count, is_uneven ? num_threads : 1);
    for (int32_t part = 0; part < parts; ++part) {
      for (int32_t h = 0; h < shape_.num_kv_heads; ++h) {
        add_split_items(starts[i], begin + count * part / parts, begin + count * (part + 1) / parts,
                        h, 0, splits_of(sources_[starts[i]].length));
      }
    }
  }
}

void AttentionPlan::plan_cross(const CrossRows& given, const AttentionShape& shape,
                               int num_threads) {
  if (holds_for(given, shape, num_threads)) return;
  const int64_t num_rows = given.num_groups > 0 ? given.group_offsets[given.num_groups] : 0;
  reset(num_rows, shape, num_rows <= kMaxTileQueries);
  for (int64_t g = 0; g < given.num_groups; ++g) {
    const auto source = static_cast<int32_t>(g);
    const int32_t begin = given.group_offsets[g], end = given.group_offsets[g + 1];
    int64_t longest = 0;
    for (int64_t r = begin; r < end; ++r) {
      rows_[r] = {limit_of(given, g, r), nullptr};
      longest = std::max(longest, rows_[r].limit);
    }
    sources_.push_back({nullptr, given.group_slots[g], longest});
    max_splits_ = std::max(max_splits_, splits_of(longest));
    if (is_split_) continue;
    for (int32_t r = begin; r < end; r += kPrefillRows) {
      const auto last = std::min<int32_t>(end, r + kPrefillRows);
      for (int32_t h = 0; h < shape.num_kv_heads; ++h) {
        items_.push_back({source, r, last, h, h + 1, kAll});
      }
    }
  }
  if (is_split_) {
    add_image_items(given, num_threads);
    share_items(num_threads);
  }
  keep_for(Kind::kCross, num_threads, given.num_groups, given.group_offsets);
}

bool AttentionPlan::has_row_of(int64_t item, const uint8_t* is_marked) const {
  const Item& rows = items_[item];
  return std::any_of(is_marked + rows.row_begin, is_marked + rows.row_end,
                     [](uint8_t mark) { return mark != 0; });
}

int64_t AttentionPlan::kv_bytes(CacheFormat format) const {
  int64_t tokens = 0;  // times KV heads
  for (const Item& item : items_) {
    const int64_t heads = item.kv_end - item.kv_begin;
    const int64_t shared = sources_[item.source].length;
    int64_t longest = 0;
    for (int64_t r = item.row_begin; r < item.row_end; ++r) {
      longest = std::max(longest, rows_[r].limit);
    }
    const bool is_all = item.split == kAll;
    const int64_t begin = is_all ? 0 : item.split * kSplitTokens;
    const int64_t end = is_all ? longest : std::min(begin + kSplitTokens, longest);
    tokens += heads * std::max<int64_t>(0, std::min(end, shared) - begin);
    for (int64_t r = item.row_begin; r < item.row_end; ++r) {
      tokens +=
          heads * std::max<int64_t>(0, std::min(end, rows_[r].limit) - std::max(begin, shared));
    }
  }
  const int64_t scale = format == CacheFormat::kInt8 ? sizeof(float) : 0;
  return 2 * tokens * (shape_.head_dim * element_bytes(format) + scale);
}

}  // namespace stagebeam::cpu
