"""What is read after a run: its history."""
