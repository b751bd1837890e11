"""Measures libraries that keep a completion inside a JSON schema: the one that the decoder uses, and xgrammar.

    python -m benchmarks.structured_output [--library xgrammar] [--vocabulary tekken|demo]

xgrammar brings transformers and triton, so it is not among our dependencies: install it beside them to compare. For
each schema the library must take every document that jsonschema finds valid and refuse the others. Times are of one
thread; a mask is computed before every token of the valid documents.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema

from benchmarks.structure_libraries import LIBRARIES, Matcher, Schema
from decoder_service.prompt.tokenizer_files import load_tokenizer

DEMO = Path(__file__).parents[1] / "models/demo/tekken.json"


def _object(**properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


SCHEMAS: dict[str, tuple[Schema, Sequence[Any]]] = {
    "flat": (
        _object(name={"type": "string"}, age={"type": "integer"}, member={"type": "boolean"}),
        [{"name": "Ada", "age": 36, "member": True}, {"name": "Ada", "age": "36", "member": True}, {"name": "Ada"}],
    ),
    "bounds": (
        _object(score={"type": "integer", "minimum": 0, "maximum": 100}),
        [{"score": 0}, {"score": 100}, {"score": 101}, {"score": -1}, {"score": 5.5}],
    ),
    "number bounds": (
        _object(x={"type": "number", "exclusiveMinimum": 0, "maximum": 1.5}),
        [{"x": 0.25}, {"x": 1.5}, {"x": 1.51}, {"x": 0}],
    ),
    "lengths": (
        _object(code={"type": "string", "minLength": 2, "maxLength": 4}),
        [{"code": "ab"}, {"code": "abcd"}, {"code": "a"}, {"code": "abcde"}],
    ),
    "items": (
        {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3},
        [[1], [1, 2, 3], [], [1, 2, 3, 4], ["1"]],
    ),
    "enum": ({"enum": ["red", "green", 7, None]}, ["red", 7, None, "blue", 8]),
    "const": (_object(kind={"const": "circle"}), [{"kind": "circle"}, {"kind": "square"}]),
    "any of": (
        {"anyOf": [_object(a={"type": "integer"}), _object(b={"type": "string"})]},
        [{"a": 1}, {"b": "x"}, {"a": "x"}, {"c": 1}],
    ),
    "pattern": (
        _object(zip={"type": "string", "pattern": "^[0-9]{5}(-[0-9]{4})?$"}),
        [{"zip": "12345"}, {"zip": "12345-6789"}, {"zip": "1234"}, {"zip": "12345-"}],
    ),
    "recursive": (
        {"$ref": "#/$defs/tree", "$defs": {"tree": {
            "type": "object",
            "properties": {
                "value": {"type": "integer"}, "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}},
            },
            "required": ["value"], "additionalProperties": False,
        }}},
        [{"value": 1}, {"value": 1, "children": [{"value": 2, "children": []}]}, {"value": 1, "children": [2]}],
    ),
    "optional": (
        {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}},
         "additionalProperties": False},
        [{}, {"a": 1}, {"b": "x"}, {"a": 1, "b": "x"}, {"c": 1}],
    ),
    "open object": (
        {"type": "object", "additionalProperties": {"type": "integer"}}, [{}, {"x": 1, "y": 2}, {"x": "1"}],
    ),
    "fifty fields": (
        _object(**{f"field_{i}": {"type": ["string", "number", "boolean"][i % 3]} for i in range(50)}),
        [{f"field_{i}": ["text", 1.5, False][i % 3] for i in range(50)}, {"field_0": "text"}],
    ),
    "picture": (
        {"type": "array", "items": _object(
            shape={"enum": ["circle", "square", "triangle"]}, colour={"type": "string"},
            place=_object(x={"type": "number"}, y={"type": "number"}))},
        [[{"shape": "circle", "colour": "dark red", "place": {"x": 1.25, "y": -3}}] * 4, [{"shape": "hexagon"}]],
    ),
}  # fmt: skip


def main() -> int:
    """Measure and print; returns the number of documents that were judged wrongly."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--library", choices=LIBRARIES, default="llguidance")
    parser.add_argument("--vocabulary", choices=["tekken", "demo"], default="tekken")
    options = parser.parse_args()
    path = DEMO if options.vocabulary == "demo" else Path(str(files("mistral_common") / "data/tekken_240911.json"))
    tokenizer = load_tokenizer(path)
    before = _mebibytes()
    started_at = time.perf_counter()
    library = LIBRARIES[options.library](tokenizer)
    print(f"{options.library}, {tokenizer.vocabulary_size} tokens: ready in {time.perf_counter() - started_at:.2f} s")
    wrong, all_masks, compiles = 0, [], []
    for name, (schema, documents) in SCHEMAS.items():
        started_at = time.perf_counter()
        try:
            compiled = library.compile(schema)
        except (ValueError, RuntimeError) as error:
            print(f"{name:14} refused: {str(error).splitlines()[0]}")
            wrong += 1
            continue
        compiles.append(1e3 * (time.perf_counter() - started_at))
        masks: list[float] = []
        for document in documents:
            token_ids = tokenizer.encode_text(json.dumps(document))
            is_valid = jsonschema.Draft202012Validator(schema).is_valid(document)
            if _accepts(compiled.start(), token_ids, masks) != is_valid:
                print(f"{name:14} wrong about {document}")
                wrong += 1
        all_masks += masks
        print(f"{name:14} compiled in {compiles[-1]:7.2f} ms, {len(masks):4} masks: {_summary(masks)}")
    print(f"compile: median {statistics.median(compiles):.2f} ms, most {max(compiles):.2f} ms")
    print(f"mask: {_summary(all_masks)}; {_mebibytes() - before} MiB more memory at most; {wrong} wrong")
    return wrong


def _accepts(matcher: Matcher, token_ids: Sequence[int], masks: list[float]) -> bool:
    for token_id in token_ids:
        started_at = time.perf_counter()
        matcher.mask()
        masks.append(1e6 * (time.perf_counter() - started_at))
        if not matcher.take(token_id):
            return False
    return matcher.may_end()


def _summary(micros: list[float]) -> str:
    ordered = sorted(micros)
    late = ordered[int(0.99 * len(ordered))]
    return f"median {statistics.median(ordered):.0f} us, p99 {late:.0f}, most {ordered[-1]:.0f}"


def _mebibytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


if __name__ == "__main__":
    sys.exit(main())
