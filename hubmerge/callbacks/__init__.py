"""Steps of training loops that are not hubmerge's: saved from the loop, published beside it."""
