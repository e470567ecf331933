"""The graph of components whose edges circuits are made of, and forward passes patched by edge.

Nodes and edges as in EAP-IG (Hanna et al. 2024, 2403.17806) and MIB (Mueller et al. 2025,
2504.13151): every earlier writer, every later reader, heads read through q, k and v.
"""

from benchmarks.edges.graph import EdgeGraph
from benchmarks.edges.model import EdgeModel, Rules
from benchmarks.edges.pairs import Pairs
from benchmarks.edges.patching import Ablation, Patching
from benchmarks.edges.selection import greedy_circuit, top_circuit

__all__ = [
    "Ablation",
    "EdgeGraph",
    "EdgeModel",
    "Pairs",
    "Patching",
    "Rules",
    "greedy_circuit",
    "top_circuit",
]
