// What BlockPool shows without changing anything: tables, counts and its own check.
#include <algorithm>
#include <stdexcept>

#include "block_pool.h"

namespace stagebeam {

void BlockPool::fill_block_tables(const SeqId* seqs, int64_t count, int64_t start_block,
                                  int64_t width, int64_t row_stride, int32_t* out) const {
  if (start_block < 0) {
    throw std::invalid_argument("fill_block_tables: start_block must be at least 0, got " +
                                std::to_string(start_block));
  }
  for (int64_t row = 0; row < count; ++row) {
    const auto size = static_cast<int64_t>(get(seqs[row], "fill_block_tables").blocks.size());
    if (size - start_block > width) {
      throw std::invalid_argument("fill_block_tables: row " + std::to_string(row) + " needs " +
                                  std::to_string(size - start_block) +
                                  " columns, got an array of " + std::to_string(width));
    }
  }
  for (int64_t row = 0; row < count; ++row) {
    const auto& blocks = get(seqs[row], "fill_block_tables").blocks;
    const int64_t first = std::min(start_block, static_cast<int64_t>(blocks.size()));
    int32_t* end = std::copy(blocks.begin() + first, blocks.end(), out + row * row_stride);
    std::fill(end, out + row * row_stride + width, kNoBlock);
  }
}

int64_t BlockPool::num_shared_blocks(const std::vector<SeqId>& seqs) const {
  if (seqs.empty()) return 0;
  const Sequence& first = get(seqs[0], "num_shared_blocks");
  int64_t shared = first.length / block_size_;
  for (SeqId seq : seqs) {
    const Sequence& s = get(seq, "num_shared_blocks");
    shared = std::min(shared, s.length / block_size_);
    shared =
        std::mismatch(s.blocks.begin(), s.blocks.begin() + shared, first.blocks.begin()).first -
        s.blocks.begin();
  }
  return shared;
}

PoolStats BlockPool::stats() const {
  PoolStats stats{};
  stats.num_blocks = num_blocks();
  stats.num_free = num_free();
  stats.num_reserved = num_reserved_;
  stats.num_used = num_used();
  stats.num_copies = num_copies_;
  stats.peak_used = peak_used_;
  for (int32_t count : ref_counts_) stats.num_shared += count > 1;
  for (const Sequence& s : sequences_) {
    stats.num_sequences += s.is_alive;
    stats.num_logical += static_cast<int64_t>(s.blocks.size());
  }
  return stats;
}

void BlockPool::check() const {
  auto ensure = [](bool ok, const char* what) {
    if (!ok) throw std::logic_error(std::string("block pool invariant broken: ") + what);
  };
  std::vector<int32_t> owners(ref_counts_.size(), 0);
  int64_t reserved = 0;
  for (const Sequence& s : sequences_) {
    ensure(s.is_alive || (s.blocks.empty() && s.reserved == 0), "a dead sequence holds blocks");
    ensure(static_cast<int64_t>(s.blocks.size()) == (s.length + block_size_ - 1) / block_size_,
           "a block table does not fit its length");
    ensure(s.reserved >= blocks_for(s.length, s.promised, has_shared_tail(s)),
           "a reservation is too small for what it promised");
    for (int32_t block : s.blocks) ++owners.at(block);
    reserved += s.reserved;
  }
  ensure(owners == ref_counts_, "a reference count is not the number of owners");
  ensure(reserved == num_reserved_, "the sum of reservations is wrong");
  ensure(num_reserved_ <= num_free(), "more blocks are reserved than free");
  int64_t num_unowned = 0;
  for (int32_t count : owners) num_unowned += count == 0;
  ensure(num_unowned == num_free(), "a block is neither owned nor free, or free twice");
  for (int32_t block : free_) ensure(owners.at(block) == 0, "a free block has an owner");
  for (int32_t count : leaving_) ensure(count == 0, "scratch was left behind");
}

}  // namespace stagebeam
