"""The Ranks tab of TensorBoard."""
