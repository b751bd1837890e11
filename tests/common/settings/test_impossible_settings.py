"""What cannot be together is known from the settings alone, in one line, before a model is read for minutes."""

import pytest

from common.settings.settings import Parser
from common.settings.sources import add_config_arguments, load
from common.settings.values import SettingError
from decoder_service.config import DecoderConfig
from vision_service.config import VisionConfig

CONFIGS = {"vision": VisionConfig, "decoder": DecoderConfig}
NOWHERE = "--model=/nowhere"


def config_of(service: str, *flags: str) -> object:
    parser = Parser(prog=service)
    add_config_arguments(parser, CONFIGS[service])
    return load(CONFIGS[service], parser.parse_args([NOWHERE, *flags]), environment={}).config


BOTH = [
    ("--device=tpu", "--device 'tpu' is not supported; use cpu, cuda or cuda:N"),
    ("--compute=native --device=cuda", "--compute native needs --device cpu"),
    ("--compute=native --dtype=float16", "--compute native needs --device cpu and no --dtype float16"),
    ("--port=9090 --metrics-port=9090", "--port, --health-port and --metrics-port must differ"),
    ("--host=", "--host '' names no address; 0.0.0.0 is every interface"),
    ("--tls-cert=a", "--tls-cert and --tls-key go together"),
    ("--tls-client-ca=a", "--tls-client-ca needs --tls-cert"),
    ("--metrics-client-ca=a", "--metrics-client-ca needs --tls-cert"),
    ("--allowed-clients=a", "--allowed-clients needs --tls-client-ca"),
    ("--calls-per-minute=9", "limits for each caller need --auth-tokens or --tls-client-ca"),
    ("--max-image-bytes=67108864", "--max-image-bytes 67108864 does not fit into --max-message-bytes 67108864"),
    ("--otlp-endpoint=ftp://collector:21", "--otlp-endpoint 'ftp://collector:21' is not http://HOST:PORT"),
    ("--otlp-endpoint=http://", "--otlp-endpoint 'http://' is not http://HOST:PORT"),
]
DECODER = [
    ("--max-num-batched-tokens=63", "--max-num-batched-tokens 63 is below --max-num-requests 64"),
    ("--max-picture-bytes=99 --max-image-bytes=100", "--max-image-bytes 100 does not fit into --max-picture-bytes 99"),
    ("--quantize=int8 --device=cuda:1", "--quantize int8 needs the kernels"),
    ("--quantize=int8 --dtype=float16", "--quantize int8 needs the kernels"),
    ("--quantize=int8 --compute=torch", "--quantize int8 needs the kernels"),
    ("--quantize=int8 --kv-cache-dtype=fp8", "the kernels know no 8-bit floats"),
    ("--quantize=fp8 --compute=native", "the kernels know no 8-bit floats"),
    ("--quantize=fp8 --device=cuda --dtype=float16", "--quantize fp8 needs --dtype bfloat16 on a GPU, not float16"),
    ("--attention-backend=torch", "--attention-backend torch is for --device cuda"),
    ("--attention-backend=triton --device=cuda --deterministic", "without --compute torch or --deterministic"),
    ("--attention-backend=flashinfer --device=cuda --compute=torch", "--attention-backend flashinfer is for --device"),
    ("--vision-addresses=vision:50052,vision", "--vision-addresses: 'vision' is not HOST:PORT"),
    ("--vision-cert=a", "--vision-cert and --vision-key go together"),
    ("--vision-server-name=a", "--vision-server-name needs --vision-tls or --vision-ca"),
    ("--overlap --num-speculative-tokens=1", "--overlap and --num-speculative-tokens do not go together"),
]


@pytest.mark.parametrize(
    ("service", "flags", "words"),
    [(service, *case) for service in CONFIGS for case in BOTH] + [("decoder", *case) for case in DECODER],
)
def test_what_cannot_be_is_one_line_that_names_the_flags(service: str, flags: str, words: str) -> None:
    with pytest.raises(SettingError) as raised:
        config_of(service, *flags.split())
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("service", "flags"),
    [
        ("decoder", "--max-num-batched-tokens=64 --quantize=int8 --dtype=float32"),
        ("decoder", "--compute=native --quantize=int8 --vision-addresses=dns:///vision:50052,[::1]:50053"),
        ("decoder", "--quantize=fp8 --kv-cache-dtype=fp8 --device=cuda"),
        ("decoder", "--quantize=fp8"),
        ("decoder", "--overlap=false --num-speculative-tokens=64"),
        ("decoder", "--overlap --num-speculative-tokens=0"),
        ("decoder", "--device=cuda:1 --dtype=bfloat16 --otlp-endpoint=https://collector.tracing.svc:4317"),
        ("vision", "--device=cuda --compute=torch --otlp-endpoint=[::1]:4317"),
        ("vision", "--compute=native --otlp-endpoint=http://collector:4317/"),
    ],
)
def test_what_can_be_is_taken(service: str, flags: str) -> None:
    """The negative control."""
    config_of(service, *flags.split())
