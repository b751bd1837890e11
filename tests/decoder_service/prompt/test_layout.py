"""Which prompts are laid out on the event loop itself."""

import pytest

from decoder_service.prompt.layout import QUICK_TOKENS, is_quick
from decoder_service.prompt.prompt_spec import ChatMessage, ChatPrompt, PromptSpec, Role, TextPrompt, TokenPrompt


@pytest.mark.parametrize("count", [0, 1, QUICK_TOKENS])
def test_a_few_token_ids_are_not_handed_to_a_thread(count: int) -> None:
    assert is_quick(TokenPrompt((5,) * count))


@pytest.mark.parametrize(
    "spec",
    [
        TokenPrompt((5,) * (QUICK_TOKENS + 1)),
        TokenPrompt((5,), images=(b"a picture",)),
        TextPrompt("a"),
        ChatPrompt((ChatMessage(role=Role.USER, parts=("a",)),)),
    ],
)
def test_whatever_may_take_long_is(spec: PromptSpec) -> None:
    assert not is_quick(spec)
