"""Before anything imports torch: one thread. Several spin against each other, and the daemons that tests start inherit it."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
