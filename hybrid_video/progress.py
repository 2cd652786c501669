"""Durations as short texts, for progress lines and logs."""


def duration(seconds: float) -> str:
  """Seconds as a short text: `42s`, `3m05s`, `2h07m`."""
  whole = round(seconds)
  if whole < 60:
    return f"{whole}s"
  if whole < 3600:
    return f"{whole // 60}m{whole % 60:02d}s"
  return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
