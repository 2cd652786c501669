"""What a clip is: which frames of a video, and what is cut out of them; in training, in evaluation.

In: values from a config. Out: checked settings, and what they mean in words.
"""

import dataclasses
from typing import ClassVar

from hybrid_video.analysis.aggregation import AGGREGATIONS, WHOLE_VIDEO
from hybrid_video.settings import SettingError, Settings, setting

MODES = ("seconds", "stride", "segments")
SHORT = ("fit", "loop", "last")
CROPS = ("random", "multi_scale", "random_resized")


@dataclasses.dataclass(frozen=True)
class Sampling(Settings):
  """How frames are chosen, see `frames`.

  Attributes:
    frames: frames of a clip.
    mode: "seconds", "stride" or "segments".
    window_seconds: length of the window, in mode "seconds".
    stride: positions from frame to frame, in mode "stride".
    rate: positions a second; 0 is the video's own rate. Not above the video's own.
    short: what a video shorter than the window does: "fit", "loop" or "last"; segments always fit.
    crop: pixels of the square that the model sees.
  """

  frames: int = setting(16, at_least=1)
  mode: str = setting("seconds", choices=MODES)
  window_seconds: float = setting(2.0, above=0)
  stride: int = setting(1, at_least=1)
  rate: float = setting(0.0, at_least=0)
  short: str = setting("fit", choices=SHORT)
  crop: int = setting(112, at_least=1)

  def describe(self) -> str:
    """In words, which frames a clip has."""
    rate = f"{self.rate:g} frames a second" if self.rate else "the video's own rate"
    if self.mode == "segments":
      return f"one frame of each of {self.frames} equal segments of the video"
    if self.mode == "stride":
      return f"{self.frames} frames, every {self.stride}. at {rate}"
    return f"{self.frames} frames evenly over {self.window_seconds:g} s at {rate}"


@dataclasses.dataclass(frozen=True)
class ClipSettings(Sampling):
  """Clips for training.

  Attributes:
    crop_mode: how the square is cut out. "random": a square of `crop` pixels anywhere.
      "multi_scale": sides drawn from `scales` times the shorter stored side, no more than one step
      apart, at one of 13 positions, resized (TSN's way). "random_resized": a box of a share of the
      area from `area` and an aspect ratio from `aspect` (log-uniform), anywhere, resized.
    scales: of "multi_scale", descending.
    area: of "random_resized", least and most share of the frame.
    aspect: of "random_resized", least and most width / height.
    flip: whether half of the clips are mirrored. That is done on the device.
    repeats: clips of each video, one after the other, each with a window, crop and mirroring of its own;
      an epoch is so many times as long (repeated augmentation: Hoffer et al. 2020, arXiv:1901.09335).
  """

  PATH: ClassVar[str] = "clip"

  crop_mode: str = setting("random", choices=CROPS)
  scales: tuple[float, ...] = setting((1.0, 0.875, 0.75, 0.66), above=0, at_most=1)
  area: tuple[float, float] = setting((0.5, 1.0), above=0, at_most=1)
  aspect: tuple[float, float] = setting((3 / 4, 4 / 3), above=0, at_most=100)
  flip: bool = setting(True)
  repeats: int = setting(1, at_least=1)

  def validate(self) -> None:
    """Checks that ranges ascend and that there is a scale."""
    for name in ("area", "aspect"):
      low, high = getattr(self, name)
      if low > high:
        raise SettingError(f"{self.path(name)} is {(low, high)}: expected ascending numbers.")
    if not self.scales:
      raise SettingError(f"{self.path('scales')} is empty: expected one or more scales.")


@dataclasses.dataclass(frozen=True)
class EvaluationSettings(Sampling):
  """Clips for evaluation and prediction: views that cover each video.

  In an experiment, the fields of `Sampling` are the training clip's unless set.

  Attributes:
    clips: windows a video, evenly spaced; 0 is the fewest that cover it.
    crops: 1 for the centre; 3 for both ends of the longer side and the centre.
    aggregation: how a video's score comes of its views': "mean_probabilities", "mean_logits" or
      "majority_vote", see `analysis.aggregation`; or "whole_video": the hybrid's latents read the windows one
      after the other, in memory that does not grow with the video, and answer for all of them.
  """

  PATH: ClassVar[str] = "evaluation"

  clips: int = setting(0, at_least=0)
  crops: int = setting(1, at_least=1, at_most=3)
  aggregation: str = setting(AGGREGATIONS[0], choices=(*AGGREGATIONS, WHOLE_VIDEO))

  def validate(self) -> None:
    """Checks the number of crops."""
    if self.crops == 2:
      raise SettingError(f"{self.path('crops')} is 2: expected 1 or 3.")
    if self.aggregation == WHOLE_VIDEO and self.crops != 1:
      raise SettingError(
        f"{self.path('crops')} is {self.crops} with {self.path('aggregation')}={WHOLE_VIDEO}: a video is read "
        "in one pass, by one crop. Set it to 1."
      )

  def describe_views(self) -> str:
    """How an evaluation looks at a video, in words."""
    windows = (
      f"{self.clips} evenly spaced windows"
      if self.clips
      else "uniform windows, the fewest that cover each video"
    )
    crops = "centre crop" if self.crops == 1 else "3 crops along the longer side"
    return f"{windows}: {self.describe()}; {crops} of {self.crop} pixels"
