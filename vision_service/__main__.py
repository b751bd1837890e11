"""The command `python -m vision_service`: settings in, a serving process out.

Knows the order in which things start and end. Exits with 0 after an orderly stop, with 1 where the device was
lost, and with 2 and one line of reason where the settings or the checkpoint cannot be served.
"""

import common.server.silent_grpc  # noqa: F401 - before gRPC is imported
from common.server.early_signals import leave_at_once

if __name__ == "__main__":
    leave_at_once()

# isort: split
import asyncio
import logging
import sys

from prometheus_client import CollectorRegistry, ProcessCollector

from common.features.shared_memory import SharedArena
from common.process import freeze_loaded
from common.server.ending import Ending
from common.server.server import GrpcServer
from common.server.start import read_config, run_named
from common.telemetry.tracing import make_tracer
from vision_service.api.arena_door import ArenaDoor
from vision_service.api.servicer import SERVICE_NAME, VisionServicer
from vision_service.config import VisionConfig
from vision_service.service import VisionService

_log = logging.getLogger(__name__)


def main() -> None:
    """Run the vision service until it is told to stop."""
    config = read_config(
        VisionConfig, name="vision_service", description="Encodes pictures into image features, over gRPC."
    )
    sys.exit(run_named(serve(config), name="vision_service"))


async def serve(config: VisionConfig) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    try:
        tracer = make_tracer(config.tracing, service_name="diptych-vision")
        service = VisionService(
            config.model, decode=config.decode, batch=config.batch, cache=config.cache, registry=registry
        )
    except ValueError as error:
        sys.stderr.write(f"vision_service: {error}\n")
        return 2
    server = GrpcServer(config.server, registry=registry, service_names=[SERVICE_NAME], tracer=tracer)
    door = _open_door(config.shared_memory_bytes)
    VisionServicer(service.pipeline, door=door).add_to_server(server.grpc)
    await service.start()
    ending = Ending(server, SERVICE_NAME)
    watch = asyncio.create_task(_give_up_when_lost(service, ending))
    try:
        freeze_loaded()
        await server.start()
        server.set_serving([SERVICE_NAME])
        await server.wait_for_termination()
    finally:
        watch.cancel()
        await service.close()
        if door is not None:
            await door.close()
        await asyncio.to_thread(tracer.close)
    return 1 if ending.has_failed else 0


def _open_door(num_bytes: int) -> ArenaDoor | None:
    """Offer shared memory; a system that has none is no reason not to serve."""
    if not num_bytes:
        return None
    try:
        door = ArenaDoor(SharedArena(num_bytes))
        door.start()
    except (AttributeError, OSError) as error:
        _log.warning("features cannot be passed through shared memory here", extra={"error": str(error)})
        return None
    return door


async def _give_up_when_lost(service: VisionService, ending: Ending) -> None:
    await service.device_lost.wait()
    _log.critical("the device is lost; stopping")
    ending.give_up()


if __name__ == "__main__":
    main()
