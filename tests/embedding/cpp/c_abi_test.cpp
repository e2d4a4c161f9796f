// The C ABI over the scripted engine: what a careful caller gets, and what a careless one gets.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <string>
#include <vector>

#include "../../../bindings/c/open_registry.h"
#include "../../../bindings/c/stagebeam.h"
#include "../../../csrc/tests/check.h"
#include "scripted_engine.h"

namespace stagebeam::embed {

Registry& open_registry() {
  static ScriptedBackend backend;
  static auto* registry = new Registry(backend);
  return *registry;
}

}  // namespace stagebeam::embed

namespace {

struct OpenEngine {
  OpenEngine() { CHECK(stagebeam_engine_create(nullptr, &handle) == STAGEBEAM_OK); }
  ~OpenEngine() { CHECK(stagebeam_engine_destroy(handle) == STAGEBEAM_OK); }
  stagebeam_question ask(const char* text) const {
    stagebeam_question question = 0;
    CHECK(stagebeam_submit(handle, text, nullptr, nullptr, &question) == STAGEBEAM_OK);
    return question;
  }
  stagebeam_engine handle = 0;
};

stagebeam_event empty_event() {
  stagebeam_event event{};
  event.size = sizeof(event);
  return event;
}

bool has_error(const char* part) {
  return std::strstr(stagebeam_last_error(), part) != nullptr;
}

}  // namespace

TEST(an_answer_comes_event_by_event) {
  const OpenEngine engine;
  const stagebeam_question question = engine.ask("tokens=5 candidates=2");
  std::vector<std::string> texts(2);
  std::vector<int> types;
  stagebeam_event event = empty_event();
  while (stagebeam_question_next(question, -1, &event) == STAGEBEAM_OK) {
    if (event.type == STAGEBEAM_TOKEN_TEXT) {
      CHECK(std::strlen(event.text) == event.text_bytes);
      CHECK(std::strstr(event.json, "\"token_text\"") != nullptr);
      texts[event.candidate] += event.text;
    } else {
      types.push_back(event.type);
    }
    if (event.type == STAGEBEAM_DONE) CHECK(std::string(event.text) == "an answer");
  }
  CHECK((texts == std::vector<std::string>{"1 2 3 4 5 ", "1 2 3 4 5 "}));
  CHECK((types == std::vector<int>{1, 3, 3, 5, 6}));
  CHECK(stagebeam_question_next(question, 0, &event) == STAGEBEAM_END);
  CHECK(stagebeam_question_cancel(question) == STAGEBEAM_OK);
  CHECK(stagebeam_question_destroy(question) == STAGEBEAM_OK);
}

TEST(polling_and_time_outs) {
  const OpenEngine engine;
  const stagebeam_question question = engine.ask("tokens=200 slow");
  stagebeam_event event = empty_event();
  int num_timeouts = 0;
  stagebeam_status status;
  while ((status = stagebeam_question_next(question, 0, &event)) != STAGEBEAM_END) {
    num_timeouts += status == STAGEBEAM_TIMEOUT;
    CHECK(status == STAGEBEAM_OK || status == STAGEBEAM_TIMEOUT);
  }
  CHECK(num_timeouts > 0);
  CHECK(stagebeam_question_destroy(question) == STAGEBEAM_OK);
}

TEST(cancel_ends_with_failed) {
  const OpenEngine engine;
  const stagebeam_question question = engine.ask("tokens=1000000 slow");
  stagebeam_event event = empty_event();
  CHECK(stagebeam_question_next(question, -1, &event) == STAGEBEAM_OK);
  CHECK(stagebeam_question_cancel(question) == STAGEBEAM_OK);
  while (stagebeam_question_next(question, -1, &event) == STAGEBEAM_OK) {
  }
  CHECK(event.type == STAGEBEAM_FAILED);
  CHECK(event.status == STAGEBEAM_CANCELLED);
  CHECK(stagebeam_question_cancel(question) == STAGEBEAM_OK);
  CHECK(stagebeam_question_next(question, -1, &event) == STAGEBEAM_END);
  CHECK(stagebeam_question_destroy(question) == STAGEBEAM_OK);
  CHECK(stagebeam_question_next(question, -1, &event) == STAGEBEAM_INVALID_HANDLE);
}

TEST(destroying_an_engine_ends_its_questions) {
  stagebeam_engine engine = 0;
  CHECK(stagebeam_engine_create(nullptr, &engine) == STAGEBEAM_OK);
  stagebeam_question question = 0;
  CHECK(stagebeam_submit(engine, "tokens=1000000 slow", nullptr, nullptr, &question) ==
        STAGEBEAM_OK);
  CHECK(stagebeam_engine_destroy(engine) == STAGEBEAM_OK);
  CHECK(stagebeam_engine_destroy(engine) == STAGEBEAM_INVALID_HANDLE);
  CHECK(has_error("destroyed"));
  stagebeam_event event = empty_event();
  while (stagebeam_question_next(question, -1, &event) == STAGEBEAM_OK) {
  }
  CHECK(event.type == STAGEBEAM_FAILED && event.status == STAGEBEAM_CANCELLED);
  CHECK(stagebeam_submit(engine, "x", nullptr, nullptr, &question) == STAGEBEAM_INVALID_HANDLE);
}

TEST(handles_of_the_wrong_kind_and_double_destroys) {
  const OpenEngine engine;
  const stagebeam_question question = engine.ask("tokens=1");
  CHECK(stagebeam_question_destroy(engine.handle) == STAGEBEAM_INVALID_HANDLE);
  CHECK(stagebeam_engine_destroy(question) == STAGEBEAM_INVALID_HANDLE);
  CHECK(stagebeam_question_destroy(question) == STAGEBEAM_OK);
  CHECK(stagebeam_question_destroy(question) == STAGEBEAM_INVALID_HANDLE);
  CHECK(stagebeam_question_cancel(question) == STAGEBEAM_INVALID_HANDLE);
  CHECK(stagebeam_question_destroy(0) == STAGEBEAM_INVALID_HANDLE);
}

TEST(null_pointers_and_wrong_sizes_are_errors) {
  const OpenEngine engine;
  stagebeam_event event = empty_event();
  stagebeam_stats stats{};
  stagebeam_engine_params engine_params;
  stagebeam_question_params params;
  stagebeam_question question = 0;
  CHECK(stagebeam_engine_create(nullptr, nullptr) == STAGEBEAM_INVALID_ARGUMENT);
  CHECK(stagebeam_engine_default_params(nullptr, 8) == STAGEBEAM_INVALID_ARGUMENT);
  CHECK(stagebeam_engine_default_params(&engine_params, 8) == STAGEBEAM_INVALID_ARGUMENT);
  CHECK(has_error("size is 8"));
  CHECK(stagebeam_question_default_params(&params, sizeof(params) + 8) ==
        STAGEBEAM_INVALID_ARGUMENT);
  CHECK(stagebeam_question_default_params(&params, sizeof(params)) == STAGEBEAM_OK);
  CHECK(params.size == sizeof(params) && params.beam_size == -1 && std::isnan(params.top_p));
  CHECK(stagebeam_submit(engine.handle, nullptr, nullptr, nullptr, &question) ==
        STAGEBEAM_INVALID_ARGUMENT);
  CHECK(stagebeam_submit(engine.handle, "x", nullptr, nullptr, nullptr) ==
        STAGEBEAM_INVALID_ARGUMENT);
  params.size = 0;
  CHECK(stagebeam_submit(engine.handle, "x", nullptr, &params, &question) ==
        STAGEBEAM_INVALID_ARGUMENT);
  CHECK(question == 0);
  CHECK(stagebeam_engine_stats(engine.handle, nullptr) == STAGEBEAM_INVALID_ARGUMENT);
  CHECK(stagebeam_engine_stats(engine.handle, &stats) == STAGEBEAM_INVALID_ARGUMENT);
  stats.size = sizeof(stats);
  CHECK(stagebeam_engine_stats(engine.handle, &stats) == STAGEBEAM_OK);
  question = engine.ask("tokens=1");
  CHECK(stagebeam_question_next(question, 0, nullptr) == STAGEBEAM_INVALID_ARGUMENT);
  event.size = sizeof(event) - 1;
  CHECK(stagebeam_question_next(question, 0, &event) == STAGEBEAM_INVALID_ARGUMENT);
  CHECK(stagebeam_question_destroy(question) == STAGEBEAM_OK);
  CHECK(stagebeam_engine_stats(engine.handle, &stats) == STAGEBEAM_OK);
  CHECK(stats.num_questions == 0);
}

TEST(bad_images_are_refused_before_they_are_read) {
  const OpenEngine engine;
  const std::vector<uint8_t> pixels(2 * 3 * 3);
  stagebeam_image good{};
  good.size = sizeof(good);
  good.kind = STAGEBEAM_IMAGE_RGB;
  good.width = 3;
  good.height = 2;
  good.data = pixels.data();
  good.num_bytes = pixels.size();
  const auto submit = [&](const stagebeam_image& image) {
    stagebeam_question question = 0;
    const stagebeam_status status =
        stagebeam_submit(engine.handle, "tokens=1", &image, nullptr, &question);
    if (status == STAGEBEAM_OK) CHECK(stagebeam_question_destroy(question) == STAGEBEAM_OK);
    return status;
  };
  CHECK(submit(good) == STAGEBEAM_OK);
  stagebeam_image image = good;
  image.num_bytes = 17;
  CHECK(submit(image) == STAGEBEAM_INVALID_ARGUMENT && has_error("expected 18"));
  image = good;
  image.width = -1;
  CHECK(submit(image) == STAGEBEAM_INVALID_ARGUMENT);
  image = good;
  image.width = image.height = INT32_MAX;
  CHECK(submit(image) == STAGEBEAM_INVALID_ARGUMENT);
  image = good;
  image.stride_bytes = 8;
  CHECK(submit(image) == STAGEBEAM_INVALID_ARGUMENT);
  image.stride_bytes = INT64_MIN;
  CHECK(submit(image) == STAGEBEAM_INVALID_ARGUMENT);
  image = good;
  image.data = nullptr;
  CHECK(submit(image) == STAGEBEAM_INVALID_ARGUMENT);
  for (const int32_t kind : std::initializer_list<int32_t>{0, 4, -1, STAGEBEAM_IMAGE_PATH}) {
    image = good;
    image.kind = kind;
    CHECK(submit(image) == STAGEBEAM_INVALID_ARGUMENT);
  }
  image = good;
  image.size = 1;
  CHECK(submit(image) == STAGEBEAM_INVALID_ARGUMENT);
  image.size = SIZE_MAX;
  CHECK(submit(image) == STAGEBEAM_INVALID_ARGUMENT);
}

TEST(the_engines_own_refusals_come_through) {
  const OpenEngine engine;
  stagebeam_engine_params params;
  CHECK(stagebeam_engine_default_params(&params, sizeof(params)) == STAGEBEAM_OK);
  params.path = "missing";
  stagebeam_engine other = 1;
  CHECK(stagebeam_engine_create(&params, &other) == STAGEBEAM_CHECKPOINT_ERROR);
  CHECK(other == 0);
  CHECK(has_error("no folder"));
  params.path = nullptr;
  params.max_branches = -1;
  CHECK(stagebeam_engine_create(&params, &other) == STAGEBEAM_INVALID_ARGUMENT);
  stagebeam_question question = 1;
  CHECK(stagebeam_submit(engine.handle, "refuse", nullptr, nullptr, &question) ==
        STAGEBEAM_CAPACITY_ERROR);
  CHECK(question == 0);
  CHECK(std::string(stagebeam_status_name(STAGEBEAM_CAPACITY_ERROR)) == "capacity error");
  CHECK(std::string(stagebeam_status_name(-5)) == "unknown");
  CHECK(stagebeam_abi_version() == STAGEBEAM_ABI_VERSION);
}
