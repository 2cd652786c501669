"""The process that compiles: apart from ours, since a compiler may take all memory, hang or die.

In: one line of JSON on standard input, `experiment`, `num_classes`, `topology` (or null: this machine's
devices), `measured_steps`. Out: lines of JSON, each with its `event`: `sizes`, `compiled`, `measured`;
or, last, `refused` (what the user can fix), `too_large` (memory). Its environment is set before it
starts. It ends when its standard input does, that is, when whoever asked is gone.
"""

import json
import os
import sys
import threading
from typing import Any, TextIO


def _end_with_input() -> None:
  sys.stdin.read()
  # Nobody is left to tell.
  os._exit(1)


def _device_facts(devices: Any) -> dict[str, Any]:
  """What there is: kind, number, hosts, and bytes of memory for each device, if that is known."""
  first = devices[0]
  try:
    limit = (first.memory_stats() or {}).get("bytes_limit")
  except Exception:
    # A device that is not there, or a backend that does not count.
    limit = None
  return {
    "platform": first.platform,
    "kind": first.device_kind,
    "devices": len(devices),
    "hosts": len({device.process_index for device in devices}),
    "device_memory": limit,
  }


def answer(request: dict[str, Any], tell: Any) -> None:
  """Answers a request.

  Args:
    request: as above.
    tell: called with each event.
  """
  # Once the environment is there, and standard output is ours.
  import jax

  from hybrid_video import errors
  from hybrid_video.experiment import Experiment
  from hybrid_video.planning import program, step, topologies

  name = request["topology"]
  try:
    devices = topologies.named(name).devices() if name else jax.devices()
    planned = step.make(
      Experiment.from_json(request["experiment"]), request["num_classes"], devices
    )
    sizes = step.sizes(planned)
    tell({"event": "sizes", **sizes, "devices": _device_facts(devices)})
  except errors.UserError as error:
    tell({"event": "refused", "message": str(error)})
    return
  try:
    compiled, found = step.compile_step(planned)
    tell({"event": "compiled", **found})
    if request["measured_steps"]:
      seconds = step.measure(planned, compiled, request["measured_steps"])
      tell({"event": "measured", "seconds": seconds})
  except jax.errors.JaxRuntimeError as error:
    arguments = sum(sizes["device_bytes"].values()) - sizes["device_bytes"]["gradients"]
    wanted = program.memory_wanted(str(error), arguments)
    if wanted is None and "RESOURCE_EXHAUSTED" not in str(error):
      raise
    needed, limit = wanted or (0, 0)
    tell({"event": "too_large", "needed": needed, "limit": limit})


def main() -> None:
  """Reads the request, answers, ends."""
  out: TextIO = os.fdopen(os.dup(1), "w")
  # Libraries that print do not get between the lines.
  os.dup2(2, 1)
  request = json.loads(sys.stdin.readline())
  threading.Thread(target=_end_with_input, daemon=True).start()
  answer(request, lambda event: print(json.dumps(event), file=out, flush=True))
  # The compiler's threads have nothing more to say.
  out.flush()
  os._exit(0)


if __name__ == "__main__":
  main()
