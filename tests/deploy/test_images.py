"""The Dockerfile is clean, its commands work, and what they make serves as the manifests say.

No engine is asked for: its commands run in folders (see `deploy.image_steps`), with dependencies borrowed.
"""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from common.security.token_file import hash_token
from deploy.dockerfile import DOCKERFILE, image_environment, lineage, read_stages
from deploy.image_steps import CONTEXT, Builder
from tests.certificates import Authority

HADOLINT = Path(sys.executable).with_name("hadolint")


def _hadolint(path: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([str(HADOLINT), str(path)], capture_output=True, text=True, check=False)  # noqa: S603


def test_hadolint_finds_nothing() -> None:
    done = _hadolint(DOCKERFILE)
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_finds_what_is_wrong(tmp_path: Path) -> None:
    """The negative control."""
    worse = tmp_path / "Dockerfile"
    worse.write_text(
        DOCKERFILE.read_text().replace("--no-install-recommends ", "").replace("WORKDIR /src", "RUN cd /src")
    )
    assert {"DL3015", "DL3003"} <= set(re.findall(r"DL\d+", _hadolint(worse).stdout))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("target", ["vision", "decoder"])
def test_images_run_as_nobody_without_installers(target: str, device: str) -> None:
    stages = read_stages({"DEVICE": device})
    steps = [step for stage in lineage(stages, target) for step in stage.instructions]
    assert [step.text for step in steps if step.word == "USER"] == ["65532:65532"]
    assert [step.text for step in steps if step.word == "WORKDIR"] == ["/tmp"]  # noqa: S108 - the image's
    environment = image_environment(stages, target, {"PATH": "/usr/bin"})
    assert environment["PATH"] == "/opt/diptych/bin:/usr/bin"
    assert (environment["HOME"], environment["PYTHONSAFEPATH"]) == ("/tmp", "1")  # noqa: S108
    runs = " ".join(step.text for step in steps if step.word == "RUN")
    assert "uninstall --yes pip" in runs
    assert ("gcc" in runs) == (device == "cuda")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_is_ours_is_a_small_layer_upon_a_large_one_that_stays(device: str) -> None:
    """A new version leaves the layer of dependencies as it is: nothing of ours is looked at before it is made. Kernels,
    which take minutes to build, depend on their own folder alone, and no model but the demo is looked at."""
    stages = read_stages({"DEVICE": device})

    def copied(name: str) -> list[str]:
        steps = [step for stage in lineage(stages, name) for step in stage.instructions]
        return [step.text for step in steps if step.word == "COPY"]

    assert copied("dependencies") == [f"deploy/docker/{device}.hashes ./"]
    assert copied("kernels") == ["common/native ./common/native"]
    assert [text for text in copied("wheel") if "models" in text] == ["models/demo ./models/demo"]
    assert copied("vision") == copied("decoder") == [
        "--from=dependencies /opt/diptych /opt/diptych",
        "--from=application /ours /opt/diptych",
    ]  # fmt: skip


def test_images_are_labelled_with_the_version_that_they_hold() -> None:
    project = tomllib.loads((CONTEXT / "pyproject.toml").read_text())["project"]
    labels = [
        step.text for stage in lineage(read_stages(), "vision") for step in stage.instructions if step.word == "LABEL"
    ]
    assert labels == [
        f"org.opencontainers.image.version={project['version']} org.opencontainers.image.licenses={project['license']}"
    ]


def test_images_are_made_of_what_the_context_holds() -> None:
    """What is copied exists and is not kept out, and tests and secrets are kept out."""
    ignored = (CONTEXT / ".dockerignore").read_text().split()
    for stage in read_stages().values():
        for step in stage.instructions:
            if step.word == "COPY" and "--from" not in step.text:
                for origin in step.text.split()[:-1]:
                    assert (CONTEXT / origin).exists()
                    assert origin not in ignored
    assert {".git", "tests", "build"} <= set(ignored)


def test_what_is_copied_later_joins_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with an engine: a folder goes into one that is there, not below it."""
    file = tmp_path / "Dockerfile"
    file.write_text(
        "FROM scratch AS first\nWORKDIR /made\nCOPY LICENSE ./\n"
        "FROM scratch AS second\nWORKDIR /made\nCOPY NOTICE ./\n"
        "FROM scratch AS both\nCOPY --from=first /made /opt\nCOPY --from=second /made /opt\n"
    )
    monkeypatch.setattr("deploy.image_steps.read_stages", lambda arguments: read_stages(arguments, file))
    root = Builder(tmp_path, arguments={}).build("both")
    assert {path.name for path in (root / "opt").iterdir()} == {"LICENSE", "NOTICE"}


def test_a_failing_command_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: the runner stops where an engine would."""
    file = tmp_path / "Dockerfile"
    file.write_text("FROM scratch AS base\nWORKDIR /src\nCOPY LICENSE ./\nRUN test -s LICENSE && test -e NOTICE\n")
    monkeypatch.setattr("deploy.image_steps.read_stages", lambda arguments: read_stages(arguments, file))
    with pytest.raises(subprocess.CalledProcessError):
        Builder(tmp_path, arguments={}).build("base")
    assert (tmp_path / "base/src/LICENSE").exists()


@pytest.mark.timeout(600)
def test_pods_of_the_demo_overlay_answer_about_pictures(tmp_path: Path) -> None:
    """From the wheel, outside the checkout, with the manifests' own words, in plain text and under TLS; as root also
    as the manifests' user, on a read-only root, in a network of their own."""
    environment = {**os.environ, "PYTHONPATH": f"{CONTEXT}:{CONTEXT / 'build/gen'}"}
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "deploy.try_manifests", f"--secrets={_make_secrets(tmp_path)}"],
        env=environment, cwd=CONTEXT, capture_output=True, text=True, check=False, timeout=580,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    how = "confined" if os.geteuid() == 0 else "not confined: only root can"
    assert re.findall(r"^all ended with 0.*$", done.stdout, re.MULTILINE) == [
        f"all ended with 0; {how}",
        f"all ended with 0 under TLS; {how}",
    ]


def _make_secrets(folder: Path) -> Path:
    """What the components `tls` and `tokens` need; the caller here has no name for the decoder but its address."""
    authority = Authority(folder / "authority")
    secrets = folder / "secrets"
    for service, *others in (("vision",), ("decoder", "DNS:generation.diptych.svc", "IP:127.2.0.1")):
        leaf = authority.leaf(service, names=[f"DNS:{service}.diptych.svc", *others])
        target = secrets / f"{service}-tls"
        target.mkdir(parents=True)
        for source, name in ((leaf.cert, "tls.crt"), (leaf.key, "tls.key"), (authority.ca, "ca.crt")):
            (target / name).write_bytes(source.read_bytes())
            (target / name).chmod(0o644)
    (secrets / "token").write_text("open sesame")
    (secrets / "diptych-tokens").mkdir()
    (secrets / "diptych-tokens" / "tokens").write_text(f"{hash_token('open sesame').hex()} test\n")
    return secrets
