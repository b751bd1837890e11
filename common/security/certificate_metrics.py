"""How long the certificates of a process are still good, told when Prometheus asks.

Knows metric names. Does not know who presents a certificate. What is told is what the next handshake uses: files that
were replaced are read again here too, and where the new ones cannot be used, the old one's date stays.
"""

from collections.abc import Iterator
from contextlib import suppress

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from common.security.certificate_dates import first_to_expire
from common.security.key_files import KeyFiles


class CertificateCollector(Collector):
    """Exports the dates of the certificates that this process shows to others."""

    def __init__(self) -> None:
        self._files: dict[str, KeyFiles] = {}

    def watch(self, name: str, files: KeyFiles) -> None:
        """Tell of a certificate, under a name that is unique in the process."""
        self._files[name] = files

    def collect(self) -> Iterator[Metric]:
        """Read every file that has changed; of a chain the certificate counts that ends first."""
        ends = GaugeMetricFamily(
            "diptych_certificate_not_after_timestamp_seconds",
            "Unix time at which a certificate of this process expires.",
            labels=["certificate"],
        )
        begins = GaugeMetricFamily(
            "diptych_certificate_not_before_timestamp_seconds",
            "Unix time from which the same certificate is valid.",
            labels=["certificate"],
        )
        for name, files in self._files.items():
            dates = None
            with suppress(ValueError):
                dates = first_to_expire(files.latest().cert)
            if dates is not None:
                ends.add_metric([name], dates.not_after)
                begins.add_metric([name], dates.not_before)
        yield ends
        yield begins
