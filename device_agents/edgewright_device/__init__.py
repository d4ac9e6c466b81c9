"""What a device can run, and the agent that runs it and keeps it up to date."""
