/* Times one question through the C interface: overhead CHECKPOINT DTYPE KV_CACHE_BYTES NUM_THREADS.
 *
 * For every line "MAX_TOKENS QUESTION" on stdin, answers it greedily, taking each event as it
 * comes, and prints "SECONDS NUM_TOKENS". */
#include <stagebeam.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static int fail(const char* what) {
  fprintf(stderr, "%s: %s\n", what, stagebeam_last_error());
  return 1;
}

int main(int argc, char** argv) {
  if (argc != 5) {
    fprintf(stderr, "usage: overhead CHECKPOINT DTYPE KV_CACHE_BYTES NUM_THREADS\n");
    return 2;
  }
  stagebeam_engine engine;
  stagebeam_engine_params engine_params;
  stagebeam_engine_default_params(&engine_params, sizeof(engine_params));
  engine_params.path = argv[1];
  engine_params.dtype = argv[2];
  engine_params.kv_cache_bytes = atoll(argv[3]);
  engine_params.num_threads = atoll(argv[4]);
  if (stagebeam_engine_create(&engine_params, &engine) != STAGEBEAM_OK) return fail("create");
  printf("ready\n");
  fflush(stdout);

  char line[4096];
  while (fgets(line, sizeof(line), stdin)) {
    line[strcspn(line, "\n")] = 0;
    char* text = NULL;
    stagebeam_question_params params;
    stagebeam_question_default_params(&params, sizeof(params));
    params.strategy = "greedy";
    params.max_tokens = strtoll(line, &text, 10);
    stagebeam_question question;
    stagebeam_event event = {.size = sizeof(event)};
    size_t num_tokens = 0;
    const double began = now();
    if (stagebeam_submit(engine, text + 1, NULL, &params, &question) != STAGEBEAM_OK) {
      return fail("submit");
    }
    while (stagebeam_question_next(question, -1, &event) == STAGEBEAM_OK) {
      if (event.type == STAGEBEAM_TOKEN_TEXT) num_tokens += event.num_tokens;
    }
    printf("%.9f %zu\n", now() - began, num_tokens);
    fflush(stdout);
    stagebeam_question_destroy(question);
  }
  stagebeam_engine_destroy(engine);
  return 0;
}
