"""Scores of edges by the methods that others published, and by our contrast, on the same graph.

Every method returns one signed number per edge, the mean over pairs of prompts (`contrast` and
`held`: one row a pair): an estimate of how much higher the metric is because the edge carries what
the clean run wrote and not what the corrupted one did. Positive edges help. ACDC returns a circuit;
`eliminated` says in which order edges go; `discrete_codes` gives the codes of heads, which score
heads and, by `pair_edges`, edges between them.
"""

from benchmarks.baselines.acdc import acdc
from benchmarks.baselines.discrete_sae import discrete_codes, head_outputs, pair_edges
from benchmarks.baselines.elimination import eliminated
from benchmarks.baselines.exhaustive import exhaustive_edges, exhaustive_nodes
from benchmarks.baselines.gradients import (
    eap,
    eap_ig_activations,
    eap_ig_inputs,
    gradient_activation,
    node_scores,
    relp,
)
from benchmarks.baselines.ours import contrast, flow_tables, held, metric_difference, recorded
from benchmarks.baselines.random_scores import random_scores

__all__ = [
    "acdc",
    "contrast",
    "discrete_codes",
    "eap",
    "eap_ig_activations",
    "eap_ig_inputs",
    "eliminated",
    "exhaustive_edges",
    "exhaustive_nodes",
    "flow_tables",
    "gradient_activation",
    "head_outputs",
    "held",
    "metric_difference",
    "node_scores",
    "pair_edges",
    "random_scores",
    "recorded",
    "relp",
]
