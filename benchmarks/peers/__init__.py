"""The networks that ours are measured beside, in PyTorch; nothing here imports JAX."""

import pathlib
import sys

# What references are made with, and the values that they ran with, by key.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "tests"))
