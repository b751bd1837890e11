"""Reads the shape of a model from a checkpoint directory, without opening a tensor.

Knows which file states what. Does not know their keys (see `hf_config` and `native_config`), tensors (see
`checkpoint`) or tokenizers. A value that we cannot honour is an error here, at start, and never a silent
approximation.
"""

from pathlib import Path

from common.checkpoint.files import CheckpointError, CheckpointFormat, find_format, one_line, read_json
from common.checkpoint.hf_config import parse_hf
from common.checkpoint.json_section import Section, file_section
from common.checkpoint.native_config import parse_native, vision_section
from common.image.preprocessing import Preprocessing, PreprocessingMode
from common.model.config import ModelConfig, PixtralVisionConfig

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def read_model_config(directory: Path) -> ModelConfig:
    """Shape of the model in the directory; a PixtralConfig exactly when it sees pictures.

    Raises CheckpointError naming the file and the field.
    """
    layout = find_format(directory)
    name = layout.config_name
    section = file_section(read_json(directory / name), name)
    try:
        return parse_hf(section) if layout is CheckpointFormat.HF else parse_native(section)
    except CheckpointError:
        raise
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{name}: {one_line(error)}") from error


def read_preprocessing(
    directory: Path, vision: PixtralVisionConfig, mode: PreprocessingMode | None = None
) -> Preprocessing:
    """How the checkpoint wants its pictures; `mode` overrules the one that belongs to its format.

    Raises CheckpointError naming the file and the field.
    """
    if find_format(directory) is CheckpointFormat.NATIVE:
        params = file_section(read_json(directory / "params.json"), "params.json")
        section = vision_section(params) or params
        return Preprocessing(
            mode=mode or PreprocessingMode.MISTRAL,
            patch_size=vision.patch_size,
            image_size=section.whole("max_image_size", vision.image_size),
            mean=CLIP_MEAN,
            std=CLIP_STD,
        )
    return _hf_preprocessing(_hf_image_processor(directory), vision, mode or PreprocessingMode.HF)


def read_end_token_ids(directory: Path) -> frozenset[int]:
    """Ids that end a completion, by the checkpoint's own generation settings; empty where it has none.

    Raises CheckpointError naming the file.
    """
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        if (directory / name).is_file():
            section = file_section(read_json(directory / name), name)
            holder = section if section.has("eos_token_id") else section.section("text_config")
            value = holder.get("eos_token_id")
            ids = value if isinstance(value, list) else [] if value is None else [value]
            found.update(holder.with_value("eos_token_id", each).whole("eos_token_id", minimum=0) for each in ids)
    return frozenset(found)


def _hf_image_processor(directory: Path) -> Section:
    """The settings for pictures: a file of their own with transformers 4, a part of another with 5."""
    name = "preprocessor_config.json"
    if (directory / name).is_file():
        return file_section(read_json(directory / name), name)
    name = "processor_config.json"
    content = read_json(directory / name) if (directory / name).is_file() else {}
    return file_section(content, name).section("image_processor")


def _hf_preprocessing(settings: Section, vision: PixtralVisionConfig, mode: PreprocessingMode) -> Preprocessing:
    for key in ("do_resize", "do_rescale", "do_normalize"):
        settings.expect(key, True)
    settings.expect("resample", 3)
    if abs(settings.real("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        raise settings.error("rescale_factor", "is not supported; expected 1 / 255")
    if settings.side("patch_size", vision.patch_size) != vision.patch_size:
        raise settings.error("patch_size", f"is not the encoder's, {vision.patch_size}")
    std = settings.numbers("image_std", CLIP_STD)
    if min(std) <= 0:
        raise settings.error("image_std", "must be over 0")
    return Preprocessing(
        mode=mode,
        patch_size=vision.patch_size,
        image_size=settings.section("size").whole("longest_edge", vision.image_size),
        mean=settings.numbers("image_mean", CLIP_MEAN),
        std=std,
    )
