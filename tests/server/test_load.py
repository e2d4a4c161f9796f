"""Many clients at once, a tenth of which go away midway: nothing fails, nothing stays held."""

from __future__ import annotations

import pytest

from stagebeam.benchmarks.serving.load import run_load


@pytest.mark.parametrize(
    ("num_clients", "seconds"), [(64, 4.0), pytest.param(64, 60.0, marks=pytest.mark.slow)]
)
def test_a_load_with_disconnects(serve, num_clients: int, seconds: float) -> None:
    served = serve(max_questions=24)
    report = run_load(
        served.url,
        seconds=seconds,
        num_clients=num_clients,
        messages=served.messages(),
        model="shapes",
        drop_share=0.1,
    )
    assert report.errors == []
    assert report.outcomes["answered"] > 0
    assert report.outcomes["refused"] > 0  # 64 clients, 24 places
    assert report.outcomes["dropped"] > 0
    assert report.outcomes["error"] == 0
    assert report.health
    served.assert_idle()
