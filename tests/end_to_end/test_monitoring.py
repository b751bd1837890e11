"""A real Prometheus scrapes the running pair: what it finds is what the table says, and every panel shows something."""

import json
import re
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from benchmarks.free_port import free_port
from common.checkpoint.checkpoint import open_checkpoint
from common.client.client import DiptychClient
from common.client.messages import user_message
from common.client.types import ClientError
from tests import monitoring, pictures
from tests.adapter_files import write_adapter
from tests.end_to_end.services import DEMO_MODEL, Service, decoder_service, stop_in_time

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TYPES = {"unknown": "untyped"}


@pytest.fixture(scope="module")
def busy(vision: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Service]]:
    """A pair after some of everything: pictures, text, refusals, a broken picture, a cached one, an adapter."""
    adapter = tmp_path_factory.mktemp("adapter")
    write_adapter(adapter, open_checkpoint(DEMO_MODEL).text_config, has_vision=True)
    with decoder_service("--num-blocks", "256", "--lora", f"cats={adapter}", vision=vision.address) as decoder:
        decoder.wait_serving()
        with DiptychClient(decoder.address) as client:
            _keep_busy(client)
        yield decoder, vision


def _keep_busy(client: DiptychClient) -> None:
    question = user_message("How many shapes are there?", [pictures.save(pictures.noise(160, 160, seed=77))])
    for _ in range(2):
        client.complete([question], timeout=30, max_tokens=8)
    client.complete([question], timeout=30, max_tokens=8, cache_salt=b"another")
    client.complete([question], timeout=30, max_tokens=8, lora="cats")
    for wrong in (user_message("x", [b"no picture"]), user_message("x" * 300_000)):
        with pytest.raises(ClientError):
            client.complete([wrong], timeout=30)
    # Its header is right, so that only the vision service finds that the rest is missing.
    cut = pictures.save(pictures.noise(160, 160, seed=78))[:2000]
    with pytest.raises(ClientError):
        client.complete([user_message("x", [cut])], timeout=30)


def families(service: Service) -> dict[str, tuple[str, set[str]]]:
    """Type and labels of everything that a service exports, by the name in the table."""
    found = {}
    for family in parse_plain(service.metrics()):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = set().union(*(sample.labels for sample in family.samples)) - {"le"}
        found[name] = (TYPES.get(family.type, family.type), labels)
    return found


def test_the_pair_exports_what_the_table_says_and_nothing_else(busy: tuple[Service, Service]) -> None:
    exported: dict[str, tuple[str, set[str]]] = {}
    for service in busy:
        for name, (type_, labels) in families(service).items():
            assert exported.setdefault(name, (type_, labels))[0] == type_
            exported[name][1].update(labels)
    table = monitoring.table()
    assert exported.keys() == table.keys()
    for name, (type_, labels) in exported.items():
        row = table[name]
        assert type_ == row.type, name
        # What has not happened yet has no labels to show.
        assert labels in (set(), set(row.labels)), name


def test_numbers_of_labels_are_bounded(busy: tuple[Service, Service]) -> None:
    for service in busy:
        for family in parse_plain(service.metrics()):
            series = {frozenset(s.labels.items()) - {("le", s.labels.get("le", ""))} for s in family.samples}
            assert len(series) <= 65, family.name


def test_exemplars_lead_from_a_latency_to_its_trace(busy: tuple[Service, Service]) -> None:
    decoder, vision = busy
    import grpc

    from common.client.messages import generate_request
    from diptych.v1.generation_pb2_grpc import GenerationServiceStub

    request = generate_request([user_message("Hello?", [pictures.save(pictures.noise(64, 64, seed=79))])], {})
    request.sampling.max_tokens = 4
    with grpc.insecure_channel(decoder.address) as channel:
        metadata = (("traceparent", f"00-{TRACE_ID}-b7ad6b7169203331-01"),)
        list(GenerationServiceStub(channel).Generate(request, metadata=metadata, timeout=30))
    wanted = (
        (decoder, "diptych_time_to_first_token_seconds"),
        (vision, "diptych_vision_request_e2e_latency_seconds"),
    )
    for service, name in wanted:
        text = service.metrics("application/openmetrics-text; version=1.0.0")
        exemplars = [
            sample.exemplar.labels
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if family.name == name and sample.exemplar
        ]
        assert {"trace_id": TRACE_ID} in exemplars


def test_promtool_finds_no_fault_in_what_is_exported(busy: tuple[Service, Service]) -> None:
    for service in busy:
        done = subprocess.run(  # noqa: S603
            [monitoring.prometheus_folder() / "promtool", "check", "metrics"],
            input=service.metrics(), capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        complaints = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        # Names that others have chosen, which dashboards expect.
        ours = [line for line in complaints if line.startswith("diptych_")]
        assert not ours


class Prometheus:
    """A Prometheus that scrapes the pair twice a second."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1/"

    def get(self, path: str, **parameters: str) -> Any:  # noqa: ANN401
        url = f"{self._url}{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[Any]:
        found: list[Any] = self.get("query", query=expression)["result"]
        return found


@pytest.fixture(scope="module")
def prometheus(busy: tuple[Service, Service], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder, port = tmp_path_factory.mktemp("prometheus"), free_port()
    jobs = [
        {"job_name": f"diptych-{name}", "static_configs": [{"targets": [f"127.0.0.1:{service.metrics_port}"]}]}
        for name, service in zip(("decoder", "vision"), busy, strict=True)
    ]
    config = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "1s"},
        "rule_files": [str(monitoring.ALERTS)],
        "scrape_configs": jobs,
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    command = [
        str(monitoring.prometheus_folder() / "prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    ]
    process = subprocess.Popen(command)  # noqa: S603
    found = Prometheus(port)
    try:
        end = time.monotonic() + 30
        while not _has_scraped(found):
            assert time.monotonic() < end, "Prometheus has not scraped the pair"
            time.sleep(0.2)
        yield found
    finally:
        stop_in_time(process)


def _has_scraped(prometheus: Prometheus) -> bool:
    """Whether each target was scraped four times: rates need two scrapes, and a margin."""
    try:
        counts = prometheus.query("count_over_time(up[1m]) >= 4 and up == 1")
    except OSError:
        return False
    return len(counts) == 2


def test_every_panel_shows_something_of_the_live_pair(prometheus: Prometheus) -> None:
    empty = []
    for title, query in monitoring.panels():
        filled = query.replace("$__rate_interval", "1m").replace("$instance", ".*")
        if not prometheus.query(filled):
            empty.append((title, query))
    assert not empty


def test_a_query_of_what_nobody_exports_shows_nothing(prometheus: Prometheus) -> None:
    """The negative control."""
    assert prometheus.query("diptych_nothing") == []


def test_every_alert_is_evaluated_and_none_is_raised_by_a_pair_that_is_well(prometheus: Prometheus) -> None:
    end = time.monotonic() + 20
    while True:
        rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
        if all(rule["health"] != "unknown" for rule in rules):
            break
        assert time.monotonic() < end, "not all rules have been evaluated"
        time.sleep(0.5)
    assert {rule["name"]: rule["health"] for rule in rules} == dict.fromkeys(monitoring.alerts(), "ok")
    raised = {rule["name"] for rule in rules if rule["state"] == "firing"}
    assert not raised


def test_nothing_of_a_prompt_or_a_picture_is_in_the_metrics(busy: tuple[Service, Service]) -> None:
    for service in busy:
        assert not re.search("shapes|Hello", service.metrics())
