import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from common import errors
from common.calls.status import status_code, to_rpc_status, to_trailers
from common.errors import Code, DiptychError, InvalidArgumentError, ResourceExhaustedError
from diptych.v1 import error_details_pb2 as twins

CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, DiptychError)]
CONCRETE = [error_class for error_class in CLASSES if error_class is not DiptychError]


def details(status: status_pb2.Status) -> list[str]:
    return [detail.type_url.rpartition(".")[2] for detail in status.details]


def test_the_tree_has_a_class_for_every_code() -> None:
    assert {error_class.code for error_class in CONCRETE} == set(Code)


@pytest.mark.parametrize("error_class", CONCRETE)
def test_every_error_becomes_its_code_with_exactly_one_error_info(error_class: type[DiptychError]) -> None:
    error = error_class("QUEUE_FULL", "Too much.", metadata={"limit": 3})
    status = to_rpc_status(error)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain, dict(info.metadata)) == ("QUEUE_FULL", "diptych.v1", {"limit": "3"})
    assert details(status) == ["ErrorInfo"]
    assert (status.code, status.message) == (status_code(error).value[0], "Too much.")
    assert status_code(error).name == error_class.code.name


def test_a_field_becomes_a_bad_request_and_a_delay_a_retry_info_with_pushback() -> None:
    error = ResourceExhaustedError("QUEUE_FULL", "Full.", field="chat.messages", retry_after=1.5)
    status = to_rpc_status(error)
    assert details(status) == ["ErrorInfo", "BadRequest", "RetryInfo"]
    retry = error_details_pb2.RetryInfo()
    assert status.details[2].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 1500
    assert ("grpc-retry-pushback-ms", "1500") in to_trailers(error)


def test_no_delay_means_no_pushback() -> None:
    assert [key for key, _ in to_trailers(InvalidArgumentError("A", "b"))] == ["grpc-status-details-bin"]


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 1e300, float("inf"), float("nan")])
def test_a_delay_out_of_reason_is_bounded(seconds: float) -> None:
    trailers = dict(to_trailers(ResourceExhaustedError("A", "b", retry_after=seconds)))
    assert 0 <= int(trailers["grpc-retry-pushback-ms"]) <= 3_600_000


text = st.text(st.characters(codec=None), max_size=3000)


@given(reason=text, message=text, field=text, metadata=st.dictionaries(text, text, max_size=20))
def test_a_status_stays_small_whatever_it_says(reason: str, message: str, field: str, metadata: dict[str, str]) -> None:
    error = InvalidArgumentError(reason, message, field=field, metadata=metadata, retry_after=1e9)
    assert len(to_rpc_status(error).SerializeToString()) < 4096


def test_the_longest_status_stays_small() -> None:
    long = "\N{GRINNING FACE}" * 5000
    metadata = {f"{key}{long}": long for key in range(100)}
    error = InvalidArgumentError(long, long, field=long, metadata=metadata, retry_after=1e9)
    assert 3000 < len(to_rpc_status(error).SerializeToString()) < 4096


def test_the_clients_twins_read_what_google_wrote() -> None:
    status = to_rpc_status(InvalidArgumentError("A", "b", field="c.d", metadata={"e": "f"}, retry_after=2.25))
    twin = twins.ErrorStatus.FromString(status.SerializeToString())
    assert (twin.code, twin.message) == (3, "b")
    info = twins.ErrorInfo.FromString(twin.details[0].value)
    bad = twins.BadRequest.FromString(twin.details[1].value)
    retry = twins.RetryInfo.FromString(twin.details[2].value)
    assert (info.reason, info.domain, dict(info.metadata)) == ("A", "diptych.v1", {"e": "f"})
    assert [(violation.field, violation.description) for violation in bad.field_violations] == [("c.d", "b")]
    assert retry.retry_delay.ToMilliseconds() == 2250
    assert twin.SerializeToString() == status.SerializeToString()
