"""Puts the decoder service together and runs it.

Knows every part and the order in which they start and stop. Does none of their work.
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

from prometheus_client import CollectorRegistry, ProcessCollector

from common.checkpoint.checkpoint import Checkpoint, open_checkpoint
from common.checkpoint.layout import Part
from common.client.tls import ChannelTlsFiles
from common.image.header import ImageLimits
from common.model.config import PixtralConfig
from common.native.chunks import open_copy
from common.process import freeze_loaded
from common.server.ending import Ending
from common.server.server import GrpcServer
from common.telemetry.tracing import make_tracer
from decoder_service.adapters.adapter_ref import AdapterRef
from decoder_service.adapters.loading import load_adapters
from decoder_service.api.doorkeeper import Doorkeeper
from decoder_service.api.model_info import ModelInfo
from decoder_service.api.servicer import GenerationServicer, ServicerLimits
from decoder_service.cache.feature_store import FeatureStore
from decoder_service.config import DecoderConfig
from decoder_service.engine.admission import AdmissionLimits
from decoder_service.engine.generation import Pace
from decoder_service.engine.host import EngineHost
from decoder_service.engine.watchdog import Watchdog
from decoder_service.engine_builder import build_engine, build_run_config
from decoder_service.prompt.prompt import PromptBuilder, PromptLimits
from decoder_service.prompt.tokenizer import Tokenizer
from decoder_service.prompt.tokenizer_files import find_tokenizer_file, load_fitting_tokenizer
from decoder_service.scheduling.capacity import Capacity
from decoder_service.structured.compiler import Grammars, StructureCompiler
from decoder_service.telemetry.metrics import EngineCollector
from decoder_service.telemetry.request_metrics import RequestMetrics, StepMetrics
from decoder_service.vision.agreement import Expected
from decoder_service.vision.client import VisionClient
from decoder_service.vision.image_encoder import ImageSource
from decoder_service.vision.resolver import VisionResolver, name_of_all
from diptych.v1 import generation_pb2_grpc

EncoderFactory = Callable[[Expected], ImageSource]
"""Makes an encoder that is what a decoder expects. Raises ValueError."""
SERVICE_NAME = "diptych.v1.GenerationService"

_log = logging.getLogger(__name__)


class DecoderService:
    """The loaded service; `run` serves until a signal comes."""

    def __init__(self, config: DecoderConfig, *, make_encoder: EncoderFactory | None = None) -> None:
        """Load everything; `make_encoder` gives an encoder to use in place of the vision services.

        Raises ValueError, CheckpointError among them, with one line that says what is wrong.
        """
        self._config = config
        self._tracer = make_tracer(config.tracing, service_name="diptych-decoder")
        # What cannot be used is known before the weights are read, which may take minutes.
        self._vision_tls = _vision_tls(config)
        checkpoint = open_checkpoint(config.model.model, verify_checksums=config.model.verify_checksums)
        text = checkpoint.text_config
        image_token_id = _image_token_id(checkpoint)
        takes_images = image_token_id is not None
        _check_vision_addresses(config, takes_images=takes_images, has_encoder=make_encoder is not None)
        tokenizer_file = config.tokenizer or find_tokenizer_file(config.model.model)
        tokenizer = load_fitting_tokenizer(
            tokenizer_file, vocabulary_size=text.vocab_size, image_token_id=image_token_id
        )
        run_config = build_run_config(config, checkpoint)
        adapters = load_adapters(config.adapters, run_config, has_vision=takes_images)
        self._engine = build_engine(config, checkpoint, run_config, adapters)
        self._tokenizer = tokenizer
        # Once: it reads all of the encoder's weights.
        digest = checkpoint.digest(Part.VISION) if takes_images else b""
        self._vision: ImageSource | None = None
        if takes_images:
            expected = Expected(weights_digest=digest, feature_width=checkpoint.vision_config.vision_hidden_size)
            make_encoder = make_encoder or partial(_vision_client, config, tls=self._vision_tls)
            self._vision = make_encoder(expected)
        checkpoint.finish_checks()
        self._prompts = PromptBuilder(
            tokenizer,
            vocabulary_size=text.vocab_size,
            limits=PromptLimits(
                max_prompt_tokens=run_config.max_seq_len - 1,
                max_images=config.requests.max_images,
                image=ImageLimits(
                    max_bytes=config.requests.max_image_bytes, max_pixels=config.requests.max_image_pixels
                ),
            ),
        )
        self._info = ModelInfo(
            model_name=config.model.served_name,
            vocabulary_size=text.vocab_size,
            max_model_len=run_config.max_seq_len,
            max_images=config.requests.max_images,
            max_image_bytes=config.requests.max_image_bytes,
            max_image_pixels=config.requests.max_image_pixels,
            max_message_bytes=config.server.max_message_bytes,
            image_token_id=image_token_id,
            end_token_ids=checkpoint.end_token_ids | {tokenizer.eos_id},
            vision_weights_digest=digest,
            adapters={each.name: AdapterRef(index, each.digest, each.name) for index, each in enumerate(adapters)},
        )

    async def run(self, registry: CollectorRegistry | None = None) -> int:
        """Serve until SIGTERM or SIGINT, then let running requests finish; returns the exit status.

        `registry` may have metrics of others that are to be served too.
        """
        registry = registry or CollectorRegistry()
        ProcessCollector(registry=registry)
        server = GrpcServer(self._config.server, registry=registry, service_names=[SERVICE_NAME], tracer=self._tracer)
        if self._vision_tls is not None:
            server.certificates.watch("vision_client", self._vision_tls.files)
        steps = StepMetrics(registry)
        ending = Ending(server, SERVICE_NAME)
        host = EngineHost(self._engine, on_fatal=ending.give_up, on_step=steps.observe)
        engine = self._config.engine
        store = FeatureStore(self._vision, budget_bytes=engine.feature_bytes, caching=engine.feature_caching)
        structures = _structures(self._tokenizer, self._info)
        metrics = RequestMetrics(registry, adapters=self._info.adapters)
        servicer = GenerationServicer(
            host=host,
            store=store,
            encoder=self._vision,
            prompts=self._prompts,
            tokenizer=self._tokenizer,
            info=self._info,
            metrics=metrics,
            structures=structures,
            limits=_servicer_limits(self._config, self._engine.capacity),
        )
        # An encoder in this process has no replicas to count.
        replicas = self._vision if isinstance(self._vision, VisionClient) else None
        registry.register(
            EngineCollector(host, store, replicas, admission=servicer.admission, block_size=engine.block_size)
        )
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(servicer, server.grpc)
        server.ask_first(Doorkeeper(servicer.admission, metrics).check)
        freeze_loaded()
        host.start()
        await server.start()
        watchdog = Watchdog(
            lambda: host.busy_since,
            max_seconds=engine.hang_seconds,
            report=lambda goes_on: server.set_alive(goes_on and host.is_alive),
        )
        tasks = [asyncio.create_task(watchdog.run()), asyncio.create_task(self._announce(server))]
        for task in tasks:
            task.add_done_callback(ending.task_ended)
        try:
            await server.wait_for_termination()
        finally:
            for task in tasks:
                task.cancel()
            await servicer.close()
            if self._vision is not None:
                await self._vision.close()
            await host.stop()
            if structures is not None:
                await structures.close()
            await asyncio.to_thread(self._tracer.close)
        return 1 if ending.has_failed else 0

    async def _announce(self, server: GrpcServer) -> None:
        """Become ready: at once for text alone, else after one handshake. A later outage changes nothing."""
        if self._vision is not None:
            await self._vision.start()
            await self._vision.wait_ready()
        server.set_serving([SERVICE_NAME])
        _log.info("ready", extra={"model": self._info.model_name})


def _servicer_limits(config: DecoderConfig, capacity: Capacity) -> ServicerLimits:
    engine = config.engine
    return ServicerLimits(
        capacity=capacity,
        admission=AdmissionLimits(
            max_requests=engine.max_num_requests + engine.max_queue,
            max_waiting_tokens=engine.max_queue_tokens,
            max_picture_bytes=engine.max_picture_bytes,
        ),
        pace=Pace(interval=engine.stream_interval, max_unread_tokens=engine.max_unread_tokens),
        max_seconds=config.requests.max_seconds,
        max_priority=config.requests.max_priority,
    )


def _structures(tokenizer: Tokenizer, info: ModelInfo) -> StructureCompiler | None:
    """What makes structured output; None where the extra `structured` is not installed."""
    if find_spec("llguidance") is None:
        return None

    def load() -> Grammars:
        from decoder_service.structured.grammar_matcher import GrammarVocabulary

        return GrammarVocabulary(tokenizer, vocabulary_size=info.vocabulary_size, end_token_ids=info.end_token_ids)

    return StructureCompiler(load)


def _check_vision_addresses(config: DecoderConfig, *, takes_images: bool, has_encoder: bool) -> None:
    """Raise ValueError where addresses are lacking, or given for nothing."""
    if config.vision_addresses and not takes_images:
        raise ValueError("--vision-addresses is given, but the model takes no images")
    if takes_images and not config.vision_addresses and not has_encoder:
        raise ValueError("--vision-addresses must be given: the model takes images")


def _vision_client(config: DecoderConfig, expected: Expected, *, tls: ChannelTlsFiles | None) -> VisionClient:
    return VisionClient(
        VisionResolver(config.vision_addresses),
        expected=expected,
        hedge_seconds=config.vision_hedge_seconds,
        tls=tls,
        shared_memory=config.shared_memory,
        copy=open_copy(config.model.compute),
    )


def _vision_tls(config: DecoderConfig) -> ChannelTlsFiles | None:
    vision = config.vision
    if not vision.is_on:
        return None
    name = vision.vision_server_name or name_of_all(config.vision_addresses)
    return ChannelTlsFiles(ca=vision.vision_ca, cert=vision.vision_cert, key=vision.vision_key, server_name=name)


def _image_token_id(checkpoint: Checkpoint) -> int | None:
    return checkpoint.config.image_token_index if isinstance(checkpoint.config, PixtralConfig) else None
