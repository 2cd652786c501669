"""Damaged checkpoints: never other values, always a name and a reason, and the one before it."""

import shutil
import subprocess

import jax
import numpy as np
import programs
import pytest
from test_checkpoints import _description, check_equal, like, on_disk, save, small_state

from hybrid_video import checkpoint_files, checkpoint_restoring, checkpoints, sharding
from hybrid_video.checkpoint_files import Damaged

# What a state and a model cannot do without, by the beginning of its path in a step's folder.
NEEDED = ("contents/metadata", "description/metadata", "progress/metadata")
NEEDED_ARRAYS = ("model/manifest.ocdbt", "model/d/")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A checkpoint that tests damage and put right again: (its folder, its state)."""
  workdir = tmp_path_factory.mktemp("whole")
  one_device = sharding.make_mesh(jax.devices()[:1])
  state = save(workdir, 1, averaged=True, mesh=one_device)[1]
  return workdir / "checkpoints" / "1", state


def _outcomes(folder, state, changed="description"):
  """What becomes of a checkpoint that is resumed, used and used raw; a wrong value raises.

  Uses that do not read the item that was changed are left out.
  """
  outcomes = {}
  source = checkpoint_files.epath.Path(folder)
  arrays = {"training": [], "model": ["raw"], "averages": ["used"]}
  for use in ("resumed", *arrays.get(changed, ["used", "raw"])):
    try:
      if use == "resumed":
        restored, progress = checkpoint_restoring.restore(source, like(state), _description())
        check_equal(state, restored)
        assert progress["step"] == 1
      else:
        averaged = use == "used"
        model = checkpoints._read_model(source, averaged=averaged)
        of = state["ema"] if averaged else state
        check_equal({name: of[name] for name in ("params", "batch_stats")}, _trees(model))
        assert model.step == 1 and model.description == _description()
      outcomes[use] = "whole"
    except Damaged as error:
      assert str(error)
      outcomes[use] = "damaged"
  return outcomes


def _trees(model):
  return {"params": model.params, "batch_stats": model.batch_stats}


def _files(folder):
  return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_flipped_bit_in_any_file_is_damage_or_changes_nothing(whole):
  folder, state = whole
  assert set(_outcomes(folder, state).values()) == {"whole"}
  rng = np.random.default_rng(0)
  damaged = set()
  for path in _files(folder):
    name, content = path.relative_to(folder).as_posix(), path.read_bytes()
    if "commit_success" in name:
      continue
    for place in sorted({int(rng.integers(len(content))), len(content) // 2}):
      changed = bytearray(content)
      changed[place] ^= 1 << int(rng.integers(8))
      path.write_bytes(changed)
      outcomes = _outcomes(folder, state, name.partition("/")[0])
      if name in NEEDED:
        assert set(outcomes.values()) == {"damaged"}, (name, place)
      if "damaged" in outcomes.values():
        damaged.add(name.partition("/")[0])
    path.write_bytes(content)
  assert damaged >= {"model", "training", "averages", "description", "contents", "progress"}
  assert set(_outcomes(folder, state).values()) == {"whole"}


def test_a_file_that_is_cut_short_empty_or_missing_is_damage_or_not_needed(whole):
  folder, state = whole
  for path in _files(folder):
    name, content = path.relative_to(folder).as_posix(), path.read_bytes()
    for left in (content[: len(content) // 2], b"", None):
      path.unlink() if left is None else path.write_bytes(left)
      outcomes = _outcomes(folder, state, name.partition("/")[0])
      if name in NEEDED:
        assert set(outcomes.values()) == {"damaged"}, name
      elif name.startswith(NEEDED_ARRAYS):
        assert outcomes == {"resumed": "damaged", "raw": "damaged"}, name
    path.write_bytes(content)


def test_a_folder_that_is_missing_or_empty_is_damage(whole, tmp_path):
  folder, state = whole
  for item in ("model", "training", "averages", "description", "contents", "progress"):
    copy = tmp_path / item
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / item)
    outcomes = _outcomes(copy, state)
    assert outcomes["resumed"] == "damaged"
    assert (outcomes["used"] == "damaged") == (item not in ("model", "training"))
  (tmp_path / "empty").mkdir()
  assert set(_outcomes(tmp_path / "empty", state).values()) == {"damaged"}


def test_arrays_of_another_checkpoint_are_not_its_own(tmp_path):
  save(tmp_path, 1, 2)
  folder = tmp_path / "checkpoints"
  shutil.rmtree(folder / "2" / "model")
  shutil.copytree(folder / "1" / "model", folder / "2" / "model")
  with pytest.raises(Damaged, match=r"params/head/b, .* are not those that were saved"):
    checkpoints._read_model(checkpoint_files.epath.Path(folder / "2"), averaged=True)


def _damage(workdir, step, item="model"):
  """Changes one byte of an item's data, or empties its JSON."""
  folder = workdir / "checkpoints" / str(step) / item
  if (folder / "metadata").exists():
    (folder / "metadata").write_bytes(b"")
    return
  for path in (folder / "d").iterdir():
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_run_goes_on_from_the_last_whole_checkpoint_and_says_so(tmp_path, logged):
  states = save(tmp_path, 1, 2, 3, 4)
  checkpoint_files.Best(4, "loss", 0.1).write(tmp_path)
  _damage(tmp_path, 4)
  _damage(tmp_path, 3, "progress")
  (tmp_path / "damaged_checkpoints" / "3").mkdir(parents=True)
  with checkpoints.Checkpoints(tmp_path, _description(), keep=1) as saved:
    assert saved.best_step == 4
    restored, progress = saved.restore(like(states[2]))
    check_equal(states[2], restored)
    assert progress["step"] == 2 and saved.latest_step() == 2
    # best.json named what is gone.
    assert saved.best_step is None and checkpoint_files.best(tmp_path) is None
    lines = list(dict.fromkeys(line.getMessage() for line in logged.records))
    assert len(lines) == 2
    for step, line in zip((4, 3), lines, strict=True):
      assert line.startswith(f"The checkpoint of step {step} is damaged (")
      assert "passed over for that of step 2" in line and "damaged_checkpoints" in line
    assert "progress" in lines[1]
    assert on_disk(tmp_path) == ["1", "2"]
    aside = sorted(path.name for path in (tmp_path / "damaged_checkpoints").iterdir())
    assert aside == ["3", "3.2", "4"]
    # Their numbers are free again.
    saved.save(3, states[3], {})
    saved.wait()
    restored, _ = saved.restore(like(states[3]))
    check_equal(states[3], restored)
  assert on_disk(tmp_path) == ["3"]


def test_what_uses_a_model_passes_over_damage_and_moves_nothing(tmp_path, logged):
  states = save(tmp_path, 1, 2, 3, description=_description(test_parameters="best"))
  checkpoint_files.Best(1, "loss", 0.1).write(tmp_path)
  _damage(tmp_path, 3, "description")
  _damage(tmp_path, 1)
  model = checkpoints.read(tmp_path)
  check_equal(states[2]["params"], model.params)
  lines = list(dict.fromkeys(line.getMessage() for line in logged.records))
  assert len(lines) == 2
  for step, line in zip((1, 3), lines, strict=True):
    assert line.startswith(f"The checkpoint of step {step} is damaged (")
    assert line.endswith("passed over for that of step 2")
  assert on_disk(tmp_path) == ["1", "2", "3"]
  for named, step in (("best", 1), ("checkpoints/1", 1), ("checkpoints/3", 3)):
    with pytest.raises(checkpoints.CheckpointError) as error:
      checkpoints.read(tmp_path / named)
    assert f"checkpoints/{step}: the checkpoint is damaged (" in str(error.value)
  assert checkpoints.read(tmp_path / "last").step == 2


def test_nothing_starts_again_where_every_checkpoint_is_damaged(tmp_path):
  states = save(tmp_path, 1, 2)
  _damage(tmp_path, 1)
  shutil.rmtree(tmp_path / "checkpoints" / "2")
  (tmp_path / "checkpoints" / "2").mkdir()
  for _ in range(2):
    with (
      pytest.raises(checkpoints.CheckpointError) as error,
      checkpoints.Checkpoints(tmp_path, _description(), keep=1) as saved,
    ):
      saved.restore(like(states[1]))
    message = str(error.value)
    assert "None of the checkpoints" in message and "2 (description is missing)" in message
    assert "1 (" in message and "another --workdir" in message
  with pytest.raises(checkpoints.CheckpointError, match="None of the checkpoints"):
    checkpoints.read(tmp_path)
  assert on_disk(tmp_path) == ["1", "2"]


@pytest.mark.parametrize(
  "error",
  [
    PermissionError(13, "Permission denied"),
    ValueError("PERMISSION_DENIED: Error opening \"zarr\" driver [os_error_code='13']"),
    ValueError("UNAVAILABLE: no route"),
    MemoryError("RESOURCE_EXHAUSTED: 12 GB"),
  ],
  ids=["system", "tensorstore", "network", "memory"],
)
def test_what_cannot_be_read_now_is_not_taken_for_damage(tmp_path, monkeypatch, error):
  states = save(tmp_path, 1, 2)

  def fail(*_, **__):
    raise error

  monkeypatch.setattr(
    checkpoint_restoring.checkpoint_arrays.ocp.PyTreeCheckpointHandler, "restore", fail
  )
  for attempt in (
    lambda: checkpoints.read(tmp_path),
    lambda: saved.restore(like(states[2])),
  ):
    with (
      checkpoints.Checkpoints(tmp_path, _description(), keep=1) as saved,
      pytest.raises(checkpoints.CheckpointError, match="It may be whole"),
    ):
      attempt()
  assert on_disk(tmp_path) == ["1", "2"] and not (tmp_path / "damaged_checkpoints").exists()


def test_a_save_that_was_interrupted_is_never_a_checkpoint(tmp_path):
  states = save(tmp_path, 1)
  with checkpoints.Checkpoints(tmp_path, _description(), keep=1) as saved:
    with pytest.MonkeyPatch.context() as patch:

      def interrupt(*_, **__):
        raise KeyboardInterrupt

      patch.setattr(type(saved._writer._handler), "async_save", interrupt)
      with pytest.raises(KeyboardInterrupt):
        saved.save(2, small_state(2), {})
    assert saved.latest_step() == 1
  assert jax.tree.structure(states[1]) and checkpoints.find(tmp_path).name == "1"


# Saves three steps, damages the newest, goes on from the one before and saves the newest again.
_PROCESS = """
import logging, pathlib, sys
import conftest
import jax
process, port, workdir = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{port}", 2, process)
from jax.experimental import multihost_utils
from hybrid_video import checkpoints, sharding
from test_checkpoints import _description, like, small_state
from test_damaged_checkpoints import _damage

def state(step):
  return small_state(step, sharding.make_mesh(fsdp=4), averaged=True)

logging.basicConfig(stream=sys.stdout, format="%(message)s")
with checkpoints.Checkpoints(workdir, _description(), keep=2) as saved:
  for step in (1, 2, 3):
    saved.save(step, state(step), {"step": step})
  saved.mark_best(1, "loss", 0.5)
  saved.wait()
  if process == 0:
    _damage(workdir, 3)
  multihost_utils.sync_global_devices("damaged")
  restored, progress = saved.restore(like(state(1)))
  own = lambda tree: [part.data.tolist() for leaf in jax.tree.leaves(tree) for part in leaf.addressable_shards]
  assert own(restored) == own(state(2)) and progress == {"step": 2}
  saved.save(3, state(3), {"step": 3})
print("ended", saved.latest_step(), flush=True)
"""


def test_two_processes_pass_over_the_same_damage(start_program, tmp_path):
  port = programs.free_port()
  flags = "--xla_force_host_platform_device_count=2"
  pair = [
    start_program(
      "-c",
      _PROCESS.replace(
        "import jax\n", f"import os\nos.environ['XLA_FLAGS'] = {flags!r}\nimport jax\n", 1
      ),
      process,
      port,
      tmp_path,
      stderr=subprocess.STDOUT,
    )
    for process in range(2)
  ]
  printed = [process.communicate(timeout=200)[0] for process in pair]
  for text in printed:
    assert "ended 3" in text and "The checkpoint of step 3 is damaged" in text, printed
  assert on_disk(tmp_path) == ["1", "2", "3"]
  assert [path.name for path in (tmp_path / "damaged_checkpoints").iterdir()] == ["3"]
  # On one process and other devices, it is the same.
  check_equal(small_state(3, averaged=True)["ema"], _trees(checkpoints.read(tmp_path)))
