"""Trust and transport: signed releases, tiny deltas, and the update server and client."""
