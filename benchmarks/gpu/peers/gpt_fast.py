"""gpt-fast's model, whose compiled step is a strong one at batch 1, from a checkout of that project.

Knows the names of its `Transformer` and how its generation compiles a step. Its file is used as it is; its shapes have
heads that are together as wide as a row, so the parts that depend on it are told our width after they are made.
"""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.answers import Answers
from benchmarks.gpu.clock import Marks
from benchmarks.gpu.workloads import Workload
from common.checkpoint.rotary_order import paired
from decoder_service.model.weights import DecoderModel

Step = Callable[[Tensor, Tensor], Tensor]
Compile = Callable[[Step], Step]


class GptFast:
    """One request after another: it has one at a time."""

    def __init__(self, model: DecoderModel, checkout: Path, *, compiled: Compile | None = None) -> None:
        """Take its model from `checkout`. Raises OSError or AttributeError where that is not gpt-fast.

        `compiled` makes its step faster, where nothing else is given as its own generation does on a GPU.
        """
        self._device = model.device
        self._model = _transformer(model, checkout / "model.py")
        if compiled is None:
            compiled = _compiled if model.device.type == "cuda" else lambda step: step
        self._step = compiled(self._decode)

    @torch.no_grad()
    def answer(self, workload: Workload, *, seconds: float) -> Answers:
        """See `Decoding`."""
        with torch.device(self._device):
            self._model.setup_caches(max_batch_size=1, max_seq_length=workload.max_len)
        tokens, times, before = [], [], 0.0
        for prompt, count in zip(workload.prompts, workload.num_new, strict=True):
            new, moments = self._complete(prompt, count)
            tokens.append(new)
            times.append([before + moment for moment in moments])
            before += moments[-1]
        return Answers(tokens=tokens, times=times, seconds=before)

    def _complete(self, prompt: tuple[int, ...], count: int) -> tuple[list[int], list[float]]:
        marks = Marks(self._device)
        marks.note()
        ids = torch.tensor([prompt], device=self._device)
        token = self._decode(ids, torch.arange(len(prompt), device=self._device))
        marks.note()
        tokens = [token]
        position = torch.tensor([len(prompt)], device=self._device)
        for _ in range(count - 1):
            # The compiler makes better code of the plain form, as its own generation says.
            with sdpa_kernel(SDPBackend.MATH):
                token = self._step(token, position).clone()
            marks.note()
            position += 1
            tokens.append(token)
        return torch.cat(tokens, dim=1)[0].tolist(), marks.seconds()

    def _decode(self, ids: Tensor, positions: Tensor) -> Tensor:
        """The likeliest next token [1, 1] of ids [1, num_tokens]."""
        logits: Tensor = self._model(ids, positions)
        return logits[:, -1].argmax(dim=-1, keepdim=True)


def _compiled(step: Step) -> Step:
    """A recorded graph, and kernels that are tuned one by one."""
    options: dict[str, Any] = {"triton.cudagraphs": True, "coordinate_descent_tuning": True}
    return torch.compile(step, fullgraph=True, options=options)


def _transformer(model: DecoderModel, path: Path) -> Any:  # noqa: ANN401 - a class of another project
    spec = importlib.util.spec_from_file_location("gpt_fast_model", path)
    if spec is None or spec.loader is None:
        raise OSError(f"{path} is not a module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # The compiler looks up by name what it compiles.
    spec.loader.exec_module(module)
    ours = model.config
    arguments = module.ModelArgs(
        block_size=ours.max_position_embeddings,
        vocab_size=ours.vocab_size,
        n_layer=ours.num_hidden_layers,
        n_head=ours.num_attention_heads,
        n_local_heads=ours.num_key_value_heads,
        dim=ours.hidden_size,
        intermediate_size=ours.feed_forward_length,
        rope_base=ours.rope_theta,
        norm_eps=ours.rms_norm_eps,
    )
    with torch.device("meta"):
        theirs = module.Transformer(arguments)
    arguments.dim = ours.num_attention_heads * ours.head_dim  # What its caches and positions are made for.
    for layer in theirs.layers:
        layer.attention.dim, layer.attention.head_dim = arguments.dim, ours.head_dim
    for name, weight in _weights(model):
        owner, _, last = name.rpartition(".")
        setattr(theirs.get_submodule(owner), last, nn.Parameter(weight.detach(), requires_grad=False))
    return theirs.eval()


def _weights(model: DecoderModel) -> list[tuple[str, Tensor]]:
    """Ours by their names. It turns pairs of neighbours, so queries and keys are in another order, and copies."""
    decoder, head_dim = model.decoder, model.config.head_dim
    weights = [
        ("tok_embeddings.weight", decoder.model.embed_tokens.weight),
        ("norm.weight", decoder.model.norm.weight),
        ("output.weight", decoder.lm_head.weight),
    ]
    for index, layer in enumerate(decoder.decoder_layers):
        attention, feed_forward = layer.self_attn, layer.mlp
        query, key = (paired(part.weight.detach(), head_dim) for part in (attention.q_proj, attention.k_proj))
        of_layer = {
            "attention.wqkv": torch.cat((query, key, attention.v_proj.weight.detach())),
            "attention.wo": attention.o_proj.weight,
            "feed_forward.w1": feed_forward.gate_proj.weight,
            "feed_forward.w3": feed_forward.up_proj.weight,
            "feed_forward.w2": feed_forward.down_proj.weight,
            "attention_norm": layer.input_layernorm.weight,
            "ffn_norm": layer.post_attention_layernorm.weight,
        }
        weights += [(f"layers.{index}.{name}.weight", weight) for name, weight in of_layer.items()]
    return weights
