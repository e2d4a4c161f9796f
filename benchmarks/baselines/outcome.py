"""What a contender did with a task: the search's result, its counts and where its time went."""

from __future__ import annotations

from dataclasses import dataclass, field

from stagebeam.engine.outputs import SearchResult, Timings, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One answered task.

    step_seconds:     between one token and the next of the branches that decode side by side
    peak_kv_bytes:    self- and cross-attention keys and values held at once, at the most
    decode_kv_bytes:  the same while candidates are decoded; 0 where it is not known
    repeated_seconds: counted but not spent: calls like one that was timed (see `PublishedHF`)
    """

    result: SearchResult
    usage: Usage
    timings: Timings
    step_seconds: list[float] = field(default_factory=list)
    peak_kv_bytes: int = 0
    decode_kv_bytes: int = 0
    repeated_seconds: float = 0.0

    @property
    def is_well_formed(self) -> bool:
        return self.result.finish_reason == "tag"

    @property
    def host_seconds(self) -> float:
        """What no phase accounts for."""
        t = self.timings
        return t.total - t.queue - t.image_encode - t.prefill - t.decode - t.judge
