"""One card per model that a recipe makes, all from one template; no number in them that no JSON of a run has."""
