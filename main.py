"""Train, evaluate, predict, export, inspect: python main.py --config=configs/demo.py --workdir=RUN.

The flags are those of `hybrid_video.command`; `--help` lists them.
"""

from hybrid_video import command

if __name__ == "__main__":
  command.start("input_pipeline")
