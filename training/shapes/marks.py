"""Marks on a judge example's candidates: what should stand there and which words are wrong.

A verdict is one label for a hundred tokens. Marks teach the judge to work it out as it reads: before
each word of a candidate it is to predict the right one, and after it the gate's word for "correct" or
"incorrect". They bear loss in training only, before the last layers, which then can read them: the
right word WORD_LAYERS before the end, where the model has what it would write itself; the mark before
the last layer. The prompt that the engine sends is unchanged.
"""

from __future__ import annotations

from stagebeam.training.shapes.encoding import ChatEncoder, Mark
from stagebeam.training.shapes.judge_pairs import SHAPES_PLAN, JudgePair

WORD_LAYERS, MARK_LAYERS = 3, 1  # before so many of the last layers
DECIDING_WEIGHT = 2.0  # of the marks at the first difference
WRONG_WEIGHT = 6.0  # of the wrong one there
PLAIN_WEIGHT, PLAIN_TOTAL = 0.25, 3.0  # of each other mark, at most; of all in a candidate, about


def mark_pair(encoder: ChatEncoder, pair: JudgePair, user_text: str) -> list[Mark]:
    """Marks on both candidates, by their positions in the user text's ids, one a position at most.

    Up to the first difference both candidates are right. There the right word is to be predicted in
    both, and the wrong one marked, where one text ends what stands after its end; what comes after the
    difference follows from the mistake and is left unmarked, unless the texts run in step again.
    """
    correct, incorrect = mark_ids(encoder)
    encoding = encoder.tokenizer.encode(user_text, add_special_tokens=False)
    tokens = encoding.ids
    spans = [
        [
            index
            for index, (start, end) in enumerate(encoding.offsets)
            if start >= begin - 1 and end <= begin + len(text)
        ]
        for begin, text in zip(candidate_starts(pair, user_text), pair.texts, strict=True)
    ]
    good, bad = spans if pair.is_first else spans[::-1]
    right = [tokens[position] for position in good]
    same = [tokens[position] == token for position, token in zip(bad, right, strict=False)]
    difference = same.index(False) if False in same else len(same)
    if len(good) != len(bad):  # never in step again
        same = same[:difference]
    weight = min(PLAIN_WEIGHT, PLAIN_TOTAL / max(len(good), 1))
    marks: dict[int, Mark] = {}
    for span, is_known in ((good, [True] * len(good)), (bad, same)):
        for count, position in enumerate(span[: len(is_known)]):
            if not is_known[count]:
                continue
            turn = (count + len(tokens)) % 3
            if turn == 0:
                marks[position] = Mark(position, correct, weight, MARK_LAYERS)
            elif turn == 2:
                marks[position - 1] = Mark(position - 1, right[count], weight, WORD_LAYERS)
    for span, token, deciding in (
        (good, correct, DECIDING_WEIGHT),
        (bad, incorrect, WRONG_WEIGHT),
    ):
        at = span[difference] if difference < len(span) else span[-1] + 1  # what stands after it
        if difference < len(right):
            marks[at - 1] = Mark(at - 1, right[difference], DECIDING_WEIGHT, WORD_LAYERS)
        marks[at] = Mark(at, token, deciding, MARK_LAYERS)
    return sorted(marks.values(), key=lambda mark: mark.position)


def mark_ids(encoder: ChatEncoder) -> tuple[int, int]:
    """The tokens that mark a word as right and as wrong."""
    correct, incorrect = (encoder.ids(f" {word}")[0] for word in SHAPES_PLAN.prompts.gate_words)
    return correct, incorrect


def candidate_starts(pair: JudgePair, user_text: str) -> tuple[int, int]:
    """Where the two candidates begin in the user text, which ends with them."""
    first, second = pair.texts
    second_start = len(user_text) - len(second)
    return second_start - len("\nResponse 2: ") - len(first), second_start
