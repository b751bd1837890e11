"""What the pair remembers between requests, and what it must not."""

from common.client.client import DiptychClient
from common.client.messages import user_message
from common.client.types import Completion
from tests import pictures
from tests.end_to_end.services import Service

BLOCK_SIZE = 16


def test_second_turn_about_a_picture_computes_and_encodes_only_what_is_new(
    client: DiptychClient, decoder: Service
) -> None:
    question = user_message("How many shapes are there?", [pictures.save(pictures.noise(160, 160))])
    first = client.complete([question], timeout=30, cache_salt=b"turns")
    assert (first.usage.cached_tokens, first.usage.images_not_encoded) == (0, 0)
    num_encoded = decoder.metric("diptych_images_encoded_total")
    turns = [question, {"role": "assistant", "content": first.text}, user_message("Which one is left of it?")]
    second = client.complete(turns, timeout=30, cache_salt=b"turns")
    assert second.usage.cached_tokens >= first.usage.prompt_tokens // BLOCK_SIZE * BLOCK_SIZE
    assert second.usage.images_not_encoded == 1
    assert second.timings.encode_wait_seconds == 0
    assert decoder.metric("diptych_images_encoded_total") == num_encoded
    plain = client.complete(turns, timeout=30, cache_salt=b"others")
    assert (plain.usage.cached_tokens, plain.usage.images_not_encoded) == (0, 0)
    assert plain.token_ids == second.token_ids


def test_pictures_of_one_size_are_told_apart(client: DiptychClient) -> None:
    """Each picture asked about after the other gets the answer that it gets from empty caches."""
    files = [pictures.save(pictures.noise(96, 64, seed=seed)) for seed in (1, 2)]

    def ask(file: bytes, salt: bytes) -> Completion:
        question = user_message("What is it?", [file])
        return client.complete([question], timeout=30, max_tokens=30, ignore_eos=True, cache_salt=salt)

    alone = [ask(file, salt).token_ids for file, salt in zip(files, (b"1", b"2"), strict=True)]
    assert alone[0] != alone[1]
    for _ in range(2):
        assert [ask(file, b"both").token_ids for file in files] == alone
    assert ask(files[0], b"both").usage.images_not_encoded == 1


def test_features_that_no_request_holds_are_kept_for_another_question(client: DiptychClient, decoder: Service) -> None:
    """The question comes before the picture, so the prefix cache is of no use."""
    file = pictures.save(pictures.noise(70, 50, seed=3))
    before = decoder.metric("diptych_images_encoded_total")
    for text in ("one", "two"):
        parts = [{"type": "text", "text": text}, {"type": "image", "data": file}, {"type": "text", "text": "?"}]
        done = client.complete([{"role": "user", "content": parts}], timeout=30, cache_salt=b"features")
        assert done.usage.cached_tokens == 0
    assert done.usage.images_not_encoded == 1
    assert decoder.metric("diptych_images_encoded_total") == before + 1
    assert decoder.metric("diptych_image_feature_cached_bytes") > 0
