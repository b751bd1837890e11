"""Every peer there is. To add one, write what makes it from our weights, and a line here."""

from collections.abc import Iterator
from functools import partial

from benchmarks.gpu.peers.decoding_rows import decoding_rows
from benchmarks.gpu.peers.peer import Decoding, Peer, Setting
from benchmarks.gpu.report import Row
from decoder_service.model.weights import DecoderModel


def _generate(model: DecoderModel, *, is_static: bool) -> Decoding:
    from benchmarks.gpu.peers.transformers_generate import Generate

    return Generate(model, is_static=is_static)


def _paged(model: DecoderModel) -> Decoding:
    from benchmarks.gpu.peers.transformers_paged import Paged

    return Paged(model)


def _gpt_fast_rows(setting: Setting) -> Iterator[Row]:
    from benchmarks.gpu.peers.gpt_fast import GptFast

    path = setting.gpt_fast
    if path is None:
        raise ValueError("no checkout of it was given (--gpt-fast)")
    yield from decoding_rows(lambda model: GptFast(model, path), setting)


def _encoder_rows(setting: Setting) -> Iterator[Row]:
    from benchmarks.gpu.peers.transformers_encoder import encoder_rows

    yield from encoder_rows(setting)


PEERS = (
    Peer(
        name="transformers",
        cases=frozenset({"G1"}),
        rows=partial(decoding_rows, partial(_generate, is_static=False)),
    ),
    Peer(
        name="transformers-compiled",
        cases=frozenset({"G1"}),
        rows=partial(decoding_rows, partial(_generate, is_static=True)),
    ),
    Peer(name="gpt-fast", cases=frozenset({"G1"}), rows=_gpt_fast_rows),
    Peer(name="transformers-encoder", cases=frozenset({"G6"}), rows=_encoder_rows),
    # Last, as it takes longest.
    Peer(name="transformers-paged", cases=frozenset({"G2", "G8"}), rows=partial(decoding_rows, _paged)),
)


def find_peer(name: str) -> Peer:
    """The peer of a name. Raises ValueError."""
    for peer in PEERS:
        if peer.name == name:
            return peer
    raise ValueError(f"{name!r} is no peer; there are {', '.join(peer.name for peer in PEERS)}")
