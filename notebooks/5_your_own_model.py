# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own model, your own layers
#
# From nothing to a circuit in about a minute: a tiny GPT-2 is trained on a toy task, replacement
# layers (transcoders and Lorsa) are trained on it, and one prediction is traced through them. With
# a model of your own, start at *Read it as it is*.

# %% [markdown]
# ## A model
#
# The task: some letters, then "first" or "last"; the answer is the first or the last letter.

# %%
import os

os.environ["TQDM_DISABLE"] = "1"  # no progress bars in a saved notebook

import random
import shutil
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

words = ["<pad>", *"abcdefgh", "first", "last"]
vocabulary = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}))
vocabulary.pre_tokenizer = WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=vocabulary, pad_token="<pad>")

random.seed(0)


def example():
    letters = random.sample("abcdefgh", random.randint(3, 6))
    asked = random.choice(["first", "last"])
    return [*letters, asked, letters[0 if asked == "first" else -1]]


" ".join(example())

# %%
torch.manual_seed(0)
torch.set_num_threads(1)
config = GPT2Config(
    vocab_size=len(words),
    n_positions=16,
    n_embd=48,
    n_layer=2,
    n_head=4,
    bos_token_id=0,
    eos_token_id=0,
)
hf_model = GPT2LMHeadModel(config)
optimizer = torch.optim.AdamW(hf_model.parameters(), lr=3e-3)
for _ in range(400):
    batch = [example() for _ in range(64)]
    answers = torch.tensor([words.index(one[-1]) for one in batch])
    asked_at = [len(one) - 2 for one in batch]  # the answer is predicted at "first" or "last"
    longest = max(map(len, batch))
    padded = [one[:-1] + ["<pad>"] * (longest - len(one)) for one in batch]
    ids = torch.tensor([[words.index(word) for word in one] for one in padded])
    logits = hf_model(input_ids=ids).logits[range(64), asked_at]
    loss = torch.nn.functional.cross_entropy(logits, answers)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
hf_model.eval()
print(f"loss {loss.item():.4f}")

# %% [markdown]
# ## Read it as it is
#
# A model in memory is taken as it is and left as it was. Without trained layers its own neurons and
# heads are the nodes.

# %%
from IPython.display import SVG, display

from circuits import load, trace

model = load(hf_model, tokenizer=tokenizer)
run = model.run("d a f c first")
target = run.logit("d") - run.logit("c")
plain = trace(target, progress=False)
print(plain)

# %% [markdown]
# Exact, but neurons and whole heads seldom mean one thing. Trained layers split them into sparse
# features, at the price of an error that is counted.
#
# ## Train layers
#
# `train_layers` is what `circuits train` calls. Two sets: transcoders for the MLPs, Lorsa heads for
# attention. These are tiny and trained for seconds.

# %%
from circuits.training import train_layers

folder = Path(tempfile.mkdtemp())
prompts = [" ".join(example()) for _ in range(2000)]
transcoders = train_layers(
    model, prompts, "transcoders", folder / "mlp", n_features=96, k=8, steps=600
)
print(transcoders)

# %%
lorsa = train_layers(model, prompts, "lorsa", folder / "attention", n_features=64, k=8, steps=600)
print(lorsa)

# %% [markdown]
# The figures are on prompts not trained on. *Variance explained* says how much of what a layer
# writes its replacement writes too; the last line what the model loses if all layers are replaced
# at once. Here most positions are letters after which nothing was learned, so do not read much
# into it.
#
# ## Trace through them

# %%
replaced = load(
    hf_model,
    tokenizer=tokenizer,
    mlp=str(folder / "mlp"),
    attention=str(folder / "attention"),
)
run = replaced.run("d a f c first")
circuit = trace(run.logit("d") - run.logit("c"), progress=False)
print(circuit)

# %%
small = circuit.prune(0.7)
small.save(folder / "own.svg")
display(SVG(str(folder / "own.svg")))

# %% [markdown]
# How many nodes hold 90 % of the attribution, read one way and the other? (In so small a model
# there is little to gain.)

# %%
for name, one in {"neurons and heads": plain, "features and Lorsa heads": circuit}.items():
    size = one.nodes.query("kind in ['neuron', 'head', 'feature', 'lorsa']")["attribution"].abs()
    largest = size.sort_values(ascending=False).cumsum() / size.sum()
    print(f"{name:25} {int((largest < 0.9).sum()) + 1} of {len(size)}")

# %% [markdown]
# ## Is it true of the model?

# %%
circuit.test(progress=False)

# %% [markdown]
# Held, every prediction is right. Left free, the model makes up for the loss of a single Lorsa
# head: several of them carry the same letter. So knock them out together:

# %%
lorsa_heads = circuit.nodes.index[circuit.nodes["kind"].eq("lorsa")].tolist()
circuit.test({"all Lorsa heads": lorsa_heads}, progress=False).table.round(3)

# %% [markdown]
# The error is in the sum too: `circuit.explained`. And a replacement run, in which the layers take
# the place of what they replace, shows whether the model can do without the originals:

# %%
print(circuit.explained.round(3).to_string())
alone = replaced.run("d a f c first", errors=False)
print(
    f"\nmodel {circuit.value:.3f}, layers alone {(alone.logit('d') - alone.logit('c')).value:.3f}"
)

# %%
shutil.rmtree(folder)

# %% [markdown]
# ## Questions to go on with
#
# * Ask "last" instead. Which Lorsa heads change place?
# * Half the features, or twice the steps: what happens to the error?
# * For a larger model: `circuits train ./my-gpt2 prompts.txt --kind lorsa -o my-lorsa`, and
#   `circuits plan` before.
