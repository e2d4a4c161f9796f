"""Speed: contenders side by side, latency by phase and beam size, predictions, scaling."""
