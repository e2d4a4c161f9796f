// The KV cache's block pool: sequences of tokens over fixed-size, reference-counted blocks.
//
// It owns which block holds which tokens and how many owners a block has. It does not know keys,
// values, layers or devices: it hands out slots to write and block copies to run. Invariant: a
// block's reference count is the number of block tables that list it, a block that is written has
// one owner, and every call either does all of its work or changes nothing.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace stagebeam {

constexpr int32_t kNoBlock = -1;

// A sequence's handle: generation << 32 | index. A released handle never becomes valid again.
using SeqId = int64_t;

// Copy block `src` to block `dst` before anything is written to the slots of the same call.
struct BlockCopy {
  int32_t src;
  int32_t dst;
};

struct PoolStats {
  int64_t num_blocks;
  int64_t num_free;
  int64_t num_reserved;
  int64_t num_used;
  int64_t num_shared;     // blocks with several owners
  int64_t num_sequences;  // alive
  int64_t num_copies;     // since the pool was made
  int64_t peak_used;      // since the pool was made
  int64_t num_logical;    // blocks if nothing were shared
};

class BlockPool {
 public:
  BlockPool(int32_t num_blocks, int32_t block_size);

  // A new empty sequence that reserves blocks for `reserve_tokens`; nothing if they do not fit.
  std::optional<SeqId> create(int64_t reserve_tokens = 0);

  // `n` children that share every block of `seq`, its partial tail too. Each reserves for
  // `reserve_tokens` more, its copy of the tail included; a reservation of `seq` itself is topped
  // up, as it may now have to copy its tail as well. Nothing if all that does not fit.
  std::optional<std::vector<SeqId>> fork(SeqId seq, int32_t n, int64_t reserve_tokens = 0);

  // One child without a reservation: references only, so it never lacks a block. A reservation of
  // `seq` keeps its blocks, of which the copy of the now shared tail may take one.
  SeqId snapshot(SeqId seq);

  // Make the reservation of `seq` cover `num_tokens` more tokens; false changes nothing.
  bool reserve(SeqId seq, int64_t num_tokens);
  void unreserve(SeqId seq);

  // Append `n` tokens: writes `n` slots (block * block_size + offset), adds the copies to run
  // first. False (out of blocks) changes nothing.
  bool append(SeqId seq, int64_t n, int32_t* slots, std::vector<BlockCopy>& copies);

  // Append one token to each of `count` different sequences, all or nothing.
  bool append_one(const SeqId* seqs, int64_t count, int32_t* slots, std::vector<BlockCopy>& copies);

  // Roll back to `length` tokens. Blocks go back to the pool, not to the reservation, which covers
  // at most what it still can.
  void truncate(SeqId seq, int64_t length);

  void release(const std::vector<SeqId>& seqs);

  // Release the losers and give back what the winner reserved and did not use.
  void commit(SeqId winner, const std::vector<SeqId>& losers);

  int64_t length(SeqId seq) const { return get(seq, "length").length; }
  const std::vector<int32_t>& block_table(SeqId seq) const {
    return get(seq, "block_table").blocks;
  }

  // Row r of `out` ([count, width], rows `row_stride` apart) gets the blocks of seqs[r] from
  // `start_block` on, then kNoBlock.
  void fill_block_tables(const SeqId* seqs, int64_t count, int64_t start_block, int64_t width,
                         int64_t row_stride, int32_t* out) const;

  // Leading full blocks common to all.
  int64_t num_shared_blocks(const std::vector<SeqId>& seqs) const;

  int64_t num_blocks() const { return static_cast<int64_t>(ref_counts_.size()); }
  int64_t block_size() const { return block_size_; }
  int64_t num_free() const { return static_cast<int64_t>(free_.size()); }
  int64_t num_reserved() const { return num_reserved_; }
  int64_t num_available() const { return num_free() - num_reserved_; }
  int64_t num_used() const { return num_blocks() - num_free(); }
  PoolStats stats() const;

  // Verify every invariant; std::logic_error says which one is broken.
  void check() const;

 private:
  struct Sequence {
    std::vector<int32_t> blocks;
    int64_t length = 0;
    int64_t reserved = 0;  // blocks set aside for it
    int64_t promised = 0;  // tokens that those blocks, and its own tail, surely hold
    int32_t generation = 1;
    bool is_alive = false;
  };

  const Sequence& get(SeqId seq, const char* caller) const;
  Sequence& get(SeqId seq, const char* caller);
  void require_distinct(const SeqId* seqs, int64_t count, const char* caller);
  SeqId new_sequence();
  void drop(SeqId seq);

  bool has_partial_tail(const Sequence& s) const { return s.length % block_size_ != 0; }
  bool has_shared_tail(const Sequence& s) const {
    return has_partial_tail(s) && ref_counts_[s.blocks.back()] > 1;
  }
  int64_t capacity_tokens() const { return num_blocks() * block_size_; }
  int64_t blocks_for(int64_t length, int64_t tokens, bool must_copy_tail) const;
  void set_reserved(Sequence& s, int64_t blocks);
  void shrink_promise(Sequence& s);
  int32_t take_block(Sequence& s);
  void drop_block(int32_t block);
  void copy_shared_tail(Sequence& s, std::vector<BlockCopy>& copies);

  int64_t block_size_;
  std::vector<int32_t> ref_counts_;
  std::vector<int32_t> free_;  // a stack: the block freed last is handed out first
  std::vector<Sequence> sequences_;
  std::vector<int32_t> free_sequences_;
  std::vector<uint64_t> marks_;  // per sequence, for finding duplicates
  uint64_t mark_ = 0;
  std::vector<int32_t> leaving_;  // per block, scratch of append_one, all 0 between calls
  int64_t num_reserved_ = 0;
  int64_t num_copies_ = 0;
  int64_t peak_used_ = 0;
};

}  // namespace stagebeam
