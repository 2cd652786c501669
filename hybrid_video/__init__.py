"""Video classification in JAX: R(2+1)D convolutions, Perceiver attention, and their hybrid.

The way of the data: `datasets` (video files to stored records), `clips` (which frames),
`input_pipeline.py` at the project's root (records to batches), `models`, `steps` and `train`,
`evaluation` (clips to videos), `report`.
"""
