"""Memory that comes while the program runs (`torpor restart --lazy`): docs/architecture.md has the story.

space.py    what lies where in an address space, and what of it has not come yet
server.py   brings it: what is touched at once, the rest behind
guard.py    sees to it that nobody reads zeros where memory could not be brought
"""
