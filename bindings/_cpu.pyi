"""The native CPU backend's bottom layer: instruction sets, threads, packed weights, products.

Free of torch; built from csrc/cpu by setup.py. A wrong argument is a `ValueError`; a pool used after
a fork or inside its own region is a `RuntimeError`.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float32]

def available_isas() -> list[str]:
    """What this machine can run, slowest first, of scalar, neon, avx2, avx512."""

def active_isa() -> str:
    """The best available one, or the one that STAGEBEAM_ISA named at the first use."""

def set_active_isa(name: str) -> None:
    """Replaces the active one, for tests."""

def available_cpus() -> int:
    """Processors in the affinity mask, limited by the control groups' quotas."""

def default_num_threads() -> int:
    """One for each physical core among the available processors."""

def zeroed_bytes(num_bytes: int) -> np.ndarray:
    """Zeros, uint8 [num_bytes], in huge pages where the system has them."""

def read_bandwidth(pool: ThreadPool, num_bytes: int = ..., repeats: int = 5) -> float:
    """GB/s that the pool's threads read together; num_bytes should exceed the caches."""

class ThreadPool:
    """Threads for parallel regions; the caller counts as one."""

    def __init__(self, num_threads: int, spin_us: int = ...) -> None: ...
    @property
    def num_threads(self) -> int: ...

class PackedMatrix:
    """Weights [out_features, in_features] in the products' own order, zero until packed.

    format: float32, bf16, int8 (a scale for 32 weights) or int4 (a step and a least for 32).
    is_gate_up: the first half of the rows is the gate's, the second the up projection's.
    rounds_activations: int8 and int4 weights meet activations rounded to int8 in groups of 32, in
        integer dots, and bf16 weights bf16 activations where the machine has such products; False
        multiplies float32 activations, as float32 weights always do.
    """

    def __init__(
        self,
        out_features: int,
        in_features: int,
        format: str,
        *,
        is_gate_up: bool = False,
        rounds_activations: bool = True,
    ) -> None: ...
    @property
    def out_features(self) -> int: ...
    @property
    def in_features(self) -> int: ...
    @property
    def format(self) -> str: ...
    @property
    def num_bytes(self) -> int: ...
    def pack_rows(self, first_row: int, rows: NDArray[np.generic]) -> None:
        """rows: [n, in_features] float32, float16, or uint16 with bfloat16's bits, contiguous."""

    def unpack_rows(self, first_row: int, num_rows: int) -> _Floats:
        """The weights that the products use."""

def linear(
    pool: ThreadPool,
    weights: PackedMatrix,
    x: _Floats,
    residual: _Floats | None = None,
    scale: float = 1.0,
) -> _Floats:
    """x W^T; with a residual, residual + scale * x W^T; with gate and up rows, silu(gate) * up.

    x: [rows, in_features]; residual and the result: [rows, out_features, or half of them]
    """

# The kernels above the products: tensors are given by address (contiguous, float32 but where a name
# says otherwise) and must outlive the call; sizes are in elements.

CACHE_FORMATS: dict[str, int]

def rms_norm(*sizes_and_addresses: float) -> None: ...
def layer_norm(*sizes_and_addresses: float) -> None: ...
def add(*sizes_and_addresses: int) -> None: ...
def silu_mul(*sizes_and_addresses: int) -> None: ...
def rotate(*sizes_and_addresses: int) -> None: ...
def scatter_rows(*sizes_and_addresses: int) -> None: ...
def copy_rows(*sizes_and_addresses: int) -> None: ...
def merge_states(*sizes_and_addresses: int) -> None: ...
def dot_rows(*sizes_and_addresses: int) -> None: ...
def branch_attention(*sizes_and_addresses: float) -> None: ...
def prefill_attention(*sizes_and_addresses: float) -> None: ...
def cross_attention(*sizes_and_addresses: float) -> None: ...
def sample_step(*sizes_and_addresses: int) -> None: ...

class StepProgram:
    """A decoder as a list of operations over packed weights; see csrc/cpu/step_program.h.

    Tensors go in by address and must outlive the call.
    """

    def __init__(self, *sizes_and_addresses: float) -> None: ...
    def add_matrix(
        self, out_features: int, in_features: int, format: str, is_gate_up: bool = False
    ) -> int: ...
    def pack_rows(
        self, matrix: int, first_row: int, num_rows: int, source: int, type: str, stride: int
    ) -> None: ...
    def unpack_rows(self, matrix: int, first_row: int, num_rows: int, out: int) -> None: ...
    def add_vector(self, values: int, count: int) -> int: ...
    def norm_linear(self, norm: int, matrix: int, rows: str = "all") -> None: ...
    def self_attention(self) -> None: ...
    def cross_attention(self, q_norm: int) -> None: ...
    def residual_linear(
        self, matrix: int, is_from_attended: bool, scale: float = 1.0, rows: str = "all"
    ) -> None: ...
    def set_ends(self, embedding: int, final_norm: int, head: int) -> None: ...
    def bind_caches(self, self_caches: Any, cross_caches: Any) -> None: ...
    def decode(
        self,
        max_steps: int,
        state: Any,
        groups: Any,
        images: Any,
        sampling: Any,
        tables: Any,
        sampled: Any,
    ) -> int:
        """Several decode steps, csrc/cpu/decode_steps.h; returns how many."""

    def copy_last_logits(self, num_rows: int, out: int) -> None: ...
    def hidden_states(self, rows: Any, branches: Any, cross: Any, outputs: Any) -> None: ...
    def prefill(self, rows: Any, sequences: Any, cross: Any, outputs: Any) -> None: ...
    def logits_of(self, hidden: int, num_rows: int, ids: int, per_row: int, out: int) -> None: ...
    def logits(self, hidden: int, num_rows: int, out: int) -> None: ...
    def decode_bytes(self, has_image: bool) -> int: ...
    @property
    def packed_bytes(self) -> int: ...
    @property
    def num_head_rows(self) -> int: ...
    @property
    def last_kv_bytes(self) -> int: ...
    @property
    def num_threads(self) -> int: ...
