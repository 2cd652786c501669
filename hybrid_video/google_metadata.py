"""What Google's machines are told about themselves: TPU workers, preemption, maintenance.

In: a key of the metadata server. Out: its text. Elsewhere nothing is asked, so nothing waits.
"""

import http.client
import os
import pathlib
import urllib.error
import urllib.request

_HOST = "metadata.google.internal"
_SECONDS = 2.0
_PRODUCT = pathlib.Path("/sys/class/dmi/id/product_name")


def is_here() -> bool:
  """Whether this machine has a metadata server: one of Google's, or where GCE_METADATA_HOST names one."""
  if os.environ.get("GCE_METADATA_HOST"):
    return True
  try:
    return "Google" in _PRODUCT.read_text()
  except (OSError, ValueError):
    return False


def read(key: str) -> str | None:
  """The value of a key such as "instance/preempted", or None where there is none or no answer."""
  host = os.environ.get("GCE_METADATA_HOST") or _HOST
  request = urllib.request.Request(
    f"http://{host}/computeMetadata/v1/{key}", headers={"Metadata-Flavor": "Google"}
  )
  # The server is on the machine itself: never by a proxy.
  opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
  try:
    with opener.open(request, timeout=_SECONDS) as answer:
      return str(answer.read(2**20).decode())
  except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError):
    return None
