"""`python -m torpor`."""

from torpor.cli import command

if __name__ == "__main__":
    command()
