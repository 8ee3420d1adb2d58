"""Training: records to packed batches, the objective, and the loop."""
