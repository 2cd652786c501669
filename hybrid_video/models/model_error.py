"""What can be wrong with a model's name, its options, or the clips that it is given."""

from hybrid_video import errors


class ModelError(errors.UserError):
  """A model, an option or a clip that does not fit; the message says what would."""
