"""Shows a config as a file that would make it, with a remark on where each value comes from.

Knows YAML as text.
"""

import json
from collections.abc import Iterator
from typing import Any, Final

from common.settings.settings import settings_of
from common.settings.sources import Loaded
from common.settings.values import Given, plain

_COLUMN: Final = 48


def to_yaml(loaded: Loaded[Any]) -> str:
    """The text; every setting is in it, and `--config` reads it back as the same config."""
    values = dict(_values(loaded.config))
    lines, section = [], ""
    for each in settings_of(type(loaded.config)):
        if each.section != section:
            section = each.section
            lines.append(f"{section}:")
        # JSON, which YAML includes, so that no text is taken for something else.
        line = f"{'  ' if section else ''}{each.name}: {json.dumps(values[each.name], ensure_ascii=False)}"
        remark = loaded.origins.get(each.name, "default")
        if values[each.name] is None and each.bounds.unset:
            remark += f": {each.bounds.unset}"
        lines.append(f"{line:{_COLUMN}}  # {remark}")
    return "\n".join(lines) + "\n"


def _values(config: Any) -> Iterator[tuple[str, Given]]:  # noqa: ANN401 - any config
    names = {each.name for each in settings_of(type(config)) if not each.section}
    for name in names:
        yield name, plain(getattr(config, name))
    for name in {field for field in config.__dataclass_fields__ if field not in names}:
        part = getattr(config, name)
        if hasattr(part, "__dataclass_fields__"):
            yield from _values(part)
