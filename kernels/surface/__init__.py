"""Surface elements, surface distances and Euclidean distance transforms: reference and native."""
