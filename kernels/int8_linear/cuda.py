"""int8_linear by csrc/cuda/int8_linear.h, 16 rows a launch."""

from __future__ import annotations

import torch
from torch import Tensor

from stagebeam.kernels import cuda_library
from stagebeam.kernels.shapes import check_shapes

why_unavailable = cuda_library.why_unavailable
MAX_ROWS = 16  # of one launch


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    check_shapes("x R K, weight N K, scale N", x, weight, scale)
    assert weight.dtype == torch.int8, f"int8_linear: weight is {weight.dtype}"
    assert scale.dtype == torch.float32, f"int8_linear: scale is {scale.dtype}"
    num_columns, depth = weight.shape
    if depth == 0 or depth % 16:
        raise ValueError(f"int8_linear: K must be a positive multiple of 16, got {depth}")
    out = x.new_empty(len(x), num_columns)
    for rows, own in zip(x.split(MAX_ROWS), out.split(MAX_ROWS)):
        cuda_library.call(
            "stagebeam_cuda_int8_linear",
            cuda_library.FORMATS[x.dtype],
            *(cuda_library.pointer(tensor) for tensor in (rows, weight, scale, own)),
            len(rows),
            num_columns,
            depth,
            on=x,
        )
    return out
