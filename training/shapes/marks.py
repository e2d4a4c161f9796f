"""Marks on a judge example's candidates: which words are wrong, as extra labels.

A verdict is one label for a hundred tokens. Marks teach the judge where to look: after reading each
word of a candidate, the model is to predict the gate's word for "correct" or "incorrect". They bear
loss in training only, before the last layer, which then can read them; the prompt that the engine
sends is unchanged.
"""

from __future__ import annotations

from stagebeam.training.shapes.encoding import ChatEncoder, Mark
from stagebeam.training.shapes.judge_pairs import SHAPES_PLAN, JudgePair

KEEP_EVERY = 2  # of the correct words, one in so many is marked


RIGHT_WEIGHT, WRONG_WEIGHT = 0.25, 2.0


def mark_pair(encoder: ChatEncoder, pair: JudgePair, user_text: str) -> list[Mark]:
    """Marks on the wrong word and on some right ones, by their positions in the user text's ids.

    Up to the first difference both candidates are right. There the wrong one is marked; what comes
    after it follows from the mistake and is left unmarked, unless the texts run in step again.
    """
    correct, incorrect = (encoder.ids(f" {word}")[0] for word in SHAPES_PLAN.prompts.gate_words)
    encoding = encoder.tokenizer.encode(user_text, add_special_tokens=False)
    tokens = encoding.ids
    starts = [start for start, _ in encoding.offsets]
    ends = [end for _, end in encoding.offsets]
    first, second = pair.texts
    second_start = len(user_text) - len(second)
    first_start = second_start - len("\nResponse 2: ") - len(first)
    spans = [
        [i for i in range(len(tokens)) if starts[i] >= begin - 1 and ends[i] <= begin + length]
        for begin, length in ((first_start, len(first)), (second_start, len(second)))
    ]
    good, bad = spans if pair.is_first else spans[::-1]
    marks: list[Mark] = []
    for count, position in enumerate(good):
        if count % KEEP_EVERY == len(tokens) % KEEP_EVERY:
            marks.append(Mark(position, correct, RIGHT_WEIGHT))
    in_step = len(good) == len(bad)
    found = False
    for count, position in enumerate(bad):
        is_same = count < len(good) and tokens[position] == tokens[good[count]]
        if not found and not is_same:
            found = True
            marks.append(Mark(position, incorrect, WRONG_WEIGHT))
        elif is_same and (in_step or not found) and count % KEEP_EVERY == 0:
            marks.append(Mark(position, correct, RIGHT_WEIGHT))
    return sorted(marks, key=lambda mark: mark.position)
