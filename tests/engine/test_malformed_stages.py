"""Stages that end badly give typed results and an answer that says so, never an exception.

The texts are scripted: the model runs as ever, then the logits of the script's next token win.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from probe import assert_nothing_held, choices
from tiny_checkpoint import PLAN

from stagebeam.engine.engine import Engine
from stagebeam.engine.params import JudgeParams, SearchParams
from stagebeam.engine.tag_automaton import token_bytes

EOS = "<|eot|>"


@pytest.fixture
def engine(make_engine) -> Engine:
    """One whose logits a test can write: the native step keeps them to itself."""
    return make_engine(backend="reference")


@pytest.fixture
def script(engine) -> Callable[..., Engine]:
    """Make the engine write given texts: name of the stage -> a text (or its pieces, each with
    tokens of its own) a candidate."""

    def attach(
        texts: dict[str, Sequence[str | tuple[str, ...]]], target: Engine = engine
    ) -> Engine:
        loop, runner = target._loop, target._loop._runner
        decode, logits = runner.decode, runner.model.logits
        encode = target.processor.encode
        rows: list[object] = []

        def scripted_decode(batch, may_run_ahead):
            rows[:] = batch.rows
            return decode(batch, may_run_ahead)

        def scripted_logits(hidden):
            scores = logits(hidden)
            for score, row in zip(scores, rows):
                track = loop._decoder._tracks[row.seq]
                written = texts.get(track.name or "judge")
                if written is not None:
                    text = written[track.index % len(written)]
                    pieces = (text,) if isinstance(text, str) else text
                    tokens = [token for piece in pieces for token in encode(piece)]
                    step = len(track.token_ids)
                    score[tokens[step] if step < len(tokens) else encode("z")[0]] += 1e4
            return scores

        runner.decode, runner.model.logits = scripted_decode, scripted_logits
        return target

    return attach


GOOD = {
    "summary": ["<S>plan</S>\n", "<S>another plan</S>"],
    "caption": ["<C>two dogs</C>"],
    "reasoning": ["<R>2 é dogs</R> "],
    "final": ["<F>2</F>", "<F>two</F>"],
}


def ask(engine, image, free_sampling, max_tokens: int = 30, beam_size: int = 2, **options):
    return engine.answer(
        options.pop("question", "how many?"),
        image,
        search=SearchParams(beam_size=beam_size, strategy=options.pop("strategy", "stage_beam")),
        sampling=free_sampling(max_tokens, seed=1),
        **options,
    )


def test_a_good_answer(script, image, free_sampling) -> None:
    answer = ask(script(GOOD), image, free_sampling)
    assert answer.finish_reason == "tag"
    assert answer.conclusion in ("2", "two")
    assert answer.text.startswith(("<S>plan</S>\n<C>two dogs</C><R>", "<S>another plan</S><C>"))
    assert [stage.text for stage in answer.stages][1:3] == ["two dogs", "2 é dogs"]
    assert answer.stages[1].matches[0].kind == "identical"
    assert answer.usage.identical_matches == 2
    assert answer.usage.malformed_candidates == 0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<R>no end in sight" + " again" * 20, "length"),
        ("<R>I stop here" + EOS, "eos"),
        ("<R>lost</C>", "wrong_tag"),
        (EOS, "eos"),
        ("", "length"),
    ],
)
def test_all_candidates_end_badly(script, image, free_sampling, text, reason) -> None:
    engine = script(GOOD | {"reasoning": [text]})
    answer = ask(engine, image, free_sampling)
    assert answer.finish_reason == reason
    assert answer.conclusion == ""
    assert [stage.name for stage in answer.stages] == ["summary", "caption", "reasoning"]
    last = answer.stages[-1]
    assert [c.finish_reason for c in last.candidates] == [reason] * 2
    assert last.matches[0].kind == "malformed"
    assert last.matches[0].is_tie
    assert answer.usage.malformed_candidates == 2
    assert answer.to_dict()["finish_reason"] == reason
    assert_nothing_held(engine)


def test_a_malformed_candidate_loses_to_a_well_formed_one(script, image, free_sampling) -> None:
    texts = ["<R>cut" + " off" * 30, "<R>fine</R>", "<R>ended" + EOS, "<R>lost</C>"]
    answer = ask(script(GOOD | {"reasoning": texts}), image, free_sampling, beam_size=4)
    reasoning = answer.stages[2]
    reasons = [c.finish_reason for c in reasoning.candidates]
    assert reasons == ["length", "tag", "eos", "wrong_tag"]
    assert reasoning.winner == 1
    assert {match.kind for match in reasoning.matches} == {"malformed"}
    assert answer.finish_reason == "tag"
    assert answer.usage.malformed_candidates == 3


def test_bytes_after_the_tag_stay_with_the_trunk(script, image, free_sampling) -> None:
    """`>` with a line break is one token; the next stage starts after it."""
    answer = ask(script(GOOD | {"summary": ["<S>plan</S>\n"]}), image, free_sampling)
    assert answer.stages[0].candidates[0].text == "<S>plan</S>\n"
    assert answer.stages[0].text == "plan"
    assert answer.text.startswith("<S>plan</S>\n<C>")


@pytest.fixture
def joining_engine(make_engine, monkeypatch) -> Engine:
    """An engine in whose vocabulary one token, spelled ">.", is the end of a tag and the start of the
    next: "><"."""

    def joined(tokenizer):
        return [b"><" if piece == b">." else piece for piece in token_bytes(tokenizer)]

    monkeypatch.setattr("stagebeam.engine.parts.token_bytes", joined)
    return make_engine(backend="reference")


@pytest.mark.parametrize("strategy", ["stage_beam", "greedy"])
def test_a_token_that_ends_a_stage_and_begins_the_next(
    script, joining_engine, image, free_sampling, strategy
) -> None:
    """Its last bytes are the next stage's: `<` is no loss to the next stage's inner text."""
    texts = {
        "summary": ["<S>plan</S>.", "<S>another plan</S>."],
        "caption": ["C>two dogs</C>.", "C>2 dogs</C>."],
        "reasoning": ["R>2 dogs</R>", "R>two dogs</R>"],
        "final": ["<F>2</F>."],
        "answer": ["<S>plan</S>.C>two dogs</C>.R>2 dogs</R><F>2</F>."],
    }
    engine = script(texts, joining_engine)
    answer = ask(engine, image, free_sampling, max_tokens=60, strategy=strategy)
    assert answer.finish_reason == "tag"
    assert [len(stage.candidates) for stage in answer.stages] == [
        2 if strategy == "stage_beam" else 1
    ] * 4
    inner = [[c.inner for c in stage.candidates] for stage in answer.stages]
    assert set(inner[0]) <= {"plan", "another plan"}
    assert set(inner[1]) <= {"two dogs", "2 dogs"}
    assert set(inner[2]) <= {"2 dogs", "two dogs"}
    assert answer.conclusion == answer.stages[3].text == "2"
    assert "</S><C>" in answer.text
    assert "</C><R>" in answer.text


def test_a_session_carries_what_follows_a_tag(script, joining_engine, free_sampling) -> None:
    """Through forks, commits and going back."""
    texts = {"decode": ["<S>plan</S>.", "<S>other</S>", "C>two dogs</C>", "<C>two dogs</C>"]}
    with script(texts, joining_engine).open("how many?") as root:
        kids = root.fork(2)
        joining_engine.decode(kids, until="</S>", sampling=free_sampling(30))
        assert [kid.text for kid in kids] == ["<S>plan</S><", "<S>other</S>"]
        kids[0].commit()
        before = root.snapshot()
        texts["decode"] = ["C>two dogs</C>"]
        joining_engine.decode([root], until="</C>", sampling=free_sampling(30))
        assert (root.text, root.inner) == ("C>two dogs</C>", "two dogs")
        root.rollback(before)
        again = root.fork(1)
        joining_engine.decode(again, until="</C>", sampling=free_sampling(30))
        assert again[0].inner == "two dogs"


def test_a_question_that_contains_tags(script, image, free_sampling) -> None:
    """Tags in the prompt end nothing, and a tag that a stage opens with ends it at once."""
    question = "what is </S> and </SUMMARY>, or </F>?"
    answer = ask(script(GOOD), image, free_sampling, question=question)
    assert answer.finish_reason == "tag"
    assert len(answer.stages) == 4
    assert answer.question == question
    for strategy in ("greedy", "best_of_n", "sentence_beam"):
        engine = script({"answer": ["".join(text[0] for text in GOOD.values())]})
        whole = ask(engine, image, free_sampling, 90, question=question, strategy=strategy)
        assert whole.text


def test_special_tokens_spelled_out_by_a_candidate(script, image, free_sampling) -> None:
    """What looks like the image token is text: the judge's prompt still has one image."""
    spelled = ("<S>see <|", "image|> ", "there</S>")
    answer = ask(script(GOOD | {"summary": [spelled, "<S>other</S>"]}), image, free_sampling)
    assert answer.stages[0].candidates[0].inner == "see <|image|> there"
    assert answer.stages[0].matches[0].kind == "judged"
    assert answer.finish_reason == "tag"


@pytest.mark.parametrize("mode", ["logits", "generate"])
def test_a_context_that_fills_up(make_engine, script, image, free_sampling, mode) -> None:
    """The stage that meets the end of the context is cut there."""
    engine = script(
        GOOD | {"reasoning": ["<R>long" + " and long" * 40]},
        make_engine(backend="reference", max_model_len=96),
    )
    judge = JudgeParams(mode=mode, sampling=free_sampling(5))
    answer = ask(engine, image, free_sampling, max_tokens=500, judge=judge)
    assert answer.finish_reason == "length"
    assert len(answer.stages) == 3
    tokens = sum(len(stage.candidates[stage.winner].token_ids) for stage in answer.stages)
    assert answer.usage.prompt_tokens + tokens == 96


def test_no_room_for_a_single_token(make_engine, script, image, free_sampling) -> None:
    """A stage that ends well just where the context does leaves the next one nothing."""
    engine = script(GOOD | {"summary": ["<S>plan</S>"]})
    reference = ask(engine, image, free_sampling)
    length = reference.usage.prompt_tokens + len(reference.stages[0].candidates[0].token_ids)
    tight = script(
        GOOD | {"summary": ["<S>plan</S>"]}, make_engine(backend="reference", max_model_len=length)
    )
    answer = ask(tight, image, free_sampling)
    assert [stage.name for stage in answer.stages] == ["summary", "caption"]
    assert [c.token_ids for c in answer.stages[1].candidates] == [(), ()]
    assert answer.finish_reason == "length"
    assert_nothing_held(tight)


def test_a_full_branch_of_a_session_beside_one_with_room(make_engine, free_sampling) -> None:
    engine = make_engine(max_model_len=64)
    with engine.open("how many?") as root:
        kids = root.fork(2)
        engine.decode(kids[:1], sampling=free_sampling(100, ignore_eos=True))
        assert len(kids[0].token_ids) == 64
        engine.decode(kids, sampling=free_sampling(4, ignore_eos=True))
        assert [len(kid.last.token_ids) for kid in kids] == [0, 4]
        assert [kid.finish_reason for kid in kids] == ["length", "length"]


def test_the_plan_of_a_checkpoint_is_used(engine) -> None:
    assert engine.plan == PLAN


def test_reports_of_malformed_answers(script, image, free_sampling, tmp_path) -> None:
    engine = script(GOOD | {"caption": ["<C>never" + " ending" * 30]})
    answer = ask(engine, image, free_sampling)
    answer.to_html(tmp_path / "tree.html")
    assert "never ending" in (tmp_path / "tree.html").read_text(encoding="utf-8")
    assert choices(answer) == choices(ask(engine, image, free_sampling))
