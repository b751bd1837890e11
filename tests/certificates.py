"""Certificates for tests, made by openssl in a folder: an authority, and leaves with names of their own."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Leaf:
    """A certificate and its key."""

    cert: Path
    key: Path


class Authority:
    """Signs certificates; `ca` is its own."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.ca = folder / f"{name}.pem"
        self._key = folder / f"{name}.key"
        _openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"),
            *("-subj", f"/CN={name}", "-addext", "keyUsage=critical,keyCertSign", "-keyout", self._key),
            *("-out", self.ca),
        )

    def leaf(self, file: str, *, names: Sequence[str] = (), common_name: str = "", days: int = 1) -> Leaf:
        """A certificate for names such as DNS:localhost or IP:127.0.0.1; negative days make it expired."""
        cert, key, request = (self._folder / f"{file}.{kind}" for kind in ("pem", "key", "csr"))
        _openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={common_name}"),
            *("-keyout", key, "-out", request),
        )
        extensions = self._folder / f"{file}.ext"
        extensions.write_text(f"subjectAltName={','.join(names)}\n" if names else "basicConstraints=CA:FALSE\n")
        dates = ("-days", str(days))
        _openssl(
            *("x509", "-req", "-in", request, "-CA", self.ca, "-CAkey", self._key, "-out", cert),
            *("-extfile", extensions, *dates),
        )
        return Leaf(cert=cert, key=key)


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)  # noqa: S603, S607
