"""What the kernel says of other processes."""

from pathlib import Path


def state(pid: int) -> str:
    """A process's letter in /proc; X where there is no such process any more, or only its entry."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"
    return "X" if letter == "Z" else letter


def is_running(pid: int) -> bool:
    """Whether a process goes on."""
    return state(pid) != "X"
