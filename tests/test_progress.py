"""The status line on a terminal, the log file, a profile of chosen steps, and durations."""

import io
import logging
import re
import sys
import threading

import jax
import jax.numpy as jnp
import pytest

from hybrid_video import errors, progress
from hybrid_video.report import device_memory, log_file, profiling


class Terminal(io.StringIO):
  """A terminal of 60 columns that keeps what was sent to it."""

  broken = False

  def isatty(self) -> bool:
    return True

  def write(self, text: str) -> int:
    if self.broken:
      raise OSError(5, "Input/output error")
    return super().write(text)

  def screen(self) -> list[str]:
    """The lines as they are seen, by the few controls that are used."""
    lines, column = [""], 0
    for part in re.findall(r"\x1b\[2K|\r|\n|[^\r\n\x1b]+", self.getvalue()):
      if part == "\n":
        lines.append("")
        column = 0
      elif part == "\r":
        column = 0
      elif part == "\x1b[2K":
        lines[-1] = ""
      else:
        lines[-1] = lines[-1][:column].ljust(column) + part + lines[-1][column + len(part) :]
        column += len(part)
    return lines


@pytest.fixture
def terminal(monkeypatch) -> Terminal:
  monkeypatch.setenv("TERM", "xterm")
  monkeypatch.setenv("COLUMNS", "60")
  return Terminal()


@pytest.fixture
def clock(monkeypatch) -> list[float]:
  """The time that `progress` sees, in a list of one."""
  now = [100.0]
  monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
  return now


@pytest.fixture
def logger():
  logger = logging.getLogger("hybrid_video.of_this_test")
  logger.propagate = False
  logger.setLevel(logging.INFO)
  yield logger
  logger.handlers.clear()


def test_the_line_stays_below_what_is_logged(terminal, logger, clock):
  logger.addHandler(progress.LogHandler(terminal))
  logger.info("before")
  with progress.StatusLine("step", 200, unit="clips", per_count=8, stream=terminal) as status:
    status.update(1, loss=2.5)
    clock[0] += 10
    status.update(101, loss=1.25)
    seen = terminal.screen()
    assert seen[0] == "before" and len(seen) == 2
    # As wide as the terminal, less one.
    assert seen[1] == "step 101/200 [############------------]  50 %  loss 1.25  80.0 clips/s"[:59]
    assert status.text().endswith("  80.0 clips/s  10s left")
    logger.info("a report")
    seen = terminal.screen()
    assert seen[:2] == ["before", "a report"] and seen[2].startswith("step 101/200")
    # Drawn again only after a while, which no eye sees.
    clock[0] += 0.01
    status.update(102)
    assert terminal.screen()[2].startswith("step 101/200")
  logger.info("after")
  assert terminal.screen() == ["before", "a report", "after", ""]


def test_no_terminal_gets_no_line(monkeypatch, terminal):
  pipe = io.StringIO()
  with progress.StatusLine("step", 2, stream=pipe) as status:
    status.update(1)
  monkeypatch.setenv("TERM", "dumb")
  with progress.StatusLine("step", 2, stream=terminal) as status:
    status.update(1)
  assert pipe.getvalue() == terminal.getvalue() == ""


def test_a_terminal_that_is_closed_ends_nothing(terminal):
  with progress.StatusLine("step", 2, stream=terminal) as status:
    terminal.broken = True
    status.update(1)
    status.update(2)
  assert "step 0/2" in terminal.getvalue()


def test_lines_of_many_threads_stay_whole(terminal, logger):
  logger.addHandler(progress.LogHandler(terminal))

  def write(number: int) -> None:
    for i in range(50):
      logger.info("thread %d line %d", number, i)

  threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
  with progress.StatusLine("step", 1000, stream=terminal) as status:
    for thread in threads:
      thread.start()
    for step in range(1000):
      status._drawn = 0.0
      status.update(step)
    for thread in threads:
      thread.join()
  lines = terminal.screen()[:-1]
  assert sorted(lines) == sorted(f"thread {n} line {i}" for n in range(4) for i in range(50))


@pytest.mark.parametrize(
  ("seconds", "text"), [(0.4, "0s"), (59.6, "1m00s"), (185, "3m05s"), (7620, "2h07m")]
)
def test_durations_are_short_texts(seconds, text):
  assert progress.duration(seconds) == text


@pytest.fixture
def project_log():
  logger = logging.getLogger("hybrid_video")
  level = logger.level
  logger.setLevel(logging.INFO)
  yield logger
  logger.setLevel(level)


def test_the_log_of_a_work_directory_grows_over_all_starts(tmp_path, monkeypatch, project_log):
  workdir = tmp_path / "run"
  monkeypatch.setattr(sys, "argv", ["/somewhere/main.py", "--workdir=a b"])
  with log_file.attached(workdir):
    assert not workdir.exists()
    project_log.info("a table:\n  a row of \x1b[31mred")
  with pytest.raises(errors.UserError), log_file.attached(workdir):
    project_log.warning("careful")
    raise errors.UserError("no room")
  with pytest.raises(KeyboardInterrupt), log_file.attached(workdir):
    project_log.info("again")
    raise KeyboardInterrupt
  project_log.info("of another work directory")
  lines = (workdir / "log.txt").read_text().splitlines()
  assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", line) for line in lines)
  texts = [line[21:] for line in lines]
  header = re.compile(r"--- hybrid_video [\d.]+\w*, process \d+: main.py '--workdir=a b'")
  assert header.fullmatch(texts[0]) and sum(bool(header.fullmatch(text)) for text in texts) == 3
  assert [text for text in texts if not text.startswith("---")] == [
    "a table:",
    "  a row of \\x1b[31mred",
    "WARNING: careful",
    "Error: no room",
    "again",
    "Stopped: KeyboardInterrupt",
  ]


def test_what_is_refused_before_its_first_line_leaves_no_file(tmp_path):
  with pytest.raises(errors.UserError), log_file.attached(tmp_path / "run"):
    raise errors.UserError("no such setting")
  assert not (tmp_path / "run").exists()


def test_a_log_that_cannot_be_written_is_said_once_and_ends_nothing(tmp_path, logged):
  (tmp_path / "run").write_text("a file")
  with log_file.attached(tmp_path / "run"):
    for number in range(3):
      logging.getLogger("hybrid_video").info("line %d", number)
  assert [message for message in logged.messages if "missing" in message] == [
    m for m in logged.messages if m.startswith(f"{tmp_path / 'run' / 'log.txt'}: lines of the log")
  ]
  assert len(logged.messages) == 4


class Traces:
  """JAX's profiler, as far as it is used."""

  def __init__(self, monkeypatch):
    self.calls: list[str] = []
    self.step = 0
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: self._note("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: self._note("stop"))

  def _note(self, what: str) -> None:
    self.calls.append(f"{what} before {self.step}")

  def run(self, steps, numbers) -> list[str]:
    with profiling.Profile("runs/tensorboard", steps) as profile:
      for self.step in numbers:
        profile.step(self.step, jnp.zeros(2))
      self.step = -1
    return self.calls


@pytest.mark.parametrize(
  ("steps", "numbers", "expected", "said"),
  [
    ((3, 4), range(1, 8), ["start before 3", "stop before 5"], "Profile of steps 3 to 4: runs"),
    ((3, 4), range(4, 8), ["start before 4", "stop before 5"], "Profile of steps 4 to 4: runs"),
    ((3, 9), range(1, 6), ["start before 3", "stop before -1"], "Profile of steps 3 to 5: runs"),
    ((1, 1), range(1, 2), ["start before 1", "stop before -1"], "Profile of steps 1 to 1: runs"),
    ((3, 4), range(5, 8), [], ""),
    ((8, 9), range(1, 6), [], "the run ended before step 8"),
    ((), range(1, 6), [], ""),
  ],
)
def test_a_profile_has_its_steps_wherever_a_run_begins_and_ends(
  monkeypatch, logged, steps, numbers, expected, said
):
  assert Traces(monkeypatch).run(steps, numbers) == expected
  assert said in logged.text and bool(said) == bool(logged.text)


def test_a_real_profile_lies_where_tensorboard_looks(tmp_path, logged):
  with profiling.Profile(tmp_path, (2, 2)) as profile:
    for step in (1, 2, 3):
      profile.step(step)
      jnp.ones(3).block_until_ready()
  assert list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))
  assert str(tmp_path / "plugins" / "profile") in logged.text


def test_a_profile_that_fails_costs_nothing_else(monkeypatch, logged):
  def fail(folder):
    raise RuntimeError("another profile is taken")

  monkeypatch.setattr(jax.profiler, "start_trace", fail)
  with profiling.Profile("runs", (1, 3)) as profile:
    for step in (1, 2, 3):
      profile.step(step)
  assert logged.messages == ["There will be no profile: another profile is taken"]


class Device:
  def __init__(self, stats):
    self._stats = stats

  def memory_stats(self):
    return self._stats


@pytest.mark.parametrize(
  ("stats", "peak"),
  [([{"peak_bytes_in_use": 5}, {"peak_bytes_in_use": 9}], 9), ([None, {}], None)],
)
def test_the_fullest_device_counts(monkeypatch, stats, peak):
  monkeypatch.setattr(jax, "local_devices", lambda: [Device(of_device) for of_device in stats])
  assert device_memory.peak_bytes() == peak
