"""Whose turn it is, and who is looked after, is the same though steps are planned ahead."""

from tests.decoder_service.engine_fakes import Host, make_request


def test_who_falls_behind_while_it_waits_gives_its_image_up_and_asks_for_it_again_though_others_run() -> None:
    host = Host(num_blocks=100, max_num_batched_tokens=100, overlap=True)
    host.submit(make_request("running", 5, max_tokens=30))
    host.step()
    host.submit(make_request("picture", 3, 4, 3, arrival=1, max_tokens=2))
    host.step()
    assert [ref.request_id for ref in host.in_flight] == ["picture"]
    host.pause("picture")
    for _ in range(2):  # The first of them was planned before.
        host.step()
    assert not host.in_flight
    host.resume("picture")
    for _ in range(2):
        host.step()
    assert [ref.request_id for ref in host.in_flight] == ["picture"]
    assert host.engine.stats().num_steps_ahead > 0
    host.run()
    host.check_outputs()


def test_tenants_are_charged_once_for_what_is_computed_ahead_also_where_it_was_in_vain() -> None:
    charged = []
    for overlap, fails in ((False, False), (True, False), (True, True)):
        host = Host(num_blocks=100, max_num_batched_tokens=100, overlap=overlap)
        host.submit(make_request("a", 5, tenant=b"a", max_tokens=9))
        host.submit(make_request("b", 3, tenant=b"b", arrival=1, max_tokens=4))
        host.submit(make_request("c", 2, tenant=b"b", arrival=2, max_tokens=7))
        for _ in range(4):
            host.step()
            host.runner.error = RuntimeError("once") if fails else None
        host.run()
        assert (host.engine.stats().num_steps_ahead > 0) == overlap
        charged.append([host.engine._scheduler._counters.get(tenant) for tenant in (b"a", b"b")])
    # Of each output all but the last token is computed.
    assert charged == [[5 + 2 * 8, 3 + 2 * 3 + 2 + 2 * 6]] * 3
