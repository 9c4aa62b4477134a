"""Scores of samples for data selection: one pass over logits, class medians, votes, factored gradients."""
