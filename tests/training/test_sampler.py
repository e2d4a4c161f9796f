"""The order of the data and the course of the learning rate."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from stagebeam.engine.errors import InvalidInputError
from stagebeam.training.collate import ModelShape
from stagebeam.training.config import Phase, Schedule, Source, TrainConfig
from stagebeam.training.examples import Example, MemoryDataset
from stagebeam.training.loader import iterate_steps
from stagebeam.training.sampler import MixtureSampler, phase_steps


def dataset(size: int) -> MemoryDataset:
    """Example i is filled with the token i, so a batch shows which examples it holds."""
    lengths = np.random.default_rng(0).integers(4, 60, size)
    return MemoryDataset(
        [
            Example(input_ids=torch.full((n,), i), labelled=torch.ones(n, dtype=torch.bool))
            for i, n in enumerate(lengths)
        ]
    )


def phase(*sizes: int, weights=(1, 1, 1), **options) -> Phase:
    sources = tuple(
        Source(name=f"s{i}", dataset=dataset(size), weight=weights[i])
        for i, size in enumerate(sizes)
    )
    options = {"steps": 10, "batch_size": 4, **options}
    return Phase(name="p", sources=sources, **options)


def sampler(p: Phase, num_ranks: int = 1, seed: int = 3) -> MixtureSampler:
    return MixtureSampler(p, seed=seed, phase_index=0, num_ranks=num_ranks)


@pytest.mark.parametrize("bucket_batches", [0, 3])
@pytest.mark.parametrize("size", [1, 7, 8, 33])
def test_every_epoch_holds_every_example_once(size, bucket_batches):
    drawn = sampler(phase(size, bucket_batches=bucket_batches))
    num_batches = -(-size // 4)
    epochs = []
    for _ in range(3):
        batches = [drawn.draw().indices for _ in range(num_batches)]
        assert max(map(len, batches)) <= 4
        epochs.append(np.concatenate(batches).tolist())
        assert sorted(epochs[-1]) == list(range(size))
    assert size < 4 or epochs[0] != epochs[1]


def test_order_depends_on_the_seed_and_not_on_the_ranks():
    one, other = phase(33, batch_size=8), phase(33, batch_size=2)
    whole, shared, reseeded = sampler(one), sampler(other, num_ranks=4), sampler(one, seed=4)
    differs = False
    for _ in range(12):
        batch, same = whole.draw(), shared.draw()
        assert batch.indices.tolist() == same.indices.tolist()
        shares = [same.for_rank(rank, 4).tolist() for rank in range(4)]
        assert [i for share in shares for i in share] == batch.indices.tolist()
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        differs |= reseeded.draw().indices.tolist() != batch.indices.tolist()
    assert differs


def test_counts_are_the_whole_state():
    p = phase(33, 9, 20, weights=(3, 1, 0.5), bucket_batches=2)
    drawn = sampler(p)
    for _ in range(17):
        drawn.draw()
    resumed = sampler(p)
    resumed.counts = list(drawn.counts)
    for _ in range(40):
        first, second = drawn.draw(), resumed.draw()
        assert first.source == second.source
        assert first.indices.tolist() == second.indices.tolist()


def test_sources_keep_their_shares_at_any_time():
    weights = (3, 1, 0.5)
    drawn = sampler(phase(33, 9, 20, weights=weights))
    for total in range(1, 200):
        drawn.draw()
        for count, weight in zip(drawn.counts, weights):
            assert abs(count - total * weight / sum(weights)) <= 1


def test_buckets_save_padding():
    def padding(bucket_batches):
        p = phase(256, batch_size=8, bucket_batches=bucket_batches)
        drawn, data = sampler(p), p.sources[0].dataset
        lengths = [[data.length(i) for i in drawn.draw().indices] for _ in range(32)]
        return sum(max(batch) * len(batch) - sum(batch) for batch in lengths)

    assert padding(16) < 0.3 * padding(0)


@pytest.mark.parametrize("num_workers", [1, 3])
@pytest.mark.parametrize("num_steps", [0, 1, 3, 4, 11])
def test_workers_change_nothing(num_workers, num_steps):
    p = phase(20, 9, accumulation=2)

    def steps(workers):
        return list(
            iterate_steps(
                p,
                sampler(p),
                ModelShape(pad_token_id=0),
                num_steps=num_steps,
                rank=0,
                num_ranks=1,
                num_workers=workers,
            )
        )

    plain, threaded = steps(0), steps(num_workers)
    assert len(plain) == len(threaded) == num_steps
    for one, other in zip(plain, threaded):
        assert (one.counts, one.sources) == (other.counts, other.sources)
        for batch, same in zip(one.batches, other.batches):
            assert torch.equal(batch.input_ids, same.input_ids)


def test_steps_of_a_phase():
    assert phase_steps(phase(33), 1) == (10, 9)
    assert phase_steps(phase(33, steps=None, epochs=3), 1) == (27, 9)
    assert phase_steps(phase(33, steps=None, epochs=3, accumulation=2), 1) == (14, 4.5)
    assert phase_steps(phase(33, steps=None, epochs=1), 2) == (5, 5)


def test_schedules():
    def course(**options):
        schedule = Schedule(**options)
        return [schedule.factor(step, 10, 4) for step in range(10)]

    assert course(kind="constant") == [1.0] * 10
    assert course() == pytest.approx([1.0] * 4 + [0.85] * 4 + [0.85**2] * 2)
    cosine = course(kind="cosine", warmup_steps=2, final_ratio=0.1)
    assert cosine[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert all(a > b for a, b in itertools.pairwise(cosine[2:]))
    assert Schedule(kind="cosine", final_ratio=0.1).factor(10, 10, 4) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: phase(), "at least one"),
        (lambda: phase(4, epochs=1.0), "steps or epochs"),
        (lambda: phase(4, batch_size=0), "batch_size must be >= 1"),
        (lambda: phase(4, learning_rate=float("nan")), "learning_rate"),
        (lambda: Source(name="s", dataset=dataset(0)), "a non-empty data set"),
        (lambda: Source(name="s", dataset=dataset(1), weight=0), "weight must be > 0"),
        (lambda: Schedule(kind="linear"), "one of constant, cosine, step"),
        (lambda: Schedule(decay=0), "decay"),
        (lambda: TrainConfig(betas=(0.9, 1.0)), "betas"),
        (lambda: TrainConfig(precision="float16"), "one of auto, float32, bfloat16"),
        (lambda: TrainConfig(keep_last=0), "keep_last"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(InvalidInputError, match=message):
        make()
