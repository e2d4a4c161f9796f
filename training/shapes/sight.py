"""The vision tower's first lesson: name what stands in every cell, with heads that are thrown away.

Through the language model's loss alone the tower learnt places, colours and sizes but no shapes in
3,300 steps (the text layers do not ask for what is not there yet); taught directly it tells shapes
apart within 200 steps. Deterministic by seed; changes the vision tower's weights and nothing else.
"""

from __future__ import annotations

import logging
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from stagebeam.training.shapes.encoding import pixel_tensor
from stagebeam.training.shapes.scene import COLORS, SHAPES, SIZES, Scene, draw_scene, sample_scene

logger = logging.getLogger(__name__)

NUM_CELLS = 9
ROWS = 64
LEARNING_RATE = 1.2e-3
LOG_INTERVAL = 50
CLASSES = (tuple(SHAPES), tuple(COLORS), tuple(SIZES))  # class 0 of each is an empty cell


def cell_labels(scene: Scene) -> Tensor:
    """[9, 3] int64: the shape, colour and size in every cell, 0 where it is empty."""
    labels = torch.zeros(NUM_CELLS, len(CLASSES), dtype=torch.int64)
    for thing in scene:
        words = (thing.shape, thing.color, thing.size)
        for column, (names, word) in enumerate(zip(CLASSES, words, strict=True)):
            labels[thing.cell, column] = 1 + names.index(word)
    return labels


def train_sight_(model: Any, *, seed: int, steps: int) -> float:
    """Train `model`'s vision tower in place on fresh scenes of the train split; returns the last loss.

    model: an HF MllamaForConditionalGeneration with one tile of 3 x 3 patches
    """
    vision = model.model.vision_model
    torch.manual_seed(seed)
    width = model.config.vision_config.vision_output_dim
    heads = nn.ModuleList([nn.Linear(width, 1 + len(names)) for names in CLASSES])
    parameters = [*vision.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    rng = random.Random(f"{seed}/sight")
    loss = torch.zeros(())
    for step in range(steps):
        scenes = [sample_scene(rng, "train") for _ in range(ROWS)]
        pixels = torch.stack([pixel_tensor(np.asarray(draw_scene(s, rng))) for s in scenes])
        labels = torch.stack([cell_labels(scene) for scene in scenes])  # [B, 9, 3]
        features = vision(
            pixel_values=pixels[:, None],
            aspect_ratio_ids=torch.ones(ROWS, 1, dtype=torch.int64),
            aspect_ratio_mask=torch.ones(ROWS, 1, 1, dtype=torch.int64),
        ).last_hidden_state
        cells = features.reshape(ROWS, 1 + NUM_CELLS, -1)[:, 1:]  # the class token comes first
        losses = [
            functional.cross_entropy(head(cells).flatten(0, 1), labels[..., column].flatten())
            for column, head in enumerate(heads)
        ]
        loss = torch.stack(losses).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % LOG_INTERVAL == 0:
            logger.info("sight %d/%d: loss %.3f", step + 1, steps, loss.item())
    return loss.item()
