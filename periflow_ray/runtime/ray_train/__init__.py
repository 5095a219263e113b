"""How Ray Train is set up, and asked about new worker groups."""
