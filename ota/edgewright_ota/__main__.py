"""`python -m edgewright_ota` is `edgewright-ota`."""

from edgewright_ota.cli import main

if __name__ == "__main__":
    main()
