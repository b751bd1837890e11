"""The services' modules joined into one that can be trained, and the demo's shape.

Knows how a rectangular batch runs through packed modules, and the losses. Does not know data or schedules.
The two helping heads (what each half patch shows, and which mark it is) exist in training only.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from common.checkpoint.config import CLIP_MEAN, CLIP_STD
from common.model.config import MistralConfig, PixtralConfig, PixtralVisionConfig
from common.model.layers import Attend
from decoder_service.model.mistral import MistralForCausalLM
from decoder_service.model.projector import Projector
from training.batches import IMG, MARK_CLASSES, PLACE_CLASSES, Batch, Slot
from training.tasks import LONGEST_EDGE, PATCH
from training.tokenizer import VOCAB_SIZE
from vision_service.model.encoder import PixtralVisionModel, grid_positions


def demo_config() -> PixtralConfig:
    """The shape of the demo model."""
    return PixtralConfig(
        text=MistralConfig(
            hidden_size=160,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=32,
            num_hidden_layers=4,
            feed_forward_length=352,
            vocab_size=VOCAB_SIZE,
            rms_norm_eps=1e-5,
            rope_theta=1e6,
            max_position_embeddings=4096,
        ),
        vision=PixtralVisionConfig(
            patch_size=PATCH,
            image_size=LONGEST_EDGE,
            num_channels=3,
            vision_hidden_size=128,
            vision_num_attention_heads=4,
            vision_num_hidden_layers=4,
            vision_intermediate_size=352,
            vision_head_dim=32,
            vision_rope_theta=1e4,
        ),
        image_token_index=IMG,
    )


class TrainablePixtral(nn.Module):
    """Patch encoder, projector and decoder, with the helping heads."""

    def __init__(self, config: PixtralConfig) -> None:
        super().__init__()
        self.vision_tower = PixtralVisionModel(config.vision)
        self.multi_modal_projector = Projector(config)
        self.language_model = MistralForCausalLM(config.text)
        self.helping_heads = nn.Linear(config.vision.vision_hidden_size, 2 * (MARK_CLASSES + PLACE_CLASSES))
        _initialise(self, max(config.text.num_hidden_layers, config.vision.vision_num_hidden_layers))

    def features(self, slot: Slot) -> Tensor:
        """Image features [batch, patches, vision_hidden_size] of a slot's pictures."""
        batch, patches, _ = slot.pixels.shape
        rows, columns = grid_positions([slot.grid] * batch, torch.device("cpu"))
        packed = normalised(torch.from_numpy(slot.pixels)).to(self.helping_heads.weight.dtype).flatten(0, 1)
        encoded: Tensor = self.vision_tower(packed, rows, columns, rectangular(batch, causal=False))
        unpacked: Tensor = encoded.unflatten(0, (batch, patches))
        return unpacked

    def answer_logits(self, batch: Batch, features: list[Tensor]) -> Tensor:
        """Logits [targets, vocab_size] of the rows that predict the batch's targets."""
        tokens = torch.from_numpy(batch.tokens)
        ids = tokens.flatten()
        embeds: Tensor = self.language_model.model.embed_tokens(ids)
        image_embeds: Tensor = self.multi_modal_projector(torch.cat(features, dim=1).flatten(0, 1))
        places = (ids == IMG).nonzero().squeeze(1)
        embeds = embeds.index_put((places,), image_embeds.to(embeds.dtype))
        positions = torch.arange(tokens.shape[1]).repeat(tokens.shape[0])
        hidden: Tensor = self.language_model(embeds, positions, rectangular(tokens.shape[0], causal=True))
        return self.language_model.logits(hidden.index_select(0, torch.from_numpy(batch.predictors)))

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Answer loss, helping loss, and for every target whether it was the likeliest token."""
        features = [self.features(slot) for slot in batch.slots]
        logits = self.answer_logits(batch, features)
        targets = torch.from_numpy(batch.targets)
        loss = functional.cross_entropy(logits, targets)
        return loss, self._helping_loss(batch, features), logits.argmax(-1) == targets

    def _helping_loss(self, batch: Batch, features: list[Tensor]) -> Tensor:
        rows = torch.cat([feature.flatten(0, 1) for feature in features])
        marks = torch.from_numpy(_joined([slot.marks for slot in batch.slots]))
        places = torch.from_numpy(_joined([slot.places for slot in batch.slots]))
        halves = self.helping_heads(rows).float().unflatten(-1, (2, -1)).flatten(0, 1)
        mark_logits, place_logits = halves.split((MARK_CLASSES, PLACE_CLASSES), dim=-1)
        return functional.cross_entropy(mark_logits, marks) + functional.cross_entropy(place_logits, places)


def rectangular(batch: int, *, causal: bool) -> Attend:
    """Attention over packed rows that are `batch` sequences of one length.

    Written out, as the fused kernel's backward pass in bf16 is several times slower on a processor.
    """

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        groups = query.shape[1] // key.shape[1]
        del layer  # every layer sees the same rows
        heads = [x.unflatten(0, (batch, -1)).transpose(1, 2) for x in (query, key, value)]
        if groups > 1:
            heads[1:] = [x.repeat_interleave(groups, dim=1) for x in heads[1:]]
        scores = (heads[0] @ heads[1].mT).float() * query.shape[-1] ** -0.5
        if causal:
            length = scores.shape[-1]
            scores = scores + torch.full((length, length), float("-inf")).triu(1)
        mixed: Tensor = (scores.softmax(-1).to(query.dtype) @ heads[2]).transpose(1, 2).flatten(0, 1)
        return mixed

    return attend


def normalised(pixels: Tensor) -> Tensor:
    """fp32 patches from 8-bit ones [..., 3 * PATCH ** 2]."""
    mean, std = (torch.tensor(values).repeat_interleave(PATCH**2) for values in (CLIP_MEAN, CLIP_STD))
    return (pixels.float() * (1 / 255) - mean) / std


def _joined(labels: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate([label.reshape(-1) for label in labels])


def _initialise(model: nn.Module, layers: int) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            continue
        fan_in = parameter[0].numel()
        gain = (2 * layers) ** -0.5 if "o_proj" in name or "down_proj" in name else 1.0
        scale = 0.02 if "embed_tokens" in name else gain * fan_in**-0.5
        nn.init.normal_(parameter, std=scale)
