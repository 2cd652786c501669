"""The networks that ours are measured beside, in PyTorch; nothing here imports JAX."""
