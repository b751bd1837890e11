"""Whatever the model holds likely, a completion that ends by itself is in the language that was asked for."""

import asyncio
import ctypes
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from common.errors import InvalidArgumentError, ResourceExhaustedError
from decoder_service.api.servicer import GenerationServicer
from decoder_service.prompt.tokenizer import Tokenizer
from decoder_service.prompt.tokenizer_files import load_tokenizer
from decoder_service.sampling.logits_processors import SamplingRow, process_logits
from decoder_service.sampling.sampler import sample
from decoder_service.sampling.sampling_params import SamplingParams
from decoder_service.structured import compiler as structure_compiler
from decoder_service.structured import probe as structure_probe
from decoder_service.structured.compiler import StructureCompiler
from decoder_service.structured.grammar_matcher import GrammarVocabulary
from decoder_service.structured.structure import Matcher, Structure, StructureKind, within

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["red", "grün", None]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
SCHEMAS: list[dict[str, Any]] = [
    PERSON,
    {"enum": ["one", 2, None, {"a": [1]}]},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 4},
    {"anyOf": [{"type": "integer", "minimum": -5, "maximum": 5}, {"const": "no"}]},
    {"type": "object", "properties": {"x": {"type": "number", "minimum": 0, "maximum": 1}}, "required": ["x"],
     "additionalProperties": False},
    {"type": "string", "pattern": "^[a-c]{2,4}$"},
    {"$ref": "#/$defs/t", "$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}, "maxItems": 2}}},
]  # fmt: skip
REGEXES = [r"[a-z]{3}-[0-9]{2,4}", r"(yes|no|ja)( !)?", r"é+x?", r"[^a-zA-Z]{1,5}"]
GRAMMAR = 'start: sum\nsum: NUMBER ("+" NUMBER){0,3}\nNUMBER: /[1-9][0-9]?/'
CHOICES = ['a"b', "c\\d", "e\nf", "é🙂", "x", "xy", "<[3]>", " lead"]


def structure(kind: str, source: Any) -> Structure:  # noqa: ANN401
    return Structure(StructureKind(kind), source if isinstance(source, str) else json.dumps(source))


@pytest.fixture(scope="module", params=["demo", "tekken"])
def tokenizer(request: pytest.FixtureRequest, tekken: Tokenizer, demo_tekken: Any) -> Tokenizer:  # noqa: ANN401
    return tekken if request.param == "tekken" else load_tokenizer(demo_tekken)


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> GrammarVocabulary:
    # The model has more ids than the tokenizer; those write nothing.
    return GrammarVocabulary(
        tokenizer, vocabulary_size=tokenizer.vocabulary_size + 7, end_token_ids={tokenizer.eos_id, 7}
    )


def complete(
    tokenizer: Tokenizer, matchers: list[Matcher], seed: int, *, temperature: float = 1.0, steps: int = 80
) -> list[bytes | None]:
    """What each matcher's completion writes under random logits, all drawn in one batch; None where it did not end."""
    generator = torch.Generator().manual_seed(seed)
    outputs: list[list[int]] = [[] for _ in matchers]
    ended: set[int] = set()
    ends = {tokenizer.eos_id, 7}
    noise = 4 * torch.randn(2 * (tokenizer.vocabulary_size + 7), generator=generator)
    for _ in range(steps):
        running = [index for index in range(len(matchers)) if index not in ended]
        if not running:
            break
        size = tokenizer.vocabulary_size + 7
        starts = torch.randint(0, size, (len(running),), generator=generator).tolist()
        logits = torch.stack([noise[start : start + size] for start in starts])
        # A completion ends soon once it may, or random text would go on for ever.
        logits[:, sorted(ends)] += 6
        rows = [
            SamplingRow(
                params=SamplingParams(max_tokens=steps, temperature=temperature),
                uniform=float(torch.rand(1, generator=generator)),
                matcher=matchers[index],
                end_token_ids=frozenset(ends),
            )
            for index in running
        ]
        for index, token_id in zip(running, sample(logits, rows), strict=True):
            assert isinstance(token_id, int)
            if token_id in ends:
                ended.add(index)
            else:
                assert matchers[index].take(token_id)
                outputs[index].append(token_id)
    return [b"".join(map(tokenizer.token_bytes, ids)) if index in ended else None for index, ids in enumerate(outputs)]


def check_all(
    tokenizer: Tokenizer, vocabulary: GrammarVocabulary, asked: Structure, holds: Callable[[str], bool]
) -> None:
    first = vocabulary.compile(asked)
    written = [
        text
        for seed, temperature in enumerate((0.0, 1.0))
        for text in complete(tokenizer, [first.fork() for _ in range(5)], seed, temperature=temperature)
        if text is not None
    ]
    assert written, "nothing ended"
    for text in written:
        assert holds(text.decode()), text


def is_valid(schema: Any, text: str) -> bool:  # noqa: ANN401
    jsonschema.Draft202012Validator(schema).validate(json.loads(text))
    return True


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:30])
def test_random_completions_are_valid_under_their_schema(
    tokenizer: Tokenizer, vocabulary: GrammarVocabulary, schema: dict[str, Any]
) -> None:
    check_all(tokenizer, vocabulary, structure("json_schema", schema), lambda text: is_valid(schema, text))


@pytest.mark.parametrize("regex", REGEXES)
def test_random_completions_match_their_expression(
    tokenizer: Tokenizer, vocabulary: GrammarVocabulary, regex: str
) -> None:
    check_all(tokenizer, vocabulary, structure("regex", regex), lambda text: bool(re.fullmatch(regex, text)))


def test_random_completions_are_one_of_the_choices(tokenizer: Tokenizer, vocabulary: GrammarVocabulary) -> None:
    check_all(tokenizer, vocabulary, structure("choice", CHOICES), lambda text: text in CHOICES)


def test_random_completions_follow_their_grammar(tokenizer: Tokenizer, vocabulary: GrammarVocabulary) -> None:
    sums = re.compile(r"[1-9][0-9]?(\+[1-9][0-9]?){0,3}")
    check_all(tokenizer, vocabulary, structure("grammar", GRAMMAR), lambda text: bool(sums.fullmatch(text)))


def test_a_json_object_is_one(tokenizer: Tokenizer, vocabulary: GrammarVocabulary) -> None:
    first = vocabulary.compile(structure("json_object", ""))
    for text in complete(tokenizer, [first.fork() for _ in range(5)], 3, temperature=0):
        if text is not None:
            assert isinstance(json.loads(text), dict)


def test_a_matcher_that_allows_everything_changes_nothing(tokenizer: Tokenizer) -> None:

    class Idle:
        has_failed = False

        def fork(self) -> "Idle":
            return self

        def mask(self, address: int, num_bytes: int) -> None:
            ctypes.memset(address, 255, num_bytes)

        def take(self, token_id: int) -> bool:
            return True

        def forced(self) -> list[int]:
            return []

    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, tokenizer.vocabulary_size + 7, generator=generator)
    row = SamplingRow(params=SamplingParams(max_tokens=9), matcher=Idle())
    assert torch.equal(process_logits(logits, [row] * 3), logits)


def test_forced_tokens_write_what_must_come_and_nothing_else(
    tokenizer: Tokenizer, vocabulary: GrammarVocabulary
) -> None:
    matcher = vocabulary.compile(structure("choice", ["a red circle", "a blue circle"]))
    assert b"".join(map(tokenizer.token_bytes, matcher.forced())) in (b"a", b"a ")
    for part, forced in (("a ", b""), ("b", b"lue circle"), ("lue", b" circle"), (" circle", b"")):
        for token_id in tokenizer.encode_text(part):
            assert matcher.take(token_id)
        told = b"".join(map(tokenizer.token_bytes, matcher.forced()))
        assert forced.startswith(told)
        assert len(told) >= len(forced) - 1 or part == "a "
        assert within(matcher, [*matcher.forced(), tokenizer.eos_id + 1])[: len(matcher.forced())] == (
            *matcher.forced(),
        )


def test_of_tokens_to_try_those_within_the_language_are_kept_and_the_place_stays(
    tokenizer: Tokenizer, vocabulary: GrammarVocabulary
) -> None:
    matcher = vocabulary.compile(structure("regex", "[0-9]+,"))
    digits = tokenizer.encode_text("12")
    assert within(matcher, [*digits, *tokenizer.encode_text("x"), *digits]) == (*digits,)
    assert within(matcher, tokenizer.encode_text("x")) == ()
    assert not matcher.has_failed
    assert all(map(matcher.take, digits))


@pytest.mark.parametrize(
    ("kind", "source", "first"),
    [("regex", r"[^\s\S]", b""), ("grammar", "start: start", b""), ("grammar", 'start: "x" /[^\\s\\S]/', b"x")],
)
def test_a_place_from_which_no_text_goes_on_is_no_failure(
    tokenizer: Tokenizer, vocabulary: GrammarVocabulary, kind: str, source: str, first: bytes
) -> None:
    """Nothing may come there, and that it takes too much work would not be true."""
    matcher = vocabulary.compile(structure(kind, source))
    mask = (ctypes.c_uint8 * (4 * ((tokenizer.vocabulary_size + 7 + 31) // 32)))()
    for token_id in tokenizer.encode_text(first.decode()) if first else ():
        assert matcher.take(token_id)
    matcher.mask(ctypes.addressof(mask), len(mask))
    assert not any(mask)
    assert not matcher.has_failed


def test_masks_of_a_batch_are_those_of_its_rows_and_leave_others_alone(
    tokenizer: Tokenizer, vocabulary: GrammarVocabulary
) -> None:
    matchers = [vocabulary.compile(structure("regex", regex)) for regex in REGEXES]
    plain = SamplingRow(params=SamplingParams(max_tokens=9))
    rows = [plain, *(SamplingRow(params=plain.params, matcher=matcher) for matcher in matchers), plain]
    logits = torch.randn(len(rows), tokenizer.vocabulary_size + 7)
    together = process_logits(logits, rows)
    assert torch.equal(together[[0, -1]], logits[[0, -1]])
    for index, row in enumerate(rows):
        assert torch.equal(together[index], process_logits(logits[index : index + 1], [row])[0])
    for matcher, row in zip(matchers, together[1:-1], strict=True):
        # Bit by bit: a token stays exactly where the matcher would take it.
        kept = set(row.isfinite().nonzero().flatten().tolist())
        for token_id in [*range(0, tokenizer.vocabulary_size, 997), *sorted(kept)[:20]]:
            assert matcher.fork().take(token_id) == (token_id in kept)


class Compilers:
    """A compiler over the demo's vocabulary, closed after the test."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def make(self, **options: Any) -> StructureCompiler:  # noqa: ANN401
        tokenizer = self._tokenizer
        return StructureCompiler(
            lambda: GrammarVocabulary(
                tokenizer, vocabulary_size=tokenizer.vocabulary_size, end_token_ids={tokenizer.eos_id}
            ),
            **options,
        )


@pytest.fixture
async def compiler(demo_tekken: Any) -> AsyncIterator[StructureCompiler]:  # noqa: ANN401
    compiler = Compilers(load_tokenizer(demo_tekken)).make(max_kept=2)
    yield compiler
    await compiler.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("json_schema", "{"),
        ("json_schema", "[" * 5000),
        ("json_schema", {"type": "strin"}),
        ("json_schema", {"type": "object", "unevaluatedProperties": False}),
        ("regex", "(a"),
        ("regex", "(?=a)b"),
        ("regex", "(" * 9000 + ")" * 9000),
        ("grammar", "start: nothing"),
        ("grammar", "no grammar at all"),
    ],
)
async def test_what_does_not_compile_is_refused_with_reason_and_field(
    compiler: StructureCompiler,
    kind: str,
    source: Any,  # noqa: ANN401
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await compiler.matcher(structure(kind, source))
    assert (caught.value.reason, caught.value.field) == ("STRUCTURE_INVALID", f"structured.{kind}")
    assert 30 < len(caught.value.message) < 400


async def test_a_schema_of_one_word_allows_everything_or_nothing(
    compiler: StructureCompiler,
    demo_tekken: Any,  # noqa: ANN401
) -> None:
    matcher = await compiler.matcher(structure("json_schema", " true\n"))
    assert all(map(matcher.take, load_tokenizer(demo_tekken).encode_text('[1, "a"]')))
    with pytest.raises(InvalidArgumentError, match="allows nothing") as caught:
        await compiler.matcher(structure("json_schema", "false"))
    assert (caught.value.reason, caught.value.field) == ("STRUCTURE_INVALID", "structured.json_schema")


async def test_a_refusal_quotes_nothing_that_the_caller_did_not_write(compiler: StructureCompiler) -> None:
    with pytest.raises(InvalidArgumentError, match="look-ahead") as caught:
        await compiler.matcher(structure("regex", "(?=a)b"))
    assert "start:" not in caught.value.message
    assert "1(" not in caught.value.message
    with pytest.raises(InvalidArgumentError, match="start: nothing"):  # What the caller did write is quoted.
        await compiler.matcher(structure("grammar", "start: nothing"))


async def test_what_takes_for_ever_is_stopped(demo_tekken: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401
    """Sixteen patterns at once keep the library busy for minutes, whatever its own limits; its work is what counts."""
    monkeypatch.setattr(structure_probe, "_WALL_SECONDS", 3600)
    compiler = Compilers(load_tokenizer(demo_tekken)).make(seconds=1.0)
    endless = {"allOf": [{"type": "string", "pattern": f".*a{index}.*"} for index in range(24)]}
    with pytest.raises(InvalidArgumentError) as caught:
        await compiler.matcher(structure("json_schema", endless))
    assert caught.value.reason == "STRUCTURE_TOO_COMPLEX"
    await compiler.matcher(structure("regex", "a"))
    await compiler.close()


async def test_a_machine_that_is_too_busy_blames_no_schema(
    compiler: StructureCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as busy:
        busy.setattr(structure_probe, "_WALL_SECONDS", 0)
        with pytest.raises(ResourceExhaustedError, match="too busy"):
            await compiler.matcher(structure("regex", "a"))
    assert await compiler.matcher(structure("regex", "a")), "and nothing of it is kept"


async def test_equal_languages_are_compiled_once_and_few_are_kept(compiler: StructureCompiler) -> None:
    first, second, third = (structure("regex", regex) for regex in ("a", "b", "c"))
    matchers = await asyncio.gather(*(compiler.matcher(first) for _ in range(5)))
    assert compiler.num_compiled == 1
    assert len(set(map(id, matchers))) == 5, "each completion has its own"
    await compiler.matcher(second)
    await compiler.matcher(first)
    await compiler.matcher(third)
    await compiler.matcher(first)
    assert compiler.num_compiled == 3
    await compiler.matcher(second)
    assert compiler.num_compiled == 4


async def test_a_vocabulary_is_prepared_once_however_many_languages_come_first(demo_tekken: Path) -> None:
    tokenizer = load_tokenizer(demo_tekken)
    loaded: list[GrammarVocabulary] = []

    def load() -> GrammarVocabulary:
        ends = {tokenizer.eos_id}
        loaded.append(GrammarVocabulary(tokenizer, vocabulary_size=tokenizer.vocabulary_size, end_token_ids=ends))
        return loaded[-1]

    compiler = StructureCompiler(load)
    await asyncio.gather(*(compiler.matcher(structure("regex", regex)) for regex in ("a", "b", "c")))
    await compiler.close()
    assert (len(loaded), compiler.num_compiled) == (1, 3)


async def test_callers_that_leave_stop_nobody_else(compiler: StructureCompiler) -> None:
    leaving = asyncio.create_task(compiler.matcher(structure("regex", "a")))
    staying = asyncio.create_task(compiler.matcher(structure("regex", "a")))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await staying
    assert compiler.num_compiled == 1


async def test_too_many_that_wait_are_refused(compiler: StructureCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structure_compiler, "MAX_WAITING", 1)
    waiting = asyncio.create_task(compiler.matcher(structure("regex", "a")))
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhaustedError):
        await compiler.matcher(structure("regex", "b"))
    await waiting


def test_a_service_without_the_extra_starts_and_compiles_nothing() -> None:
    script = (
        "import sys; sys.modules['llguidance'] = None; "
        "from decoder_service.service import _structures; print(_structures(None, None))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.strip() == "None"


async def test_without_the_extra_structured_output_is_refused_by_name() -> None:
    servicer = GenerationServicer.__new__(GenerationServicer)
    servicer._structures = None
    with pytest.raises(InvalidArgumentError) as caught:
        await servicer._matcher(structure("regex", "a"))
    assert (caught.value.reason, caught.value.field) == ("UNSUPPORTED_FIELD", "structured.regex")
    assert caught.value.metadata == {"extra": "structured"}
