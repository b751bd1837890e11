"""Settings of `diptych up`.

Knows names, defaults, and how one text speaks of several services. Starts nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.model.settings import DtypeChoice, check_device
from common.server.config import check_host
from common.server.ports import LAST_PORT
from common.settings.settings import setting
from diptych.models import demo_model

ROLES: Final = ("vision", "decoder")


@dataclass(frozen=True, slots=True, kw_only=True)
class UpConfig:
    """What to run."""

    model: Path | None = setting(None, help="checkpoint directory", unset="the demo model")
    host: str = setting("127.0.0.1", help="address that the decoder service listens on")
    port: int = setting(50051, help="its port; 0 takes a free one", minimum=0, maximum=LAST_PORT)
    metrics_port: int | None = setting(
        None,
        help="metrics port of the decoder service, the next ones being the vision replicas'; 0 takes free ones",
        minimum=0,
        maximum=LAST_PORT,
    )
    vision_replicas: int = setting(1, help="vision services to start", minimum=1, maximum=64)
    local_vision: bool = setting(False, help="encode pictures in the decoder's own process, for one GPU or few cores")
    device: str | None = setting(None, help="device of all services, or vision=DEVICE,decoder=DEVICE")
    dtype: str | None = setting(
        None,
        help="type that all services compute in, such as bfloat16, or vision=TYPE,decoder=TYPE",
    )
    deterministic: bool = setting(
        False, help="the same answer, bit for bit, whatever else is computed beside it; slower"
    )
    vision_config: Path | None = setting(None, help="YAML file of settings for the vision services")
    decoder_config: Path | None = setting(None, help="YAML file of settings for the decoder service")
    verify_checksums: bool = setting(False, help="check the files against the model's SHA256SUMS while they load")
    start_seconds: float = setting(600.0, help="longest time until all are ready", minimum=1, maximum=86400)

    def __post_init__(self) -> None:
        check_host(self.host)
        parse_devices(self.device)
        parse_dtypes(self.dtype)
        if self.local_vision and (self.vision_replicas != 1 or self.vision_config is not None):
            raise ValueError("--local-vision starts no vision service: leave out --vision-replicas and --vision-config")

    @property
    def model_or_demo(self) -> Path:
        """The checkpoint directory to serve; settings do not name that of the demo model, so that they can travel."""
        return self.model or demo_model()


def parse_devices(text: str | None) -> Mapping[str, str]:
    """The device of each role that has one. Raises ValueError for a role or a device that does not exist."""
    devices = _by_role(text, "--device", "DEVICE")
    for device in devices.values():
        check_device(device)
    return devices


def parse_dtypes(text: str | None) -> Mapping[str, str]:
    """The type of each role that has one. Raises ValueError for a role or a type that does not exist."""
    dtypes = _by_role(text, "--dtype", "TYPE")
    known = [choice.value for choice in DtypeChoice]
    for dtype in dtypes.values():
        if dtype not in known:
            raise ValueError(f"--dtype must be one of {', '.join(known)}, got {dtype!r}")
    return dtypes


def _by_role(text: str | None, flag: str, word: str) -> Mapping[str, str]:
    if text is None:
        return {}
    if "=" not in text:
        return dict.fromkeys(ROLES, text)
    values = dict(part.strip().split("=", 1) for part in text.split(",") if "=" in part)
    if len(values) != len(text.split(",")) or not values.keys() <= set(ROLES):
        raise ValueError(f"{flag} must be {word} or vision={word},decoder={word}, got {text!r}")
    return values
