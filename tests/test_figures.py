"""Figures: every frame where it belongs, and names of any letters in each of them."""

import warnings

import matplotlib.figure
import matplotlib.text
import numpy as np
from PIL import Image
import pytest

from hybrid_video import errors
from hybrid_video.report import figures

# A formula that cannot be parsed, and one that can; letters that the font lacks; a line break.
NAMES = ("cost_$5_to_$10", "$\\frac$ 挥手", "$x^2$", "שלום\nעולם", "name_" * 80)


def size_of(path) -> tuple[int, int]:
  with Image.open(path) as picture:
    return picture.size


def strip(count=3, title="wave", size=(20, 30)) -> figures.Strip:
  rng = np.random.default_rng(count)
  frames = rng.integers(0, 256, (count, *size, 3)).astype(np.uint8)
  return figures.Strip(title, frames, [f"{i}" for i in range(count)], "detail")


def test_a_strip_shows_every_frame_as_it_is():
  small = strip(4, size=(20, 30))
  picture = small.picture()
  # Enlarged five times to 100 pixels, with three gaps.
  assert picture.shape == (100, 4 * 150 + 3 * 4, 4)
  for i, frame in enumerate(small.frames):
    left = i * 154
    np.testing.assert_array_equal(picture[::5, left : left + 150 : 5, :3], frame)
  assert (picture[:, 150:154, 3] == 0).all()
  large = strip(2, size=(120, 90)).picture()
  assert large.shape == (120, 184, 4)


def test_a_strip_needs_a_label_for_each_frame():
  with pytest.raises(ValueError, match="3 frames and 2 labels"):
    figures.Strip("wave", strip(3).frames, ["0", "1"])


def test_a_sheet_takes_any_name_and_keeps_its_width(tmp_path):
  # Mathematical markup, letters that the font lacks, and a name wider than the sheet.
  long = figures.Strip("$\\frac$ 挥手", strip(4).frames, ["$x$"] * 4, "name_" * 80)
  figures.sheet(tmp_path / "long.png", [long, strip(2)])
  figures.sheet(tmp_path / "short.png", [strip(4), strip(2)])
  widths = [size_of(tmp_path / f"{name}.png")[0] for name in ("long", "short")]
  assert abs(widths[0] - widths[1]) <= 15


def test_clips_and_their_predictions_make_a_sheet(tmp_path):
  clips = np.zeros((2, 16, 24, 24, 3), np.uint8)
  figures.contact_sheet(tmp_path / "clips.png", clips, ["wave", "golf"], ["wave", "run"])
  width, height = size_of(tmp_path / "clips.png")
  assert width > 8 * 150 and height > 2 * 150


@pytest.mark.parametrize("name", NAMES)
def test_any_class_name_can_stand_in_every_figure(tmp_path, name):
  counts = np.array([[3, 1], [0, 2]])
  clips = np.zeros((1, 4, 24, 24, 3), np.uint8)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    figures.confusion_matrix(tmp_path / "confusion.png", counts, [name, "wave"])
    figures.contact_sheet(tmp_path / "clips.png", clips, [name], [f"{name} too"])
    figures.sheet(tmp_path / "sheet.png", [figures.Strip(name, clips[0], [name] * 4, name)])
  assert len(list(tmp_path.iterdir())) == 3


@pytest.fixture
def drawn(monkeypatch) -> list[matplotlib.figure.Figure]:
  """The figures that are written."""
  written, save = [], matplotlib.figure.Figure.savefig

  def record(figure, *args, **options):
    written.append(figure)
    save(figure, *args, **options)

  monkeypatch.setattr(matplotlib.figure.Figure, "savefig", record)
  return written


def test_dollar_signs_are_drawn_and_begin_no_formula(tmp_path, drawn):
  figures.confusion_matrix(tmp_path / "x.png", np.eye(2, dtype=int), ["$x$", "x"])
  labels = drawn[0].axes[0].get_yticklabels()
  assert [label.get_text() for label in labels] == ["$x$", "x"]
  with_dollars, without = (label.get_window_extent().width for label in labels)
  assert with_dollars > 2 * without


def test_a_long_class_name_leaves_the_matrix_its_room(tmp_path):
  counts = np.eye(3, dtype=int)
  for letters in (40, 400):
    # The widest letters there are.
    figures.confusion_matrix(tmp_path / f"{letters}.png", counts, ["W" * letters, "b", "c"])
  assert size_of(tmp_path / "400.png")[0] <= size_of(tmp_path / "40.png")[0] + 15


def test_learning_curves_are_drawn_from_no_point_or_many(tmp_path):
  history = [{"epoch": i / 2, "train/loss": 2 / i, "train/top1": 1 - 1 / i} for i in range(1, 9)]
  for count in (0, 1, 8):
    path = tmp_path / f"{count}.png"
    figures.learning_curves(path, history[:count], {"loss": 1.5, "video_top1": 0.5}, 0.125)
    assert size_of(path)[0] > 900


def test_a_model_without_classes_has_a_loss_curve_alone(tmp_path):
  history = [{"epoch": i / 2, "train/loss": 2 / i} for i in range(1, 9)]
  figures.learning_curves(tmp_path / "loss.png", history, {"loss": 1.5}, 0.125)
  whole = [{**line, "train/top1": 0.5} for line in history]
  figures.learning_curves(tmp_path / "both.png", whole, {"loss": 1.5, "video_top1": 0.5}, 0.125)
  widths = [size_of(tmp_path / f"{name}.png")[0] for name in ("loss", "both")]
  assert widths[0] == pytest.approx(widths[1] / 2, rel=0.1)


def curves(axes) -> dict[str, tuple[list[float], list[float]]]:
  """What is drawn in a panel, by its label."""
  return {line.get_label(): tuple(map(list, line.get_data())) for line in axes.lines}


def test_learning_curves_show_every_list_where_it_was_evaluated(tmp_path, drawn):
  history = [
    {"step": 10 * i, "epoch": i / 2, "train/loss": 2 / i, "train/top1": i / 8, "learning_rate": 0.1}
    for i in range(1, 9)
  ]
  for line, top1 in ((history[3], 0.5), (history[7], 0.25)):
    line |= {"validation/loss": 1.0, "validation/video_top1": top1, "validation_raw/loss": 1.5}
    line |= {"validation_raw/video_top1": top1 / 2}
  history[7] |= {"train_sample/loss": 0.5, "train_sample/video_top1": 0.75}
  history[5]["train/loss"] = np.nan
  test = {"loss": 1.5, "video_top1": 0.4}
  figures.learning_curves(tmp_path / "x.png", history, test, 0.125, step=40, best=history[3])
  loss, accuracy, rates = drawn[0].axes
  assert curves(loss)["validation videos"] == ([2.0, 4.0], [1.0, 1.0])
  of_accuracy = curves(accuracy)
  assert of_accuracy["training clips"][1] == [12.5 * i for i in range(1, 9)]
  assert of_accuracy["validation videos"] == ([2.0, 4.0], [50, 25])
  assert of_accuracy["the same, raw parameters"] == ([2.0, 4.0], [25, 12.5])
  assert of_accuracy["training videos"] == ([4.0], [75])
  # Tested and best are at the step that they are of, and not at the end.
  assert of_accuracy["test videos"] == ([2.0], [40])
  assert of_accuracy["best validation: step 40"][0] == [2.0, 2.0]
  assert [line.get_ydata()[0] for line in rates.lines] == [0.1]


def test_rates_of_many_groups_are_drawn_and_the_outer_ones_are_named(tmp_path, drawn):
  history = [
    {
      "epoch": i,
      "train/loss": 1.0,
      "learning_rate": 0.1,
      **{f"learning_rate/layer {k}": 0.1 * 0.5 ** (12 - k) for k in range(13)},
    }
    for i in (1, 2, 3)
  ]
  figures.learning_curves(tmp_path / "x.png", history, {"loss": 1.0}, 0.1)
  _, rates = drawn[0].axes
  assert len(rates.lines) == 13 and rates.get_yscale() == "log"
  names = [text.get_text() for text in rates.get_legend().get_texts()]
  assert names == ["layer 12", "layer 0"]
  # No tick is a formula that is not parsed.
  texts = {text.get_text() for text in drawn[0].findobj(matplotlib.text.Text)}
  assert not any("mathdefault" in text for text in texts)


@pytest.mark.parametrize(
  ("predicted", "title", "colour"),
  [
    ("wave", "wave, recognized", figures.INK),
    ("golf", "wave, predicted golf", figures.ORANGE),
    ("", "wave", figures.INK),
  ],
)
def test_a_clip_s_title_says_what_was_predicted(tmp_path, drawn, predicted, title, colour):
  clips = np.zeros((1, 4, 24, 24, 3), np.uint8)
  figures.contact_sheet(tmp_path / "clips.png", clips, ["wave"], [predicted])
  texts = {text.get_text(): text.get_color() for text in drawn[0].findobj(matplotlib.text.Text)}
  assert texts[title] == colour


def test_a_picture_that_cannot_be_written_says_where_and_why(tmp_path):
  with pytest.raises(figures.FigureError, match=r"nowhere.*No such file.*--workdir") as caught:
    figures.write_picture(tmp_path / "nowhere" / "x.png", np.zeros((2, 2, 3), np.uint8))
  assert isinstance(caught.value, errors.UserError)


def test_a_picture_is_written_pixel_by_pixel(tmp_path):
  picture = strip(2).picture()
  figures.write_picture(tmp_path / "x.png", picture)
  with Image.open(tmp_path / "x.png") as file:
    np.testing.assert_array_equal(np.asarray(file), picture)
  assert [path.name for path in tmp_path.iterdir()] == ["x.png"]
