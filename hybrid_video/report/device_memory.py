"""How full the devices were: their own counters in, bytes out."""

import jax


def peak_bytes() -> int | None:
  """The most memory that the fullest device of this process has had in use, since the process began.

  None where devices do not count, as on CPUs.
  """
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  peaks = [
    of_device["peak_bytes_in_use"] for of_device in stats if "peak_bytes_in_use" in of_device
  ]
  return max(peaks, default=None)
