"""The vision tower's first lesson: what stands in every cell, with heads that are thrown away.

Through the language model's loss alone the tower learnt places, colours and sizes but no shapes in
3,300 steps (the text layers do not ask for what is not there yet); taught directly it tells shapes
apart within 300 steps. Half of a batch are scenes, half are lone shapes as easy-VQA has them: its own
training images, moved, and look-alikes drawn here. Each patch also names its own place, so that the
text layers find it. Deterministic by seed; changes the vision tower's weights and nothing else.
"""

from __future__ import annotations

import logging
import math
import random
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional

from stagebeam.training import easy_vqa
from stagebeam.training.shapes.encoding import pixel_tensor
from stagebeam.training.shapes.scene import (
    COLORS,
    IMAGE_PIXELS,
    SHAPES,
    SIZES,
    Scene,
    draw_scene,
    sample_scene,
)
from stagebeam.training.shapes.streams import load_easy_image, shifted

logger = logging.getLogger(__name__)

NUM_CELLS = 9
ROWS = 64  # scenes in a batch, and lone shapes
LEARNING_RATE = 1.2e-3
WARMUP_STEPS = 30
LOG_INTERVAL = 50
CELL_CLASSES = (tuple(SHAPES), tuple(COLORS), tuple(SIZES))  # class 0 of each is an empty cell
LONE_CLASSES = (easy_vqa.SHAPES, easy_vqa.COLORS)
LONE_PIXELS = 64
TRIANGLE_HEIGHT = 0.87  # of its width: the set's triangles are equilateral
LONE_COLORS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
    "teal": (0, 128, 128),
    "brown": (165, 42, 42),
    "yellow": (255, 255, 0),
}


def cell_labels(scene: Scene) -> Tensor:
    """[9, 3] int64: the shape, colour and size in every cell, 0 where it is empty."""
    labels = torch.zeros(NUM_CELLS, len(CELL_CLASSES), dtype=torch.int64)
    for thing in scene:
        words = (thing.shape, thing.color, thing.size)
        for column, (names, word) in enumerate(zip(CELL_CLASSES, words, strict=True)):
            labels[thing.cell, column] = 1 + names.index(word)
    return labels


def cell_of_patches(side: int) -> Tensor:
    """[side * side] int64: the cell that each patch of a side x side grid lies in."""
    line = torch.arange(side) * 3 // side
    return (3 * line[:, None] + line).flatten()


def draw_lone_shape(rng: random.Random) -> tuple[Image.Image, tuple[int, int]]:
    """A look-alike of an easy-VQA image, and its (shape, colour) as indices into LONE_CLASSES."""
    background = tuple(rng.randint(228, 255) for _ in range(3))
    image = Image.new("RGB", (LONE_PIXELS, LONE_PIXELS), background)
    shape, color = rng.randrange(3), rng.randrange(8)
    fill = LONE_COLORS[easy_vqa.COLORS[color]]
    width = rng.randint(8, 34)
    heights = {"rectangle": rng.randint(8, 34), "triangle": round(width * TRIANGLE_HEIGHT)}
    height = heights.get(easy_vqa.SHAPES[shape], width)
    left, top = rng.randint(0, LONE_PIXELS - width), rng.randint(0, LONE_PIXELS - height)
    box = (left, top, left + width - 1, top + height - 1)
    draw = ImageDraw.Draw(image)
    if easy_vqa.SHAPES[shape] == "circle":
        draw.ellipse(box, fill=fill)
    elif easy_vqa.SHAPES[shape] == "rectangle":
        draw.rectangle(box, fill=fill)
    else:
        draw.polygon([(left + width // 2, top), (box[2], box[3]), (left, box[3])], fill=fill)
    return image.resize((IMAGE_PIXELS, IMAGE_PIXELS), Image.Resampling.BILINEAR), (shape, color)


class LoneShapes:
    """Lone shapes with labels: easy-VQA's own training images and look-alikes, half and half.

    held_out: the training images that are kept for checking, undisturbed; the others are drawn
    """

    def __init__(self) -> None:
        questions = easy_vqa.read_questions("train")
        paths = {question.image: question.path for question in questions}
        known = [
            (
                image,
                paths[image],
                (easy_vqa.SHAPES.index(fact.shape), easy_vqa.COLORS.index(fact.color)),
            )
            for image, fact in sorted(easy_vqa.gather_facts(questions).items())
            if fact.shape and fact.color
        ]
        self._known = [one[1:] for one in known if not easy_vqa.is_held_out(one[0])]
        self.held_out = [one[1:] for one in known if easy_vqa.is_held_out(one[0])]

    def draw(self, rng: random.Random) -> tuple[Image.Image, tuple[int, int]]:
        if rng.random() < 0.5:
            return draw_lone_shape(rng)
        path, label = rng.choice(self._known)
        return shifted(load_easy_image(path), rng), label


class _Heads(nn.Module):
    """Linear readers of every patch: its cell's object, its place, and an image's lone shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cells = nn.ModuleList([nn.Linear(width, 1 + len(names)) for names in CELL_CLASSES])
        self.place = nn.Linear(width, NUM_CELLS)
        self.lone = nn.ModuleList([nn.Linear(width, len(names)) for names in LONE_CLASSES])

    def cell_loss(self, patches: Tensor, labels: Tensor) -> Tensor:
        """patches: [B, P, width], labels: [B, 9, 3]; every patch names its own cell's object"""
        place = cell_of_patches(math.isqrt(patches.shape[1]))
        labels = labels[:, place]  # [B, P, 3]
        losses = [
            functional.cross_entropy(head(patches).flatten(0, 1), labels[..., column].flatten())
            for column, head in enumerate(self.cells)
        ]
        places = self.place(patches).flatten(0, 1)
        losses.append(functional.cross_entropy(places, place.repeat(len(patches))))
        return torch.stack(losses).sum()

    def lone_loss(self, patches: Tensor, labels: Tensor) -> Tensor:
        """patches: [B, P, width], labels: [B, 2]; every patch names the image's one shape"""
        losses = [
            functional.cross_entropy(
                head(patches).flatten(0, 1), labels[:, column].repeat_interleave(patches.shape[1])
            )
            for column, head in enumerate(self.lone)
        ]
        return torch.stack(losses).sum()

    def accuracy(self, patches: Tensor, cells: Tensor, lone: Tensor) -> tuple[float, float]:
        """Shares of shapes named rightly: by the patches of occupied cells, and alone."""
        rows = len(cells)
        shapes = self.cells[0](patches[:rows]).argmax(-1)
        labels = cells[:, cell_of_patches(math.isqrt(patches.shape[1])), 0]
        right = (shapes == labels)[labels > 0].float().mean().item()
        alone = self.lone[0](patches[rows:]).mean(1).argmax(-1)
        return right, (alone == lone[:, 0]).float().mean().item()


def train_sight_(model: Any, *, seed: int, steps: int) -> tuple[float, float]:
    """Train `model`'s vision tower in place on fresh scenes of the train split and lone shapes.

    model: an HF MllamaForConditionalGeneration with one tile
    Returns the shares of shapes named rightly in the last batch: in cells, alone.
    """
    vision = model.model.vision_model
    torch.manual_seed(seed)
    heads = _Heads(model.config.vision_config.vision_output_dim)
    parameters = [*vision.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    rng = random.Random(f"{seed}/sight")
    lone_shapes = LoneShapes()
    right = alone = 0.0
    for step in range(steps):
        warm = min((step + 1) / WARMUP_STEPS, 1.0)
        cool = min(4 * (steps - step) / steps, 1.0)  # linear to 0 over the last quarter
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * warm * cool
        scenes = [sample_scene(rng, "train") for _ in range(ROWS)]
        alone_images, alone_labels = zip(*(lone_shapes.draw(rng) for _ in range(ROWS)), strict=True)
        images = [*(draw_scene(scene, rng) for scene in scenes), *alone_images]
        pixels = torch.stack([pixel_tensor(np.asarray(image)) for image in images])
        cells = torch.stack([cell_labels(scene) for scene in scenes])  # [ROWS, 9, 3]
        lone = torch.tensor(alone_labels)  # [ROWS, 2]
        features = vision(
            pixel_values=pixels[:, None],
            aspect_ratio_ids=torch.ones(len(images), 1, dtype=torch.int64),
            aspect_ratio_mask=torch.ones(len(images), 1, 1, dtype=torch.int64),
        ).last_hidden_state
        patches = features.flatten(1, -2)[:, 1:]  # the class token is first
        loss = heads.cell_loss(patches[:ROWS], cells) + heads.lone_loss(patches[ROWS:], lone)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % LOG_INTERVAL == 0 or step + 1 == steps:
            right, alone = heads.accuracy(patches.detach(), cells, lone)
            logger.info(
                "sight %d/%d: loss %.3f, shapes right in cells %.3f, alone %.3f",
                *(step + 1, steps, loss.item(), right, alone),
            )
    return right, alone
