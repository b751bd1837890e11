"""TLS for whoever reads metrics: what opens a URL of https.

Knows files and names in certificates. Does not know what is read.
"""

import socket
import ssl
import urllib.request
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any


class TlsOpener(urllib.request.HTTPSHandler):
    """Opens URLs with certificates that are given, and finds the name in the server's that it is told to."""

    def __init__(self, *, ca: Path | None, cert: Path | None, key: Path | None, server_name: str) -> None:
        """Take authorities to trust (the system's where None), and a certificate of one's own with its key.

        Raises ValueError, in one line, where they cannot be used.
        """
        if (cert is None) != (key is None):
            raise ValueError("a certificate and its key go together")
        try:
            context = ssl.create_default_context(cafile=ca)
            if cert is not None:
                context.load_cert_chain(cert, key)
        except OSError as error:
            raise ValueError(f"the certificates cannot be used: {error}") from None
        super().__init__(context=context)
        self._tls = context
        self._server_name = server_name

    def https_open(self, request: urllib.request.Request) -> HTTPResponse:
        """Connect, and look for the name in the certificate."""

        def connection(host: str, **options: Any) -> HTTPConnection:  # noqa: ANN401 - urllib's own
            return _Connection(host, tls=self._tls, server_name=self._server_name, **options)

        return self.do_open(connection, request)


class _Connection(HTTPSConnection):
    """A connection whose host may have another name in its certificate."""

    def __init__(self, host: str, *, tls: ssl.SSLContext, server_name: str, **options: Any) -> None:  # noqa: ANN401
        super().__init__(host, context=tls, **options)
        self._tls = tls
        self._server_name = server_name or self.host

    def connect(self) -> None:
        """Connect, then shake hands under the name."""
        plain = socket.create_connection((self.host, self.port), self.timeout)
        self.sock = self._tls.wrap_socket(plain, server_hostname=self._server_name)
