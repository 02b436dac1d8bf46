"""The network of the `awc` speculation policy: scenarios, labels, training."""
