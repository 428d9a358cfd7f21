"""From what a model says about each frame to text."""
