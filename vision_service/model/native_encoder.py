"""The patch encoder in our own kernels: all layers of a batch in one call.

Knows how the encoder's weights are laid out for the kernels (see `common.native`). Does not know how they compute.
On a CPU only; what passes between products, and comes out, is float32. A picture's features are the same bits in any
batch.
"""

from array import array
from collections.abc import Sequence
from ctypes import byref

import torch
from torch import Tensor, nn

from common.model.rope import inverse_frequencies, rotary_2d
from common.native.library import CEncoderLayer, CEncoderShape, Library
from common.native.weights import PackedWeights
from vision_service.model.encoder import EncoderLayer, PixtralVisionModel


class NativeEncoder:
    """The encoder. It takes the model's weights over: the modules are of no use afterwards."""

    def __init__(self, model: PixtralVisionModel, library: Library) -> None:
        """Pack the weights."""
        config = model.config
        self._library = library
        self._head_dim = config.vision_head_dim
        self._frequencies = inverse_frequencies(config.vision_head_dim, config.vision_rope_theta, torch.device("cpu"))
        # A convolution whose stride is its kernel is one product over flattened patches.
        patch = nn.Linear(1, 1, bias=False, device="meta")
        patch.weight = nn.Parameter(model.patch_conv.weight.detach().flatten(1), requires_grad=False)
        self._patch = PackedWeights(library, [patch])
        self._norm = model.ln_pre
        self._layers = [_Layer(layer, library) for layer in model.transformer.encoder_layers]
        shape = CEncoderShape(
            hidden=config.vision_hidden_size,
            layers=config.vision_num_hidden_layers,
            heads=config.vision_num_attention_heads,
            head_dim=config.vision_head_dim,
            feed_forward=config.vision_intermediate_size,
            eps=config.vision_rms_norm_eps,
            scale=config.vision_attention_multiplier,
        )
        layers = (CEncoderLayer * len(self._layers))(*(layer.c() for layer in self._layers))
        self._encoder = library.c.diptych_encoder_new(library.pool, byref(shape), layers)

    def __call__(self, patches: Tensor, rows: Tensor, columns: Tensor, lengths: Sequence[int]) -> Tensor:
        """Features [num_patches, vision_hidden_size], as `PixtralVisionModel` computes them.

        The pictures' `lengths` in patches add up to num_patches and keep them apart.
        """
        x: Tensor = self._norm(self._patch(patches)).contiguous()
        cos, sin = rotary_2d(rows, columns, self._frequencies, torch.float32)
        # Both halves of a head turn alike.
        cosines, sines = (turns[:, : self._head_dim // 2].contiguous() for turns in (cos, sin))
        counts = array("q", lengths)
        self._library.c.diptych_encoder_run(
            self._encoder,
            len(counts),
            counts.buffer_info()[0],
            cosines.data_ptr(),
            sines.data_ptr(),
            x.data_ptr(),
        )
        return x


class _Layer:
    """The packed weights of one layer: query, key and value in one product, gate and up in another."""

    def __init__(self, layer: EncoderLayer, library: Library) -> None:
        attention, mlp = layer.attention, layer.feed_forward
        self._attention_norm = layer.attention_norm.weight.detach()
        self._qkv = PackedWeights(library, [attention.q_proj, attention.k_proj, attention.v_proj])
        self._output = PackedWeights(library, [attention.o_proj])
        self._feed_forward_norm = layer.ffn_norm.weight.detach()
        self._gate_up = PackedWeights(library, [mlp.gate_proj, mlp.up_proj])
        self._down = PackedWeights(library, [mlp.down_proj])

    def c(self) -> CEncoderLayer:
        """The structure of pointers."""
        return CEncoderLayer(
            self._attention_norm.data_ptr(),
            self._qkv.c,
            self._output.c,
            self._feed_forward_norm.data_ptr(),
            self._gate_up.c,
            self._down.c,
        )
