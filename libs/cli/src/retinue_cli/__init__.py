"""The `retinue` command: starts a mesh on this machine, talks to it, and shows what goes on in it."""
