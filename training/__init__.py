"""Training: data sets, objectives, recipes, pairs and the one training loop.

As a library: `recipes.recipe` and `trainer.train` are a whole run; `batch`, `objectives.OBJECTIVES`, `averages.Average`
and `pairs` are the parts of a loop of one's own (examples/own_loop.py). Nothing is imported here: that takes torch.
"""
