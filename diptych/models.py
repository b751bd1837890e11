"""Finds out what a model directory holds.

Knows where the demo model lies, and whether a checkpoint understands pictures. Does not load weights.
"""

from pathlib import Path

from common.checkpoint.config import read_model_config
from common.model.config import PixtralConfig


def demo_model() -> Path:
    """The checkpoint directory of the demo model: beside this package in a checkout, inside it once installed."""
    here = Path(__file__).resolve().parent
    return (
        next((place for place in (here.parent, here) if (place / "models" / "demo").is_dir()), here) / "models" / "demo"
    )


def understands_images(model: Path) -> bool:
    """Whether a checkpoint has a patch encoder. Raises ValueError where it cannot be read."""
    return isinstance(read_model_config(model), PixtralConfig)
