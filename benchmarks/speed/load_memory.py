"""Anonymous memory while a checkpoint's weights are packed: its peak above the level before.

`python -m stagebeam.benchmarks.speed.load_memory FOLDER FORMAT` prints it as JSON, for a process of its
own: what an earlier load left in the allocator would hide a later one's. Pages of mapped files, which
the system may drop at any time, are not anonymous. Linux only: it reads /proc.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

from stagebeam.engine.checkpoints import BUNDLED_CHECKPOINT
from stagebeam.engine.models.loader import load_native_model
from stagebeam.engine.models.safetensors_files import SafetensorsFiles
from stagebeam.kernels.registry import resolve

_INTERVAL = 0.0005  # seconds between two looks
_TIMEOUT = 300
PACKED_FACTOR = 1.15  # the bar: so many times the packed model, and its largest tensor


class AnonymousPeak:
    """The most anonymous memory that was seen above the level at its start."""

    def __enter__(self) -> AnonymousPeak:
        self._before = self._highest = anonymous_bytes()
        self._is_done = False
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._is_done = True
        self._thread.join()

    @property
    def num_bytes(self) -> int:
        return self._highest - self._before

    def _watch(self) -> None:
        while not self._is_done:
            self._highest = max(self._highest, anonymous_bytes())
            time.sleep(_INTERVAL)
        self._highest = max(self._highest, anonymous_bytes())


def anonymous_bytes() -> int:
    """This process's resident anonymous memory."""
    with open("/proc/self/status") as file:
        return next(int(s.split()[1]) * 1024 for s in file if s.startswith("RssAnon"))


def load_memory(folder: Path, weight_format: str) -> dict[str, float]:
    """Peak, packed and largest tensor's bytes of a load in a new process, and peak over the bar."""
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name, str(folder), weight_format],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
    )
    if done.returncode:
        raise RuntimeError(f"loading {folder} failed: {done.stderr}")
    measured: dict[str, float] = json.loads(done.stdout)
    allowed = PACKED_FACTOR * measured["packed_bytes"] + measured["largest_bytes"]
    return {**measured, "over_bar": measured["peak_bytes"] / allowed}


def _measure(folder: Path, weight_format: str) -> dict[str, int]:
    ops = resolve("auto")
    # Imports, allocators and threads are there before.
    load_native_model(BUNDLED_CHECKPOINT, weight_format="float32", backend_ops=ops)
    with AnonymousPeak() as peak:
        model = load_native_model(folder, weight_format=weight_format, backend_ops=ops)
    files = SafetensorsFiles(folder)
    return {
        "peak_bytes": peak.num_bytes,
        "packed_bytes": model.weight_bytes,
        "largest_bytes": max(files[name].numel() * files[name].element_size() for name in files),
    }


if __name__ == "__main__":
    print(json.dumps(_measure(Path(sys.argv[1]), sys.argv[2])))
