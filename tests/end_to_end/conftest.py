"""One pair of services for the tests that leave it as they found it, and the check that they do."""

from collections.abc import Iterator

import pytest

from common.client.client import DiptychClient
from tests.end_to_end.services import Service, assert_idle, decoder_service, vision_service


@pytest.fixture(scope="package")
def vision() -> Iterator[Service]:
    with vision_service() as service:
        yield service


@pytest.fixture(scope="package")
def decoder(vision: Service) -> Iterator[Service]:
    with decoder_service(
        "--reflection", "--num-blocks", "256", "--max-num-requests", "24", vision=vision.address
    ) as it:
        it.wait_serving()
        yield it


@pytest.fixture
def client(decoder: Service, vision: Service) -> Iterator[DiptychClient]:
    """A client of the pair, which must be idle again after the test."""
    with DiptychClient(decoder.address) as client:
        yield client
    assert_idle(decoder, vision)
