"""Diptych's own picture path in one process: decoding, encoder, and both with the engine: an engine behind `protocol`.

The parts are those that the services are made of; their processes and the wire between them are left out.
"""

import os
import time
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image

from benchmarks.checkpoints import PREPROCESSING
from benchmarks.peers.ours import in_process_engine
from benchmarks.peers.pictures import prompt, random_pixels
from benchmarks.peers.protocol import serve
from common.checkpoint.checkpoint import open_checkpoint
from common.features.feature_spec import FeatureSpec
from common.image.header import ImageLimits
from common.image.identity import ImageHash
from common.model.devices import find_dtype
from common.model.settings import DtypeChoice, ModelSettings
from common.native.opening import choose_library, weight_types
from common.native.resizing import find_kernels, open_resize
from common.process import freeze_loaded, tune_allocator
from common.version import server_version
from decoder_service.engine.engine import Engine
from decoder_service.engine.prompt_images import PlaceholderRange
from decoder_service.engine.request import Request
from decoder_service.sampling.sampling_params import SamplingParams
from decoder_service.vision.image_encoder import ImageFeatures
from vision_service.decoding.image import Pixels, decode_image, keep_pixel_memory
from vision_service.model.encoded_image import rows_of
from vision_service.model.runner import EncoderRunner
from vision_service.model.weights import load_encoder

_LIMITS = ImageLimits(max_bytes=64 << 20, max_pixels=50_000_000)


def in_process_encoder(model: Path, choice: DtypeChoice = DtypeChoice.AUTO) -> EncoderRunner:
    """An encoder on the CPU, computed by what the vision service would choose."""
    device = torch.device("cpu")
    dtype = find_dtype(choice, device)
    library, _ = choose_library(ModelSettings(model=model, dtype=choice), device=device, dtype=dtype)
    encoder = load_encoder(open_checkpoint(model), device=device, types=weight_types(library, dtype))
    return EncoderRunner(encoder, PREPROCESSING, device=device, dtype=dtype, library=library)


class Worker:
    """The loaded parts."""

    def __init__(self) -> None:
        self._encoder: EncoderRunner | None = None
        self._engine: Engine | None = None
        self._vocab_size, self._dtype = 0, torch.float32
        self._num_requests = 0
        self._kernels = find_kernels()
        self._resize = open_resize(self._kernels)

    def load(self, model: str, max_requests: int, max_tokens: int, dtype: str) -> dict[str, object]:
        """Load encoder and engine."""
        tune_allocator()
        keep_pixel_memory(_LIMITS.max_pixels, whole=self._kernels is not None)
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        checkpoint = open_checkpoint(Path(model))
        self._dtype = find_dtype(DtypeChoice(dtype), torch.device("cpu"))
        self._encoder = in_process_encoder(Path(model), DtypeChoice(dtype))
        self._vocab_size = checkpoint.text_config.vocab_size
        self._engine = in_process_engine(
            Path(model), max_requests=max_requests, max_tokens=max_tokens, dtype=DtypeChoice(dtype)
        )
        freeze_loaded()  # As the services do.
        compute = self._engine.stats().compute
        return {"version": f"diptych {server_version()}, {compute}, torch {torch.__version__}"}

    def encode(self, sizes: list[list[int]], seed: int) -> dict[str, object]:
        """Features of random pictures in one batch; the answer's check is the mean of each picture's features."""
        images: list[Pixels] = list(random_pixels(sizes, seed))
        started_at = time.perf_counter()
        features = self._features(images)
        seconds = time.perf_counter() - started_at
        values = [torch.frombuffer(each, dtype=self._dtype).float() for each in features]
        return {"seconds": seconds, "check": [float(each.abs().mean()) for each in values]}

    def preprocess(self, path: str) -> dict[str, object]:
        """Pixels of a picture's file; the check is the mean of every sixteenth row, which costs next to nothing."""
        data = Path(path).read_bytes()
        started_at = time.perf_counter()
        pixels = decode_image(data, preprocessing=PREPROCESSING, limits=_LIMITS, field="", resize=self._resize)
        return {"seconds": time.perf_counter() - started_at, "check": [float(pixels[::16].mean())]}

    def decode_alone(self, path: str) -> dict[str, object]:
        """Pillow's decoding of a file, without any resizing: what preprocessing cannot do without."""
        data = Path(path).read_bytes()
        started_at = time.perf_counter()
        with Image.open(BytesIO(data)) as image:
            image.load()
        return {"seconds": time.perf_counter() - started_at}

    def answer(self, sizes: list[list[int]], seed: int, max_tokens: int) -> dict[str, object]:
        """Greedy tokens of requests with one picture each, from its pixels on."""
        images: list[Pixels] = list(random_pixels(sizes, seed))
        if self._engine is None or self._encoder is None:
            raise ValueError("no model is loaded")
        started_at = time.perf_counter()
        tokens: dict[str, list[int]] = {}
        for index, (features, (width, height)) in enumerate(zip(self._features(images), sizes, strict=True)):
            request = self._request(width, height, seed + index, max_tokens)
            tokens[request.request_id] = []
            self._engine.submit(request)
            grid = PREPROCESSING.patch_grid(width, height)
            spec = FeatureSpec(
                image_hash=ImageHash(bytes(32)),
                grid=grid,
                width=self._encoder.feature_width,
                dtype=str(self._dtype).removeprefix("torch."),
            )
            arrived = ImageFeatures(spec=spec, data=memoryview(features))
            self._engine.features_arrived(request.request_id, 0, arrived)
        while self._engine.has_work:
            for token in self._engine.step().tokens:
                tokens[token.request_id].append(token.token_id)
        return {"seconds": time.perf_counter() - started_at, "check": list(tokens.values())}

    def _request(self, width: int, height: int, seed: int, max_tokens: int) -> Request:
        self._num_requests += 1
        ids = prompt(width, height, num_text_tokens=28, vocab_size=self._vocab_size, seed=seed)
        grid = PREPROCESSING.patch_grid(width, height)
        return Request(
            request_id=f"request-{self._num_requests}",
            prompt_token_ids=tuple(ids),
            placeholders=(PlaceholderRange(1, grid.height * (grid.width + 1), grid),),
            image_identities=(self._num_requests.to_bytes(32, "little"),),
            sampling=SamplingParams(max_tokens=max_tokens, ignore_eos=True),
            arrival=self._num_requests,
        )

    def _features(self, images: list[Pixels]) -> list[bytearray]:
        if self._encoder is None:
            raise ValueError("no model is loaded")
        return [bytearray(rows_of(each)) for each in self._encoder.encode(images)]


if __name__ == "__main__":
    worker = Worker()
    serve(
        {
            "load": worker.load,
            "encode": worker.encode,
            "preprocess": worker.preprocess,
            "decode_alone": worker.decode_alone,
            "answer": worker.answer,
        }
    )
