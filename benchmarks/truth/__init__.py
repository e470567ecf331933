"""Models whose circuit is known exactly, and the effect of every edge of a small model.

components.py   components of a model and the edges between them
wiring.py       a program as variables, heads and neurons; the edges it uses
compiling.py    from a wiring to a GPT-2 of transformers
program.py      a wiring with questions, counterfactuals and a target
programs/       the programs, by name and group
perfect.py      the same models read through Lorsa and transcoders that miss nothing
exhaustive.py   what cutting each edge alone does: the truth
compare.py      what flowed by each edge of a trace
others.py       what published methods give each edge
measure.py      one program, every method; `python -m benchmarks.truth` does all programs
"""
