"""Nodes and signed edges of one explained prediction: tables, pruning, paths, files and pictures.

Needs numpy and pandas (networkx for ``to_networkx``); opens, prunes and draws a saved circuit
without torch.
"""

from graphs.files import save
from graphs.files.native import read_graph
from graphs.graph import Graph
from graphs.networks import to_networkx
from graphs.nodes import KINDS
from graphs.paths import strongest_paths
from graphs.pruning import prune
from graphs.view.picture import svg
from graphs.view.terminal import summary

__all__ = [
    "KINDS",
    "Graph",
    "prune",
    "read_graph",
    "save",
    "strongest_paths",
    "summary",
    "svg",
    "to_networkx",
]
