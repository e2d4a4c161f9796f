"""The processor against HF's MllamaProcessor, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import MllamaProcessor, PreTrainedTokenizerFast
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

from stagebeam.engine.errors import CheckpointError, ImageError, InvalidInputError
from stagebeam.engine.models.loader import read_spec
from stagebeam.engine.models.processor import load_processor

ROOT = Path(__file__).parents[2]
BOS, IMAGE = "<|begin_of_text|>", "<|image|>"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m['role'] }}<|end|>"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<|image|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<|eot|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant<|end|>{% endif %}"
)
PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
QUESTION = [
    {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": "How many?\nTell me </SUMMARY>."}],
    }
]


def small_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    """Byte-level BPE whose post-processor writes begin-of-text, as Llama 3's does."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(["How many red circles are there? Tell me the answer."] * 3, trainer)
    specials = [BOS, IMAGE, "<|start|>", "<|end|>", "<|eot|>", "<|python_tag|>"]
    core.add_special_tokens([AddedToken(token, special=True) for token in specials])
    bos_id = core.token_to_id(BOS)
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, bos_id)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=BOS, eos_token="<|eot|>", chat_template=template
    )


@dataclass
class Folder:
    path: Path
    hf: MllamaProcessor

    def load(self):
        return load_processor(self.path, read_spec(self.path))

    def write(self, name: str, data: object) -> None:
        (self.path / name).write_text(json.dumps(data))


@pytest.fixture
def vision(tmp_path, random_mllama) -> Folder:
    tokenizer = small_tokenizer(TEMPLATE)
    config = random_mllama().config
    config.image_token_index = tokenizer.convert_tokens_to_ids(IMAGE)
    config.save_pretrained(tmp_path)
    pixels = MllamaImageProcessorPil(size={"height": 42, "width": 42}, max_image_tiles=4)
    hf = MllamaProcessor(pixels, tokenizer, chat_template=TEMPLATE)
    tokenizer.save_pretrained(tmp_path)
    pixels.save_pretrained(tmp_path)
    return Folder(tmp_path, hf)


@pytest.fixture
def text_only(tmp_path, random_llama) -> Folder:
    random_llama().config.save_pretrained(tmp_path)
    tokenizer = small_tokenizer(PLAIN_TEMPLATE)
    tokenizer.save_pretrained(tmp_path)
    return Folder(tmp_path, tokenizer)


def scene(width: int, height: int) -> Image.Image:
    generator = np.random.default_rng(width)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("width", "height"),
    [
        (42, 42),
        (30, 17),
        (100, 40),
        (40, 100),
        (300, 45),
        (45, 300),
        (83, 85),
        (1, 500),
        (640, 480),
    ],
)
def test_pixels_tiles_and_ids_equal_hf(vision, width, height):
    processor = vision.load()
    image = scene(width, height)
    text = processor.render(QUESTION)
    theirs = vision.hf(images=image, text=text, add_special_tokens=False, return_tensors="pt")
    ours = processor.preprocess(image)
    assert torch.equal(ours.pixel_values, theirs["pixel_values"][0, 0])
    assert ours.aspect_ratio_id == int(theirs["aspect_ratio_ids"])
    assert torch.equal(ours.aspect_ratio_mask, theirs["aspect_ratio_mask"][0, 0])
    assert ours.num_tiles == int(ours.aspect_ratio_mask.sum())
    ids = processor.encode(text)
    assert ids == theirs["input_ids"][0].tolist()
    place = processor.image_token_position(ids)
    rows = theirs["cross_attention_mask"][0, :, 0].sum(-1)
    assert rows.tolist() == [0] * place + [ours.num_tiles] * (len(ids) - place)


def test_begin_of_text_once_and_twice_equal_hf(vision):
    processor = vision.load()
    text = processor.render(QUESTION)
    assert text == vision.hf.apply_chat_template(QUESTION, add_generation_prompt=True)
    doubled = vision.hf(images=scene(9, 9), text=text, return_tensors="pt")["input_ids"][0].tolist()
    assert processor.encode(text, add_bos=True) == doubled
    assert doubled[:2] == [processor.tokenizer.bos_token_id] * 2
    assert processor.encode(text) == doubled[1:]
    assert processor.default_add_bos is False  # the template writes it
    vision.write("stagebeam.json", {"add_bos": True})
    assert vision.load().default_add_bos is True  # how the checkpoint was trained


def test_a_template_without_begin_of_text_gets_one(text_only):
    assert text_only.load().default_add_bos is True


def test_the_key_is_the_content(vision, tmp_path):
    processor = vision.load()
    path = tmp_path / "scene.png"
    scene(90, 40).save(path)
    keys = {processor.preprocess(source).key for source in (path, path.read_bytes(), scene(90, 40))}
    assert len(keys) == 1
    others = [scene(91, 40), scene(40, 90), Image.new("RGB", (42, 42)), Image.new("RGB", (84, 42))]
    assert len(keys | {processor.preprocess(other).key for other in others}) == 5
    assert processor.preprocess(path).png.startswith(b"\x89PNG")


def test_text_round_trips(vision):
    processor = vision.load()
    for text in ("How many?", " leading", "naïve ☃ \n\n x", "</SUMMARY>\n\n"):
        assert processor.decode(processor.encode(text)) == text
    assert processor.decode(processor.encode("a<|eot|>b")) == "ab"


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory from /proc")
def test_new_words_do_not_fill_memory(text_only):
    """Long words, of which the tokenizer would remember 10,000 by itself."""
    processor = text_only.load()

    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    def encode(numbers: range) -> None:
        for number in numbers:
            word = f"{number:016b}".translate({48: "a", 49: "b"})
            processor.encode(15 * word)

    encode(range(500))
    before = resident_bytes()
    encode(range(500, 3000))
    assert resident_bytes() - before < 8 << 20  # 20 MB where all are remembered


def test_two_image_tokens_are_refused(vision):
    processor = vision.load()
    token = processor.tokenizer.convert_tokens_to_ids(IMAGE)
    assert processor.image_token_position([1, 2, 3]) is None
    assert processor.image_token_position([1, 2, token, 3]) == 2
    with pytest.raises(InvalidInputError, match=r"2 image tokens, expected at most 1"):
        processor.image_token_position([token, 5, token])
    tricked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": IMAGE}]}]
    with pytest.raises(InvalidInputError, match=r"2 image tokens"):
        processor.image_token_position(processor.encode(processor.render(tricked)))


def test_a_text_only_folder(text_only):
    processor = text_only.load()
    assert not processor.has_vision
    messages = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "How "}, {"type": "text", "text": "many?"}],
        }
    ]
    assert processor.render(messages) == "user: How many?\nassistant:"
    assert processor.render([{"role": "user", "content": "Hi"}], False) == "user: Hi\n"
    with pytest.raises(ImageError, match=r"text-only"):
        processor.render(QUESTION)
    with pytest.raises(ImageError, match=r"text-only"):
        processor.preprocess(scene(9, 9))
    assert processor.image_token_position([1, 2]) is None


def test_files_beside_the_checkpoint(vision):
    assert vision.load().stage_plan is None
    assert vision.load().generation_defaults == {}
    vision.write("stage_plan.json", {"stages": []})
    vision.write("generation_config.json", {"temperature": 0.6, "top_p": 0.9, "eos_token_id": 3})
    processor = vision.load()
    assert processor.stage_plan == {"stages": []}
    assert processor.generation_defaults == {"temperature": 0.6, "top_p": 0.9}


def test_image_settings_in_one_processor_file(vision):
    path = vision.path / "preprocessor_config.json"
    vision.write("processor_config.json", {"image_processor": json.loads(path.read_text())})
    before = vision.load().preprocess(scene(90, 40))
    path.unlink()
    assert vision.load().preprocess(scene(90, 40)).key == before.key


def test_the_old_place_of_the_chat_template(vision):
    (vision.path / "chat_template.jinja").unlink()
    processor = vision.load()
    with pytest.raises(InvalidInputError, match=r"no chat template"):
        processor.render(QUESTION)
    vision.write("chat_template.json", {"chat_template": TEMPLATE})
    assert vision.load().render(QUESTION).startswith(BOS)


def test_a_template_that_refuses(text_only):
    refusing = "{{ raise_exception('roles must alternate') }}"
    (text_only.path / "chat_template.jinja").write_text(refusing)
    processor = load_processor(text_only.path, read_spec(text_only.path))
    with pytest.raises(InvalidInputError, match=r"roles must alternate"):
        processor.render([{"role": "user", "content": "Hi"}])


def test_damaged_folders(vision):
    path = vision.path / "preprocessor_config.json"
    good = json.loads(path.read_text())
    vision.write("preprocessor_config.json", {**good, "size": {"height": 28, "width": 28}})
    with pytest.raises(CheckpointError, match=r"\(28, 4\), expected \(42, 4\)"):
        vision.load()
    path.unlink()
    with pytest.raises(CheckpointError, match=r"neither preprocessor_config\.json nor"):
        vision.load()
    vision.write("preprocessor_config.json", good)
    (vision.path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"cannot load the tokenizer"):
        vision.load()
    (vision.path / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"cannot load the tokenizer"):
        vision.load()


def test_torchvision_is_not_needed(vision):
    code = (
        "import sys; sys.modules['torchvision'] = None\n"
        "from stagebeam.engine.models.loader import read_spec\n"
        "from stagebeam.engine.models.processor import load_processor\n"
        "from PIL import Image\n"
        "path = sys.argv[1]\n"
        "load_processor(path, read_spec(path)).preprocess(Image.new('RGB', (50, 20)))\n"
    )
    subprocess.run([sys.executable, "-c", code, str(vision.path)], check=True, cwd=ROOT)
