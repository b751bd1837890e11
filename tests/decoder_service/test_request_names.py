"""A name is one open request's, and free again when that has ended."""

import pytest

from common.errors import AbortedError, AlreadyExistsError
from decoder_service.request_names import RequestNames


def test_a_request_sent_twice_is_told_from_another_of_its_name() -> None:
    names = RequestNames()
    with names.held("a", b"1"):
        with pytest.raises(AbortedError), names.held("a", b"1"):
            pass
        with pytest.raises(AlreadyExistsError), names.held("a", b"2"):
            pass
        with names.held("someone/a", b"2"):
            assert len(names) == 2
    with names.held("a", b"2"):
        assert len(names) == 1
    assert len(names) == 0


def test_a_name_is_free_when_its_request_failed() -> None:
    names = RequestNames()
    with pytest.raises(RuntimeError), names.held("a", b"1"):
        raise RuntimeError
    assert len(names) == 0
