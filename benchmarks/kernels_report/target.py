"""The compute capabilities that kernels are compiled for: what a multiprocessor holds.

From the CUDA programming guide's table of technical specifications.
"""

from __future__ import annotations

from dataclasses import dataclass

_REGISTERS, _THREADS, _BLOCKS = 65536, 2048, 32
_WARP_REGISTERS = 256  # registers are given to a warp in these units
_SHARED_UNIT, _SHARED_RESERVED = 128, 1024  # bytes; the system takes the latter for every block
_TENSOR_COLUMNS = 512  # of sm_100's tensor memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A compute capability and the GPU that it is reported for.

    gpu:          key of the data sheets in `speed.costs.GPUS`
    shared_bytes: shared memory of a multiprocessor; a block may have 1 KiB less
    """

    number: int
    gpu: str
    num_multiprocessors: int
    shared_bytes: int

    @property
    def name(self) -> str:
        return f"sm_{self.number}"

    @property
    def block_shared_bytes(self) -> int:
        return self.shared_bytes - _SHARED_RESERVED

    def occupancy(
        self, *, registers: int, shared_bytes: int, num_warps: int, tensor_columns: int = 0
    ) -> float:
        """The share of a multiprocessor's warps that can be resident; 0 where not one block fits."""
        warp_registers = -(-registers * 32 // _WARP_REGISTERS) * _WARP_REGISTERS
        shared = -(-shared_bytes // _SHARED_UNIT) * _SHARED_UNIT + _SHARED_RESERVED
        blocks = min(
            _BLOCKS,
            _THREADS // (32 * num_warps),
            _REGISTERS // (warp_registers * num_warps),
            self.shared_bytes // shared,
        )
        if tensor_columns:
            blocks = min(blocks, _TENSOR_COLUMNS // tensor_columns)
        return blocks * num_warps * 32 / _THREADS


TARGETS = (
    Target(number=80, gpu="a100", num_multiprocessors=108, shared_bytes=164 << 10),
    Target(number=90, gpu="h100", num_multiprocessors=132, shared_bytes=228 << 10),
    Target(number=100, gpu="b200", num_multiprocessors=148, shared_bytes=228 << 10),
)
