// stagebeam for C++20: RAII over the C interface (stagebeam.h), header only.
//
//   stagebeam::Engine engine;                                        // the bundled checkpoint
//   auto answer = engine.ask("How many circles?", stagebeam::Image::file("scene.png")).get();
//   std::cout << answer.conclusion;
//
// Engine and Question may be used from any thread; both are moved, not copied. A fault is a
// stagebeam::Error. Callbacks run on a thread of the question's own.
#ifndef STAGEBEAM_HPP_
#define STAGEBEAM_HPP_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <future>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "stagebeam.h"

namespace stagebeam {

class Error : public std::runtime_error {
 public:
  Error(stagebeam_status status, const std::string& message)
      : std::runtime_error(message), status_(status) {}
  stagebeam_status status() const noexcept { return status_; }

 private:
  stagebeam_status status_;
};

// STAGEBEAM_OK comes back, anything else is thrown.
inline void check(stagebeam_status status) {
  if (status == STAGEBEAM_OK) return;
  const char* message = stagebeam_last_error();
  throw Error(status, *message ? message : stagebeam_status_name(status));
}

struct EngineOptions {
  std::string path{};  // "" is the engine's default, as 0 is
  std::string python{};
  std::string device{};
  std::string dtype{};
  std::string backend{};
  std::int64_t max_model_len = 0;
  std::int64_t kv_cache_bytes = 0;
  std::int64_t max_branches = 0;
  std::int64_t num_threads = 0;
  std::uint64_t seed = 0;
};

struct QuestionOptions {
  std::string strategy{};  // "" and nullopt are the engine's defaults
  std::string judge_mode{};
  std::string tournament{};
  std::optional<std::int64_t> beam_size{};
  std::optional<double> temperature{};
  std::optional<double> top_p{};
  std::optional<double> min_p{};
  std::optional<std::int64_t> top_k{};
  std::optional<std::int64_t> max_tokens{};
  std::optional<std::uint64_t> seed{};
  std::optional<std::chrono::duration<double>> deadline{};
};

// A view of the caller's image, read while `submit` runs.
class Image {
 public:
  static Image file(std::string path) {
    Image image(STAGEBEAM_IMAGE_PATH);
    image.path_ = std::move(path);
    return image;
  }
  // The bytes of a PNG, JPEG, WebP, ... file.
  static Image encoded(std::span<const std::byte> bytes) {
    Image image(STAGEBEAM_IMAGE_ENCODED);
    image.set(bytes);
    return image;
  }
  // Rows of `width` pixels of three bytes; stride_bytes 0 means that they follow each other.
  static Image rgb(std::span<const std::byte> pixels, std::int32_t width, std::int32_t height,
                   std::int64_t stride_bytes = 0) {
    Image image(STAGEBEAM_IMAGE_RGB);
    image.set(pixels);
    image.view_.width = width;
    image.view_.height = height;
    image.view_.stride_bytes = stride_bytes;
    return image;
  }

  stagebeam_image view() const {
    stagebeam_image view = view_;
    view.path = path_.c_str();
    return view;
  }

 private:
  explicit Image(stagebeam_image_kind kind) {
    view_.size = sizeof(view_);
    view_.kind = kind;
  }
  void set(std::span<const std::byte> bytes) {
    view_.data = bytes.data();
    view_.num_bytes = bytes.size();
  }

  stagebeam_image view_{};
  std::string path_;
};

struct Event {
  stagebeam_event_type type = 0;
  stagebeam_status status = STAGEBEAM_OK;
  std::int32_t num_candidates = 0;
  std::int32_t first_candidate = 0;
  std::int32_t round = 0;
  std::int32_t candidate = -1;
  std::int32_t first = -1;
  std::int32_t second = -1;
  std::int32_t winner = -1;
  double probability = 0;
  std::string stage;
  std::string text;
  std::string finish_reason;
  std::string json;
  std::vector<std::int32_t> token_ids;
  std::vector<double> logprobs;

  bool is_last() const { return type == STAGEBEAM_DONE || type == STAGEBEAM_FAILED; }
};

struct Answer {
  std::string conclusion;
  std::string finish_reason;
  std::string json;  // the done event: {"type": "done", "answer": {...}}
};

// A question in flight; destroying it cancels it.
class Question {
 public:
  Question() = default;
  explicit Question(stagebeam_question handle) : handle_(handle) {}
  Question(Question&& other) noexcept : handle_(std::exchange(other.handle_, 0)) {}
  Question& operator=(Question&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Question() {
    if (handle_) stagebeam_question_destroy(handle_);
  }

  // The next event; nothing after the last, or where none came in time (`has_ended` tells).
  std::optional<Event> next() { return take(-1); }
  std::optional<Event> next(std::chrono::milliseconds timeout) {
    return take(timeout.count() < 0 ? 0 : timeout.count());
  }

  // Waits for the end; an Error where the question failed or was cancelled.
  Answer answer() {
    while (std::optional<Event> event = next()) {
      if (event->type == STAGEBEAM_DONE) return to_answer(std::move(*event));
      if (event->type == STAGEBEAM_FAILED) throw Error(event->status, event->text);
    }
    throw Error(STAGEBEAM_END, "the question's last event has been taken before");
  }

  void cancel() { check(stagebeam_question_cancel(handle_)); }
  bool has_ended() const noexcept { return has_ended_; }
  stagebeam_question handle() const noexcept { return handle_; }

  static Answer to_answer(Event event) {
    return {std::move(event.text), std::move(event.finish_reason), std::move(event.json)};
  }

 private:
  std::optional<Event> take(std::int64_t timeout_ms) {
    stagebeam_event taken{};
    taken.size = sizeof(taken);
    const stagebeam_status status = stagebeam_question_next(handle_, timeout_ms, &taken);
    if (status == STAGEBEAM_TIMEOUT) return std::nullopt;
    if (status == STAGEBEAM_END) {
      has_ended_ = true;
      return std::nullopt;
    }
    check(status);
    Event event;
    event.type = taken.type;
    event.status = taken.status;
    event.num_candidates = taken.num_candidates;
    event.first_candidate = taken.first_candidate;
    event.round = taken.round;
    event.candidate = taken.candidate;
    event.first = taken.first;
    event.second = taken.second;
    event.winner = taken.winner;
    event.probability = taken.probability;
    event.stage = taken.stage;
    event.text.assign(taken.text, taken.text_bytes);
    event.finish_reason = taken.finish_reason;
    event.json = taken.json;
    event.token_ids.assign(taken.token_ids, taken.token_ids + taken.num_tokens);
    event.logprobs.assign(taken.logprobs, taken.logprobs + taken.num_tokens);
    has_ended_ = event.is_last();
    return event;
  }

  stagebeam_question handle_ = 0;
  bool has_ended_ = false;
};

// A question that calls back; destroying it cancels it and waits for the last call.
class Listening {
 public:
  Listening(Question question, std::function<void(const Event&)> on_event)
      : question_(std::make_unique<Question>(std::move(question))),
        thread_([question = question_.get(), on_event = std::move(on_event)] {
          while (const std::optional<Event> event = question->next()) on_event(*event);
        }) {}
  Listening(Listening&&) = default;
  Listening& operator=(Listening&&) = delete;
  ~Listening() {
    if (!thread_.joinable()) return;
    stagebeam_question_cancel(question_->handle());
    thread_.join();
  }

  void cancel() { question_->cancel(); }
  void wait() { thread_.join(); }  // for the last call; once

 private:
  std::unique_ptr<Question> question_;
  std::thread thread_;
};

// A loaded checkpoint; destroying it ends its questions.
class Engine {
 public:
  explicit Engine(const EngineOptions& options = {}) {
    const auto text = [](const std::string& value) {
      return value.empty() ? nullptr : value.c_str();
    };
    stagebeam_engine_params params;
    check(stagebeam_engine_default_params(&params, sizeof(params)));
    params.path = text(options.path);
    params.python = text(options.python);
    params.device = text(options.device);
    params.dtype = text(options.dtype);
    params.backend = text(options.backend);
    params.max_model_len = options.max_model_len;
    params.kv_cache_bytes = options.kv_cache_bytes;
    params.max_branches = options.max_branches;
    params.num_threads = options.num_threads;
    params.seed = options.seed;
    check(stagebeam_engine_create(&params, &handle_));
  }
  Engine(Engine&& other) noexcept : handle_(std::exchange(other.handle_, 0)) {}
  Engine& operator=(Engine&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Engine() {
    if (handle_) stagebeam_engine_destroy(handle_);
  }

  // Events to take one by one.
  Question submit(const std::string& text, const std::optional<Image>& image = {},
                  const QuestionOptions& options = {}) {
    constexpr double kDefault = std::numeric_limits<double>::quiet_NaN();
    const auto name = [](const std::string& value) {
      return value.empty() ? nullptr : value.c_str();
    };
    stagebeam_question_params params;
    check(stagebeam_question_default_params(&params, sizeof(params)));
    params.strategy = name(options.strategy);
    params.judge_mode = name(options.judge_mode);
    params.tournament = name(options.tournament);
    params.beam_size = options.beam_size.value_or(-1);
    params.temperature = options.temperature.value_or(kDefault);
    params.top_p = options.top_p.value_or(kDefault);
    params.min_p = options.min_p.value_or(kDefault);
    params.top_k = options.top_k.value_or(-1);
    params.max_tokens = options.max_tokens.value_or(-1);
    params.has_seed = options.seed.has_value();
    params.seed = options.seed.value_or(0);
    params.deadline_seconds = options.deadline ? options.deadline->count() : kDefault;
    const stagebeam_image view = image ? image->view() : stagebeam_image{};
    stagebeam_question question = 0;
    check(stagebeam_submit(handle_, text.c_str(), image ? &view : nullptr, &params, &question));
    return Question(question);
  }

  // The answer as a future, whose `get` throws an Error where there is none. Waits in its
  // destructor, as every future of std::async does.
  std::future<Answer> ask(const std::string& text, const std::optional<Image>& image = {},
                          const QuestionOptions& options = {}) {
    return std::async(std::launch::async, [question = submit(text, image, options)]() mutable {
      return question.answer();
    });
  }

  // `on_event` is called with each event, the last included; it must not throw.
  Listening listen(std::function<void(const Event&)> on_event, const std::string& text,
                   const std::optional<Image>& image = {}, const QuestionOptions& options = {}) {
    return Listening(submit(text, image, options), std::move(on_event));
  }

  stagebeam_stats stats() const {
    stagebeam_stats stats{};
    stats.size = sizeof(stats);
    check(stagebeam_engine_stats(handle_, &stats));
    return stats;
  }

 private:
  stagebeam_engine handle_ = 0;
};

}  // namespace stagebeam

#endif  // STAGEBEAM_HPP_
