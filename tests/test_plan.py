"""Plans: what is counted, what fits, what is proposed, what is said; no plan trains."""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import pytest

from configs import demo, hmdb51, videos
from hybrid_video import errors, experiment, plan
from hybrid_video.planning import (
  alternatives,
  child,
  compiler,
  lengths,
  program,
  step,
  text,
  topologies,
)

ROOT = pathlib.Path(__file__).parent.parent
GIB = topologies.GIB
HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None


def small(**changes):
  """A narrow transformer on a few small frames."""
  config = demo.get_config()
  with config.unlocked():
    config.clip.frames, config.clip.crop = 4, 16
    config.model.name, config.model.depth = "videomae_small", 1
    config.update_from_flattened_dict(changes)
  return experiment.from_config(config)


def answered(chosen, topology=None, measured_steps=0):
  """The events of the process that compiles, in this one."""
  request = {
    "experiment": json.loads(json.dumps(chosen.to_json())),
    "num_classes": 8,
    "topology": topology,
    "measured_steps": measured_steps,
  }
  events = []
  child.answer(request, events.append)
  return {event.pop("event"): event for event in events}


@pytest.fixture(scope="module")
def events():
  return answered(small(ema_decay=0.9, fsdp=2), measured_steps=1)


def test_a_device_holds_its_share_of_the_state_and_the_batch(events):
  sizes = events["sizes"]
  whole, share = sizes["bytes"], sizes["device_bytes"]
  total = sizes["parameters"]["total"]
  assert total == sizes["trained"] > 0
  assert whole["parameters"] == whole["gradients"] == 4 * total
  # AdamW's two moments and its counter; averages of parameters and statistics.
  assert 0 <= whole["optimizer"] - 8 * total <= 16
  assert whole["averages"] == whole["parameters"] + whole["statistics"]
  # A clip of 4x16x16x3 bytes, a label of 4, a flag; among four devices.
  assert whole["batch"] == 8 * (4 * 16 * 16 * 3 + 5)
  assert share["batch"] == whole["batch"] // 4
  assert whole["parameters"] / 2 <= share["parameters"] < whole["parameters"]
  costs = sizes["multiply_accumulates"]
  assert 2 < costs["step"] / (8 * costs["clip"]) <= 3.1


def test_a_step_on_this_machine_is_compiled_and_timed(events):
  memory = events["compiled"]["memory"]
  # With four devices nothing is in its place but in parts; all of it is counted.
  assert memory["total"] == sum(memory[k] for k in ("arguments", "outputs", "temporary", "code"))
  assert memory["arguments"] > 0 and memory["temporary"] > 0
  assert events["compiled"]["collectives"]
  (seconds,) = events["measured"]["seconds"]
  assert seconds > 0
  assert events["sizes"]["devices"]["platform"] == "cpu"


def test_what_is_frozen_has_no_gradient_and_parts_of_a_batch_cost_what_the_whole_does():
  def sizes(**changes):
    return step.sizes(step.make(small(**changes), 8, jax.devices()[:1]))

  plain, parts = sizes(), sizes(micro_batches=4)
  assert plain["multiply_accumulates"] == parts["multiply_accumulates"]
  frozen = sizes(**{"optimizer.freeze": ("head",)})
  counts = plain["parameters"]
  assert frozen["trained"] == counts["attention"]
  assert frozen["bytes"]["gradients"] == 4 * frozen["trained"]


def test_a_batch_that_does_not_divide_is_refused_with_the_nearest():
  refused = answered(small(batch_size=6))["refused"]["message"]
  assert "--config.batch_size is 6" in refused and "Set it to 4 or 8" in refused


@pytest.fixture
def answers(monkeypatch, events):
  """Answers of a compiler: bytes a device by (micro_batches, remat, fsdp, topology); else refused."""
  found, asked = {}, []

  def ask(chosen, num_classes, topology, *, on_sizes=None, **_):
    remat = chosen.model.options.get("remat") or "none"
    key = (chosen.micro_batches, remat, chosen.fsdp, topology and topology.name)
    asked.append(key)
    sizes = {**events["sizes"]}
    mib = 2**20
    sizes["device_bytes"] = {
      **dict.fromkeys(sizes["device_bytes"], 0),
      "parameters": 300 * mib,
      "gradients": 300 * mib,
      "optimizer": 600 * mib,
    }
    sizes["devices"] = {
      "platform": "tpu", "kind": "TPU v5 lite", "devices": 4, "hosts": 1, "device_memory": None,
    }  # fmt: skip
    sizes["has_batch_norm"] = chosen.model.name != "videomae_base"
    if on_sizes:
      on_sizes(sizes)
    if key not in found:
      return compiler.Answer(sizes, None, round(40 * GIB), round(15.75 * GIB))
    memory = {"arguments": 2 * GIB, "outputs": 0, "code": 0, "peak": 0}
    memory |= {"temporary": found[key] - 2 * GIB, "total": found[key]}
    compiled = {"memory": memory, "cycles": 1_503_295_898, "collectives": {}, "seconds": 3.0}
    return compiler.Answer(sizes, {**compiled, "prefetched_bytes": 0})

  monkeypatch.setattr(compiler, "ask", ask)
  return found, asked


def planned(name="videomae_base", **options):
  config = videos.get_config(f"hmdb51,model={name},recipe=scratch")
  with config.unlocked():
    config.batch_size = 64
  chosen = experiment.from_config(config)
  return plan.run(chosen, None, plan.Options(topology="v5e:2x2", **options))


def test_a_step_that_fits_is_planned_with_one_compilation(answers):
  found, asked = answers
  found[1, "none", 1, "v5e:2x2"] = 8 * GIB
  made = planned()
  assert made["fits"] and not made["tried"] and len(asked) == 1
  assert (made["classes"], made["training_videos"]) == (51, 3570)
  assert made["steps"] == round(25 * 3570 / 64)
  # One and a half billion cycles at the clock of 197 TFLOP/s over 131,072 operations a cycle.
  assert made["time"]["step_seconds"] == pytest.approx(1.0002, abs=1e-3)
  assert made["time"]["hours"] == pytest.approx(made["steps"] / 3600, rel=1e-3)
  assert "estimated cycles" in made["time"]["basis"]
  assert "It fits: 8.00 GiB of 16.00 GiB" in text.after(made)


def test_what_fits_first_is_proposed_and_what_was_tried_is_told(answers):
  found, asked = answers
  found[4, "none", 1, "v5e:2x2"] = 14 * GIB
  made = planned()
  # Of 40 GiB, half would still be too many by far: two parts are not even tried.
  assert asked == [(1, "none", 1, "v5e:2x2"), (4, "none", 1, "v5e:2x2")]
  assert made["suggestion"] == ["--config.micro_batches=4"]
  page = text.after(made)
  assert "It does not fit: 40.00 GiB of 15.75 GiB" in page
  assert "Add to the command: --config.micro_batches=4" in page


def test_with_batch_norm_recomputing_goes_before_parts(answers):
  found, asked = answers
  found[4, "none", 1, "v5e:2x2"] = 14 * GIB
  made = planned("r2plus1d_18")
  assert asked[1:] == [
    (1, "convolutions_saved", 1, "v5e:2x2"),
    (1, "blocks", 1, "v5e:2x2"),
    (2, "convolutions_saved", 1, "v5e:2x2"),
    (2, "blocks", 1, "v5e:2x2"),
    (4, "none", 1, "v5e:2x2"),
  ]
  assert made["suggestion"] == ["--config.micro_batches=4"]
  assert "another training" in made["notes"][-1]
  assert json.loads(json.dumps(made, allow_nan=False)) == made


def test_where_no_attempt_fits_it_says_so(answers):
  _, asked = answers
  made = planned(attempts=2)
  assert len(asked) == 3 and not made["suggestion"]
  assert "--attempts=" in made["notes"][-1]


def order(needed, limit=16 * GIB, **changes):
  config = videos.get_config("hmdb51,model=videomae_base,recipe=scratch")
  with config.unlocked():
    config.update_from_flattened_dict({"batch_size": 64, **changes})
  chosen = experiment.from_config(config)
  topology = topologies.named("v5e:2x2")
  listed = alternatives.listed(chosen, topology, 4, needed, limit, batch_norm=False)
  return [each.flags for each in listed]


def test_changes_come_in_order_of_what_they_cost():
  flags = order(alternatives.Needed(20 * GIB, 2 * GIB, GIB))
  assert flags[:2] == [("--config.micro_batches=2",), ("--config.micro_batches=4",)]
  cheap, remat, split, larger = (
    flags.index((flag,))
    for flag in (
      "--config.model.remat=convolutions_saved",
      "--config.model.remat=blocks",
      "--config.fsdp=4",
      "--topology=v5e:2x4",
    )
  )
  assert cheap < remat < split < larger
  # 16 parts of 4 clips are the most that 4 devices can share.
  assert not any("=32" in flag for each in flags for flag in each)


def test_a_state_that_is_too_large_is_split_first_and_parts_alone_are_not_tried():
  flags = order(alternatives.Needed(40 * GIB, 24 * GIB, 8 * GIB))
  assert flags[0] == ("--config.fsdp=4",)
  assert ("--config.micro_batches=2",) not in flags


def test_what_is_on_already_is_not_proposed():
  needed = alternatives.Needed(20 * GIB, 2 * GIB, GIB)
  flags = order(needed, micro_batches=2, fsdp=4, **{"model.remat": "convolutions_saved"})
  assert flags[0] == ("--config.micro_batches=4",)
  assert ("--config.model.remat=blocks",) in flags
  flat = [flag for each in flags for flag in each]
  assert not any("fsdp" in flag or "convolutions_saved" in flag for flag in flat)


PROGRAM = """HloModule jit_step, is_scheduled=true

%fused (p: f32[4]) -> f32[4] {
  ROOT %add.1 = f32[4]{0} add(%p, %p)
}

%condition (p: (s32[], f32[4])) -> pred[] {
  %constant.3 = s32[]{:T(128)} constant(3)
  ROOT %lt = pred[] compare(%i, %constant.3), direction=LT
}

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %fusion.1 = f32[4]{0} fusion(%x), calls=%fused, metadata={op_name="jit(step)/layer1.0/dot"}, backend_config={"estimated_cycles":"10"}
  %all-gather.1 = bf16[8,2]{1,0} all-gather(%y), dimensions={0}
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %while.1 = (s32[], f32[4]) while(%t), condition=%condition, body=%body
  %fusion.9 = f32[4]{0} fusion(%x), backend_config={"estimated_cycles":"9223372036854775807"}
  %fusion.2 = f32[4]{0} fusion(%x), calls=%fused, metadata={op_name="transpose(jvp())/layer1.0/dot"}, backend_config={"estimated_cycles":"5"}
  %all-reduce.1 = (f32[4]{0}, bf16[3]{0}) all-reduce(%x, %z), to_apply=%fused
  %copy-start.1 = (f32[16]{0}, f32[4]{0}, u32[]) copy-start(%x)
}
"""


def test_a_loops_cycles_and_messages_count_as_often_as_it_runs():
  told = program.account(PROGRAM, re.compile(r"(layer\d\.\d)"))
  assert (told["cycles"], told["not_estimated"]) == (3 * 10 + 5, 1)
  assert told["parts"] == {"layer1.0": {"forward": 30, "backward": 5}}
  assert told["collectives"] == {
    "all-gather": {"count": 3, "bytes": 3 * 32},
    "all-reduce": {"count": 1, "bytes": 16 + 6},
  }
  assert told["all_reduces"] == [22]
  assert told["prefetched_bytes"] == 16
  known = PROGRAM.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}')
  assert program.account(known)["cycles"] == 75


NESTED = """HloModule jit_f
%few (p: s32[]) -> pred[] {
  %n = s32[]{:T(128)} constant(5)
  ROOT %lt = pred[] compare(%p, %n), direction=LT
}
%many (p: s32[]) -> pred[] {
  %m = s32[]{:T(128)} constant(8)
  ROOT %lt = pred[] compare(%p, %m), direction=LT
}
%inner.2 (p: s32[]) -> s32[] {
  %a = s32[] fusion(%p), backend_config={"estimated_cycles":"3"}
}
%outer.1 (p: s32[]) -> s32[] {
  %b = s32[] fusion(%p), backend_config={"estimated_cycles":"10"}
  %c = s32[] while(%b), condition=%few, body=%inner.2
}
ENTRY %main (p: s32[]) -> s32[] {
  %e = s32[] fusion(%p), backend_config={"estimated_cycles":"100"}
  %f = s32[] while(%e), condition=%many, body=%outer.1
}
"""


def test_a_loop_within_a_loop_counts_as_often_as_both_run():
  told = program.account(NESTED)
  assert (told["cycles"], told["unknown_loops"]) == (100 + 8 * (10 + 5 * 3), [])


def test_a_loop_that_does_not_tell_how_often_it_runs_counts_once_and_is_told():
  told = program.account(NESTED.replace("constant(5)", "parameter(1)"))
  assert (told["cycles"], told["unknown_loops"]) == (100 + 8 * (10 + 3), ["few"])


@pytest.mark.parametrize(
  ("complaint", "expected"),
  [
    (
      "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 21.50G of 15.75G hbm. Exceeded "
      "hbm capacity by 5.75G.",
      (round(21.5 * GIB), round(15.75 * GIB)),
    ),
    (
      "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
      "required for HLO temporaries (31.87G) exceeds available HBM (15.75G). HLO module: jit_step.",
      (round(31.87 * GIB) + GIB, round(15.75 * GIB)),
    ),
    ("INTERNAL: something else", None),
  ],
)
def test_the_compilers_complaint_about_memory_is_read(complaint, expected):
  assert program.memory_wanted(complaint, GIB) == expected


def test_topologies_have_their_chips_hosts_and_clocks():
  assert (topologies.named("v5e:2x4").chips, topologies.named("v5e:2x4").hosts) == (8, 1)
  assert (topologies.named("v5e:4x4").chips, topologies.named("v5e:4x4").hosts) == (16, 4)
  assert topologies.named("v4:2x2x1").hosts == 1
  assert topologies.named("v5e:2x2").generation.clock == pytest.approx(1.5e9, rel=0.01)
  assert [of.name for of in topologies.named("v6e:8x8").larger()] == ["v6e:8x16", "v6e:16x16"]


@pytest.mark.parametrize(
  ("name", "expected"),
  [("v5e:2x3", "v5e:2x2"), ("v5:2x2", "v5e:2x2"), ("tpu", "v6e:2x2"), ("v4:2x2", "v4:2x2x1")],
)
def test_an_unknown_topology_is_named_with_the_nearest(name, expected):
  with pytest.raises(topologies.TopologyError, match="no such topology") as raised:
    topologies.named(name)
  assert expected in str(raised.value)


def test_lengths_are_known_listed_or_asked_for(tmp_path):
  known = lengths.find(experiment.from_config(hmdb51.get_config()), None, None)
  assert (known.classes, known.videos) == (51, 3570)
  config = videos.get_config("folder")
  with pytest.raises(lengths.LengthError, match="--classes=N"):
    lengths.find(experiment.from_config(config), None, None)
  asked = lengths.find(experiment.from_config(config), 7, None)
  assert (asked.classes, asked.videos) == (7, None)
  for name in ("run", "jump"):
    (tmp_path / name).mkdir()
    for number in range(20):
      (tmp_path / name / f"{number}.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(30))
  with config.unlocked():
    config.data_dir = str(tmp_path)
  listed = lengths.find(experiment.from_config(config), None, None)
  assert listed.classes == 2 and 20 < listed.videos < 40
  with config.unlocked():
    config.validation_share = 0.3
  held_out = lengths.find(experiment.from_config(config), None, None)
  assert 0 < held_out.videos < listed.videos


def test_a_compiler_that_dies_or_hangs_is_told_from_one_that_refuses(monkeypatch):
  python = sys.executable

  def ask(script, limit=60.0):
    monkeypatch.setattr(compiler.sys, "executable", str(script))
    return compiler.ask(small(), 8, None, what="the step", limit_seconds=limit)

  with pytest.raises(compiler.CompilerError, match="ended with exit code 1"):
    ask("/bin/false")
  monkeypatch.setattr(compiler, "_environment", lambda _: {"PYTHONPATH": str(ROOT)})
  with pytest.raises(compiler.CompilerError, match="--time_limit"):
    ask(python, limit=0.0)


def test_a_missing_compiler_is_named_with_what_installs_it(monkeypatch):
  monkeypatch.setitem(sys.modules, "libtpu", None)
  with pytest.raises(errors.MissingExtraError, match=r"--topology=v5e:2x2 needs.*\[plan\]"):
    plan.run(small(), None, plan.Options(topology="v5e:2x2"))


def test_the_memory_left_is_the_machines_or_the_containers(tmp_path):
  assert plan.host_memory(tmp_path) is None
  (tmp_path / "proc").mkdir()
  (tmp_path / "proc/meminfo").write_text("MemTotal: 20 kB\nMemAvailable:   16 kB\n")
  assert plan.host_memory(tmp_path) == 16 * 1024
  group = tmp_path / "sys/fs/cgroup"
  group.mkdir(parents=True)
  (group / "memory.max").write_text("9000\n")
  (group / "memory.current").write_text("4000\n")
  assert plan.host_memory(tmp_path) == 5000
  (group / "memory.max").write_text("max\n")
  assert plan.host_memory(tmp_path) == 16 * 1024


def command(*arguments, timeout=600):
  environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
  return subprocess.run(
    [sys.executable, "main.py", "--mode=plan", *arguments],
    cwd=ROOT,
    env={**environment, "XLA_FLAGS": "--xla_backend_optimization_level=0"},
    capture_output=True,
    text=True,
    timeout=timeout,
    check=False,
  )


SMALL = (
  "--config=configs/demo.py",
  "--config.clip.frames=4",
  "--config.clip.crop=16",
  "--config.model.name=videomae_small",
  "--config.model.depth=1",
)


def test_the_command_plans_without_data_and_writes_a_file(tmp_path):
  done = command(*SMALL, f"--workdir={tmp_path / 'run'}")
  assert done.returncode == 0, done.stderr
  for said in (
    "Parameters of videomae_small, 8 classes",
    "steps  ",
    "It fits",
    "Hours: no estimate",
  ):
    assert said in done.stdout
  made = json.loads((tmp_path / "run" / plan.FILE).read_text())
  assert made["steps"] == 1400 and made["fits"] is True
  assert [path.name for path in (tmp_path / "run").iterdir()] == [plan.FILE]


@pytest.mark.slow
@pytest.mark.skipif(not HAS_LIBTPU, reason="libtpu is not installed")
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5e:4x4"])
def test_a_step_is_compiled_for_tpus_that_are_not_there(topology, tmp_path):
  more = (f"--topology={topology}", f"--workdir={tmp_path}", "--config.batch_size=16")
  done = command(*SMALL, *more, timeout=1200)
  assert done.returncode == 0, done.stderr
  made = json.loads((tmp_path / plan.FILE).read_text())
  assert made["devices"] == topologies.named(topology).chips
  assert made["hosts"] == topologies.named(topology).hosts
  assert made["compiled"]["cycles"] > 1000
  assert made["compiled"]["collectives"]["all-reduce"]["bytes"] > 0
  assert made["fits"] is True
