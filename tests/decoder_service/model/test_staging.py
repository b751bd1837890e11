"""Numbers and rows travel through memory that is used again only when what it held has arrived."""

from array import array
from collections.abc import Callable

import pytest
import torch

from decoder_service.model.staging import NUM_SLOTS, HostStaging, PinnedStaging, Staging

CPU = torch.device("cpu")


class Marks:
    """A device that says where it is asked to be waited for."""

    def __init__(self) -> None:
        self.num_made = 0
        self.waited: list[int] = []

    def __call__(self) -> Callable[[], None]:
        number, self.num_made = self.num_made, self.num_made + 1
        return lambda: self.waited.append(number)


@pytest.mark.parametrize("staging", [HostStaging(), PinnedStaging(CPU, Marks())])
def test_numbers_arrive_as_they_are_however_many(staging: Staging) -> None:
    moved = []
    for count in (1, 0, 7, 50_000, 3):
        whole, real = array("q", range(-2, count - 2)), array("d", [0.1 * each for each in range(count)])
        moved += [(staging.move(numbers), numbers.tolist()) for numbers in (whole, real) if count]
    assert [each.tolist() for each, _ in moved] == [numbers for _, numbers in moved]
    assert {each.dtype for each, _ in moved} == {torch.int64, torch.float64}
    reads = [(staging.read(torch.arange(count)), list(range(count))) for count in (3, 1, 40_000, 2)]
    assert [read() for read, _ in reversed(reads)] == [numbers for _, numbers in reversed(reads)]


def test_memory_is_written_again_only_when_its_copy_is_over() -> None:
    marks = Marks()
    staging = PinnedStaging(CPU, marks)
    for _ in range(NUM_SLOTS):
        staging.move(array("q", [1]))
    assert marks.waited == []
    for _ in range(3):
        staging.move(array("q", [2]))
    assert marks.waited == [0, 1, 2]


def test_what_comes_back_is_waited_for_once_it_is_read_and_not_before() -> None:
    marks = Marks()
    staging = PinnedStaging(CPU, marks)
    first, second = staging.read(torch.tensor([1])), staging.read(torch.tensor([2]))
    assert marks.waited == []
    assert (second(), first()) == ([2], [1])
    assert marks.waited == [1, 0]


def test_memory_is_taken_once() -> None:
    staging = PinnedStaging(CPU, Marks())
    before = [slot.memory.data_ptr() for slot in staging._slots]
    for _ in range(10):
        staging.move(array("q", range(1000)))
        first, second = staging.read(torch.arange(40)), staging.read(torch.arange(40))
        first()
        second()
    assert [slot.memory.data_ptr() for slot in staging._slots] == before
    assert len(staging._unused) == 2


def test_rows_are_carried_as_they_are_and_their_memory_is_free_at_once() -> None:
    rows = torch.randn(5, 8).to(torch.bfloat16)
    want, carried = rows.clone(), PinnedStaging(CPU, Marks()).carry(rows)
    rows.zero_()
    assert torch.equal(carried, want)
    # Where nothing has to be carried nothing is copied.
    assert HostStaging().carry(rows) is rows
