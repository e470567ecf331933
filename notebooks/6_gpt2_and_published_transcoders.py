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
# # GPT-2 and published transcoders
#
# The same with a model that others trained, read through layers that others trained. Nothing is
# fetched here, so that the notebook runs anywhere: **a stand-in of the same class with random
# weights takes GPT-2's place, and quickly trained transcoders those of the published set. Its
# numbers mean nothing.** With `REAL = True` the same cells run on the real ones.

# %%
REAL = False

# %% [markdown]
# ## What there is
#
# The published sets for GPT-2, with what reading one fetches:

# %%
import os

os.environ["TQDM_DISABLE"] = "1"  # no progress bars in a saved notebook

import shutil
import tempfile
from pathlib import Path

from IPython.display import SVG, display
from transformers import GPT2Config, GPT2LMHeadModel, set_seed

from circuits import load, plan, read, trace
from circuits.catalogue import rows, table

print(table(rows("gpt2")))

# %% [markdown]
# `circuits plan openai-community/gpt2 "..." --explain " Mary" --mlp gpt2-transcoders --dry` says
# at the shell how many bytes would be fetched and kept, before any is.
#
# ## Load
#
# The real line is the first of these; all that follows is the same for both.

# %%
folder = Path(tempfile.mkdtemp())
if REAL:
    model = load("openai-community/gpt2", mlp="gpt2-transcoders")
else:
    from circuits.training import train_layers

    set_seed(0)
    words = load("four-tasks").tokenizer  # any tokenizer will do for random weights
    config = GPT2Config(
        vocab_size=len(words),
        n_positions=64,
        n_embd=96,
        n_layer=3,
        n_head=6,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.bos_token_id,
    )
    stand_in = GPT2LMHeadModel(config).eval()
    names = ["Mary", "John", "Anna", "Peter", "Alice", "Simon"]
    texts = [
        f"When {a} and {b} went to the store, {b} gave a drink to"
        for a in names
        for b in names
        if a != b
    ]
    own = load(stand_in, tokenizer=words)
    train_layers(own, texts, "transcoders", folder / "mlp", n_features=128, k=8, steps=200)
    model = load(stand_in, tokenizer=words, mlp=str(folder / "mlp"))
model

# %% [markdown]
# Only MLPs are read through transcoders; attention stays the model's own heads.
#
# ## Plan, then trace

# %%
run = model.run("When Mary and John went to the store, John gave a drink to")
target = run.logit(" Mary") - run.logit(" John")
print(plan(target, max_nodes=300))

# %%
circuit = trace(target, max_nodes=300, progress=False)
print(circuit)

# %% [markdown]
# Three lines to look at first, with any published set:
#
# * **error**: what the transcoders miss. Where it is a large share of the target, the circuit
#   explains the rest only.
# * **they add up to the target**: true by construction, checked at every trace.
# * **bias**: much of a logit difference may be constant, the same for every prompt. A contrast
#   (`trace(target, against=other_prompt)`) is free of it.

# %%
circuit.explained.round(4)

# %%
circuit.prune(0.5).save(folder / "gpt2.svg")
display(SVG(str(folder / "gpt2.svg")))

# %% [markdown]
# ## Test, and keep

# %%
circuit.test(progress=False)

# %% [markdown]
# A circuit file opens without the model and without torch; Neuronpedia's page opens the `.json`.

# %%
circuit.save(folder / "gpt2.circuit")
circuit.save(folder / "gpt2.json")
print([f"{path.name}: {path.stat().st_size // 1000} KB" for path in sorted(folder.glob("gpt2.*"))])
read(folder / "gpt2.circuit").paths(3)[["text", "flow"]]

# %%
shutil.rmtree(folder)

# %% [markdown]
# ## Questions to go on with
#
# * With the real model: which names does it prefer, and how much of that is error?
# * `load("openai-community/gpt2")` reads the neurons instead. No error; how many nodes for 80 %?
# * Your own folder in a published layout: `load("openai-community/gpt2", mlp="./my-transcoders")`.
#   docs/layer_formats.md lists the layouts.
