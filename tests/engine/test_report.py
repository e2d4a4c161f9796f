"""The HTML page: self-contained, escaped, complete, and written whole or not at all."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from stagebeam.engine import report
from stagebeam.engine.errors import InvalidInputError
from stagebeam.engine.outputs import Answer, Candidate, Match, StageResult, Timings, Usage
from stagebeam.engine.report_tree import label

HOSTILE = "<script>alert('&amp;')</script> \"$title\" {x} </div> é 🙂 </SUMMARY>"
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x48\0\0\0\x48"


def candidate(inner: str, finish_reason="tag", score=None) -> Candidate:
    return Candidate(
        text=f"<S>{inner}</S>",
        inner=inner,
        token_ids=(1, 2, 3),
        cumulative_logprob=-1.25,
        finish_reason=finish_reason,
        score=score,
    )


def make_answer(**changes) -> Answer:
    names = ("summary", "caption", "reasoning", "conclusion")
    stages = tuple(
        StageResult(
            name=name,
            candidates=(
                candidate(f"{name} one {HOSTILE}"),
                candidate(f"{name} two\n  next line", "length"),
                candidate(f"{name} three", score=0.5),
            ),
            matches=(
                Match(first=2, second=1, winner=2, probability=1.0, kind="malformed"),
                Match(
                    first=0,
                    second=2,
                    winner=2,
                    probability=0.125,
                    is_disagreement=True,
                    verdict_text=f"why {HOSTILE}",
                ),
            ),
            winner=2,
        )
        for name in names
    )
    fields = {
        "question": f"How many? {HOSTILE}",
        "text": "".join(stage.candidates[2].text for stage in stages),
        "conclusion": f"three {HOSTILE}",
        "stages": stages,
        "finish_reason": "tag",
        "seed": 2**64 - 1,
        "strategy": "stage_beam",
        "beam_size": 3,
        "usage": Usage(
            completion_tokens=36, decode_steps=12, peak_blocks=10, peak_blocks_unshared=44
        ),
        "timings": Timings(
            prefill=0.02, decode=1.5, judge=0.25, total=2.0, time_to_first_token=0.05
        ),
        "image_png": PNG,
    }
    return Answer(**{**fields, **changes})


VOID = frozenset({"meta", "img"})


class Page(HTMLParser):
    """The page's text by class (or <tag>), its attributes, and whether its tags balance."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.stack: list[tuple[str, str]] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert not self.stack

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            name = dict(attrs).get("class") or f"<{tag}>"
            self.stack.append((tag, name))
            self.texts.setdefault(name, []).append("")

    def handle_startendtag(self, tag, attrs):
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.stack.pop()[0] == tag

    def handle_data(self, data):
        for _, name in self.stack:
            self.texts[name][-1] += data


def page_of(answer: Answer, tmp_path) -> tuple[str, Page]:
    path = tmp_path / "tree.html"
    answer.to_html(path)
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def test_every_candidate_match_and_the_conclusion_are_shown(tmp_path):
    answer = make_answer()
    _, page = page_of(answer, tmp_path)
    shown = page.texts["text"]
    expected = [
        stage.candidates[i].inner
        for stage in answer.stages
        for i in (2, 0, 1)  # the survivor first
    ]
    assert shown == expected
    assert page.texts["words"] == [answer.conclusion]
    assert page.texts["<h1>"] == [answer.question]
    assert page.texts["<pre>"] == [answer.text]
    assert page.texts["<h3>"][:4] == ["summary", "caption", "reasoning", "conclusion"]
    assert sum("card candidate winner" in name for name in page.texts) == 1
    assert len(page.texts["card candidate winner"]) == 4
    assert len(page.texts["match"]) == 8
    assert sum("87.5 % for C" in text for text in page.texts["match"]) == 4
    assert sum("the two orders disagree" in text for text in page.texts["match"]) == 4
    assert sum(f"why {HOSTILE}" in text for text in page.texts["match"]) == 4
    whole = "".join(page.texts["<main>"])
    for part in (str(2**64 - 1), "stage-level beam search", "4.4 times fewer", "2.00 s", "1.50 s"):
        assert part in whole
    assert whole.count("reached its length limit") == 4


def test_the_page_is_self_contained_and_runs_nothing(tmp_path):
    text, page = page_of(make_answer(), tmp_path)
    assert "script" not in page.tags
    assert "<script" not in text
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    assert not {"link", "iframe", "object", "form"} & set(page.tags)
    loaded = [value for name, value in page.attributes if name in ("src", "href", "srcset")]
    assert len(loaded) == 1
    assert loaded[0].startswith("data:image/png;base64,")
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "default-src 'none'" in text
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text


@pytest.mark.parametrize("strategy", ["greedy", "single", "best_of_n", "sentence_beam", "swires"])
def test_other_searches(tmp_path, strategy):
    parsed = replace(candidate("x"), token_ids=(), cumulative_logprob=None)
    stages = tuple(StageResult(name=f"step {i}", candidates=(parsed,)) for i in range(9))
    _, page = page_of(make_answer(strategy=strategy, stages=stages, image_png=None), tmp_path)
    assert page.texts["text"] == ["x"] * 9
    assert "img" not in page.tags
    assert "logprob" not in "".join(page.texts["<main>"])


def test_many_candidates_and_empty_texts(tmp_path):
    stage = StageResult(name="answer", candidates=(candidate(""),) * 300, winner=299)
    _, page = page_of(make_answer(strategy="best_of_n", stages=(stage,)), tmp_path)
    assert page.texts["text"] == [""] * 300


@pytest.mark.parametrize("reason", ["eos", "length", "wrong_tag", "aborted"])
def test_an_answer_without_a_conclusion_says_why(tmp_path, reason):
    answer = make_answer(conclusion="", finish_reason=reason, stages=())
    _, page = page_of(answer, tmp_path)
    assert page.texts["words"][0].startswith("No conclusion: the answer ")


def test_tags_inside_whole_answers_are_marked(tmp_path):
    whole = candidate("<SUMMARY> a </SUMMARY> b < c")
    stages = (StageResult(name="answer", candidates=(whole,)),)
    text, page = page_of(make_answer(stages=stages), tmp_path)
    assert page.texts["text"] == [whole.inner]
    assert page.texts["tagname"] == ["<SUMMARY>", "</SUMMARY>"]
    assert "b &lt; c" in text


def test_a_page_replaces_an_older_one_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "tree.html"
    path.write_text("old")
    make_answer().to_html(str(path))
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert os.listdir(tmp_path) == ["tree.html"]


def test_a_failed_write_leaves_the_old_page(tmp_path, monkeypatch):
    path = tmp_path / "tree.html"
    path.write_text("old")

    def full_disk(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report.os, "replace", full_disk)
    with pytest.raises(InvalidInputError, match="No space left on device"):
        make_answer().to_html(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["tree.html"]


def test_paths_that_cannot_be_written(tmp_path):
    with pytest.raises(InvalidInputError, match="existing folder"):
        make_answer().to_html(tmp_path / "missing" / "tree.html")
    with pytest.raises(InvalidInputError, match="not a file"):
        make_answer().to_html(tmp_path)
    with pytest.raises(InvalidInputError, match="not a file"):
        make_answer().to_html(os.devnull)
    assert os.listdir(tmp_path) == []


def test_labels():
    assert [label(i) for i in (0, 25, 26, 27, 701, 702)] == ["A", "Z", "AA", "AB", "ZZ", "AAA"]
