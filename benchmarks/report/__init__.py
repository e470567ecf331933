"""Everything the benchmarks say of a model, as one report; `python -m benchmarks` makes it.

settings.py   how much is measured: whole or quick
cells.py      one measurement in one file: what is there is not done again
edges.py      a task's edges by every method: recovery against patching, faithfulness, controls
agreement.py  single nodes: scores against activation patching
bases.py      circuits of nodes: neurons against transcoder features
cross.py      what tasks share: circuits on one another's prompts, also in a second model
exact.py      programs whose circuit is known
circuits.py   a task's circuit with the roles of its heads
published.py  rows of GPT-2 small, with what is needed to fill them
writing.py    report.md, report.html, CSV, and the figures agreed on
"""
