import json

import pytest

from benchmarks import attention as benchmark


def test_the_benchmark_ends_with_one_json_object_whose_counts_are_those_of_the_blocks(
  monkeypatch, capsys, tmp_path
):
  monkeypatch.setattr(benchmark, "LENGTHS", (8, 16))
  monkeypatch.setattr(benchmark, "QUICK_LENGTHS", (8, 16))
  monkeypatch.setattr("sys.argv", ["attention.py", "--quick", f"--results={tmp_path}", "--name=x"])
  benchmark.main()
  found = json.loads(capsys.readouterr().out.splitlines()[-1])
  rows = {(row["kind"], row["frames"]): row for row in found["rows"]}
  assert len(rows) == len(found["rows"]) == 6
  # 512 channels, 8 heads of 64, feed-forward to 2 x 2048 and back; 256 latents, one head of 64.
  feed_forward = 512 * 4096 + 2048 * 512
  for frames, tokens in ((8, 49), (16, 98)):
    assert all(rows[kind, frames]["tokens"] == tokens for kind in benchmark.KINDS)
    own = tokens * (4 * 512 * 512 + feed_forward) + 2 * tokens**2 * 512
    latents = 256 * (2 * 512 * 64 + feed_forward)
    cross = latents + tokens * (512 + 3 * 13) * 128 + 2 * 256 * tokens * 64
    read = tokens // 49 + 1
    bert = read * (4 * 512 * 512 + 2 * 512 * 2048) + 2 * read**2 * 512
    assert [rows[kind, frames]["macs"] for kind in ("self", "cross", "bert")] == [own, cross, bert]
  assert all(row["forward_ms"] > 0 and row["temp_bytes"] > 0 for row in rows.values())
  assert found["bert_to_self_16"] > 0 and found["cross_to_self_16"] > 0
  assert found["crossover_tokens_macs"] is None
  assert (tmp_path / "x.png").stat().st_size > 10_000


def test_lines_of_two_slopes_cross_where_they_meet():
  rows = [
    {"kind": kind, "tokens": tokens, "cost": cost}
    for tokens in (100, 400, 1600)
    for kind, cost in (("cross", 40_000 * tokens), ("self", 100 * tokens**2), ("bert", 1))
  ]
  assert benchmark.crossover(rows, "cost") == pytest.approx(400)
  assert benchmark.crossover([row for row in rows if row["tokens"] < 400], "cost") is None
  shifted = [{**row, "cost": row["cost"] * (1 + (row["kind"] == "cross"))} for row in rows]
  assert benchmark.crossover(shifted, "cost") == pytest.approx(800)


PROGRAM = """HloModule jit_f
%few (p: s32[]) -> pred[] {
  %n = s32[]{:T(128)} constant(5)
}
%inner (p: s32[]) -> s32[] {
  %a = s32[] fusion(%p), backend_config={"estimated_cycles":"3"}
}
ENTRY %main (p: s32[]) -> s32[] {
  %c = s32[] while(%p), condition=%few, body=%inner
}
"""


def test_a_loop_that_does_not_tell_how_often_it_runs_is_refused():
  assert benchmark.accounted(PROGRAM)["cycles"] == 5 * 3
  with pytest.raises(benchmark.BenchmarkError, match="few of compiled loops do not tell"):
    benchmark.accounted(PROGRAM.replace("constant(5)", "parameter(1)"))
