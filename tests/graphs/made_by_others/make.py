"""How circuit_tracer.json and .pt were made, with circuit-tracer 0.5.0 itself: `python make.py`.

Two layers, three tokens, four features; every node acts on every later one that it can reach.
"""

from pathlib import Path

import torch
from circuit_tracer.attribution.targets import LogitTarget
from circuit_tracer.frontend.graph_models import Model
from circuit_tracer.graph import Graph
from circuit_tracer.utils.create_graph_files import (
    build_model,
    create_nodes,
    create_used_nodes_and_edges,
)
from circuit_tracer.utils.tl_nnsight_mapping import UnifiedConfig

HERE = Path(__file__).parent
FEATURES = torch.tensor([[0, 1, 7], [0, 2, 3], [1, 2, 11], [1, 2, 500]])
N_LAYERS, TOKENS = 2, torch.tensor([5, 9, 2])


class Words:
    """Texts of the three tokens."""

    def decode(self, token: torch.Tensor) -> str:
        return {5: "<bos>", 9: " Mary", 2: " gave"}[int(token)]


def main() -> None:
    torch.manual_seed(0)
    places = [(2 * layer + 1, pos) for layer, pos, _ in FEATURES.tolist()]
    places += [(2 * layer + 1, pos) for layer in range(N_LAYERS) for pos in range(3)]
    places += [(0, pos) for pos in range(3)]
    places += [(99, 2), (99, 2)]
    count = len(places)
    matrix = torch.zeros(count, count)
    for reader in [*range(4), count - 2, count - 1]:
        for writer in range(count - 2):
            (later, at), (earlier, before) = places[reader], places[writer]
            if earlier < later and before <= at:
                matrix[reader, writer] = torch.randn(())
    config = dict.fromkeys(UnifiedConfig.__dataclass_fields__, 8)
    config |= {"n_layers": N_LAYERS, "tokenizer_name": "none", "model_name": "made"}
    config |= {"original_architecture": "made", "dtype": torch.float32}
    graph = Graph(
        input_string="<bos> Mary gave",
        input_tokens=TOKENS,
        active_features=FEATURES,
        adjacency_matrix=matrix,
        cfg=UnifiedConfig(**config),
        selected_features=torch.arange(4),
        activation_values=torch.tensor([1.5, 0.5, 2.0, 1.0]),
        logit_targets=[LogitTarget(" John", 4), LogitTarget(" Mary", 9)],
        logit_probabilities=torch.tensor([0.7, 0.2]),
        scan="made/here",
        vocab_size=16,
    )
    graph.to_pt(str(HERE / "circuit_tracer.pt"))
    scores = torch.linspace(0, 1, count)
    nodes = create_nodes(graph, torch.ones(count, dtype=torch.bool), Words(), scores.tolist())
    used = create_used_nodes_and_edges(graph, nodes, matrix != 0)
    model: Model = build_model(graph, *used, "made", "made/here", 0.8, Words())
    text = model.model_dump_json(indent=1)
    (HERE / "circuit_tracer.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
