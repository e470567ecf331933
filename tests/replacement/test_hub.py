"""Layers on the hub: fetched once, served from the cache, refused in one sentence.

The hub is a server on the loopback interface (tests/fake_hub.py); `huggingface_hub` is real.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import constants
from safetensors.torch import save_file

from replacement.checkpoints import read_layers, save_transcoders
from replacement.checkpoints.hub import Source, fetch, listing, source_of
from replacement.checkpoints.sizes import Size, numbers_in, size_of
from tests.fake_hub import FakeHub, files_of, reachable
from tests.random_layers import random_transcoder

JUNK = {"README.md": b"a card", "features/layer_0.json": b"examples", "a.bin": b"other"}
LAYER_0, LAYER_1 = "layer_0.safetensors", "layer_1.safetensors"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with reachable(tmp_path / "cache", monkeypatch) as found:
        yield found


def made(folder: Path, seed: int = 0) -> dict[str, bytes]:
    """A set of ours of two layers, as the files of a repository."""
    layers = [random_transcoder("topk", seed=seed + n, dtype=torch.float32) for n in range(2)]
    save_transcoders(layers, folder)
    return files_of(folder)


def bias(folder: Path) -> torch.Tensor:
    """What tells one set from another."""
    return read_layers(folder)[1][0].read_bias


@pytest.fixture
def published(hub: FakeHub, tmp_path: Path) -> FakeHub:
    """org/set: an old set at v1, a newer one at main; org/many: the old one in a folder."""
    old, new = made(tmp_path / "old"), made(tmp_path / "new", seed=7)
    hub.publish("org/set", old | JUNK, "v1")
    hub.publish("org/set", new | JUNK)
    hub.publish("org/many", {f"sub/old/{name}": data for name, data in old.items()} | JUNK)
    return hub


NAMES = [
    ("user/repo", Source("user/repo")),
    ("user/repo/", Source("user/repo")),
    ("user/repo@v2", Source("user/repo", revision="v2")),
    ("user/repo@refs/pr/3", Source("user/repo", revision="refs/pr/3")),
    ("user/repo/sub/folder@v2", Source("user/repo", "sub/folder", "v2")),
    ("hf://user/repo/a/params.npz", Source("user/repo", "a/params.npz")),
    ("hf://user/repo/a.npz?revision=v2", Source("user/repo", "a.npz", "v2")),
    ("hf://user/repo/a@b.npz", Source("user/repo", "a@b.npz")),
    ("word", None),
    ("", None),
    ("./user/repo", None),
    ("/user/repo", None),
    ("~/repo", None),
    ("../repo", None),
    ("user/../repo", None),
    ("user/repo/../../other", None),
    ("user//repo", None),
    ("user/repo//sub", None),
    ("user\\repo", None),
    ("hf://user", None),
    ("https://host/user/repo", None),
]


@pytest.mark.parametrize(("text", "source"), NAMES, ids=lambda part: str(part))
def test_names_of_the_hub_are_told_from_paths(text: str, source: Source | None) -> None:
    assert source_of(text) == source


def test_a_source_is_shown_as_it_is_asked_for() -> None:
    for text in ("user/repo", "user/repo@v2", "user/repo/sub/folder@refs/pr/3"):
        assert str(source_of(text)) == text


def test_a_set_is_fetched_and_read(published: FakeHub, tmp_path: Path) -> None:
    folder = fetch(Source("org/set"))
    assert torch.equal(bias(folder), bias(tmp_path / "new"))
    assert published.sent() == ["config.json", LAYER_0, LAYER_1], "features and cards stay there"


@pytest.mark.usefixtures("published")
def test_a_folder_of_a_repository_is_fetched_and_read(tmp_path: Path) -> None:
    folder = fetch(Source("org/many", "sub/old"))
    assert folder.parts[-2:] == ("sub", "old")
    assert torch.equal(bias(folder), bias(tmp_path / "old"))


def test_a_revision_is_kept_to(published: FakeHub, tmp_path: Path) -> None:
    newest, first = fetch(Source("org/set")), fetch(Source("org/set", revision="v1"))
    assert torch.equal(bias(first), bias(tmp_path / "old"))
    assert torch.equal(bias(newest), bias(tmp_path / "new"))
    commit = published.commit("org/set", "v1")
    assert fetch(Source("org/set", revision=commit)) == first


def test_a_listing_says_what_is_still_to_come(published: FakeHub, tmp_path: Path) -> None:
    source = Source("org/set")
    before = listing(source)
    assert before is not None and published.sent() == []
    sizes = {name: len(data) for name, data in files_of(tmp_path / "new").items()}
    assert before.sizes == sizes and before.to_download == sum(sizes.values())
    fetch(replace(source, files=("config.json", LAYER_0)))
    half = listing(source)
    assert half is not None and half.missing == (LAYER_1,) and half.to_download == sizes[LAYER_1]
    fetch(source)
    after = listing(source)
    assert after is not None and after.to_download == 0


def test_what_is_here_is_not_fetched_again(
    published: FakeHub, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = fetch(Source("org/set"))
    published.asked.clear()
    capfd.readouterr()
    assert fetch(Source("org/set")) == folder
    assert published.sent() == [] and capfd.readouterr() == ("", "")


def test_without_the_hub_the_cache_serves(
    published: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = [fetch(Source("org/set")), fetch(Source("org/set", revision="v1"))]
    published.stop()
    assert listing(Source("org/set")) is None
    assert [fetch(Source("org/set")), fetch(Source("org/set", revision="v1"))] == fetched
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert [fetch(Source("org/set")), fetch(Source("org/set", revision="v1"))] == fetched


def test_offline_the_hub_is_not_asked(published: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError):
        fetch(Source("org/set"))
    assert published.asked == []


def test_a_download_that_broke_off_goes_on(
    published: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    published.breaks_off.add(LAYER_1)
    with pytest.raises(ConnectionError, match=r"org/set: the download broke off"):
        fetch(Source("org/set"))
    published.breaks_off.clear()
    assert torch.equal(bias(fetch(Source("org/set"))), bias(tmp_path / "new"))


# ---------------------------------------------------------------- circuit-tracer's lists


def listed(hub: FakeHub, folder: Path) -> Path:
    """A folder of circuit-tracer that lists one file here and two in another repository."""
    folder.mkdir()
    weights = {"W_enc": (5, 4), "W_dec": (5, 4), "b_enc": (5,), "b_dec": (4,)}
    for number in range(3):
        file = folder / f"{number}.safetensors"
        tensors = {n: torch.full(shape, 1.0 + number) for n, shape in weights.items()}
        save_file(tensors, file)
    data = [(folder / f"{number}.safetensors").read_bytes() for number in range(3)]
    hub.publish("org/files", {"a/1.safetensors": data[1]}, "v3")
    hub.publish("org/files", {"a/2.safetensors": data[2], "a/other.safetensors": data[0]})
    config = {
        "model_kind": "transcoder_set",
        "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "mlp.hook_out",
        "transcoders": [
            "0.safetensors",
            "hf://org/files/a/1.safetensors?revision=v3",
            "hf://org/files/a/2.safetensors",
        ],
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def bytes_listed(hub: FakeHub) -> int:
    """Of the two files of org/files that the list names."""
    held = [files.items() for files in hub.repos["org/files"].values()]
    return sum(len(data) for files in held for name, data in files if "other" not in name)


def test_files_that_a_list_names_are_fetched(hub: FakeHub, tmp_path: Path) -> None:
    folder = listed(hub, tmp_path / "set")
    assert size_of(folder) == Size(3 * 49, bytes_listed(hub))
    _, layers = read_layers(folder)
    assert [float(layer.read_bias[0]) for layer in layers] == [1.0, 2.0, 3.0]
    assert hub.sent() == ["a/1.safetensors", "a/2.safetensors"], "no other file of the repository"
    assert size_of(folder) == Size(3 * 49, 0)


def test_a_list_in_a_repository_is_counted_and_fetched(hub: FakeHub, tmp_path: Path) -> None:
    folder = listed(hub, tmp_path / "set")
    files = {name: (folder / name).read_bytes() for name in ("config.yaml", "0.safetensors")}
    hub.publish("org/list", files)
    own = sum(map(len, files.values()))
    assert size_of(Source("org/list")) == Size(3 * 49, bytes_listed(hub) + own)
    _, layers = read_layers(fetch(Source("org/list")))
    assert [float(layer.read_bias[0]) for layer in layers] == [1.0, 2.0, 3.0]
    assert size_of(Source("org/list")) == Size(3 * 49, 0)


# ---------------------------------------------------------------- sizes


def test_sizes_are_known_before_anything_is_fetched(published: FakeHub, tmp_path: Path) -> None:
    layers = read_layers(tmp_path / "new")[1]
    numbers = sum(
        tensor.numel() for layer in layers for tensor in vars(layer).values()
        if isinstance(tensor, torch.Tensor)
    )  # fmt: skip
    sizes = [len(data) for data in files_of(tmp_path / "new").values()]
    assert size_of(Source("org/set")) == Size(numbers, sum(sizes))
    whole = [line for line in published.asked if line.startswith("GET /org/")]
    assert all(LAYER_0 in line or LAYER_1 in line for line in whole), "headers, and nothing else"
    assert size_of(fetch(Source("org/set"))) == Size(numbers, 0) == size_of(Source("org/set"))
    published.stop()
    assert size_of(Source("org/set")) == Size(numbers, 0)


def test_headers_of_every_kind_of_file(tmp_path: Path) -> None:
    mixed = {
        "a": torch.zeros(3, 5, dtype=torch.bfloat16),
        "b": torch.zeros(7, dtype=torch.float64),
        "mask": torch.zeros(9, 9, dtype=torch.bool),
        "ids": torch.zeros(4, dtype=torch.int64),
    }
    save_file(mixed, tmp_path / "a.safetensors", metadata={"format": "pt"})
    assert numbers_in(tmp_path / "a.safetensors") == 3 * 5 + 7
    for name, save in (("a.npz", np.savez), ("b.npz", np.savez_compressed)):
        arrays = {"w": np.zeros((4, 6), np.float32), "b": np.zeros(3), "n": np.arange(9)}
        save(tmp_path / name, allow_pickle=False, **arrays)
        assert numbers_in(tmp_path / name) == 4 * 6 + 3
    torch.save({"w": torch.zeros(5000)}, tmp_path / "a.pt")
    assert numbers_in(tmp_path / "a.pt") == pytest.approx(5000, rel=0.1)
    torch.save({"w": torch.zeros(5000)}, tmp_path / "a_log_feature_sparsity.pt")
    one_by_one = sum(
        map(numbers_in, (tmp_path / n for n in ("a.safetensors", "a.npz", "b.npz", "a.pt")))
    )
    assert size_of(tmp_path).numbers == one_by_one


@pytest.mark.parametrize("name", ["a.safetensors", "a.npz"])
@pytest.mark.parametrize("data", [b"", b"\xff" * 40, b"\x04" + b"\0" * 7 + b"{}  "])
def test_a_broken_header_is_refused(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    if data.endswith(b"{}  ") and name == "a.safetensors":
        assert numbers_in(tmp_path / name) == 0, "a sound header without tensors"
        return
    with pytest.raises(ValueError, match=f"{name}: cannot be read"):
        numbers_in(tmp_path / name)


# ---------------------------------------------------------------- refusals


@dataclass(frozen=True)
class Refused:
    """What can go wrong, and what is said."""

    name: str
    call: Callable[[FakeHub], object]
    error: type[Exception]
    says: tuple[str, ...]


def closed(hub: FakeHub, code: int) -> Path:
    hub.closed["org/set"] = code
    return fetch(Source("org/set"))


def stopped(hub: FakeHub) -> Path:
    hub.stop()
    return fetch(Source("org/set"))


def half_there(hub: FakeHub) -> Path:
    fetch(Source("org/set", files=("config.json",)))
    return stopped(hub)


REFUSED = [
    Refused(
        "no repository",
        lambda _: fetch(Source("org/nothing", "sub", "v1")),
        FileNotFoundError,
        ("org/nothing/sub@v1", "no repository org/nothing", "circuits list", "hf auth login"),
    ),
    Refused(
        "no revision",
        lambda _: fetch(Source("org/set", revision="v9")),
        FileNotFoundError,
        ("org/set@v9", "no revision 'v9'", "leave @… out"),
    ),
    Refused(
        "no folder",
        lambda _: fetch(Source("org/many", "sub/new")),
        FileNotFoundError,
        ("org/many/sub/new", "no files of layers", "holds: README.md, a.bin", "sub"),
    ),
    Refused(
        "gated",
        lambda hub: closed(hub, 401),
        PermissionError,
        ("org/set", "accepted its conditions", "hf auth login"),
    ),
    Refused(
        "gated files",
        lambda hub: closed(hub, 403),
        PermissionError,
        ("org/set", "accepted its conditions", "hf auth login"),
    ),
    Refused(
        "an error of the hub",
        lambda hub: closed(hub, 500),
        FileNotFoundError,
        ("org/set", "not in the cache", "out of reach"),
    ),
    Refused(
        "no hub, nothing cached",
        stopped,
        FileNotFoundError,
        ("org/set", "not in the cache", "out of reach", "Load it once with a network"),
    ),
    Refused(
        "no hub, half of it cached",
        half_there,
        FileNotFoundError,
        ("org/set", "or not all of it", "out of reach"),
    ),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_a_refusal_says_what_to_do(case: Refused, published: FakeHub) -> None:
    with pytest.raises(case.error) as caught:
        case.call(published)
    message = str(caught.value)
    assert not [words for words in case.says if words not in message], message
    assert "\n" not in message and len(message) < 600
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_full_disk_is_noticed_before_the_download(
    published: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(OSError, match=r"org/set: .* GB are to be downloaded.*HF_HUB_CACHE"):
        fetch(Source("org/set"))
    assert published.sent() == []
