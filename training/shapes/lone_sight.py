"""The vision tower's second lesson: lone shapes anywhere, while scenes keep looking as they did.

After the first lesson (sight.py) and the text layers' training, easy-VQA's shapes were told apart in
77 % of cases only. Here every patch of a lone shape's image names that shape again, through heads that
are thrown away, and the features of scenes are held where they were, so that the text layers, which
read them, lose nothing. Deterministic by seed; changes the vision tower's weights and nothing else.
"""

from __future__ import annotations

import copy
import logging
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from stagebeam.training.shapes.encoding import pixel_tensor
from stagebeam.training.shapes.scene import draw_scene, sample_scene
from stagebeam.training.shapes.sight import LONE_CLASSES, LoneShapes
from stagebeam.training.shapes.streams import load_easy_image

logger = logging.getLogger(__name__)

SCENES, LONE = 24, 96  # images in a batch
LEARNING_RATE = 8e-4
WARMUP_STEPS = 30
LOG_INTERVAL = 25
ANCHOR = 2.0  # weight of the scenes' squared change, in units of the features' variance


def train_lone_sight_(model: nn.Module, *, seed: int, steps: int) -> float:
    """Teach `model`'s vision tower lone shapes; returns the share of held-out ones named rightly."""
    owner: Any = model
    vision = owner.model.vision_model
    before = copy.deepcopy(vision)
    torch.manual_seed(seed)
    width = owner.config.vision_config.vision_output_dim
    heads = nn.ModuleList([nn.Linear(width, len(names)) for names in LONE_CLASSES])
    parameters = [*vision.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    rng = random.Random(f"{seed}/lone sight")
    shapes = LoneShapes()
    right = 0.0
    for step in range(steps):
        warm = min((step + 1) / WARMUP_STEPS, 1.0)
        cool = min(2 * (steps - step) / steps, 1.0)  # linear to 0 over the second half
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * warm * cool
        scenes = [draw_scene(sample_scene(rng, "train"), rng) for _ in range(SCENES)]
        lone, labels = zip(*(shapes.draw(rng) for _ in range(LONE)), strict=True)
        features = _patches(vision, _pixels([*scenes, *lone]))
        with torch.no_grad():
            kept = _patches(before, _pixels(scenes))
        change = (features[:SCENES] - kept).square().mean() / kept.var()
        loss = ANCHOR * change + _loss(heads, features[SCENES:], torch.tensor(labels))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % LOG_INTERVAL == 0 or step + 1 == steps:
            right = _check(vision, heads, shapes)
            logger.info(
                "lone sight %d/%d: loss %.3f, scenes changed %.4f, held-out shapes right %.3f",
                *(step + 1, steps, loss.item(), change.item(), right),
            )
    return right


def _pixels(images: Any) -> Tensor:
    return torch.stack([pixel_tensor(np.asarray(image)) for image in images])


def _patches(vision: Any, pixels: Tensor) -> Tensor:
    """[B, P, width] features without the class token."""
    count = len(pixels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = vision(
            pixel_values=pixels[:, None],
            aspect_ratio_ids=torch.ones(count, 1, dtype=torch.int64),
            aspect_ratio_mask=torch.ones(count, 1, 1, dtype=torch.int64),
        ).last_hidden_state
    patches: Tensor = features.flatten(1, -2)[:, 1:].float()
    return patches


def _loss(heads: nn.ModuleList, patches: Tensor, labels: Tensor) -> Tensor:
    """patches: [B, P, width], labels: [B, 2]; every patch names the image's one shape and colour"""
    losses = [
        functional.cross_entropy(
            head(patches).flatten(0, 1), labels[:, column].repeat_interleave(patches.shape[1])
        )
        for column, head in enumerate(heads)
    ]
    return torch.stack(losses).sum()


@torch.no_grad()
def _check(vision: Any, heads: nn.ModuleList, shapes: LoneShapes) -> float:
    images, labels = zip(*((load_easy_image(path), label) for path, label in shapes.held_out))
    patches = _patches(vision, _pixels(images))
    named = heads[0](patches).softmax(-1).mean(1).argmax(-1)
    return (named == torch.tensor(labels)[:, 0]).float().mean().item()
