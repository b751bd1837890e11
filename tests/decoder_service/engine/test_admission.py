"""What is let in, what is refused at once, and that every place is given back."""

from contextlib import ExitStack

import pytest

from common.errors import InvalidArgumentError, ResourceExhaustedError
from decoder_service.engine.admission import Admission, AdmissionLimits


@pytest.fixture
def admission() -> Admission:
    return Admission(AdmissionLimits(max_requests=3, max_waiting_tokens=100, max_picture_bytes=1000))


def assert_empty(admission: Admission) -> None:
    assert (admission.num_requests, admission.num_waiting_tokens, admission.picture_bytes) == (0, 0, 0)


@pytest.mark.parametrize(
    ("held", "wanted", "unit"),
    [
        ([(1, 0)] * 3, (1, 0), "requests"),
        ([(60, 0)], (41, 0), "tokens"),
        ([(1, 600)], (1, 401), "bytes of pictures"),
    ],
)
def test_what_is_over_a_limit_is_refused_with_a_time_to_come_back(
    admission: Admission, held: list[tuple[int, int]], wanted: tuple[int, int], unit: str
) -> None:
    with ExitStack() as places:
        for num_tokens, picture_bytes in held:
            places.enter_context(admission.place(num_tokens=num_tokens, picture_bytes=picture_bytes))
        with pytest.raises(ResourceExhaustedError) as caught:
            places.enter_context(admission.place(num_tokens=wanted[0], picture_bytes=wanted[1]))
        assert caught.value.reason == "QUEUE_FULL"
        assert caught.value.metadata["unit"] == unit
        assert caught.value.retry_after
    assert_empty(admission)
    with admission.place(num_tokens=wanted[0], picture_bytes=wanted[1]):
        pass


def test_what_just_fits_is_let_in(admission: Admission) -> None:
    with (
        admission.place(num_tokens=60, picture_bytes=600),
        admission.place(num_tokens=40, picture_bytes=400),
    ):
        assert admission.num_waiting_tokens == 100


def test_the_pictures_of_one_request_may_take_all_the_room_there_is(admission: Admission) -> None:
    with admission.place(num_tokens=1, picture_bytes=1000):
        assert admission.picture_bytes == 1000


@pytest.mark.parametrize("held", [[1, 1, 1], [100], [60, 40]])
def test_where_not_even_the_smallest_request_would_be_let_in_that_is_said_before_one_is_read(
    admission: Admission, held: list[int]
) -> None:
    with ExitStack() as places:
        for num_tokens in held:
            admission.check_open()
            places.enter_context(admission.place(num_tokens=num_tokens, picture_bytes=0))
        with pytest.raises(ResourceExhaustedError):
            admission.check_open()
    with admission.place(num_tokens=99, picture_bytes=0):
        admission.check_open()


def test_requests_that_are_worked_on_leave_the_queue_to_others(admission: Admission) -> None:
    with admission.place(num_tokens=90, picture_bytes=0) as first:
        first.begun()
        with admission.place(num_tokens=90, picture_bytes=0):
            pass
    assert_empty(admission)


def test_true_lengths_count_once_they_are_known(admission: Admission) -> None:
    with admission.place(num_tokens=10, picture_bytes=0) as first:
        first.laid_out(80)
        with admission.place(num_tokens=10, picture_bytes=0) as second, pytest.raises(ResourceExhaustedError):
            second.laid_out(30)
        assert admission.num_waiting_tokens == 80
    assert_empty(admission)


def test_a_prompt_that_waits_alone_may_be_longer_than_the_queue(admission: Admission) -> None:
    with admission.place(num_tokens=5000, picture_bytes=0) as place:
        place.laid_out(5000)
    assert_empty(admission)


def test_pictures_that_never_fit_are_the_callers_fault(admission: Admission) -> None:
    with (
        pytest.raises(InvalidArgumentError, match="1000 is the most"),
        admission.place(num_tokens=1, picture_bytes=1001),
    ):
        pass
    assert_empty(admission)


def test_a_request_that_fails_gives_its_place_back(admission: Admission) -> None:
    with pytest.raises(RuntimeError), admission.place(num_tokens=10, picture_bytes=10):
        raise RuntimeError
    assert_empty(admission)
