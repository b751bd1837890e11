"""Five thousand broken checkpoints: each is refused in one line, or is the model that it was before."""

import json
import random
import shutil
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from common.checkpoint.checksums import MANIFEST_NAME, file_digest
from common.checkpoint.files import CheckpointError
from common.checkpoint.safetensors_file import read_header
from tests.checkpoints import Loader, save_pixtral

NUM_MUTATIONS = 5000
CONFIG, WEIGHTS = "config.json", "model.safetensors"
VALUES: list[Any] = [
    *(None, True, False, 0, 1, 2, 3, -1, 7, 64, 2**31, 2**63, 10**30, 0.5, -1.5, 1e308, 1e-320, float("nan")),
    *("", "7", "gelu", "\x00", [], [1], [None, 3], {}, {"rope_theta": "x"}, [[[]]], float("inf")),
]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = save_pixtral(tmp_path_factory.mktemp("original"))
    sums = [f"{file_digest(path)}  {path.name}\n" for path in sorted(directory.iterdir())]
    (directory / MANIFEST_NAME).write_text("".join(sums))
    return directory


def test_no_mutation_crashes_or_loads_another_model(original: Path, tmp_path: Path) -> None:
    rng = random.Random(52)
    files = {name: (original / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    directory = tmp_path / "mutated"
    shutil.copytree(original, directory)
    loader = Loader()
    expected = {name: tensor.shape for name, tensor in loader.load(directory, verify_checksums=True).items()}
    seen: Counter[str] = Counter()
    for index in range(NUM_MUTATIONS):
        name = rng.choice((CONFIG, WEIGHTS, WEIGHTS))
        mutated = mutate(files[name], name, rng)
        (directory / name).write_bytes(mutated)
        message, shapes = attempt(loader, directory)
        if message is None:
            assert shapes == expected, index
        else:
            assert is_one_line_naming_a_file(message), repr(message)
        seen[f"{name} {'loaded' if message is None else 'refused'}"] += 1
        if mutated != files[name] and index % 5 == 0:
            with pytest.raises(CheckpointError):
                loader.load(directory, verify_checksums=True)
        (directory / name).write_bytes(files[name])
    # The mutations reach both ends: some are harmless, and most are not.
    assert min(seen.values()) > 100, seen
    assert len(seen) == 4, seen


def test_what_the_formats_own_library_refuses_is_refused(original: Path, tmp_path: Path) -> None:
    rng = random.Random(53)
    data = (original / WEIGHTS).read_bytes()
    path = tmp_path / WEIGHTS
    accepted = 0
    for _ in range(1000):
        mutated = mutate(data, WEIGHTS, rng)
        path.write_bytes(mutated)
        try:
            tensors = read_header(path)
        except CheckpointError:
            continue
        theirs = safetensors.torch.load(mutated)
        assert {tensor.name for tensor in tensors} == theirs.keys()
        for tensor in tensors:
            assert tensor.read().equal(theirs[tensor.name]) or theirs[tensor.name].isnan().any()
        accepted += 1
    assert accepted > 50


def attempt(loader: Loader, directory: Path) -> tuple[str | None, dict[str, tuple[int, ...]]]:
    """What the error says, or None and what was loaded; any other exception is a crash."""
    try:
        return None, {name: tensor.shape for name, tensor in loader.load(directory).items()}
    except CheckpointError as error:
        return str(error), {}


def is_one_line_naming_a_file(message: str) -> bool:
    return "\n" not in message and len(message) < 600 and (CONFIG in message or WEIGHTS in message)


def mutate(data: bytes, name: str, rng: random.Random) -> bytes:
    """One of several ways to break a file."""
    ways = [_flip_bits, _cut, _splice, _overwrite]
    if name == CONFIG:
        return rng.choice([*ways, _change_config, _change_config, _change_config])(data, rng)
    return rng.choice([*ways, _flip_header_bits, _change_header, _change_header, _change_length])(data, rng)


def _flip_bits(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 16))):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def _flip_header_bits(data: bytes, rng: random.Random) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    out = bytearray(data)
    out[rng.randrange(8 + length)] ^= 1 << rng.randrange(8)
    return bytes(out)


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def _splice(data: bytes, rng: random.Random) -> bytes:
    start, end = sorted(rng.randrange(len(data)) for _ in range(2))
    return data[:start] + data[start:end] * rng.choice((0, 2)) + data[end:]


def _overwrite(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    noise = rng.choice((rng.randbytes(rng.randrange(1, 40)), b"[" * 3000, b'"' + b"9" * 5000, b"\xff\xfe", b"{}"))
    return data[:start] + noise + data[start + len(noise) :]


def _change_config(data: bytes, rng: random.Random) -> bytes:
    content = json.loads(data)
    section = rng.choice([content, content["text_config"], content["vision_config"]])
    key = rng.choice([*section, "sliding_window", "head_dim", "image_token_index", "layer_types", "auto_map"])
    if rng.random() < 0.2:
        section.pop(key, None)
    else:
        section[key] = rng.choice(VALUES)
    return json.dumps(content).encode()


def _change_header(data: bytes, rng: random.Random) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    names = [name for name in header if name != "__metadata__"]
    name, other = rng.sample(names, 2)
    entry = header[name]
    match rng.randrange(7):
        case 0:
            del header[name]
        case 1:
            header[rng.choice([f"{name}x", name[:-1], name.replace("0", "1"), ""])] = header.pop(name)
        case 2:
            header[name], header[other] = header[other], header[name]
        case 3:
            entry["shape"] = rng.choice([entry["shape"][::-1], [*entry["shape"], 1], [], [-1], [2**63], "x", [1.5]])
        case 4:
            entry["dtype"] = rng.choice(["F16", "BF16", "F64", "I32", "U8", "F8_E4M3", "X", None, 4])
        case 5:
            first, last = entry["data_offsets"]
            entry["data_offsets"] = rng.choice(
                [[last, first], [first, last + 4], [first - 4, last], [0, last - first], [2**64, 2**64], [first], None]
            )
        case _:
            header[name] = rng.choice(VALUES)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def _change_length(data: bytes, rng: random.Random) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    lie = rng.choice([0, 1, 2, length - 1, length + 1, length + 8, len(data), len(data) - 8, 10**8, 2**63, 2**64 - 1])
    return struct.pack("<Q", lie) + data[8:]
