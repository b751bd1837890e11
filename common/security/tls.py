"""TLS for servers: which files, and how gRPC and the metrics port get their newest state.

Knows gRPC's and Python's kinds of credentials. Does not know names or rights (see `common.security.access`).
"""

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from common.security.key_files import KeyFiles, Keys
from common.settings.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSettings:
    """Certificates. Their files are read again when they change, without a restart."""

    tls_cert: Path | None = setting(None, help="certificate chain of this server, PEM; all ports then speak TLS")
    tls_key: Path | None = setting(None, help="its private key, PEM")
    tls_client_ca: Path | None = setting(
        None, help="authorities, PEM; callers must then have a certificate of one of them"
    )
    metrics_client_ca: Path | None = setting(None, help="the same for those who read the metrics")

    def __post_init__(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("--tls-cert and --tls-key go together")
        for flag, ca in (("--tls-client-ca", self.tls_client_ca), ("--metrics-client-ca", self.metrics_client_ca)):
            if ca is not None and self.tls_cert is None:
                raise ValueError(f"{flag} needs --tls-cert and --tls-key")


def server_files(settings: TlsSettings) -> KeyFiles | None:
    """The files of a server; None without TLS. Raises ValueError where they cannot be used."""
    if settings.tls_cert is None:
        return None
    return KeyFiles(cert=settings.tls_cert, key=settings.tls_key, ca=settings.tls_client_ca)


def server_credentials(files: KeyFiles, *, asks_clients: bool) -> grpc.ServerCredentials:
    """Credentials that follow the files; with `asks_clients` callers must have a certificate of their authorities."""
    used = files.latest()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        """Asked at every handshake; None says that nothing has changed."""
        nonlocal used
        keys = files.latest()
        if keys is used:
            return None
        used = keys
        return _configuration(keys)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(used),
        fetch,  # type: ignore[arg-type] # its stubs do not know that None is an answer
        require_client_authentication=asks_clients,
    )


def _configuration(keys: Keys) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(keys.key, keys.cert)], root_certificates=keys.ca or None)


class MetricsTls:
    """Python's kind of credentials for the metrics port, following the files."""

    def __init__(self, settings: TlsSettings) -> None:
        """Read the files. Raises ValueError where they cannot be used; `settings` must have a certificate."""
        self._settings = settings
        self._files = KeyFiles(cert=settings.tls_cert, key=settings.tls_key, ca=settings.metrics_client_ca)
        self._used = self._files.latest()
        self._context = self._make()

    def context(self) -> ssl.SSLContext:
        """What the next connection is to be wrapped with."""
        keys = self._files.latest()
        if keys is not self._used:
            self._context, self._used = self._make(), keys
        return self._context

    def _make(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self._settings.tls_cert is not None:
            context.load_cert_chain(self._settings.tls_cert, self._settings.tls_key, password=lambda: "")
        if self._settings.metrics_client_ca is not None:
            context.load_verify_locations(self._settings.metrics_client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context
