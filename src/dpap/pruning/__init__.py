"""What is alive and what it costs; masks that hold; smaller tensors."""
