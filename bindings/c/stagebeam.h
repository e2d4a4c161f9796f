/* stagebeam's C interface: answer questions about images from any language, in this process.
 *
 *   stagebeam_engine engine;
 *   stagebeam_question question;
 *   stagebeam_event event = {.size = sizeof(event)};
 *   stagebeam_engine_create(NULL, &engine);                          // the bundled checkpoint
 *   stagebeam_submit(engine, "How many circles?", &image, NULL, &question);
 *   while (stagebeam_question_next(question, -1, &event) == STAGEBEAM_OK) ...
 *   stagebeam_question_destroy(question);
 *   stagebeam_engine_destroy(engine);
 *
 * Every function may be called from any thread, and none lets an exception out. Handles are
 * numbers: one that was destroyed or never given out is STAGEBEAM_INVALID_HANDLE, not a crash.
 * Texts are UTF-8.
 *
 * Structs grow at their end only. `size` says which of their fields the caller knows: set it with
 * the
 * *_default_params functions, or to sizeof the struct. docs/embedding.md has the rest.
 */
#ifndef STAGEBEAM_H_
#define STAGEBEAM_H_

#include <stddef.h>
#include <stdint.h>

#if defined(__cplusplus)
#define STAGEBEAM_NOEXCEPT noexcept
extern "C" {
#else
#define STAGEBEAM_NOEXCEPT
#endif

#if defined(__GNUC__)
#define STAGEBEAM_API __attribute__((visibility("default")))
#else
#define STAGEBEAM_API
#endif

/* Changes when a program must be compiled again. */
#define STAGEBEAM_ABI_VERSION 1

typedef uint64_t stagebeam_engine;   /* 0 is never one */
typedef uint64_t stagebeam_question; /* 0 is never one */

typedef int32_t stagebeam_status;
enum {
  STAGEBEAM_OK = 0,
  STAGEBEAM_INVALID_ARGUMENT = 1,  /* a null pointer, a wrong size, a value out of range */
  STAGEBEAM_INVALID_HANDLE = 2,    /* never given out, or destroyed */
  STAGEBEAM_IMAGE_ERROR = 3,       /* an image that cannot be read or does not fit the model */
  STAGEBEAM_CHECKPOINT_ERROR = 4,  /* a model folder that cannot be used */
  STAGEBEAM_CAPACITY_ERROR = 5,    /* can never fit in the caches or the context */
  STAGEBEAM_CANCELLED = 6,         /* the question was cancelled or its engine destroyed */
  STAGEBEAM_TIMEOUT = 7,           /* no event within the time given */
  STAGEBEAM_END = 8,               /* the last event has been taken */
  STAGEBEAM_ENVIRONMENT_ERROR = 9, /* no usable Python environment */
  STAGEBEAM_INTERNAL_ERROR = 10,   /* a fault of the library's */
  STAGEBEAM_DEADLINE_ERROR = 11    /* the question's own deadline passed */
};

typedef int32_t stagebeam_event_type;
enum {
  STAGEBEAM_STAGE_STARTED = 1,
  STAGEBEAM_TOKEN_TEXT = 2,
  STAGEBEAM_CANDIDATE_FINISHED = 3,
  STAGEBEAM_MATCH_JUDGED = 4,
  STAGEBEAM_STAGE_COMMITTED = 5,
  STAGEBEAM_DONE = 6,  /* the last event: the answer */
  STAGEBEAM_FAILED = 7 /* the last event: an error or a cancel */
};

typedef int32_t stagebeam_image_kind;
enum { STAGEBEAM_IMAGE_PATH = 1, STAGEBEAM_IMAGE_ENCODED = 2, STAGEBEAM_IMAGE_RGB = 3 };

/* How an engine is opened. NULL and 0 are the engine's own defaults, but for `seed`. */
typedef struct stagebeam_engine_params {
  size_t size;
  const char* path;       /* a HF folder or hub id; NULL is the bundled checkpoint */
  const char* python;     /* the Python environment, for the first engine: docs/embedding.md */
  const char* device;     /* "auto", "cpu", "cuda", ... */
  const char* dtype;      /* "auto", "float32", "bfloat16", ... */
  const char* backend;    /* which kernels: "auto", "native", "reference", ... */
  int64_t max_model_len;  /* tokens */
  int64_t kv_cache_bytes; /* bytes */
  int64_t max_branches;   /* rows of a decode step */
  uint64_t seed;          /* where the seeds of questions without one come from */
  int64_t num_threads;    /* of the process's PyTorch, 0 leaves it */
} stagebeam_engine_params;

/* How a question is searched. NULL, and NaN or -1 as said, are the engine's own defaults. */
typedef struct stagebeam_question_params {
  size_t size;
  const char* strategy; /* "stage_beam", "best_of_n", "sentence_beam", "single", "greedy" */
  int64_t beam_size;    /* -1: default */
  double temperature;   /* NaN: default; 0 is argmax */
  double top_p;         /* NaN: default */
  double min_p;         /* NaN: default */
  int64_t top_k;        /* -1: default; 0 is off */
  int64_t max_tokens;   /* -1: default; per stage */
  int32_t has_seed;     /* 0: the seed is derived and stands in the answer */
  int32_t reserved;     /* 0 */
  uint64_t seed;
  const char* judge_mode;  /* "logits", "generate" */
  const char* tournament;  /* "paper", "knockout", "round_robin" */
  double deadline_seconds; /* from now; then FAILED with DEADLINE_ERROR. NaN: none */
} stagebeam_question_params;

/* Read during stagebeam_submit only: the memory is the caller's again when it returns. */
typedef struct stagebeam_image {
  size_t size;
  stagebeam_image_kind kind;
  int32_t width;        /* RGB: pixels */
  int32_t height;       /* RGB: rows */
  int32_t reserved;     /* 0 */
  const char* path;     /* PATH */
  const void* data;     /* ENCODED: a PNG, JPEG, ... file's bytes; RGB: 3 bytes a pixel */
  size_t num_bytes;     /* of data */
  int64_t stride_bytes; /* RGB: from one row to the next; 0 is 3 * width */
} stagebeam_image;

/* Texts and arrays belong to the calling thread until its next stagebeam_question_next; no text is
 * NULL. docs/events.md says what the fields mean. */
typedef struct stagebeam_event {
  size_t size;
  stagebeam_event_type type;
  stagebeam_status status; /* FAILED: why; else STAGEBEAM_OK */
  int32_t num_candidates;  /* STAGE_STARTED: candidates first_candidate and up */
  int32_t first_candidate; /* STAGE_STARTED */
  int32_t round;           /* counts where a search samples a stage again */
  int32_t candidate;       /* TOKEN_TEXT, CANDIDATE_FINISHED; else -1 */
  int32_t first;           /* MATCH_JUDGED: the two candidates, else -1 */
  int32_t second;
  int32_t winner;            /* MATCH_JUDGED, STAGE_COMMITTED: the candidate, else -1 */
  double probability;        /* MATCH_JUDGED: that the first is better */
  const char* stage;         /* "" for DONE and FAILED */
  const char* text;          /* TOKEN_TEXT: new text; STAGE_COMMITTED: the winner's; DONE: the
                                conclusion; FAILED: the error */
  size_t text_bytes;         /* of text, without its final 0; a text may hold zeros */
  const int32_t* token_ids;  /* TOKEN_TEXT: the tokens that the text completes */
  const double* logprobs;    /* TOKEN_TEXT: natural, untempered, one a token */
  size_t num_tokens;         /* of token_ids and logprobs */
  const char* finish_reason; /* CANDIDATE_FINISHED, DONE: "tag", "eos", "length", ...; else "" */
  const char* json;          /* the whole event, in the schema of Python's event_to_dict; DONE has
                                the whole answer: stages, candidates, matches, usage, timings */
} stagebeam_event;

typedef struct stagebeam_stats {
  size_t size;
  int64_t num_questions; /* open: not yet destroyed */
  int64_t num_running;   /* of these, whose last event has not come */
  int64_t num_blocks;    /* KV cache blocks */
  int64_t num_free_blocks;
  int64_t num_reserved_blocks;
  int64_t num_sequences; /* block tables alive */
  int64_t num_image_slots;
  int64_t num_images_in_use;
} stagebeam_stats;

STAGEBEAM_API uint32_t stagebeam_abi_version(void) STAGEBEAM_NOEXCEPT;
STAGEBEAM_API const char* stagebeam_status_name(stagebeam_status status) STAGEBEAM_NOEXCEPT;

/* What was wrong with the calling thread's last call that failed; "" where none has. It stays until
 * the next that fails. TIMEOUT and END are no failures. */
STAGEBEAM_API const char* stagebeam_last_error(void) STAGEBEAM_NOEXCEPT;

/* Fill in the defaults; `size` is sizeof(*params). */
STAGEBEAM_API stagebeam_status stagebeam_engine_default_params(stagebeam_engine_params* params,
                                                               size_t size) STAGEBEAM_NOEXCEPT;
STAGEBEAM_API stagebeam_status stagebeam_question_default_params(stagebeam_question_params* params,
                                                                 size_t size) STAGEBEAM_NOEXCEPT;

/* Load a checkpoint (seconds); params may be NULL. The first engine starts the Python interpreter
 * unless the process runs one; it is never stopped. */
STAGEBEAM_API stagebeam_status stagebeam_engine_create(const stagebeam_engine_params* params,
                                                       stagebeam_engine* engine) STAGEBEAM_NOEXCEPT;

/* Blocks and questions of this moment. */
STAGEBEAM_API stagebeam_status stagebeam_engine_stats(stagebeam_engine engine,
                                                      stagebeam_stats* stats) STAGEBEAM_NOEXCEPT;

/* End its questions with FAILED (CANCELLED) and free its memory. The questions' handles are the
 * caller's to destroy, before or after. */
STAGEBEAM_API stagebeam_status stagebeam_engine_destroy(stagebeam_engine engine) STAGEBEAM_NOEXCEPT;

/* Start a question and return once its image is read; image and params may be NULL. */
STAGEBEAM_API stagebeam_status stagebeam_submit(stagebeam_engine engine, const char* text,
                                                const stagebeam_image* image,
                                                const stagebeam_question_params* params,
                                                stagebeam_question* question) STAGEBEAM_NOEXCEPT;

/* Take the next event. timeout_ms: 0 polls, negative waits without end. TIMEOUT: none came in time;
 * END: DONE or FAILED has been taken; CANCELLED: another thread destroyed the question meanwhile.
 */
STAGEBEAM_API stagebeam_status stagebeam_question_next(stagebeam_question question,
                                                       int64_t timeout_ms,
                                                       stagebeam_event* event) STAGEBEAM_NOEXCEPT;

/* End it early: FAILED with CANCELLED follows what is queued. No effect once it has ended. */
STAGEBEAM_API stagebeam_status stagebeam_question_cancel(stagebeam_question question)
    STAGEBEAM_NOEXCEPT;

/* Forget it, cancelling it where it still runs. */
STAGEBEAM_API stagebeam_status stagebeam_question_destroy(stagebeam_question question)
    STAGEBEAM_NOEXCEPT;

#if defined(__cplusplus)
} /* extern "C" */
#endif

#endif /* STAGEBEAM_H_ */
