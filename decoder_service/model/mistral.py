"""The Mistral decoder as a module: embedded rows in, hidden rows and logits out.

Knows weights and arithmetic on packed rows. Does not know requests, blocks or images: what a row may see
is the `attend` function's affair. Attribute names are those of a Hugging Face `MistralForCausalLM`.
"""

import torch
from torch import Tensor, nn

from common.model.config import MistralConfig
from common.model.layers import Attend, Attention, FeedForward, Multiply, RMSNorm, plainly
from common.model.rope import inverse_frequencies, rotary_1d


class DecoderLayer(nn.Module):
    """One pre-norm layer: attention, then feed-forward, each added to its input."""

    def __init__(self, config: MistralConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(
            config.hidden_size,
            num_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
        )
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FeedForward(config.hidden_size, config.feed_forward_length)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, *, layer: int, attend: Attend, multiply: Multiply = plainly
    ) -> Tensor:
        """Map x [num_tokens, hidden_size] to the same shape."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, layer=layer, attend=attend, multiply=multiply)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x), layer=layer, multiply=multiply)
        return out


class MistralModel(nn.Module):
    """Embedding table, layers and final norm."""

    def __init__(self, config: MistralConfig) -> None:
        super().__init__()
        self.config = config
        # Made from a table: drawing one at random on the meta device imports torch's compiler, 150 MB and 1.4 seconds.
        table = torch.empty(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding.from_pretrained(table, freeze=False)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, embeds: Tensor, positions: Tensor, attend: Attend, multiply: Multiply = plainly) -> Tensor:
        """Run the layers over embeds [num_tokens, hidden_size] at positions [num_tokens].

        Returns hidden rows [num_tokens, hidden_size] before the final norm, which is only needed for the
        rows that get logits.
        """
        freqs = inverse_frequencies(self.config.head_dim, self.config.rope_theta, embeds.device)
        cos, sin = rotary_1d(positions, freqs, embeds.dtype)
        for index, layer in enumerate(self.layers):
            embeds = layer(embeds, cos, sin, layer=index, attend=attend, multiply=multiply)
        return embeds


class MistralForCausalLM(nn.Module):
    """The decoder with its output head; the head is the embedding table where the checkpoint ties them."""

    def __init__(self, config: MistralConfig) -> None:
        super().__init__()
        self.model = MistralModel(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def decoder_layers(self) -> list[DecoderLayer]:
        """The layers, in order."""
        return [layer for layer in self.model.layers if isinstance(layer, DecoderLayer)]

    def forward(self, embeds: Tensor, positions: Tensor, attend: Attend, multiply: Multiply = plainly) -> Tensor:
        """Hidden rows [num_tokens, hidden_size] before the final norm; see `logits`."""
        hidden: Tensor = self.model(embeds, positions, attend, multiply)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits as fp32 [num_rows, vocab_size] for the hidden rows [num_rows, hidden_size] asked for."""
        return self.head(self.model.norm(hidden))

    def head(self, normed: Tensor) -> Tensor:
        """The same for rows behind the final norm."""
        weight = self.model.embed_tokens.weight if not hasattr(self, "lm_head") else self.lm_head.weight
        return nn.functional.linear(normed, weight).float()
