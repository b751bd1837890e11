"""Reads the figures of a metrics endpoint.

Knows Prometheus's text format and HTTP. Does not know what a figure means.
"""

import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from http.client import BadStatusLine, HTTPException

from prometheus_client.parser import text_string_to_metric_families

from diptych.flags import complaint
from diptych.output import visible
from diptych.scrape_tls import TlsOpener

_MAX_BYTES = 8 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrape:
    """What an endpoint said at one time, or why it said nothing."""

    at: float
    """Seconds of the monotonic clock."""
    samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = field(default_factory=dict)
    problem: str | None = None

    def total(self, name: str, **labels: str) -> float:
        """The sum of the samples of a name that have these labels; 0 where there are none."""
        wanted = labels.items()
        return sum(value for (found, has), value in self.samples.items() if found == name and wanted <= has)

    def quantile(self, name: str, part: float, since: "Scrape") -> float | None:
        """A quantile of a histogram's observations between two scrapes, by its buckets' upper bounds.

        None where nothing was observed, or where it is above all bounds.
        """
        counts: dict[float, float] = {}
        for (found, has), value in self.samples.items():
            if found == f"{name}_bucket":
                bound = float(dict(has)["le"])
                counts[bound] = counts.get(bound, 0.0) + value - since.samples.get((found, has), 0.0)
        total = counts.get(float("inf"), 0.0)
        if total <= 0:
            return None
        bound = min(bound for bound, count in counts.items() if count >= part * total)
        return None if bound == float("inf") else bound


def scrape(address: str, *, timeout: float, tls: TlsOpener | None = None) -> Scrape:
    """Ask `HOST:PORT`, over TLS where it is given, or a URL.

    Never raises for an endpoint that does not answer or answers nonsense.
    """
    url = address if "://" in address else f"{'https' if tls else 'http'}://{address}/metrics"
    at = time.monotonic()
    if not url.startswith(("http://", "https://")):
        return Scrape(at=at, problem="not an address of http")
    try:
        opener = urllib.request.build_opener(*([tls] if tls else []))
        with opener.open(url, timeout=timeout) as page:
            text = page.read(_MAX_BYTES).decode()
        samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
    except (OSError, ValueError, HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        reason = reason if isinstance(reason, Exception) else ValueError(reason)
        if type(reason) is BadStatusLine:  # It has the first bytes of whatever that was.
            reason = ValueError("speaks no HTTP")
        return Scrape(at=at, problem=visible(complaint(reason) or type(reason).__name__))
    return Scrape(at=time.monotonic(), samples=samples)
