"""Sweeps of one training script with engines that people have: Hydra, Optuna, Ray Tune and W&B."""
