"""What a trace says of a request, in the words of OpenTelemetry's conventions for generative AI.

Knows names of attributes. Never says what the prompt or the completion are.
"""

from common.telemetry.spans import Attributes
from decoder_service.api.request_parser import ParsedRequest
from decoder_service.prompt.prompt_spec import ChatPrompt


def request_attributes(parsed: ParsedRequest, *, model_name: str) -> Attributes:
    """What was asked for."""
    params = parsed.sampling.params
    attributes: dict[str, str | int | float] = {
        "gen_ai.operation.name": "chat" if isinstance(parsed.prompt, ChatPrompt) else "text_completion",
        "gen_ai.provider.name": "diptych",
        "gen_ai.request.model": model_name,
        "gen_ai.request.max_tokens": params.max_tokens,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
    }
    return attributes | ({"diptych.lora": parsed.adapter.name} if parsed.adapter.name else {})
