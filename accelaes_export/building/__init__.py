"""From a recipe to a bundle: the job, its stages, what it needs, and whether its engine is the model."""
