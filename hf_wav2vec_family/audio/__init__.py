"""Everything between an audio file and the numbers a model takes."""
