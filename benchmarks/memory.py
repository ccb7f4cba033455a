"""Peak of the memory that a process holds (Linux)."""

import ctypes
import math
import re
from pathlib import Path


def peak_memory():
    """Peak of the resident memory in MB since the last reset, NaN where the system keeps none."""
    status = Path("/proc/self/status")
    match = status.exists() and re.search(r"VmHWM:\s*(\d+)", status.read_text())
    return int(match.group(1)) / 1024 if match else math.nan


def reset_peak():
    """Give freed memory back, and start the peak from what is held now."""
    if Path("/proc/self/clear_refs").exists():
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
