"""The encoder's weights on their device.

Knows the module and that a checkpoint fills it. Does not know how it is computed with.
"""

import torch

from common.checkpoint.checkpoint import Checkpoint
from common.checkpoint.layout import Part
from common.model.weight_types import WeightTypes
from vision_service.model.encoder import PixtralVisionModel


def load_encoder(checkpoint: Checkpoint, *, device: torch.device, types: WeightTypes) -> PixtralVisionModel:
    """Load the encoder, and nothing else of the model. Raises CheckpointError."""
    with torch.device("meta"):
        model = PixtralVisionModel(checkpoint.vision_config)
    checkpoint.load(Part.VISION, model, device=device, types=types)
    return model.eval()
