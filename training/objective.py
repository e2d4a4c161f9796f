"""The training objective: an HF model's summed, weighted cross entropy over a batch's labels.

HF's own modules do the work; this module decides what they are fed. The vision tower runs once per
image, the LM head only where a label is predicted, and rows without an image pass the
cross-attention layers unchanged, exactly as if those layers were skipped.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from stagebeam.engine.errors import CheckpointError
from stagebeam.training.collate import Batch, ImageBatch, ModelShape, dummy_images

LOGITS_CHUNK = 4096  # labelled tokens whose logits exist at once


class SFTObjective(nn.Module):
    """Wraps an HF Mllama or Llama model; forward gives the summed loss of one micro-batch."""

    def __init__(self, model: nn.Module, *, autocast: bool = False) -> None:
        super().__init__()
        self._autocast = autocast
        self._inputs: dict[int, Tensor] = {}  # what entered the layer so many before the end
        config: Any = model.config
        self.model: Any = model
        self.shape = ModelShape.from_config(config)
        self.has_vision = self.shape.image_token_id is not None
        backbone = getattr(self.model, "model", None)
        if not hasattr(self.model, "lm_head") or backbone is None:
            raise CheckpointError(
                f"cannot train {type(model).__name__}: expected an HF Mllama or Llama model with "
                "`model` and `lm_head`"
            )
        for layer in self.cross_layers():
            # SDPA takes "no mask" as causal unless the module says otherwise.
            layer.cross_attn.is_causal = False
            layer.register_forward_hook(_keep_textual_rows, with_kwargs=True)
        for early, layer in enumerate(reversed(self.text_layers()), start=1):
            layer.register_forward_pre_hook(functools.partial(self._keep_input, early))

    def cross_layers(self) -> list[Any]:
        """The text model's cross-attention layers, in order."""
        return [layer for layer in self.text_layers() if hasattr(layer, "cross_attn")]

    def text_layers(self) -> list[Any]:
        """The text model's layers, self- and cross-attention, in order."""
        backbone = self.model.model
        return list(backbone.language_model.layers if self.has_vision else backbone.layers)

    def vision_layers(self) -> list[Any]:
        """The vision tower's layers, local then global."""
        if not self.has_vision:
            return []
        vision = self.model.model.vision_model
        return [*vision.transformer.layers, *vision.global_transformer.layers]

    def forward(self, batch: Batch, with_images: bool) -> Tensor:
        """The float32 sum over labelled tokens of -log p, a scalar.

        with_images: whether the vision tower and the cross-attention layers run; all ranks must
        agree, so a rank without images runs them on a black image that changes nothing
        """
        device = batch.input_ids.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=self._autocast):
            return self._summed_loss(batch, with_images)

    def _summed_loss(self, batch: Batch, with_images: bool) -> Tensor:
        if self.has_vision:
            images = batch.images
            if with_images and images is None:
                rows = len(batch.input_ids)
                images = dummy_images(rows, self.shape, batch.input_ids.device)
            hidden = self._mllama_hidden(batch.input_ids, images if with_images else None)
        else:
            backbone = self.model.model
            hidden = backbone(input_ids=batch.input_ids, use_cache=False).last_hidden_state
        hidden = hidden.flatten(0, 1).index_select(0, batch.label_rows)
        if batch.label_early is not None:
            hidden = self._read_early(hidden, batch)
        self._inputs.clear()
        return self._loss(hidden, batch.label_targets, batch.label_weights)

    def _read_early(self, hidden: Tensor, batch: Batch) -> Tensor:
        """`hidden` with the labels that are to be read before the last layers taken from there."""
        assert batch.label_early is not None
        for early in batch.label_early.unique().tolist():
            # A layer that was skipped left its input to the next one.
            run = [number for number in range(early, 0, -1) if number in self._inputs]
            if run:
                rows = (batch.label_early == early).nonzero().squeeze(1)
                states = self._inputs[run[0]].flatten(0, 1)
                read = self._final_norm()(states.index_select(0, batch.label_rows[rows]))
                hidden = hidden.index_copy(0, rows, read.to(hidden.dtype))
        return hidden

    def _keep_input(self, early: int, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._inputs[early] = args[0]

    def _final_norm(self) -> Any:
        backbone = self.model.model
        return (backbone.language_model if self.has_vision else backbone).norm

    def _mllama_hidden(self, input_ids: Tensor, images: ImageBatch | None) -> Tensor:
        backbone = self.model.model
        if images is None:
            return backbone.language_model(input_ids=input_ids, use_cache=False).last_hidden_state
        tile = torch.arange(self.shape.max_num_tiles, device=input_ids.device)
        tile_mask = (tile < images.num_tiles[:, None]).long()
        features = backbone.vision_model(
            pixel_values=images.pixel_values,
            aspect_ratio_ids=images.aspect_ratio_ids,
            aspect_ratio_mask=tile_mask[:, None],
        ).last_hidden_state  # [num_images, 1, tiles, patches, C_vision]
        num_patches = features.shape[-2]
        states = backbone.multi_modal_projector(features).flatten(1, 3)
        states = states.index_select(0, images.row_image)  # [B, tiles * patches, C]
        position = torch.arange(input_ids.shape[1], device=input_ids.device)
        sees_image = position >= images.image_start[:, None]  # [B, T]
        mask = None
        if images.has_padded_tiles:
            # HF: rows before the image token attend to everything, the others to valid tiles.
            row_tiles = tile_mask.bool().index_select(0, images.row_image)
            hides = sees_image[:, :, None] & ~row_tiles[:, None, :]  # [B, T, tiles]
            mask = torch.zeros(hides.shape, dtype=states.dtype, device=states.device)
            mask = mask.masked_fill(hides, torch.finfo(states.dtype).min)
            mask = mask.repeat_interleave(num_patches, dim=2)[:, None]
        # The hook on the cross-attention layers reads this; the self-attention layers ignore it.
        extra = {} if images.row_has_image is None else {"row_has_image": images.row_has_image}
        return backbone.language_model(
            input_ids=input_ids,
            cross_attention_states=states,
            cross_attention_mask=mask,
            full_text_row_masked_out_mask=sees_image[:, None, :, None].to(states.dtype),
            use_cache=False,
            **extra,
        ).last_hidden_state

    def _loss(self, hidden: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        if len(targets) <= LOGITS_CHUNK:
            return self._chunk_loss(hidden, targets, weights)
        pieces = [part.split(LOGITS_CHUNK) for part in (hidden, targets)]
        num_chunks = len(pieces[0])
        parts = weights.split(LOGITS_CHUNK) if weights is not None else [None] * num_chunks
        losses = [
            checkpoint(self._chunk_loss, h, t, w, use_reentrant=False)
            for h, t, w in zip(*pieces, parts, strict=True)
        ]
        return torch.stack(losses).sum()

    def _chunk_loss(self, hidden: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        logits = self.model.lm_head(hidden).float()
        if weights is None:
            return functional.cross_entropy(logits, targets, reduction="sum")
        return (functional.cross_entropy(logits, targets, reduction="none") * weights).sum()


def _keep_textual_rows(
    layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any], output: Tensor
) -> Tensor:
    """Forward hook of a cross-attention layer: rows without an image keep their input.

    HF skips the layer for such a row alone, but in a batch with images lets it attend to an empty
    one; a loss must not depend on what shares the batch.
    """
    row_has_image = kwargs.get("row_has_image")
    if row_has_image is None:
        return output
    return torch.where(row_has_image[:, None, None], output, args[0])
