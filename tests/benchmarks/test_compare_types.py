"""The comparison in several types: who runs in which, what it is called, and what tokens that differ are worth."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import checkpoints
from benchmarks.compare.cases import HALF_CASES, SMOKE_CASES, TEXT_CASES, TextCase
from benchmarks.compare.command import wanted
from benchmarks.compare.conditions import Conditions
from benchmarks.compare.picture_cases import SMOKE_PICTURE_CASES
from benchmarks.compare.pictures import run_picture_cases
from benchmarks.compare.results import CaseResult
from benchmarks.compare.text import run_text_cases
from benchmarks.peers.environments import OURS_VISION, TEXT_PEERS, VISION_PEERS, Peer
from tests.benchmarks.scripted import Scripted

_SCRIPT = """
from benchmarks.peers.protocol import serve

def load(dtype, **_):
    return {"version": f"one that runs in {dtype}"}

def generate(prompts, max_tokens):
    return {"tokens": [[-1] * (max_tokens - MISSING) for _ in prompts], "seconds": 1.0}

def encode(sizes, seed):
    return {"check": [-1.0] * len(sizes), "seconds": 1.0}

serve({"load": load, "generate": generate, "encode": encode, "encode_each": encode})
"""


def _script(*, num_missing: int = 0) -> str:
    """Of a peer whose tokens are never ours, and of which some may be missing."""
    return _SCRIPT.replace("MISSING", str(num_missing))


_PEERS = (
    Scripted(name="other", script=_script()),
    Scripted(name="other bfloat16", script=_script(), dtype="bfloat16"),
)


def _run(case: TextCase, folder: Path, our_dtype: str = "float32", peers: Sequence[Peer] = _PEERS) -> CaseResult:
    (found,) = run_text_cases([case], peers, _conditions(folder, our_dtype))
    return found


def _conditions(folder: Path, our_dtype: str = "float32") -> Conditions:
    return Conditions(folder=folder, cores=[0], rounds=1, niceness=0, our_dtype=our_dtype)


def test_a_peer_in_bfloat16_is_told_so_and_its_other_tokens_are_counted_and_fail_nothing(tmp_path: Path) -> None:
    found = _run(replace(SMOKE_CASES[0], dtypes=("float32", "bfloat16")), tmp_path)
    assert [(each.engine, each.version) for each in found.engines[1:]] == [
        ("other", "one that runs in float32"),
        ("other bfloat16", "one that runs in bfloat16"),
    ]
    assert found.engines[2].agreement == "0/2 prompts, 0/8 tokens"
    assert found.engines[2].ratio is not None
    assert not found.not_run


def test_a_peer_that_ends_its_answers_early_has_no_rate(tmp_path: Path) -> None:
    """Steps with fewer requests are faster."""
    early = Scripted(name="early", script=_script(num_missing=1))
    found = _run(SMOKE_CASES[0], tmp_path, peers=[early])
    assert [each.engine for each in found.engines] == ["diptych"]
    assert found.not_run["early"].startswith("6 tokens in place of 8")


def test_a_case_of_one_type_asks_no_peer_of_another(tmp_path: Path) -> None:
    found = _run(SMOKE_CASES[0], tmp_path)
    assert [each.engine for each in found.engines] == ["diptych", "other"]
    assert not found.not_run


def test_only_cases_of_bfloat16_weights_run_peers_in_bfloat16() -> None:
    assert {case.dtypes for case in TEXT_CASES + SMOKE_CASES} == {("float32",)}
    assert {case.dtypes for case in HALF_CASES} == {("float32", "bfloat16")}


def test_rows_in_bfloat16_are_engines_of_their_own_in_picture_cases(tmp_path: Path) -> None:
    rows = {"transformers looped": "answer", "transformers bfloat16": "answer", "vllm bfloat16": "answer"}
    (found,) = run_picture_cases(
        [replace(SMOKE_PICTURE_CASES[0], peer_ops=rows)],
        VISION_PEERS,
        _conditions(tmp_path),
    )
    assert found.not_run == dict.fromkeys(["transformers", "transformers bfloat16", "vllm bfloat16"], "not installed")


def test_an_encoder_has_a_row_for_each_way_that_it_is_asked_and_other_features_are_counted(tmp_path: Path) -> None:
    case = replace(
        SMOKE_PICTURE_CASES[0],
        op="encode",
        arguments={"sizes": [[32, 32], [64, 32]]},
        peer_ops={"vllm packed": "encode", "vllm looped": "encode_each"},
    )
    (found,) = run_picture_cases([case], [Scripted(name="vllm", script=_script())], _conditions(tmp_path))
    assert [(each.engine, each.agreement) for each in found.engines] == [
        ("diptych", ""),
        ("vllm packed", "0/2 pictures"),
        ("vllm looped", "0/2 pictures"),
    ]
    assert found.limit is not None
    assert not found.not_run


def test_we_compute_in_the_type_that_we_are_told_and_peers_in_their_own(tmp_path: Path) -> None:
    ours, other = _run(SMOKE_CASES[0], tmp_path, our_dtype="bfloat16").engines
    assert "bfloat16" in ours.version
    assert "bfloat16" not in _run(SMOKE_CASES[0], tmp_path).engines[0].version
    assert other.version == "one that runs in float32"
    (found,) = run_picture_cases(SMOKE_PICTURE_CASES, [], _conditions(tmp_path, "bfloat16"))
    assert "bfloat16" in found.engines[0].version


def test_features_are_checked_alike_in_any_type(tmp_path: Path) -> None:
    model, found = str(checkpoints.checkpoint("smoke-pixtral")), {}
    with OURS_VISION.start(tmp_path, [0]) as worker:
        for dtype in ("float32", "bfloat16", "auto"):
            worker.ask("load", model=model, max_requests=1, max_tokens=8, dtype=dtype)
            found[dtype] = worker.ask("encode", sizes=[[64, 32], [32, 32]], seed=1)["check"]
    assert found["bfloat16"] == pytest.approx(found["float32"], rel=1e-3)
    assert found["bfloat16"] != found["float32"]
    assert found["auto"] == found["float32"]


def test_a_peer_is_wanted_by_its_whole_name() -> None:
    assert [(peer.name, peer.dtype) for peer in wanted(TEXT_PEERS, ["vllm"])] == [("vllm", "float32")]
    assert [(peer.name, peer.dtype) for peer in wanted(TEXT_PEERS, ["vllm bfloat16"])] == [
        ("vllm bfloat16", "bfloat16")
    ]
    assert wanted(VISION_PEERS, ["none"]) == []
    assert wanted(VISION_PEERS, []) == list(VISION_PEERS)
