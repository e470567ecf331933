"""The folder of the bundled model: what is written to it and read from it.

config.json, model.safetensors   the model, stored in float16
tokenizer.json, …                its tokenizer
prompts.json                     prompts to try it on
transcoders/                     one transcoder per MLP (replacement/checkpoints/ours.py)
lorsa/, attention-saes/          one Lorsa layer and one SAE per attention layer, likewise
figures.json, README.md          what was measured, and the model card made from it
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import GPT2LMHeadModel

from benchmarks.four_tasks.layer_kinds import KINDS, STORED_IN
from benchmarks.tasks.vocabulary import make_tokenizer
from graphs.files.atomic import write_whole


@dataclass(frozen=True)
class Prompt:
    """A prompt with a token to explain, and one to compare it with."""

    task: str
    prompt: str
    explain: str
    minus: str


PROMPTS = (
    Prompt("ioi", "When Mary and John went to the store, John gave a drink to", " Mary", " John"),
    Prompt(
        "ioi",
        "Then, Alice and Tom were thinking about going to the park. Alice wanted to give a ring to",
        " Tom",
        " Alice",
    ),
    Prompt(
        "ioi",
        "The museum Grace and Henry went to had a lamp. Henry gave it to",
        " Grace",
        " Henry",
    ),
    Prompt(
        "induction",
        "apple Oliver tower siege lamp Mary apple Oliver tower siege",
        " lamp",
        " apple",
    ),
    Prompt(
        "induction",
        "Yesterday Oliver Sophia came to the castle. Once the horse was old. They read of Oliver",
        " Sophia",
        " horse",
    ),
    Prompt(
        "induction",
        "The words were: candle war Mary ring. The quiet wolf stood behind the church. "
        "Then, candle war Mary",
        " ring",
        " church",
    ),
    Prompt("bracket", "( [ { } close:", " ]", " )"),
    Prompt("bracket", "{ ( [ ] { } ( ) ) [ ( close: )", " ]", " }"),
    Prompt("bracket", "[ ( { [ ( ( ) ) ] } ) { } close:", " ]", " }"),
    Prompt("greater_than", "The war lasted from the year 17 32 to the year 17", " 45", " 20"),
    Prompt("greater_than", "The siege lasted from the year 14 61 to the year 14", " 70", " 52"),
    Prompt("greater_than", "The voyage lasted from the year 18 85 to the year 18", " 92", " 78"),
)


SEQUENCES = (
    Prompt(
        "numerals",
        "Van done in 3. Hat done in 4. Ring done in 5. Desk done in 6. Sun done in",
        " 7",
        " 6",
    ),
    Prompt(
        "number_words",
        "Lamp done in two. Sun done in three. Cup done in four. Book done in five. Van done in",
        " six",
        " five",
    ),
    Prompt(
        "months",
        "Door done in May. Hat done in June. Ball done in July. Ring done in August. Lamp done in",
        " September",
        " August",
    ),
)


def save_model(model: GPT2LMHeadModel, folder: Path, *, sequences: bool = False) -> None:
    """Write the model as stored, its tokenizer and the prompts, with those of sequences or not."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = GPT2LMHeadModel(model.config)
    stored.load_state_dict(model.state_dict())
    for weight in stored.parameters():
        weight.data = weight.data.to(STORED_IN)
    stored.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    make_tokenizer(sequences=sequences).save_pretrained(folder)
    prompts = PROMPTS + SEQUENCES if sequences else PROMPTS
    write_json(folder / "prompts.json", [asdict(prompt) for prompt in prompts])


def load_model(folder: Path) -> GPT2LMHeadModel:
    """Return the stored model in float32."""
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"{folder} holds no model.safetensors; run `python -m benchmarks.four_tasks model "
            f"--out {folder}` first"
        )
    return GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()


def write_json(path: Path, data: object) -> None:
    """Write data as indented JSON with a final newline."""
    text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    write_whole(path, text.encode())


def weight_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every weight file, by its path in the folder."""
    layers = [path for kind in KINDS for path in sorted((folder / kind).glob("*.safetensors"))]
    paths = [folder / "model.safetensors", *layers]
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if path.is_file()
    }
