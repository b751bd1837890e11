"""Vision replicas come and go under load, by every signal, and no caller notices."""

import re
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from benchmarks.free_port import free_port
from benchmarks.steady_callers import SteadyCallers
from common.client.client import DiptychClient
from common.client.messages import user_message
from common.client.types import ClientError
from tests import pictures
from tests.end_to_end.services import Service, assert_idle, decoder_service, vision_service


def test_callers_never_notice_that_vision_replicas_come_and_go() -> None:
    ports = [free_port() for _ in range(3)]
    addresses = ",".join(f"127.0.0.1:{port}" for port in ports)
    with ExitStack() as running:
        first = running.enter_context(vision_service(port=ports[0]))
        decoder = running.enter_context(decoder_service(vision=addresses))
        client = running.enter_context(DiptychClient(decoder.address))
        decoder.wait_serving()
        load = SteadyCallers(client, count=3)
        with load.running():
            _until(lambda: load.num_done > 5)
            second, third = (running.enter_context(vision_service(port=port)) for port in ports[1:])
            _until(lambda: _encoded(second) > 0 and _encoded(third) > 0)
            second.kill()
            _more(load)
            third.process.send_signal(signal.SIGSTOP)
            _more(load, seconds=6.5)
            third.process.send_signal(signal.SIGCONT)
            before = _encoded(third)
            _until(lambda: _encoded(third) > before)
            assert third.stop() == 0
            _more(load)
        assert load.errors == []
        assert _statuses(decoder) == {"OK"}
        assert_idle(decoder, first)


def test_two_hundred_pictures_at_once_are_answered_or_refused() -> None:
    """One replica that may hold few patches: nobody waits for an answer that never comes."""
    with (
        vision_service("--max-pending-patches", "400") as vision,
        decoder_service("--max-num-requests", "16", vision=vision.address) as decoder,
    ):
        decoder.wait_serving()
        files = [pictures.save(pictures.noise(64, 64, seed=seed)) for seed in range(200)]
        with ExitStack() as clients, ThreadPoolExecutor(max_workers=200) as threads:
            # A connection of its own for every few callers, as 200 callers would have.
            own = [clients.enter_context(DiptychClient(decoder.address)) for _ in range(8)]
            outcomes = list(threads.map(lambda each: _outcome(own[each[0] % 8], each[1]), enumerate(files)))
        assert set(outcomes) <= {"answer", "ENCODER_QUEUE_FULL", "DECODE_QUEUE_FULL"}
        assert outcomes.count("answer") > 10
        assert_idle(decoder, vision)


def _outcome(client: DiptychClient, picture: bytes) -> str:
    try:
        client.complete([user_message("?", [picture])], timeout=60, max_tokens=1, ignore_eos=True)
    except ClientError as error:
        return error.reason if error.retry_after is not None else f"{error} does not say when to come back"
    return "answer"


def _encoded(replica: Service) -> float:
    return replica.metric("diptych_vision_images_encoded_total")


def _more(load: SteadyCallers, *, seconds: float = 1.0) -> None:
    """Wait, and see that answers go on."""
    before = load.num_done
    time.sleep(seconds)
    _until(lambda: load.num_done > before + 2)


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def _statuses(decoder: Service) -> set[str]:
    """The statuses that calls ended with; some are exported before there is one, as zeros."""
    pattern = r'grpc_server_handled_total\{grpc_code="(\w+)",grpc_method="Generate".*\} (\S+)'
    counted = re.findall(pattern, decoder.metrics())
    return {code for code, count in counted if float(count) > 0}
