"""Evaluation of unlearned models."""
