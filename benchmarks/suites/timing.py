"""The type of what times a call in the suites; see conftest.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# (function, *arguments, rounds=...): calls it over and over and records how long it takes.
Time = Callable[..., Any]
