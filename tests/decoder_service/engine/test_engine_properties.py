"""Whatever happens in whatever order, every request ends, with its own tokens, and nothing is left behind."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from common.errors import UnavailableError
from decoder_service.cache.block_hash import block_hash
from decoder_service.engine.device_errors import DeviceMemoryError
from tests.decoder_service.engine_fakes import Host, make_request
from tests.decoder_service.operations import operations
from tests.decoder_service.runner_fakes import VOCABULARY, next_token, repeated_token

BLOCK_SIZE = 3
MAX_IMAGE = 6

# Few lengths, so that many requests begin alike.
images = st.lists(st.tuples(st.sampled_from([2, 5, MAX_IMAGE]), st.sampled_from([0, 1, 4])), max_size=3)
texts = st.sampled_from(["one", "two"])
names = st.lists(st.sampled_from("pq"), min_size=3, max_size=3)


class EngineMachine(RuleBasedStateMachine):
    """Random operations on an engine so small that everything runs out all the time.

    `Host` checks the engine's books after each operation.
    """

    overlap = False
    """Whether steps are planned while the ones before them run, on a device that may compute nothing until it must."""
    num_speculative_tokens = 0
    next_token = staticmethod(next_token)
    num_more_tokens = 0
    """Tokens that completions may be longer, in a cache that is as much larger."""

    def __init__(self) -> None:
        super().__init__()
        self.host = Host()
        self.num_submitted = 0

    @initialize(
        num_blocks=st.integers(18, 30),
        max_num_requests=st.integers(1, 4),
        spare_tokens=st.integers(0, 12),
        feature_budget=st.integers(3 * MAX_IMAGE, 5 * MAX_IMAGE),
        num_spare_blocks=st.integers(0, 3),
        max_num_mixed_tokens=st.sampled_from([None, 1, 3]),
        caching=st.booleans(),
        is_eager=st.booleans(),
    )
    def start(
        self,
        num_blocks: int,
        max_num_requests: int,
        spare_tokens: int,
        feature_budget: int,
        num_spare_blocks: int,
        max_num_mixed_tokens: int | None,
        caching: bool,
        is_eager: bool,
    ) -> None:
        self.host = Host(
            num_blocks=num_blocks + self.num_more_tokens // BLOCK_SIZE,
            block_size=BLOCK_SIZE,
            max_num_batched_tokens=max_num_requests + spare_tokens,
            max_num_requests=max_num_requests,
            feature_budget=feature_budget,
            num_spare_blocks=num_spare_blocks,
            max_num_mixed_tokens=max_num_mixed_tokens,
            hash_block=block_hash if caching else None,
            overlap=self.overlap,
            num_speculative_tokens=self.num_speculative_tokens,
            next_token=self.next_token,
        )
        self.host.runner.is_eager = is_eager

    @rule(
        length=st.sampled_from([1, 4, 8]),
        images=images,
        text=texts,
        pictures=names,
        cache_salt=st.sampled_from([b"", b"other"]),
        priority=st.sampled_from([0, 0, -1, 1]),
        tenant=st.sampled_from([b"a", b"a", b"b", b"c"]),
        max_tokens=st.integers(1, 9),
        end_token_id=st.integers(0, VOCABULARY - 1),
        stop_token_id=st.integers(0, VOCABULARY - 1),
        ignore_eos=st.booleans(),
        is_long=st.booleans(),
        n=st.sampled_from([1, 1, 2, 3]),
    )
    def submit(
        self,
        length: int,
        images: list[tuple[int, int]],
        text: str,
        pictures: list[str],
        cache_salt: bytes,
        priority: int,
        tenant: bytes,
        max_tokens: int,
        end_token_id: int,
        stop_token_id: int,
        ignore_eos: bool,
        is_long: bool,
        n: int,
    ) -> None:
        max_tokens += self.num_more_tokens * is_long
        self.host.submit(
            make_request(
                f"r{self.num_submitted}",
                length,
                *(length for image in images for length in image),
                text=text,
                pictures=[f"{name}{length}" for name, (length, _) in zip(pictures, images, strict=False)],
                cache_salt=cache_salt,
                priority=priority,
                tenant=tenant,
                arrival=self.num_submitted,
                max_tokens=max_tokens,
                end_token_ids=frozenset({end_token_id}),
                stop_token_ids=frozenset({stop_token_id}),
                ignore_eos=ignore_eos,
                n=self._most_completions(n, length + sum(map(sum, images)), max_tokens),
            )
        )
        self.num_submitted += 1

    @rule(count=st.integers(2, 4), text=texts, max_tokens=st.integers(5, 9))
    def submit_texts(self, count: int, text: str, max_tokens: int) -> None:
        """Requests that give one token after another and nothing else."""
        for _ in range(count):
            length = max_tokens + self.num_more_tokens
            name, arrival = f"r{self.num_submitted}", self.num_submitted
            self.host.submit(make_request(name, 4, text=text, arrival=arrival, max_tokens=length))
            self.num_submitted += 1

    def _most_completions(self, n: int, num_prompt_tokens: int, max_tokens: int) -> int:
        """As many as asked for, or as many as there can be."""
        capacity = self.host.engine.capacity
        fitting = [i for i in range(1, n + 1) if capacity.max_tokens(num_prompt_tokens, n=i) >= max_tokens]
        return min(max(fitting), capacity.max_num_requests)

    @rule(num_steps=st.integers(1, 4))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            had_work = self.host.engine.has_work
            output = self.host.step()
            did_work = self.host.engine.num_batched_tokens or output.failed or output.wanted
            assert had_work == bool(did_work)

    @precondition(lambda self: self.host.in_flight)
    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        self.host.arrive(data.draw(st.sampled_from(self.host.in_flight)))

    @rule(num_steps=st.integers(1, 8))
    def go_on(self, num_steps: int) -> None:
        """What mostly happens: images arrive and steps are made, until some requests have ended."""
        for _ in range(num_steps):
            for ref in list(self.host.in_flight):
                if ref in self.host.in_flight:
                    self.host.arrive(ref)
            self.host.step()

    @precondition(lambda self: self.host.live)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.host.abort(data.draw(st.sampled_from(self.host.live)))

    @precondition(lambda self: self._parted())
    @rule(data=st.data())
    def end_one(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(self._parted()))
        self.host.end(request_id, data.draw(st.sampled_from(self.host.unfinished(request_id))))

    def _parted(self) -> list[str]:
        """Requests whose completions have begun."""
        return [request_id for request_id in self.host.live if self.host.outcomes[request_id].token_ids]

    @precondition(lambda self: self.host.live)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(self.host.live))
        unfinished = self.host.unfinished(request_id)
        self.host.fail(request_id, UnavailableError("VISION_UNAVAILABLE", "no vision replica answers"))
        self.host.step()
        assert {self.host.outcome(request_id, index).end for index in unfinished} == {"VISION_UNAVAILABLE"}

    @precondition(lambda self: self.host.live)
    @rule(data=st.data())
    def fail_and_abort(self, data: st.DataObject) -> None:
        """The caller leaves before it hears of the error, and nobody else may hear of it."""
        request_id = data.draw(st.sampled_from(self.host.live))
        self.host.fail(request_id, UnavailableError("VISION_UNAVAILABLE", "no vision replica answers"))
        self.host.abort(request_id)

    @precondition(lambda self: self.host.live)
    @rule(data=st.data())
    def become_not_finite(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(self.host.live))
        index = data.draw(st.sampled_from(self.host.unfinished(request_id)))
        self.host.runner.not_finite.add(f"{request_id}/{index}")

    @precondition(lambda self: self.host.live)
    @rule(data=st.data(), num_steps=st.integers(0, 2))
    def become_poisoned(self, data: st.DataObject, num_steps: int) -> None:
        """Its keys and values are NaN from now on; it may be gone before that shows."""
        request_id = data.draw(st.sampled_from(self.host.live))
        self.host.runner.poisoned.add(request_id)
        for _ in range(num_steps):
            self.host.step()
        if request_id in self.host.live:
            self.host.abort(request_id)

    @precondition(lambda self: self.host.live)
    @rule(data=st.data())
    def become_a_culprit(self, data: st.DataObject) -> None:
        self.host.runner.culprits.add(data.draw(st.sampled_from(self.host.live)))

    @rule(most_tokens=st.sampled_from([None, None, 1, 5]))
    def change_memory(self, most_tokens: int | None) -> None:
        self.host.runner.most_tokens = most_tokens

    @precondition(lambda self: self.host.live)
    @rule(data=st.data())
    def pause(self, data: st.DataObject) -> None:
        self.host.pause(data.draw(st.sampled_from(self.host.live)))

    @precondition(lambda self: self.host.paused)
    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        self.host.resume(data.draw(st.sampled_from(self.host.paused)))

    @rule()
    def raise_in_the_next_copy(self) -> None:
        self.host.runner.copy_error = RuntimeError("planted")

    @rule(is_memory=st.booleans())
    def raise_when_blocks_are_next_cleared(self, is_memory: bool) -> None:
        self.host.runner.clear_error = DeviceMemoryError() if is_memory else RuntimeError("planted")

    @rule()
    def raise_in_the_next_step(self) -> None:
        self.host.runner.error = RuntimeError("planted")

    @rule()
    def raise_when_the_next_step_begins(self) -> None:
        self.host.runner.launch_error = RuntimeError("planted")

    @rule(is_memory=st.booleans())
    def raise_late_in_the_next_step(self, is_memory: bool) -> None:
        self.host.runner.late_error = DeviceMemoryError() if is_memory else RuntimeError("planted")

    def teardown(self) -> None:
        self.host.run_unpaused(max_steps=100 + 100 * self.num_submitted)
        for request_id in self.host.paused:
            self.host.resume(request_id)
        self.host.run(max_steps=100 + 100 * self.num_submitted)
        self.host.check_outputs()


class OverlappedEngineMachine(EngineMachine):
    """The same while a step runs, most of the time."""

    overlap = True
    num_more_tokens = 15


class SpeculatingEngineMachine(EngineMachine):
    """The same with completions that often repeat themselves, of which requests try tokens ahead."""

    num_speculative_tokens = 5
    next_token = staticmethod(repeated_token)
    num_more_tokens = 15

    @rule(are_poisonous=st.booleans())
    def change_drafts(self, are_poisonous: bool) -> None:
        self.host.runner.has_poisonous_drafts = are_poisonous


TestEngine = EngineMachine.TestCase
TestEngine.settings = operations(20_000)
TestOverlappedEngine = OverlappedEngineMachine.TestCase
TestOverlappedEngine.settings = operations(20_000)
TestSpeculatingEngine = SpeculatingEngineMachine.TestCase
TestSpeculatingEngine.settings = operations(20_000)
