"""Pages that were missing when somebody came to them."""

import resource


def num_faults() -> int:
    """Pages that were missing when this thread came to them."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt


def faults_of_writing(place: memoryview) -> int:
    before = num_faults()
    for start in range(0, len(place), 1 << 12):
        place[start] = 1
    return num_faults() - before
