"""Who competes in a benchmark: names to objects that answer tasks, or the reason why one cannot.

Names: `hf-published`, `hf-strong`, and `ours-DTYPE` with any of `-generate` (published judging,
batched), `-one-order` (each match judged in one order) and `-serial` (questions one after another).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stagebeam.benchmarks.baselines.hf_model import HFModel
from stagebeam.benchmarks.baselines.published import PUBLISHED_JUDGE, PublishedHF
from stagebeam.benchmarks.baselines.strong import StrongHF
from stagebeam.benchmarks.baselines.task import Task
from stagebeam.benchmarks.speed.floor import WEIGHT_BYTES
from stagebeam.benchmarks.speed.ours import Ours, Recorded
from stagebeam.engine.device import pick_device, pick_precision
from stagebeam.engine.engine import Engine
from stagebeam.engine.errors import InvalidInputError
from stagebeam.engine.params import JudgeParams

PUBLISHED, STRONG, OURS = "hf-published", "hf-strong", "ours"
SUFFIXES = ("generate", "one-order", "serial")
DEFAULT_CONTENDERS = (PUBLISHED, STRONG, "ours-float32", "ours-bfloat16", "ours-int8")
BY_LOGITS = JudgeParams()
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

    def make(self, name: str) -> Contender:
        """The contender of that name; ValueError with the reason where it cannot run here."""
        if name == PUBLISHED:
            published = PublishedHF(self.hf)
            return Contender(
                name=name,
                judge=PUBLISHED_JUDGE,
                dtype="float32",
                answer=lambda tasks: Recorded([published.answer(task) for task in tasks]),
            )
        if name == STRONG:
            strong = StrongHF(self.hf)
            return Contender(
                name=name,
                judge=BY_LOGITS,
                dtype="float32",
                answer=lambda tasks: Recorded([strong.answer(task) for task in tasks]),
            )
        dtype, suffixes = _parse_ours(name)
        engine = self.engine(dtype)
        ours = Ours(engine)

        def serial(tasks: Sequence[Task]) -> Recorded:
            runs = [ours.answer_together([task]) for task in tasks]
            return Recorded(
                outcomes=[outcome for run in runs for outcome in run.outcomes],
                spans=[span for run in runs for span in run.spans],
            )

        judge = PUBLISHED_JUDGE if "generate" in suffixes else BY_LOGITS
        if "one-order" in suffixes:
            judge = replace(judge, both_orders=False)
        return Contender(
            name=name,
            judge=judge,
            dtype=dtype,
            answer=serial if "serial" in suffixes else ours.answer_together,
            ours=ours,
        )


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
    suffixes = {suffix for suffix in SUFFIXES if suffix in tail}
    leftover = tail
    for suffix in suffixes:
        leftover = leftover.replace(suffix, "")
    if first != OURS or dtype not in WEIGHT_BYTES or leftover.strip("-"):
        raise InvalidInputError(
            f"no contender is called {name!r}; there are {PUBLISHED}, {STRONG} and ours-DTYPE "
            f"({', '.join(WEIGHT_BYTES)}) with any of -{', -'.join(SUFFIXES)}"
        )
    return dtype, suffixes
