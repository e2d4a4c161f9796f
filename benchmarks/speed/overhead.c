/* One question through the C interface, each event taken as it comes: for overhead.py, by ctypes.
 */
#include <stagebeam.h>

static const char* failure;

const char* overhead_error(void) {
  return failure;
}

int overhead_open(const char* checkpoint, stagebeam_engine* engine) {
  stagebeam_engine_params params;
  stagebeam_engine_default_params(&params, sizeof(params));
  params.path = checkpoint;
  const stagebeam_status status = stagebeam_engine_create(&params, engine);
  failure = stagebeam_last_error();
  return status != STAGEBEAM_OK;
}

/* Answers greedily; returns the number of tokens, or -1. */
long long overhead_ask(stagebeam_engine engine, const char* text, long long max_tokens) {
  stagebeam_question_params params;
  stagebeam_question_default_params(&params, sizeof(params));
  params.strategy = "greedy";
  params.max_tokens = max_tokens;
  stagebeam_question question;
  if (stagebeam_submit(engine, text, NULL, &params, &question) != STAGEBEAM_OK) {
    failure = stagebeam_last_error();
    return -1;
  }
  stagebeam_event event = {.size = sizeof(event)};
  long long num_tokens = 0;
  while (stagebeam_question_next(question, -1, &event) == STAGEBEAM_OK) {
    if (event.type == STAGEBEAM_TOKEN_TEXT) num_tokens += (long long)event.num_tokens;
  }
  stagebeam_question_destroy(question);
  return num_tokens;
}
