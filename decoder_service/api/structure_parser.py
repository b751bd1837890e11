"""From the structured output that a caller asks for to a language, or to the field at fault.

Knows protobuf and the limits of size. Does not know whether the language makes sense (see `structured.compiler`).
"""

import json

from common.errors import InvalidArgumentError
from decoder_service.api.field_checks import check_count, empty, missing, present_fields
from decoder_service.structured.structure import Structure, StructureKind
from diptych.v1 import generation_pb2 as pb

MAX_SOURCE_LENGTH = 65_536
"""Characters of a schema, an expression or a grammar, or of all choices together."""
MAX_CHOICES = 1024

_KINDS = {kind.value: kind for kind in StructureKind}


def parse_structure(request: pb.GenerateRequest) -> Structure | None:
    """The language that a request's completions are kept inside; None for any text. Raises InvalidArgumentError."""
    if not request.HasField("structured"):
        return None
    structured = request.structured
    present_fields(structured, set(_KINDS), prefix="structured.")
    name = structured.WhichOneof("constraint")
    if name is None:
        raise missing("structured")
    if request.sampling.ignore_eos:
        raise InvalidArgumentError(
            "FIELDS_CONFLICT", "structured output ends with its language", field="sampling.ignore_eos"
        )
    structure = Structure(_KINDS[name], _source(structured, name))
    check_count(structure.source, MAX_SOURCE_LENGTH, structure.field, "characters")
    return structure


def _source(structured: pb.StructuredOutput, name: str) -> str:
    if name == "json_object":
        if not structured.json_object:
            raise missing("structured.json_object")
        return ""
    if name == "choice":
        texts = structured.choice.texts
        check_count(texts, MAX_CHOICES, "structured.choice.texts", "texts")
        if not texts:
            raise missing("structured.choice.texts")
        for index, text in enumerate(texts):
            if not text:
                raise empty(f"structured.choice.texts[{index}]")
        return json.dumps(list(texts))
    source: str = getattr(structured, name)
    if not source:
        raise empty(f"structured.{name}")
    return source
