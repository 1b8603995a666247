"""Training: data sets, objectives, recipes, pairs and the one training loop."""
