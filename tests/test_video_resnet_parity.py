"""Our video ResNets against torchvision's outputs, and PyTorch twins of two that it has not."""

from golden import video_resnets
import pytest

from hybrid_video import models

NETWORKS = ("r2plus1d_18", "r3d_18", "mc3_18", "r2plus1d_34", "r2plus1d_18_hara")
# A gradient takes a minute to compile; these two have every kind of layer between them.
OFTEN = ("r2plus1d_18", "r2plus1d_18_hara")


def _check_outputs(name, errors):
  assert len(errors["blocks"]) == 1 + models.video_resnet.ARCHITECTURES[name].depth
  assert errors["logits"] < 1e-4
  assert max(errors["blocks"]) < 1e-4


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in OFTEN])
def test_logits_and_blocks_agree_with_the_reference(name):
  _check_outputs(name, video_resnets.errors(name, train=False))


@pytest.mark.parametrize(
  "name", [pytest.param(n, marks=[] if n in OFTEN else pytest.mark.slow) for n in NETWORKS]
)
def test_logits_blocks_gradients_and_statistics_agree_with_the_reference(name):
  errors = video_resnets.errors(name)
  _check_outputs(name, errors)
  assert errors["loss"] < 1e-4
  assert max(errors["statistics"].values()) < 1e-4
  assert max(errors["gradients"].values()) < 1e-4


def test_a_swapped_pair_of_weights_does_not_pass_for_parity():
  def swapped(state_dict):
    a, b = "layer1.0.conv1.0.0.weight", "layer1.1.conv1.0.0.weight"
    state_dict[a], state_dict[b] = state_dict[b], state_dict[a]
    return state_dict

  assert video_resnets.errors("r2plus1d_18", change=swapped, train=False)["logits"] > 1e-3


def test_a_wrong_epsilon_does_not_pass_for_parity():
  name, wrong = "r2plus1d_34", models.video_resnet.ARCHITECTURES["r2plus1d_18"].epsilon
  errors = video_resnets.errors(name, epsilon=wrong, train=False)
  assert errors["logits"] > 1e-3
