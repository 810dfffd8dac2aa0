"""What watches a run: its console and its checkpoints."""
