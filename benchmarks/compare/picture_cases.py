"""The picture cases of the comparison: encoding, preprocessing, and whole answers about pictures.

Knows workloads and goals. Does not know how they are run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.components.pictures import smooth_picture

_MIXED = [[128, 128], [512, 512], [256, 192], [384, 256], [192, 448], [256, 256], [320, 320], [512, 256]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureCase:
    """One operation on pictures, the same for every engine."""

    name: str
    op: str
    arguments: Mapping[str, Any]
    num_items: int
    unit: str
    peer_ops: Mapping[str, str]
    """What each peer is asked, by the name it has in the table: the peer's, or one that begins with it."""
    model: str = "pixtral"
    goals: Mapping[str, float] = field(default_factory=dict)
    limit_op: str | None = None
    """What of ours takes as long as the limit; None where the limit is the matrix rate, or unknown."""
    limit_goal: float | None = None


_ANSWERS = {"transformers": "answer", "vllm": "answer"}
_HALF_ANSWERS = {f"{name} bfloat16": op for name, op in _ANSWERS.items()}
SMOKE_PICTURE_CASES = [
    PictureCase(
        name="smoke pictures",
        op="answer",
        model="smoke-pixtral",
        arguments={"sizes": [[32, 32]] * 2, "max_tokens": 2},
        num_items=2,
        unit="requests/s",
        peer_ops={"transformers": "answer"},
    )
]


def picture_cases(folder: Path) -> list[PictureCase]:
    """The cases; pictures to decode are written to the folder where they are not there yet."""
    return [
        PictureCase(
            name="C7 encode 8 pictures of 128 to 512 px",
            op="encode",
            arguments={"sizes": _MIXED},
            num_items=len(_MIXED),
            unit="images/s",
            peer_ops={
                f"{engine} {way}": op
                for engine in ("transformers", "vllm")
                for way, op in (("packed", "encode"), ("looped", "encode_each"))
            },
            goals={"transformers packed": 1.7, "transformers looped": 1.1},
            limit_goal=0.65,
        ),
        *(
            PictureCase(
                name=f"C8 preprocess {width} x {height} JPEG",
                op="preprocess",
                arguments={"path": str(_picture(folder, width, height))},
                num_items=1,
                unit="images/s",
                peer_ops={"transformers": "preprocess"},
                goals={"transformers": 3.0},
                limit_op="decode_alone",
                limit_goal=0.77,
            )
            for width, height in ((1024, 1024), (4032, 3024))
        ),
        *(
            PictureCase(
                name=f"{case} answer about {side} px, {count} at a time{note}",
                op="answer",
                model=model,
                arguments={"sizes": [[side, side]] * count, "max_tokens": 32},
                num_items=count,
                unit="requests/s",
                peer_ops=peer_ops,
                goals={"vllm": 1.3, "transformers": 1.5} if count == 8 else {"vllm": 1.3},
            )
            for case, model, note, peer_ops in (
                ("C9", "pixtral", "", _ANSWERS),
                ("C9b", "pixtral-bfloat16", ", bfloat16", _ANSWERS | _HALF_ANSWERS),
            )
            for side, count in ((256, 1), (256, 8), (512, 1))
        ),
    ]


def _picture(folder: Path, width: int, height: int) -> Path:
    path = folder / f"{width}x{height}.jpg"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(smooth_picture(width, height, format="JPEG"))
    return path.absolute()
