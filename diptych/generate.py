"""`diptych generate`: one question, the answer as it comes.

Knows the command's flags and how an answer is shown. Does not judge values: the server does.
"""

import dataclasses
import json
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from common.client.messages import GenerateOptions, Prompt, chat, raw_text, user_message
from common.client.types import Completion, CompletionBuilder
from diptych import connection
from diptych.flags import complaint, count, read_text, seconds, seed
from diptych.output import visible, whole_lines

_OPTIONS = (
    "lora",
    "max_tokens",
    "temperature",
    "top_p",
    "seed",
    "n",
    "ignore_eos",
    "stop",
    "regex",
    "choice",
    "json_object",
)
_FILES = ("json_schema", "grammar")
"""Options that a flag names a file of."""


def add_arguments(parser: ArgumentParser) -> None:
    """Add the flags of `diptych generate`."""
    parser.add_argument("question", nargs="?", help="what to ask; comes after the pictures")
    parser.add_argument("--image", action="append", type=Path, metavar="FILE", help="a picture; may be repeated")
    parser.add_argument("--messages", type=Path, metavar="FILE", help="a chat as a JSON list instead of a question")
    parser.add_argument("--raw", metavar="TEXT", help="a prompt without the chat template instead of a question")
    parser.add_argument("--lora", metavar="NAME", help="a LoRA adapter that the service has, see `diptych info`")
    parser.add_argument("--max-tokens", type=count, metavar="N", help="most tokens to generate")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 takes the most likely token")
    parser.add_argument("--top-p", type=float, metavar="P", help="probability that the kept tokens reach")
    parser.add_argument("--seed", type=seed, metavar="S", help="makes sampling repeatable")
    parser.add_argument("--n", type=count, metavar="N", help="completions of the one prompt, shown one after another")
    parser.add_argument("--ignore-eos", action="store_true", default=None, help="go on past the end token")
    parser.add_argument("--stop", action="append", metavar="TEXT", help="a text that ends it; may be repeated")
    parser.add_argument("--json-schema", type=Path, metavar="FILE", help="keep the answer to this JSON schema")
    parser.add_argument("--json-object", action="store_true", default=None, help="keep the answer to some JSON object")
    parser.add_argument("--regex", metavar="R", help="keep the answer to a regular expression")
    parser.add_argument(
        "--choice", action="append", metavar="TEXT", help="one of the answers; repeat it for the others"
    )
    parser.add_argument("--grammar", type=Path, metavar="FILE", help="keep the answer to a Lark grammar")
    parser.add_argument("--timeout", type=seconds, metavar="SECONDS", help="longest time for the whole answer")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object at the end, or a list of them with --n"
    )
    connection.add_arguments(parser)


def run(options: Namespace) -> int:
    """Ask and print; returns the exit status. Raises ClientError where the server refuses."""
    try:
        prompt = _prompt(options)
        given: dict[str, Any] = {name: getattr(options, name) for name in _OPTIONS}
        files: dict[str, Path | None] = {name: getattr(options, name) for name in _FILES}
        given |= {name: read_text(path) for name, path in files.items() if path is not None}
        sampling: GenerateOptions = {name: value for name, value in given.items() if value is not None}  # type: ignore[assignment]
        is_shown = not options.json and options.n in (None, 1)
        with connection.connect(options) as client, whole_lines() as show:
            builder = CompletionBuilder()
            for response in client.generate(prompt, timeout=options.timeout, **sampling):
                builder.add(response)
                if is_shown:
                    show(response.delta.text)
            completions = builder.build_all()
    except ValueError as error:
        sys.stderr.write(f"diptych generate: {complaint(error)}\n")
        return 2
    if options.json:
        shown = [to_json(completion) for completion in completions]
        print(json.dumps(shown[0] if options.n in (None, 1) else shown))
    elif options.n in (None, 1):
        print()
    else:
        for index, completion in enumerate(completions):
            print(f"[{index}] {visible(completion.text)}")
    return 0


def to_json(completion: Completion) -> dict[str, Any]:
    """A completion as the command prints it."""
    return {
        "text": completion.text,
        "token_ids": list(completion.token_ids),
        "finish_reason": completion.finish_reason,
        "usage": dataclasses.asdict(completion.usage),
        "timings": dataclasses.asdict(completion.timings),
    }


def _prompt(options: Namespace) -> Prompt:
    """The one prompt that the flags describe. Raises ValueError for a wrong one, or a file that cannot be read."""
    try:
        return _read_prompt(options)
    except OSError as error:
        raise ValueError(complaint(error)) from error


def _read_prompt(options: Namespace) -> Prompt:
    given = [value for value in (options.question, options.messages, options.raw) if value is not None]
    if len(given) > 1 or not (given or options.image):
        raise ValueError("give either a question, --messages or --raw")
    if options.image and (options.messages or options.raw is not None):
        raise ValueError("--image goes with a question only")
    if options.messages:
        try:
            return chat(json.loads(options.messages.read_bytes()))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{options.messages}: {complaint(error)}") from error
    if options.raw is not None:
        return raw_text(options.raw)
    return [user_message(options.question or "", options.image or ())]
