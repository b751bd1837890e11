"""The security rules of SECURITY.md that are about the sources, and the rest of what that page promises.

Most are about what must not be in the sources, so they read the sources; each such reader has a negative control.
"""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from packaging.version import Version

from common.server.config import ServerConfig
from diptych.v1 import generation_pb2, vision_pb2

ROOT = Path(__file__).parents[1]
PACKAGES = ("common", "vision_service", "decoder_service", "diptych", "training", "benchmarks")
SERVED = ("common", "vision_service", "decoder_service", "diptych")
BANNED_IMPORTS = {"pickle", "dill", "marshal", "cloudpickle", "shelve", "joblib", "pty", "telnetlib", "xmlrpc"}
BANNED_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.save", "torch.load", "torch.hub.load",
    "yaml.load", "yaml.unsafe_load", "yaml.full_load", "numpy.load", "np.load", "tempfile.mktemp",
    "json_format.Parse", "json_format.ParseDict", "ssl._create_unverified_context",
}  # fmt: skip
BANNED_KEYWORDS = {("shell", True), ("trust_remote_code", True), ("allow_pickle", True), ("weights_only", False)}
"""Keyword arguments that no call may have, wherever."""

FLOORS = {
    "pillow": "12.3.0",
    "protobuf": "6.33.5",
    "grpcio": "1.66",
    "torch": "2.10",
    "jinja2": "3.1.6",
    "safetensors": "0.5",
    "pyyaml": "6.0",
}
"""Oldest versions without a known hole that we would be open to."""


def sources(*packages: str) -> Iterator[tuple[str, ast.Module]]:
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))


def found_in(tree: ast.Module) -> set[str]:
    """The banned things that a module does."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.partition(".")[0] in BANNED_IMPORTS}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in BANNED_IMPORTS:
            found.add(str(node.module))
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            found |= {name} & BANNED_CALLS
            for keyword in node.keywords:
                value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                if (keyword.arg, value) in BANNED_KEYWORDS:
                    found.add(f"{keyword.arg}={value!r}")
    return found


def test_nothing_that_is_served_runs_code_from_data() -> None:
    """R1, R16, R19."""
    for name, tree in sources(*SERVED):
        assert not found_in(tree), name


def test_training_reads_its_own_files_without_running_code_from_them() -> None:
    """It may keep its state as torch does, and must then say weights_only; nobody serves from these files."""
    for name, tree in sources("training", "benchmarks"):
        assert found_in(tree) <= {"torch.save", "torch.load"}, name
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert any(keyword.arg == "weights_only" for keyword in node.keywords), name


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "def f():\n    from dill import loads",
        "eval('1')",
        "import torch\ntorch.load('x', weights_only=True)",
        "import yaml\nyaml.load(text, Loader=None)",
        "import subprocess\nsubprocess.run('x', shell=True)",
        "AutoModel.from_pretrained('x', trust_remote_code=True)",
    ],
)
def test_the_reader_sees_what_is_banned(text: str) -> None:
    assert found_in(ast.parse(text))


def test_no_check_is_an_assert() -> None:
    """R16: `python -O` would leave it out."""
    for name, tree in sources(*PACKAGES):
        assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree)), name


REQUESTS = [
    method.input_type
    for file in (generation_pb2.DESCRIPTOR, vision_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
    for method in service.methods
]


def reachable(message: Any, above: tuple[str, ...] = ()) -> Iterator[Any]:  # noqa: ANN401 - as protobuf has it
    """All fields that a request can have, at any depth. Fails for a message that can hold itself."""
    assert message.full_name not in above, f"{message.full_name} is recursive"
    for field in message.fields:
        yield field
        if field.message_type is not None:
            yield from reachable(field.message_type, (*above, message.full_name))


def test_requests_have_neither_recursion_nor_fields_of_any_type() -> None:
    """A23 of the rules: nothing that a parser could be led through without end."""
    for request in REQUESTS:
        for field in reachable(request):
            name = field.message_type.full_name if field.message_type else ""
            assert not name.startswith("google.protobuf."), field.full_name


def test_callers_send_no_bytes_but_pictures_and_a_salt() -> None:
    """R3: no tensors, no embeddings."""
    fields = {
        field.full_name
        for request in REQUESTS
        for field in reachable(request)
        if field.type == FieldDescriptor.TYPE_BYTES
    }
    assert fields <= {
        "diptych.v1.Image.data",
        "diptych.v1.GenerateRequest.cache_salt",
        "diptych.v1.EncodeRequest.image",
        "diptych.v1.EncodeRequest.salt",
        # Proves that the decoder can read the shared memory that it asks to have filled; never a tensor.
        "diptych.v1.EncodeRequest.shared_memory_token",
    }


def test_no_request_names_a_place_to_fetch_from() -> None:
    """R12."""
    for request in REQUESTS:
        for field in reachable(request):
            assert not re.search(r"ur[il]|href|host|path|file|endpoint", field.name), field.full_name


def test_tokens_and_digests_are_compared_in_constant_time() -> None:
    """R15."""
    text = (ROOT / "common/security/token_file.py").read_text()
    assert "hmac.compare_digest" in text
    assert not re.search(r"digest\s*[=!]=|[=!]=\s*\w*digest", text)


def test_no_service_waits_for_callers_on_every_interface_unless_told() -> None:
    """A1: what is not asked for is not reachable, and tells nothing of itself."""
    config = ServerConfig()
    assert (config.host, config.reflection, config.metrics_port, config.health_port) == ("127.0.0.1", False, None, None)
    options = dict(config.channel_options)
    assert options["grpc.so_reuseport"] == 0
    assert options["grpc.max_concurrent_streams"] <= 100
    assert options["grpc.max_receive_message_length"] <= 64 << 20
    assert options["grpc.max_allowed_incoming_connections"] <= 1024
    assert not any("zerocopy" in name for name in options)


def test_every_rule_stands_in_the_document_whose_tests_are_looked_for() -> None:
    """`test_named_tests` holds each row to tests that exist."""
    rows = re.findall(r"^\| (R\d+) \|.*`tests/", (ROOT / "SECURITY.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == [f"R{number}" for number in range(1, 21)]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked() -> dict[str, Version]:
    """Names and versions of the lock, in whatever form it writes them."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    found = re.findall(r"^([A-Za-z0-9][\w.-]*)==([^\s;\\]+)", text, re.MULTILINE)
    return {normal(name): Version(version) for name, version in found}


@pytest.mark.parametrize("name", FLOORS)
def test_versions_with_known_holes_are_neither_locked_nor_allowed(name: str) -> None:
    assert locked()[name] >= Version(FLOORS[name])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lowest = [
        Version(match[1])
        for requirement in project["dependencies"]
        if normal(re.split(r"[<>=!~ ;\[]", requirement)[0]) == name and (match := re.search(r">=([\w.]+)", requirement))
    ]
    assert lowest
    assert min(lowest) >= Version(FLOORS[name])
    assert f"| {name} |" in (ROOT / "SECURITY.md").read_text(), "SECURITY.md lists the floors"
