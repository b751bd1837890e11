"""The vision service over loopback: a picture goes in, checked features or one clear status comes out."""

import asyncio
import threading
from contextlib import suppress

import grpc
import numpy as np
import pytest

from common.client.types import to_client_error
from common.errors import UnavailableError
from common.features.features import FeatureReceiver
from common.features.wire_types import preprocessing_from_proto
from diptych.v1 import vision_pb2 as pb
from tests.pictures import noise, save
from tests.vision_service.running_service import INFO, PICTURE, WIDTH, FakeEncoder, Service, running
from vision_service.model.encoded_image import DeviceImage


async def encode(service: Service, image: bytes = PICTURE, salt: bytes = b"") -> bytes:
    grid = INFO.preprocessing.patch_grid(100, 60)
    spec = INFO.feature_spec(image, grid=grid, salt=salt)
    buffer = bytearray(spec.num_bytes)
    receiver = FeatureReceiver(spec, memoryview(buffer))
    async for message in service.stub.Encode(pb.EncodeRequest(image=image, salt=salt, request_id="r")):
        receiver.receive(message.SerializeToString())
    receiver.finish()
    return bytes(buffer)


async def refusal(service: Service, **fields: bytes | str) -> tuple[grpc.StatusCode, str, str | None]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in service.stub.Encode(pb.EncodeRequest(**fields)):  # type: ignore[arg-type]
            pass
    error = to_client_error(caught.value)
    return error.code, error.reason, error.field


async def until_pending(service: Service, num_images: int) -> pb.GetLoadResponse:
    async with asyncio.timeout(5):
        while True:
            load = await service.stub.GetLoad(pb.GetLoadRequest())
            if load.pending_images == num_images:
                return load
            await asyncio.sleep(0.005)


async def test_a_picture_becomes_the_features_that_its_bytes_promise() -> None:
    async with running() as service:
        rows = np.frombuffer(await encode(service, salt=b"tenant"), "<f4")
        assert rows.shape == (4 * 7 * WIDTH,)
        assert rows.min() == rows.max() > 0


async def test_the_service_tells_what_it_serves() -> None:
    async with running() as service:
        info = await service.stub.GetModelInfo(pb.VisionServiceGetModelInfoRequest())
    assert info.api_version == "2.0"
    assert info.weights_digest == INFO.weights_digest
    assert info.max_patches == 256
    assert preprocessing_from_proto(info.preprocessing).fingerprint() == INFO.preprocessing.fingerprint()


async def test_what_is_no_picture_is_refused_before_any_work() -> None:
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    async with running() as service:
        assert await refusal(service, image=b"") == (invalid, "IMAGE_UNDECODABLE", "image")
        assert await refusal(service, image=bytes(10**6 + 1)) == (invalid, "IMAGE_TOO_LARGE", "image")
        assert await refusal(service, image=save(noise(9, 9), "BMP")) == (invalid, "IMAGE_FORMAT", "image")
        assert await refusal(service, image=PICTURE[:-100]) == (invalid, "IMAGE_UNDECODABLE", "image")
        assert await refusal(service, image=PICTURE, salt=bytes(65)) == (invalid, "FIELD_TOO_LONG", "salt")
        assert await refusal(service, image=PICTURE, request_id="r" * 65) == (invalid, "FIELD_TOO_LONG", "request_id")
        assert service.encoder.num_images == 0
        await encode(service)


async def test_load_is_told_in_patches_and_bounded() -> None:
    async with running(max_pending_patches=40) as service:
        service.encoder.gate.clear()
        task = asyncio.create_task(encode(service))
        load = await until_pending(service, 1)
        assert (load.pending_patches, load.free_patches) == (28, 12)
        code, reason, _ = await refusal(service, image=save(noise(100, 60, seed=1)))
        assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "ENCODER_QUEUE_FULL")
        service.encoder.gate.set()
        await task
        assert (await until_pending(service, 0)).free_patches == 40


async def test_a_caller_that_leaves_takes_its_image_along() -> None:
    async with running() as service:
        service.encoder.gate.clear()
        tasks = [asyncio.create_task(encode(service, save(noise(100, 60, seed=seed)))) for seed in range(3)]
        await until_pending(service, 3)
        await asyncio.sleep(0.1)  # One is in the encoder's hands now, or in company of the others.
        tasks += [asyncio.create_task(encode(service, save(noise(100, 60, seed=9))))]
        await until_pending(service, 4)
        tasks[3].cancel()
        with suppress(asyncio.CancelledError):
            await tasks[3]
        await until_pending(service, 3)
        service.encoder.gate.set()
        await asyncio.gather(*tasks[:3])
        assert service.encoder.num_images == 3


async def test_many_pictures_at_once_get_their_own_features() -> None:
    pictures = [save(noise(100, 60, seed=seed)) for seed in range(12)]
    async with running() as service:
        alone = [await encode(service, picture) for picture in pictures]
        assert await asyncio.gather(*(encode(service, picture) for picture in pictures)) == alone
        assert len(set(alone)) > 1


async def test_equal_pictures_at_once_are_encoded_once_and_later_not_at_all() -> None:
    async with running(max_kept_bytes=10**6) as service:
        service.encoder.gate.clear()
        tasks = [asyncio.create_task(encode(service)) for _ in range(10)]
        await until_pending(service, 1)
        service.encoder.gate.set()
        assert len(set(await asyncio.gather(*tasks))) == 1
        assert await encode(service) == tasks[0].result()
        assert service.encoder.num_images == 1
        await encode(service, salt=b"another tenant")
        assert service.encoder.num_images == 2


async def test_features_that_are_there_are_sent_while_the_encoder_is_busy() -> None:
    async with running(max_kept_bytes=10**6) as service:
        features = await encode(service)
        service.encoder.gate.clear()
        busy = asyncio.create_task(encode(service, save(noise(100, 60, seed=1))))
        await until_pending(service, 1)
        async with asyncio.timeout(0.5):
            assert await encode(service) == features
        service.encoder.gate.set()
        await busy


async def test_bytes_under_way_are_bounded_and_a_slow_reader_counts() -> None:
    """28 patches of 64 floats are 7 KiB, less than the second picture."""
    async with running(max_pending_bytes=2 * len(PICTURE) + 8000, max_kept_bytes=10**6) as service:
        service.encoder.gate.clear()
        task = asyncio.create_task(encode(service))
        await until_pending(service, 1)
        # The encoder is held up all the while, so this does not wait for it.
        code, reason, _ = await refusal(service, image=save(noise(100, 60, seed=1)))
        assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "ENCODER_MEMORY_FULL")
        service.encoder.gate.set()
        await task
        assert service.budget.held == 0


async def test_of_features_on_the_device_every_callers_own_copy_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, rows = threading.Event(), np.ones((28, WIDTH), "<f4")

    def fetch() -> memoryview:
        assert gate.wait(5)
        return memoryview(rows.tobytes())

    monkeypatch.setattr(FakeEncoder, "_encode", lambda self, image: DeviceImage(fetch))
    async with running(max_kept_bytes=10**6) as service:
        tasks = [asyncio.create_task(encode(service)) for _ in range(3)]
        held = 3 * 2 * len(PICTURE) + (1 + 3) * rows.nbytes
        async with asyncio.timeout(5):
            while service.budget.held != held:
                await asyncio.sleep(0.01)
        gate.set()
        assert await asyncio.gather(*tasks) == [rows.tobytes()] * 3


async def test_a_device_that_is_lost_is_told_of_though_nothing_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch() -> memoryview:
        raise UnavailableError("DEVICE_LOST", "this replica lost its device")

    monkeypatch.setattr(FakeEncoder, "_encode", lambda self, image: DeviceImage(fetch))
    async with running(max_kept_bytes=10**6) as service:
        code, reason, _ = await refusal(service, image=PICTURE)
        assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "DEVICE_LOST")
        assert service.batcher.device_lost.is_set()


async def test_two_hundred_pictures_at_once_are_all_answered_or_refused_at_once() -> None:
    pictures = [save(noise(48, 48, seed=seed)) for seed in range(200)]
    # Room for all 50 admitted ones before the decode worker, so that only the encoder's queue is ever full.
    async with running(max_pending_patches=9 * 50, max_waiting=64) as service:
        service.encoder.gate.clear()
        outcomes = [asyncio.create_task(_outcome(service, picture)) for picture in pictures]
        done, _ = await asyncio.wait(outcomes, timeout=2.0)
        service.encoder.gate.set()
        async with asyncio.timeout(30):
            results = await asyncio.gather(*outcomes)
        assert (results.count("features"), results.count("ENCODER_QUEUE_FULL")) == (50, 150)
        assert len(done) == len(results) - results.count("features")
        await encode(service)


async def _outcome(service: Service, picture: bytes) -> str:
    try:
        async for message in service.stub.Encode(pb.EncodeRequest(image=picture, request_id="r")):
            is_last = message.HasField("end")
        assert is_last
    except grpc.aio.AioRpcError as error:
        told = to_client_error(error)
        assert told.retry_after is not None
        return told.reason
    return "features"
