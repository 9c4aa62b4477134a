"""Log-probabilities of tokens from hidden states, in float32, without the logits."""
