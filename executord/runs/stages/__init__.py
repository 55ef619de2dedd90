"""The work of a run, one file a stage. A stage is safe to repeat and ends in exactly one event."""
