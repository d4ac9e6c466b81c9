"""The engines a Runner can use, one file each."""
