"""What a finished run leaves behind for people and programs: results.json and its summary."""

import hashlib
import json
import os
import pathlib
from typing import Any

import jax
import numpy as np

RESULTS = "results.json"


def params_digest(params: dict[str, Any]) -> str:
  """SHA-256 over the parameters: path, type, shape and bytes of each, in order of their paths."""
  digest = hashlib.sha256()
  leaves = jax.tree_util.tree_flatten_with_path(params)[0]
  named = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
  for name in sorted(named):
    leaf = named[name]
    digest.update(f"{name} {leaf.dtype.str} {leaf.shape} ".encode())
    digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()


def write(workdir: os.PathLike | str, results: dict[str, Any]) -> pathlib.Path:
  """Writes results.json whole or not at all, and gives its path."""
  path = pathlib.Path(workdir) / RESULTS
  part = path.with_suffix(".part")
  part.write_text(json.dumps(results, indent=2) + "\n")
  part.replace(path)
  return path


def summary(results: dict[str, Any]) -> str:
  """A few lines for the console: what was evaluated and what came out."""
  lines = []
  for which in ("train", "test"):
    if which not in results:
      continue
    found = results[which]
    lines.append(
      f"{which} list, split {results['split']}: video top-1 {100 * found['video_top1']:.2f} %, "
      f"top-5 {100 * found['video_top5']:.2f} % ({found['videos']} videos); "
      f"clip top-1 {100 * found['clip_top1']:.2f} % ({found['clips']} clips); "
      f"loss {found['loss']:.4f}"
    )
    if "shuffled_video_top1" in found:
      lines.append(
        f"  with each clip's frames in random order: video top-1 "
        f"{100 * found['shuffled_video_top1']:.2f} %"
      )
  return "\n".join(lines)
