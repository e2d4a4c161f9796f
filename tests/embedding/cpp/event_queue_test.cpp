#include "../../../csrc/embed/event_queue.h"

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "../../../csrc/tests/check.h"
#include "scripted_engine.h"

using namespace stagebeam::embed;
using Next = EventQueue::Next;
using std::chrono::milliseconds;

namespace {

constexpr milliseconds kNow{0};

Event text(int candidate, std::string piece) {
  return make_event(EventType::kTokenText, candidate, std::move(piece));
}

}  // namespace

TEST(events_leave_in_order_and_the_last_one_ends_them) {
  EventQueue queue;
  Event event;
  CHECK(queue.next(kNow, event) == Next::kTimeout);
  CHECK(queue.next(milliseconds(2), event) == Next::kTimeout);
  queue.push(make_event(EventType::kStageStarted));
  queue.push(text(0, "a"));
  queue.push(make_event(EventType::kDone, -1, "answer"));
  queue.push(text(0, "after the end"));
  CHECK(queue.has_ended());
  CHECK(queue.next(kNow, event) == Next::kEvent && event.type == EventType::kStageStarted);
  CHECK(queue.next(kNow, event) == Next::kEvent && event.text == "a");
  CHECK(queue.next(std::nullopt, event) == Next::kEvent && event.text == "answer");
  CHECK(queue.next(std::nullopt, event) == Next::kEnd);
  CHECK(queue.next(kNow, event) == Next::kEnd);
}

TEST(a_full_queue_loses_no_text) {
  EventQueue queue(4);
  std::vector<std::string> pushed(3), taken(3);
  queue.push(make_event(EventType::kStageStarted));
  for (int i = 0; i < 300; ++i) {
    const std::string piece = std::to_string(i) + " ";
    pushed[i % 3] += piece;
    queue.push(text(i % 3, piece));
  }
  CHECK(queue.size() == 4);
  for (int i = 0; i < 3; ++i) queue.push(make_event(EventType::kCandidateFinished, i));
  queue.push(make_event(EventType::kDone));
  Event event;
  while (queue.next(kNow, event) == Next::kEvent) {
    if (event.type == EventType::kTokenText) taken[event.candidate] += event.text;
  }
  CHECK(taken == pushed);
}

TEST(texts_of_two_rounds_stay_apart) {
  EventQueue queue(1);
  queue.push(text(0, "first"));
  queue.push(make_event(EventType::kCandidateFinished, 0));
  queue.push(text(0, "second"));
  queue.push(make_event(EventType::kStageStarted));
  queue.push(text(0, "third"));
  queue.push(text(0, " and more"));
  queue.push(text(1, "another"));
  std::vector<std::string> texts;
  Event event;
  while (queue.next(kNow, event) == Next::kEvent) {
    if (event.type == EventType::kTokenText) texts.push_back(event.text);
  }
  CHECK((texts == std::vector<std::string>{"first", "second", "third and more", "another"}));
}

TEST(closing_wakes_who_waits) {
  EventQueue queue;
  std::atomic<int> num_closed{0};
  std::vector<std::thread> waiting;
  for (int i = 0; i < 3; ++i) {
    waiting.emplace_back([&] {
      Event event;
      num_closed += queue.next(std::nullopt, event) == Next::kClosed;
    });
  }
  queue.close();
  for (auto& thread : waiting) thread.join();
  CHECK(num_closed == 3);
}

TEST(every_waiting_consumer_hears_of_the_end) {
  EventQueue queue;
  std::atomic<int> num_events{0}, num_ends{0};
  std::vector<std::thread> consumers;
  for (int i = 0; i < 3; ++i) {
    consumers.emplace_back([&] {
      Event event;
      Next next;
      while ((next = queue.next(std::nullopt, event)) == Next::kEvent) ++num_events;
      num_ends += next == Next::kEnd;
    });
  }
  for (int i = 0; i < 1000; ++i) queue.push(text(0, "x"));
  queue.push(make_event(EventType::kDone));
  for (auto& thread : consumers) thread.join();
  CHECK(num_events == 1001);
  CHECK(num_ends == 3);
}

TEST(a_full_queue_loses_no_token) {
  EventQueue queue(1);
  for (int i = 0; i < 3; ++i) {
    Event event = text(0, "x");
    event.token_ids = {i};
    event.logprobs = {-0.5 * i};
    queue.push(std::move(event));
  }
  Event event;
  CHECK(queue.next(kNow, event) == Next::kEvent);
  CHECK((event.token_ids == std::vector<int32_t>{0, 1, 2}));
  CHECK((event.logprobs == std::vector<double>{0, -0.5, -1}));
}

TEST(a_token_as_json) {
  Event event = text(3, std::string("a\"b\\c\n\x01", 7) + "\xc3\xa9");
  event.token_ids = {5, 70000};
  event.logprobs = {-0.1, -1e-9};
  CHECK(token_json(event) ==
        "{\"type\": \"token_text\", \"stage\": \"summary\", \"round\": 0, \"candidate\": 3, "
        "\"text\": \"a\\\"b\\\\c\\u000a\\u0001\xc3\xa9\", \"token_ids\": [5, 70000], "
        "\"logprobs\": [-0.1, -1e-09]}");
}
