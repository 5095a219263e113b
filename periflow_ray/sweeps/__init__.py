"""Hyperparameter sweeps: what one is, its journal, and what is known of its trials."""
