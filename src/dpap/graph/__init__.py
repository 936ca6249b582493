"""What must shrink together, found out from the computation graph of a model."""
