"""The text that the bundled tokenizer is trained on: both data sets' texts and the judge's prompts."""

from __future__ import annotations

import random
from collections.abc import Iterator

from stagebeam.training.easy_vqa import annotated_rows, read_questions
from stagebeam.training.shapes.annotate import annotate, nine_places_text
from stagebeam.training.shapes.judge_pairs import TARGETS, make_gate, make_pair
from stagebeam.training.shapes.questions import sample_question
from stagebeam.training.shapes.scene import PLACES, sample_scene
from stagebeam.training.shapes.streams import CAPTION_PROMPT, PLACE_PROMPT, PLACES_PROMPT

NUM_SCENES = 4000
EASY_STRIDE = 5


def corpus_texts() -> Iterator[str]:
    """Texts of every kind that the model reads or writes, in a fixed order."""
    rng = random.Random(0)
    prompts = [PLACE_PROMPT.format(place=place) for place in PLACES]
    yield from [PLACES_PROMPT, CAPTION_PROMPT, *prompts] * 20
    for _ in range(NUM_SCENES):
        scene = sample_scene(rng, "train")
        question = sample_question(rng, scene)
        answer = annotate(question, scene)
        yield from (question.text, answer.text(), nine_places_text(scene))
        pair = make_pair(rng, question, scene, answer, rng.choice(TARGETS))
        yield from (pair.user_text(), pair.reply_text())
        gate = make_gate(rng, question, scene, answer)
        yield from (gate.user_text(), gate.reply_text(), "user", "assistant", "\n\n")
    for easy, staged in list(annotated_rows(read_questions("train")))[::EASY_STRIDE]:
        yield from (easy.text, staged.text())
