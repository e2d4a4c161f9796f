"""Who competes in a benchmark: names to objects that answer tasks, or the reason why one cannot.

Names: `hf-published`, `hf-strong`, and `ours-DTYPE` with any of `-generate` (verdicts generated, all of
a round side by side), `-gate`, `-one-order` (each match judged in one order, as published; also of
`hf-strong`), `-all` and `-played` (the judge's schedule) and `-serial` (questions one after another).
`-sampled` behind `hf-published` or a serial one times a part and counts it as often as it occurs: one
call of each kind, or every fourth question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from stagebeam.benchmarks.baselines.hf_model import HFModel
from stagebeam.benchmarks.baselines.outcome import Outcome
from stagebeam.benchmarks.baselines.published import PUBLISHED_JUDGE, PublishedHF
from stagebeam.benchmarks.baselines.strong import StrongHF
from stagebeam.benchmarks.baselines.task import Task
from stagebeam.benchmarks.speed.floor import WEIGHT_BYTES
from stagebeam.benchmarks.speed.ours import Ours, Recorded
from stagebeam.benchmarks.speed.recorder import Span
from stagebeam.engine.device import pick_device, pick_precision
from stagebeam.engine.engine import Engine
from stagebeam.engine.errors import InvalidInputError
from stagebeam.engine.params import JudgeParams

PUBLISHED, STRONG, OURS = "hf-published", "hf-strong", "ours"
SAMPLED, ONE_ORDER = "-sampled", "-one-order"
SUFFIXES = ("generate", "gate", "one-order", "all", "played", "serial", "sampled")
SERIAL_SHARE = 4  # of the questions, one of so many is timed in a `-serial-sampled` run
DEFAULT_CONTENDERS = (PUBLISHED, STRONG, "ours-float32", "ours-bfloat16", "ours-int8", "ours-int4")
BY_LOGITS = JudgeParams()
HF_JUDGES = {
    PUBLISHED: PUBLISHED_JUDGE,
    PUBLISHED + SAMPLED: PUBLISHED_JUDGE,
    STRONG: BY_LOGITS,
    STRONG + ONE_ORDER: replace(BY_LOGITS, both_orders=False),
}
NUM_IMAGE_SLOTS = 32  # the most questions in flight, each about an image of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """Answers a list of tasks, with the judge and the number format that are its own.

    answer:     outcomes in the tasks' order
    ours:       the engine behind it, for what only an engine of ours can tell; None for HF
    block_size: of its KV cache, None where that is not paged
    """

    name: str
    judge: JudgeParams
    dtype: str
    answer: Callable[[Sequence[Task]], Recorded]
    ours: Ours | None = None

    @property
    def kv_bytes(self) -> int:
        """Bytes of one cached number."""
        return 4 if self.ours is None else self.ours.engine.kv_cache.layers[0][0].element_size()


class Contenders:
    """Loads models once and shares them; a context manager that closes the engines it opened."""

    def __init__(self, model: Path, kv_cache_bytes: int, backend: str = "auto") -> None:
        self._model = model
        self._kv_cache_bytes = kv_cache_bytes
        self._backend = backend
        self._hf: HFModel | None = None
        self._engines: dict[str, Engine] = {}

    def __enter__(self) -> Contenders:
        return self

    def __exit__(self, *_: object) -> None:
        for engine in self._engines.values():
            engine.close()

    @property
    def hf(self) -> HFModel:
        if self._hf is None:
            self._hf = HFModel(self._model)
        return self._hf

    def engine(self, dtype: str) -> Engine:
        """The engine of this number format; a ValueError says why there is none."""
        if dtype not in self._engines:
            reason = why_not(dtype)
            if reason is not None:
                raise InvalidInputError(reason)
            self._engines[dtype] = Engine(
                self._model,
                dtype=dtype,
                backend=self._backend,
                kv_cache_bytes=self._kv_cache_bytes,
                num_image_slots=NUM_IMAGE_SLOTS,
            )
        return self._engines[dtype]

    def check(self, name: str) -> None:
        """ValueError with the reason where `make` would raise one; loads nothing."""
        if name not in HF_JUDGES:
            reason = why_not(_parse_ours(name)[0])
            if reason is not None:
                raise InvalidInputError(reason)

    def make(self, name: str) -> Contender:
        """The contender of that name; ValueError with the reason where it cannot run here."""
        if name in HF_JUDGES:
            return self._make_hf(name)
        dtype, suffixes = _parse_ours(name)
        engine = self.engine(dtype)
        ours = Ours(engine)
        judge = JudgeParams(
            mode="generate" if "generate" in suffixes else "logits",
            schedule="played" if "played" in suffixes else "all" if "all" in suffixes else "auto",
            both_orders="one-order" not in suffixes,
            gate="gate" in suffixes,
        )
        answer: Callable[[Sequence[Task]], Recorded] = ours.answer_together
        if "serial" in suffixes:
            answer = partial(_one_after_another, ours, SERIAL_SHARE if "sampled" in suffixes else 1)
        return Contender(
            name=name,
            judge=judge,
            dtype=dtype,
            answer=answer,
            ours=ours,
        )

    def _make_hf(self, name: str) -> Contender:
        hf: PublishedHF | StrongHF = StrongHF(self.hf)
        if name.startswith(PUBLISHED):
            hf = PublishedHF(self.hf, is_sampled=name.endswith(SAMPLED))
        return Contender(
            name=name,
            judge=HF_JUDGES[name],
            dtype="float32",
            answer=lambda tasks: Recorded([hf.answer(task) for task in tasks]),
        )


def _one_after_another(ours: Ours, share: int, tasks: Sequence[Task]) -> Recorded:
    """Every `share`-th task on its own; those left out count as the one before them."""
    outcomes: list[Outcome] = []
    spans: list[Span] = []
    for task in tasks[::share]:
        run = ours.answer_together([task])
        times = min(share, len(tasks) - len(outcomes))
        again = replace(run.outcomes[0], repeated_seconds=run.outcomes[0].timings.total)
        outcomes += [*run.outcomes, *[again] * (times - 1)]
        spans += run.spans * times
    return Recorded(outcomes=outcomes, spans=spans)


def why_not(dtype: str) -> str | None:
    """Why this format is left out here; None where it runs."""
    try:
        pick_precision(dtype, "auto", pick_device("auto"), "auto")
    except InvalidInputError as error:
        return str(error)
    return None


def _parse_ours(name: str) -> tuple[str, set[str]]:
    first, _, rest = name.partition("-")
    dtype, _, tail = rest.partition("-")
    suffixes = {suffix for suffix in SUFFIXES if f"-{suffix}-" in f"-{tail}-"}
    leftover = f"-{tail}-"
    for suffix in suffixes:
        leftover = leftover.replace(f"-{suffix}-", "-")
    if first != OURS or dtype not in WEIGHT_BYTES or leftover.strip("-"):
        raise InvalidInputError(
            f"no contender is called {name!r}; there are {', '.join(HF_JUDGES)} and ours-DTYPE "
            f"({', '.join(WEIGHT_BYTES)}) with any of -{', -'.join(SUFFIXES)}"
        )
    return dtype, suffixes
