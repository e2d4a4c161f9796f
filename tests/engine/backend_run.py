"""One question through every phase of an engine of one backend, for test_triton_engine.

Prints what was decided: the candidates' tokens, the verdict of each pair, and the committed text.
"""

from __future__ import annotations

import json
import sys

from stagebeam import Engine, SamplingParams
from stagebeam.engine.checkpoints import ASSETS

NUM_BRANCHES, NUM_STEPS = 4, 16


def main(backend: str, poll_steps: int | None) -> None:
    with Engine(
        device="cpu",
        dtype="float32",
        backend=backend,
        poll_steps=poll_steps,
        kv_cache_bytes=1 << 23,
    ) as engine:
        question = (ASSETS / "examples/scene.txt").read_text().strip()
        root = engine.open(question, ASSETS / "examples/scene.png")
        kids = root.fork(NUM_BRANCHES)
        sampling = SamplingParams(
            temperature=8.0,
            top_k=40,
            top_p=0.95,
            min_p=0.001,
            max_tokens=NUM_STEPS,
            ignore_eos=True,
            seed=3,
        )
        start = len(root.token_ids)
        engine.decode(kids, until="</NEVER>", sampling=sampling)
        told = {
            "tokens": [kid.token_ids[start:] for kid in kids],
            "logprobs": [kid.cumulative_logprob for kid in kids],
            "verdicts": engine.score(
                [(kids[0], kids[1]), (kids[2], kids[3])], criterion="Which is right?"
            ),
        }
        kids[1].commit()
        told["committed"] = root.token_ids[start:]
        root.release()
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None)
