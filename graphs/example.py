"""A graph small enough to check by hand, for the examples in these files."""

from graphs.graph import Graph
from graphs.nodes import edge_table, node_table


def worked_example() -> Graph:
    """The graph of a network of two layers, y = 16 at x = 1 (2405.13868, section on hierarchical
    attribution), worked out by hand.

    m1 = x·[1, 2]; x1 = x + m1·[1, 1] = 4; m2 = x1·[1, 1] = [4, 4]; y = x1 + m2·[2, 1] = 16. Node 0
    is x, 1 and 2 are m1, 3 and 4 are m2, 5 is y. Following y back, one unit of x1 is worth 1 + 2 +
    1 = 4, so m1 contributes [1·4, 2·4] = [4, 8], and m2 [4·2, 4·1] = [8, 4]: all of it came from x,
    which contributes 16.

    >>> worked_example().nodes["attribution"].tolist()
    [16.0, 4.0, 8.0, 8.0, 4.0, 16.0]
    """
    attribution = [16.0, 4.0, 8.0, 8.0, 4.0, 16.0]
    nodes = node_table(
        {
            "kind": ["token", "neuron", "neuron", "neuron", "neuron", "target"],
            "layer": [-1, 0, 0, 1, 1, 2],
            "sublayer": ["", "mlp", "mlp", "mlp", "mlp", ""],
            "pos": [0] * 6,
            "index": [7, 0, 1, 0, 1, -1],
            "token": ["x"] * 6,
            "activation": [1.0, 1.0, 2.0, 4.0, 4.0, 16.0],
            "attribution": attribution,
            "ungated": attribution,
        }
    )
    edges = edge_table(
        source=[0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 4],
        target=[1, 2, 3, 4, 5, 3, 4, 5, 3, 4, 5, 5, 5],
        flow=[4.0, 8.0, 2.0, 1.0, 1.0, 2.0, 1.0, 1.0, 4.0, 2.0, 2.0, 8.0, 4.0],
    )
    meta = {
        "tokens": ["x"],
        "n_layers": 2,
        "target": {"label": "y", "value": 16.0, "pos": 0},
        "prompt": "x",
    }
    return Graph(nodes, edges, meta)
