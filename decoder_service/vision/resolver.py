"""Where the vision replicas are: a fixed list, or the addresses behind a name, asked for again and again.

Knows names and addresses. Does not know channels. gRPC's own resolver would look again only after a connection
is lost, and then at most every 30 seconds. A look-up that fails or finds nothing changes nothing: an outage of
the name service must not become one of ours, and replicas that are gone are found out by themselves.
"""

import asyncio
import logging
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence

Lookup = Callable[[str, int], Awaitable[Iterable[str]]]
"""The addresses (HOST:PORT) behind a name and port. Raises OSError."""

_log = logging.getLogger(__name__)
_SCHEME = "dns:///"
_HOST_AND_PORT = re.compile(r"(?:\[(?P<address>[^\[\]/\s]+)\]|(?P<name>[^\[\]:/\s]+)):(?P<port>[0-9]{1,5})")
_EVERY = 3.0
"""Seconds between two look-ups; a new pod must be in use within ten."""
_LONGEST = 5.0
"""Seconds that a look-up may take."""


async def look_up(host: str, port: int) -> list[str]:
    """Ask the system, which on a cluster asks the name of a headless service for one address per pod."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [f"[{address[0]}]:{port}" if family == socket.AF_INET6 else f"{address[0]}:{port}"
            for family, _, _, _, address in found]  # fmt: skip


class VisionResolver:
    """Resolves targets, each HOST:PORT or dns:///NAME:PORT."""

    def __init__(self, targets: Sequence[str], *, lookup: Lookup = look_up, every: float = _EVERY) -> None:
        """Take the targets. Raises ValueError where one has no host or no port."""
        check_targets(targets)
        self._fixed = [target for target in targets if not target.startswith(_SCHEME)]
        self._names = [_split(target.removeprefix(_SCHEME)) for target in targets if target.startswith(_SCHEME)]
        self._lookup = lookup
        self._every = every
        self._found: dict[tuple[str, int], frozenset[str]] = {}
        self._asking: dict[tuple[str, int], asyncio.Task[Iterable[str]]] = {}

    @property
    def addresses(self) -> list[str]:
        """The addresses that are known, each once."""
        found = {address for addresses in self._found.values() for address in addresses}
        return [*dict.fromkeys(self._fixed), *sorted(found.difference(self._fixed))]

    async def run(self, changed: Callable[[], None]) -> None:
        """Look up the names, for ever, and tell when `addresses` has changed; ends at once without names."""
        try:
            while self._names:
                before = self.addresses
                for host, port in self._names:
                    await self._refresh(host, port)
                if self.addresses != before:
                    changed()
                await asyncio.sleep(self._every)
        finally:
            for asking in self._asking.values():
                asking.cancel()
            await asyncio.gather(*self._asking.values(), return_exceptions=True)

    async def _refresh(self, host: str, port: int) -> None:
        try:
            found = frozenset(await self._ask(host, port))
        except (OSError, TimeoutError, UnicodeError) as error:  # the last for what can be no name
            _log.warning("the name of the vision replicas is not found", extra={"host": host, "error": str(error)})
            return
        if found:
            self._found[host, port] = found

    async def _ask(self, host: str, port: int) -> Iterable[str]:
        """Look a name up; where the last look-up has not ended, wait on for that one. Raises TimeoutError."""
        name = (host, port)
        if name not in self._asking:
            self._asking[name] = asyncio.create_task(_awaited(self._lookup(host, port)), name=f"look up {host}")
        # A thread that asks the system cannot be called back, and a few that hang would be all that there are.
        done, _ = await asyncio.wait({self._asking[name]}, timeout=_LONGEST)
        if not done:
            raise TimeoutError("the name service does not answer")
        return self._asking.pop(name).result()


def check_targets(targets: Iterable[str]) -> None:
    """Raise ValueError where one is neither HOST:PORT nor dns:///NAME:PORT."""
    for target in targets:
        _split(target.removeprefix(_SCHEME))


def name_of_all(targets: Sequence[str]) -> str:
    """The name that all replicas are found by, "" where there are several or addresses instead.

    Pods are connected to by their addresses, but have the name in their certificates.
    """
    names = {_split(target.removeprefix(_SCHEME))[0] if target.startswith(_SCHEME) else "" for target in targets}
    return names.pop() if len(names) == 1 else ""


def _split(target: str) -> tuple[str, int]:
    """Host and port; an IPv6 address stands in brackets, and is returned without."""
    found = _HOST_AND_PORT.fullmatch(target)
    if found is None or not 0 < int(found["port"]) < 65536:
        raise ValueError(f"--vision-addresses: {target!r} is not HOST:PORT or dns:///NAME:PORT")
    return found["address"] or found["name"], int(found["port"])


async def _awaited(found: Awaitable[Iterable[str]]) -> Iterable[str]:
    return await found
