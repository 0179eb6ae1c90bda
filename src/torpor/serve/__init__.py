"""torpor as a service: a process that has everything loaded listens on a socket (docs/serve.md is the protocol).

`server` listens and forks, `request` is what happens in the child, `client` is the other end, which loads next to nothing.
"""
