"""The settings that say which model a service runs, and on what; both services have them.

Knows names and defaults. Does not know torch or files.
"""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from common.settings import setting


class DtypeChoice(Enum):
    """Type of weights and activations."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """What is served, and on what."""

    model: Path = setting(help="checkpoint directory")
    model_name: str = setting("", help="name to serve it under; the directory's name where empty")
    device: str = setting("cpu", help="cpu, cuda or cuda:N")
    dtype: DtypeChoice = setting(DtypeChoice.AUTO, help="type of weights; auto is float32 on cpu, bfloat16 on cuda")
    deterministic: bool = setting(
        False, help="the same answer, bit for bit, whatever else is computed beside it; slower"
    )
    verify_checksums: bool = setting(False, help="check the files against the model's SHA256SUMS while they load")

    @property
    def served_name(self) -> str:
        """The name that callers see."""
        return self.model_name or self.model.resolve().name
