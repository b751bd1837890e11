"""`transformers serve` that reads pictures with Pillow: the torchvision of its environment cannot, see `install`.

Runs in an environment of its own with torch and `transformers[serving]`. Arguments are those of `transformers`.
"""

from functools import partial

from transformers import AutoImageProcessor
from transformers.cli.transformers import main

AutoImageProcessor.from_pretrained = partial(AutoImageProcessor.from_pretrained, backend="pil")  # type: ignore[method-assign]

if __name__ == "__main__":
    main()  # type: ignore[no-untyped-call]
