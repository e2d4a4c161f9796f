"""The shapes data set as rows to write: what streams.py draws in memory, as texts and pictures.

A row is a function of seed, task, split and number, and equals the stream's example of the same
number, except that the layout has no place for the marks inside judge prompts (marks.py) and for
replies of which only a part bears loss (the task "text").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from PIL import Image
from tokenizers import Tokenizer, models

from stagebeam.engine.errors import InvalidInputError
from stagebeam.training.dataset_writer import NewRow
from stagebeam.training.shapes.annotate import caption_text, nine_places_text
from stagebeam.training.shapes.encoding import ChatEncoder
from stagebeam.training.shapes.judge_pairs import TARGETS, make_gate, make_pair
from stagebeam.training.shapes.scene import SPLITS, draw_scene
from stagebeam.training.shapes.streams import CAPTION_PROMPT, PLACES_PROMPT, Drawn, ShapesStream

Parts = tuple[str, str, Image.Image | None]  # the user's text, the reply, the picture


def shapes_rows(
    tasks: Sequence[str], *, seed: int, split: str, num_examples: int
) -> Iterator[NewRow]:
    """`num_examples` rows of every task in `tasks`, names of TASKS, the tasks taking turns."""
    if num_examples < 1:
        raise InvalidInputError(f"num_examples must be >= 1, got {num_examples}")
    rows_of = row_maker(tasks, seed=seed, split=split)
    return (row for index in range(num_examples) for row in rows_of(index))


def row_maker(tasks: Sequence[str], *, seed: int, split: str) -> Callable[[int], list[NewRow]]:
    """A function from a number to the row of each task."""
    unknown = [task for task in tasks if task not in TASKS]
    if unknown or not tasks or len(set(tasks)) < len(tasks):
        raise InvalidInputError(f"tasks must be different ones of {', '.join(TASKS)}; got {tasks}")
    if split not in SPLITS:
        raise InvalidInputError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    no_tokens = ChatEncoder(Tokenizer(models.BPE()))  # drawing needs none
    streams = [ShapesStream(task, no_tokens, seed=seed, split=split) for task in tasks]
    return lambda index: [_row(stream.task, split, index, stream.draw(index)) for stream in streams]


def _row(task: str, split: str, index: int, drawn: Drawn) -> NewRow:
    user, reply, picture = TASKS[task](drawn)
    return NewRow(
        identity=f"shapes/{split}/{task}/{index}",
        user=user,
        reply=reply,
        image_name=None if picture is None else f"images/{task}/{index:06d}.png",
        image=picture,
    )


def _answer(one: Drawn) -> Parts:
    return one.question.text, one.answer.text(), draw_scene(one.scene, one.rng)


def _places(one: Drawn) -> Parts:
    return PLACES_PROMPT, nine_places_text(one.scene), draw_scene(one.scene, one.rng)


def _caption(one: Drawn) -> Parts:
    return CAPTION_PROMPT, caption_text(one.scene), draw_scene(one.scene, one.rng)


def _gate(one: Drawn) -> Parts:
    gate = make_gate(one.rng, one.question, one.scene, one.answer)
    return gate.user_text(), gate.reply_text(), None


def _pair(target: str) -> Callable[[Drawn], Parts]:
    def parts(one: Drawn) -> Parts:
        pair = make_pair(one.rng, one.question, one.scene, one.answer, target)
        return pair.user_text(), pair.reply_text(), draw_scene(one.scene, one.rng)

    return parts


TASKS: dict[str, Callable[[Drawn], Parts]] = {
    "answer": _answer,
    "places": _places,
    "caption": _caption,
    "gate": _gate,
    **{f"judge-{target}": _pair(target) for target in TARGETS},
}
