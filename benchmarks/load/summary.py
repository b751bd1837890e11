"""The figures of a load as text."""

from benchmarks.load.figures import PERCENTILES, LoadFigures


def summary(result: LoadFigures) -> str:
    """Throughput line by line, then a table of latencies in milliseconds."""
    goodput = "" if result.goodput is None else f"{'goodput':<24}{result.goodput:10.2f} requests/s within the SLO\n"
    errors = "".join(f"  {count} x {reason}\n" for reason, count in result.errors.items())
    head = f"{'milliseconds':<12}{'mean':>10}{'std':>10}" + "".join(f"{f'P{each}':>10}" for each in PERCENTILES)
    latencies = {"TTFT": result.ttft, "TPOT": result.tpot, "ITL": result.itl, "E2EL": result.e2el}
    rows = (
        f"{name:<12}{latency.mean:>10.2f}{latency.deviation:>10.2f}"
        + "".join(f"{latency.percentiles[each]:>10.2f}" for each in PERCENTILES)
        for name, latency in latencies.items()
    )
    return (
        f"{'completed':<24}{result.num_completed:10d} requests in {result.duration:.2f} s\n"
        f"{'failed':<24}{result.num_failed:10d}\n{errors}"
        f"{'request throughput':<24}{result.request_throughput:10.2f} requests/s\n"
        f"{'image throughput':<24}{result.image_throughput:10.2f} images/s\n"
        f"{'output throughput':<24}{result.output_throughput:10.1f} tokens/s\n"
        f"{'total throughput':<24}{result.total_throughput:10.1f} tokens/s\n"
        f"{goodput}\n" + "\n".join([head, *rows]) + "\n"
    )
