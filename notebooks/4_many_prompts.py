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
# # Many prompts, and what they share
#
# A circuit is of one prompt. Is what it shows particular to that prompt? This notebook lays the
# circuits of many prompts together, compares two tasks, and looks up what a feature does elsewhere.

# %%
from IPython.display import SVG, display

from circuits import build_features, compare, load, read_cards, trace, trace_many

model = load("four-tasks", attention="heads")
names = [("Mary", "John"), ("Alice", "Peter"), ("Anna", "Simon"), ("Lucy", "Kevin")]


def ioi(a, b, first, second):
    """Who gets the drink: a. The roles say which position plays which part."""
    return {
        "prompt": f"When {first} and {second} went to the store, {b} gave a drink to",
        "explain": f" {a}",
        "minus": f" {b}",
        "roles": {
            "IO": 2 if first == a else 4,
            "S1": 4 if first == a else 2,
            "S2": 10,
            "END": 14,
        },
    }


rows = [ioi(a, b, *order) for a, b in names for order in ((a, b), (b, a))]
rows[1]["prompt"]

# %% [markdown]
# ## The mean circuit
#
# Positions of different prompts are laid together by the *role* they play: the name that gets the
# drink (IO), the other name, twice (S1, S2), and the last word (END). Every number is linear, so
# the mean of circuits is one: its sums add up as well.

# %%
mean = trace_many(rows, model=model, progress=False)
print(mean)

# %%
heads = mean.nodes.query("kind == 'head'")[
    ["layer", "index", "token", "attribution", "share", "spread"]
]
heads.sort_values("attribution", key=abs, ascending=False).head(8).round(3)

# %% [markdown]
# `share` is the share of prompts in which the node was traced, `spread` the standard deviation.
# *Which heads are in all prompts, and which differ most?*

# %%
mean.prune(0.8).save("mean.svg")
display(SVG("mean.svg"))

# %% [markdown]
# ## Two circuits side by side
#
# Does it matter which name comes first? One mean for each order, compared:

# %%
first = [row for row in rows if row["roles"]["IO"] == 2]
second = [row for row in rows if row["roles"]["IO"] == 4]
one = trace_many(first, model=model, progress=False).prune(0.8)
other = trace_many(second, model=model, progress=False).prune(0.8)
both = compare(one, other)
both.scores.round(3)

# %% [markdown]
# `jaccard` counts nodes: what both have over what either has. `weighted` and `cosine` look at the
# numbers too. Almost the same nodes take part, but not with the same weight:

# %%
both.shared.query("kind == 'head'")[["name", "a", "b"]].head(6).round(3)

# %% [markdown]
# ## Two tasks
#
# Now a prompt of another task, in which a sequence of words comes twice. Positions have nothing in
# common, so they are left out (`roles="pooled"`): which parts of the model serve both?

# %%
run = model.run("apple Oliver tower siege lamp Mary apple Oliver tower siege")
induction = trace(run.logit(" lamp") - run.logit(" apple"), progress=False)
shared = compare(mean.prune(0.8), induction.prune(0.8), roles="pooled")
shared

# %%
shared.shared.query("kind == 'head'")[["name", "a", "b"]].round(3)

# %% [markdown]
# Heads of the first two layers serve both tasks; the strong heads of the last layer serve the
# names alone. That a head serves two tasks does not say that it does the same in both: its flows
# say that.
#
# ## What a feature does elsewhere
#
# `build_features` reads a corpus once and keeps for every feature how often it fires, where it was
# strongest, and which words it promotes. A corpus of nine prompts is a toy; more fit in the same
# memory.

# %%
import tempfile

folder = tempfile.mkdtemp()
texts = [row["prompt"] for row in rows] + [run.prompt]
build_features(model, texts, f"{folder}/cards", top=3, tokens=5, progress=False)
cards = read_cards(f"{folder}/cards")
cards

# %%
features = mean.nodes.query("kind == 'feature'")
strongest = features.loc[features["attribution"].abs().idxmax()]
name = f"L{strongest['layer']}.f{strongest['index']}"
cards.card(name)

# %% [markdown]
# The tables are parquet files; any SQL can be asked. Features that fire on few words:

# %%
cards.sql(
    "SELECT name, fired, strongest FROM features WHERE fired = 1 ORDER BY strongest DESC LIMIT 5"
)

# %% [markdown]
# `circuit.detailed(cards=cards)` keeps the cards of a circuit's own features in its files, and its
# page shows them beside the flows of each node.

# %%
told = trace(model.run(texts[0]).logit(" Mary"), progress=False)
told = told.detailed(tokens=0, attention=0, cards=cards)
len(told.meta["details"]["cards"])

# %%
import shutil
from pathlib import Path

Path("mean.svg").unlink()
shutil.rmtree(folder)

# %% [markdown]
# ## Questions to go on with
#
# * Leave out the roles. What happens to the mean, and why?
# * `both.only_a`, `both.only_b`: what does the order of the names change?
# * A job of thousands of prompts: `trace_many(..., folder="job")` goes on where it was killed.
# * At the shell: `circuits compare one.circuit other.circuit -o both.html` draws both in one page.
