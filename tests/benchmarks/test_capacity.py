"""The capacity model, held against arithmetic by hand and against a decoder that is simulated step by step."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.capacity.model import Workload, capacity, fleet
from benchmarks.capacity.profile import Curve, Profile, read_profile

PROFILE = Profile(
    name="made up",
    basis="by hand",
    encode=Curve((100.0, 200.0), (0.01, 0.03)),
    prefill=Curve((100.0, 1000.0), (0.1, 1.0)),
    decode_step=Curve((1.0, 10.0), (0.010, 0.019)),
    max_batch=10,
    bytes_per_patch=1000,
    encoder_cost=2.0,
    decoder_cost=4.0,
)
WORKLOAD = Workload(images=2.0, patches=100, text_tokens=80, output_tokens=50)


def test_curves_go_through_their_points_and_on_along_the_outer_lines() -> None:
    assert PROFILE.encode.at(100) == pytest.approx(0.01)
    assert PROFILE.encode.at(150) == pytest.approx(0.02)
    assert PROFILE.encode.at(300) == pytest.approx(0.05)
    assert PROFILE.encode.at(0) == 0.0


@pytest.mark.parametrize(("sizes", "seconds"), [((1.0,), (1.0,)), ((2.0, 1.0), (1.0, 2.0)), ((1.0, 2.0), (1.0,))])
def test_curves_that_say_nothing_are_refused(sizes: tuple[float, ...], seconds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="curve"):
        Curve(sizes, seconds)


def test_one_replica_of_each_kind_by_hand() -> None:
    one = capacity(PROFILE, WORKLOAD)
    seconds = (80 + 2 * 110) / 1000 + 50 * 0.019 / 10
    assert one.batch == 10
    assert one.requests_per_decoder == pytest.approx(1 / seconds)
    assert one.images_per_encoder == pytest.approx(100)
    assert one.decoders_per_encoder == pytest.approx((100 / 2) * seconds)
    assert one.encoder_bytes_per_second == pytest.approx(100 * 100 * 1000)


def test_a_decoder_that_is_simulated_step_by_step_does_what_the_model_says() -> None:
    """Always 10 requests, each begun by its prefill; steps and prefills take turns on one clock."""
    now, done, left = 0.0, 0, [0] * 10
    prefill, step = PROFILE.prefill.at(WORKLOAD.prompt_tokens), PROFILE.decode_step.at(10)
    while done < 2000:
        for place in range(10):
            if left[place] == 0:
                now += prefill
                left[place] = 50
        now += step
        left = [tokens - 1 for tokens in left]
        done += left.count(0)
    one = capacity(PROFILE, WORKLOAD)
    assert done / now == pytest.approx(one.requests_per_decoder, rel=0.01)
    assert now / done * 10 / 50 * 1000 == pytest.approx(one.tpot_ms, rel=0.01)


def test_a_limit_on_the_time_per_token_makes_batches_smaller() -> None:
    free = capacity(PROFILE, WORKLOAD)
    limited = capacity(PROFILE, replace(WORKLOAD, max_tpot_ms=free.tpot_ms * 0.6))
    assert limited.batch < free.batch
    assert limited.tpot_ms <= free.tpot_ms * 0.6 < capacity(PROFILE, WORKLOAD, batch=limited.batch + 1).tpot_ms
    with pytest.raises(ValueError, match="alone"):
        capacity(PROFILE, replace(WORKLOAD, max_tpot_ms=0.001))


def test_caches_and_text_alone_need_no_encoder() -> None:
    for workload in (replace(WORKLOAD, spared_ratio=1.0), replace(WORKLOAD, images=0.0)):
        assert math.isinf(capacity(PROFILE, workload).decoders_per_encoder)
        assert fleet(PROFILE, workload, requests_per_second=100, utilisation=0.5).encoders == 0


def test_a_fleet_holds_its_rate_and_no_replica_is_too_many() -> None:
    found = fleet(PROFILE, WORKLOAD, requests_per_second=1000, utilisation=0.5)
    one = capacity(PROFILE, WORKLOAD)
    for replicas, rate in ((found.decoders, one.requests_per_decoder), (found.encoders, one.images_per_encoder / 2)):
        assert (replicas - 1) * rate * 0.5 < 1000 <= replicas * rate * 0.5
    cost = found.decoders * 4.0 + found.encoders * 2.0
    assert found.cost_per_million_tokens == pytest.approx(cost / 3600 / (1000 * 50) * 1e6)


def test_the_profile_that_comes_along_says_that_it_is_derived(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["capacity", "--rates", "10000"]) == 0
    assert "derived" in capsys.readouterr().out


def test_a_profile_that_lacks_something_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "profile.toml"
    file.write_text('name = "x"\n')
    assert main(["capacity", "--profile", str(file)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(KeyError):
        read_profile(file)
