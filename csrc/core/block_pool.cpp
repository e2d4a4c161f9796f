#include "block_pool.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

namespace stagebeam {
namespace {

constexpr int64_t kIndexMask = 0xFFFFFFFF;

[[noreturn]] void fail(const char* caller, const std::string& message) {
  throw std::invalid_argument(std::string(caller) + ": " + message);
}

void require_at_least(int64_t value, int64_t least, const char* caller, const char* name) {
  if (value >= least) return;
  fail(caller, std::string(name) + " must be at least " + std::to_string(least) + ", got " +
                   std::to_string(value));
}

}  // namespace

BlockPool::BlockPool(int32_t num_blocks, int32_t block_size) : block_size_(block_size) {
  require_at_least(num_blocks, 1, "BlockPool", "num_blocks");
  require_at_least(block_size, 1, "BlockPool", "block_size");
  const int64_t slots = int64_t{num_blocks} * block_size;
  if (slots > std::numeric_limits<int32_t>::max()) {
    fail("BlockPool", "num_blocks * block_size must fit int32 slots, got " + std::to_string(slots));
  }
  ref_counts_.assign(num_blocks, 0);
  leaving_.assign(num_blocks, 0);
  free_.resize(num_blocks);
  for (int32_t i = 0; i < num_blocks; ++i) free_[i] = num_blocks - 1 - i;
}

const BlockPool::Sequence& BlockPool::get(SeqId seq, const char* caller) const {
  const int64_t index = seq & kIndexMask;
  const bool is_known = seq > 0 && index < static_cast<int64_t>(sequences_.size()) &&
                        sequences_[index].is_alive && sequences_[index].generation == seq >> 32;
  if (!is_known) {
    fail(caller, "expected the id of a sequence that is alive, got " + std::to_string(seq) +
                     ", which is unknown or was released");
  }
  return sequences_[index];
}

BlockPool::Sequence& BlockPool::get(SeqId seq, const char* caller) {
  return const_cast<Sequence&>(static_cast<const BlockPool*>(this)->get(seq, caller));
}

void BlockPool::require_distinct(const SeqId* seqs, int64_t count, const char* caller) {
  ++mark_;
  for (int64_t i = 0; i < count; ++i) {
    get(seqs[i], caller);
    uint64_t& mark = marks_[seqs[i] & kIndexMask];
    if (mark == mark_) {
      fail(caller, "expected different sequences, got " + std::to_string(seqs[i]) + " twice");
    }
    mark = mark_;
  }
}

SeqId BlockPool::new_sequence() {
  if (free_sequences_.empty()) {
    free_sequences_.push_back(static_cast<int32_t>(sequences_.size()));
    sequences_.emplace_back();
    marks_.push_back(0);
  }
  const int32_t index = free_sequences_.back();
  free_sequences_.pop_back();
  sequences_[index].is_alive = true;
  return int64_t{sequences_[index].generation} << 32 | index;
}

void BlockPool::drop(SeqId seq) {
  Sequence& s = get(seq, "release");
  for (auto block = s.blocks.rbegin(); block != s.blocks.rend(); ++block) drop_block(*block);
  set_reserved(s, 0);
  const int32_t generation = s.generation;
  s = Sequence{};
  // A slot whose generations are used up is retired, so that a stale id can never match again.
  if (generation == std::numeric_limits<int32_t>::max()) return;
  s.generation = generation + 1;
  free_sequences_.push_back(static_cast<int32_t>(seq & kIndexMask));
}

std::optional<SeqId> BlockPool::create(int64_t reserve_tokens) {
  require_at_least(reserve_tokens, 0, "create", "reserve_tokens");
  if (reserve_tokens > capacity_tokens()) return std::nullopt;
  const int64_t need = blocks_for(0, reserve_tokens, false);
  if (need > num_available()) return std::nullopt;
  const SeqId id = new_sequence();
  Sequence& s = get(id, "create");
  set_reserved(s, need);
  s.promised = reserve_tokens;
  return id;
}

std::optional<std::vector<SeqId>> BlockPool::fork(SeqId seq, int32_t n, int64_t reserve_tokens) {
  require_at_least(n, 1, "fork", "n");
  require_at_least(reserve_tokens, 0, "fork", "reserve_tokens");
  Sequence& parent = get(seq, "fork");
  if (reserve_tokens > capacity_tokens()) return std::nullopt;
  const bool is_partial = has_partial_tail(parent);
  const int64_t child_need = blocks_for(parent.length, reserve_tokens, is_partial);
  const int64_t parent_need =
      std::max(parent.reserved, blocks_for(parent.length, parent.promised, is_partial));
  if (n * child_need + parent_need - parent.reserved > num_available()) return std::nullopt;

  set_reserved(parent, parent_need);
  for (int32_t block : parent.blocks) ref_counts_[block] += n;
  std::vector<SeqId> children(n);
  for (SeqId& id : children) {
    id = new_sequence();
    Sequence& child = get(id, "fork");
    const Sequence& from = get(seq, "fork");  // new_sequence may have moved the parent
    child.blocks = from.blocks;
    child.length = from.length;
    child.promised = reserve_tokens;
    set_reserved(child, child_need);
  }
  return children;
}

SeqId BlockPool::snapshot(SeqId seq) {
  Sequence& parent = get(seq, "snapshot");
  for (int32_t block : parent.blocks) ++ref_counts_[block];
  shrink_promise(parent);
  const SeqId id = new_sequence();
  Sequence& child = get(id, "snapshot");
  const Sequence& from = get(seq, "snapshot");  // new_sequence may have moved the parent
  child.blocks = from.blocks;
  child.length = from.length;
  return id;
}

void BlockPool::release(const std::vector<SeqId>& seqs) {
  require_distinct(seqs.data(), static_cast<int64_t>(seqs.size()), "release");
  for (SeqId seq : seqs) drop(seq);
}

void BlockPool::commit(SeqId winner, const std::vector<SeqId>& losers) {
  get(winner, "commit");
  require_distinct(losers.data(), static_cast<int64_t>(losers.size()), "commit");
  if (std::find(losers.begin(), losers.end(), winner) != losers.end()) {
    fail("commit", "the winner " + std::to_string(winner) + " is among the losers");
  }
  for (SeqId seq : losers) drop(seq);
  unreserve(winner);
}

// New blocks that `tokens` more need after `length`.
int64_t BlockPool::blocks_for(int64_t length, int64_t tokens, bool must_copy_tail) const {
  if (tokens == 0) return 0;
  const int64_t held = (length + block_size_ - 1) / block_size_;
  return (length + tokens + block_size_ - 1) / block_size_ - held + (must_copy_tail ? 1 : 0);
}

void BlockPool::set_reserved(Sequence& s, int64_t blocks) {
  num_reserved_ += blocks - s.reserved;
  s.reserved = blocks;
}

// Promise no more than the blocks of the reservation, and the tail, still surely hold.
void BlockPool::shrink_promise(Sequence& s) {
  int64_t room = s.reserved * block_size_;
  if (has_partial_tail(s)) {
    const int64_t tail_room = block_size_ - s.length % block_size_;
    if (!has_shared_tail(s)) {
      room += tail_room;
    } else if (room > 0) {
      room += tail_room - block_size_;
    }
  }
  s.promised = std::min(s.promised, room);
}

int32_t BlockPool::take_block(Sequence& s) {
  if (s.reserved > 0) set_reserved(s, s.reserved - 1);
  const int32_t block = free_.back();
  free_.pop_back();
  ref_counts_[block] = 1;
  peak_used_ = std::max(peak_used_, num_used());
  return block;
}

void BlockPool::drop_block(int32_t block) {
  if (--ref_counts_[block] == 0) free_.push_back(block);
}

void BlockPool::copy_shared_tail(Sequence& s, std::vector<BlockCopy>& copies) {
  const int32_t src = s.blocks.back(), dst = take_block(s);
  drop_block(src);
  s.blocks.back() = dst;
  copies.push_back({src, dst});
  ++num_copies_;
}

bool BlockPool::reserve(SeqId seq, int64_t num_tokens) {
  require_at_least(num_tokens, 0, "reserve", "num_tokens");
  Sequence& s = get(seq, "reserve");
  if (num_tokens > capacity_tokens()) return false;
  const int64_t need = std::max(s.reserved, blocks_for(s.length, num_tokens, has_shared_tail(s)));
  if (need - s.reserved > num_available()) return false;
  set_reserved(s, need);
  s.promised = std::max(s.promised, num_tokens);
  return true;
}

void BlockPool::unreserve(SeqId seq) {
  Sequence& s = get(seq, "unreserve");
  set_reserved(s, 0);
  s.promised = 0;
}

bool BlockPool::append(SeqId seq, int64_t n, int32_t* slots, std::vector<BlockCopy>& copies) {
  require_at_least(n, 0, "append", "n");
  Sequence& s = get(seq, "append");
  if (n == 0) return true;
  if (n > capacity_tokens()) return false;
  const bool must_copy = has_shared_tail(s);
  const int64_t need = blocks_for(s.length, n, must_copy);
  if (need - std::min(need, s.reserved) > num_available()) return false;

  if (must_copy) copy_shared_tail(s, copies);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t offset = s.length++ % block_size_;
    if (offset == 0) s.blocks.push_back(take_block(s));
    slots[i] = static_cast<int32_t>(s.blocks.back() * block_size_ + offset);
  }
  s.promised = std::max<int64_t>(s.promised - n, 0);
  return true;
}

bool BlockPool::append_one(const SeqId* seqs, int64_t count, int32_t* slots,
                           std::vector<BlockCopy>& copies) {
  require_distinct(seqs, count, "append_one");
  // Count first: an owner that copies its tail here leaves the block to the others, and the last
  // one writes in place.
  int64_t need = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Sequence& s = get(seqs[i], "append_one");
    bool takes_block = !has_partial_tail(s);
    if (!takes_block) {
      const int32_t tail = s.blocks.back();
      takes_block = ref_counts_[tail] - leaving_[tail] > 1;
      leaving_[tail] += takes_block;
    }
    need += takes_block && s.reserved == 0;
  }
  for (int64_t i = 0; i < count; ++i) {
    const Sequence& s = get(seqs[i], "append_one");
    if (has_partial_tail(s)) leaving_[s.blocks.back()] = 0;
  }
  if (need > num_available()) return false;

  for (int64_t i = 0; i < count; ++i) {
    const bool done = append(seqs[i], 1, slots + i, copies);
    if (!done) throw std::logic_error("append_one: the count of needed blocks is wrong");
  }
  return true;
}

void BlockPool::truncate(SeqId seq, int64_t length) {
  Sequence& s = get(seq, "truncate");
  if (length < 0 || length > s.length) {
    fail("truncate", "expected a length in 0 .. " + std::to_string(s.length) + ", got " +
                         std::to_string(length));
  }
  const auto held = static_cast<size_t>((length + block_size_ - 1) / block_size_);
  while (s.blocks.size() > held) {
    drop_block(s.blocks.back());
    s.blocks.pop_back();
  }
  s.length = length;
  shrink_promise(s);
}

}  // namespace stagebeam
