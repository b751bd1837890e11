"""The demo model in Mistral's own format answers as it does in Hugging Face's."""

import subprocess
from pathlib import Path

import pytest

from common.checkpoint.convert import convert_checkpoint
from common.checkpoint.files import CheckpointFormat
from common.client.client import DiptychClient
from tests.end_to_end.questions import question
from tests.end_to_end.services import DEMO_MODEL, decoder_service, vision_service


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("native") / "model"
    convert_checkpoint(DEMO_MODEL, directory, CheckpointFormat.NATIVE)
    names = sorted(path.name for path in directory.iterdir())
    sums = subprocess.run(["sha256sum", *names], cwd=directory, capture_output=True, check=True)  # noqa: S603, S607
    (directory / "SHA256SUMS").write_bytes(sums.stdout)
    return directory


def test_both_formats_give_the_same_ids(client: DiptychClient, native: Path) -> None:
    """With checksums on, and with the same preprocessing, which otherwise belongs to the format."""
    prompts = [question(task, index)[0] for task in ("number", "shapes") for index in range(4)]
    expected = [client.complete(prompt, timeout=30, max_tokens=32).token_ids for prompt in prompts]
    with (
        vision_service("--verify-checksums", "--preprocessing", "hf", model=native) as vision,
        decoder_service("--verify-checksums", "--num-blocks", "256", vision=vision.address, model=native) as decoder,
    ):
        decoder.wait_serving()
        with DiptychClient(decoder.address) as other:
            assert [other.complete(prompt, timeout=30, max_tokens=32).token_ids for prompt in prompts] == expected
