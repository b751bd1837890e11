"""The decoder's weights on their device.

Knows which modules there are and that a checkpoint fills them. Does not know how they are computed with.
"""

from dataclasses import dataclass

import torch

from common.checkpoint.checkpoint import Checkpoint
from common.checkpoint.layout import Part
from common.model.config import MistralConfig, PixtralConfig
from common.model.weight_types import WeightTypes
from decoder_service.adapters.adapter import Adapter
from decoder_service.model.fp8 import load_rounded
from decoder_service.model.mistral import MistralForCausalLM
from decoder_service.model.projector import Projector


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderModel:
    """The decoder's weights, with the projector's if the model takes images."""

    config: MistralConfig
    device: torch.device
    dtype: torch.dtype
    decoder: MistralForCausalLM
    projector: Projector | None
    adapters: tuple[Adapter, ...] = ()
    """What requests may ask for, by their places here."""

    @staticmethod
    def load(
        checkpoint: Checkpoint,
        *,
        device: torch.device,
        types: WeightTypes,
        in_fp8: bool = False,
    ) -> "DecoderModel":
        """Load the weights. Raises CheckpointError.

        With `in_fp8` those of layers' products are rounded.
        """
        with torch.device("meta"):
            decoder = MistralForCausalLM(checkpoint.text_config)
            projector = Projector(checkpoint.config) if isinstance(checkpoint.config, PixtralConfig) else None
        if in_fp8:
            load_rounded(decoder, checkpoint.tensors(Part.DECODER, decoder, device=device, types=types))
        else:
            checkpoint.load(Part.DECODER, decoder, device=device, types=types)
        if projector is not None:
            checkpoint.load(Part.PROJECTOR, projector, device=device, types=types)
        return DecoderModel(
            config=checkpoint.text_config, device=device, dtype=types.dtype, decoder=decoder, projector=projector
        )
