"""The decoder's weights on their device.

Knows which modules there are and that a checkpoint fills them. Does not know how they are computed with.
"""

import torch

from common.checkpoint import Checkpoint
from common.checkpoint_layout import Part
from common.model_config import PixtralConfig
from decoder_service.model import MistralForCausalLM
from decoder_service.projector import Projector


class DecoderModel:
    """The decoder's weights, with the projector's if the model takes images."""

    def __init__(self, checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype) -> None:
        """Load the weights. Raises CheckpointError."""
        self.config = checkpoint.text_config
        self.device = device
        self.dtype = dtype
        with torch.device("meta"):
            self.decoder = MistralForCausalLM(self.config)
            self.projector = Projector(checkpoint.config) if isinstance(checkpoint.config, PixtralConfig) else None
        checkpoint.load(Part.DECODER, self.decoder, device=device, dtype=dtype)
        if self.projector is not None:
            checkpoint.load(Part.PROJECTOR, self.projector, device=device, dtype=dtype)
