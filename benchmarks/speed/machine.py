"""What absolute times depend on: the machine, the packages, and how fast it multiplies."""

import os
import platform
from importlib.metadata import version
from typing import Any

import torch

from benchmarks.speed.clock import clocked

SQUARE = 2048
"""Side of the matrices by which the rate of products is measured."""


def matmul_rates(repeat: int = 5, device: str = "cpu") -> tuple[float, float]:
    """Return operations per second of a large float32 product: by the clock, and by CPU time."""
    side = SQUARE if device == "cpu" else 4 * SQUARE
    square = torch.ones(side, side, device=device)
    clocked(lambda: square @ square)
    times = [clocked(lambda: square @ square) for _ in range(repeat)]
    wall, cpu = (min(column) for column in zip(*times, strict=True))
    return 2 * side**3 / wall, 2 * side**3 / cpu


def machine_facts(device: str = "cpu") -> dict[str, Any]:
    """Return what the absolute times depend on."""
    packages = ("torch", "transformers", "nnsight")
    return {
        "processor": platform.machine(),
        **({} if device == "cpu" else {"GPU": torch.cuda.get_device_name(device)}),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "matmul GFLOP/s": round(matmul_rates(device=device)[0] / 1e9, 1),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }
