"""What follows from who calls: whose request names are whose, and who shares the engine fairly with whom.

Knows principals by name. Does not know how a caller proves to be one (see `common.security.access`). This is the one
place where a tenant is decided.
"""

from common.security.principal import Principal


def tenant_of(principal: Principal, cache_salt: bytes) -> bytes:
    """Who gets a fair share: a known caller is one tenant, whatever salts it uses; else each salt is one."""
    return b"name " + principal.name.encode() if principal.name else b"salt " + cache_salt


def scoped_name(principal: Principal, request_id: str) -> str:
    """The name of a request among those of all callers: two callers may use the same one at the same time."""
    return f"{principal.name}/{request_id}" if principal.name else request_id
