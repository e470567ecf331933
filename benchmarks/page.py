"""How large a circuit's page is, and how long it takes to draw, in headless Chromium.

`python -m benchmarks.page OUT.json`; needs selenium and Debian's chromium and chromium-driver. The
times are from the start of the navigation to the frame after the first drawing; `show_ms` is all of
`circuits show FILE`, from the start of its process to its end.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from graphs.files import save
from graphs.graph import Graph
from graphs.nodes import INTERIOR, edge_table, node_table
from graphs.view.page import page

POSITIONS, LAYERS, REPEATS = 24, 12, 5
ADDRESSES = {"as opened": "", "everything": '#{"share":1,"density":1}'}


def wide_graph(n_nodes: int, n_edges: int, seed: int = 0) -> Graph:
    """Return a conserved graph of so many nodes and edges, in which nothing dangles upwards."""
    rng = np.random.default_rng(seed)
    stage = np.sort(rng.integers(0, 2 * LAYERS, n_nodes))
    pos = np.maximum(0, POSITIONS - rng.geometric(0.2, n_nodes))
    stages = np.concatenate([np.full(POSITIONS, -1), stage, [2 * LAYERS]])
    places = np.concatenate([np.arange(POSITIONS), pos, [POSITIONS - 1]])
    writer = rng.integers(0, len(stages) - 1, 12 * n_edges)
    reader = rng.integers(0, len(stages), 12 * n_edges)
    fits = (stages[writer] < stages[reader]) & (places[writer] <= places[reader])
    pairs = np.unique(np.stack([writer[fits], reader[fits]], axis=1), axis=0)
    writer, reader = rng.permutation(pairs)[:n_edges].T
    flow = rng.lognormal(-1, 1.2, len(writer)) * rng.choice([-1, 1], len(writer), p=[0.3, 0.7])
    into = np.bincount(reader, flow, len(stages))
    attribution = np.bincount(writer, flow, len(stages))
    attribution[-1] = into[-1]
    tokens = [f" word{at}" for at in range(POSITIONS)]
    halves = np.where(stage % 2 == 1, "mlp", "attn").tolist()
    kinds = ["feature" if half == "mlp" else "lorsa" for half in halves]
    nodes = node_table(
        {
            "kind": ["token"] * POSITIONS + kinds + ["target"],
            "layer": [-1] * POSITIONS + (stage // 2).tolist() + [LAYERS],
            "sublayer": [""] * POSITIONS + halves + [""],
            "pos": places,
            "index": [*range(POSITIONS), *rng.integers(0, 16384, n_nodes).tolist(), -1],
            "token": [tokens[place] for place in places],
            "activation": np.abs(attribution),
            "attribution": attribution,
            "ungated": attribution,
            "in_bias": np.where(stages >= 0, attribution - into, 0.0),
        }
    )
    target = {"label": 'logit(" x")', "value": float(attribution[-1]), "pos": POSITIONS - 1}
    meta = {"tokens": tokens, "n_layers": LAYERS, "target": target}
    return Graph(nodes, edge_table(writer, reader, flow), meta)


def ioi() -> Graph:
    """Return the IOI circuit of the bundled model."""
    from circuits import load, trace

    run = load("four-tasks").run("When Mary and John went to the store, John gave a drink to")
    return trace(run.logit(" Mary") - run.logit(" John")).data


def measured(driver: Any, graph: Graph, folder: Path) -> dict[str, Any]:
    """Return the sizes and times of one page; times are medians."""
    start = time.perf_counter()
    html = page(graph)
    made = time.perf_counter() - start
    path = folder / "page.html"
    path.write_text(html, encoding="utf-8")
    result: dict[str, Any] = {
        "nodes": int(graph.is_kind(*INTERIOR).sum()),
        "edges": len(graph.edges),
        "page_kb": round(len(html.encode()) / 1000, 1),
        "made_ms": round(1000 * made),
    }
    for name, address in ADDRESSES.items():
        times = []
        for _ in range(REPEATS):
            driver.get("about:blank")
            driver.get(path.as_uri() + address)
            times.append(_drawn(driver))
        result[f"drawn_ms, {name}"] = round(float(np.median(times)))
    return result


def _drawn(driver: Any) -> float:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        marks = driver.execute_script(
            "return performance.getEntriesByName('drawn').map(mark => mark.startTime)"
        )
        if marks:
            return marks[0]
        time.sleep(0.02)
    raise TimeoutError("the page did not draw within 30 s")


def shown(graph: Graph, folder: Path) -> int:
    """Return the median time of `circuits show` on a file of this graph, in ms."""
    path, times = save(graph, folder / "a.circuit"), []
    for _ in range(REPEATS):
        start = time.perf_counter()
        words = [sys.executable, "-m", "circuits", "show", str(path)]
        subprocess.run(words, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return round(1000 * float(np.median(times)))


def main(out: Path) -> None:
    """Write the figures."""
    from selenium import webdriver  # pyright: ignore[reportMissingImports]
    from selenium.webdriver.chrome.service import (  # pyright: ignore[reportMissingImports]
        Service,
    )

    options = webdriver.ChromeOptions()
    flags = ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage")
    for flag in (*flags, "window-size=1400,900", "host-resolver-rules=MAP * ~NOTFOUND"):
        options.add_argument(f"--{flag}")
    options.binary_location = str(shutil.which("chromium"))
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    code = resources.files("graphs.view") / "page"
    try:
        with tempfile.TemporaryDirectory() as folder:
            cases = {
                "IOI circuit of four-tasks": ioi(),
                "500 nodes, 10,000 edges": wide_graph(500, 10_000),
                "500 nodes, 30,000 edges": wide_graph(500, 30_000),
                "2,000 nodes, 30,000 edges": wide_graph(2_000, 30_000),
            }
            show_ms = shown(cases["IOI circuit of four-tasks"], Path(folder))
            pages = {name: measured(driver, graph, Path(folder)) for name, graph in cases.items()}
        result = {
            "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
            "browser": driver.capabilities["browserVersion"],
            "code_kb": round(sum(len(file.read_bytes()) for file in code.iterdir()) / 1000, 1),
            "show_ms": show_ms,
            "load_average": round(os.getloadavg()[0], 1),
            "pages": pages,
        }
    finally:
        driver.quit()
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
