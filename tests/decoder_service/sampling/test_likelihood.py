import pytest
import torch

from decoder_service.sampling.likelihood import likelihoods

LOGITS = 4 * torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
CHOSEN = [0, 49, 7, 7, 3, 20]


def test_each_row_has_its_tokens_logprob_and_as_many_of_the_likeliest_as_it_asks_for() -> None:
    num_top = [0, 1, 20, 3, 0, 5]
    expected = LOGITS.double().log_softmax(dim=-1)
    for row, got in enumerate(likelihoods(LOGITS, CHOSEN, num_top=num_top)):
        assert got.logprob == pytest.approx(float(expected[row, CHOSEN[row]]), abs=1e-5)
        order = expected[row].argsort(descending=True)[: num_top[row]]
        assert list(got.top_token_ids) == order.tolist()
        assert list(got.top_logprobs) == pytest.approx(expected[row, order].tolist(), abs=1e-5)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    together = likelihoods(LOGITS, CHOSEN, num_top=[5] * 6)
    assert together == [likelihoods(LOGITS[i : i + 1], CHOSEN[i : i + 1], num_top=[5])[0] for i in range(6)]


def test_no_more_tokens_are_told_than_there_are() -> None:
    (got,) = likelihoods(LOGITS[:1, :3], [1], num_top=[20])
    assert len(got.top_token_ids) == len(got.top_logprobs) == 3
    assert sum(torch.tensor(got.top_logprobs).exp()) == pytest.approx(1)
