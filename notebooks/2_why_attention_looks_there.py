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
# # Why does attention look there?
#
# A circuit says *what* a head moved. It does not yet say why the head looked where it looked: the
# attention pattern is held. This notebook asks that second question, on a prompt in which a
# sequence of words comes twice. The second time the model knows how it goes on.

# %%
from IPython.display import SVG, display

from circuits import load, trace

model = load("four-tasks", attention="heads")
run = model.run("apple Oliver tower siege lamp Mary apple Oliver tower siege")
model.generate(run.prompt, max_new_tokens=1).text

# %% [markdown]
# Attention is read here as the model's own heads: four a layer, and nothing is approximated in it.
#
# ## What was moved
#
# Which words made it " lamp" rather than another word of the prompt, " apple"?

# %%
circuit = trace(run.logit(" lamp") - run.logit(" apple"), progress=False)
print(circuit.paths(3)[["flow", "text"]].to_string(index=False))

# %%
circuit.prune(0.7).save("induction.svg")
display(SVG("induction.svg"))

# %% [markdown]
# Heads of layer 1, at the last word, fetched " lamp" from where it stood the first time, position
# 5. The word itself does not occur again, so *how did they find it?*
#
# ## Where one head looked
#
# `circuit.attention` takes the name or the number of a head. Its first table says how much was
# moved from which word; the column `moved` sums to the head's attribution.

# %%
look = circuit.attention("L1.head 2@10", keys=1)
look.keys.round(3)

# %%
assert abs(look.keys["moved"].sum() - look.attribution) < 1e-3
look.attribution

# %% [markdown]
# ## Why there: pairs
#
# An attention score is query times key, and both are sums of what earlier nodes wrote. So the
# score is a sum over *pairs*: something written at the query meets something written at the key.
# The split is exact, with rows for biases, errors and all that is lumped together.

# %%
look.pairs[5].strongest(6)

# %%
assert abs(look.pairs[5].matrix.sum() - look.pairs[5].value) < 1e-3
print(look.pairs[5].value)

# %% [markdown]
# Only differences between scores matter, for a softmax follows. The *contrast* of a key is its
# score less the weighted mean of all others. What every key has in common cancels in it.

# %%
look.contrasts[5].strongest(4)

# %% [markdown]
# One pair decides: what head 0 of layer 0 wrote at the query, with what head 3 of layer 0 wrote at
# the key. What are they?
#
# ## One step further back
#
# A score is a number like a logit, so it can be traced like one.

# %%
score = run.attention_score(layer=1, head=2, query=10, key=5, contrast=True)
why = trace(score, progress=False)
print(why.paths(4)[["flow", "text"]].to_string(index=False))

# %% [markdown]
# On the key's side, head 3 of layer 0 stood at " lamp" and fetched the word *before* it, " siege".
# On the query's side, head 0 wrote the current word, " siege" again. They match.
#
# And why did head 3 look one word back? The same question once more, one layer down:

# %%
before = why.attention("L0.head 3@5", keys=1)
before.contrasts[4].strongest(4)

# %% [markdown]
# Position 5 asks for position 4. That is the induction circuit of Olsson et al. (2022): a
# previous-token head notes at every word what came before it; a later head looks for the word whose
# note is the current word, and copies it.
#
# ## Is it this head's doing?
#
# Let head 2 of layer 1 look at the first position instead, and nothing else be touched.

# %%
from circuits import SetPattern

target = run.logit(" lamp") - run.logit(" apple")
elsewhere = [1.0] + [0.0] * 10
moved_away = run.edited([SetPattern(1, 2, elsewhere, queries=[10])])
print(f"as it was {target.value:.3f}, looking elsewhere {moved_away.value(target):.3f}")

# %% [markdown]
# The target falls by less than what the head moved: it now moves something else, from the first
# position, and later layers react.

# %%
from pathlib import Path

Path("induction.svg").unlink()

# %% [markdown]
# ## Questions to go on with
#
# * Which heads of layer 1 do the same? `circuit.nodes.query("kind == 'head' and layer == 1")`.
# * Turn two words of the first half round. Where does the head look now, and which pair decides?
# * Read attention through Lorsa heads (`attention="lorsa"`). Does one of them do what head 3 did?
# * What of the score comes from *positions* rather than words? `why.explained` says.
