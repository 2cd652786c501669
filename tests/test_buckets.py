"""Buckets on loopback: a whole run in one, killed and resumed; records, locks, weights and archives there."""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import socket
import subprocess
import threading
import time

import object_store
from programs import starting
import pytest

from hybrid_video import buckets, downloads, files, loading, locks, paths
from hybrid_video.datasets import builder, mirrors
from hybrid_video.weights import sources

ROOT = pathlib.Path(__file__).parent.parent
BUCKET = f"gs://{object_store.BUCKET}"


@pytest.fixture(scope="module")
def serving(tmp_path_factory):
  with object_store.serving(tmp_path_factory.mktemp("store")) as running:
    yield running


@pytest.fixture
def store(serving, monkeypatch):
  """An empty bucket, for this process and those that it starts."""
  running, environment = serving
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  running.set("deny")
  running.set("clear")
  return running


def path_of(name: str):
  return paths.resolve(f"{BUCKET}/{name}", "--workdir")


# A whole run.


def arguments(videos: pathlib.Path, workdir: str, records: str) -> list[str]:
  chosen = {
    "data_dir": videos, "records_dir": records, "made_films": 4, "stored.height": 38,
    "stored.width": 50, "clip.crop": 24, "clip.frames": 8, "model.cnn_blocks": 2, "model.cnn_width": 4,
    "model.latents": 4, "model.width": 16, "batch_size": 8, "eval_batch_size": 8, "log_every_steps": 1,
    "evaluate_shuffled": False, "epochs": 4, "checkpoint_every_steps": 2,
  }  # fmt: skip
  flags = [f"--config.{name}={value}" for name, value in chosen.items()]
  return [str(ROOT / "main.py"), f"--config={ROOT}/configs/demo.py", f"--workdir={workdir}", *flags]


@pytest.mark.slow
def test_a_run_in_a_bucket_is_killed_goes_on_and_ends_as_one_on_a_local_disk(
  store, made_folder, tmp_path, tmp_path_factory, monkeypatch
):
  # Where other tests' programs are compiled, and not to the user's.
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
  elsewhere = tmp_path / "cwd"
  elsewhere.mkdir()
  in_bucket = arguments(made_folder, f"{BUCKET}/runs/own", f"{BUCKET}/records")
  with starting() as start:
    local = start(*arguments(made_folder, str(tmp_path / "run"), str(tmp_path / "records")))
    first = start(*in_bucket, cwd=elsewhere)
    for line in first.stdout:
      if re.match(r"step +5/", line):
        break
    first.kill()
    first.wait()
    assert "runs/own/.lock" in store.names()
    saved = [name for name in store.names("runs/own/checkpoints/") if "/commit_success" in name]
    assert saved, store.names()
    second = start(*in_bucket, cwd=elsewhere, stderr=subprocess.PIPE)
    printed, problems = second.communicate(timeout=180)
    assert second.returncode == 0, problems
    assert re.search(r"from step [24] to 12", printed), printed
    local.communicate(timeout=180)
    assert local.returncode == 0
  there = json.loads(store.read("runs/own/results.json"))
  here = json.loads((tmp_path / "run" / "results.json").read_text())
  assert there["params_digest"] == here["params_digest"]
  assert there["test"] == here["test"]
  history = [json.loads(line) for line in store.read("runs/own/history.jsonl").splitlines()]
  assert [line["step"] for line in history if "train/loss" in line] == list(range(1, 13))
  names = {name.removeprefix("runs/own/").partition("/")[0] for name in store.names("runs/own/")}
  assert names >= {"checkpoints", "config.json", "figures", "predictions.npz", "tensorboard"}
  assert ".lock" not in names
  # Nowhere else.
  assert not list(elsewhere.iterdir())
  saved = loading.read(f"{BUCKET}/runs/own")
  assert saved.step == 12 and saved.source.startswith(BUCKET)


# Records.


def test_records_in_a_bucket_are_built_once_and_locked_meanwhile(store, made_folder, monkeypatch):
  from hybrid_video import datasets
  from hybrid_video.decoding import storing, worker_pool

  listed = datasets.read("made_actions", made_folder)
  scale = storing.StoredScale(38, 50, 90)
  held = []
  stored_here = builder.store_here

  def storing_shards(*of):
    for shard in stored_here(*of):
      held.append([name for name in store.names("records/") if name.endswith(locks.NAME)])
      yield shard

  first = builder.build(listed, f"{BUCKET}/records", scale, store_shards=storing_shards)
  assert len(held) == 1 and len(held[0]) == 1
  assert not [name for name in store.names() if name.endswith((locks.NAME, files.PART))]
  assert first.folder.startswith(BUCKET) and not first.is_local
  assert len(first.read_record(3)) == first.length[3]
  monkeypatch.setattr(worker_pool, "store_videos", None)
  again = builder.build(listed, f"{BUCKET}/records", scale)
  assert again.names.tolist() == first.names.tolist()


# Locks.


_HOLD = (
  "import sys, time\n"
  "from hybrid_video import buckets, locks, paths\n"
  "buckets.LEASE_SECONDS = float(sys.argv[2])\n"
  "with locks.hold(paths.resolve(sys.argv[1], ''), 'train'):\n"
  "  print('held', flush=True)\n"
  "  time.sleep(60)\n"
)


@contextlib.contextmanager
def holder(folder, seconds: float = 60.0):
  with starting() as start:
    process = start("-c", _HOLD, folder, seconds, stderr=subprocess.PIPE)
    assert process.stdout.readline() == "held\n", process.stderr.read()
    yield process


def test_a_work_directory_in_a_bucket_is_held_by_one_and_free_when_that_is_killed(store):
  folder = path_of("run")
  with holder(folder) as first:
    expected = rf"in use by process {first.pid} on {socket.gethostname()} since .*another --workdir"
    with pytest.raises(locks.InUseError, match=expected), locks.of_work_directory(folder, "train"):
      pass
    first.kill()
    first.wait()
    assert store.names() == ["run/.lock"]
    with locks.of_work_directory(folder, "train"):
      assert json.loads(store.read("run/.lock"))["pid"] == os.getpid()
  assert not store.names()


def left_behind(store) -> None:
  """The lease of a process on another host."""
  text = {
    "pid": 1,
    "host": "elsewhere",
    "pids": "x",
    "since": "2026-01-01 00:00",
    "purpose": "train",
  }
  store.put("run/.lock", json.dumps(text).encode())


def test_a_lease_of_another_host_counts_until_it_was_not_renewed_for_a_while(store, monkeypatch):
  left_behind(store)
  expected = "process 1 on elsewhere"
  with (
    pytest.raises(locks.InUseError, match=expected),
    locks.hold(path_of("run"), "train"),
  ):
    pass
  monkeypatch.setattr(buckets, "LEASE_SECONDS", 0.2)
  time.sleep(0.3)
  with locks.hold(path_of("run"), "train"):
    pass


def test_of_several_that_find_an_abandoned_lease_one_gets_it(store, monkeypatch):
  left_behind(store)
  store.set("age", "run/.lock")
  got, done = [], threading.Event()

  def take():
    try:
      with locks.hold(path_of("run"), "train"):
        got.append(True)
        done.wait(20)
    except locks.InUseError:
      got.append(False)

  threads = [threading.Thread(target=take) for _ in range(4)]
  for thread in threads:
    thread.start()
  while len(got) < 4:
    time.sleep(0.02)
  done.set()
  for thread in threads:
    thread.join()
  assert sorted(got) == [False, False, False, True]


def test_a_lease_is_renewed_while_it_is_held(store, monkeypatch):
  monkeypatch.setattr(buckets, "LEASE_SECONDS", 0.8)
  with locks.hold(path_of("run"), "train"):
    generation = store.generation("run/.lock")
    time.sleep(1.5)
    assert store.generation("run/.lock") > generation
    with pytest.raises(locks.InUseError), locks.hold(path_of("run"), "train"):
      pass
  assert not store.names()


def test_a_process_whose_lease_another_has_taken_ends_before_it_writes_more(store):
  with holder(path_of("run"), 0.8) as process:
    left_behind(store)
    assert process.wait(20) == 1
    assert "another process has taken it" in process.stderr.read()
  assert json.loads(store.read("run/.lock"))["host"] == "elsewhere"


def test_a_bucket_that_is_not_there_or_closed_is_named(store):
  with (
    pytest.raises(locks.FolderError, match=r"gs://no-such-bucket/run: .*no such bucket"),
    locks.of_work_directory(paths.resolve("gs://no-such-bucket/run", "--workdir"), "train"),
  ):
    pass
  store.set("deny", "1")
  with (
    pytest.raises(locks.FolderError, match=rf"{BUCKET}/run: .*does not have storage.objects"),
    locks.of_work_directory(path_of("run"), "train"),
  ):
    pass


# Files that are read.


def test_weights_in_a_bucket_are_copied_once_a_version(store, tmp_path):
  url = f"{BUCKET}/weights/own.safetensors"
  store.put("weights/own.safetensors", b"first")
  one = sources.locate(url, cache_dir=tmp_path, progress=False)
  assert one.read_bytes() == b"first" and one.parent == tmp_path
  assert sources.locate(url, cache_dir=tmp_path, progress=False) == one
  store.put("weights/own.safetensors", b"second")
  two = sources.locate(url, cache_dir=tmp_path, progress=False)
  assert two != one and two.read_bytes() == b"second"
  with pytest.raises(sources.SourceError, match=r"gs://.*none\.pth.* cannot be read"):
    sources.locate(f"{BUCKET}/weights/none.pth", cache_dir=tmp_path)


def test_archives_are_fetched_from_a_bucket(store, tmp_path):
  archive = b"Rar!" + bytes(200_000)
  name = mirrors.ARCHIVES["hmdb51"][0].name
  store.put(f"archives/{name}", archive)
  download = downloads.Download(
    url=f"{BUCKET}/archives/{name}",
    path=tmp_path / name,
    checksum=downloads.Checksum("sha256", hashlib.sha256(archive).hexdigest()),
    other_folder="choose another",
  )
  assert downloads.fetch(download, progress=False).read_bytes() == archive
  (tmp_path / name).write_bytes(b"wrong")
  with pytest.raises(downloads.ChecksumError):
    downloads.fetch(download, progress=False)


def test_a_file_in_a_bucket_appears_whole(store):
  with pytest.raises(RuntimeError), files.whole_file(f"{BUCKET}/a/b.json") as part:
    part.write_bytes(b"half")
    raise RuntimeError
  assert not store.names()
  files.write_json(f"{BUCKET}/a/b.json", {"a": 1})
  assert store.names() == ["a/b.json"] and json.loads(store.read("a/b.json")) == {"a": 1}
