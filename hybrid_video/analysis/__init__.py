"""Predictions to metrics with their uncertainty.

In: `predictions.npz` of one run or several. Out: accuracies, calibration, intervals and tests, as values
for `results.json`, tables and pages. Nothing here runs a model, or imports JAX or TensorFlow.
"""
