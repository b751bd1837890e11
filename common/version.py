"""Versions that the services tell each other.

The number before the dot of a version changes when an old peer would misread a message.
"""

from importlib.metadata import PackageNotFoundError, version

API_VERSION = "1.0"
"""Of the generation service, as "1.<minor>"."""
VISION_API_VERSION = "2.0"
"""Of the vision service, as "2.<minor>": since 2.0 a stream's header and end come with chunks."""


def server_version() -> str:
    """Version of the installed distribution, or "unknown" where the sources run without an installation."""
    try:
        return version("diptych")
    except PackageNotFoundError:
        return "unknown"
