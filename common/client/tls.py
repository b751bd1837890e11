"""TLS for those who call: channels whose credentials come from files.

Knows files and channels. Does not know what is called. The certificate of a channel is fixed when it is made;
`ChannelTlsFiles.latest` tells when new channels are due.
"""

from dataclasses import dataclass
from pathlib import Path

import grpc

from common.client.options import Options, server_name_options
from common.security.key_files import KeyFiles, Keys


@dataclass(frozen=True, slots=True)
class ChannelTls:
    """What makes a channel a TLS one."""

    credentials: grpc.ChannelCredentials
    server_name: str = ""
    """The name that must stand in the server's certificate, where it is not the one in the address."""

    @property
    def options(self) -> Options:
        """Options that go with the credentials."""
        return server_name_options(self.server_name)


class ChannelTlsFiles:
    """Credentials that follow their files."""

    def __init__(
        self, *, ca: Path | None = None, cert: Path | None = None, key: Path | None = None, server_name: str = ""
    ) -> None:
        """Read the files: authorities to trust (the system's where None), and one's own certificate and its key.

        Raises ValueError, in one line, where they cannot be used.
        """
        if (cert is None) != (key is None):
            raise ValueError("a certificate and its key go together")
        self.files = KeyFiles(cert=cert, key=key, ca=ca)
        self._server_name = server_name
        self._keys = self.files.latest()
        self._tls = self._make(self._keys)

    def latest(self) -> ChannelTls:
        """The credentials of now; the same object until a file changes."""
        keys = self.files.latest()
        if keys is not self._keys:
            self._keys, self._tls = keys, self._make(keys)
        return self._tls

    def _make(self, keys: Keys) -> ChannelTls:
        return ChannelTls(
            grpc.ssl_channel_credentials(keys.ca or None, keys.key or None, keys.cert or None), self._server_name
        )


def aio_channel(address: str, options: Options, tls: ChannelTls | None) -> grpc.aio.Channel:
    """A channel for an event loop, in plain text without TLS."""
    if tls is None:
        return grpc.aio.insecure_channel(address, options)
    return grpc.aio.secure_channel(address, tls.credentials, (*options, *tls.options))
