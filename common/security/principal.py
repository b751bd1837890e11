"""Who makes the call that is being handled.

Knows a name and what follows from it. Does not know how it was proven, or who may do what (see
`common.security.access`). A handler, and whatever runs in its task, asks `current_principal`; without authentication
everybody is ANONYMOUS.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller by name; two calls with equal names are of the same tenant."""

    name: str
    """Empty where nobody was asked who he is."""

    def cache_salt(self, given: bytes) -> bytes:
        """The salt under which a request's caches are kept, from the one in the request; at most 64 bytes.

        An anonymous caller's own, so that an empty one is shared. A known caller who gives none is alone with
        what it caches. One who gives one shares with whoever knows it; no salt that can be given is equal to
        that of a caller who gives none.
        """
        if not self.name:
            return given
        kind, secret = (b"given", given) if given else (b"name", self.name.encode())
        return hashlib.sha256(b"diptych cache salt\0" + kind + b"\0" + secret).digest()


ANONYMOUS: Final = Principal("")


@dataclass(frozen=True, slots=True)
class _Call:
    principal: Principal
    charge: Callable[[int], None]


_NO_CALL: Final = _Call(ANONYMOUS, lambda _: None)
_call: ContextVar[_Call] = ContextVar("call", default=_NO_CALL)


def current_principal() -> Principal:
    """Who makes the call of this task; ANONYMOUS outside of a call, too."""
    return _call.get().principal


def token_charge() -> Callable[[int], None]:
    """What counts tokens, of the prompt or generated, against what the caller may use in a minute.

    Never refuses: what is used above the limit delays the caller's next call.
    """
    return _call.get().charge


@contextmanager
def acting_for(principal: Principal, charge: Callable[[int], None] = lambda _: None) -> Iterator[None]:
    """Make a principal the current one while inside."""
    token = _call.set(_Call(principal, charge))
    try:
        yield
    finally:
        _call.reset(token)
