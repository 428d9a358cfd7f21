"""The training stages; run from a checkout."""
