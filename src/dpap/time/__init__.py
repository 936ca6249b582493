"""Dead time steps: which there may be in a network, and the gates that keep them dead."""
