/* Ask one question about an image and print what happens.   answer IMAGE QUESTION [CHECKPOINT] */
#include <stagebeam.h>
#include <stdio.h>

static int fail(const char* what) {
  fprintf(stderr, "%s: %s\n", what, stagebeam_last_error());
  return 1;
}

int main(int argc, char** argv) {
  if (argc < 3) return fprintf(stderr, "usage: answer IMAGE QUESTION [CHECKPOINT]\n"), 2;

  stagebeam_engine engine;
  stagebeam_engine_params engine_params;
  stagebeam_engine_default_params(&engine_params, sizeof(engine_params));
  engine_params.path = argc > 3 ? argv[3] : NULL; /* NULL: the bundled checkpoint */
  engine_params.kv_cache_bytes = 64 << 20;
  if (stagebeam_engine_create(&engine_params, &engine) != STAGEBEAM_OK) return fail("create");

  stagebeam_image image = {.size = sizeof(image), .kind = STAGEBEAM_IMAGE_PATH, .path = argv[1]};
  stagebeam_question_params params;
  stagebeam_question_default_params(&params, sizeof(params));
  params.beam_size = 2;
  params.max_tokens = 100;
  params.has_seed = 1;
  params.seed = 7;
  stagebeam_question question;
  if (stagebeam_submit(engine, argv[2], &image, &params, &question) != STAGEBEAM_OK) {
    return fail("submit");
  }

  stagebeam_event event = {.size = sizeof(event)};
  while (stagebeam_question_next(question, -1, &event) == STAGEBEAM_OK) {
    switch (event.type) {
      case STAGEBEAM_STAGE_STARTED:
        printf("%s: %d candidates\n", event.stage, event.num_candidates);
        break;
      case STAGEBEAM_MATCH_JUDGED:
        printf("  %d against %d: %.2f\n", event.first, event.second, event.probability);
        break;
      case STAGEBEAM_STAGE_COMMITTED:
        printf("  %d wins: %s\n", event.winner, event.text);
        break;
      case STAGEBEAM_DONE:
        printf("answer: %s\n", event.text);
        break;
      case STAGEBEAM_FAILED:
        fprintf(stderr, "failed: %s\n", event.text);
        break;
    }
  }
  stagebeam_question_destroy(question);
  stagebeam_engine_destroy(engine);
  return event.type == STAGEBEAM_DONE ? 0 : 1;
}
