"""How long parts take beside a reference, and how much memory one adds."""

import contextlib
import ctypes
import platform
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

Part = Callable[[], object]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Timing:
    """The least time one part took, and its ratio to the forward passes run in turn with it."""

    wall_ms: float
    cpu_ms: float
    wall_ratio: float
    cpu_ratio: float


def clocked(part: Part) -> tuple[float, float]:
    """Return the wall-clock and the processor seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    part()
    _wait_for_the_gpu()
    return time.perf_counter() - wall, time.process_time() - cpu


def clocked_with_memory(part: Callable[[], Result]) -> tuple[Result, float, float, float | None]:
    """Return a call's result, its wall-clock and processor seconds, and the megabytes that it added
    to resident memory at its peak: None where the system does not keep a peak that can be reset.
    """
    _return_freed_memory()
    resets = Path("/proc/self/clear_refs")
    if resets.exists():
        resets.write_text("5")
    before, wall, cpu = memory_mb("VmRSS"), time.perf_counter(), time.process_time()
    result = part()
    _wait_for_the_gpu()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    grown = round(memory_mb("VmHWM") - before, 1) if resets.exists() else None
    return result, round(wall, 3), round(cpu, 3), grown


def timings(parts: dict[str, Part], forward: Part, repeat: int) -> dict[str, Timing]:
    """Return every part's least times and their ratios to the passes run in turn with it."""
    samples: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in parts}
    for part in parts.values():
        part()
    for _ in range(repeat):
        for name, part in parts.items():
            samples[name].append((*clocked(forward), *clocked(part)))
    return {name: _timing(taken) for name, taken in samples.items()}


def _timing(samples: list[tuple[float, float, float, float]]) -> Timing:
    forward_wall, forward_cpu, wall, cpu = (min(column) for column in zip(*samples, strict=True))
    measured = (1e3 * wall, 1e3 * cpu, wall / forward_wall, cpu / forward_cpu)
    return Timing(*(round(number, 3) for number in measured))


def memory_growth(part: Part, device: str = "cpu") -> float | None:
    """Return the megabytes `part` added at its peak to a GPU's memory, or on a processor to
    anonymous memory; None without /proc."""
    if device != "cpu":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        part()
        return round((torch.cuda.max_memory_allocated(device) - before) / 1e6, 1)
    _return_freed_memory()
    start = memory_mb("RssAnon")
    with sampled() as seen:
        result = part()
        seen.append(memory_mb("RssAnon"))
        del result
    return round(max(seen) - start, 1) if start else None


@contextlib.contextmanager
def sampled() -> Iterator[list[float]]:
    """Yield a list that anonymous memory in megabytes is added to every millisecond."""
    ended, seen = threading.Event(), [memory_mb("RssAnon")]

    def sample() -> None:
        while not ended.wait(0.001):
            seen.append(memory_mb("RssAnon"))

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield seen
    finally:
        ended.set()
        sampler.join()


def memory_mb(name: str) -> float:
    """Return a line of this process' /proc status ("RssAnon", "VmHWM") in megabytes, or 0."""
    status = Path("/proc/self/status")
    found = re.search(rf"{name}:\s*(\d+)", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def _wait_for_the_gpu() -> None:
    """Calls return before a GPU is done."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _return_freed_memory() -> None:
    """Give what loading freed back to the system, so that reuse of it counts as growth."""
    if platform.system() == "Linux" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
