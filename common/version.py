"""Versions that the services tell each other.

The number before the dot of the API's version changes when an old peer would misread a message.
"""

from importlib.metadata import PackageNotFoundError, version

API_VERSION = "1.0"
"""Of package diptych.v1, as "1.<minor>"."""


def server_version() -> str:
    """Version of the installed distribution, or "unknown" where the sources run without an installation."""
    try:
        return version("diptych")
    except PackageNotFoundError:
        return "unknown"
