"""HMDB51 as a TensorFlow Datasets builder, for any folder in HMDB51's layout."""
