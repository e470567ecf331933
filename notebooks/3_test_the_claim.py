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
# # Test the claim
#
# A circuit is a claim about what would happen if its nodes were different. Here nodes are made
# different in the real model, and what happens is laid beside what the circuit says.

# %%
from circuits import Ablate, Add, Node, Scale, Set, load, trace

model = load("four-tasks", mlp="neurons", attention="heads")
run = model.run("When Mary and John went to the store, John gave a drink to")
target = run.logit(" Mary") - run.logit(" John")
circuit = trace(target, progress=False)
print(circuit)

# %% [markdown]
# The model's own neurons and heads are the nodes, so there is no error term.
#
# ## One edit
#
# The two strongest heads of the last layer:

# %%
heads = circuit.nodes.query("kind == 'head' and layer == 3")
heads[["layer", "index", "pos", "token", "attribution", "ungated"]].sort_values(
    "attribution", key=abs, ascending=False
).head(3)

# %% [markdown]
# `run.edited(edits, mode)` runs the model anew. The mode says what may react: in `"held"` nothing
# that is not linear (attention patterns, norms and gates stay as they were), in `"patterns"` all
# but the attention patterns, in `"free"` everything: the real model.

# %%
head = Node("head", layer=3, index=2, pos=-1)
for mode in ("held", "patterns", "free"):
    print(f"{mode:9} {run.edited([Scale(head, 0)], mode).value(target):8.4f}")
print(f"as it was {target.value:8.4f}")

# %% [markdown]
# *Before you go on: two columns above say what the head contributes. `attribution` counts the paths
# through traced nodes, `ungated` all paths. Which mode must equal the value less which column?*

# %%
held = run.edited([Scale(head, 0)], "held").value(target)
ungated = heads.loc[(heads["index"] == 2) & (heads["pos"] == 14), "ungated"].iloc[0]
print(f"{target.value - ungated:.4f} predicted, {held:.4f} measured")

# %% [markdown]
# The held one, with all paths, and it does. That is no evidence about the model yet; it shows that
# the arithmetic is right. The free one is the evidence.
#
# ## Other edits
#
# | edit | what the node becomes |
# |---|---|
# | `Scale(nodes, 2)` | twice what it was |
# | `Set(nodes, 0.0)` | this number, or this vector |
# | `Ablate(nodes, to)` | zero, what it was in another run, or its mean over several |
# | `Add(nodes, amount)` | what it is, plus the amount |

# %%
other = model.run("When Mary and John went to the store, Mary gave a drink to")
last = Node("error", layer=3, sublayer="mlp", pos=-1)
john, mary = (model.weights.unembedding[run.token_ids[pos]] for pos in (4, 2))
neuron = circuit.nodes.query("kind == 'neuron'")["attribution"].abs().idxmax()
for name, edits in {
    "head twice": [Scale(head, 2)],
    "head as in the other prompt": [Ablate(head, other)],
    "strongest neuron at 0": [Set(circuit.nodes.loc[[neuron]], 0.0)],
    "steered towards John": [Add(last, 10 * (john - mary))],
}.items():
    print(f"{name:28} {run.edited(edits).value(target):8.3f}")

# %% [markdown]
# An error node takes any vector and is 0 here, so it is the place to steer at.
#
# ## Every node in turn
#
# `circuit.test()` knocks all of them out, one at a time, in all three modes.

# %%
result = circuit.test(progress=False)
result

# %%
result.agreement.round(3)

# %% [markdown]
# In the row `held` all is exact, as it must be. The row `free` says how far the held picture
# reaches: later layers react, and some repair what was taken away.
#
# Nodes knocked out together are not the sum of their members, for each stops what came through it.
# Here two heads as a pair, and twenty random sets for comparison:

# %%
sets = circuit.test([["L3.head 2@14", "L3.head 3@14"]], random=20, progress=False)
sets

# %% [markdown]
# ## The circuit alone
#
# The other way round: keep the circuit, and set *everything else* to its mean over other prompts,
# in the real model. What is left of the prediction?

# %%
pairs = [
    ("Anna", "Paul"),
    ("Laura", "Tom"),
    ("Peter", "Emma"),
    ("David", "Helen"),
    ("Susan", "Mark"),
]
pairs += [(b, a) for a, b in pairs]
prompts = [f"When {a} and {b} went to the store, {b} gave a drink to" for a, b in pairs]
alone = circuit.faithfulness(prompts, progress=False)
alone

# %%
alone.curve.round(3)

# %% [markdown]
# `circuit` is what the circuit alone still does, `complement` what all but the circuit does. A
# circuit that explains the prediction has much of the first and little of the second. The curve
# keeps more and more nodes, the strongest first; a steep one says that few nodes do most of it.
#
# ## Questions to go on with
#
# * Which node has the largest difference between `held` and `free`? Which later node reacts?
# * Replace the means by zero (`circuit.faithfulness()`), or by one other prompt
#   (`ablate="resample"`). Why do the figures differ?
# * `circuit.prune(0.5)`: how faithful is the smaller circuit?
# * Ablate the head in `model.generate(prompt, edits=[...])`. What does the model write now?
