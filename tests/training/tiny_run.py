"""Small training runs as a program of their own: started alone, killed, or under torchrun.

Usage: tiny_run.py MODEL JSON, a list of runs: options of `train`, done one after the other (starting
a program costs far more than the steps).
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from stagebeam.training.config import Phase, Schedule, Source, TrainConfig  # noqa: E402
from stagebeam.training.examples import Example, ImageInputs, MemoryDataset  # noqa: E402
from stagebeam.training.trainer import Trainer  # noqa: E402

IMAGE_TOKEN = 4


def make_examples(kinds: str, *, seed: int = 0) -> MemoryDataset:
    """Random examples, one a letter: t text-only, 1 or 2 an image of so many tiles."""
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for kind in kinds:
        length = int(torch.randint(8, 20, (1,), generator=generator))
        ids = torch.randint(10, 300, (length,), generator=generator)
        image = None
        if kind != "t":
            ids[3] = IMAGE_TOKEN
            pixels = torch.randn(int(kind), 3, 16, 16, generator=generator)
            image = ImageInputs(pixel_values=pixels, aspect_ratio_id=int(kind))
        labelled = torch.arange(length) >= 5
        examples.append(Example(input_ids=ids, labelled=labelled, image=image))
    return MemoryDataset(examples)


def make_phases(kinds: str, steps: int, batch_size: int, accumulation: int = 1) -> list[Phase]:
    """Two phases: one source of `kinds`, then a mixture with a text-only source."""
    first = Source(name="main", dataset=make_examples(kinds))
    text = Source(name="text", dataset=make_examples("t" * 10, seed=1), weight=0.5)
    shared = {"batch_size": batch_size, "accumulation": accumulation, "learning_rate": 2e-3}
    return [
        Phase(name="one", sources=(first,), steps=steps // 2, **shared),
        Phase(
            name="two",
            sources=(first, text),
            steps=steps - steps // 2,
            schedule=Schedule(kind="cosine", warmup_steps=3),
            bucket_batches=3,
            **shared,
        ),
    ]


def train(
    model: str | Path,
    output: str | Path,
    *,
    config: dict,
    start_from: str | Path | None = None,
    eval_fn=None,
    **phases,
):
    """One run in this process; `start_from` is a checkpoint to put into the output folder first."""
    if start_from is not None and os.environ.get("RANK", "0") == "0":
        target = Path(output) / "checkpoints" / Path(start_from).name
        shutil.copytree(start_from, target, dirs_exist_ok=True)
    config = TrainConfig(show_progress=False, **config)
    return Trainer(model, output, config, make_phases(**phases), eval_fn=eval_fn).train()


def start(model: Path, runs: list[dict], *, num_ranks: int = 0) -> subprocess.Popen:
    """Start this file as a program, under torchrun if `num_ranks` is given."""
    launch = [sys.executable]
    if num_ranks:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
    return subprocess.Popen(
        [*launch, __file__, str(model), json.dumps(runs, default=str)],
        stderr=subprocess.PIPE,
        text=True,
        env={"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": ""},
    )


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def finish(process: subprocess.Popen) -> None:
    """Wait for a program that `start` started; its errors become the assertion's message."""
    try:
        _, errors = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun then ends its ranks
        raise
    assert process.returncode == 0, errors[-4000:]


def read_losses(output: Path) -> list[float]:
    """The loss of every step, exactly as written."""
    lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for options in json.loads(sys.argv[2]):
        train(sys.argv[1], **options)
    sys.stdout.flush()
    # On a busy machine a rank of gloo's was once seen to abort while the interpreter ends, all done.
    os._exit(0)
