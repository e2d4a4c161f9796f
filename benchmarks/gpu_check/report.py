"""gpu-check.json and gpu-check.html: the outcomes, the device and where the code came from."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from stagebeam.benchmarks import provenance
from stagebeam.benchmarks.gpu_check.checks import Check

STAND_IN = "RUN ON A CPU: this shows that the checks run, and nothing about a GPU"


def write_report(checks: Sequence[Check], folder: Path, *, device: str) -> None:
    """Write both into `folder`; device: the GPU's name, or STAND_IN."""
    folder.mkdir(parents=True, exist_ok=True)
    is_gpu = device != STAND_IN
    name = "gpu-check" if is_gpu else "dry-run"
    document = {
        "ran_on_a_gpu": is_gpu,
        "device": device,
        "is_ok": all(check.is_ok for check in checks),
        "machine": provenance.machine(),
        "versions": provenance.versions(),
        "commit": provenance.commit(),
        "checks": [asdict(check) for check in checks],
    }
    (folder / f"{name}.json").write_text(json.dumps(document, indent=2), encoding="utf-8")
    rows = "".join(
        f"<tr><td>{html.escape(check.name)}</td><td>{'ok' if check.is_ok else 'FAILED'}</td>"
        f"<td>{check.seconds:.1f} s</td>"
        f"<td><pre>{html.escape(json.dumps(check.details, indent=1))}</pre></td></tr>"
        for check in checks
    )
    page = (
        f"<!doctype html><meta charset=utf-8><title>stagebeam {name}</title>"
        "<style>body{font-family:sans-serif}td{vertical-align:top;padding:.3em 1em}</style>"
        f"<h1>{name}: {'ok' if document['is_ok'] else 'FAILED'}</h1>"
        f"<p>{html.escape(device)}</p><table>{rows}</table>"
    )
    (folder / f"{name}.html").write_text(page, encoding="utf-8")
