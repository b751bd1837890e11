"""`python -m diptych.demo`: starts both services, asks about fresh drawings, stops them.

Knows the tasks that the demo model was trained for, which a checkout has in `training/`. Does not need torch
itself: the services are processes of their own.
"""

from common.server.early_signals import leave_at_once, leave_by_default

if __name__ == "__main__":
    leave_at_once()

# isort: split
import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random
from shutil import rmtree
from tempfile import mkdtemp

from PIL import Image

from common.client.client import DiptychClient
from common.client.messages import user_message
from common.client.types import ClientError, Completion, CompletionBuilder
from common.process import die_with_parent
from diptych.output import forget_output, print_all_characters, whole_lines
from diptych.terminal import half_blocks, shows_colours
from training.tasks import TASKS, Example, sample

_EXAMPLES_PER_TASK = 2
_MAX_COLUMNS = 64


def main() -> int:
    """Run the demo; returns 0 unless something failed. A wrong answer is none."""
    folder = Path(mkdtemp(prefix="diptych-demo-"))
    started = time.monotonic()
    print_all_characters()
    leave_by_default()
    try:
        with _services(folder) as address, DiptychClient(address) as client:
            print(f"Both services are ready at {address} after {time.monotonic() - started:.1f} s.\n")
            rng = Random()  # noqa: S311 - pictures, not secrets
            examples = [sample(task, rng) for task in TASKS for _ in range(_EXAMPLES_PER_TASK)]
            right = sum(_ask(client, example, folder / f"{n}") for n, example in enumerate(examples, 1))
    except BrokenPipeError:
        forget_output()
        rmtree(folder)
        return 1
    except (ClientError, OSError, RuntimeError) as error:
        sys.stderr.write(f"The demo failed: {error}\nThe services' log is {folder / 'services.log'}\n")
        return 1
    except KeyboardInterrupt:
        rmtree(folder)
        return 130
    rmtree(folder)
    print(f"{right} of {len(examples)} answers are right; {time.monotonic() - started:.1f} s in all.")
    return 0


@contextmanager
def _services(folder: Path) -> Iterator[str]:
    """The address of services that run while inside. Raises RuntimeError where they do not start or stop well."""
    command = [sys.executable, "-m", "diptych.cli", "up", "--port", "0"]
    with (folder / "services.log").open("w") as log:
        process = subprocess.Popen(  # noqa: S603 - ours
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            preexec_fn=partial(die_with_parent, os.getpid()),
        )
        try:
            line = process.stdout.readline() if process.stdout is not None else ""
            if not line.startswith("ready "):
                raise RuntimeError("the services did not start")
            yield line.split()[1]
        finally:
            process.terminate()
            status = process.wait()
        if status:
            raise RuntimeError(f"the services ended with status {status}")


def _ask(client: DiptychClient, example: Example, stem: Path) -> bool:
    """Show one example, stream the answer, and tell whether it is right."""
    turn = example.turns[0]
    images = example.png_images
    for number, image in enumerate(images, 1):
        _show(image, stem.with_name(f"{stem.name}-{number}.png"))
    print(f"question: {turn.question}")
    completion = _stream(client, turn.question, images, first=example.pictures_first)
    is_right = completion.text.strip() == turn.answer
    print(f"\nexpected: {turn.answer} ({'right' if is_right else 'wrong'})")
    usage, timings = completion.usage, completion.timings
    print(
        f"          {usage.prompt_tokens} prompt tokens ({usage.image_tokens} of pictures), "
        f"{usage.completion_tokens} generated; encode {1e3 * timings.encode_wait_seconds:.0f} ms, "
        f"prefill {1e3 * timings.prefill_seconds:.0f} ms, decode {1e3 * timings.decode_seconds:.0f} ms\n"
    )
    return is_right


def _stream(client: DiptychClient, question: str, images: list[bytes], *, first: bool) -> Completion:
    message = user_message(question, images)
    if not first:
        message = {**message, "content": [message["content"][-1], *message["content"][:-1]]}
    builder = CompletionBuilder()
    with whole_lines() as show:
        show("answer:   ")
        for response in client.generate([message], max_tokens=64, timeout=60):
            builder.add(response)
            show(response.delta.text)
    return builder.build()


def _show(image: bytes, path: Path) -> None:
    """Draw a picture on the terminal, or name the file that it was written to."""
    if shows_colours(sys.stdout):
        with Image.open(io.BytesIO(image)) as picture:
            print("\n".join(half_blocks(picture, _MAX_COLUMNS)))
    else:
        path.write_bytes(image)
        print(f"picture:  {path} (until the demo ends)")


if __name__ == "__main__":
    sys.exit(main())
