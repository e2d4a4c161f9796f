// The bounded queue between the engine's thread, which must never wait, and a question's consumers.
//
// Where a consumer is slow, a full queue takes a token's text into the last text of the same
// candidate instead of a place of its own: no text is lost, and what is held grows with the answer
// only. Invariant: events leave in the order they came; after the last one nothing is added.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <mutex>
#include <optional>

#include "event.h"

namespace stagebeam::embed {

// The engine's end of a question's events.
class EventSink {
 public:
  virtual ~EventSink() = default;
  virtual void push(Event event) noexcept = 0;  // from any thread; never waits
};

class EventQueue final : public EventSink {
 public:
  enum class Next { kEvent, kTimeout, kEnd, kClosed };

  static constexpr size_t kDefaultCapacity = 1024;

  explicit EventQueue(size_t capacity = kDefaultCapacity) : capacity_(capacity) {}

  void push(Event event) noexcept override;

  // Takes the next event; waits up to `timeout`, or without end for nullopt.
  Next next(std::optional<std::chrono::milliseconds> timeout, Event& out);

  // Wakes who waits, with kClosed; what is queued is dropped.
  void close();

  bool has_ended() const;
  size_t size() const;

 private:
  bool merge(const Event& event);

  const size_t capacity_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Event> events_;
  bool has_last_ = false;
  bool is_closed_ = false;
};

}  // namespace stagebeam::embed
