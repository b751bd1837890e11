"""Who may call what: the one gate that every call of a server passes, before its request is read.

Knows tokens, names in certificates and limits. Does not know what a method does. Where callers have to prove who
they are, whatever is not allowed here is refused, with one exception: grpc.health.v1.Health answers everybody who
gets a connection, since probes have no token and it tells nothing but whether we serve.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from common.errors import DiptychError, InvalidArgumentError, PermissionDeniedError, UnauthenticatedError
from common.security.principal import ANONYMOUS, Principal, acting_for
from common.security.quota import Limits, Quota
from common.security.refusal_log import RefusalLog
from common.security.token_file import TokenEntry, TokenFile, find_token
from common.settings.settings import setting

HEALTH: Final = "grpc.health.v1.Health"
_MAX_IDLE_QUOTAS: Final = 10_000

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessSettings:
    """Who may call, and how much."""

    auth_tokens: Path | None = setting(
        None, help="file of the SHA-256 hashes of bearer tokens, one of which every call must then bring"
    )
    allowed_clients: tuple[str, ...] = setting(
        (), help="names (DNS or URI) in client certificates that may call; all of --tls-client-ca's where unset"
    )
    max_open_calls: int | None = setting(None, minimum=1, help="calls that one caller may have at once")
    calls_per_minute: int | None = setting(None, minimum=1, help="calls that one caller may make in a minute")
    tokens_per_minute: int | None = setting(
        None, minimum=1, help="tokens, of prompts and generated, that one caller may use in a minute"
    )

    @property
    def limits(self) -> Limits:
        """Limits of a caller of whom nothing else is said."""
        return Limits(
            max_open_calls=self.max_open_calls,
            calls_per_minute=self.calls_per_minute,
            tokens_per_minute=self.tokens_per_minute,
        )


class CallInfo(Protocol):
    """What the gate needs of gRPC's context."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """What the handshake found out."""

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]] | None:
        """What the caller sent along."""


class Gate:
    """Finds out who calls, and whether the call is allowed."""

    def __init__(
        self,
        settings: AccessSettings,
        *,
        verifies_clients: bool,
        max_metadata_bytes: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        today: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`verifies_clients` says whether callers have certificates. Raises ValueError for a wrong file.

        Headers of a call may have `max_metadata_bytes`; None for any number.
        """
        self._allowed = frozenset(settings.allowed_clients)
        self._limits = settings.limits
        self._verifies_clients = verifies_clients
        self._max_metadata_bytes = max_metadata_bytes
        self._clock = clock
        self._today = today
        self._tokens = None if settings.auth_tokens is None else TokenFile(settings.auth_tokens, self._limits)
        self._quotas: dict[str, Quota] = {}
        self._refusals = RefusalLog(clock=clock)

    @contextmanager
    def admit(self, path: str, call: CallInfo) -> Iterator[None]:
        """Let a call of /SERVICE/METHOD in, as `current_principal`, or log and raise the error that it ends with."""
        _, service, method = path.split("/")
        name = ANONYMOUS.name
        with ExitStack() as inside:
            try:
                self._check_size(call)
                if service != HEALTH and (self._tokens is not None or self._verifies_clients):
                    name, limits = self._client_name(call), self._limits
                    if self._tokens is not None:
                        entry = self._entry(self._tokens, call)
                        name, limits = entry.name, entry.limits
                        self._check_entry(entry, method)
                    quota = self._quota(name, limits)
                    inside.enter_context(quota.call(now=self._clock()))
                    charge = partial(self._charge, quota)
                    inside.enter_context(acting_for(Principal(name), charge))
            except DiptychError as error:
                self._refusals.refused(path, error, caller=name)
                raise
            yield

    def _charge(self, quota: Quota, count: int) -> None:
        quota.use_tokens(count, now=self._clock())

    def _check_size(self, call: CallInfo) -> None:
        """Refuse headers that are too large: gRPC's own limit does not add up those of several HTTP/2 frames."""
        size = sum(len(key) + len(value) for key, value in call.invocation_metadata() or ())
        if self._max_metadata_bytes is not None and size > self._max_metadata_bytes:
            raise InvalidArgumentError(
                "METADATA_TOO_LARGE",
                f"the call's headers have {size} bytes; at most {self._max_metadata_bytes} are accepted",
                metadata={"limit": self._max_metadata_bytes, "got": size},
            )

    def _client_name(self, call: CallInfo) -> str:
        """The name in the caller's certificate that counts; "" where certificates are not asked for."""
        if not self._verifies_clients:
            return ANONYMOUS.name
        names = _certificate_names(call.auth_context())
        allowed = [name for name in names if name in self._allowed] if self._allowed else names
        if not allowed:
            raise PermissionDeniedError("CALLER_NOT_ALLOWED", "the certificate's names are not among those allowed")
        return allowed[0]

    def _entry(self, tokens: TokenFile, call: CallInfo) -> TokenEntry:
        entry = find_token(tokens.entries(self._clock()), _bearer_token(call))
        if entry is None:
            raise UnauthenticatedError("TOKEN_INVALID", "the token is not known here")
        return entry

    def _check_entry(self, entry: TokenEntry, method: str) -> None:
        if entry.expires is not None and self._today() >= entry.expires:
            raise UnauthenticatedError("TOKEN_EXPIRED", "the token has expired")
        if entry.methods is not None and method not in entry.methods:
            raise PermissionDeniedError("METHOD_NOT_ALLOWED", "the token does not open this method")

    def _quota(self, name: str, limits: Limits) -> Quota:
        now = self._clock()
        if len(self._quotas) > _MAX_IDLE_QUOTAS:
            self._quotas = {name: quota for name, quota in self._quotas.items() if not quota.is_idle(now=now)}
        quota = self._quotas.get(name)
        if quota is None or quota.limits != limits:
            quota = self._quotas[name] = Quota(limits, now=now)
        return quota


def _certificate_names(context: Mapping[str, Iterable[bytes]]) -> list[str]:
    """URIs, then DNS names; the common name, which nobody else vouches for, only where there are neither."""
    for keys in (("peer_uri", "peer_dns"), ("x509_common_name",)):
        names = [name.decode(errors="replace") for key in keys for name in context.get(key, ()) if name]
        if names:
            return names
    return []


def _bearer_token(call: CallInfo) -> str:
    values = [value for key, value in call.invocation_metadata() or () if key == "authorization"]
    if len(values) != 1 or not isinstance(values[0], str):
        raise UnauthenticatedError("TOKEN_MISSING", "the call must bring one `authorization: Bearer TOKEN`")
    scheme, _, token = values[0].partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise UnauthenticatedError("TOKEN_MISSING", "the call must bring one `authorization: Bearer TOKEN`")
    return token.strip()
