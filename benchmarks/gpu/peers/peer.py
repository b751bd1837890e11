"""What a peer is: something that says in rows how it does beside us.

Knows what a peer is given. Does not know any peer: `catalogue` lists them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from benchmarks.gpu.answers import Answers
from benchmarks.gpu.own_figures import OwnFigures
from benchmarks.gpu.report import Row
from benchmarks.gpu.workloads import Workload
from common.model.config import MistralConfig
from decoder_service.model.weights import DecoderModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a peer runs with."""

    device: torch.device
    cases: frozenset[str]
    """The cases that were asked for, also those that are not the peer's"""
    decoder: MistralConfig
    """Shape of the decoder that is timed"""
    ours: OwnFigures
    seconds: float
    """After so many it is ended; one that can stop by itself before that has its figures so far"""
    gpt_fast: Path | None = None
    """A checkout of gpt-fast"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A peer by its name. Its modules are imported when it runs, as what they need may be missing."""

    name: str
    cases: frozenset[str]
    rows: Callable[[Setting], Iterator[Row]]
    """One for each thing that was measured, or that is `not run` and why; what it raises ends it with such a row"""


class Decoding(Protocol):
    """An engine around the weights of a decoder of ours."""

    def answer(self, workload: Workload, *, seconds: float) -> Answers:
        """Greedy tokens of the requests. One that cannot tell how long it takes stops after so many seconds."""
        ...


MakeDecoding = Callable[[DecoderModel], Decoding]
