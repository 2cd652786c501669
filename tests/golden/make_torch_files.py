"""Writes the checkpoints of `tests/test_torch_files.py` with PyTorch itself, and what they hold.

Run anywhere, from any folder:
  pip install torch==2.13.0 safetensors==0.8.0 numpy
  python tests/golden/make_torch_files.py
Out: tests/golden/torch_files/: stream.pth, archive.pth, tensors.safetensors with the tensors of
values.npz (bfloat16 widened to float32); *_wrapped.pth with the state dict of module.npz, and
*_training.pth with the same as a training script saves it, among objects of many classes.
"""

import argparse
import collections
import datetime
import functools
import pathlib

import numpy as np
from safetensors.torch import save_file
import torch

FOLDER = pathlib.Path(__file__).parent / "torch_files"


def tensors() -> dict[str, torch.Tensor]:
  """Every dtype, and views that share, stride, shift, repeat and end before their storage does."""
  generator = torch.Generator().manual_seed(0)
  base = torch.randn((4, 6), generator=generator)
  flags = torch.tensor([[True, False, True], [False, False, True]])
  stateful = torch.nn.Parameter(torch.randn(3, generator=generator))
  stateful.note = "a parameter with an attribute"
  return {
    "base": base,
    "same": base,
    "transposed": base.t(),
    "slice": base[1:3, 2:5],
    "steps": base.t()[1:5:2, ::2],
    "row": base[3],
    "expanded": torch.randn((3, 1), generator=generator).expand(3, 5),
    "half": torch.randn(5, generator=generator).half(),
    "bfloat16": torch.randn((2, 3), generator=generator).bfloat16().t(),
    "bfloat16_scalar": torch.tensor(-1.5, dtype=torch.bfloat16),
    "special": torch.tensor([float("inf"), float("-inf"), -0.0, 1e-40]),
    "float64": torch.randn((2, 2), generator=generator, dtype=torch.float64),
    "int8": torch.tensor([-128, 127], dtype=torch.int8),
    "int16": torch.tensor([-32768, 32767], dtype=torch.int16),
    "int32": torch.tensor([-(2**31), 2**31 - 1], dtype=torch.int32),
    "int64": torch.tensor([-(2**63), 2**63 - 1]),
    "uint8": torch.tensor([0, 255], dtype=torch.uint8),
    "uint16": torch.tensor([1, 65535], dtype=torch.uint16)[1:],
    "uint32": torch.tensor([1, 2**32 - 1], dtype=torch.uint32),
    "uint64": torch.tensor([1, 2**63], dtype=torch.uint64),
    "num_batches_tracked": torch.tensor(7),
    "flags": flags.t(),
    "flag": torch.tensor(True),
    "parameter": torch.nn.Parameter(torch.randn((2, 2), generator=generator)),
    "stateful": stateful,
    "empty": torch.zeros((0, 3)),
  }


def module() -> torch.nn.Module:
  """A network whose state dict carries version metadata and a 0-d counter."""
  torch.manual_seed(1)
  return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))


def array(tensor: torch.Tensor) -> np.ndarray:
  """The tensor's values in NumPy; bfloat16 as float32."""
  tensor = tensor.detach()
  return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def main() -> None:
  FOLDER.mkdir(exist_ok=True)
  known = tensors()
  np.savez_compressed(FOLDER / "values.npz", **{key: array(t) for key, t in known.items()})
  checkpoint = collections.OrderedDict(known)
  torch.save(checkpoint, FOLDER / "stream.pth", _use_new_zipfile_serialization=False)
  torch.save(checkpoint, FOLDER / "archive.pth")
  copies = {key: t.detach().clone().contiguous() for key, t in known.items()}
  save_file(copies, FOLDER / "tensors.safetensors", metadata={"format": "pt"})

  network = module()
  optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
  network(torch.eye(4, 3)).square().sum().backward()
  optimizer.step()
  state = network.state_dict()
  np.savez_compressed(FOLDER / "module.npz", **{key: array(t) for key, t in state.items()})
  parallel = torch.nn.DataParallel(network).state_dict()
  wrapped = {
    "epoch": 3,
    "args": {
      "lr": 0.1,
      "betas": (0.9, 0.999),
      "name": "r2plus1d_18",
      "resume": None,
      "size": [112],
    },
    "shape": torch.zeros(2, 3).shape,
    "dtype": torch.float16,
    "device": torch.device("cpu"),
    "best": torch.tensor(0.5),
    "optimizer": optimizer.state_dict(),
  }
  torch.save(
    {**wrapped, "model": parallel},
    FOLDER / "stream_wrapped.pth",
    _use_new_zipfile_serialization=False,
  )
  nested = {**wrapped, "model": {"state_dict": parallel}}
  torch.save(nested, FOLDER / "archive_wrapped.pth", pickle_protocol=4)
  save_training(network, optimizer)


def save_training(network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
  """What the training scripts of torchvision, timm, Lightning and DeepSpeed save, all in one."""
  schedulers = [
    torch.optim.lr_scheduler.LinearLR(optimizer),
    torch.optim.lr_scheduler.LambdaLR(optimizer, functools.partial(pow, 2)),
    torch.optim.lr_scheduler.MultiStepLR(optimizer, [3]),
  ]
  one_after_another = torch.optim.lr_scheduler.SequentialLR(optimizer, schedulers[::2], [1])
  average = torch.optim.swa_utils.AveragedModel(network)
  with torch.no_grad():
    for parameter in average.parameters():
      parameter += 1.0
  compiled = torch.nn.DataParallel(torch.compile(network))
  checkpoint = {
    "args": argparse.Namespace(lr=0.1, output=pathlib.PurePosixPath("runs"), device="cuda"),
    "epoch": np.int64(3),
    "best_acc1": np.float64(71.25),
    "curve": collections.defaultdict(list, loss=[np.float32(0.5), torch.tensor(0.25)]),
    "confusion": np.arange(4).reshape(2, 2),
    "names": {"a", "b"},
    "frozen": frozenset({1}),
    "seen": collections.Counter("aab"),
    "time": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
    "state": {"python": (3, (2**31, 2**32 - 1), None), "torch": torch.get_rng_state()[:8]},
    "dtype": [torch.bfloat16, torch.float8_e4m3fn, torch.strided, torch.contiguous_format],
    "shapes": [collections.OrderedDict(weight=torch.Size([2, 3]))],
    "device": torch.device("cuda", 0),
    "optimizer": optimizer.state_dict(),
    "lr_scheduler": one_after_another.state_dict(),
    "lambda": schedulers[1].state_dict(),
    "scaler": torch.amp.GradScaler("cpu").state_dict(),
    "quantized": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "sparse": torch.eye(2).to_sparse(),
    "float8": torch.ones(2).to(torch.float8_e4m3fn),
    "callbacks": {torch.nn.Linear: {"best": 1}, ("tuple", 1): None},
    "hyper_parameters": {"loss": torch.nn.CrossEntropyLoss(), "reduce": torch.mean},
    "model": compiled.state_dict(),
    "model_ema": average.state_dict(),
  }
  torch.save(checkpoint, FOLDER / "archive_training.pth", pickle_protocol=5)
  # The older format cannot hold some of them.
  for key in ("quantized", "float8", "dtype"):
    del checkpoint[key]
  torch.save(checkpoint, FOLDER / "stream_training.pth", _use_new_zipfile_serialization=False)


if __name__ == "__main__":
  main()
