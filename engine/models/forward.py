"""The arrays of one forward pass: what the runner hands to a model.

Plain tensors on the model's device. A row (token) belongs to one branch; decode passes have one row
a branch, prefill passes have packed runs of rows. Nothing here knows a policy or allocates a block.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillAttention:
    """Packed prefill: sequence s owns rows cu_seqlens_q[s] .. cu_seqlens_q[s + 1], the last ones of
    its `seq_lens[s]` cached tokens (this pass's included).

    cu_seqlens_q: [num_seqs + 1] int32; seq_lens: [num_seqs] int32
    block_tables: [num_seqs, max_blocks] int32, pad -1
    """

    cu_seqlens_q: Tensor
    seq_lens: Tensor
    block_tables: Tensor
    max_seqlen_q: int
    max_seqlen_k: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchAttention:
    """Decode: one row a branch; the branches of a group share the trunk's full blocks.

    Rows of a group are consecutive: group g owns rows group_offsets[g] .. group_offsets[g + 1].
    group_offsets: [num_groups + 1] int32; row_group: [num_rows] int32
    trunk_tables:  [num_groups, max_trunk_blocks] int32, pad -1; trunk_lens: [num_groups] int32
                   tokens (whole blocks; 0 where nothing is shared)
    tail_tables:   [num_rows, max_tail_blocks] int32, pad -1; the blocks after the trunk's
    tail_lens:     [num_rows] int32 tokens after the trunk, this step's included
    max_group_rows: most rows in a group
    """

    group_offsets: Tensor
    row_group: Tensor
    trunk_tables: Tensor
    trunk_lens: Tensor
    tail_tables: Tensor
    tail_lens: Tensor
    max_group_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossRows:
    """What each row sees of its image. Rows side by side with one image form a group.

    group_offsets: [num_groups + 1] int32; group g owns rows group_offsets[g] .. group_offsets[g + 1]
    group_slots:   [num_groups] int32 image slot, -1 for rows without an image
    max_group_rows: most rows in a group
    slots:   [num_rows] int32 image slot, -1 for a row without an image (cross layers skip it)
    kv_lens: [num_rows] int32 vision tokens attended, from the slot's start: the valid tiles' for a
             row at or after the image token, all of them (padded tiles too) for a row before it
    has_mlp: [num_rows] bool; False for rows before the image token, whose cross-layer MLP output HF
             zeroes
    """

    group_offsets: Tensor
    group_slots: Tensor
    max_group_rows: int
    slots: Tensor
    kv_lens: Tensor
    has_mlp: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardBatch:
    """One forward pass.

    token_ids, positions: [num_rows] int64
    slot_mapping:         [num_rows] int32, -1 skips the write
    cross:                None where no row of the batch has an image
    output_rows:          [num_outputs] int64 rows whose hidden state is wanted; None means all
    """

    token_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    attention: PrefillAttention | BranchAttention
    cross: CrossRows | None = None
    output_rows: Tensor | None = None


# A layer's (k_cache, v_cache); in int8 also their scales, float32 without the last dimension.
KVLayers = list[tuple[Tensor, ...]]
