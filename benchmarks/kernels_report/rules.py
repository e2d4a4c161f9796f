"""What every compiled kernel must keep to, and the budgets that the golden file sets.

A broken rule is a sentence: what, expected, got, what to do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from stagebeam.benchmarks.kernels_report.compiling import Compiled

GOLDEN = Path(__file__).with_name("golden.json")
UPDATE = "python -m stagebeam.benchmarks.kernels_report --update-golden"
SLACK_REGISTERS = 8  # of another build of the same compiler
WIDE_TILE = 64  # rows that the warp-group instructions take
WIDE_MMA = {"sm_80": "mma.sync", "sm_90": "wgmma", "sm_100": "tcgen05"}
LOAD_BITS = 128
# By kernel and dtype, with the reason why less is enough.
NARROW_LOADS = {
    **{
        ("merge_states_kernel", dtype): 64 for dtype in ("bf16", "fp16")
    },  # a warp a row of 256 bytes
    **{("sample_step_kernel", dtype): 64 for dtype in ("bf16", "fp16")},  # four logits at a time
    # Blocks whose size is no multiple of 16 are copied in the largest words that fit.
    ("copy_blocks_kernel", "unsigned long"): 64,
    ("copy_blocks_kernel", "unsigned int"): 32,
    ("copy_blocks_kernel", "unsigned short"): 16,
    ("copy_blocks_kernel", "unsigned char"): 8,
}

Budgets = Mapping[str, Mapping[str, Sequence[int]]]  # key -> target -> (registers, shared bytes)


def broken_rules(kernel: Compiled) -> list[str]:
    """What holds whatever the golden file says."""
    name = f"{kernel.key} on {kernel.target}"
    found = []
    if kernel.stack_bytes:
        found.append(
            f"{name}: expected no spilled register, got {kernel.stack_bytes} bytes of stack a "
            "thread; take a smaller tile or more warps (kernels/triton_tiles.py)"
        )
    if not kernel.occupancy:
        found.append(
            f"{name}: expected one block to fit a multiprocessor, got {kernel.shared_bytes} bytes "
            f"of shared memory and {kernel.registers} registers; take a smaller tile or fewer stages"
        )
    mma = expected_mma(kernel)
    if kernel.mma != mma:
        found.append(
            f"{name}: expected matrix products by {mma}, got {kernel.mma}; check the operands' "
            "dtype and the tile's rows"
        )
    bits = NARROW_LOADS.get((kernel.kernel, kernel.dtype), LOAD_BITS)
    if kernel.load_bits < bits:
        found.append(
            f"{name}: expected loads of {bits} bits, got {kernel.load_bits}; addresses and strides "
            "must be known as multiples of 16 (tl.multiple_of, or no do_not_specialize)"
        )
    return found


def expected_mma(kernel: Compiled) -> str:
    """float32 products are exact, so they run on no tensor core."""
    if kernel.kernel == "int8_linear_kernel":
        return "mma.sync"
    if kernel.block_m is None or kernel.dtype == "fp32":
        return "none"
    return WIDE_MMA[kernel.target] if kernel.block_m >= WIDE_TILE else "mma.sync"


def over_budget(kernel: Compiled, budgets: Budgets) -> list[str]:
    """What the golden file forbids."""
    name = f"{kernel.key} on {kernel.target}"
    known = budgets.get(kernel.key, {}).get(kernel.target)
    if known is None:
        return [f"{name}: not in {GOLDEN.name}; if this configuration is wanted, run `{UPDATE}`"]
    registers, shared_bytes = known
    advice = f"find the change that costs it, or accept it with `{UPDATE}`"
    found = []
    if kernel.registers > registers + SLACK_REGISTERS:
        found.append(
            f"{name}: expected at most {registers} + {SLACK_REGISTERS} registers, got "
            f"{kernel.registers}; {advice}"
        )
    if kernel.shared_bytes > shared_bytes:
        found.append(
            f"{name}: expected at most {shared_bytes} bytes of shared memory, got "
            f"{kernel.shared_bytes}; {advice}"
        )
    return found


def stale(kernels: Sequence[Compiled], budgets: Budgets) -> list[str]:
    """Budgets of configurations that nothing launches any more; for the full set."""
    compiled = {kernel.key for kernel in kernels}
    return [
        f"{key}: in {GOLDEN.name} but launched no more; run `{UPDATE}`"
        for key in budgets
        if key not in compiled
    ]


def read_budgets() -> Budgets:
    budgets: Budgets = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return budgets


def write_budgets(kernels: Sequence[Compiled]) -> None:
    """Take what was compiled for the budgets."""
    budgets: dict[str, dict[str, list[int]]] = {}
    for kernel in kernels:
        budgets.setdefault(kernel.key, {})[kernel.target] = [kernel.registers, kernel.shared_bytes]
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(budgets[key])}" for key in sorted(budgets))
    GOLDEN.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
