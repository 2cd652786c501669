"""How full memory was: the devices' own counters in, or the operating system's; bytes out."""

import sys

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


def peak() -> dict[str, int | str] | None:
  """The same with whose it is; on CPUs that of the process, with its libraries and its data's.

  None where nothing counts.
  """
  of_device = peak_bytes()
  if of_device is not None:
    return {"bytes": of_device, "of": "the fullest device"}
  try:
    import resource
  except ImportError:
    return None
  most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  # In bytes on macOS, in units of 1,024 elsewhere.
  return {"bytes": most if sys.platform == "darwin" else 1024 * most, "of": "the process"}
