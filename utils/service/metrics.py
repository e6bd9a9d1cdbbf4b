"""What the service counts, in the text format of Prometheus."""

import os
import threading
from collections import defaultdict

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds
Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Requests by path and status, and the time that they took. Safe in threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: defaultdict[Labels, int] = defaultdict(int)
        self._seconds: defaultdict[Labels, list[float]] = defaultdict(lambda: [0.0] * (len(BUCKETS) + 2))

    def note(self, path: str, status: int, seconds: float) -> None:
        """Counts a request. path: of its route."""
        with self._lock:
            self._requests[("path", path), ("status", str(status))] += 1
            counts = self._seconds[(("path", path),)]
            for i, limit in enumerate(BUCKETS):
                counts[i] += seconds <= limit
            counts[-2] += 1
            counts[-1] += seconds

    def text(self, gauges: dict[str, float]) -> str:
        """All of it, and further numbers by name."""
        with self._lock:
            lines = ["# TYPE selavpr_requests_total counter"]
            lines += [f"selavpr_requests_total{_braces(labels)} {count}" for labels, count in self._requests.items()]
            lines.append("# TYPE selavpr_request_seconds histogram")
            for labels, (*counts, total, seconds) in self._seconds.items():
                for limit, count in zip([*map(str, BUCKETS), "+Inf"], [*counts, total], strict=True):
                    lines.append(f"selavpr_request_seconds_bucket{_braces((*labels, ('le', limit)))} {count:.0f}")
                lines.append(f"selavpr_request_seconds_sum{_braces(labels)} {seconds}")
                lines.append(f"selavpr_request_seconds_count{_braces(labels)} {total:.0f}")
        for name, value in gauges.items():
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [f"# TYPE selavpr_{name} {kind}", f"selavpr_{name} {value:.0f}"]
        return "\n".join(lines) + "\n"


def resident_bytes() -> dict[str, float]:
    """The memory that this process holds now, where the system tells."""
    try:
        with open("/proc/self/statm") as file:
            return {"resident_memory_bytes": int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")}
    except OSError:
        return {}


def _braces(labels: Labels) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels) + "}"
