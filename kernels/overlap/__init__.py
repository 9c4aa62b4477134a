"""Overlap counts of label volumes and of packed masks: reference and native."""
