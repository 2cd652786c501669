"""Makes videomae.npz: what Hugging Face's VideoMAE gives for weights made from their names.

In: nothing but the seeds below. Out: tests/golden/videomae.npz, which tests/test_videomae.py reads.

Run it where PyTorch is, from the repository's root:

  pip install torch==2.13.0 transformers==4.57.6 'huggingface_hub<1.0' numpy
  python tests/golden/make_videomae.py
"""

import json
import pathlib
import sys

import numpy as np
import torch
import transformers

FOLDER = pathlib.Path(__file__).parent
sys.path.insert(0, str(FOLDER))

import reference_weights  # noqa: E402

BATCH = 2
CLASSES = 5
# name: frames, image size, width, depth, heads, decoder's, epsilon, ratio, step over the tokens stored
CONFIGURATIONS = {
  "tiny": (4, 32, 48, 2, 3, 32, 1, 2, 1e-12, 0.75, 3),
  "small": (16, 64, 384, 3, 6, 192, 2, 3, 1e-6, 0.9, 28),
}


def _filled(model: torch.nn.Module) -> str:
  """Fills a model by its keys' names and returns their shapes as JSON."""
  shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
  values = reference_weights.state_dict(shapes)
  model.load_state_dict({key: torch.from_numpy(value) for key, value in values.items()})
  model.eval()
  return json.dumps(shapes)


def main() -> None:
  """Writes the file."""
  arrays = {}
  for name, configuration in CONFIGURATIONS.items():
    frames, size, width, depth, heads, wide, deep, many, epsilon, ratio, step = configuration
    options = {
      "num_frames": frames,
      "image_size": size,
      "hidden_size": width,
      "num_hidden_layers": depth,
      "num_attention_heads": heads,
      "intermediate_size": 4 * width,
      "decoder_hidden_size": wide,
      "decoder_num_hidden_layers": deep,
      "decoder_num_attention_heads": many,
      "decoder_intermediate_size": 4 * wide,
      "layer_norm_eps": epsilon,
      "num_labels": CLASSES,
    }
    clips = reference_weights.clips((BATCH, frames, size, size, 3))
    pixels = torch.from_numpy(clips).permute(0, 1, 4, 2, 3).contiguous()
    cells = (size // 16) ** 2
    rng = np.random.default_rng(1)
    hidden = np.stack([rng.permutation(cells) < int(ratio * cells) for _ in range(BATCH)])
    mask = np.tile(hidden, (1, frames // 2))

    classifier = transformers.VideoMAEForVideoClassification(
      transformers.VideoMAEConfig(use_mean_pooling=True, **options)
    )
    arrays[f"{name}_classifier_shapes"] = np.array(_filled(classifier))
    pretraining = transformers.VideoMAEForPreTraining(
      transformers.VideoMAEConfig(use_mean_pooling=False, **options)
    )
    arrays[f"{name}_pretraining_shapes"] = np.array(_filled(pretraining))
    of_first_token = transformers.VideoMAEForVideoClassification(
      transformers.VideoMAEConfig(use_mean_pooling=False, **options)
    )
    arrays[f"{name}_first_token_shapes"] = np.array(_filled(of_first_token))
    with torch.no_grad():
      arrays[f"{name}_logits"] = classifier(pixels).logits.numpy()
      arrays[f"{name}_first_token_logits"] = of_first_token(pixels).logits.numpy()
      out = pretraining(pixels, bool_masked_pos=torch.from_numpy(mask))
    predictions = out.logits.numpy()
    arrays[f"{name}_mask"] = mask
    arrays[f"{name}_loss"] = out.loss.numpy()
    # A few tokens in full, and the length of every token.
    arrays[f"{name}_step"] = np.array(step)
    arrays[f"{name}_predictions"] = predictions[:, ::step]
    arrays[f"{name}_norms"] = np.linalg.norm(predictions, axis=-1)
    print(name, predictions.shape, float(out.loss), arrays[f"{name}_logits"][0])
  np.savez_compressed(FOLDER / "videomae.npz", **arrays)
  print((FOLDER / "videomae.npz").stat().st_size, "bytes")


if __name__ == "__main__":
  main()
