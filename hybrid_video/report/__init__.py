"""What a run says of itself: lines on the console, TensorBoard events, results and figures."""
