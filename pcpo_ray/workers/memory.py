"""Peak memory of this process, as counted by the kernel and by torch."""

import resource
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Peak:
    """Peak bytes: resident in main memory (shared memory included), and allocated by torch on the GPU."""

    resident: int
    gpu: int


def peak() -> Peak:
    """Return the peak since the process began."""
    gpu = 0
    torch = sys.modules.get("torch")  # a process that has not imported it has allocated nothing
    if torch is not None and torch.cuda.is_available():
        gpu = int(torch.cuda.max_memory_allocated())
    return Peak(resident=_resident(), gpu=gpu)


def _resident() -> int:
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage's figure includes the process that this one was forked from
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
