"""The encoder in the decoder's process keeps the agreement and the errors of the one behind a network."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from common.errors import InternalError, InvalidArgumentError, UnavailableError
from common.features.chunk_copy import Copied, CopyChunk, copy_plainly
from common.features.feature_memory import PageMaker
from common.features.feature_spec import FeatureSpec
from common.image.identity import image_hash
from common.image.preprocessing import PreprocessingMode
from decoder_service.vision.agreement import Expected
from diptych.local_encoder import LocalEncoder
from tests.pictures import LIMITS, noise, preprocessing, save
from vision_service.decoding.decode_pool import DecodePool
from vision_service.decoding.decode_worker import DecodeSettings
from vision_service.decoding.image import Pixels
from vision_service.model.encoded_image import HostImage
from vision_service.model.model_info import EncoderInfo
from vision_service.pipeline.batcher import Batcher
from vision_service.pipeline.byte_budget import ByteBudget
from vision_service.pipeline.feature_cache import FeatureCache
from vision_service.pipeline.pipeline import Pipeline
from vision_service.service import VisionService
from vision_service.telemetry.image_metrics import ImageMetrics

WIDTH = 8
INFO = EncoderInfo(
    model_name="tiny",
    weights_digest=b"d" * 32,
    preprocessing=preprocessing(PreprocessingMode.HF, image_size=256),
    feature_width=WIDTH,
    dtype="float32",
    limits=LIMITS,
)
EXPECTED = Expected(weights_digest=b"d" * 32, feature_width=WIDTH)
PICTURE = save(noise(100, 60))


class Service(VisionService):
    """The vision service over an encoder that is a function."""

    def __init__(self, encode: Callable[[list[Pixels]], list[HostImage]]) -> None:
        settings = DecodeSettings(
            preprocessing=INFO.preprocessing, limits=LIMITS, max_memory_bytes=2 << 30, max_cpu_seconds=5
        )
        self.info = INFO
        self._decode_pool = DecodePool(settings, num_workers=1, max_waiting=16, timeout=5.0)
        self._batcher = Batcher(encode, max_batch_patches=512, max_pending_patches=1000, max_wait=0.01)
        self.budget = ByteBudget(10**7)
        cache = FeatureCache(self.budget, max_kept_bytes=0)
        self.pipeline = Pipeline(
            INFO,
            budget=self.budget,
            cache=cache,
            decode_pool=self._decode_pool,
            batcher=self._batcher,
            metrics=ImageMetrics(CollectorRegistry(), max_batch_patches=512),
        )


def encode(images: list[Pixels]) -> list[HostImage]:
    """The mean of each image, in every value."""
    return [_encode(image) for image in images]


def _encode(image: Pixels) -> HostImage:
    rows = np.full((image.shape[0] * image.shape[1] // 256, WIDTH), image.mean(), "<f4")
    return HostImage.from_rows(memoryview(rows.tobytes()))


def failing(images: list[Pixels]) -> list[HostImage]:
    if any(image.shape[0] > 64 for image in images):
        raise RuntimeError("secret path")
    return encode(images)


@asynccontextmanager
async def encoder_of(
    encode: Callable[[list[Pixels]], list[HostImage]], expected: Expected = EXPECTED, copy: CopyChunk = copy_plainly
) -> AsyncIterator[LocalEncoder]:
    service = Service(encode)
    encoder = LocalEncoder(service, expected=expected, copy=copy)
    await encoder.start()
    await encoder.wait_ready()
    try:
        yield encoder
    finally:
        await encoder.close()
        assert service.budget.held == 0


async def features_of(encoder: LocalEncoder, image: bytes, size: tuple[int, int] = (100, 60)) -> bytes:
    info = encoder.require_info()
    spec = FeatureSpec(
        image_hash=image_hash(
            image, preprocessing=info.preprocessing, weights_digest=info.weights_digest, dtype=info.dtype, salt=b"s"
        ),
        grid=info.preprocessing.patch_grid(*size),
        width=info.feature_width,
        dtype=info.dtype,
    )
    buffer = bytearray(spec.num_bytes)
    await encoder.encode(image, salt=b"s", spec=spec, buffer=memoryview(buffer), request_id="r")
    return bytes(buffer)


async def test_features_arrive_and_the_handshake_is_that_of_a_replica() -> None:
    async with encoder_of(encode) as encoder:
        rows = np.frombuffer(await features_of(encoder, PICTURE), "<f4")
        assert rows.shape == (4 * 7 * WIDTH,)
        assert rows.min() == rows.max() > 0
        info = encoder.require_info()
        assert info.preprocessing.fingerprint() == INFO.preprocessing.fingerprint()
        assert (info.weights_digest, info.feature_width, info.dtype) == (b"d" * 32, WIDTH, "float32")


async def test_the_pages_of_a_place_are_made_before_anything_is_copied_there(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[tuple[str, int]] = []

    async def make(self: PageMaker, place: memoryview) -> None:
        events.append(("made", place.nbytes))

    def copy(place: memoryview, data: memoryview, dtype: str) -> Copied:
        events.append(("copied", place.nbytes))
        return copy_plainly(place, data, dtype)

    monkeypatch.setattr(PageMaker, "make", make)
    async with encoder_of(encode, copy=copy) as encoder:
        num_bytes = len(await features_of(encoder, PICTURE))
    assert events == [("made", num_bytes), ("copied", num_bytes)]


@pytest.mark.parametrize(
    "expected",
    [
        Expected(weights_digest=b"x" * 32, feature_width=WIDTH),
        Expected(weights_digest=b"d" * 32, feature_width=WIDTH + 1),
    ],
)
def test_an_encoder_of_another_model_is_refused(expected: Expected) -> None:
    with pytest.raises(ValueError, match="not of one model"):
        LocalEncoder(Service(encode), expected=expected)


async def test_an_image_that_the_encoder_fails_on_fails_alone() -> None:
    tall = save(noise(60, 100))
    async with encoder_of(failing) as encoder:
        good, bad, undecodable = await asyncio.gather(
            features_of(encoder, PICTURE),
            features_of(encoder, tall, (60, 100)),
            features_of(encoder, PICTURE[:-100]),
            return_exceptions=True,
        )
        assert isinstance(good, bytes)
        assert isinstance(bad, InternalError)
        assert (bad.reason, "secret" in bad.message) == ("ENCODE_FAILED", False)
        assert isinstance(undecodable, InvalidArgumentError)
        assert await features_of(encoder, PICTURE) == good


async def test_features_of_another_image_than_asked_for_are_refused() -> None:
    async with encoder_of(encode) as encoder:
        with pytest.raises(InternalError) as caught:
            await features_of(encoder, PICTURE, (60, 100))
        assert caught.value.reason == "EMBED_INVALID"


async def test_after_the_end_nothing_is_encoded() -> None:
    async with encoder_of(encode) as encoder:
        await encoder.close()
        with pytest.raises(UnavailableError):
            encoder.require_info()
