// The C ABI: checks pointers, sizes and values, and hands the rest to the registry.
//
// No exception crosses it. Texts of the last event and the last error live in the calling thread.
#include "stagebeam.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <exception>
#include <iterator>
#include <optional>
#include <string>
#include <utility>

#include "open_registry.h"

using namespace stagebeam::embed;

static_assert(static_cast<int32_t>(StatusCode::kDeadline) == STAGEBEAM_DEADLINE_ERROR);
static_assert(static_cast<int32_t>(StatusCode::kEnd) == STAGEBEAM_END);
static_assert(static_cast<int32_t>(EventType::kFailed) == STAGEBEAM_FAILED);
static_assert(static_cast<int32_t>(EventType::kStageStarted) == STAGEBEAM_STAGE_STARTED);
static_assert(static_cast<int32_t>(ImageKind::kRgb) == STAGEBEAM_IMAGE_RGB);

namespace {

// The structs' sizes in ABI version 1: a caller's may not be smaller.
constexpr size_t kEngineParamsSize = sizeof(stagebeam_engine_params);
constexpr size_t kQuestionParamsSize = sizeof(stagebeam_question_params);
constexpr size_t kImageSize = sizeof(stagebeam_image);
constexpr size_t kEventSize = sizeof(stagebeam_event);
constexpr size_t kStatsSize = sizeof(stagebeam_stats);

struct ThreadState {
  std::string last_error;
  Event event;
};

ThreadState& thread_state() {
  thread_local ThreadState state;
  return state;
}

stagebeam_status fail(StatusCode code, std::string message) {
  if (code != StatusCode::kTimeout && code != StatusCode::kEnd) {
    thread_state().last_error = std::move(message);
  }
  return static_cast<stagebeam_status>(code);
}

stagebeam_status finish(Status status) {
  return status.is_ok() ? STAGEBEAM_OK : fail(status.code, std::move(status.message));
}

// A call's fault before it reaches the registry.
struct BadArgument : std::exception {
  explicit BadArgument(std::string what) : message(std::move(what)) {}
  std::string message;
};

void require(bool ok, const std::string& message) {
  if (!ok) throw BadArgument(message);
}

// A struct's size field: no smaller than the first version's; a larger one that is to be read has
// fields that this library does not know.
void require_size(size_t got, size_t expected, const char* name, bool is_read) {
  require(got >= expected && (!is_read || got == expected),
          std::string(name) + ".size is " + std::to_string(got) + ", expected " +
              std::to_string(expected) +
              "; set it to sizeof, with the header of this library's version");
}

template <typename Work>
stagebeam_status guarded(Work&& work) noexcept {
  try {
    try {
      return finish(work());
    } catch (const BadArgument& fault) {
      return fail(StatusCode::kInvalidArgument, fault.message);
    } catch (const std::exception& error) {
      return fail(StatusCode::kInternal, error.what());
    } catch (...) {
      return fail(StatusCode::kInternal, "an unknown C++ exception");
    }
  } catch (...) {  // no memory for the message
    return STAGEBEAM_INTERNAL_ERROR;
  }
}

std::string text_or_empty(const char* text) {
  return text ? text : "";
}

std::optional<int64_t> positive(int64_t value, const char* name) {
  require(value >= 0,
          std::string(name) + " must be 0 (the default) or positive, got " + std::to_string(value));
  return value ? std::optional(value) : std::nullopt;
}

std::optional<int64_t> not_minus_one(int64_t value) {
  return value == -1 ? std::nullopt : std::optional(value);
}

std::optional<double> not_nan(double value) {
  return std::isnan(value) ? std::nullopt : std::optional(value);
}

EngineSpec engine_spec(const stagebeam_engine_params* params) {
  if (!params) return {};
  require_size(params->size, kEngineParamsSize, "stagebeam_engine_params", true);
  EngineSpec spec;
  spec.path = text_or_empty(params->path);
  spec.python = text_or_empty(params->python);
  spec.device = text_or_empty(params->device);
  spec.dtype = text_or_empty(params->dtype);
  spec.backend = text_or_empty(params->backend);
  spec.max_model_len = positive(params->max_model_len, "max_model_len");
  spec.kv_cache_bytes = positive(params->kv_cache_bytes, "kv_cache_bytes");
  spec.max_branches = positive(params->max_branches, "max_branches");
  spec.num_threads = positive(params->num_threads, "num_threads");
  spec.seed = params->seed;
  return spec;
}

ImageView image_view(const stagebeam_image* image) {
  if (!image) return {};
  require_size(image->size, kImageSize, "stagebeam_image", true);
  ImageView view;
  view.kind = static_cast<ImageKind>(image->kind);
  switch (image->kind) {
    case STAGEBEAM_IMAGE_PATH:
      require(image->path, "the image's path is NULL");
      view.path = image->path;
      return view;
    case STAGEBEAM_IMAGE_ENCODED:
      require(image->data && image->num_bytes, "the encoded image is empty");
      break;
    case STAGEBEAM_IMAGE_RGB: {
      const int64_t row = 3 * int64_t{image->width};
      const int64_t stride = image->stride_bytes ? image->stride_bytes : row;
      require(image->data, "the RGB image's data is NULL");
      require(image->width > 0 && image->height > 0,
              "the RGB image has no pixels: " + std::to_string(image->width) + " x " +
                  std::to_string(image->height));
      require(stride >= row && stride <= INT32_MAX, "the RGB image's stride_bytes is " +
                                                        std::to_string(stride) + ", expected " +
                                                        std::to_string(row) + " or more");
      const uint64_t needed = static_cast<uint64_t>(stride) * (image->height - 1) + row;
      require(image->num_bytes >= needed, "the RGB image has " + std::to_string(image->num_bytes) +
                                              " bytes, expected " + std::to_string(needed) +
                                              " for " + std::to_string(image->width) + " x " +
                                              std::to_string(image->height) + " pixels of 3 bytes");
      view.width = image->width;
      view.height = image->height;
      view.stride_bytes = stride;
      break;
    }
    default:
      throw BadArgument("the image's kind is " + std::to_string(image->kind) +
                        ", expected STAGEBEAM_IMAGE_PATH, _ENCODED or _RGB");
  }
  view.data = static_cast<const uint8_t*>(image->data);
  view.size = image->num_bytes;
  return view;
}

QuestionSpec question_spec(const char* text, const stagebeam_image* image,
                           const stagebeam_question_params* params) {
  require(text, "the question's text is NULL");
  QuestionSpec spec;
  spec.text = text;
  spec.image = image_view(image);
  if (!params) return spec;
  require_size(params->size, kQuestionParamsSize, "stagebeam_question_params", true);
  spec.strategy = text_or_empty(params->strategy);
  spec.beam_size = not_minus_one(params->beam_size);
  spec.temperature = not_nan(params->temperature);
  spec.top_p = not_nan(params->top_p);
  spec.min_p = not_nan(params->min_p);
  spec.top_k = not_minus_one(params->top_k);
  spec.max_tokens = not_minus_one(params->max_tokens);
  if (params->has_seed) spec.seed = params->seed;
  spec.judge_mode = text_or_empty(params->judge_mode);
  spec.tournament = text_or_empty(params->tournament);
  spec.deadline_seconds = not_nan(params->deadline_seconds);
  return spec;
}

void fill(stagebeam_event& out, const Event& event) {
  out.type = static_cast<stagebeam_event_type>(event.type);
  out.status = static_cast<stagebeam_status>(event.status);
  out.num_candidates = event.num_candidates;
  out.first_candidate = event.first_candidate;
  out.round = event.round;
  out.candidate = event.candidate;
  out.first = event.first;
  out.second = event.second;
  out.winner = event.winner;
  out.probability = event.probability;
  out.stage = event.stage.c_str();
  out.text = event.text.c_str();
  out.text_bytes = event.text.size();
  out.token_ids = event.token_ids.data();
  out.logprobs = event.logprobs.data();
  out.num_tokens = event.token_ids.size();
  out.finish_reason = event.finish_reason.c_str();
  out.json = event.json.c_str();
}

}  // namespace

uint32_t stagebeam_abi_version(void) noexcept {
  return STAGEBEAM_ABI_VERSION;
}

const char* stagebeam_status_name(stagebeam_status status) noexcept {
  static constexpr const char* kNames[] = {"ok",
                                           "invalid argument",
                                           "invalid handle",
                                           "image error",
                                           "checkpoint error",
                                           "capacity error",
                                           "cancelled",
                                           "timeout",
                                           "end",
                                           "environment error",
                                           "internal error",
                                           "deadline"};
  const bool is_known = status >= 0 && static_cast<size_t>(status) < std::size(kNames);
  return is_known ? kNames[status] : "unknown";
}

const char* stagebeam_last_error(void) noexcept {
  return thread_state().last_error.c_str();
}

stagebeam_status stagebeam_engine_default_params(stagebeam_engine_params* params,
                                                 size_t size) noexcept {
  return guarded([&]() -> Status {
    require(params, "params is NULL");
    require_size(size, kEngineParamsSize, "stagebeam_engine_params", true);
    *params = {};
    params->size = size;
    return {};
  });
}

stagebeam_status stagebeam_question_default_params(stagebeam_question_params* params,
                                                   size_t size) noexcept {
  return guarded([&]() -> Status {
    require(params, "params is NULL");
    require_size(size, kQuestionParamsSize, "stagebeam_question_params", true);
    *params = {};
    params->size = size;
    params->beam_size = params->top_k = params->max_tokens = -1;
    params->temperature = params->top_p = params->min_p = params->deadline_seconds = std::nan("");
    return {};
  });
}

stagebeam_status stagebeam_engine_create(const stagebeam_engine_params* params,
                                         stagebeam_engine* engine) noexcept {
  return guarded([&] {
    require(engine, "engine is NULL");
    *engine = kNoHandle;
    return open_registry().create_engine(engine_spec(params), *engine);
  });
}

stagebeam_status stagebeam_engine_stats(stagebeam_engine engine, stagebeam_stats* stats) noexcept {
  return guarded([&]() -> Status {
    require(stats, "stats is NULL");
    require_size(stats->size, kStatsSize, "stagebeam_stats", false);
    RegistryStats now;
    Status status = open_registry().stats(engine, now);
    if (!status.is_ok()) return status;
    stats->num_questions = now.num_questions;
    stats->num_running = now.num_running;
    stats->num_blocks = now.engine.num_blocks;
    stats->num_free_blocks = now.engine.num_free_blocks;
    stats->num_reserved_blocks = now.engine.num_reserved_blocks;
    stats->num_sequences = now.engine.num_sequences;
    stats->num_image_slots = now.engine.num_image_slots;
    stats->num_images_in_use = now.engine.num_images_in_use;
    return {};
  });
}

stagebeam_status stagebeam_engine_destroy(stagebeam_engine engine) noexcept {
  return guarded([&] { return open_registry().destroy_engine(engine); });
}

stagebeam_status stagebeam_submit(stagebeam_engine engine, const char* text,
                                  const stagebeam_image* image,
                                  const stagebeam_question_params* params,
                                  stagebeam_question* question) noexcept {
  return guarded([&] {
    require(question, "question is NULL");
    *question = kNoHandle;
    return open_registry().submit(engine, question_spec(text, image, params), *question);
  });
}

stagebeam_status stagebeam_question_next(stagebeam_question question, int64_t timeout_ms,
                                         stagebeam_event* event) noexcept {
  return guarded([&]() -> Status {
    require(event, "event is NULL");
    require_size(event->size, kEventSize, "stagebeam_event", false);
    constexpr int64_t kLongestMs = int64_t{365} * 24 * 3600 * 1000;
    std::optional<std::chrono::milliseconds> timeout;
    if (timeout_ms >= 0) timeout.emplace(std::min(timeout_ms, kLongestMs));
    Event& taken = thread_state().event;
    Status status = open_registry().next(question, timeout, taken);
    if (!status.is_ok()) return status;
    if (taken.type == EventType::kTokenText) taken.json = token_json(taken);
    fill(*event, taken);
    return {};
  });
}

stagebeam_status stagebeam_question_cancel(stagebeam_question question) noexcept {
  return guarded([&] { return open_registry().cancel(question); });
}

stagebeam_status stagebeam_question_destroy(stagebeam_question question) noexcept {
  return guarded([&] { return open_registry().destroy_question(question); });
}
