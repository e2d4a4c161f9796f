"""The LLaVA-CoT-100k layout: what is read, and how faults are told."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer, MllamaProcessor
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

from stagebeam.training.collate import collate
from stagebeam.training.data import open_conversations
from stagebeam.training.objective import SFTObjective
from stagebeam.training.rows import DataError

HUMAN = {"from": "human", "value": "What colour is the square?"}
GPT = {"from": "gpt", "value": "<SUMMARY> I look. </SUMMARY>\n\n<CONCLUSION> red </CONCLUSION>"}


def write_rows(folder, rows):
    (folder / "images").mkdir(exist_ok=True)
    for index, size in enumerate([(16, 16), (40, 16), (9, 30)]):
        Image.effect_noise(size, 90).convert("RGB").save(folder / "images" / f"{index}.png")
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def row(index=0, image="images/0.png", conversations=(HUMAN, GPT)):
    data = {"id": f"row{index}", "conversations": list(conversations)}
    return data if image is None else {**data, "image": image}


def open_data(folder, model_dir, **options):
    return open_conversations(folder, model_dir, **options)[0]


def test_batch_equals_hf_processor_and_loss(tmp_path, mllama_dir):
    rows = [row(i, f"images/{i}.png") for i in range(3)]
    rows[1]["conversations"] = [{**HUMAN, "value": "<image>\nHow many?"}, GPT, HUMAN, GPT]
    dataset = open_data(write_rows(tmp_path, rows), mllama_dir)
    tokenizer = AutoTokenizer.from_pretrained(mllama_dir)
    images = MllamaImageProcessorPil.from_pretrained(mllama_dir)
    processor = MllamaProcessor(images, tokenizer, chat_template=tokenizer.chat_template)
    tokenizer.padding_side = "right"
    examples = [dataset[i] for i in range(3)]
    texts = [tokenizer.decode(example.input_ids) for example in examples]
    opened = [[Image.open(tmp_path / r["image"]).convert("RGB")] for r in rows]
    inputs = processor(
        images=opened, text=texts, padding=True, return_tensors="pt", add_special_tokens=False
    )
    model = AutoModelForImageTextToText.from_pretrained(mllama_dir, dtype=torch.float32)
    objective = SFTObjective(model)
    batch = collate(examples, objective.shape)
    assert torch.equal(batch.input_ids, inputs["input_ids"])
    assert torch.equal(batch.images.pixel_values, inputs["pixel_values"])
    assert torch.equal(batch.images.aspect_ratio_ids, inputs["aspect_ratio_ids"])
    assert (
        batch.images.num_tiles.tolist() == inputs["aspect_ratio_mask"].sum(-1).squeeze(1).tolist()
    )
    labels = torch.full_like(batch.input_ids, -100)
    for index, example in enumerate(examples):
        ids = example.input_ids
        labels[index, : len(ids)] = torch.where(example.labelled, ids, -100)
    wanted = model(**inputs, labels=labels).loss
    found = objective(batch, True) / len(batch.label_targets)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_text_rows_and_blank_lines_are_read(tmp_path, mllama_dir):
    system = {"from": "system", "value": "Answer in stages."}
    rows = [row(0), "", row(1, image=None), row(2, image=None, conversations=(system, HUMAN, GPT))]
    dataset = open_data(write_rows(tmp_path, rows), mllama_dir)
    assert [dataset[i].image is None for i in range(len(dataset))] == [False, True, True]
    assert len(dataset[2].input_ids) > len(dataset[1].input_ids)


def test_long_rows_are_cut_with_a_warning(tmp_path, mllama_dir, caplog):
    dataset = open_data(write_rows(tmp_path, [row()]), mllama_dir, max_length=20)
    assert len(dataset[0].input_ids) == 20
    assert "line 1: cut from" in caplog.text


FAULTS = {
    "missing image": (row(image="images/none.png"), r"the image .*none\.png is missing"),
    "no conversation": ({"id": "x", "image": "images/0.png"}, "no conversation"),
    "empty conversation": (row(conversations=()), "no conversation"),
    "starts with gpt": (row(conversations=(GPT, HUMAN)), r"bad role order \['gpt', 'human'\]"),
    "two humans": (row(conversations=(HUMAN, HUMAN, GPT)), "bad role order"),
    "no reply": (row(conversations=(HUMAN,)), "bad role order"),
    "late system": (
        row(conversations=(HUMAN, GPT, {"from": "system", "value": "x"}, HUMAN, GPT)),
        "bad role order",
    ),
    "unknown role": (row(conversations=({**HUMAN, "from": "tool"}, GPT)), '"from" must be'),
    "two image tokens": (
        row(conversations=({**HUMAN, "value": "<image> a <image>"}, GPT)),
        "2 image tokens in the text, expected at most 1",
    ),
    "image token of the tokenizer": (
        row(conversations=({**HUMAN, "value": "<image> a <|image|>"}, GPT)),
        "2 image tokens",
    ),
    "image token in a reply": (
        row(conversations=(HUMAN, {**GPT, "value": "<image> red"})),
        "in the first user turn",
    ),
    "image token without image": (
        row(image=None, conversations=({**HUMAN, "value": "<image> a"}, GPT)),
        "1 image tokens in the text, expected at most 0",
    ),
    "special token": (
        row(conversations=(HUMAN, {**GPT, "value": "red <|eot_id|> blue"})),
        r"special token '<\|eot_id\|>'",
    ),
    "empty reply": (row(conversations=(HUMAN, {**GPT, "value": " "})), "assistant turn is empty"),
    "not json": ("{", "not a JSON object"),
    "a list": ("[1]", "expected a JSON object, got list"),
    "image not a path": (row(image=3), '"image" must be a path'),
    "no value": (row(conversations=({"from": "human"}, GPT)), "a turn must be"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_name_file_and_line(tmp_path, mllama_dir, fault):
    bad, message = FAULTS[fault]
    write_rows(tmp_path, [row(), bad])
    with pytest.raises(DataError, match=rf"train\.jsonl, line 2.*{message}"):
        open_data(tmp_path, mllama_dir)


def test_many_faults_are_counted(tmp_path, mllama_dir):
    write_rows(tmp_path, [row(image="images/none.png")] * 8)
    with pytest.raises(DataError, match="and 3 more rows"):
        open_data(tmp_path, mllama_dir)


def test_other_faults(tmp_path, mllama_dir, llama_dir):
    with pytest.raises(DataError, match="does not exist"):
        open_data(tmp_path, mllama_dir)
    write_rows(tmp_path, [row()])
    with pytest.raises(DataError, match="no vision tower"):
        open_data(tmp_path, llama_dir)
    (tmp_path / "images" / "0.png").write_bytes(b"no picture")
    dataset = open_data(tmp_path, mllama_dir)
    with pytest.raises(DataError, match=r"cannot read the image .*0\.png"):
        dataset[0]
    (tmp_path / "train.jsonl").write_text("\n")
    with pytest.raises(DataError, match="has no rows"):
        open_data(tmp_path, mllama_dir)
