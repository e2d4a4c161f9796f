"""A check, its outcome, and running one so that the others still run when it fails."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from stagebeam.benchmarks.provenance import ROOT

Outcome = tuple[bool, dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check's outcome; `details` are the numbers or the words behind it."""

    name: str
    is_ok: bool
    seconds: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)


def run_check(name: str, check: Callable[[], Outcome]) -> Check:
    """Run one check; an exception is a failure with its words, so that the others still run."""
    began = time.perf_counter()
    try:
        is_ok, details = check()
    except Exception as error:  # whatever a device throws belongs in the report
        is_ok, details = False, {"error": f"{type(error).__name__}: {error}"}
    return Check(name=name, is_ok=is_ok, seconds=time.perf_counter() - began, details=details)


def run_tests(*arguments: str) -> Outcome:
    """pytest's verdict and its last lines."""
    command = [sys.executable, "-m", "pytest", "-q", *arguments]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return ran.returncode == 0, {"output": "\n".join(ran.stdout.splitlines()[-15:])}
