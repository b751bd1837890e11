"""What C10 asks of both of its sides."""

from benchmarks.service.overhead import round_plans


def test_no_prompt_of_a_round_comes_again_in_another_or_at_another_concurrency() -> None:
    """The service's prefix cache is larger than the engine's alone, so that it would find more of them."""
    prompts = []
    for concurrency in (1, 8, 32):
        for number in range(9):
            plans, first = round_plans(concurrency, number, range(100, 400))
            prompts += [plan.text_token_ids for plan in (*plans, first)]
    assert len(set(prompts)) == len(prompts) == 9 * (1 + 8 + 32 + 3)
