"""Make the stand-ins importable (the tests and the programs they start share them) and the tests quick."""

import os
import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parent))

# Two threads on tensors of a few hundred numbers spend their time waiting for each other.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
