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
# # A first circuit
#
# *When Mary and John went to the store, John gave a drink to* … **Mary**. Why not John?
#
# The model is `four-tasks`, a small GPT-2 that comes with the library; its MLPs are read through
# transcoders, its attention through Lorsa heads (many rank-one heads, few active). Nothing is
# downloaded.

# %%
from circuits import load, plan, read, trace

model = load("four-tasks")
model

# %% [markdown]
# ## Run the prompt once
#
# A `Run` remembers what was active and what is to be held: attention patterns, the denominators of
# the norms, the gates of the features.

# %%
run = model.run("When Mary and John went to the store, John gave a drink to")
run

# %%
target = run.logit(" Mary") - run.logit(" John")
target

# %% [markdown]
# ## What will it cost?

# %%
print(plan(target))

# %% [markdown]
# ## Trace
#
# (`trace` here has nothing to do with nnsight's `model.trace`: it explains one number.)

# %%
circuit = trace(target, progress=False)
print(circuit)

# %% [markdown]
# The five sums at the top add up to the logit difference the original model computed. Which tokens
# does the share `token` come from?

# %%
tokens = circuit.nodes.query("kind == 'token'")[["token", "attribution", "ungated"]]
tokens.sort_values("attribution", key=abs, ascending=False).head(6)

# %% [markdown]
# And which Lorsa heads and features carried it? `attribution` is everything a node contributes
# along the paths through traced nodes.

# %%
inner = circuit.nodes.query("kind in ['lorsa', 'feature']")
inner[["kind", "layer", "pos", "index", "token", "attribution"]].sort_values(
    "attribution", key=abs, ascending=False
).head(10)

# %% [markdown]
# ## A smaller picture
#
# `circuit.show()`, or a circuit as the last line of a cell, gives a page to look around in. Here a
# static picture will do.
#
# `prune` keeps the fewest nodes that hold a share of all |attribution|, and the strongest edges
# between them. What it removes stays in the books (`pruned`), so the sum is still the target.

# %%
small = circuit.prune(0.6)
assert abs(small.explained.sum() - small.value) < 1e-3
small.explained.round(3)

# %%
from IPython.display import SVG, display

small.save("first_circuit.svg")
display(SVG("first_circuit.svg"))

# %% [markdown]
# ## Why did it look there?
#
# Of the Lorsa head that moved most at the last position: which token it moved from, the pairs of
# nodes behind that attention score, and what sets the token apart from the others. More in
# docs/attention.md.

# %%
at_end = circuit.nodes.query("kind == 'lorsa' and pos == 14")["attribution"]
circuit.attention(int(at_end.idxmax()), keys=1)

# %% [markdown]
# ## Is it true?
#
# Every node is knocked out in turn. *held*: with patterns, scales, gates and everything outside the
# circuit at its recorded value, which must agree with the prediction. *free*: the real model reacts
# as it likes, which is reported, not promised.

# %%
result = circuit.test(progress=False)
result

# %% [markdown]
# ## Keep it
#
# A `.circuit` file opens, prunes and draws without a model, and without importing torch.

# %%
circuit.save("first.circuit")
again = read("first.circuit")
again.paths(3)[["text", "flow"]]

# %%
from pathlib import Path

for name in ("first.circuit", "first_circuit.svg"):
    Path(name).unlink()

# %% [markdown]
# ## Questions to go on with
#
# * Swap the two names in the prompt. Which nodes stay?
# * Explain a feature instead: `run.feature(layer=2, pos=-1, index=…)` with an index from the table.
# * Read the model's own parts: `load("four-tasks", mlp="neurons", attention="heads")`. The errors
#   vanish; how many more nodes does it take?
# * Put the layers in place of what they replace: `model.run(prompt, errors=False)`. Still Mary?
