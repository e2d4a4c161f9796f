"""`stagebeam train` end to end on a small set, its exports in HF and the engine, and its errors."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import tiny_models
import tiny_run
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from stagebeam.cli import main
from stagebeam.engine.engine import Engine
from stagebeam.engine.params import SamplingParams
from stagebeam.training import checkpoint as checkpoint_module
from stagebeam.training import cli as train_cli
from stagebeam.training import metrics as metrics_module
from stagebeam.training import trainer as trainer_module
from stagebeam.training.collate import collate
from stagebeam.training.data import open_conversations
from stagebeam.training.export import export_model
from stagebeam.training.objective import SFTObjective
from stagebeam.training.progress import Progress
from stagebeam.training.world import World

REPLY = (
    "<SUMMARY> I look. </SUMMARY><CAPTION> {0} </CAPTION>"
    "<REASONING> It is {0}. </REASONING><CONCLUSION> {0} </CONCLUSION>"
)
COLOURS = ("red", "blue", "green")


def make_row(index: int) -> dict:
    colour = COLOURS[index % 3]
    question = {"from": "human", "value": "Which colour?"}
    row = {
        "id": str(index),
        "conversations": [question, {"from": "gpt", "value": REPLY.format(colour)}],
    }
    if index % 4 == 3:
        question["value"] = f"Say {colour}."
        return row
    return {**row, "image": f"images/{index}.png"}


@pytest.fixture
def data_dir(tmp_path):
    """A dozen rows in the LLaVA-CoT-100k layout, a quarter of them without an image."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    for index in range(12):
        Image.new("RGB", (20, 12 + index), COLOURS[index % 3]).save(folder / f"images/{index}.png")
    lines = [json.dumps(make_row(index)) for index in range(12)]
    (folder / "train.jsonl").write_text("\n".join(lines))
    return folder


def train(*arguments) -> int:
    return main(["train", *map(str, arguments)])


def test_end_to_end(data_dir, mllama_dir, tmp_path, capsys):
    output = tmp_path / "run"
    status = train(
        data_dir, "--model", mllama_dir, "--output", output, "--json", "--learning-rate", 3e-3,
        "--epochs", 2, "--eval-interval", 4, "--eval-data", data_dir, "--eval-questions", 2,
        "--activation-checkpointing", "--accumulation", 2,
    )  # fmt: skip
    assert status == 0
    result = json.loads(capsys.readouterr().out)
    assert result["steps"] == 3
    assert result["is_finished"]
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]
    assert {"learning_rate", "tokens_per_second", "memory_gib", "grad_norm", "epoch"} <= set(
        lines[0]
    )
    assert list((output / "tensorboard").iterdir())
    final = output / "final"
    assert json.loads((final / "stagebeam.json").read_text()) == {"add_bos": False}
    for name in ("stage_plan.json", "preprocessor_config.json", "chat_template.jinja"):
        assert (final / name).read_bytes() == (mllama_dir / name).read_bytes()
    # The same command again finds nothing left to do.
    assert train(data_dir, "--model", mllama_dir, "--output", output, "--epochs", 2,
                 "--accumulation", 2) == 0  # fmt: skip


def test_evaluation_answers_with_the_engine(data_dir, mllama_dir, tmp_path):
    output = tmp_path / "run"
    assert train(
        data_dir, "--model", mllama_dir, "--output", output, "--steps", 2,
        "--eval-interval", 2, "--eval-data", data_dir, "--eval-questions", 2,
    ) == 0  # fmt: skip
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    numbers = lines[-1]
    assert numbers["step"] == 2
    assert 0.0 <= numbers["eval_well_formed"] <= 1.0
    assert 0.0 <= numbers["eval_matching"] <= 1.0


def test_published_recipe_is_the_default(data_dir, mllama_dir, tmp_path):
    output = tmp_path / "run"
    assert train(data_dir, "--model", mllama_dir, "--output", output) == 0
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    rates = [line["learning_rate"] for line in lines]
    assert rates == pytest.approx([1e-5] * 3 + [0.85e-5] * 3 + [0.85**2 * 1e-5] * 3)


@pytest.mark.parametrize("kind", ["mllama", "llama"])
def test_export_equals_the_trained_model(kind, request, tmp_path, data_dir):
    model_dir = request.getfixturevalue(f"{kind}_dir")
    auto = AutoModelForImageTextToText if kind == "mllama" else AutoModelForCausalLM
    torch.manual_seed(3)
    model = auto.from_pretrained(model_dir, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    objective = SFTObjective(model)
    alone = World(0, 1, torch.device("cpu"), False)
    source = shutil.copytree(model_dir, tmp_path / "source")
    defaults = json.dumps({"do_sample": True, "temperature": 0.6, "top_p": 0.9})
    (source / "generation_config.json").write_text(defaults)
    folder = export_model(objective, source, tmp_path / "out", alone, max_shard_size="60KB")
    assert (folder / "generation_config.json").read_text() == defaults
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    loaded = auto.from_pretrained(folder)
    assert loaded.dtype == torch.float32
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(
        "<|begin_of_text|>which colour is the square", add_special_tokens=False
    ).input_ids
    inputs = torch.tensor([ids])
    with torch.no_grad():
        wanted = model(input_ids=inputs).logits
        assert torch.equal(loaded(input_ids=inputs).logits, wanted)
    # The engine's next token and its log-probability, from the export alone.
    with Engine(folder, dtype="float32") as engine:
        sampling = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
        completion = engine.generate(["which colour is the square"], sampling)[0]
    prompt = torch.tensor([completion.prompt_token_ids])
    with torch.no_grad():
        logprobs = model(input_ids=prompt).logits[0, -1].log_softmax(-1)
    assert completion.outputs[0].token_ids == (int(logprobs.argmax()),)
    assert completion.outputs[0].cumulative_logprob == pytest.approx(
        float(logprobs.max()), abs=1e-4
    )


def test_tied_weights_stay_tied(tmp_path):
    model_dir = tiny_models.save_llama(tmp_path / "model", tie=True)
    run = {"kinds": "tttt", "steps": 4, "batch_size": 2, "config": {}}
    tiny_run.train(model_dir, tmp_path / "run", **run)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final")
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_bfloat16_folder_trains_in_float32_and_exports_bfloat16(mllama_dir, tmp_path):
    source = tmp_path / "half"
    model = AutoModelForImageTextToText.from_pretrained(mllama_dir, dtype=torch.bfloat16)
    model.save_pretrained(source)
    run = {"kinds": "1t", "steps": 2, "batch_size": 2, "config": {}}
    tiny_run.train(source, tmp_path / "run", **run)
    assert json.loads((tmp_path / "run/final/config.json").read_text())["dtype"] == "bfloat16"
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "run" / "final")
    assert loaded.dtype == torch.bfloat16


FAULTS = {
    "missing image": lambda row: row.update(image="images/none.png"),
    "no conversation": lambda row: row.pop("conversations"),
    "bad role order": lambda row: row["conversations"].reverse(),
    "image tokens": lambda row: row["conversations"][0].update(value="<image> and <image>"),
}
MESSAGES = {"missing image": "none.png is missing", "image tokens": "2 image tokens"}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_rows_are_told_in_one_line(data_dir, mllama_dir, tmp_path, capsys, fault):
    row = make_row(0)
    FAULTS[fault](row)
    with open(data_dir / "train.jsonl", "a") as file:
        file.write("\n" + json.dumps(row))
    assert train(data_dir, "--model", mllama_dir, "--output", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert MESSAGES.get(fault, fault) in error
    assert "train.jsonl, line 13 (id '0')" in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_full_disk_is_told_and_resumed(data_dir, mllama_dir, tmp_path, capsys, monkeypatch):
    output = tmp_path / "run"
    arguments = (data_dir, "--model", mllama_dir, "--output", output, "--steps", 4,
                 "--save-interval", 2)  # fmt: skip
    original, calls = checkpoint_module.save_file, []

    def save_file(*args):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, "save_file", save_file)
        assert train(*arguments) == 1
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert "step-00000002 is whole, resume from it" in error
    assert train(*arguments) == 0
    assert len(tiny_run.read_losses(output)) == 4


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_metrics_that_do_not_fit_name_their_file(
    data_dir, mllama_dir, tmp_path, capsys, monkeypatch
):
    class FullMetrics(metrics_module.Metrics):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self._file = open("/dev/full", "w")  # noqa: SIM115

    monkeypatch.setattr(trainer_module, "Metrics", FullMetrics)
    output = tmp_path / "run"
    assert train(data_dir, "--model", mllama_dir, "--output", output, "--steps", 2) == 1
    error = capsys.readouterr().err
    assert f"No space left on device: '{output / 'metrics.jsonl'}'" in error
    assert "Traceback" not in error


def test_an_annotated_set_trains(mllama_dir, tmp_path):
    data, output = tmp_path / "shapes", tmp_path / "run"
    tasks = ("--tasks", "answer,judge-caption,gate")
    assert main(["annotate", "shapes", "--output", str(data), "--num-examples", "4", *tasks]) == 0
    assert train(
        data, "--model", mllama_dir, "--output", output, "--steps", 12, "--learning-rate", 3e-3,
    ) == 0  # fmt: skip
    losses = tiny_run.read_losses(output)
    assert len(losses) == 12
    assert sum(losses[-3:]) < sum(losses[:3])
    with Engine(output / "final") as engine:
        row = json.loads((data / "train.jsonl").read_text().splitlines()[0])
        answer = engine.answer(
            row["conversations"][0]["value"],
            image=data / row["image"],
            sampling=SamplingParams(max_tokens=4, seed=1),
        )
        assert answer.stages


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "x"], "needs --model"),
        (["--model", "x"], "needs --output"),
        (["--model", "none", "--output", "x"], "none is no model folder"),
        (["--model", "{model}", "--output", "x", "--eval-interval", "3"], "needs both"),
        (["--model", "{model}", "--output", "x", "--batch-size", "0"], "batch_size must be >= 1"),
        (["--model", "{model}", "--output", "x", "--epochs", "0"], "epochs must be > 0"),
    ],
)
def test_bad_arguments(data_dir, mllama_dir, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert train(data_dir, *(a.format(model=mllama_dir) for a in arguments)) == 2
    assert message in capsys.readouterr().err


def test_shapes_is_the_bundled_recipe(tmp_path, capsys, monkeypatch):
    outputs = []

    def train_shapes(output, *, model):
        outputs.append((output, model))
        return Progress(step=7, is_finished=True)

    monkeypatch.setattr(train_cli, "train_shapes", train_shapes)
    assert train("shapes", "--output", tmp_path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["model"] == str(tmp_path / "final")
    assert train("shapes", "--output", tmp_path, "--model", "x", "--json") == 0
    assert outputs == [(tmp_path, None), (tmp_path, Path("x"))]
    assert train("shapes", "--save-interval", 5, "--output", tmp_path) == 2
    assert (
        "takes no --save-interval; it takes --output, --threads, --model" in capsys.readouterr().err
    )


def test_threads(data_dir, mllama_dir, tmp_path, capsys):
    arguments = (data_dir, "--model", mllama_dir, "--output", tmp_path / "run", "--steps", 1)
    assert train(*arguments, "--threads", 0) == 2
    assert "--threads must be >= 1" in capsys.readouterr().err
    before = torch.get_num_threads()
    try:
        assert train(*arguments, "--threads", 2) == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_loaded_batches_reach_a_lower_loss(data_dir, mllama_dir, tmp_path):
    dataset, _ = open_conversations(data_dir, mllama_dir)
    examples = [dataset[i] for i in range(len(dataset))]
    before = SFTObjective(AutoModelForImageTextToText.from_pretrained(mllama_dir))
    batch = collate(examples, before.shape)
    assert train(data_dir, "--model", mllama_dir, "--output", tmp_path / "run",
                 "--learning-rate", 3e-3, "--steps", 30) == 0  # fmt: skip
    after = SFTObjective(AutoModelForImageTextToText.from_pretrained(tmp_path / "run" / "final"))
    with torch.no_grad():
        assert after(batch, True) < 0.5 * before(batch, True)
