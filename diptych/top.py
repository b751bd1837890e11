"""`diptych top`: watches a running pair by its metrics endpoints.

Knows endpoints, time and the terminal. Does not know what a frame shows (see `top_frame`). Plain escape sequences do
for a screen that is written anew each second; nothing else is needed.
"""

import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from diptych.connection import add_tls_arguments, wants_tls
from diptych.flags import seconds
from diptych.scrape import Scrape, scrape
from diptych.scrape_tls import TlsOpener
from diptych.top_frame import Look, frame

_Ask = Callable[[str], Scrape]

_TIMEOUT = 2.0
_TO_TOP_AND_CLEAR = "\x1b[H\x1b[J"
_OTHER_SCREEN = "\x1b[?1049h\x1b[?25l"
_FIRST_SCREEN = "\x1b[?1049l\x1b[?25h"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the flags of `diptych top`."""
    parser.add_argument(
        "--decoder",
        default="127.0.0.1:9090",
        metavar="HOST:PORT,...",
        help="metrics of decoders, as HOST:PORT or a URL (default: %(default)s)",
    )
    parser.add_argument(
        "--vision", default="127.0.0.1:9091", metavar="HOST:PORT,...", help="of vision replicas (default: %(default)s)"
    )
    parser.add_argument("--interval", type=seconds, default=1.0, metavar="SECONDS", help="between frames (default: 1)")
    parser.add_argument("--once", action="store_true", help="print one frame, of one interval, and end")
    add_tls_arguments(parser.add_argument_group("connection"))


def run(options: Namespace) -> int:
    """Show frames until interrupted; returns the exit status: 1 where no endpoint answered `--once`."""
    decoders, visions = _addresses(options.decoder), _addresses(options.vision)
    if not decoders + visions:
        sys.stderr.write("diptych top: --decoder or --vision must name an endpoint\n")
        return 2
    try:
        tls = _tls(options)
    except ValueError as error:
        sys.stderr.write(f"diptych top: {error}\n")
        return 2
    ask = partial(scrape, timeout=_TIMEOUT, tls=tls)
    with ThreadPoolExecutor(max_workers=len(decoders) + len(visions)) as threads:
        before = _look(threads, ask, decoders + visions)
        if options.once:
            return _once(before, _next(threads, ask, before, options.interval), decoders)
        sys.stdout.write(_OTHER_SCREEN)
        try:
            while True:
                now = _next(threads, ask, before, options.interval)
                lines = [f"diptych top  {time.strftime('%H:%M:%S')}", "", *_frame(before, now, decoders)]
                sys.stdout.write(_TO_TOP_AND_CLEAR + "\n".join(lines) + "\n")
                sys.stdout.flush()
                before = now
        finally:
            sys.stdout.write(_FIRST_SCREEN)


def _once(before: dict[str, Scrape], now: dict[str, Scrape], decoders: Sequence[str]) -> int:
    print("\n".join(_frame(before, now, decoders)))
    return 1 if all(scrape.problem is not None for scrape in now.values()) else 0


def _tls(options: Namespace) -> TlsOpener | None:
    """What the flags ask for. Raises ValueError where their files cannot be used."""
    if not wants_tls(options):
        return None
    return TlsOpener(ca=options.ca, cert=options.cert, key=options.key, server_name=options.server_name)


def _next(threads: ThreadPoolExecutor, ask: _Ask, before: dict[str, Scrape], interval: float) -> dict[str, Scrape]:
    time.sleep(interval)
    return _look(threads, ask, list(before))


def _look(threads: ThreadPoolExecutor, ask: _Ask, addresses: Sequence[str]) -> dict[str, Scrape]:
    """Ask all at the same time, so that one that is slow does not hold up the others."""
    return dict(zip(addresses, threads.map(ask, addresses), strict=True))


def _frame(before: dict[str, Scrape], now: dict[str, Scrape], decoders: Sequence[str]) -> list[str]:
    looks: dict[str, Look] = {address: (before[address], now[address]) for address in now}
    return frame(
        {address: look for address, look in looks.items() if address in decoders},
        {address: look for address, look in looks.items() if address not in decoders},
    )


def _addresses(text: str) -> list[str]:
    return [address.strip() for address in text.split(",") if address.strip()]
