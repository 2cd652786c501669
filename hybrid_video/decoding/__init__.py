"""Video files to frames, and frames to clips: reading, timing, storing as JPEG, decoding of clips.

Decoding processes import `worker_pool` and what it needs, and must start quickly: of the project, it
may import only this package, `errors` and `settings`, and never JAX, TensorFlow or TFDS.
"""
