"""The desktop studio."""
