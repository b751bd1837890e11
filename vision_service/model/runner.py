"""Runs the patch encoder on a device: batches of pixels in, image features as bytes out.

Knows tensors, the device and its failures. Does not know queues, calls or files of images. Images of one
batch share every matrix product but never attention, so a batch gives what its images give alone.
"""

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from common.errors import ResourceExhaustedError, UnavailableError
from common.image.preprocessing import Preprocessing
from common.model.attention import packed_attention
from common.model.graph_recorder import GraphRecorder
from common.model.layers import Attend
from common.native.library import Library
from common.native.opening import weight_types
from vision_service.decoding.image import Pixels
from vision_service.model.encoded_image import DeviceImage, EncodedImage, HostImage
from vision_service.model.encoder import PatchEncoder, PixtralVisionModel, grid_positions
from vision_service.model.encoder_choice import choose_encoder
from vision_service.model.encoder_graphs import EncoderGraphs, pack_sizes
from vision_service.model.native_encoder import NativeEncoder
from vision_service.model.segment_attention import SegmentAttention


class EncoderRunner:
    """A loaded encoder on its device; not for several threads at once."""

    def __init__(
        self,
        model: PixtralVisionModel,
        preprocessing: Preprocessing,
        *,
        device: torch.device,
        dtype: torch.dtype,
        deterministic: bool = False,
        library: Library | None = None,
        keeps_on_device: bool = False,
        segment_attention: SegmentAttention | None = None,
        fused: bool = False,
    ) -> None:
        """Run `model` on `device` and give features in `dtype`; every image alone where `deterministic`.

        With a `library` the kernels compute; they take the model's weights over. Without it these are in `dtype`. With
        `keeps_on_device` features stay where they were made until they are sent. `segment_attention` serves packs
        of several sizes, and passes that are recorded. `fused` has Triton's kernels compute what is between products,
        where they can.
        """
        self._segment_attention = segment_attention
        self._graphs: EncoderGraphs | None = None
        self._keeps_on_device = keeps_on_device
        self._model: PatchEncoder = choose_encoder(model, _fused, dtype=dtype) if fused else model
        self._native = None if library is None else NativeEncoder(model, library)
        self._deterministic = deterministic
        self._device = device
        self._dtype = dtype
        self.activation_dtype = weight_types(library, dtype).dtype
        """Type of what passes between the encoder's products."""
        self.feature_width = model.config.vision_hidden_size
        """Values in a row of features."""
        self._patch_size = preprocessing.patch_size
        self._mean = torch.tensor(preprocessing.mean, device=device)
        self._std = torch.tensor(preprocessing.std, device=device)

    @torch.inference_mode()
    def record(self, recorder: GraphRecorder, *, max_batch_patches: int) -> tuple[int, ...]:
        """Record passes for packs of up to `max_batch_patches`; returns their sizes, none where they are of no use.

        A deterministic encoder records none: the rows that fill a pack up would belong to its images' company.
        """
        if self._segment_attention is None or self._deterministic:
            return ()
        sizes = pack_sizes(max_batch_patches)
        graphs = EncoderGraphs(
            self._model, self._segment_attention, recorder, sizes=sizes, device=self._device, dtype=self._dtype
        )
        self._graphs = graphs if graphs.sizes else None
        return graphs.sizes

    def forget_recorded(self) -> bool:
        """Give the memory of recorded passes back; whether there were any."""
        had_any = self._graphs is not None
        self._graphs = None
        if had_any and self._device.type == "cuda":
            torch.cuda.empty_cache()
        return had_any

    def warm_up(self, grids: Sequence[tuple[int, int]]) -> None:
        """Encode black images of these patch grids, so that the first real ones find everything in place."""
        for height, width in grids:
            black = torch.zeros(height * self._patch_size, width * self._patch_size, 3, dtype=torch.uint8)
            self.encode([black.numpy()])

    def encode(self, images: Sequence[Pixels]) -> list[EncodedImage]:
        """Features of images [height, width, 3] of whole patches, in their order.

        Raises ResourceExhaustedError where the device's memory does not do, after giving back what is cached;
        UnavailableError where the device is lost, which only a new process cures.
        """
        with _device_failures():
            if self._deterministic:
                # The number of rows decides how a product is summed, so only an image alone is always the same bits.
                return [encoded for image in images for encoded in self._encode([image])]
            return self._encode(images)

    @torch.inference_mode()
    def _encode(self, images: Sequence[Pixels]) -> list[EncodedImage]:
        patch = self._patch_size
        grids = [(image.shape[0] // patch, image.shape[1] // patch) for image in images]
        lengths = [height * width for height, width in grids]
        patches = torch.cat([self._patches(image) for image in images])
        rows, columns = grid_positions(grids, self._device)
        features: Tensor
        if self._graphs is not None and (size := self._graphs.size_for(lengths)) is not None:
            features = self._graphs.features(patches, rows, columns, lengths=lengths, size=size)
        elif self._native is not None:
            features = self._native(patches, rows, columns, lengths).to(self._dtype)
        else:
            features = self._model(patches, rows, columns, self._attend_to(lengths))
        if self._keeps_on_device:
            # Copies, so that one image keeps no other of its batch in memory, and the next batch overwrites none.
            return [DeviceImage(partial(_fetch, rows.clone())) for rows in features.split(lengths)]
        # One copy off the device for the whole batch.
        in_bytes = _to_host(features)
        row_bytes = features.shape[1] * features.dtype.itemsize
        starts = [sum(lengths[:index]) * row_bytes for index in range(len(lengths))]
        # Packed here, in the encoder's thread, and apart, so that one image keeps no other in memory.
        return [
            HostImage.from_rows(in_bytes[start : start + length * row_bytes])
            for start, length in zip(starts, lengths, strict=True)
        ]

    def _attend_to(self, lengths: Sequence[int]) -> Attend:
        """Attention that keeps images of these lengths apart."""
        scale, segments = self._model.config.vision_attention_multiplier, self._segment_attention
        if segments is None or len(set(lengths)) == 1:
            return lambda layer, query, key, value: packed_attention(
                query, key, value, lengths=lengths, causal=False, scale=scale
            )
        starts = torch.tensor(list(accumulate(lengths, initial=0)), dtype=torch.int32).to(self._device)
        longest = max(lengths)
        return lambda layer, query, key, value: segments(query, key, value, starts=starts, longest=longest, scale=scale)

    def _patches(self, image: Pixels) -> Tensor:
        """Normalised patches [num_patches, 3 * patch_size ** 2] in (channel, row, column) order."""
        # A copy: arrays that lie in received bytes cannot be written to, which torch does not support.
        pixels = torch.tensor(image, device=self._device).float()
        pixels = (pixels / 255 - self._mean) / self._std
        height, width = pixels.shape[0] // self._patch_size, pixels.shape[1] // self._patch_size
        split = pixels.view(height, self._patch_size, width, self._patch_size, 3)
        return split.permute(0, 2, 4, 1, 3).reshape(height * width, -1).to(self.activation_dtype)


def _fused(model: PixtralVisionModel) -> PatchEncoder:
    # Imported here: triton comes only with torch's CUDA builds.
    from vision_service.model.fused_encoder import FusedEncoder

    return FusedEncoder(model)


@contextmanager
def _device_failures() -> Iterator[None]:
    """Tell what may be tried again from what only a new process cures."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        # Its frames still hold the tensors of this try, in whose memory the images are to be tried again.
        traceback.clear_frames(error.__traceback__)
        torch.cuda.empty_cache()
        raise ResourceExhaustedError(
            "ENCODER_OUT_OF_MEMORY", "the images do not fit into the encoder's memory", retry_after=1.0
        ) from error
    except torch.AcceleratorError as error:
        raise UnavailableError("DEVICE_LOST", "this replica lost its device") from error


def _fetch(rows: Tensor) -> memoryview:
    """Rows that stayed on the device."""
    with _device_failures():
        return _to_host(rows)


def _to_host(rows: Tensor) -> memoryview:
    """The bytes of rows of features; numpy has no bfloat16, bytes will do."""
    # To memory that the device writes by itself, and that torch keeps for the next batch: any other is written twice.
    there = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True).copy_(rows) if rows.is_cuda else rows
    return there.contiguous().view(torch.uint8).numpy().data.cast("B")
