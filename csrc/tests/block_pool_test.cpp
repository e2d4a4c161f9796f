#include "../core/block_pool.h"

#include <random>

#include "check.h"

using namespace stagebeam;

namespace {

using Slots = std::vector<int32_t>;
using Copies = std::vector<BlockCopy>;

bool append(BlockPool& pool, SeqId seq, int64_t n, Slots* slots = nullptr,
            Copies* copies = nullptr) {
  Slots own_slots(n);
  Copies own_copies;
  const bool done = pool.append(seq, n, own_slots.data(), own_copies);
  if (slots) *slots = own_slots;
  if (copies) *copies = own_copies;
  pool.check();
  return done;
}

bool append_one(BlockPool& pool, const std::vector<SeqId>& seqs, Copies* copies = nullptr) {
  Slots slots(seqs.size());
  Copies own_copies;
  const bool done =
      pool.append_one(seqs.data(), static_cast<int64_t>(seqs.size()), slots.data(), own_copies);
  if (copies) *copies = own_copies;
  pool.check();
  return done;
}

}  // namespace

TEST(slots_follow_blocks) {
  BlockPool pool(4, 4);
  const SeqId seq = *pool.create();
  Slots slots;
  CHECK(append(pool, seq, 6, &slots));
  CHECK((slots == Slots{0, 1, 2, 3, 4, 5}));
  CHECK(append(pool, seq, 0, &slots));
  CHECK(pool.length(seq) == 6 && (pool.block_table(seq) == Slots{0, 1}));
  CHECK(!append(pool, seq, 11));
  CHECK(pool.length(seq) == 6 && pool.num_free() == 2);
  CHECK(append(pool, seq, 10));
  CHECK(pool.num_free() == 0);
}

TEST(eight_branches_of_a_thousand_tokens_take_70_blocks) {
  for (bool is_kept : {false, true}) {
    BlockPool pool(128, 16);
    const SeqId parent = *pool.create();
    append(pool, parent, 1000);
    const std::vector<SeqId> kids = *pool.fork(parent, 8, 1);
    CHECK(pool.num_used() == 63);
    if (!is_kept) pool.release({parent});
    Copies copies;
    CHECK(append_one(pool, kids, &copies));
    CHECK(pool.num_used() == (is_kept ? 71 : 70));
    CHECK(copies.size() == (is_kept ? 8u : 7u));
    CHECK(pool.num_shared_blocks(kids) == 62);
    CHECK(pool.stats().num_logical == 504 + (is_kept ? 63 : 0));
    pool.commit(kids[3], {kids[0], kids[1], kids[2], kids[4], kids[5], kids[6], kids[7]});
    pool.check();
    if (is_kept) pool.release({parent});
    pool.release({kids[3]});
    CHECK(pool.num_free() == 128 && pool.num_reserved() == 0);
  }
}

TEST(a_fork_that_does_not_fit_changes_nothing) {
  BlockPool pool(10, 4);
  const SeqId parent = *pool.create();
  append(pool, parent, 5);
  CHECK(!pool.fork(parent, 3, 8));  // 3 x (2 new blocks and a copy) of 8 free
  CHECK(pool.stats().num_sequences == 1 && pool.num_available() == 8);
  CHECK(pool.fork(parent, 2, 8).has_value());
  CHECK(pool.num_available() == 2);
  CHECK(!pool.fork(parent, 1, int64_t{1} << 62));
  CHECK(!pool.create(int64_t{1} << 62));
  CHECK(!pool.reserve(parent, int64_t{1} << 62));
  pool.check();
}

TEST(reserved_blocks_are_safe_from_others) {
  BlockPool pool(4, 4);
  const SeqId a = *pool.create(9), b = *pool.create();
  CHECK(pool.num_available() == 1);
  CHECK(append(pool, b, 4));
  CHECK(!append(pool, b, 1));
  CHECK(!append_one(pool, {a, b}));
  CHECK(append(pool, a, 9));
  CHECK(pool.num_free() == 0 && pool.num_reserved() == 0);
}

TEST(a_forked_parent_keeps_what_it_reserved) {
  BlockPool pool(6, 4);
  const SeqId parent = *pool.create(8);
  append(pool, parent, 2);
  CHECK(pool.num_reserved() == 1);
  const SeqId kid = pool.fork(parent, 1)->front();
  CHECK(pool.num_reserved() == 2);  // and its copy of the tail
  const SeqId greedy = *pool.create();
  CHECK(append(pool, greedy, 12));
  CHECK(append(pool, parent, 6));
  pool.release({kid, greedy});
}

TEST(a_snapshot_brings_the_past_back) {
  BlockPool pool(8, 4);
  const SeqId seq = *pool.create();
  append(pool, seq, 6);
  const SeqId past = pool.snapshot(seq);
  CHECK(pool.num_used() == 2);
  Copies copies;
  CHECK(append(pool, seq, 4, nullptr, &copies));
  CHECK(copies.size() == 1 && copies[0].src == pool.block_table(past)[1] &&
        copies[0].dst == pool.block_table(seq)[1]);
  pool.release({seq});
  CHECK(pool.length(past) == 6 && pool.num_used() == 2);
  CHECK(append(pool, past, 1, nullptr, &copies));
  CHECK(copies.empty());
}

TEST(a_snapshot_of_whole_blocks_leaves_a_reservation_alone) {
  BlockPool pool(4, 4);
  const SeqId seq = *pool.create(12);
  append(pool, seq, 6);
  const SeqId prefix = pool.snapshot(seq);
  pool.check();
  pool.truncate(prefix, 4);
  CHECK(append(pool, prefix, 4));
  CHECK(append(pool, seq, 6));
  CHECK(pool.num_free() == 0);
}

TEST(truncating_frees_and_shrinks_promises) {
  BlockPool pool(8, 4);
  const SeqId seq = *pool.create(17);
  append(pool, seq, 16);
  const SeqId kid = pool.fork(seq, 1)->front();
  pool.truncate(seq, 9);
  pool.check();
  CHECK(pool.length(seq) == 9 && pool.num_used() == 4);
  pool.truncate(seq, 0);
  pool.truncate(kid, 0);
  pool.check();
  CHECK(pool.num_used() == 0);
  CHECK_THROWS(pool.truncate(seq, 1));
  CHECK_THROWS(pool.truncate(seq, -1));
}

TEST(tables_are_padded) {
  BlockPool pool(8, 4);
  const SeqId a = *pool.create(), b = *pool.create();
  append(pool, a, 9);
  append(pool, b, 1);
  const std::vector<SeqId> seqs{a, b};
  Slots out(8, 77);
  pool.fill_block_tables(seqs.data(), 2, 1, 3, 4, out.data());
  CHECK((out == Slots{1, 2, kNoBlock, 77, kNoBlock, kNoBlock, kNoBlock, 77}));
  CHECK_THROWS(pool.fill_block_tables(seqs.data(), 2, 0, 2, 4, out.data()));
  CHECK_THROWS(pool.fill_block_tables(seqs.data(), 2, -1, 4, 4, out.data()));
}

TEST(stale_and_repeated_ids_are_refused) {
  BlockPool pool(8, 4);
  const SeqId a = *pool.create(), b = *pool.create();
  pool.release({a});
  const SeqId c = *pool.create();
  CHECK(a != c);
  for (SeqId id : {a, SeqId{0}, SeqId{-1}, SeqId{1} << 62}) {
    CHECK_THROWS(pool.length(id));
    CHECK_THROWS(pool.release({b, id}));
    CHECK_THROWS(pool.commit(b, {c, id}));
    CHECK_THROWS(append_one(pool, {b, id}));
  }
  CHECK_THROWS(pool.release({b, b}));
  CHECK_THROWS(append_one(pool, {b, c, b}));
  CHECK_THROWS(pool.commit(b, {b}));
  CHECK_THROWS(pool.fork(b, 0));
  CHECK_THROWS(pool.fork(b, 1, -1));
  CHECK_THROWS(BlockPool(0, 16));
  CHECK_THROWS(BlockPool(16, 0));
  CHECK_THROWS(BlockPool(1 << 30, 16));
  CHECK(pool.stats().num_sequences == 2);
  pool.check();
}

TEST(random_walks_keep_the_invariants) {
  std::mt19937 random(1);
  auto below = [&](size_t n) { return static_cast<int64_t>(random() % n); };
  for (int walk = 0; walk < 40; ++walk) {
    BlockPool pool(static_cast<int32_t>(1 + below(40)), static_cast<int32_t>(1 + below(8)));
    std::vector<SeqId> alive;
    for (int step = 0; step < 300; ++step) {
      if (alive.empty()) {
        if (auto seq = pool.create(below(20))) alive.push_back(*seq);
        continue;
      }
      const size_t at = below(alive.size());
      const SeqId seq = alive[at];
      switch (below(8)) {
        case 0:
          if (auto kids = pool.fork(seq, static_cast<int32_t>(1 + below(4)), below(12))) {
            alive.insert(alive.end(), kids->begin(), kids->end());
          }
          break;
        case 1:
          if (below(2)) pool.unreserve(seq);
          alive.push_back(pool.snapshot(seq));
          break;
        case 2:
          pool.reserve(seq, below(20));
          break;
        case 3:
          append(pool, seq, below(20));
          break;
        case 4:
          append_one(pool, alive);
          break;
        case 5:
          pool.truncate(seq, below(pool.length(seq) + 1));
          break;
        case 6:
          pool.release({seq});
          alive.erase(alive.begin() + at);
          break;
        case 7:
          if (below(4) == 0) {
            std::swap(alive[0], alive[at]);
            pool.commit(seq, {alive.begin() + 1, alive.end()});
            alive.resize(1);
          }
      }
      pool.check();
    }
    pool.release(alive);
    pool.check();
    CHECK(pool.num_available() == pool.num_blocks());
  }
}
