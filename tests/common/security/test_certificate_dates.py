"""The dates of certificates are those that openssl reads, and are told to Prometheus as the files change."""

import ssl
import subprocess
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from common.security.certificate_dates import CertificateDates, first_to_expire
from common.security.certificate_metrics import CertificateCollector
from common.security.key_files import KeyFiles
from common.security.tls import TlsSettings
from tests.certificates import Authority, Leaf
from tests.fake_generation import FakeGeneration, running

NOT_AFTER = "diptych_certificate_not_after_timestamp_seconds"
NOT_BEFORE = "diptych_certificate_not_before_timestamp_seconds"


def by_openssl(path: Path) -> CertificateDates:
    command = ["openssl", "x509", "-in", str(path), "-noout", "-startdate", "-enddate"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()  # noqa: S603
    begin, end = (float(ssl.cert_time_to_seconds(line.partition("=")[2])) for line in lines)
    return CertificateDates(not_after=end, not_before=begin)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


# 2050 is where the dates of certificates change their form.
@pytest.mark.parametrize("days", [-1, 1, 90, 30 * 365])
def test_the_dates_are_those_that_openssl_reads(authority: Authority, days: int) -> None:
    leaf = authority.leaf(f"days{days}", names=["DNS:localhost"], days=days)
    assert first_to_expire(leaf.cert.read_bytes()) == by_openssl(leaf.cert)


def test_of_a_chain_the_certificate_counts_that_ends_first(authority: Authority) -> None:
    leaf = authority.leaf("long", days=90)
    for chain in ((leaf.cert, authority.ca), (authority.ca, leaf.cert)):
        assert first_to_expire(b"some words\n".join(path.read_bytes() for path in chain)) == by_openssl(authority.ca)


def test_where_there_is_no_certificate_there_are_no_dates() -> None:
    assert first_to_expire(b"") is None
    assert first_to_expire(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n") is None


def test_what_is_no_certificate_is_an_error_and_nothing_else(authority: Authority) -> None:
    whole = ssl.PEM_cert_to_DER_cert(authority.ca.read_text())
    for size in (0, 1, 2, 4, 20, 60, 100):
        with pytest.raises(ValueError, match=r"malformed|match"):
            first_to_expire(ssl.DER_cert_to_PEM_cert(whole[:size]).encode())
    for place in range(0, 120):
        changed = whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :]
        try:
            first_to_expire(ssl.DER_cert_to_PEM_cert(changed).encode())
        except ValueError:
            continue


def told(registry: CollectorRegistry, name: str) -> tuple[float | None, float | None]:
    end, begin = (registry.get_sample_value(metric, {"certificate": name}) for metric in (NOT_AFTER, NOT_BEFORE))
    return end, begin


def replace(place: Leaf, leaf: Leaf) -> None:
    place.cert.write_bytes(leaf.cert.read_bytes())
    place.key.write_bytes(leaf.key.read_bytes())


async def test_a_server_tells_its_certificates_dates_and_those_of_the_one_that_replaces_it(
    authority: Authority, tmp_path: Path
) -> None:
    used = Leaf(cert=tmp_path / "tls.crt", key=tmp_path / "tls.key")
    first, second = authority.leaf("first", days=1), authority.leaf("second", days=20)
    replace(used, first)
    registry = CollectorRegistry()
    async with running(FakeGeneration(), tls=TlsSettings(tls_cert=used.cert, tls_key=used.key), registry=registry):
        assert told(registry, "server") == by_openssl(first.cert)
        replace(used, second)
        assert told(registry, "server") == by_openssl(second.cert)
        used.key.write_bytes(first.key.read_bytes())
        assert told(registry, "server") == by_openssl(second.cert), "what cannot be used is not told of"


def test_each_certificate_has_its_name_and_without_any_nothing_is_told(authority: Authority) -> None:
    registry, collector = CollectorRegistry(), CertificateCollector()
    registry.register(collector)
    collector.watch("vision_client", KeyFiles(ca=authority.ca))
    assert told(registry, "vision_client") == (None, None)
    leaf = authority.leaf("client")
    collector.watch("vision_client", KeyFiles(cert=leaf.cert, key=leaf.key, ca=authority.ca))
    assert told(registry, "vision_client") == by_openssl(leaf.cert)
    assert told(registry, "server") == (None, None)
