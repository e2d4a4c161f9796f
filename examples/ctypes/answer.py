"""Ask through the C interface with ctypes alone: python answer.py LIBSTAGEBEAM IMAGE QUESTION."""

from __future__ import annotations

import ctypes
import json
import math
import sys

OK, STAGE_COMMITTED, DONE = 0, 5, 6


class Struct(ctypes.Structure):
    """A struct of stagebeam.h: its first field is its size."""

    def __init__(self, **fields: object) -> None:
        super().__init__(size=ctypes.sizeof(self), **fields)


class EngineParams(Struct):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("path", ctypes.c_char_p),
        ("python", ctypes.c_char_p),
        ("device", ctypes.c_char_p),
        ("dtype", ctypes.c_char_p),
        ("backend", ctypes.c_char_p),
        ("max_model_len", ctypes.c_int64),
        ("kv_cache_bytes", ctypes.c_int64),
        ("max_branches", ctypes.c_int64),
        ("seed", ctypes.c_uint64),
        ("num_threads", ctypes.c_int64),
    )


class QuestionParams(Struct):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("strategy", ctypes.c_char_p),
        ("beam_size", ctypes.c_int64),
        ("temperature", ctypes.c_double),
        ("top_p", ctypes.c_double),
        ("min_p", ctypes.c_double),
        ("top_k", ctypes.c_int64),
        ("max_tokens", ctypes.c_int64),
        ("has_seed", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("seed", ctypes.c_uint64),
        ("judge_mode", ctypes.c_char_p),
        ("tournament", ctypes.c_char_p),
        ("deadline_seconds", ctypes.c_double),
    )


class Image(Struct):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("kind", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("path", ctypes.c_char_p),
        ("data", ctypes.c_char_p),
        ("num_bytes", ctypes.c_size_t),
        ("stride_bytes", ctypes.c_int64),
    )


class Event(Struct):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("type", ctypes.c_int32),
        ("status", ctypes.c_int32),
        ("num_candidates", ctypes.c_int32),
        ("first_candidate", ctypes.c_int32),
        ("round", ctypes.c_int32),
        ("candidate", ctypes.c_int32),
        ("first", ctypes.c_int32),
        ("second", ctypes.c_int32),
        ("winner", ctypes.c_int32),
        ("probability", ctypes.c_double),
        ("stage", ctypes.c_char_p),
        ("text", ctypes.c_char_p),
        ("text_bytes", ctypes.c_size_t),
        ("token_ids", ctypes.POINTER(ctypes.c_int32)),
        ("logprobs", ctypes.POINTER(ctypes.c_double)),
        ("num_tokens", ctypes.c_size_t),
        ("finish_reason", ctypes.c_char_p),
        ("json", ctypes.c_char_p),
    )


class Stats(Struct):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("num_questions", ctypes.c_int64),
        ("num_running", ctypes.c_int64),
        ("num_blocks", ctypes.c_int64),
        ("num_free_blocks", ctypes.c_int64),
        ("num_reserved_blocks", ctypes.c_int64),
        ("num_sequences", ctypes.c_int64),
        ("num_image_slots", ctypes.c_int64),
        ("num_images_in_use", ctypes.c_int64),
    )


def load(path: str) -> ctypes.CDLL:
    """libstagebeam with its functions' types. A CDLL lets go of the GIL during a call; a PyDLL would
    keep it, and the engine could not go on."""
    library = ctypes.CDLL(path)
    handle, pointer = ctypes.c_uint64, ctypes.POINTER
    library.stagebeam_last_error.restype = ctypes.c_char_p
    library.stagebeam_status_name.restype = ctypes.c_char_p
    library.stagebeam_engine_create.argtypes = [pointer(EngineParams), pointer(handle)]
    library.stagebeam_engine_stats.argtypes = [handle, pointer(Stats)]
    library.stagebeam_engine_destroy.argtypes = [handle]
    library.stagebeam_submit.argtypes = [
        handle,
        ctypes.c_char_p,
        pointer(Image),
        pointer(QuestionParams),
        pointer(handle),
    ]
    library.stagebeam_question_next.argtypes = [handle, ctypes.c_int64, pointer(Event)]
    library.stagebeam_question_cancel.argtypes = [handle]
    library.stagebeam_question_destroy.argtypes = [handle]
    return library


def question_params(**fields: object) -> QuestionParams:
    """The engine's defaults, but for `fields`."""
    unset = dict.fromkeys(("temperature", "top_p", "min_p", "deadline_seconds"), math.nan)
    unset |= dict.fromkeys(("beam_size", "top_k", "max_tokens"), -1)
    return QuestionParams(**{**unset, **fields})


def main(library_path: str, image_path: str, text: str) -> int:
    library = load(library_path)

    def check(status: int) -> None:
        if status != OK:
            raise SystemExit(library.stagebeam_last_error().decode())

    engine, question, event = ctypes.c_uint64(), ctypes.c_uint64(), Event()
    check(library.stagebeam_engine_create(EngineParams(kv_cache_bytes=64 << 20), engine))
    image = Image(kind=1, path=image_path.encode())
    params = question_params(beam_size=2, max_tokens=100, has_seed=1, seed=7)
    check(library.stagebeam_submit(engine, text.encode(), image, params, question))
    while library.stagebeam_question_next(question, -1, event) == OK:
        if event.type == STAGE_COMMITTED:
            print(event.stage.decode() + ":", event.text.decode())
    if event.type == DONE:
        answer = json.loads(event.json)["answer"]
        print("answer:", answer["conclusion"])
        print("tokens:", answer["usage"]["completion_tokens"])
    else:
        print("failed:", event.text.decode(), file=sys.stderr)
    library.stagebeam_question_destroy(question)
    library.stagebeam_engine_destroy(engine)
    return 0 if event.type == DONE else 1


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    sys.exit(main(*sys.argv[1:]))
