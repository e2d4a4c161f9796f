"""PyTorch reference of prefill_attention; the package's docstring is the contract.

Reads the lengths on the host to pack the ragged work into padded tiles (a GPU waits for that).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stagebeam.kernels.paged import read_blocks
from stagebeam.kernels.shapes import check_shapes

MAX_PIECE_ROWS = 512  # longer chunks are split: a piece reads only the keys before its last row
MAX_TILE_SCORES = 1 << 21  # scores a head in a tile: bounds the mask and the padded copies
FREE_PADDING = 1 << 14  # scores a head that may be padding whatever the share


class Piece(NamedTuple):
    """Consecutive query rows of one sequence: rows start .. start + num_rows of the packed batch,
    the last of the sequence's first num_keys tokens."""

    num_keys: int
    num_rows: int
    seq: int
    start: int


def prefill_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    block_tables: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    sm_scale: float,
) -> Tensor:
    check_shapes(
        "q T H D, k_cache N B Hkv D, v_cache N B Hkv D, seq_lens S, block_tables S W",
        *(q, k_cache, v_cache, seq_lens, block_tables),
    )
    out = torch.empty_like(q)
    if q.is_meta:  # no lengths to read, and nothing but the shape to compute
        return out
    for tile in _tiles(_pieces(cu_seqlens_q.tolist(), seq_lens.tolist())):
        _attend(tile, q, k_cache, v_cache, block_tables, sm_scale, out)
    return out


def _pieces(offsets: list[int], seq_lens: list[int]) -> list[Piece]:
    pieces = []
    for seq, (begin, end, num_keys) in enumerate(zip(offsets, offsets[1:], seq_lens)):
        for start in range(begin, end, MAX_PIECE_ROWS):
            stop = min(start + MAX_PIECE_ROWS, end)
            pieces.append(Piece(num_keys - (end - stop), stop - start, seq, start))
    return sorted(pieces)


def _tiles(pieces: list[Piece]) -> Iterator[list[Piece]]:
    """Runs of pieces, sorted by length, that waste at most half of their padded tile."""
    tile: list[Piece] = []
    used = most_rows = 0
    for piece in pieces:
        most_rows = max(most_rows, piece.num_rows)
        used += piece.num_rows * piece.num_keys
        padded = (len(tile) + 1) * most_rows * piece.num_keys  # the keys grow along the run
        if tile and (padded > MAX_TILE_SCORES or padded > 2 * used + FREE_PADDING):
            yield tile
            tile, most_rows, used = [], piece.num_rows, piece.num_rows * piece.num_keys
        tile.append(piece)
    if tile:
        yield tile


def _attend(
    tile: list[Piece],
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    sm_scale: float,
    out: Tensor,
) -> None:
    most_keys, most_rows = tile[-1].num_keys, max(piece.num_rows for piece in tile)
    num_keys, num_rows, seqs, starts = torch.tensor(tile, device=q.device).unsqueeze(-1).unbind(1)
    width = -(-most_keys // k_cache.shape[1])
    tables = block_tables[seqs.squeeze(-1), :width]
    k, v, _ = read_blocks(k_cache, v_cache, tables, num_keys.squeeze(-1))
    k, v = (x[:, :most_keys].transpose(1, 2) for x in (k, v))  # [B, Hkv, K, D]
    offsets = torch.arange(most_rows, device=q.device)
    is_row = offsets < num_rows  # [B, M]
    rows = torch.where(is_row, starts + offsets, starts)
    last_key = (num_keys - num_rows + offsets).unsqueeze(-1)
    is_seen = torch.arange(most_keys, device=q.device) <= last_key  # [B, M, K]
    padded = F.scaled_dot_product_attention(
        q[rows].to(k.dtype).transpose(1, 2),
        k,
        v,
        attn_mask=is_seen.unsqueeze(1),
        scale=sm_scale,
        enable_gqa=True,
    )
    out[rows[is_row]] = padded.transpose(1, 2)[is_row].to(out.dtype)
