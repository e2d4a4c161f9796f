"""What a model exchanges between the processes that hold its parts; with one process nothing.

A layer asks for the sum after a product whose input was split, and for the two places where the
vocabulary is split. Knows no layer and no plan; `sharding.py` decides which weight is split how.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard


class Ranks(Protocol):
    """The processes of one model."""

    def num_rows(self, total: int) -> int:
        """How many of the vocabulary's `total` rows this rank holds."""

    def sum(self, x: Tensor) -> Tensor:
        """The sum over the ranks of a partial product; may write to `x`."""

    def embed(self, token_ids: Tensor, table: Tensor) -> Tensor:
        """Rows of the embedding, of which `table` is this rank's part."""

    def tied_head(self, table: Tensor, vocab_size: int) -> Tensor:
        """This rank's head where it is the embedding's first `vocab_size` rows."""

    def whole_vocabulary(self, logits: Tensor, vocab_size: int) -> Tensor:
        """[R, this rank's rows of the head] -> [R, vocab_size]"""


class OneRank:
    """The whole model in one process."""

    def num_rows(self, total: int) -> int:
        return total

    def sum(self, x: Tensor) -> Tensor:
        return x

    def embed(self, token_ids: Tensor, table: Tensor) -> Tensor:
        return F.embedding(token_ids, table)

    def tied_head(self, table: Tensor, vocab_size: int) -> Tensor:
        return table[:vocab_size]

    def whole_vocabulary(self, logits: Tensor, vocab_size: int) -> Tensor:
        return logits


class MeshRanks:
    """Ranks of a one-dimensional device mesh.

    The vocabulary's two exchanges are DTensor's; the sums, two a layer, are all-reduces of plain
    tensors, as a DTensor's dispatch would cost more than the exchange at a few rows.
    num_embeddings: rows of the whole embedding; head_rows: of the whole head (a tied head's are the
                    embedding's, which begins and ends its parts elsewhere than vocab_size would)
    """

    def __init__(self, mesh: DeviceMesh, num_embeddings: int, head_rows: int) -> None:
        self._mesh = mesh
        self._group = mesh.get_group()
        self._num_embeddings = num_embeddings
        self._head_rows = head_rows

    def num_rows(self, total: int) -> int:
        begin = self._mesh.get_local_rank() * -(-total // self._mesh.size())  # as torch.chunk
        return max(0, min(total - begin, -(-total // self._mesh.size())))

    def sum(self, x: Tensor) -> Tensor:
        dist.all_reduce(x, group=self._group)
        return x

    def embed(self, token_ids: Tensor, table: Tensor) -> Tensor:
        whole = self._part(table, 0, self._num_embeddings)
        everywhere = DTensor.from_local(token_ids, self._mesh, [Replicate()], run_check=False)
        rows = F.embedding(everywhere, whole)
        return rows.redistribute(placements=[Replicate()]).to_local()  # type: ignore[attr-defined]

    def tied_head(self, table: Tensor, vocab_size: int) -> Tensor:
        return table

    def whole_vocabulary(self, logits: Tensor, vocab_size: int) -> Tensor:
        return self._part(logits, 1, self._head_rows).full_tensor()[:, :vocab_size].contiguous()

    def _part(self, local: Tensor, dim: int, size: int) -> DTensor:
        shape = torch.Size((*local.shape[:dim], size, *local.shape[dim + 1 :]))
        strides = shape[1], 1
        return DTensor.from_local(
            local, self._mesh, [Shard(dim)], run_check=False, shape=shape, stride=strides
        )


ONE_RANK = OneRank()
