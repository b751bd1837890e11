"""The projector: image features of the encoder's width to image embeddings of the decoder's width.

Runs in the decoder service, so that the wire carries the narrow rows. Attribute names are those of a
Hugging Face checkpoint below `multi_modal_projector.`.
"""

from torch import Tensor, nn
from torch.nn import functional

from common.model.config import PixtralConfig


class Projector(nn.Module):
    """Two linear layers with an exact (error function) GELU between them."""

    def __init__(self, config: PixtralConfig) -> None:
        super().__init__()
        bias = config.multimodal_projector_bias
        self.linear_1 = nn.Linear(config.vision.vision_hidden_size, config.text.hidden_size, bias=bias)
        self.linear_2 = nn.Linear(config.text.hidden_size, config.text.hidden_size, bias=bias)

    def forward(self, image_features: Tensor) -> Tensor:
        """Map image_features [num_rows, vision_hidden_size] to image_embeds [num_rows, hidden_size]."""
        embeds: Tensor = self.linear_2(functional.gelu(self.linear_1(image_features)))
        return embeds
