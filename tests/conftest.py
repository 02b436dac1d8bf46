"""Before anything imports torch. One thread: several spin against each other, and the daemons that tests start inherit it.
Triton's kernels in its interpreter where there is no GPU."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
