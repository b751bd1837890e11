"""How fast the two kinds of replica are, and what they cost: measured points and what lies between them.

Knows points and where they come from: a file of `python -m benchmarks components --json`, or a TOML file that says
itself on what its numbers rest. Does not know workloads or fleets.
"""

import json
import tomllib
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PATCH = 16


@dataclass(frozen=True, slots=True)
class Curve:
    """Seconds against a size, linear between points and along the outer ones' lines beyond them."""

    sizes: tuple[float, ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.sizes) != len(self.seconds) or len(self.sizes) < 2:
            raise ValueError("a curve needs two points or more, and as many sizes as seconds")
        if list(self.sizes) != sorted(set(self.sizes)):
            raise ValueError("the sizes of a curve must rise")

    def at(self, size: float) -> float:
        """Seconds at a size; never less than nothing."""
        right = min(max(bisect_left(self.sizes, size), 1), len(self.sizes) - 1)
        (x0, x1), (y0, y1) = self.sizes[right - 1 : right + 1], self.seconds[right - 1 : right + 1]
        return max(y0 + (y1 - y0) * (size - x0) / (x1 - x0), 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One kind of encoder and one kind of decoder."""

    name: str
    basis: str
    """Whether this was measured, and where, or how it was derived."""
    encode: Curve
    """Seconds of one picture by its patches."""
    prefill: Curve
    """Seconds of a prompt by its tokens."""
    decode_step: Curve
    """Seconds of a step by the requests in it."""
    max_batch: int
    """Most requests in a step."""
    bytes_per_patch: int
    """Of features on the wire."""
    encoder_cost: float
    """Of one encoder for an hour, in any currency."""
    decoder_cost: float


def read_profile(path: Path) -> Profile:
    """A profile from a TOML file, or from a JSON file of measured components.

    Raises ValueError, KeyError or TypeError for a file that is not one, and OSError.
    """
    if path.suffix == ".json":
        return _measured(json.loads(path.read_text()), path.name)
    document = tomllib.loads(path.read_text())
    for name in ("encode", "prefill", "decode_step"):
        sizes, seconds = document[name]
        document[name] = Curve(tuple(map(float, sizes)), tuple(map(float, seconds)))
    return Profile(**document)


def _measured(document: dict[str, Any], name: str) -> Profile:
    machine, cores = document["machine"], document["results"]["cores"]
    measurements = document["results"]["measurements"]
    encoder = _points(measurements, "encoder")
    return Profile(
        name=name,
        basis=f"measured on {cores} core(s) of {machine['processor']} {machine['family']}, {machine['date']}",
        encode=Curve(tuple((side / _PATCH) ** 2 for side in encoder.sizes), encoder.seconds),
        prefill=_points(measurements, "prefill"),
        decode_step=(decode := _points(measurements, "decode step")),
        max_batch=int(decode.sizes[-1]),
        bytes_per_patch=1024,
        encoder_cost=1.0,
        decoder_cost=1.0,
    )


def _points(measurements: Sequence[dict[str, Any]], component: str) -> Curve:
    points = [each for each in measurements if each["component"] == component]
    return Curve(
        tuple(float(each["parameter"]) for each in points),
        tuple(each["value"]["median"] / 1000 for each in points),
    )
