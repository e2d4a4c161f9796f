#include "../../../csrc/embed/handle_table.h"

#include <atomic>
#include <set>
#include <thread>

#include "../../../csrc/tests/check.h"

using stagebeam::embed::HandleId;
using stagebeam::embed::HandleTable;
using stagebeam::embed::kNoHandle;

TEST(a_removed_id_never_becomes_valid_again) {
  HandleTable<int> table(1);
  std::set<HandleId> seen;
  for (int i = 0; i < 1000; ++i) {
    const HandleId id = table.insert(std::make_shared<int>(i));
    CHECK(id != kNoHandle);
    CHECK(seen.insert(id).second);
    CHECK(*table.find(id) == i);
    CHECK(*table.remove(id) == i);
  }
  for (const HandleId id : seen) {
    CHECK(table.find(id) == nullptr);
    CHECK(table.remove(id) == nullptr);
  }
  CHECK(table.size() == 0);
}

TEST(ids_of_another_kind_and_made_up_ones_find_nothing) {
  HandleTable<int> engines(1), questions(2);
  const HandleId engine = engines.insert(std::make_shared<int>(1));
  const HandleId question = questions.insert(std::make_shared<int>(2));
  CHECK(engine != question);
  CHECK(engines.find(question) == nullptr);
  CHECK(questions.find(engine) == nullptr);
  for (const HandleId id : {HandleId{0}, ~HandleId{0}, engine + 1, engine | 0xffffff}) {
    CHECK(engines.find(id) == nullptr);
    CHECK(engines.remove(id) == nullptr);
  }
  CHECK(engines.size() == 1);
}

TEST(an_object_lives_until_its_last_user_lets_go) {
  HandleTable<int> table(1);
  const HandleId id = table.insert(std::make_shared<int>(7));
  const auto used = table.find(id);
  table.remove(id);
  CHECK(*used == 7);
  CHECK(used.use_count() == 1);
}

TEST(threads_insert_find_and_remove_at_once) {
  HandleTable<int> table(1);
  std::atomic<HandleId> shared{kNoHandle};
  std::atomic<int> num_removed{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 2000; ++i) {
        const HandleId mine = table.insert(std::make_shared<int>(t));
        const HandleId other = shared.exchange(mine);
        if (const auto found = table.find(other)) CHECK(*found >= 0 && *found < 4);
        num_removed += table.remove(other) != nullptr;
        num_removed += table.remove(other) != nullptr;  // the double destroy
      }
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK(table.size() == 1);
  CHECK(num_removed == 4 * 2000 - 1);
}
