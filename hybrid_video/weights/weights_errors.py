"""What can be wrong with weights: the file, or its fit to a model."""

from hybrid_video import errors


class WeightsFileError(errors.UserError):
  """A file of weights that is damaged, of another format, or asks for more than tensors need."""


class PortingError(errors.UserError):
  """Weights that do not fit a model; the message lists everything at once."""
