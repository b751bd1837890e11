"""How an adapter is to be read: the adapter_config.json that PEFT writes beside the tensors.

Knows the fields and which of them we compute. Does not know tensors. What PEFT can do besides plain LoRA it asks
for by a field that is null, false or empty otherwise, so every such field is refused, also one that is yet to come.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from common.checkpoint.files import read_json
from common.checkpoint.json_section import Section, file_section
from common.checkpoint.safetensors_file import shown

_READ = frozenset({"peft_type", "bias", "init_lora_weights", "use_rslora", "fan_in_fan_out"})
_READ_NUMBERS = frozenset({"r", "lora_alpha", "rank_pattern", "alpha_pattern"})
_WITHOUT_EFFECT = frozenset(
    {
        # Of where the adapter comes from.
        "auto_mapping",
        "base_model_name_or_path",
        "inference_mode",
        "peft_version",
        "revision",
        "task_type",
        # Of training.
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        # Which modules are changed is what the tensors say.
        "exclude_modules",
        "layers_pattern",
        "layers_to_transform",
        "target_modules",
        # Options of what is refused when it is asked for.
        "megatron_core",
        "qalora_group_size",
    }
)
_STARTS = (True, False, "eva", "gaussian", "mica", "orthogonal")
"""Ways to start training that leave the model's own weights alone; PiSSA, OLoRA, CorDA and LoftQ change them."""

_T = TypeVar("_T")
_Patterns = tuple[tuple[re.Pattern[str], _T], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """Rank and scale of every module, which PEFT calls by its name in the model: model.layers.0.mlp.up_proj."""

    rank: int
    alpha: float
    rank_patterns: _Patterns[int] = ()
    alpha_patterns: _Patterns[float] = ()
    is_rank_stabilised: bool = False

    def rank_of(self, module: str) -> int:
        """Rows of the module's lora_A."""
        return _first_match(self.rank_patterns, module, self.rank)

    def scale_of(self, module: str) -> float:
        """Factor on the module's change."""
        rank = self.rank_of(module)
        return _first_match(self.alpha_patterns, module, self.alpha) / (
            math.sqrt(rank) if self.is_rank_stabilised else rank
        )


def read_adapter_config(path: Path) -> AdapterConfig:
    """Read the file. Raises CheckpointError for anything but LoRA as we compute it."""
    content = read_json(path)
    section = file_section(content, path.name)
    if section.get("peft_type") is None:
        raise section.error("peft_type", "is missing; expected 'LORA'")
    section.expect("peft_type", "LORA")
    section.expect("bias", "none")
    section.expect("fan_in_fan_out", False)
    section.expect("init_lora_weights", *_STARTS)
    _refuse_the_rest(content, section)
    return AdapterConfig(
        rank=section.whole("r"),
        alpha=section.real("lora_alpha"),
        rank_patterns=_patterns(section, "rank_pattern", Section.whole),
        alpha_patterns=_patterns(section, "alpha_pattern", Section.real),
        is_rank_stabilised=section.flag("use_rslora", False),
    )


def _refuse_the_rest(content: Mapping[str, Any], section: Section) -> None:
    for key in sorted(content.keys() - _READ - _READ_NUMBERS - _WITHOUT_EFFECT):
        if content[key]:
            raise section.error(shown(key), f"{shown(content[key])} is not supported; expected null, false or empty")


def _patterns(section: Section, key: str, read: Callable[[Section, str], _T]) -> _Patterns[_T]:
    """Values by pattern, in the order of the file. Raises CheckpointError."""
    inner = section.section(key)
    patterns = []
    for text, value in (section.get(key) or {}).items():
        try:
            # PEFT's own rule: the pattern is a whole name or the end of one, from a dot on.
            pattern = re.compile(rf"(.*\.)?({text})$")
        except (re.error, OverflowError, RecursionError):
            raise section.error(key, f"has {shown(text)!r}; expected a regular expression") from None
        patterns.append((pattern, read(inner.with_value(shown(text), value), shown(text))))
    return tuple(patterns)


def _first_match(patterns: _Patterns[_T], module: str, default: _T) -> _T:
    return next((value for pattern, value in patterns if pattern.match(module)), default)
