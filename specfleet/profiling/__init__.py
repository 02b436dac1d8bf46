"""What `specfleet profile` does: steps of many shapes through an engine, and a profile fitted to what they took."""
