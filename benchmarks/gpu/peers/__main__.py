"""One peer in this process: `python -m benchmarks.gpu.peers NAME`. `process` starts it.

Writes a row of JSON a line to standard output; whatever else is said goes to standard error.
"""

import argparse
import json
import os
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.gpu.own_figures import OwnFigures
from benchmarks.gpu.peers.catalogue import find_peer
from benchmarks.gpu.peers.peer import Peer, Setting
from benchmarks.gpu.report import Row
from benchmarks.pixtral_12b import DECODER_12B


def main() -> None:
    """Run the peer, and say why it did not where it did not."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.peers", description=__doc__)
    parser.add_argument("name", type=find_peer)
    parser.add_argument("--cases", required=True, help="with commas between them")
    parser.add_argument("--ours", type=Path, required=True, help="our own figures")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--gpt-fast", type=Path)
    arguments = parser.parse_args()
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    setting = Setting(
        device=torch.device(arguments.device),
        cases=frozenset(arguments.cases.split(",")),
        decoder=replace(DECODER_12B, num_hidden_layers=4) if arguments.small else DECODER_12B,
        ours=OwnFigures.read(arguments.ours),
        seconds=arguments.seconds,
        gpt_fast=arguments.gpt_fast,
    )
    for row in all_rows(arguments.name, setting):
        output.write(json.dumps(row) + "\n")
        output.flush()


def all_rows(peer: Peer, setting: Setting) -> Iterator[Row]:
    """The peer's rows, and what it ended with where that was no good end."""
    try:
        yield from peer.rows(setting)
    except Exception as error:  # Of whatever kind another project's errors are.
        traceback.print_exc()
        yield {"not run": f"{type(error).__name__}: {error}".splitlines()[0][:300]}


if __name__ == "__main__":
    main()
