"""Renders a checkpoint's Jinja chat template, which is somebody's program, within limits.

Knows Jinja. Does not know tokens or images. The template runs in Jinja's immutable sandbox: it sees the chat and
a few names, and can change or call nothing else. Every turn of a loop, every macro and every number of a range
costs a step, and steps and output are bounded, so a template cannot run for ever. It is part of the checkpoint
that an operator chose: one that sets out to fill memory by doubling a text is not kept from it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import loopcontrols
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

_MAX_SOURCE_CHARS = 2**20
_MAX_STEPS = 100_000
_MAX_OUTPUT_FACTOR = 8
_MAX_OUTPUT_BASE = 2**20
_MAX_INDENT = 16
_TAKE_STEP = "_take_step"
# They make much text from little, or differ from call to call; no chat needs them.
_REFUSED_FILTERS = frozenset({"batch", "center", "format", "indent", "pprint", "random", "slice", "urlize", "wordwrap"})
_REFUSED_METHODS = frozenset({"center", "expandtabs", "format", "format_map", "ljust", "rjust", "zfill"})

Message = Mapping[str, Any]
"""A message as templates know it: `role`, and `content` that is text or a list of parts."""


class TemplateRenderer:
    """One chat template. Safe to use from several threads."""

    def __init__(self, source: str, names: Mapping[str, str]) -> None:
        """Compile a template; `names` are the variables that it sees, such as bos_token. Raises ValueError."""
        if len(source) > _MAX_SOURCE_CHARS:
            raise ValueError(f"the chat template has {len(source)} characters; at most {_MAX_SOURCE_CHARS} are read")
        environment = _Environment()
        try:
            tree = _counting_steps(environment.parse(source))
            self._template = Template.from_code(environment, environment.compile(tree), dict(environment.globals))
        except (TemplateError, RecursionError) as error:
            raise ValueError("the chat template is not a Jinja template") from error
        self._names = dict(names)

    def render(self, messages: Sequence[Message], *, num_characters: int) -> str:
        """Render a chat of about so many characters. Raises ValueError if the template does, or over a limit."""
        steps = _Steps(_MAX_STEPS)
        variables = {
            **self._names,
            "messages": list(messages),
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
            "range": steps.range,
            _TAKE_STEP: steps.take,
        }
        try:
            return _join(
                self._template.generate(variables), limit=_MAX_OUTPUT_FACTOR * num_characters + _MAX_OUTPUT_BASE
            )
        except Exception as error:  # A template raises what it likes, on purpose or not.
            raise ValueError("the chat template refused the chat") from error


class _Environment(ImmutableSandboxedEnvironment):
    """As transformers has it, without what makes much of little."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        self.globals = {
            "dict": dict,
            "namespace": Namespace,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }
        self.filters = {name: call for name, call in self.filters.items() if name not in _REFUSED_FILTERS}
        # Jinja's own escapes HTML.
        self.filters["tojson"] = _tojson

    def wrap_str_format(self, value: object) -> None:
        """None, so that a text's `format` is an attribute like others, and refused."""

    def is_safe_attribute(self, obj: object, attr: str, value: object) -> bool:
        return super().is_safe_attribute(obj, attr, value) and not (isinstance(obj, str) and attr in _REFUSED_METHODS)

    def call_binop(self, context: Context, operator: str, left: object, right: object) -> object:
        if operator == "**" or not isinstance(left, int | float) or not isinstance(right, int | float):
            raise TemplateError("only numbers may be multiplied")
        return super().call_binop(context, operator, left, right)


class _Steps:
    """What one rendering may still do."""

    def __init__(self, limit: int) -> None:
        self._left = limit

    def take(self, number: int = 1) -> None:
        self._left -= number
        if self._left < 0:
            raise TemplateError("the template takes too many steps")

    def range(self, *bounds: int) -> range:
        numbers = range(*bounds)
        self.take(len(numbers))
        return numbers


def _counting_steps(tree: nodes.Template) -> nodes.Template:
    for block in list(tree.find_all(nodes.Stmt)):
        if isinstance(block, nodes.For | nodes.Macro | nodes.CallBlock):
            call = nodes.Call(nodes.Name(_TAKE_STEP, "load"), [], [], None, None)
            step = nodes.ExprStmt(call, lineno=block.lineno, environment=block.environment)
            block.body.insert(0, step)
    return tree


def _join(pieces: Iterator[str], *, limit: int) -> str:
    text: list[str] = []
    for piece in pieces:
        limit -= len(piece)
        if limit < 0:
            raise ValueError("the template writes too much")
        text.append(piece)
    return "".join(text)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)


def _tojson(value: object, ensure_ascii: bool = False, indent: int | None = None, sort_keys: bool = False) -> str:
    if indent is not None and indent > _MAX_INDENT:
        raise TemplateError("the indent is too wide")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys)
