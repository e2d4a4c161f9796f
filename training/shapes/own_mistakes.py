"""The model's own mistakes as judge examples: candidates of an export's own search that are wrong.

Drawn mistakes (mistakes.py) are spread evenly; a model's own are not. The export answers training
questions by stage-level search; wherever the stages before one are right, each of that stage's wrong
candidates stands beside the right text, as the judge meets them. Kept as JSON lines, so that a resumed
training reads what was sampled.
"""

from __future__ import annotations

import json
import logging
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from PIL import Image

from stagebeam.engine.engine import Engine
from stagebeam.engine.outputs import Answer
from stagebeam.engine.params import SamplingParams, SearchParams
from stagebeam.training.shapes.annotate import annotate
from stagebeam.training.shapes.encoding import ChatEncoder
from stagebeam.training.shapes.judge_pairs import JudgePair, stage_hints
from stagebeam.training.shapes.questions import KINDS, Question, sample_question
from stagebeam.training.shapes.scene import Scene, Thing, draw_scene, sample_scene
from stagebeam.training.shapes.streams import Examples, pair_examples
from stagebeam.training.world import made_once, num_ranks

logger = logging.getLogger(__name__)

TEMPERATURE = 1.75  # where the second bundled search is evaluated: one answer of six is wrong
BEAM_SIZE = 8


def collect_mistakes(folder: Path, path: Path, *, seed: int, num_questions: int) -> int:
    """Search answers of the export `folder` to train questions; write the pairs to `path`, atomically.

    Returns the number of pairs.
    """
    keys = [f"{seed}/own/{index}" for index in range(num_questions)]
    drawn = [_draw(key, KINDS[index % len(KINDS)]) for index, key in enumerate(keys)]
    asked = [
        {
            "question": question.text,
            "image": _image(key, scene),
            "sampling": SamplingParams(temperature=TEMPERATURE, seed=index),
        }
        for index, (key, (scene, question)) in enumerate(zip(keys, drawn, strict=True))
    ]
    rows: dict[str, None] = {}
    with _all_ranks_threads(), Engine(folder) as engine:
        search = SearchParams(strategy="stage_beam", beam_size=BEAM_SIZE)
        answers = engine.answer_many(asked, search=search)
    for key, (scene, question), answer in zip(keys, drawn, answers, strict=True):
        for pair in wrong_candidates(answer, scene, question):
            things = [asdict(thing) for thing in scene]
            rows[json.dumps({"image": key, "scene": things, "pair": asdict(pair)})] = None
    part = path.with_suffix(".part")
    part.write_text("".join(f"{line}\n" for line in rows), encoding="utf-8")
    os.replace(part, path)
    logger.info("%d mistakes of %d questions in %s", len(rows), num_questions, path)
    return len(rows)


def collect_once(folder: Path, path: Path, *, seed: int, num_questions: int) -> Path:
    """`collect_mistakes` by one rank where `path` is not there yet; returns `path`."""

    def collect() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        collect_mistakes(folder, path, seed=seed, num_questions=num_questions)

    made_once(path, collect)
    return path


@contextmanager
def _all_ranks_threads() -> Iterator[None]:
    """One rank collects while the others wait: it takes their threads, too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(threads * num_ranks())
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _draw(key: str, kind: str) -> tuple[Scene, Question]:
    rng = random.Random(key)
    scene = sample_scene(rng, "train")
    return scene, sample_question(rng, scene, kind)


def _image(key: str, scene: Scene) -> Image.Image:
    """The picture of a collected question, the same whenever it is drawn."""
    return draw_scene(scene, random.Random(f"{key}/image"))


def wrong_candidates(answer: Answer, scene: Scene, question: Question) -> Iterator[JudgePair]:
    """Well-formed ones of each stage up to the first whose winner is wrong."""
    right = annotate(question, scene)
    for stage in answer.stages:
        wanted = getattr(right, stage.name)
        hints = stage_hints(stage.name, right)
        judged = (one.inner.strip() for one in stage.candidates if one.finish_reason == "tag")
        for text in dict.fromkeys(judged):
            if text and text != wanted:
                yield JudgePair(stage.name, question.text, hints, wanted, text, is_first=True)
        if stage.candidates[stage.winner].inner.strip() != wanted:
            return


class OwnMistakes:
    """The judge examples in a file that `collect_mistakes` wrote, each over the image it was made for."""

    def __init__(self, path: Path, encoder: ChatEncoder, *, visits: int = 64) -> None:
        self._encoder = encoder
        self._rows = list(_read(path))
        self._visits = visits

    def __len__(self) -> int:
        return len(self._rows) * self._visits

    def length(self, index: int) -> int:
        return len(self._rows[index % len(self._rows)][2].user_text()) // 4

    def __getitem__(self, index: int) -> Examples:
        key, scene, pair = self._rows[index % len(self._rows)]
        return pair_examples(self._encoder, pair, _image(key, scene))


def _read(path: Path) -> Iterator[tuple[str, Scene, JudgePair]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        hints = tuple((name, text) for name, text in row["pair"].pop("hints"))
        scene = tuple(Thing(**thing) for thing in row["scene"])
        yield row["image"], scene, JudgePair(hints=hints, **row["pair"])
