"""Whose turn it is for the tokens that a step's budget leaves.

Knows classes, what tenants got, and who could have more tokens. Does not know what there is room for, or how many
tokens anybody gets (see `scheduler`), and changes nothing.
"""

from collections.abc import Iterable, Iterator

from decoder_service.engine.request import Request
from decoder_service.scheduling.room import Room
from decoder_service.scheduling.running import RunningRequests
from decoder_service.scheduling.step_plan import StepPlan
from decoder_service.scheduling.token_counters import TokenCounters
from decoder_service.scheduling.waiting import WaitingRequests


class Turns:
    """The highest class first, in it the tenant that got least so far, and of a tenant those that run."""

    def __init__(
        self,
        counters: TokenCounters,
        *,
        running: RunningRequests,
        waiting: WaitingRequests,
        room: Room,
        plan: StepPlan,
    ) -> None:
        self._counters = counters
        self._running = running
        self._waiting = waiting
        self._room = room
        self._plan = plan

    def of(self, request: Request) -> tuple[int, int]:
        """A request's turn: the smallest goes first."""
        return -request.priority, self._counters.get(request.tenant)

    @property
    def running(self) -> list[Request]:
        """Those that run and could have more than the one token that they have in this step."""
        return [each for each in self._running if each.num_schedulable_tokens > 1 and each in self._plan]

    def prompts(self, running: Iterable[Request]) -> Iterator[Request]:
        """These and as many of those that wait as there are places to begin in, about in the order of their turns.

        Nobody is looked at before the first one is asked for, and of those that wait never more than there are places.
        """
        beginning = self._waiting.ready.first(self._room.num_free_places)
        yield from sorted([*running, *beginning], key=self.of)
