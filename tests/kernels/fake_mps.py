#!/usr/bin/env python3
"""Stands for nvidia-cuda-mps-control: a file in the pipe folder is the daemon."""

import os
import sys
from pathlib import Path

pipes = Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"])
daemon, refuses = pipes / "daemon", pipes.parent / "refuses"
log = Path(os.environ["CUDA_MPS_LOG_DIRECTORY"]) / "asked"
asked = "-d" if sys.argv[1:] == ["-d"] else sys.stdin.read().strip()
with log.open("a") as lines:
    lines.write(asked + "\n")
if asked == "-d":
    if refuses.exists():
        sys.exit("An instance of this daemon is already running")
    daemon.touch()
elif not daemon.exists():
    sys.exit("Cannot find MPS control daemon process")
elif asked == "quit -t 5" and not refuses.exists():
    daemon.unlink()
