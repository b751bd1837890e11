"""The encoder and the decoder side by side: one prompt, in chunks of a chosen size, logits for every token.

No scheduler, engine or wire: what is held against the reference here is arithmetic alone.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from common.checkpoint.checkpoint import open_checkpoint
from common.checkpoint.config import read_preprocessing
from common.features.feature_spec import FeatureSpec
from common.image.identity import ImageHash
from common.image.preprocessing import PatchGrid, Preprocessing, PreprocessingMode
from common.model.config import PixtralConfig
from common.native.library import Library
from common.native.opening import weight_types
from decoder_service.model.batch import ForwardBatch, ImageRows
from decoder_service.model.kv_cache import KVCache
from decoder_service.model.native_compute import NativeCompute
from decoder_service.model.runner import DecoderRunner
from decoder_service.model.weights import DecoderModel
from decoder_service.vision.image_encoder import ImageFeatures
from tests.pictures import LIMITS
from tests.tiny_models import IMAGE
from vision_service.decoding.image import decode_image
from vision_service.model.encoded_image import rows_of
from vision_service.model.runner import EncoderRunner
from vision_service.model.weights import load_encoder

CPU = torch.device("cpu")
BLOCK_SIZE = 8


class PlainPair:
    """A checkpoint, loaded into both halves of the pair.

    With a `library` the kernels compute. They take the decoder's weights over, so that only one prompt is computed.
    """

    def __init__(self, directory: Path, *, dtype: torch.dtype = torch.float32, library: Library | None = None) -> None:
        checkpoint = open_checkpoint(directory)
        self.model = DecoderModel.load(checkpoint, device=CPU, types=weight_types(library, dtype))
        self._dtype, self._library = dtype, library
        self.preprocessing: Preprocessing | None = None
        if isinstance(checkpoint.config, PixtralConfig):
            # The reference has but one way with pixels, also for Mistral's own files.
            self.preprocessing = read_preprocessing(directory, checkpoint.config.vision, PreprocessingMode.HF)
            encoder = load_encoder(checkpoint, device=CPU, types=weight_types(library, dtype))
            self.encoder = EncoderRunner(encoder, self.preprocessing, device=CPU, dtype=dtype, library=library)

    def features(self, files: Sequence[bytes]) -> list[Tensor]:
        """Features [num_patches, vision_hidden_size] of picture files that are encoded as one batch."""
        if self.preprocessing is None or not files:
            return []
        pixels = [decode_image(data, preprocessing=self.preprocessing, limits=LIMITS, field="image") for data in files]
        return [
            torch.frombuffer(bytearray(rows_of(image)), dtype=self._dtype).view(-1, self.encoder.feature_width)
            for image in self.encoder.encode(pixels)
        ]

    def logits(
        self, token_ids: Sequence[int], files: Sequence[bytes] = (), *, chunk: int, first_position: int = 0
    ) -> Tensor:
        """Logits [num_tokens, vocab_size] at every token, computed `chunk` tokens at a time."""
        runner, images = self._runner(len(token_ids)), self._image_features(files)
        rows, table = [], _block_table(len(token_ids))
        for start in range(0, len(token_ids), chunk):
            ids = token_ids[: start + chunk]
            forward = _forward(ids, start, table=table, images=images, first_position=first_position)
            rows.append(runner.logits(runner.hidden(forward)))
        return torch.cat(rows)

    def greedy(self, token_ids: Sequence[int], files: Sequence[bytes] = (), *, num_new: int) -> list[int]:
        """The prompt in one chunk, then one likeliest token after another."""
        length = len(token_ids) + num_new
        runner, table, images = self._runner(length), _block_table(length), self._image_features(files)
        ids, start = list(token_ids), 0
        for _ in range(num_new):
            # Only the prompt's placeholders stand for images.
            forward = _forward(ids, start, table=table, images=images if start == 0 else None)
            start = len(ids)
            ids.append(int(runner.logits(runner.hidden(forward)[-1:]).argmax()))
        return ids[len(token_ids) :]

    def _runner(self, num_tokens: int) -> DecoderRunner:
        config, num_blocks = self.model.config, len(_block_table(num_tokens))
        cache = KVCache(config, num_blocks=num_blocks, block_size=BLOCK_SIZE, device=CPU, dtype=self._dtype)
        compute = None if self._library is None else NativeCompute(self.model, cache, self._library)
        return DecoderRunner(self.model, cache, compute)

    def _image_features(self, files: Sequence[bytes]) -> ImageFeatures | None:
        """The features of all images, one after another, as if they were one image's."""
        if not files:
            return None
        rows = torch.cat(self.features(files)).contiguous()
        return ImageFeatures(
            spec=FeatureSpec(
                image_hash=ImageHash(b""),
                grid=PatchGrid(height=1, width=rows.shape[0]),
                width=rows.shape[1],
                dtype=str(rows.dtype).removeprefix("torch."),
            ),
            data=memoryview(bytearray(rows.view(torch.uint8).numpy().tobytes())),
        )


def _block_table(num_tokens: int) -> Tensor:
    """Blocks in reverse order, so that no two neighbours touch."""
    return torch.arange(-(-num_tokens // BLOCK_SIZE)).flip(0)


def _forward(
    token_ids: Sequence[int], start: int, *, table: Tensor, images: ImageFeatures | None, first_position: int = 0
) -> ForwardBatch:
    """The tokens from `start` on; all `images` stand in order for the placeholders among all tokens."""
    end = len(token_ids)
    places = torch.arange(start, end)
    is_image = torch.tensor(token_ids) == IMAGE
    before = int(is_image[:start].sum())
    inside = is_image[start:].nonzero().flatten() if images is not None else places[:0]
    rows = () if images is None else (ImageRows(features=images, first=before, last=before + len(inside)),)
    return ForwardBatch(
        token_ids=torch.tensor(token_ids[start:]),
        positions=places + first_position,
        slot_mapping=table[places // BLOCK_SIZE] * BLOCK_SIZE + places % BLOCK_SIZE,
        block_tables=table[None],
        query_lengths=(end - start,),
        seq_lens=(end,),
        seq_lens_there=torch.tensor([end]),
        logits_indices=places - start,
        image_indices=inside,
        image_rows=rows if len(inside) else (),
    )
