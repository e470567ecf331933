"""What training refuses before it begins."""

from pathlib import Path
from typing import Any

from circuits.training import prompts_of, train_layers
from tests.circuits.folders import PROMPT, save_text_model
from tests.errors.mistakes import Mistake, assert_explained, each, made_file
from tests.errors.models_given import model, wordless


def trained(folder: Path, kind: str = "transcoders", **changes: Any) -> object:
    """Train what is tiny for two steps, unless it is refused."""
    prompts = changes.pop("prompts", [PROMPT] * 40)
    taught = changes.pop("taught", model)()
    settings = {"n_features": 16, "k": 4, "steps": 2, "batch_size": 8, **changes}
    return train_layers(taught, prompts, kind, folder, **settings)


TRAININGS = [
    Mistake(
        "an unknown kind of layers",
        lambda folder: trained(folder, "probes"),
        ValueError,
        ("kind='probes'", "transcoders, lorsa, attention-saes"),
    ),
    Mistake(
        "too few prompts",
        lambda folder: trained(folder, prompts=[PROMPT] * 5),
        ValueError,
        ("5 prompts", "at least 20", "held out"),
    ),
    Mistake(
        "a setting that does not exist",
        lambda folder: trained(folder, sparsity=3),
        ValueError,
        ("train(transcoders)", "sparsity"),
    ),
    Mistake(
        "no steps", lambda folder: trained(folder, steps=0), ValueError, ("steps=0", "1 or more")
    ),
    Mistake(
        "a negative learning rate",
        lambda folder: trained(folder, learning_rate=-1.0),
        ValueError,
        ("learning_rate=-1.0", "above 0"),
    ),
    Mistake(
        "more active features than features",
        lambda folder: trained(folder, k=17),
        ValueError,
        ("k=17", "n_features=16", "0 < k"),
    ),
    Mistake(
        "an empty batch",
        lambda folder: trained(folder, batch_size=0),
        ValueError,
        ("batch_size=0", "at least one prompt"),
    ),
    Mistake(
        "heads that cannot be shared out",
        lambda folder: trained(folder, "lorsa", n_features=15),
        ValueError,
        ("n_features=15", "cannot share", "multiple of"),
    ),
    Mistake(
        "an unknown word among the prompts",
        lambda folder: trained(folder, prompts=[PROMPT] * 39 + ["Zebediah"]),
        ValueError,
        ("'Zebediah'", "vocabulary"),
    ),
    Mistake(
        "text for a model without tokenizer",
        lambda folder: trained(folder, taught=wordless),
        ValueError,
        ("without a tokenizer", "load(model, tokenizer=...)"),
    ),
    Mistake(
        "a folder that holds a model",
        lambda folder: trained(save_text_model(folder)),
        ValueError,
        ("perhaps a model", "would overwrite", "new folder"),
    ),
    Mistake(
        "a missing file of prompts",
        lambda folder: prompts_of(folder / "none.txt"),
        FileNotFoundError,
        ("none.txt", "no such file", "one prompt a line"),
    ),
    Mistake(
        "an empty file of prompts",
        lambda folder: prompts_of(made_file(folder / "a.txt", "\n\n")),
        ValueError,
        ("a.txt", "holds no prompts", "one a line"),
    ),
    Mistake(
        "prompts under another name",
        lambda folder: prompts_of(made_file(folder / "a.jsonl", '{"text": "Mary"}')),
        ValueError,
        ("a.jsonl", 'an object with a "prompt"'),
    ),
]


@each(TRAININGS)
def test_a_mistake_is_explained_in_one_paragraph(mistake: Mistake, tmp_path: Path) -> None:
    assert_explained(mistake, tmp_path)
