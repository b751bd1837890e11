"""Who may import whom. Read from the sources, so that an import inside a function counts too."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("common", "vision_service", "decoder_service", "diptych", "training", "deploy")
POLICY = (
    "decoder_service.cache.block_hash",
    "decoder_service.cache.block_manager",
    "decoder_service.cache.prefix_cache",
    "decoder_service.scheduling.capacity",
    "decoder_service.engine.completions",
    "decoder_service.cache.copy_on_write",
    "decoder_service.scheduling.forks",
    "decoder_service.structured.structure",
    "decoder_service.structured.compiler",
    "decoder_service.scheduling.scheduler",
    "decoder_service.scheduling.scheduler_config",
    "decoder_service.scheduling.lookahead",
    "decoder_service.scheduling.room",
    "decoder_service.scheduling.running",
    "decoder_service.scheduling.waiting",
    "decoder_service.scheduling.books",
    "decoder_service.scheduling.step_plan",
    "decoder_service.speculation.drafter",
    "decoder_service.speculation.drafting",
    "decoder_service.speculation.prompt_lookup",
    "decoder_service.scheduling.fair_queue",
    "decoder_service.scheduling.token_counters",
    "decoder_service.engine.caller",
    "decoder_service.engine.bookkeeper",
    "decoder_service.engine.engine",
    "decoder_service.engine.pipeline",
    "decoder_service.engine.request",
    "decoder_service.engine.step",
    "decoder_service.cache.feature_store",
    "decoder_service.engine.image_fetch",
    "decoder_service.engine.host",
    "decoder_service.engine.calls",
    "decoder_service.engine.containment",
    "decoder_service.engine.endings",
    "decoder_service.engine.admission",
    "decoder_service.engine.request_names",
    "decoder_service.engine.watchdog",
    "decoder_service.engine.generation",
    "decoder_service.prompt.prompt",
    "decoder_service.vision.router",
    "decoder_service.vision.resolver",
    "decoder_service.vision.retry_budget",
    "decoder_service.vision.hedging",
    "decoder_service.vision.loop_turns",
    "vision_service.pipeline.batcher",
    "vision_service.pipeline.byte_budget",
    "vision_service.model.encoded_image",
    "vision_service.pipeline.feature_cache",
    "vision_service.pipeline.pipeline",
    "vision_service.decoding.decode_pool",
    "vision_service.decoding.image",
)
SERVICERS = (
    "decoder_service.api.servicer",
    "vision_service.api.servicer",
    "decoder_service.vision.client",
    "decoder_service.vision.fleet",
)
TENSOR_FILES = (
    "common.model.layers",
    "common.model.rope",
    "common.model.aligned_attention",
    "common.native.library",
    "common.native.weights",
    "common.native.opening",
    "common.native.chunks",
    "common.model.attention",
    "common.model.graph_recorder",
    "common.checkpoint.checkpoint",
    "common.checkpoint.pinned_reading",
    "vision_service.model.encoder",
    "vision_service.model.encoder_choice",
    "vision_service.model.encoder_graphs",
    "vision_service.model.segment_attention",
    "vision_service.model.runner",
    "decoder_service.adapters.adapter",
    "decoder_service.adapters.adapter_config",
    "decoder_service.adapters.adapter_files",
    "decoder_service.model.mistral",
    "decoder_service.model.projector",
    "decoder_service.model.kv_cache",
    "decoder_service.model.batch",
    "decoder_service.model.compute",
    "decoder_service.model.compute_choice",
    "decoder_service.model.native_compute",
    "decoder_service.model.weights",
    "decoder_service.model.near_ties",
    "decoder_service.model.tiled_compute",
    "decoder_service.sampling.sampler",
    "decoder_service.sampling.logits_processors",
    "decoder_service.sampling.token_masks",
    "decoder_service.sampling.likelihood",
    "decoder_service.model.runner",
    "decoder_service.model.chosen",
    "decoder_service.model.staging",
    "decoder_service.model.step_queue",
    "decoder_service.model.cuda.compute",
    "decoder_service.model.cuda.decode_graphs",
)
VISION_ORDER = ("decoding", "model", "telemetry", "pipeline", "api")
"""Folders of the vision service: each may import those before it, and none the files above them all."""
FORBIDDEN_EVERYWHERE = {"pickle", "dill", "marshal", "cloudpickle", "shelve"}


def _module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path) -> set[str]:
    """Every module that the file names in an import; `from a import b` names both a and a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


SOURCES = {_module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}
MEASUREMENTS = {_module_name(path): path for path in sorted((ROOT / "benchmarks").rglob("*.py"))}
IMPORTS = {name: _imports(path) for name, path in SOURCES.items()}


def _reach(module: str) -> set[str]:
    """Every module that importing this one brings in, our own and others, by their top names."""
    seen, todo = set(), [module]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo.extend(IMPORTS.get(name, ()))
    return {name.partition(".")[0] for name in seen}


@pytest.mark.parametrize("module", [*POLICY, *SERVICERS])
def test_policy_and_servicers_never_reach_torch(module: str) -> None:
    assert module in SOURCES
    assert "torch" not in _reach(module)


@pytest.mark.parametrize("module", [*POLICY, *TENSOR_FILES])
def test_policy_and_tensor_files_never_reach_grpc(module: str) -> None:
    assert module in SOURCES
    assert not {"grpc", "grpc_health", "grpc_reflection"} & _reach(module)


@pytest.mark.parametrize(
    ("package", "strangers"),
    [
        ("common", {"vision_service", "decoder_service", "diptych", "training"}),
        ("vision_service", {"decoder_service", "training"}),
        ("decoder_service", {"vision_service", "training"}),
        ("diptych", set()),
    ],
)
def test_packages_do_not_import_those_above_or_beside_them(package: str, strangers: set[str]) -> None:
    for name, imports in IMPORTS.items():
        if name.partition(".")[0] == package:
            own = {imported for imported in imports if not imported.startswith("diptych.v1")}  # the stubs
            assert not strangers & {imported.partition(".")[0] for imported in own}, name


def test_nothing_that_services_share_imports_the_server() -> None:
    for name, imports in IMPORTS.items():
        if name.startswith("common.") and not name.startswith("common.server"):
            assert not [imported for imported in imports if imported.startswith("common.server")], name


def test_folders_of_the_vision_service_import_those_below_them_alone() -> None:
    folders = {name.split(".")[1] for name in SOURCES if name.count(".") == 2 and name.startswith("vision_service.")}
    assert folders == set(VISION_ORDER)
    for name, imports in IMPORTS.items():
        package, *rest = name.split(".")
        if package == "vision_service" and len(rest) == 2:
            below = VISION_ORDER[: VISION_ORDER.index(rest[0]) + 1]
            own = {imported.split(".")[1] for imported in imports if imported.startswith("vision_service.")}
            assert own <= set(below), name


def test_no_file_imports_itself_by_way_of_others() -> None:
    """So that each can be read, and tested, before those that use it."""
    inside = {name: {other for other in imports if other in SOURCES} for name, imports in IMPORTS.items()}
    while first := {name for name, imports in inside.items() if not imports & inside.keys()}:
        for name in first:
            del inside[name]
    assert not inside


def test_services_never_import_the_oracles() -> None:
    for name, imports in IMPORTS.items():
        if not name.startswith("training"):
            assert not {"transformers", "cv2", "peft"} & {imported.partition(".")[0] for imported in imports}, name


def test_nobody_imports_what_runs_code_from_data() -> None:
    for name, imports in IMPORTS.items():
        assert not FORBIDDEN_EVERYWHERE & {imported.partition(".")[0] for imported in imports}, name


def test_packages_re_export_nothing() -> None:
    """So that a name is found where it is made, and importing a neighbour brings in nothing else."""
    for package in PACKAGES:
        for path in (ROOT / package).rglob("__init__.py"):
            assert not _imports(path), path


def test_no_test_imports_another_one() -> None:
    """What several of them use is in a file of its own, where whoever changes it sees that."""
    for path in (ROOT / "tests").rglob("*.py"):
        shared = {imported for imported in _imports(path) if re.match(r"tests\.(.+\.)?test_\w+$", imported)}
        assert not shared, path


def test_client_needs_only_grpc_and_protobuf() -> None:
    """In a fresh interpreter, with every other third-party package made unimportable."""
    script = """
import sys
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "numpy", "PIL", "prometheus_client", "transformers",
                                      "mistral_common", "safetensors", "grpc_health", "grpc_status"} or (
            name == "google.rpc" or name.startswith("google.rpc.")):
            raise ImportError(f"{name} is behind the wall")
sys.meta_path.insert(0, Wall())
import common.client.client
"""
    path = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'build/gen')!r}]\n"
    done = subprocess.run([sys.executable, "-c", path + script], capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr


def test_no_module_keeps_state() -> None:
    for name, path in SOURCES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not any(isinstance(node, ast.Global) for node in ast.walk(tree)), name


def test_files_say_first_what_they_know() -> None:
    for name, path in (SOURCES | MEASUREMENTS).items():
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), name


def test_files_and_functions_fit_in_the_eye() -> None:
    for name, path in (SOURCES | MEASUREMENTS).items():
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 250, f"{name}: is there a second noun in it?"


def test_words_of_the_glossary_have_no_synonyms() -> None:
    for name, path in SOURCES.items():
        if name.startswith("decoder_service"):
            assert not re.search(r"\b(num_pages|page_size|page_table|seq_group|req_id)\b", path.read_text()), name


def test_the_check_itself_sees_a_hidden_import(tmp_path: Path) -> None:
    """The negative control: an import inside a function is found."""
    file = tmp_path / "sly.py"
    file.write_text("def f():\n    from torch import nn\n    return nn\n")
    assert {"torch", "torch.nn"} <= _imports(file)
