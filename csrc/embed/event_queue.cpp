#include "event_queue.h"

#include <utility>

namespace stagebeam::embed {

void EventQueue::push(Event event) noexcept {
  bool is_last = false;
  {
    const std::lock_guard guard(mutex_);
    if (has_last_ || is_closed_) return;
    has_last_ = is_last = event.is_last();
    const bool is_text = event.type == EventType::kTokenText;
    if (!(is_text && events_.size() >= capacity_ && merge(event))) {
      events_.push_back(std::move(event));
    }
  }
  if (is_last) {
    changed_.notify_all();
  } else {
    changed_.notify_one();
  }
}

// Look back for a text of the same candidate in the same stage (or round: its start is a border).
bool EventQueue::merge(const Event& event) {
  for (auto queued = events_.rbegin(); queued != events_.rend(); ++queued) {
    switch (queued->type) {
      case EventType::kTokenText:
        if (queued->candidate != event.candidate || queued->stage != event.stage) break;
        queued->text += event.text;
        queued->token_ids.insert(queued->token_ids.end(), event.token_ids.begin(),
                                 event.token_ids.end());
        queued->logprobs.insert(queued->logprobs.end(), event.logprobs.begin(),
                                event.logprobs.end());
        return true;
      case EventType::kCandidateFinished:
        if (queued->candidate == event.candidate) return false;
        break;
      default:
        return false;
    }
  }
  return false;
}

EventQueue::Next EventQueue::next(std::optional<std::chrono::milliseconds> timeout, Event& out) {
  std::unique_lock lock(mutex_);
  const auto is_ready = [this] { return !events_.empty() || has_last_ || is_closed_; };
  if (!timeout) {
    changed_.wait(lock, is_ready);
  } else if (!changed_.wait_for(lock, *timeout, is_ready)) {
    return Next::kTimeout;
  }
  if (is_closed_) return Next::kClosed;
  if (events_.empty()) return Next::kEnd;
  out = std::move(events_.front());
  events_.pop_front();
  if (out.is_last()) {
    lock.unlock();
    changed_.notify_all();  // other consumers hear of the end
  }
  return Next::kEvent;
}

void EventQueue::close() {
  {
    const std::lock_guard guard(mutex_);
    is_closed_ = true;
    events_.clear();
  }
  changed_.notify_all();
}

bool EventQueue::has_ended() const {
  const std::lock_guard guard(mutex_);
  return has_last_;
}

size_t EventQueue::size() const {
  const std::lock_guard guard(mutex_);
  return events_.size();
}

}  // namespace stagebeam::embed
