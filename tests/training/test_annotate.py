"""`stagebeam annotate`: what it writes, that training reads the same rows from it, and its errors."""

from __future__ import annotations

import errno
import json
import os

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer

from stagebeam.cli import main
from stagebeam.engine.checkpoints import BUNDLED_CHECKPOINT
from stagebeam.training import dataset_writer
from stagebeam.training.data import open_conversations
from stagebeam.training.dataset_writer import NewRow, write_dataset
from stagebeam.training.easy_vqa import annotated_rows, is_held_out, read_questions
from stagebeam.training.examples import Example
from stagebeam.training.shapes.dataset import TASKS
from stagebeam.training.shapes.encoding import ChatEncoder
from stagebeam.training.shapes.streams import EasyStream, ShapesStream

NUM = 6


def annotate(*arguments) -> int:
    return main(["annotate", *map(str, arguments)])


def read_rows(folder):
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def encoder():
    return ChatEncoder(Tokenizer.from_file(str(BUNDLED_CHECKPOINT / "tokenizer.json")))


def assert_same_example(found, wanted):
    """Equal but for marks inside the prompt, which the layout does not carry."""
    assert torch.equal(found.input_ids, wanted.input_ids)
    start = int(found.labelled.int().argmax())
    assert torch.equal(found.labelled[start:], wanted.labelled[start:])
    if wanted.targets is None:
        assert not wanted.labelled[:start].any()
    assert (found.image is None) == (wanted.image is None)
    if found.image is not None:
        torch.testing.assert_close(
            found.image.pixel_values, wanted.image.pixel_values, rtol=0, atol=1e-6
        )
        assert found.image.aspect_ratio_id == wanted.image.aspect_ratio_id


@pytest.mark.parametrize("split", ["train", "test"])
def test_rows_on_disk_are_the_streams_rows(tmp_path, encoder, split):
    output = tmp_path / "new" / "data"
    tasks = list(TASKS)
    arguments = ("--num-examples", NUM, "--seed", 5, "--split", split, "--tasks", ",".join(tasks))
    assert annotate("shapes", "--output", output, *arguments) == 0
    dataset, _ = open_conversations(output, BUNDLED_CHECKPOINT)
    assert len(dataset) == NUM * len(tasks)
    streams = [ShapesStream(task, encoder, seed=5, split=split) for task in tasks]
    for row in range(len(dataset)):
        index, task = divmod(row, len(tasks))
        found, made = dataset[row], streams[task][index]
        orders = (made,) if isinstance(made, Example) else made  # a pair: the disk holds one order
        same = [one for one in orders if torch.equal(one.input_ids, found.input_ids)]
        assert len(same) == 1
        assert_same_example(found, same[0])


def test_loss_falls_on_the_reply_and_its_end_alone(tmp_path, encoder):
    """An independent count: the reply's own tokens and one for the end of the turn."""
    tasks = ("--tasks", ",".join(TASKS))
    assert annotate("shapes", "--output", tmp_path / "data", "--num-examples", 3, *tasks) == 0
    dataset, _ = open_conversations(tmp_path / "data", BUNDLED_CHECKPOINT)
    for index, row in enumerate(read_rows(tmp_path / "data")):
        reply = encoder.ids(row["conversations"][1]["value"])
        example = dataset[index]
        assert example.input_ids[example.labelled].tolist()[:-1] == reply
        assert example.labelled.sum() == len(reply) + 1


def test_easy_vqa_rows_on_disk_are_the_streams_rows(tmp_path, encoder, capsys):
    assert annotate("easy-vqa", "--output", tmp_path / "easy", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    dataset, _ = open_conversations(tmp_path / "easy", BUNDLED_CHECKPOINT)
    rows = [question for question, _ in annotated_rows(read_questions("train"))]
    assert len(dataset) == len(rows) == document["num_rows"]
    assert document["num_dropped"] == len(read_questions("train")) - len(rows)
    # Training leaves out the images that are kept for checking; the disk holds them too.
    stream = EasyStream(encoder, seed=0, augment=False)
    kept = [index for index, question in enumerate(rows) if not is_held_out(question.image)]
    assert len(stream) == len(kept) < len(rows)
    for index in range(0, len(kept), len(kept) // 25):
        assert_same_example(dataset[kept[index]], stream[index])
    images = {path.read_bytes() for path in (tmp_path / "easy" / "images").iterdir()}
    assert not images & {q.path.read_bytes() for q in read_questions("test")}


def test_the_seed_fixes_every_byte(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        output = ("--output", tmp_path / name, "--num-examples", 4, "--seed", seed)
        assert annotate("shapes", *output, "--tasks", "answer,gate") == 0
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert not set(map(str, read_rows(tmp_path / "a"))) & set(map(str, read_rows(tmp_path / "c")))


def test_more_examples_begin_with_the_fewer(tmp_path):
    for number in (3, 5):
        assert annotate("shapes", "--output", tmp_path / str(number), "--num-examples", number) == 0
    assert read_rows(tmp_path / "5")[:3] == read_rows(tmp_path / "3")


def test_a_chosen_part_of_easy_vqa(tmp_path, caplog):
    output = ("--num-examples", 20, "--output")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert annotate("easy-vqa", *output, tmp_path / name, "--seed", seed) == 0
    assert "no annotation agrees" in caplog.text
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert read_rows(tmp_path / "a") != read_rows(tmp_path / "c")
    assert len(read_rows(tmp_path / "a")) == 20


def test_the_record_tells_how_it_was_made(tmp_path, capsys):
    output = tmp_path / "data"
    assert annotate("shapes", "--output", output, "--num-examples", 2, "--tasks", "gate") == 0
    assert "2 rows, 0 images" in capsys.readouterr().out
    record = json.loads((output / "dataset.json").read_text())
    assert record == {
        "data": "shapes", "split": "train", "seed": 0, "tasks": ["gate"], "num_rows": 2,
        "num_images": 0,
    }  # fmt: skip
    assert not (output / "images").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shapes", "--num-examples", "0"], "--num-examples must be >= 1, got 0"),
        (["shapes", "--tasks", "answer,sing"], "tasks must be different ones of answer, places"),
        (["shapes", "--tasks", "gate,gate"], "tasks must be different ones"),
        (["easy-vqa", "--split", "test"], "never trained on"),
        (["easy-vqa", "--tasks", "gate"], "has the task answer only"),
        (["easy-vqa", "--num-examples", "99999"], "more than the"),
    ],
)
def test_bad_arguments(tmp_path, capsys, arguments, message):
    assert annotate(*arguments, "--output", tmp_path / "data") == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path, capsys):
    folder = tmp_path / "data"
    assert annotate("shapes", "--output", folder, "--num-examples", 1) == 0
    before = files(folder)
    assert annotate("shapes", "--output", folder, "--num-examples", 2) == 2
    assert "never overwritten" in capsys.readouterr().err
    assert files(folder) == before
    (tmp_path / "file").touch()
    assert annotate("shapes", "--output", tmp_path / "file") == 2
    assert "is a file" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert annotate("shapes", "--output", tmp_path / "empty", "--num-examples", 1) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "empty", "file"]


def test_a_full_disk_leaves_nothing(tmp_path, capsys, monkeypatch):
    def copyfile(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr(dataset_writer.shutil, "copyfile", copyfile)
    arguments = ("--output", tmp_path / "data", "--num-examples", 3)
    assert annotate("easy-vqa", *arguments) == 1
    error = capsys.readouterr().err
    assert "cannot write" in error
    assert "No space left on device" in error
    assert not list(tmp_path.iterdir())


def test_an_interrupted_writing_leaves_nothing(tmp_path):
    def rows():
        picture = Image.new("RGB", (4, 4))
        yield NewRow(identity="0", user="a", reply="b", image_name="images/0.png", image=picture)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "data", rows(), {})
    assert not list(tmp_path.iterdir())
